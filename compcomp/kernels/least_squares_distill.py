"""Layer-wise distillation on tensors [hubara2021, frantar2022]."""

from __future__ import annotations

from dataclasses import replace

import torch

from compcomp.encodings.least_squares_distill import SWEEPS, LeastSquaresDistill
from compcomp.kernels._codebook import coded, nearest_places
from compcomp.kernels._second_order import Spectrum
from compcomp.kernels._shared import Tensor, check, chunks, effective
from compcomp.layers.state import Grid, LayerState

BLOCK = 128
"""The number of columns whose moves are applied to the other columns' gradients together, as one matrix product."""

CACHE = 2**21
"""Bytes of systems that are factored together on a CPU, so that the results of one pass are cached for the next."""

HEAVY = 100.0
"""The ratio to the median input above which an input is fitted first, as its weight's rounding error counts more."""

SOUND = 1e-10
"""The least share of its diagonal entry that a Cholesky pivot may be; below it the system is nearly singular."""

INVERTIBLE = 1e-6
"""The same for a Gram matrix that is inverted: far from singular, so that its inverse is good to ten digits."""


def kernel(technique: LeastSquaresDistill, layer: LayerState) -> LayerState:
    """Fit the free weights to the dense layer's outputs; the output error of no row grows.

    ``layer.weight`` and ``layer.reference`` are out x in, ``layer.gram`` is in x in, of the current inputs. All is
    computed in float64. Without a grid, the result is the minimiser over each row's free weights, the one of least
    change if the Gram matrix leaves it open. On a grid, it is found by coordinate descent along the grid. A row that
    the weight's dtype cannot improve does not change, bit for bit. Source: [hubara2021] (within a mask), [frantar2022]
    (the layer-wise objective).

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram, form = layer.gram.to(torch.float64), layer.format
    tolerance = max(1e-12, 4 * torch.finfo(layer.gram.dtype).eps)
    error = output_target(layer, gram, tolerance) - effective(layer, torch.float64)
    start = layer.weight.to(torch.float64)
    if form.grid is None:
        fitted = start + least_change(error, gram, form.mask, tolerance)
    else:
        fitted = descend(layer.weight, error, gram, form.grid, form.mask)
    weight = fitted.to(layer.weight.dtype)
    left = error - (weight.to(torch.float64) - start)
    if form.grid is None:
        again = _after_rounding(left, gram, form.mask, tolerance)
        if again is not None:
            fitted = (weight.to(torch.float64) + again).to(layer.weight.dtype)
            rest = error - (fitted.to(torch.float64) - start)
            lower = row_errors(rest, gram) < row_errors(left, gram)
            weight, left = torch.where(lower[:, None], fitted, weight), torch.where(lower[:, None], rest, left)
    better = row_errors(left, gram) < row_errors(error, gram)
    weight = torch.where(better[:, None], weight, layer.weight)
    return replace(layer, weight=weight, format=replace(form, rank=None))


def output_target(layer: LayerState, gram: Tensor, tolerance: float) -> Tensor:
    """Return the weight whose outputs on the current inputs come closest to the dense outputs; float64, out x in.

    See :func:`compcomp.algebra.least_squares.output_target`. ``gram`` is that of the current inputs, float64.
    """
    reference: Tensor = layer.reference.to(torch.float64)
    if layer.reference_inputs is None:
        return reference
    assert layer.inputs is not None
    inputs = layer.inputs.to(torch.float64)
    right = reference @ (layer.reference_inputs.to(torch.float64) - inputs) @ inputs.T
    return reference + _solve(gram[None], right.T[None], tolerance)[0].T


def row_errors(error: Tensor, gram: Tensor) -> Tensor:
    """Return the squared output error of each row (out): ``error_i @ gram @ error_i``."""
    return ((error @ gram) * error).sum(dim=1)


# ------------------------------------------------------------------------------------------ least squares


def least_change(error: Tensor, gram: Tensor, mask: Tensor | None, tolerance: float) -> Tensor:
    """Return the change that minimises each row's output error over its free weights, least in norm; out x in.

    Args:
        error: The reference minus the effective weight, out x in.
        gram: The Gram matrix, in x in.
        mask: True where a weight is free; None if all are.
        tolerance: In a system that is nearly singular, eigenvalues below this share of the largest count as zero.
    """
    alive = gram.diagonal() > 0  # the weights of an input that is always zero change no output and stay
    right = error @ gram
    change = torch.zeros_like(error)
    free = alive.expand(error.shape) if mask is None else mask & alive
    if not bool(free.any()):
        return change
    if mask is None or bool((mask == mask[:1]).all()):
        kept = free[0].nonzero()[:, 0]
        change[:, kept] = _solve(gram[kept][:, kept][None], right[:, kept].T[None], tolerance)[0].T
        return change
    fixed = alive & ~free
    inverse = _inverse(gram, alive) if int(fixed.sum()) < int(free.sum()) else None
    few = torch.zeros(len(error), dtype=torch.bool, device=error.device)
    if inverse is not None:  # faster from the inverse if fewer weights are fixed than free
        few = fixed.sum(dim=1) < free.sum(dim=1)
        left = _within(inverse, error[few], fixed[few], tolerance) @ inverse
        change[few] = (error[few] - left) * free[few]
    change[~few] = _within(gram, right[~few], free[~few], tolerance)
    return change


def _after_rounding(left: Tensor, gram: Tensor, mask: Tensor | None, tolerance: float) -> Tensor | None:
    """Return the change that compensates for rounding the weights of inputs :data:`HEAVY` times the others.

    ``left`` is the reference minus the effective weight as stored. Only the other weights change. The result is None if
    no input is that much larger than the others.
    """
    sizes = gram.diagonal()
    heavy = sizes > HEAVY**2 * sizes[sizes > 0].median() if bool((sizes > 0).any()) else sizes > 0
    if not bool(heavy.any()):
        return None
    light = (~heavy).expand(left.shape)
    return least_change(left, gram, light if mask is None else light & mask, tolerance)


def _inverse(gram: Tensor, alive: Tensor) -> Tensor | None:
    """Return the inverse Gram matrix of the inputs that are not always zero, 0 elsewhere; None if nearly singular."""
    kept = alive.nonzero()[:, 0]
    system = gram[kept][:, kept]
    factor, info = torch.linalg.cholesky_ex(system)
    if bool(info != 0) or bool((factor.diagonal().square() / system.diagonal()).amin() <= INVERTIBLE):
        return None
    inverse = torch.zeros_like(gram)
    inverse[kept[:, None], kept] = torch.cholesky_inverse(factor)
    return inverse


def _within(matrix: Tensor, right: Tensor, chosen: Tensor, tolerance: float) -> Tensor:
    """Return for each row the x with ``matrix x = right`` in the chosen entries and 0 elsewhere; all are rows x in."""
    found = torch.zeros_like(right)
    counts = chosen.sum(dim=1)
    order = counts.argsort()  # rows with about as many chosen entries share a batch, so that little is padded
    order, largest = order[counts[order] > 0], int(counts.max()) if len(counts) else 0
    for part in chunks(len(order), 32 * largest * largest, matrix.device):
        rows = order[part]
        index = (~chosen[rows]).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts[rows].max())]
        real = chosen[rows].gather(1, index)
        system = matrix[index[:, :, None], index[:, None, :]]
        if not bool(real.all()):
            share = real.to(torch.float64)  # a bool factor would be converted entry by entry
            system *= share[:, :, None]
            system *= share[:, None, :]
            diagonal = system.diagonal(dim1=1, dim2=2)
            diagonal += (diagonal.sum(dim=1) / counts[rows])[:, None] * ~real
        solution = _solve(system, (right[rows].gather(1, index) * real)[..., None], tolerance)[..., 0]
        found[rows] = found[rows].scatter_(1, index, solution * real)
    return found


def _solve(system: Tensor, right: Tensor, tolerance: float) -> Tensor:
    """Return least-norm solutions of positive semidefinite systems (batch x k x k), right sides batch x k x n."""
    sound = torch.empty(len(system), dtype=torch.bool, device=system.device)
    solution = torch.empty_like(right)
    at_once = len(system) if system.device.type == "cuda" else max(1, CACHE // (8 * system.shape[1] ** 2))
    for start in range(0, len(system), at_once):
        part = slice(start, start + at_once)
        factor, info = torch.linalg.cholesky_ex(system[part])
        # A pivot that is a tiny share of the diagonal means that the column nearly depends on earlier ones.
        pivots = factor.diagonal(dim1=1, dim2=2).square() / system[part].diagonal(dim1=1, dim2=2)
        sound[part] = (info == 0) & (pivots.amin(dim=1) > SOUND)
        solution[part] = torch.cholesky_solve(right[part], factor)
    if bool(sound.all()):
        return solution
    solution[~sound] = Spectrum(system[~sound], tolerance).solve(right[~sound])
    return solution


# ------------------------------------------------------------------------------------- coordinate descent


def descend(weight: Tensor, error: Tensor, gram: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
    """Move each free weight in turn to the grid value of least output error; float64, out x in.

    Only moves that strictly decrease the error are made. Grid values are rounded to the weight's dtype first, as the
    quantizer stored them.

    Args:
        weight: A weight on the grid, out x in.
        error: The reference minus the effective weight, float64.
        gram: The Gram matrix, in x in.
        grid: The grid of the weight.
        mask: True where a weight is free; None if all are.
    """
    result = torch.empty_like(error)
    for rows in chunks(len(weight), 8 * weight.shape[1], weight.device):
        free = None if mask is None else mask[rows]
        part = replace(grid, step=grid.step[rows], offset=None if grid.offset is None else grid.offset[rows])
        result[rows] = _descend_rows(weight[rows], error[rows], gram, part, free)
    return result


def _descend_rows(weight: Tensor, error: Tensor, gram: Tensor, grid: Grid, mask: Tensor | None) -> Tensor:
    # in x rows, so that each column of the weight is contiguous; a copy even where it already is
    current = weight.to(torch.float64).T.clone(memory_format=torch.contiguous_format)
    gradient = -(gram @ error.T)
    steps, held = grid.step.T.contiguous(), None if mask is None else (~mask.T).contiguous()
    wide_steps, zero = steps.to(torch.float64), steps == 0
    some_zero = bool(zero.any())
    offsets = None if grid.offset is None else grid.offset.T.contiguous()
    codes = None if grid.codes is None else coded(grid.codes, steps)
    curvatures = gram.diagonal().tolist()
    columns = len(curvatures)
    changes = torch.empty_like(gradient[:BLOCK])
    for start in list(range(0, columns, BLOCK)) * SWEEPS:
        end = min(start + BLOCK, columns)
        part, block, moves = slice(start, end), gradient[start:end], changes[: end - start].zero_()
        # Views made at once: on small layers, making them one by one costs as much as the arithmetic.
        rows = zip(block, current[part], steps[part], wide_steps[part], moves, gram[part, part].unbind(1), strict=True)
        for j, (slope, value, width, wide_width, change, coupling) in enumerate(rows, start):
            if curvatures[j] <= 0:
                continue
            level = value - slope / curvatures[j]
            if offsets is not None:
                level -= offsets[j]
            if codes is not None and grid.codes is not None:
                level = codes[nearest_places(level.mul_(2), wide_width, grid.codes, "half_even")]
            else:
                level = level.div_(wide_width).round_().clamp_(grid.lowest, grid.levels)
            if some_zero:
                level.masked_fill_(zero[j], 0)
            target = level.to(width.dtype).mul_(width)
            if offsets is not None:
                target += offsets[j]
            target = target.to(weight.dtype).to(torch.float64)
            torch.sub(target, value, out=change)
            stays = (change * curvatures[j]).add_(slope, alpha=2).mul_(change).lt(0).logical_not_()
            if held is not None:
                stays |= held[j]
            value.copy_(torch.where(stays, value, target))
            change.masked_fill_(stays, 0)
            block.addr_(coupling, change)
        gradient[:start].addmm_(gram[:start, part], moves)
        gradient[end:].addmm_(gram[end:, part], moves)
    return current.T

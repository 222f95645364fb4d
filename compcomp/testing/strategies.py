"""Hypothesis strategies: exact layers whose entries floats hold without error, and techniques.

Entries are small integers times a power of two. There are many equal magnitudes, zeros, all-zero groups, rounding
midpoints, rank-deficient inputs and rational singular values. Verdicts depend on these, and random floats hardly ever
produce them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np
from hypothesis import strategies as st

from compcomp.language.samples import VALUES as VALUES
from compcomp.language.samples import conventions as conventions
from compcomp.language.technique import Sequence as Steps
from compcomp.language.technique import Technique
from compcomp.layers.codebooks import E2M1
from compcomp.layers.partition import Partition
from compcomp.layers.state import Cut, Factors, Format, Grid, LayerState
from compcomp.terms import Array, Choices, each

Shape = tuple[int, int]

LARGEST_GRIDS = (1, 3, 7)
"""Levels on each side of zero for 2, 3 and 4 bits. If entries are their multiples, absmax steps are exact in floats."""

CODEBOOKS: tuple[tuple[Fraction, ...], ...] = (
    E2M1,
    tuple(map(Fraction, (-4, -1, 0, 1, 2, 4))),
    tuple(map(Fraction, (-3, -1, 1, 2))),
)
"""Codes of grids: symmetric, not symmetric, and without 0."""


# --------------------------------------------------------------------------------------------- techniques


def techniques(*kinds: type[Technique], **values: Sequence[Any]) -> st.SearchStrategy[Technique]:
    """Return techniques of these classes, by default of every registered one, over their conventions."""
    chosen = kinds or tuple(Technique.kernels)
    return st.sampled_from([technique for kind in chosen for technique in conventions(kind, **values)])


def sequences(
    *kinds: type[Technique], shape: Shape | None = None, min_size: int = 1, max_size: int = 3, **values: Sequence[Any]
) -> st.SearchStrategy[Steps]:
    """Return sequences of ``min_size`` to ``max_size`` such techniques that fit ``shape``, if it is given."""
    one = techniques(*kinds, **values)
    if shape is not None:
        one = one.filter(lambda technique: technique.fits(shape))
    return st.lists(one, min_size=min_size, max_size=max_size).map(lambda found: Steps(tuple(found)))


# ----------------------------------------------------------------------------------------------- matrices


def exact(values: Any) -> Array:
    """Return an object array of Fractions from nested lists or an array of ints and Fractions."""
    return each(Fraction, np.array(values, dtype=object))


def integers(shape: Shape, largest: int) -> st.SearchStrategy[Array]:
    """Return matrices (out x in) of whole numbers of at most this magnitude, as Fractions."""
    row = st.lists(st.integers(-largest, largest), min_size=shape[1], max_size=shape[1])
    return st.lists(row, min_size=shape[0], max_size=shape[0]).map(exact)


@st.composite
def with_zero_group(draw: st.DrawFn, shape: Shape) -> Array:
    """Draw a matrix in which one row, or a stretch of one, is zero."""
    matrix = draw(integers(shape, 4))
    row, start = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
    matrix[row, (start // 2) * 2 if draw(st.booleans()) else 0 :] = Fraction(0)
    return matrix


@st.composite
def at_midpoints(draw: st.DrawFn, shape: Shape) -> Array:
    """Draw a matrix of whole numbers whose largest magnitude is 2 L: odd entries lie on midpoints of absmax."""
    levels = draw(st.sampled_from(LARGEST_GRIDS))
    matrix = draw(integers(shape, 2 * levels))
    for row in range(shape[0]):
        if draw(st.booleans()) or row == 0:
            matrix[row, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from((-1, 1))) * Fraction(2 * levels)
    return matrix


@st.composite
def low_rank(draw: st.DrawFn, shape: Shape, rank: int) -> Array:
    """Draw a matrix of whole numbers of at most this rank."""
    return np.asarray(draw(integers((shape[0], rank), 2)) @ draw(integers((rank, shape[1]), 2)))


@st.composite
def rational_svd(draw: st.DrawFn, shape: Shape) -> Array:
    """Draw a matrix of whole numbers whose singular values and vectors are rational up to one common factor.

    It is the product of two rational orthogonal matrices around whole singular values. Each of the two is a product of
    two reflections.
    """
    middle = np.full(shape, Fraction(0), dtype=object)
    for k in range(min(shape)):
        middle[k, k] = Fraction(draw(st.integers(0, 5)))
    matrix = draw(_orthogonal(shape[0])) @ middle @ draw(_orthogonal(shape[1]))
    common = lcm(*(x.denominator for x in matrix.ravel()))
    shared = gcd(*((x * common).numerator for x in matrix.ravel())) or 1
    return each(lambda x: x * common / shared, matrix)


@st.composite
def _orthogonal(draw: st.DrawFn, side: int) -> Array:
    result = exact(np.eye(side, dtype=int).tolist())
    for _ in range(2):
        normal = draw(integers((side, 1), 1))
        if square := (normal.T @ normal)[0, 0]:
            result = result @ (exact(np.eye(side, dtype=int).tolist()) - normal @ normal.T * (2 / square))
    return result


def coded(shape: Shape, codes: Sequence[Fraction]) -> st.SearchStrategy[Array]:
    """Return matrices (out x in) of codes."""
    row = st.lists(st.sampled_from(codes), min_size=shape[1], max_size=shape[1])
    return st.lists(row, min_size=shape[0], max_size=shape[0]).map(exact)


def matrices(shape: Shape) -> st.SearchStrategy[Array]:
    """Return exact matrices (out x in) of every kind above; all entries are whole numbers."""
    return st.one_of(
        integers(shape, 3),
        integers(shape, 1),
        integers(shape, 64),
        with_zero_group(shape),
        at_midpoints(shape),
        rational_svd(shape),
    )


# ------------------------------------------------------------------------------------------------- layers


@st.composite
def layers(
    draw: st.DrawFn, shape: Shape, inputs: bool = True, started: bool = True, gram_only: bool = True
) -> LayerState:
    """Draw an exact layer of this shape (out x in), dense or in the middle of a sequence.

    Args:
        shape: (out, in).
        inputs: True adds calibration inputs (in x tokens, sometimes of low rank, with dead, equal or similar features)
            and their Gram matrix.
        started: True allows that compression has begun. The weight may then differ from the reference, and the inputs
            from the dense ones. There may be a mask, a grid, factors and a rank. The weight always fits them, except
            for dropped weights if the grid does not contain 0.
        gram_only: True sometimes keeps only the Gram matrix of the inputs.
    """
    unit = draw(st.sampled_from((Fraction(1), Fraction(1, 4), Fraction(lcm(*LARGEST_GRIDS)))))
    features = draw(_inputs(shape[1])) if inputs else None
    gram = None if features is None else features @ features.T
    if gram_only and draw(st.booleans()):
        features = None
    if not started or draw(st.integers(0, 2)) == 0:
        weight = draw(matrices(shape)) * unit
        return LayerState(weight, weight, gram, features)
    weight, form = draw(_weight_and_format(shape))
    form = _scaled(form, unit)
    layer = LayerState(weight * unit, weight, gram, features, form)
    missing = draw(st.one_of(st.just(weight * 0), integers(shape, 3), integers(shape, 12), rational_svd(shape)))
    layer = replace(layer, reference=layer.effective() + missing * unit)
    if features is not None and draw(st.booleans()):
        layer = replace(layer, reference_inputs=features + draw(integers(features.shape, 2)))
    return layer


@st.composite
def _inputs(draw: st.DrawFn, side: int) -> Array:
    features = draw(integers((side, draw(st.integers(1, side + 1))), 2))
    special = draw(st.sampled_from(("none", "alike", "dead", "equal")))
    if special == "alike":  # a large part in common, so that weights depend on each other
        features = features + draw(integers((1, features.shape[1]), 4))
    elif special != "none":
        j, k = draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))
        features[j] = features[k] if special == "equal" else features[j] * 0
    return features


@st.composite
def _weight_and_format(draw: st.DrawFn, shape: Shape) -> tuple[Array, Format]:
    kind = draw(st.sampled_from(("plain", "mask", "grid", "grid", "mask and grid", "cut mask", "rank")))
    weight, grid, mask, rank = draw(matrices(shape)), None, None, None
    cut, pattern = None, None
    if kind == "rank":
        rank = draw(st.integers(1, 2))
        weight = draw(low_rank(shape, rank))
    if "grid" in kind:
        grid = draw(_grid(shape))
        if grid.codes is not None:
            weight = draw(coded(shape, grid.codes)) * grid.step
        else:
            level = draw(integers(shape, grid.levels + grid.below))
            level = np.minimum(level, grid.levels) if grid.offset is None else abs(level)
            weight = level * grid.step + (0 if grid.offset is None else grid.offset)
    if "mask" in kind:
        full = "cut" in kind and draw(st.booleans())
        row = st.lists(st.just(True) if full else st.booleans(), min_size=shape[1], max_size=shape[1])
        mask = np.array(draw(st.lists(row, min_size=shape[0], max_size=shape[0])), dtype=object)
        if "cut" in kind:
            kept = st.sampled_from((True, True, False))
            cut = Cut(*(np.array(draw(st.lists(kept, min_size=n, max_size=n)), dtype=object) for n in shape))
            for i, j in np.ndindex(*shape):
                mask[i, j] = mask[i, j] and cut.rows[i] and cut.columns[j]
        elif draw(st.booleans()):
            if shape[1] % 2 == 0 and draw(st.booleans()):  # one of each pair is dropped, by chance hardly a mask is so
                mask[:, ::2] = np.logical_and(mask[:, ::2], ~mask[:, 1::2].astype(bool))
            pattern = _pattern_of(mask)
        weight = each(lambda keep, w: w if keep else Fraction(0), mask, weight)
    factors = None
    if draw(st.integers(0, 3)) == 0:
        width = draw(st.integers(1, 2))
        left, right = draw(integers((shape[0], width), 1)), draw(integers((width, shape[1]), 1))
        if cut is not None:
            left[~cut.rows.astype(bool)], right[:, ~cut.columns.astype(bool)] = Fraction(0), Fraction(0)
        factors = Factors(left, right)
        if rank == 2:  # all of it in the low-rank term
            weight, rank = weight * 0, 0
    return weight, Format(mask, grid, factors, rank, pattern, cut)


def _pattern_of(mask: Array) -> tuple[tuple[int, int], ...]:
    """Return the tightest N:M pattern of the mask, for pairs of columns or, if there are none, single columns."""
    size = 2 if mask.shape[1] % 2 == 0 else 1
    return ((int(mask.astype(int).reshape(len(mask), -1, size).sum(axis=2).max()), size),)


@st.composite
def _grid(draw: st.DrawFn, shape: Shape) -> Grid:
    """Draw a grid with a scale for each row, half row or the tensor; the step of an all-zero group is zero."""
    partition = draw(st.sampled_from([Partition.tensor(), Partition.rows(), Partition.blocks(max(1, shape[1] // 2))]))
    if partition.size and shape[1] % partition.size:
        partition = Partition.rows()
    groups = partition.groups(shape)
    step, offset = np.empty(shape, dtype=object), np.empty(shape, dtype=object)
    levels, kind = (
        draw(st.sampled_from(LARGEST_GRIDS)),
        draw(st.sampled_from(("even", "lower", "zero", "free", "codes"))),
    )
    for number, group in enumerate(groups):
        width = draw(st.sampled_from((Fraction(1), Fraction(1, 2), Fraction(3), Fraction(0))))
        width = -width if kind == "lower" and (number + levels // 2) % 2 else width
        below = draw(st.integers(0, levels)) * (width if kind == "zero" or width else Fraction(1))
        for index in group:
            step[index], offset[index] = width, -below - (width / 2 if kind == "free" else 0)
    if kind == "codes":
        codes = draw(st.sampled_from(CODEBOOKS))
        return Grid(step, len(codes) - 1, len(groups), zero=Fraction(0) in codes, codes=codes)
    offsets = offset if kind in ("zero", "free") else None
    return Grid(step, levels, len(groups), offsets, zero=kind != "free", below=int(kind == "lower"))


def _scaled(form: Format, factor: Fraction) -> Format:
    grid = form.grid
    if grid is not None:
        offset = grid.offset
        if offset is not None and factor < 0:  # the largest value becomes the least
            offset = offset + grid.levels * grid.step
        codes = grid.codes
        if codes is not None and factor < 0:
            codes = tuple(-code for code in reversed(codes))
        grid = replace(
            grid,
            step=grid.step * (factor if grid.below else abs(factor)),
            offset=None if offset is None else offset * factor,
            codes=codes,
        )
    factors = form.factors
    if factors is not None:
        left = _scaled(Format(grid=factors.left_grid), factor).grid
        factors = replace(factors, left=factors.left * factor, left_grid=left)
    return replace(form, grid=grid, factors=factors)


def scaled(layer: LayerState, factor: Fraction) -> LayerState:
    """Return the layer with weight, reference and the numbers of its format scaled.

    A grid's step stays positive if the grid has as many values above 0 as below it.
    """
    form = _scaled(layer.format, factor)
    weight, reference = layer.weight * factor, layer.reference * factor
    return replace(layer, weight=weight, reference=reference, format=form, choices=Choices())

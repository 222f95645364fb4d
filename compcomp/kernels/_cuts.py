"""Structured pruning on tensors: scores of whole rows and columns, and their removal."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from compcomp.kernels._shared import Tensor, chunks, smallest
from compcomp.layers.state import Cut, Factors, LayerState


def double(layer: LayerState, rows: slice) -> Tensor:
    """Return a slice of rows of the effective weight, in float64."""
    weight: Tensor = layer.weight[rows].to(torch.float64, copy=True)
    factors = layer.format.factors
    return weight if factors is None else weight + factors.left[rows].double() @ factors.right.double()


def row_scores(layer: LayerState, size: int, score: str) -> Tensor:
    """Return the scores of ``size`` consecutive rows each, float64 (:func:`compcomp.algebra.cuts.row_scores`)."""
    rows, columns = layer.weight.shape
    scores = torch.empty(rows, dtype=torch.float64, device=layer.weight.device)
    gram = layer.gram.to(torch.float64) if score == "activation" else None  # type: ignore[union-attr]
    for part in chunks(rows, 32 * columns, layer.weight.device):
        weight = double(layer, part)
        if gram is not None:
            scores[part] = (weight @ gram).mul_(weight).sum(dim=1)
        else:
            scores[part] = (weight.abs_() if score == "l1" else weight.square_()).sum(dim=1)
    return scores.reshape(-1, size).sum(dim=1)


def column_scores(layer: LayerState, size: int, score: str) -> Tensor:
    """Return the scores of ``size`` consecutive columns each, float64 (:func:`compcomp.algebra.cuts.column_scores`)."""
    rows, columns = layer.weight.shape
    scores = torch.zeros(columns, dtype=torch.float64, device=layer.weight.device)
    if score == "activation":
        scores = layer.gram.diagonal().to(torch.float64)  # type: ignore[union-attr]
    else:
        for part in chunks(rows, 32 * columns, layer.weight.device):
            weight = double(layer, part)
            scores += (weight.abs_() if score == "l1" else weight.square_()).sum(dim=0)
    return scores.reshape(-1, size).sum(dim=1)


def least(scores: Tensor, share: Fraction, size: int, ties: str) -> Tensor:
    """Return for each row or column if it is in one of the ``int(n * share)`` groups of least score, of n groups."""
    taken = smallest(scores[None], int(len(scores) * share), ties)[0]
    return taken.repeat_interleave(size)


def remove(layer: LayerState, dropped: Tensor, axis: int) -> LayerState:
    """Return the layer with rows (axis 0) or columns (axis 1) set to zero, in the weight and the low-rank branch."""
    form, weight = layer.format, layer.weight
    lines = dropped[:, None] if axis == 0 else dropped[None, :]
    mask = (~lines).expand(weight.shape).clone() if form.mask is None else form.mask & ~lines
    cut = form.cut or Cut(*(torch.ones(n, dtype=torch.bool, device=weight.device) for n in weight.shape))
    cut = replace(cut, rows=cut.rows & ~dropped) if axis == 0 else replace(cut, columns=cut.columns & ~dropped)
    factors = form.factors
    if factors is not None and axis == 0:
        factors = Factors(factors.left.masked_fill(lines, 0), factors.right)
    elif factors is not None:
        factors = Factors(factors.left, factors.right.masked_fill(lines, 0))
    form = replace(form, mask=mask, cut=cut, factors=factors)
    return replace(layer, weight=weight.masked_fill(lines, 0), format=form)

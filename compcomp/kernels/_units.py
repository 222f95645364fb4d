"""Dropping whole rows and columns of tensors, and units that several layers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from compcomp.kernels._shared import Tensor, check, effective, smallest, wide
from compcomp.language.layer import Cut, Factors, LayerState
from compcomp.language.technique import Technique
from compcomp.language.whole import Group, Part, WholeModel


def drop_rows(technique: Technique, layer: LayerState, share: object, score: str, ties: str) -> LayerState:
    """The layer without the ``int(out * share)`` rows of least score, as the encoding has it."""
    check(technique, layer)
    weight = effective(layer, wide(layer.weight))
    size = weight.abs().sum(dim=1) if score == "l1" else weight.square().sum(dim=1)
    taken = smallest(size[None], int(len(size) * share), ties)[0]  # type: ignore[operator]
    return without(layer, rows=~taken)


def without(layer: LayerState, rows: Tensor | None = None, columns: Tensor | None = None) -> LayerState:
    """The layer with the rows (out) and columns (in) that are not kept zero in weight and low-rank term, and cut."""
    out, width = layer.weight.shape
    device, form = layer.weight.device, layer.format
    rows = torch.ones(out, dtype=torch.bool, device=device) if rows is None else rows
    columns = torch.ones(width, dtype=torch.bool, device=device) if columns is None else columns
    mask, factors = rows[:, None] & columns, form.factors
    weight = layer.weight.masked_fill(~mask, 0)
    if factors is not None:
        left, right = factors.left.masked_fill(~rows[:, None], 0), factors.right.masked_fill(~columns, 0)
        factors = Factors(left, right)
    if form.cut is not None:
        rows, columns = rows & form.cut.rows, columns & form.cut.columns
    if form.mask is not None:
        mask = mask & form.mask
    return replace(layer, weight=weight, format=replace(form, mask=mask, cut=Cut(rows, columns), factors=factors))


def stacked(whole: WholeModel, group: Group) -> LayerState:
    """The units of a group as the rows of one dense layer: each with all of its weights in all layers."""

    def stack(weight: Callable[[LayerState], Tensor]) -> Tensor:
        return torch.cat([_rows(weight(whole.states[part.layer]), part, group.units) for part in group.parts], dim=1)

    def now(state: LayerState) -> Tensor:
        return effective(state, wide(state.weight))

    return LayerState(stack(now), stack(lambda state: state.reference.to(wide(state.weight))))


def _rows(weight: Tensor, part: Part, units: int) -> Tensor:
    lines = weight if part.side == "out" else weight.T
    chosen = lines[part.start : part.start + units * part.size]
    return chosen.reshape(units, -1)


def pruned(technique: Technique, whole: WholeModel, groups: Sequence[Group]) -> dict[str, LayerState]:
    """The states without the units that the technique's kernel drops from the stack of each group."""
    states, run = dict(whole.states), technique.kernel()
    for group in groups:
        cut = run(technique, stacked(whole, group)).format.cut
        assert cut is not None
        for part in group.parts:
            state = states[part.layer]
            side = 0 if part.side == "out" else 1
            kept = torch.ones(state.weight.shape[side], dtype=torch.bool, device=state.weight.device)
            stop = part.start + group.units * part.size
            kept[part.start : stop] = cut.rows.to(kept.device).repeat_interleave(part.size)
            states[part.layer] = without(state, **{"rows" if side == 0 else "columns": kept})
    return states

"""Units that several layers share, on tensors: their scores, and their removal from all of these layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from compcomp.encodings.prune_heads import PruneHeads
from compcomp.encodings.prune_neurons import PruneNeurons
from compcomp.errors import InputError
from compcomp.kernels._cuts import least, remove, row_scores
from compcomp.kernels._shared import Tensor, check, effective, wide
from compcomp.layers.state import NEEDS_INPUTS, LayerState
from compcomp.layers.whole import Group, Part, WholeModel

NO_UNITS = "a model with more units, such as one whose heads do not all share keys and values"


def without_units(technique: PruneNeurons | PruneHeads, layer: LayerState) -> LayerState:
    """Return one stacked matrix (units x weights) without the rows of least score, as the encoding does."""
    check(technique, layer)
    scores = row_scores(layer, 1, technique.score)
    return remove(layer, least(scores, technique.sparsity, 1, technique.ties), axis=0)


def stacked(whole: WholeModel, group: Group) -> LayerState:
    """Return the units of a group as the rows of one dense layer, each with all of its weights in all layers."""

    def stack(weight: Callable[[LayerState], Tensor]) -> Tensor:
        return torch.cat([_rows(weight(whole.states[part.layer]), part, group.units) for part in group.parts], dim=1)

    def now(state: LayerState) -> Tensor:
        return effective(state, wide(state.weight))

    return LayerState(stack(now), stack(lambda state: state.reference.to(wide(state.weight))))


def _rows(weight: Tensor, part: Part, units: int) -> Tensor:
    lines = weight if part.side == "out" else weight.T
    chosen = lines[part.start : part.start + units * part.size]
    return chosen.reshape(units, -1)


def pruned(technique: PruneNeurons | PruneHeads, whole: WholeModel, groups: Sequence[Group]) -> dict[str, LayerState]:
    """Return the states without the units of least score of each group.

    Raises:
        InputError: The sparsity is above 0, but drops no unit of any group.
    """
    most = max(groups, key=lambda group: group.units)
    if technique.sparsity and not int(most.units * technique.sparsity):
        given = f"a share of {technique.sparsity}, which of {most.units} units that go as one is less than one"
        raise InputError(given, f"a sparsity of 1/{most.units} or more" if most.units > 1 else NO_UNITS, str(technique))
    states = dict(whole.states)
    for group in groups:
        gone = _least_units(technique, whole, group)
        for part in group.parts:
            state = states[part.layer]
            side = 0 if part.side == "out" else 1
            dropped = torch.zeros(state.weight.shape[side], dtype=torch.bool, device=state.weight.device)
            stop = part.start + group.units * part.size
            dropped[part.start : stop] = gone.to(dropped.device).repeat_interleave(part.size)
            states[part.layer] = remove(state, dropped, axis=side)
    return states


def _least_units(technique: PruneNeurons | PruneHeads, whole: WholeModel, group: Group) -> Tensor:
    if technique.score == "activation":
        scores = _put_out(whole.states[group.reads.layer], group.reads, group.units, str(technique))
        return least(scores, technique.sparsity, 1, technique.ties)
    cut = without_units(technique, stacked(whole, group)).format.cut
    assert cut is not None
    found: Tensor = ~cut.rows
    return found


def _put_out(reader: LayerState, part: Part, units: int, where: str) -> Tensor:
    """Return the squared norm of each unit's outputs on the calibration inputs: the features that the reader reads."""
    if reader.gram is None:
        raise InputError("no inputs", NEEDS_INPUTS, where)
    features: Tensor = reader.gram.diagonal().to(torch.float64)
    return features[part.start : part.start + units * part.size].reshape(units, -1).sum(dim=1)

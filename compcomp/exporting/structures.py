"""Find out in what structure a sequence leaves a layer, without a model, and which step keeps it out of a format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import lcm
from typing import Any

import torch
from torch import Tensor

from compcomp.errors import InputError
from compcomp.formats.saved import structure_of
from compcomp.formats.writers import WRITERS
from compcomp.formats.writing import Structure, Writer
from compcomp.language.technique import Sequence
from compcomp.layers.state import LayerState
from compcomp.models.components import pack
from compcomp.models.save import layer_json
from compcomp.models.states import applied_in_turn

WHERE = "export"
SIDE = 32
"""Both sides of the layer that is tried are multiples of this."""
WIDEST = 4096
"""The most columns of the layer that is tried."""


class _Numbers:
    """A tensor that is read as one of a file."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def array(self) -> Any:
        return self.tensor.float().numpy() if self.tensor.dtype == torch.bfloat16 else self.tensor.numpy()


def structure(state: LayerState, module: str = "Linear") -> Structure:
    """Return the structure in which the layer of this state would be saved."""
    shape = int(state.weight.shape[0]), int(state.weight.shape[1])
    parts: Mapping[str, Any] = {name: _Numbers(part) for name, part in pack(state, torch.float32).items()}
    return structure_of("tried", layer_json(state, shape), parts, module)


def structures(sequence: Sequence) -> list[Structure] | None:
    """Return the structures of a small random layer, dense and after each step of a sequence.

    Return None if the steps cannot be tried on one layer: if one acts on whole models, or needs too many columns.
    """
    shares = [value for step in sequence for value in vars(step).values() if isinstance(value, Fraction)]
    whole = lcm(*(share.denominator for share in shares))
    rows, columns = 2 * lcm(SIDE, whole), 2 * lcm(SIDE, whole, *(step.unit for step in sequence))
    if columns > WIDEST or any(step.whole_model for step in sequence):
        return None
    draw = torch.Generator().manual_seed(0)
    weight, tokens = (torch.randn(side, columns, generator=draw, device="cpu") for side in (rows, 2 * columns))
    state = LayerState.dense(weight, tokens.T)
    found = [structure(state)]
    try:
        for step in sequence:
            state = applied_in_turn([step], "tried", state)
            found.append(structure(state))
    except InputError:  # a step that needs more than this layer has
        return None
    return found


def broken_by(writer: Writer, found: list[Structure]) -> tuple[str, int | None] | None:
    """Return why a layer does not fit a format, and the number of the step that breaks it; None if it fits.

    It is the earliest step from which on the reason is the same until the end. None: the dense layer has the reason.
    """
    reasons = [writer.misfit(one) for one in found]
    reason = reasons[-1]
    if reason is None:
        return None
    first = len(reasons) - 1
    while first and reasons[first - 1] == reason:
        first -= 1
    return reason, first - 1 if first else None


def check_fits(writer: Writer, sequence: Sequence, layers: Mapping[str, tuple[tuple[int, int], str]]) -> None:
    """Raise InputError if the sequence leaves layers in a structure that does not fit the format.

    Nothing is raised for what a small layer does not show. It is found when the layers are compressed.

    Args:
        writer: the format.
        sequence: the techniques.
        layers: of each layer its shape and the class of its module; {} if none is known.
    """
    found = structures(sequence)
    if found is None:
        return
    if broken := broken_by(writer, found):
        reason, step = broken
        where = "" if step is None else f", from the step {list(sequence)[step]} on"
        raise InputError(
            f"a layer that does not fit {writer.name}, as {reason}{where}", fitting(sequence, found), WHERE
        )
    for name, (shape, module) in layers.items():
        last = found[-1]
        group = shape[1] if last.group == last.shape[1] else last.group
        if misfit := writer.misfit(replace(last, shape=shape, group=group, module=module)):
            given = f"layer {name} does not fit {writer.name}, as {misfit}"
            raise InputError(given, "another format, or targets and ignore without this layer", WHERE)


def fitting(sequence: Sequence, found: list[Structure]) -> str:
    """Return which formats fit, and which step breaks which of the others, as one line."""
    broken = {name: broken_by(writer, found) for name, writer in WRITERS.items()}
    parts = [f"formats that fit: {', '.join(name for name, reason in broken.items() if reason is None)}"]
    for number, step in [(None, "no step makes layers fit"), *enumerate(f"{step} breaks" for step in sequence)]:
        if names := [name for name, reason in broken.items() if reason is not None and reason[1] == number]:
            parts.append(f"{step} {', '.join(names)}")
    return "; ".join(parts)

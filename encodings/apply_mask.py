"""Masking again: weights that were pruned earlier go back to zero [mishra2021]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compcomp.language.technique import Declared, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import If, each


@dataclass(frozen=True)
class ApplyMask(Technique):
    """Set every weight to zero that the layer's mask drops; where there is no mask, change nothing.

    It mends a mask that a step since broke. A grid of which zero is no value is broken by it.
    Source: the step that keeps weights pruned while they are changed otherwise, as in [mishra2021].
    """

    kernel_module: ClassVar[str] = "compcomp.kernels.apply_mask"
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}),
        restores=frozenset({"mask"}),
        no_op=frozenset({"plain"}),
        idempotent=True,
    )

    def encode(self, layer: LayerState) -> LayerState:
        if layer.format.mask is None:
            return layer
        weight = each(lambda w, keep: If(keep, w, 0), layer.weight, layer.format.mask)
        return replace(layer, weight=weight, format=replace(layer.format, rank=None))

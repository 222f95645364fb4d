"""Mask application: weights that were pruned earlier are set to zero again [mishra2021]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compcomp.language.technique import Declared, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import If, each


@dataclass(frozen=True)
class ApplyMask(Technique):
    """Set every weight to zero that the layer's mask drops; without a mask, change nothing.

    It restores a mask that a later step broke. It breaks a grid that does not contain 0. Source: the step that keeps
    weights pruned while others change, as in [mishra2021].
    """

    kernel_module: ClassVar[str] = "compcomp.kernels.apply_mask"
    declared: ClassVar[Declared] = Declared(
        keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}),
        restores=frozenset({"mask"}),
        no_op=frozenset({"masked"}),
        idempotent=True,
    )

    def encode(self, layer: LayerState) -> LayerState:
        if layer.format.mask is None:
            return layer
        weight = each(lambda w, keep: If(keep, w, 0), layer.weight, layer.format.mask)
        return replace(layer, weight=weight, format=replace(layer.format, rank=None))

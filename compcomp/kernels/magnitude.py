"""Magnitude pruning on tensors [han2015]."""

from __future__ import annotations

from compcomp.encodings.magnitude import Magnitude
from compcomp.kernels._shared import Tensor, check, drop, selection, wide
from compcomp.layers.state import LayerState


def kernel(technique: Magnitude, layer: LayerState) -> LayerState:
    """Set the weights of least magnitude in every group to zero.

    ``layer.weight`` and ``layer.reference`` are out x in; ``of="dense"`` compares the magnitudes of the second. The
    result has the weight's dtype and a bool mask, out x in. ``ties="any"`` drops the lowest index first. Source:
    [han2015]; N:M [mishra2021].

    Raises:
        InputError: The pattern does not fit, or a weight is not finite.
    """
    check(technique, layer)

    def score(rows: slice) -> Tensor:
        part: Tensor = (layer.reference if technique.of == "dense" else layer.weight)[rows]
        return part.to(wide(part)).abs()

    return drop(layer, selection(technique), score)

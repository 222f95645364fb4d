"""Mask application on tensors [mishra2021]."""

from __future__ import annotations

from dataclasses import replace

from compcomp.encodings.apply_mask import ApplyMask
from compcomp.kernels._shared import check
from compcomp.layers.state import LayerState


def kernel(technique: ApplyMask, layer: LayerState) -> LayerState:
    """Set every weight to zero that the mask drops.

    ``layer.weight`` is out x in. ``layer.format.mask`` is bool, out x in, or None, which changes nothing. Source:
    [mishra2021].

    Raises:
        InputError: A weight is not finite.
    """
    check(technique, layer)
    if layer.format.mask is None:
        return layer
    weight = layer.weight.masked_fill(~layer.format.mask, 0)
    return replace(layer, weight=weight, format=replace(layer.format, rank=None))

"""Gradual magnitude pruning on tensors [zhu2017]."""

from __future__ import annotations

from compcomp.encodings.gradual_magnitude import GradualMagnitude
from compcomp.kernels._shared import check
from compcomp.layers.state import LayerState


def kernel(technique: GradualMagnitude, layer: LayerState) -> LayerState:
    """Prune by magnitude once a round.

    ``layer.weight`` is out x in. The result has the weight's dtype and a bool mask, out x in. ``ties="any"`` drops the
    lowest index first. Source: [zhu2017].

    Raises:
        InputError: The pattern does not fit, or a weight is not finite.
    """
    check(technique, layer)
    for each in technique.each_round():
        layer = each.kernel()(each, layer)
    return layer

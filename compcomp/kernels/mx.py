"""Microscaling formats on tensors [rouhani2023]."""

from __future__ import annotations

from compcomp.encodings.mx import MX
from compcomp.kernels._codebook import quantize
from compcomp.layers.state import LayerState


def kernel(technique: MX, layer: LayerState) -> LayerState:
    """Round every weight in its block of a shared power of two. See :func:`compcomp.kernels._codebook.quantize`."""
    return quantize(technique, layer)

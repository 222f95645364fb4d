"""4-bit floating point on tensors [rouhani2023]."""

from __future__ import annotations

from compcomp.encodings.fp4 import FP4
from compcomp.kernels._codebook import quantize
from compcomp.layers.state import LayerState


def kernel(technique: FP4, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of E2M1. See :func:`compcomp.kernels._codebook.quantize`."""
    return quantize(technique, layer)

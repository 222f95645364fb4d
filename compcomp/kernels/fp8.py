"""8-bit floating point on tensors [micikevicius2022]."""

from __future__ import annotations

from compcomp.encodings.fp8 import FP8
from compcomp.kernels._codebook import quantize
from compcomp.layers.state import LayerState


def kernel(technique: FP8, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of E4M3 or E5M2. See :func:`compcomp.kernels._codebook.quantize`."""
    return quantize(technique, layer)

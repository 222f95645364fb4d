"""Block floating point on tensors [drumond2018]."""

from __future__ import annotations

from compcomp.encodings.block_floating_point import BlockFloatingPoint
from compcomp.kernels._codebook import quantize
from compcomp.layers.state import LayerState


def kernel(technique: BlockFloatingPoint, layer: LayerState) -> LayerState:
    """Round every weight in its block of a shared exponent. See :func:`compcomp.kernels._codebook.quantize`."""
    return quantize(technique, layer)

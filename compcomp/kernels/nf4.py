"""4-bit NormalFloat on tensors [dettmers2023]."""

from __future__ import annotations

from compcomp.encodings.nf4 import NF4
from compcomp.kernels._codebook import quantize
from compcomp.language.layer import LayerState


def kernel(technique: NF4, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of 4-bit NormalFloat. See :func:`compcomp.kernels._codebook.quantize`."""
    return quantize(technique, layer)

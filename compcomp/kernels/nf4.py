"""4-bit NormalFloat on tensors [dettmers2023]."""

from __future__ import annotations

from dataclasses import replace

from compcomp.encodings.nf4 import BLOCK, NF4
from compcomp.kernels._codebook import coded, nearest_places, quantize
from compcomp.kernels._shared import Tensor, largest_magnitudes
from compcomp.layers.codebooks import DYNAMIC8
from compcomp.layers.state import LayerState


def kernel(technique: NF4, layer: LayerState) -> LayerState:
    """Round every weight to the nearest value of 4-bit NormalFloat. See :func:`compcomp.kernels._codebook.quantize`.

    Scales that are rounded themselves are rounded in float64.
    """
    if technique.scales == "exact":
        return quantize(technique, layer)
    after = quantize(technique, layer, technique.step_map, rounded_scales)
    assert after.format.grid is not None
    grid = technique.stored_grid(after.format.grid)
    return replace(after, format=replace(after.format, grid=grid))


def rounded_scales(scales: Tensor) -> Tensor:
    """Return the scales (groups x 1, float64) after their second quantization."""
    mean = scales.mean()
    apart = scales[:, 0] - mean
    blocks = -(-len(apart) // BLOCK)
    padded = apart.new_zeros(blocks * BLOCK)
    padded[: len(apart)] = apart
    rows = padded.reshape(blocks, BLOCK)
    largest = largest_magnitudes(rows)
    places = nearest_places(2 * rows, largest, DYNAMIC8, "half_even")
    rounded = (coded(DYNAMIC8, rows)[places] * largest).reshape(-1)[: len(apart)]
    return (mean + rounded).clamp_(min=0)[:, None]

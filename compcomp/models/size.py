"""Compute the compression rate of a model's layers together (one layer: :mod:`compcomp.language.size`)."""

from __future__ import annotations

from collections.abc import Iterable

from compcomp.language.size import dense_bits, layer_bits
from compcomp.layers.state import Format


def compression_rate(layers: Iterable[tuple[Format, tuple[int, int]]]) -> float:
    """Return 1 - bits / dense bits over all layers, each a format and a shape (out, in). Negative if they grew."""
    layers = list(layers)
    dense = sum(dense_bits(shape) for _, shape in layers)
    return float(1 - sum(layer_bits(form, shape) for form, shape in layers) / dense)

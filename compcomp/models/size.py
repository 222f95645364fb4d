"""How many bits the layers of a model take together. What one takes: :mod:`compcomp.language.size`."""

from __future__ import annotations

from collections.abc import Iterable

from compcomp.language.size import dense_bits, layer_bits
from compcomp.layers.state import Format


def compression_rate(layers: Iterable[tuple[Format, tuple[int, int]]]) -> float:
    """1 - bits / dense bits over all layers, each a format and a shape (out, in). Below 0: it grew."""
    layers = list(layers)
    dense = sum(dense_bits(shape) for _, shape in layers)
    return float(1 - sum(layer_bits(form, shape) for form, shape in layers) / dense)

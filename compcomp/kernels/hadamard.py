"""Hadamard rotation on tensors [ashkboos2024]."""

from __future__ import annotations

from compcomp.encodings.hadamard import Hadamard
from compcomp.kernels._shared import check
from compcomp.layers.basis import Rotation
from compcomp.layers.state import LayerState


def kernel(technique: Hadamard, layer: LayerState) -> LayerState:
    """Rotate the weight's columns, block by block, by sums and differences of halves: log2(block) passes.

    ``layer.weight`` is out x in. The result has the weight's dtype, computed in at least float32. Source:
    [ashkboos2024], [tseng2024].

    Raises:
        InputError: The block does not fit, or a weight is not finite.
    """
    check(technique, layer)
    return layer.rebased(Rotation(technique.side(layer.weight.shape[1])))

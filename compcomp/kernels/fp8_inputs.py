"""Activation quantization to 8-bit floating point on tensors [micikevicius2022]."""

from __future__ import annotations

from compcomp.encodings.fp8_inputs import FP8Inputs
from compcomp.kernels import fp8
from compcomp.kernels._shared import Tensor, check
from compcomp.layers.state import LayerState


def kernel(technique: FP8Inputs, layer: LayerState) -> LayerState:
    """Round the inputs to the nearest values of their tokens' grids.

    ``layer.inputs``: in x tokens. The result has their dtype; steps and values are those of
    :mod:`compcomp.kernels.fp8`, and so is ``rounding="any"``. The Gram matrix of the rounded inputs has the dtype
    it had. Raises InputError without inputs or when an entry is not finite. Source: [micikevicius2022].
    """
    inputs: Tensor = technique.inputs_of(layer)
    check(technique, layer)
    rounded: Tensor = fp8.kernel(technique.of_tokens(), LayerState.dense(inputs.T)).weight.T
    wide = None if layer.gram is None else rounded.to(layer.gram.dtype)
    return layer.with_inputs(rounded, None if wide is None else wide @ wide.T)

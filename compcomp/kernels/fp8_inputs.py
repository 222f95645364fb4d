"""Activation quantization to 8-bit floating point on tensors [micikevicius2022]."""

from __future__ import annotations

from compcomp.encodings.fp8_inputs import FP8Inputs
from compcomp.kernels import fp8
from compcomp.kernels._shared import Tensor, check
from compcomp.layers.state import LayerState


def kernel(technique: FP8Inputs, layer: LayerState) -> LayerState:
    """Round the inputs to the nearest values of their tokens' grids.

    ``layer.inputs`` is in x tokens; the result has its dtype. Steps and values are those of
    :mod:`compcomp.kernels.fp8`, and so is ``rounding="any"``. The Gram matrix of the rounded inputs keeps the dtype it
    had. Source: [micikevicius2022].

    Raises:
        InputError: There are no inputs, or an entry is not finite.
    """
    inputs: Tensor = technique.inputs_of(layer)
    check(technique, layer)
    rounded: Tensor = fp8.kernel(technique.of_tokens(), LayerState.dense(inputs.T)).weight.T
    wide = None if layer.gram is None else rounded.to(layer.gram.dtype)
    return layer.with_inputs(rounded, None if wide is None else wide @ wide.T)

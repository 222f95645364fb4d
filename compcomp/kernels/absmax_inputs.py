"""Activation quantization on tensors [yao2022]."""

from __future__ import annotations

from compcomp.encodings.absmax_inputs import AbsMaxInputs
from compcomp.kernels import absmax
from compcomp.kernels._shared import Tensor, check
from compcomp.layers.state import LayerState


def kernel(technique: AbsMaxInputs, layer: LayerState) -> LayerState:
    """Round the inputs to the nearest values of their groups' grids.

    ``layer.inputs`` is in x tokens; the result has its dtype. Steps and levels are those of
    :mod:`compcomp.kernels.absmax`, and so is ``rounding="any"``. The Gram matrix of the rounded inputs keeps the dtype
    it had. Source: [yao2022].

    Raises:
        InputError: There are no inputs, the group does not divide the features, or an entry is not finite.
    """
    inputs: Tensor = technique.inputs_of(layer)
    check(technique, layer)
    rows = technique.of_tokens(inputs.shape[0])
    rounded: Tensor = absmax.kernel(rows, LayerState.dense(inputs.T)).weight.T
    wide = None if layer.gram is None else rounded.to(layer.gram.dtype)
    return layer.with_inputs(rounded, None if wide is None else wide @ wide.T)

"""AWQ scaling on tensors [lin2024]."""

from __future__ import annotations

import torch

from compcomp.encodings.awq import AWQ
from compcomp.errors import InputError
from compcomp.kernels import absmax
from compcomp.kernels._shared import Tensor, check, chunks, magnitudes, wide
from compcomp.kernels.smoothquant import scales
from compcomp.layers.basis import Scaling
from compcomp.layers.state import NEEDS_INPUTS, LayerState


def kernel(technique: AWQ, layer: LayerState) -> LayerState:
    """Scale the weight's columns by s_j = mean|X_j|^alpha for the alpha of least rounding error.

    ``layer.weight`` is out x in. ``layer.inputs`` is in x tokens; ``layer.magnitudes`` and ``layer.gram`` can replace
    it. Scales are computed in float64 and kept in the weight's dtype, but at least float32. Errors have this dtype too,
    and are summed in float64. The weight keeps its dtype. Source: [lin2024].

    Raises:
        InputError: There are no inputs, the group does not divide a row, or an entry is not finite.
    """
    check(technique, layer)
    weight: Tensor = layer.weight
    mean = magnitudes(layer, technique).mean.to(torch.float64)
    gram = _gram(layer, str(technique))
    dead, best, least = mean == 0, None, None
    for alpha in technique.alphas:
        exponent = (float(alpha) * mean.log2()).masked_fill_(dead, 0)
        scaling = Scaling(scales(exponent, technique.scales, wide(weight)))
        scaled = scaling.weights(weight.to(wide(weight)))
        rounded: Tensor = absmax.kernel(technique.rounded, LayerState.dense(scaled)).weight
        lost = 0.0
        for rows in chunks(len(weight), 32 * weight.shape[1], weight.device):
            error = scaling.weights_back(rounded[rows]).to(torch.float64) - weight[rows].to(torch.float64)
            lost += float(((error @ gram) * error).sum())
        if best is None or least is None or lost < least:
            best, least = scaling, lost
    assert best is not None
    return layer.rebased(best)


def _gram(layer: LayerState, where: str) -> Tensor:
    """Return the Gram matrix (in x in) in float64."""
    gram: Tensor | None = layer.gram
    if gram is None:
        inputs: Tensor | None = layer.inputs
        if inputs is None:
            raise InputError("no inputs", NEEDS_INPUTS, where)
        gram = inputs.to(torch.float64) @ inputs.to(torch.float64).T
    return gram.to(torch.float64)

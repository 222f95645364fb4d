"""JSQ on tensors [guo2024]."""

from __future__ import annotations

import torch

from compcomp.encodings.jsq import JSQ, inputs_of
from compcomp.kernels import absmax
from compcomp.kernels._shared import Tensor, check, chunks, drop
from compcomp.layers.state import LayerState


def kernel(technique: JSQ, layer: LayerState) -> LayerState:
    """Drop the weights of least |w_ij| |x_j| + lam * (range of row i's output without column j), and round the others.

    ``layer.weight`` is out x in, ``layer.inputs`` is in x tokens. Scores are float64. They take time out x in x tokens,
    in chunks that bound the memory. ``ties="any"`` drops the lowest index first, ``rounding="any"`` is "half_up".
    Source: [guo2024].

    Raises:
        InputError: There are no inputs, a pattern or group does not fit, or an entry is not finite.
    """
    inputs: Tensor = inputs_of(layer, str(technique))
    check(technique, layer)
    norms = _norms(inputs, technique.norm)

    def score(part: slice) -> Tensor:
        weight = layer.weight[part].to(torch.float64)
        found = _ranges(weight, inputs).mul_(technique.lam.numerator / technique.lam.denominator)
        return found.add_(weight.abs().mul_(norms))

    return absmax.kernel(technique.rounded, drop(layer, technique.selection, score))


def _norms(inputs: Tensor, norm: str) -> Tensor:
    """Return the norm of each feature over the tokens: ``in`` numbers in float64."""
    order = {"l1": 1.0, "l2": 2.0, "max": float("inf")}[norm]
    norms = torch.empty(len(inputs), dtype=torch.float64, device=inputs.device)
    for part in chunks(len(inputs), 16 * inputs.shape[1], inputs.device):
        norms[part] = torch.linalg.vector_norm(inputs[part].to(torch.float64), ord=order, dim=1)
    return norms


def _ranges(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the range over the tokens of each row's output without each column, out x in, from a float64 weight."""
    rows, columns = weight.shape
    low, high = torch.full_like(weight, torch.inf), torch.full_like(weight, -torch.inf)
    for tokens in chunks(inputs.shape[1], 8 * (rows + columns), weight.device):
        x = inputs[:, tokens].to(torch.float64)
        y = (weight @ x)[:, None]
        for part in chunks(columns, 24 * y.numel(), weight.device):
            rest = torch.addcmul(y, weight[:, part, None], x[None, part], value=-1)
            least, most = rest.aminmax(dim=-1)
            low[:, part], high[:, part] = torch.minimum(low[:, part], least), torch.maximum(high[:, part], most)
    return high.sub_(low)

"""Rounding of steps to the formats in which they are stored, on tensors."""

from __future__ import annotations

import torch

from compcomp.kernels._shared import Tensor
from compcomp.layers.scales import SCALES


def stored(step: Tensor, scales: str) -> Tensor:
    """Return the steps (float64) as they are stored, float64; see :func:`compcomp.layers.scales.stored`.

    They are rounded once. A cast of float64 to float16 rounds twice in torch.
    """
    to = SCALES[scales]
    if to is None:
        return step
    exponent = (torch.frexp(step).exponent - 1).clamp_(min=to.least)
    unit = torch.ldexp(torch.ones_like(step), exponent + (1 - to.digits))
    largest = float(to.largest)
    return (step / unit).round_().mul_(unit).clamp_(-largest, largest)

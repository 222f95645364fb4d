from __future__ import annotations

import numpy as np
import torch

from compcomp.layers.state import Factors, Format, Grid
from compcomp.models.size import compression_rate

SHAPE = (4, 8)


def test_rates() -> None:
    quantized = Format(grid=Grid(step=torch.ones(SHAPE), levels=7, scales=0))
    assert compression_rate([(Format(), SHAPE)]) == 0
    assert compression_rate([(quantized, SHAPE), (Format(), SHAPE)]) == 1 - (128 + 512) / 1024
    assert compression_rate([(Format(factors=Factors(np.zeros((4, 9)), np.zeros((9, 8)))), SHAPE)]) < 0

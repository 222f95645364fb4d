from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomp.kernels.hadamard import kernel
from compcomp.layers.state import Factors, Format, LayerState
from compcomp.techniques import Hadamard
from tests.helpers import DEVICES, HALVES, refused, tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [1, 2, 8, 16, None])
def test_against_signs_by_shared_bits(device: str, block: int | None) -> None:
    """H_ij = (-1)^(number of bits that i and j share)."""
    before: Any = tensors((5, 16), device, torch.float64)
    side = block or 16
    signs = [[(-1.0) ** bin(i & j).count("1") for j in range(side)] for i in range(side)]
    matrix = torch.tensor(signs, dtype=torch.float64, device=device) / side**0.5
    after: Any = kernel(Hadamard(block), before)
    expected = torch.cat([part @ matrix for part in before.weight.split(side, dim=1)], dim=1)
    torch.testing.assert_close(after.weight, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after.effective(), before.weight, rtol=1e-12, atol=1e-13)
    whole = torch.block_diag(*[matrix] * (16 // side))
    torch.testing.assert_close(after.working().gram, whole @ before.gram @ whole, rtol=1e-12, atol=1e-11)


def test_factors_turn_along() -> None:
    before: Any = tensors((4, 8), dtype=torch.float64)
    factors = Factors(torch.ones(4, 2, dtype=torch.float64), torch.arange(16.0, dtype=torch.float64).reshape(2, 8))
    state = LayerState(before.weight, before.weight, before.gram, format=Format(factors=factors))
    after = kernel(Hadamard(), state)
    torch.testing.assert_close(after.effective(), state.effective())
    assert after.format.factors is not None and after.format.factors.left is factors.left


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_weights_are_mixed_in_float32(dtype: Any) -> None:
    before: Any = tensors((3, 256), dtype=dtype)
    after: Any = kernel(Hadamard(), before)
    wide: Any = kernel(Hadamard(), LayerState.dense(before.weight.float()))
    assert after.weight.dtype is dtype and torch.equal(after.weight, wide.weight.to(dtype))


def test_what_it_cannot_use_is_refused() -> None:
    refused(lambda: kernel(Hadamard(), tensors((2, 6))), "6 features", "power of two")
    refused(lambda: kernel(Hadamard(4), tensors((2, 6))), "6 features", "blocks of 4")
    refused(lambda: kernel(Hadamard(2), LayerState.dense(torch.full((2, 2), torch.inf))), "nan or infinite")

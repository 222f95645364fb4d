from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from compcomp.kernels.smoothquant import kernel
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.techniques import SmoothQuant
from tests.helpers import DEVICES, HALVES, refused


def dense(dtype: Any = torch.float64, device: str = "cpu") -> LayerState:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(shape, generator=generator) for shape in ((6, 8), (8, 20)))
    weight[:, 2], inputs[5] = 0, 0
    return LayerState.dense(weight.to(device, dtype), inputs.to(device, dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", ["1/2", "17/20", 0, 1])
@pytest.mark.parametrize("kind", ["exact", "power_of_two"])
def test_against_the_formula_in_a_loop(device: str, alpha: Any, kind: str) -> None:
    before: Any = dense(device=device)
    after: Any = kernel(SmoothQuant(alpha, kind), before)
    for j in range(8):
        x, w, a = float(before.inputs[j].abs().max()), float(before.weight[:, j].abs().max()), float(Fraction(alpha))
        s = x**a / w ** (1 - a) if x and w else 1.0
        if kind == "power_of_two":
            s = min((2.0**k for k in range(-30, 30)), key=lambda p: max(p / s, s / p))
        torch.testing.assert_close(after.weight[:, j], before.weight[:, j] * s, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.effective(), before.weight, rtol=1e-12, atol=0)
    assert after.inputs is before.inputs and after.gram is before.gram


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_powers_of_two_multiply_without_rounding(dtype: Any) -> None:
    before = dense(dtype)
    after = kernel(SmoothQuant(scales="power_of_two"), before)
    assert after.weight.dtype is dtype and torch.equal(after.effective(), before.weight)


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_weights_keep_their_dtype_and_scales_are_wider(dtype: Any) -> None:
    after: Any = kernel(SmoothQuant(), dense(dtype))
    assert after.weight.dtype is dtype and after.format.transform.parts[0].scales.dtype is torch.float32


def test_magnitudes_stand_for_inputs() -> None:
    before: Any = dense()
    sizes = Magnitudes(before.inputs.abs().amax(dim=1), before.inputs.abs().mean(dim=1))
    known = replace(before, inputs=None, magnitudes=sizes)
    assert torch.equal(kernel(SmoothQuant(), known).weight, kernel(SmoothQuant(), before).weight)
    view = kernel(SmoothQuant(), known).working()
    assert view.magnitudes is not None and before.magnitudes is None
    again = kernel(SmoothQuant(), view)
    torch.testing.assert_close(again.weight, view.weight)


def test_what_it_cannot_use_is_refused() -> None:
    before: Any = dense()
    refused(lambda: kernel(SmoothQuant(), replace(before, inputs=None)), "no inputs", "magnitudes")
    refused(lambda: kernel(SmoothQuant(), replace(before, inputs=before.inputs / 0)), "nan or infinite")
    refused(lambda: kernel(SmoothQuant(), replace(before, inputs=before.inputs[:4])), "4 features")
    refused(lambda: kernel(SmoothQuant(), replace(before, weight=before.weight / 0)), "weight", "nan or infinite")

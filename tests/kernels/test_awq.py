from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.awq import kernel
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.techniques import AWQ, AbsMax
from tests.helpers import DEVICES, HALVES, refused


def dense(seed: int = 0, dtype: Any = torch.float64, device: str = "cpu") -> LayerState:
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = (torch.randn(shape, generator=generator) for shape in ((6, 8), (8, 20)))
    inputs *= torch.logspace(-1, 1, 8)[:, None]
    inputs[3] = 0
    return LayerState.dense(weight.to(device, dtype), inputs.to(device, dtype))


def loss(state: Any) -> float:
    return float((((state.effective() - state.reference) @ state.inputs) ** 2).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("bits", "group"), [(3, None), (3, 4), (4, 2)])
def test_no_alpha_of_the_grid_is_better(device: str, seed: int, bits: int, group: int | None) -> None:
    technique, before = AWQ(bits=bits, group=group), dense(seed, device=device)
    lost = [
        loss((AWQ((alpha,), bits=bits, group=group) >> AbsMax(bits, group)).kernel(before))
        for alpha in technique.alphas
    ]
    chosen: Any = kernel(technique, before)
    assert loss((technique >> AbsMax(bits, group)).kernel(before)) == pytest.approx(min(lost), rel=1e-12)
    best = technique.alphas[lost.index(min(lost))]
    mean = before.inputs.abs().mean(dim=1)  # type: ignore[union-attr]
    expected = torch.where(mean == 0, 1.0, mean ** float(best))
    torch.testing.assert_close(chosen.format.transform.parts[0].scales, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(chosen.effective(), before.weight, rtol=1e-12, atol=0)


def test_magnitudes_and_gram_matrix_stand_for_inputs() -> None:
    before: Any = dense()
    sizes = Magnitudes(before.inputs.abs().amax(dim=1), before.inputs.abs().mean(dim=1))
    known = replace(before, inputs=None, magnitudes=sizes)
    assert torch.equal(kernel(AWQ(group=4), known).weight, kernel(AWQ(group=4), before).weight)
    refused(lambda: kernel(AWQ(group=4), replace(known, gram=None)), "no inputs")


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_weights_keep_their_dtype(dtype: Any) -> None:
    after: Any = kernel(AWQ(group=4), dense(dtype=dtype))
    assert after.weight.dtype is dtype and after.format.transform.parts[0].scales.dtype is torch.float32


def test_what_it_cannot_use_is_refused() -> None:
    before: Any = dense()
    refused(lambda: kernel(AWQ(), before), "rows of 8 weights", "groups of 128")
    refused(lambda: kernel(AWQ(group=4), replace(before, inputs=None)), "no inputs", "magnitudes")
    refused(lambda: kernel(AWQ(group=4), replace(before, inputs=before.inputs / 0)), "nan or infinite")

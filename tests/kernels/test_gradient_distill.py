from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.gradient_distill import kernel
from compcomp.kernels.least_squares_distill import row_errors
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, GradientDistill, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.helpers import DEVICES, HALVES, loss, refused, tensors


def run(technique: Any, layer: LayerState) -> LayerState:
    return technique.kernel()(technique, layer)  # type: ignore[no-any-return]


@pytest.mark.parametrize("device", DEVICES)
def test_against_autograd(device: str) -> None:
    """The same steps with the gradient that torch derives from the loss of the outputs."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(12, 40, generator=generator, dtype=torch.float64).to(device)
    layer = LayerState.dense(torch.randn(6, 12, generator=generator, dtype=torch.float64).to(device), inputs)
    start = run(Magnitude("1/2"), layer)
    start = run(TruncatedSVD(rank=1, residual=True), start)
    mask, factors = start.format.mask, start.format.factors
    assert mask is not None and factors is not None
    weight = start.weight.clone().requires_grad_()
    for _ in range(5):
        lost = (((weight + factors.left @ factors.right) @ inputs - layer.reference @ inputs) ** 2).sum()
        (slope,) = torch.autograd.grad(lost, weight)
        with torch.no_grad():
            weight -= slope * mask * 0.75 / (2 * (inputs @ inputs.T).trace())
    after = kernel(GradientDistill(5, rate="3/4"), start)
    torch.testing.assert_close(after.weight, weight.detach(), rtol=1e-12, atol=1e-12)


def test_many_steps_reach_the_least_squares_fit() -> None:
    layer = LayerState.dense(
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double(), torch.eye(8).double()
    )
    start = run(Magnitude("1/2"), replace(layer, gram=layer.gram + 0.3))
    after, best = kernel(GradientDistill(2000), start), run(LeastSquaresDistill(), start)
    torch.testing.assert_close(after.weight, best.weight, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_no_row_gets_worse_in_narrow_types(dtype: torch.dtype) -> None:
    dense = tensors((16, 32), dtype=torch.float32)
    dense = replace(dense, weight=dense.weight.to(dtype), reference=dense.weight.to(dtype))
    start = run(Magnitude("1/2"), dense)
    after = kernel(GradientDistill(20), start)
    assert after.weight.dtype == dtype and loss(after) < loss(start)
    gram = start.gram.double()
    errors = [row_errors(state.reference.double() - state.weight.double(), gram) for state in (start, after)]
    assert bool((errors[1] <= errors[0]).all())
    assert bool((after.weight[~start.format.mask] == 0).all())


def test_the_grid_is_gone_and_the_input_stays() -> None:
    start = run(AbsMax(bits=3), tensors((4, 8)))
    kept = start.weight.clone()
    after = kernel(GradientDistill(3), start)
    assert after.format.grid is None and torch.equal(start.weight, kept)


def test_wrong_use() -> None:
    refused(lambda: kernel(GradientDistill(1), LayerState.dense(torch.ones(2, 2))), "calibration inputs")
    broken = LayerState.dense(torch.ones(2, 2), gram=torch.full((2, 2), torch.nan))
    refused(lambda: kernel(GradientDistill(1), broken), "finite")

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.absmax_inputs import kernel
from compcomp.kernels.least_squares_distill import kernel as distill
from compcomp.layers.state import LayerState
from compcomp.models.measure import layer_losses
from compcomp.techniques import AbsMaxInputs, LeastSquaresDistill
from tests.helpers import DEVICES, HALVES, refused


def with_tokens(tokens: int = 12, device: str = "cpu", dtype: Any = torch.float64) -> LayerState:
    """A random layer of 6 x 8 (out x in) with inputs (in x tokens)."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(shape, generator=generator).to(device, dtype) for shape in ((6, 8), (8, tokens)))
    return LayerState.dense(weight, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize(("per", "group"), [("token", None), ("token", 2), ("tensor", None)])
def test_against_the_nearest_grid_value(device: str, tokens: int, per: str, group: int | None) -> None:
    """Brute force: the distance to every grid value."""
    layer = with_tokens(tokens, device)
    after: Any = kernel(AbsMaxInputs(bits=4, per=per, group=group), layer)
    groups = layer.inputs.T.reshape(-1, {"tensor": 8 * tokens}.get(per, group or 8))  # type: ignore[union-attr]
    step = groups.abs().amax(dim=1, keepdim=True) / 7
    grid = step[..., None] * torch.arange(-7, 8, device=device)
    shown = grid.expand(*groups.shape, 15)
    nearest = shown.gather(2, (shown - groups[..., None]).abs().argmin(dim=2, keepdim=True))[..., 0]
    torch.testing.assert_close(after.inputs, nearest.reshape(tokens, 8).T, rtol=1e-12, atol=0)
    torch.testing.assert_close(after.gram, after.inputs @ after.inputs.T)
    assert after.reference_inputs is layer.inputs
    assert after.weight is layer.weight and after.format is layer.format


@pytest.mark.parametrize("dtype", HALVES)
def test_inputs_keep_their_dtype_and_the_gram_matrix_its_own(dtype: Any) -> None:
    layer = with_tokens(dtype=dtype)
    layer = replace(layer, gram=layer.gram.double())  # type: ignore[union-attr]
    after: Any = kernel(AbsMaxInputs(bits=4), layer)
    assert after.inputs.dtype is dtype and after.gram.dtype is torch.float64
    torch.testing.assert_close(after.gram, after.inputs.double() @ after.inputs.double().T)


@pytest.mark.parametrize("tokens", [3, 40])
def test_distillation_fits_the_dense_outputs(tokens: int) -> None:
    """Against torch's own least squares, also where fewer tokens than features leave the fit open."""
    layer = kernel(AbsMaxInputs(bits=3), with_tokens(tokens))
    after: Any = distill(LeastSquaresDistill(), layer)
    now, dense = layer.inputs, layer.reference_inputs
    outputs = layer.reference @ dense
    best = torch.linalg.lstsq(now.T, outputs.T, driver="gelsd").solution.T  # type: ignore[union-attr]
    torch.testing.assert_close(after.weight @ now, best @ now, rtol=1e-8, atol=1e-8)


def test_what_it_cannot_use_is_refused() -> None:
    layer = with_tokens()
    technique = AbsMaxInputs(bits=4)
    refused(lambda: kernel(technique, replace(layer, inputs=None)), "Gram matrix alone", "calibration inputs")
    refused(lambda: kernel(technique, replace(layer, inputs=layer.inputs / 0)), "inputs", "nan or infinite")
    refused(lambda: kernel(technique, replace(layer, inputs=layer.inputs[:4])), "4 features")  # type: ignore[index]
    refused(lambda: kernel(AbsMaxInputs(bits=4, group=3), layer), "8 features", "groups of 3")
    refused(lambda: layer_losses(kernel(technique, layer)), "output_l2", "dense ones")

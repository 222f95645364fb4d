"""Changes of basis against independent implementations.

Differences from llm-compressor 0.14, each with its reason:

- SmoothQuant there takes the range max - min of a feature instead of max|X_j|, and 2 max|W_:j| instead of max|W_:j|. On
  inputs as large below zero as above both differ from the paper's formula, which is ours, by the factor 2^(2 alpha - 1)
  for all features alike: by none at alpha = 1/2.
- A feature with weights of 0 there takes the activation's range as its scale; here it is left alone (s_j = 1).
- AWQ there divides all scales by sqrt(max s * min s), which changes no rounding to nearest; clamps them from below at
  1e-4; and by default divides by mean weights as well ("duo scaling"), which is not in the paper.
- Its quantizer has the levels -8 ... 7 of compressed-tensors where AbsMax has -7 ... 7. The search is compared with one
  and the same rounding in both.
- Scales there are shared by the layers that read one input; here each layer has its own. Compared is a single layer.
"""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomp.kernels import absmax, hadamard
from compcomp.kernels.awq import kernel as awq
from compcomp.kernels.smoothquant import kernel as smoothquant
from compcomp.layers.basis import Scaling
from compcomp.layers.state import LayerState
from compcomp.techniques import AWQ, AbsMax, Hadamard, SmoothQuant

SHAPES = [(6, 8), (16, 32), (1, 4)]


def layer(shape: tuple[int, int], seed: int, dtype: Any = torch.float64) -> LayerState:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(shape[1], 3 * shape[1], generator=generator, dtype=torch.float64)
    inputs *= torch.rand(shape[1], 1, generator=generator, dtype=torch.float64) * 20
    return LayerState.dense(weight.to(dtype), inputs.to(dtype))


def scales_of(state: LayerState) -> Tensor:
    assert state.format.transform is not None
    (part,) = state.format.transform.parts
    assert isinstance(part, Scaling)
    found: Tensor = part.scales
    return found


@pytest.mark.parametrize("block", [1, 2, 4, 8, 32, None])
@pytest.mark.parametrize("seed", range(3))
def test_rotation_by_a_hadamard_matrix_built_from_kronecker_products(block: int | None, seed: int) -> None:
    dense = layer((6, 64), seed)
    side, two = block or 64, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < side:
        matrix = torch.kron(matrix, two)
    whole = torch.block_diag(*[matrix / side**0.5] * (64 // side))
    torch.testing.assert_close(whole @ whole.T, torch.eye(64, dtype=torch.float64))
    after: Any = hadamard.kernel(Hadamard(block), dense)
    torch.testing.assert_close(after.weight, dense.weight @ whole.T, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after.working().inputs, whole @ dense.inputs, rtol=1e-12, atol=1e-12)


def test_the_order_of_rows_is_that_of_compressed_tensors() -> None:
    deterministic = pytest.importorskip("compressed_tensors.transform.utils.hadamard").deterministic_hadamard_matrix
    for side in (2, 4, 16, 64):
        identity = LayerState.dense(torch.eye(side, dtype=torch.float64))
        after: Any = hadamard.kernel(Hadamard(), identity)
        theirs = deterministic(side, dtype=torch.float64, device=torch.device("cpu"))
        torch.testing.assert_close(after.weight * side**0.5, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", ["1/2", "1/4", "4/5", 0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_smoothquant_scales(shape: tuple[int, int], alpha: Any, seed: int) -> None:
    base = pytest.importorskip("llmcompressor.modifiers.transform.smoothquant.base")
    start = layer(shape, seed)
    inputs: Any = torch.cat([start.inputs, -start.inputs], dim=1)  # type: ignore[operator,list-item]
    state = LayerState.dense(start.weight, inputs)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64)
    linear.weight.data.copy_(state.weight)
    modifier = SimpleNamespace(algorithm="smoothquant", smoothing_strength=float(Fraction(alpha)))
    extent = inputs.amax(dim=1) - inputs.amin(dim=1)
    with torch.no_grad():
        theirs = base.SmoothQuantModifier._calculate_smoothing_scales(modifier, [linear], extent)
    ours = scales_of(smoothquant(SmoothQuant(alpha), state))
    torch.testing.assert_close(theirs / ours, torch.full_like(ours, 2.0 ** (2 * float(Fraction(alpha)) - 1)))


@pytest.mark.parametrize("shape", [(6, 8), (16, 32)])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_awq_search(shape: tuple[int, int], bits: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own search over the same grid, with our rounding to nearest in the place of its quantizer."""
    base = pytest.importorskip("llmcompressor.modifiers.transform.awq.base")
    state, technique = layer(shape, seed), AWQ(bits=bits, group=4)

    def rounded(module: Any, weight: Tensor, *_: Any) -> Any:
        return absmax.kernel(AbsMax(bits, 4), LayerState.dense(weight.detach())).weight

    observer = SimpleNamespace(delete_statistics=lambda **_: None)
    monkeypatch.setattr(base, "forward_quantize", rounded)
    monkeypatch.setattr(base, "Observer", SimpleNamespace(load_from_registry=lambda *_, **__: observer))
    for name in ("observe", "update_qparams", "fuse_weight_observers"):
        monkeypatch.setattr(base, name, lambda *_, **__: None)
    monkeypatch.setattr(base, "get_execution_device", lambda _: torch.device("cpu"))
    linear: Any = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64)
    linear.weight.data.copy_(state.weight)
    linear.weight.requires_grad_(False)
    linear.quantization_scheme = SimpleNamespace(weights=None)
    linear.weight_observer = None
    tokens: Any = state.inputs.T  # type: ignore[union-attr]
    losses: list[float] = []
    modifier = SimpleNamespace(
        _smooth_activation_stats={"x": (tokens.abs().sum(dim=0), torch.tensor(len(tokens)))},
        duo_scaling=False,
        n_grid=5,
        _error_metrics=[],
        _run_samples=lambda module: [module(tokens)],
    )
    modifier._get_grid_search_params = lambda: base.AWQModifier._get_grid_search_params(modifier)

    def loss(*outputs: Any) -> float:
        losses.append(float(base.AWQModifier._compute_loss(modifier, *outputs)))
        return losses[-1]

    modifier._compute_loss = loss
    mapping = SimpleNamespace(parent=linear, parent_name="p", smooth_name="x", balance_layers=[linear])
    outputs, weights = [linear(tokens)], {linear: linear.weight.detach().clone()}
    theirs = base.AWQModifier._compute_best_scale(modifier, mapping, outputs, weights)
    assert len(losses) == len(technique.alphas)
    ours = scales_of(awq(technique, state))
    torch.testing.assert_close(theirs, ours / (ours.max() * ours.min()).sqrt(), rtol=1e-6, atol=0)

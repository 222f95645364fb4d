"""Input features 1e4 to 1e8 times the others: least squares and best rank stay at their optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compcomp.kernels._second_order import Spectrum
from compcomp.layers.state import Factors, LayerState
from compcomp.techniques import DistillFactors, LeastSquaresDistill, Magnitude, TruncatedSVD

ROWS, COLUMNS = 8, 16
SIZES = (1e4, 1e5, 1e6, 1e7, 1e8)


def layer(size: float, tokens: int, large: tuple[int, ...] = (5,), dtype: torch.dtype = torch.float64) -> LayerState:
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=source, dtype=torch.float64)
    inputs = torch.randn(COLUMNS, tokens, generator=source, dtype=torch.float64)
    for place in large:
        weight[:, place] *= 10  # so that magnitude keeps it
        inputs[place] *= size
    weight = weight.to(dtype)
    return replace(LayerState.dense(weight, gram=inputs @ inputs.T), inputs=inputs)


def loss(state: LayerState) -> float:
    weight = state.weight.double()
    if state.format.factors is not None:
        weight = weight + state.format.factors.left.double() @ state.format.factors.right.double()
    return float((((weight - state.reference.double()) @ state.inputs) ** 2).sum())


def run(technique: object, state: LayerState) -> LayerState:
    after = technique.kernel()(technique, state)  # type: ignore[attr-defined]
    return replace(after, inputs=state.inputs)


def least(state: LayerState, mask: Tensor) -> float:
    """Row by row with numpy's lstsq on inputs of unit norm: no Gram matrix."""
    inputs, reference, total = state.inputs.numpy(), state.reference.double().numpy(), 0.0
    for row, free in zip(reference, mask.numpy(), strict=True):
        chosen = inputs[free] / np.linalg.norm(inputs[free], axis=1, keepdims=True)
        target = row[~free] @ inputs[~free]  # what is kept is fitted anyhow
        found = np.linalg.lstsq(chosen.T, target, rcond=1e-13)[0]
        total += float(((found @ chosen - target) ** 2).sum())
    return total


@pytest.mark.parametrize("large", [(5,), (2, 11), (0, 7, 15)])
@pytest.mark.parametrize("tokens", [6, 12, 64])
@pytest.mark.parametrize("size", SIZES)
def test_least_squares_is_the_minimum(size: float, tokens: int, large: tuple[int, ...]) -> None:
    dense = layer(size, tokens, large)
    pruned = run(Magnitude(sparsity="1/2", per="row"), dense)
    assert loss(pruned) > 1
    found, best = loss(run(LeastSquaresDistill(), pruned)), least(dense, pruned.format.mask)
    assert found <= best * (1 + 1e-6) + 1e-10 * loss(pruned)


@pytest.mark.parametrize("tokens", [6, 64])
@pytest.mark.parametrize("size", SIZES)
def test_of_single_precision_the_rounding_of_a_large_features_weight_is_made_up_for(size: float, tokens: int) -> None:
    dense = layer(size, tokens, dtype=torch.float32)
    pruned = run(Magnitude(sparsity="1/2", per="row"), dense)
    found, best = loss(run(LeastSquaresDistill(), pruned)), least(dense, pruned.format.mask)
    if tokens == 6:  # seven other weights are free to meet six tokens
        assert found <= 1e-6 * loss(pruned)
        return
    # at worst the large feature's weight stays where it was and the others are fitted
    mask = pruned.format.mask.clone()
    mask[:, 5] = False
    rest = replace(dense, inputs=dense.inputs * (torch.arange(COLUMNS) != 5)[:, None])
    assert best <= found <= least(rest, mask) * (1 + 1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("tokens", [6, 64])
@pytest.mark.parametrize("size", SIZES)
def test_the_best_rank_by_outputs_is_the_best(size: float, tokens: int, rank: int) -> None:
    dense = layer(size, tokens)
    found = loss(run(TruncatedSVD(rank=rank, metric="output"), dense))
    values = np.linalg.svd((dense.weight @ dense.inputs).numpy(), compute_uv=False)
    best = float((values[rank:] ** 2).sum())
    assert found <= best * (1 + 1e-6) + 1e-12 * float(values[0])


@pytest.mark.parametrize("size", SIZES)
def test_distilled_factors_come_to_the_best_rank_too(size: float) -> None:
    dense = layer(size, 64)
    pruned = run(Magnitude(sparsity="1/2", per="row"), dense)
    source = torch.Generator().manual_seed(3)
    factors = Factors(*(torch.randn(s, generator=source, dtype=torch.float64) for s in ((ROWS, 3), (3, COLUMNS))))
    start = replace(pruned, format=replace(pruned.format, factors=factors))
    values = np.linalg.svd(((dense.weight - pruned.weight) @ dense.inputs).numpy(), compute_uv=False)
    found = loss(run(DistillFactors(sweeps=16), start))
    assert found <= float((values[3:] ** 2).sum()) * 1.05


@pytest.mark.parametrize("tokens", [3, 6, 20])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
def test_where_inputs_leave_it_open_the_least_change_is_made(tokens: int, scale: float) -> None:
    inputs = layer(scale, tokens, (5,)).inputs
    gram = inputs @ inputs.T
    right = gram @ torch.randn(COLUMNS, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = Spectrum(gram, 1e-12).solve(right)
    norms = inputs.norm(dim=1, keepdim=True)
    # the least x in norm with x^T inputs given: inputs (inputs^T inputs)^-1 target, from inputs alone
    q, _ = np.linalg.qr(inputs.numpy()) if tokens <= COLUMNS else (np.eye(COLUMNS), None)
    inside = torch.from_numpy(q @ q.T) @ found
    torch.testing.assert_close(inside, found, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        (gram @ found - right) / norms, torch.zeros_like(right), rtol=0, atol=1e-6 * float(scale)
    )

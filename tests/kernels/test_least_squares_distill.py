from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.encodings.least_squares_distill import SWEEPS
from compcomp.kernels import _shared, least_squares_distill
from compcomp.kernels.least_squares_distill import kernel
from compcomp.layers.state import Factors, Format, LayerState
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, Wanda
from tests.helpers import DEVICES, HALVES, loss, refused, tensors

DISTILL = LeastSquaresDistill()


def run(technique: Any, layer: LayerState) -> LayerState:
    return technique.kernel()(technique, layer)  # type: ignore[no-any-return]


def by_lstsq(start: LayerState, inputs: torch.Tensor) -> torch.Tensor:
    """Row by row: the change of least norm that minimises |(error - change) X| over the free weights."""
    weight = start.weight.clone()
    mask = torch.ones_like(weight, dtype=torch.bool) if start.format.mask is None else start.format.mask
    for i, free in enumerate(mask):
        target = (start.reference[i] - start.weight[i]) @ inputs
        fitted = torch.linalg.lstsq(inputs[free].T, target[:, None], rcond=1e-9, driver="gelsd")
        weight[i, free] += fitted.solution[:, 0]
    return weight


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [60, 20, 7, 1], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize("pruned", ["as many in each row", "anywhere", "columns", "nowhere"])
def test_against_lstsq(device: str, tokens: int, pruned: str) -> None:
    """24 inputs; with fewer tokens the Gram matrix is singular and the change must be the least one."""
    generator = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(24, tokens, generator=generator, dtype=torch.float64)
    inputs[3], inputs[5] = 0, inputs[6]  # a dead feature, and two that agree
    layer = LayerState.dense(torch.randn(10, 24, generator=generator, dtype=torch.float64), inputs)
    if pruned == "columns":
        mask = (torch.arange(24) % 3 > 0).expand(10, 24)
        start = replace(layer, weight=layer.weight * mask, format=Format(mask=mask))
    elif pruned == "nowhere":
        start = replace(layer, weight=layer.weight.round())
    else:
        start = run(Wanda("1/2") if pruned == "as many in each row" else Magnitude("1/2"), layer)
    expected = by_lstsq(start, inputs)
    mask = start.format.mask
    moved = replace(
        start,
        weight=start.weight.to(device),
        reference=start.reference.to(device),
        gram=start.gram.to(device),
        inputs=None,
        format=Format(mask=None if mask is None else mask.to(device)),
    )
    after = kernel(DISTILL, moved)
    torch.testing.assert_close(after.weight.cpu(), expected, rtol=1e-6, atol=1e-7)
    assert loss(after) <= loss(start) * (1 + 1e-12)


@pytest.mark.parametrize("near", [1e-13, 1e-15])
def test_a_nearly_singular_gram_matrix_counts_as_singular(near: float) -> None:
    gram = torch.tensor([[1.0, 1.0], [1.0, 1.0 + near]], dtype=torch.float64)
    start = replace(
        LayerState.dense(torch.tensor([[1.0, 2.0]], dtype=torch.float64), gram=gram),
        weight=torch.tensor([[0.0, 2.0]], dtype=torch.float64),
    )
    torch.testing.assert_close(kernel(DISTILL, start).weight, torch.tensor([[0.5, 2.5]], dtype=torch.float64))


def test_features_of_very_different_size_are_all_fitted() -> None:
    """A diagonal Gram matrix is well conditioned whatever its entries."""
    gram = torch.diag(torch.tensor([1e-14, 1.0, 1e14], dtype=torch.float64))
    dense = LayerState.dense(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), gram=gram)
    after = kernel(DISTILL, replace(dense, weight=dense.weight * 0))
    torch.testing.assert_close(after.weight, dense.weight, rtol=1e-12, atol=0)


def plain_descent(start: LayerState) -> tuple[np.ndarray[Any, Any], int]:
    """The same descent, one row and one weight at a time, and how many moves it made."""
    grid, gram = start.format.grid, start.gram.numpy()
    assert grid is not None
    weight, step = start.weight.numpy().copy(), grid.step.numpy()
    mask = np.ones(weight.shape, bool) if start.format.mask is None else start.format.mask.numpy()
    reference, moves = start.reference.numpy(), 0
    for i in range(len(weight)):
        for _ in range(SWEEPS):
            for j in range(weight.shape[1]):
                best = (weight[i] - reference[i]) @ gram @ (weight[i] - reference[i])
                kept, value = weight[i, j], None
                slope = (weight[i] - reference[i]) @ gram[j]
                if mask[i, j] and gram[j, j] > 0 and step[i, j] > 0:
                    level = np.rint((kept - slope / gram[j, j]) / step[i, j])
                    value = step[i, j] * np.clip(level, -grid.levels, grid.levels)
                if value is not None and value != kept:
                    weight[i, j] = value
                    error = weight[i] - reference[i]
                    if error @ gram @ error < best * (1 - 1e-13):
                        moves += 1
                    else:
                        weight[i, j] = kept
    return weight, moves


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("prune", [True, False])
def test_coordinate_descent(device: str, block: int, prune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks only delay the update of other columns: any block size gives the plain descent."""
    monkeypatch.setattr(least_squares_distill, "BLOCK", block)
    layer = tensors((9, 24), dtype=torch.float64)
    start = run(AbsMax(bits=3, group=8), run(Magnitude("1/2", pattern="2:4"), layer) if prune else layer)
    expected, moves = plain_descent(start)
    assert moves > 20
    grid, mask = start.format.grid, start.format.mask
    moved = replace(
        start,
        weight=start.weight.to(device),
        reference=start.reference.to(device),
        gram=start.gram.to(device),
        format=Format(mask=None if mask is None else mask.to(device), grid=replace(grid, step=grid.step.to(device))),
    )
    after = kernel(DISTILL, moved)
    assert after.weight.cpu().tolist() == expected.tolist()
    assert loss(after) < loss(start)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("first", ["", "prune", "quantize", "both"])
def test_low_precision_never_loses(device: str, dtype: Any, first: str) -> None:
    start = tensors((16, 32), device, dtype)
    if first in ("prune", "both"):
        start = run(Magnitude("1/2"), start)
    if first in ("quantize", "both"):
        start = run(AbsMax(bits=4, group=16), start)
    after = kernel(DISTILL, start)
    assert after.weight.dtype is dtype
    assert loss(after) <= loss(start)
    assert first == "" or loss(after) < loss(start)
    if start.format.mask is not None:
        assert not after.weight[~start.format.mask].any()
    if start.format.grid is not None:
        step = start.format.grid.step
        levels = (after.weight.float() / step).nan_to_num().round()
        assert levels.abs().max() <= 7
        assert torch.equal((levels * step).to(dtype), after.weight)
    again = kernel(DISTILL, after)
    assert loss(again) <= loss(after)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_it_is_a_no_op_at_the_reference_bit_for_bit(device: str, dtype: Any) -> None:
    dense = tensors((8, 16), device, dtype)
    dense.weight[0, 0] = -0.0
    assert torch.equal(kernel(DISTILL, dense).weight.view(torch.uint8), dense.weight.view(torch.uint8))
    quantized = run(AbsMax(bits=4, group=8), dense)
    quantized = replace(quantized, reference=quantized.weight)
    again = kernel(DISTILL, quantized)
    assert torch.equal(again.weight.view(torch.uint8), quantized.weight.view(torch.uint8))


def test_factors_count() -> None:
    dense = tensors((6, 8), dtype=torch.float64)
    left, right = torch.ones(6, 1, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    after = kernel(DISTILL, replace(dense, format=Format(factors=Factors(left, right))))
    torch.testing.assert_close(after.weight, dense.weight - 1)


@pytest.mark.parametrize("first", [Magnitude("1/2"), AbsMax(bits=4)])
def test_chunks_do_not_show(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run(first, tensors((20, 16), dtype=torch.float64))
    whole = kernel(DISTILL, start)
    monkeypatch.setattr(_shared, "MEMORY", 1)
    torch.testing.assert_close(kernel(DISTILL, start).weight, whole.weight, rtol=1e-9, atol=1e-9)


def test_rows_without_a_free_weight_stay() -> None:
    dense = tensors((3, 4), dtype=torch.float64)
    mask = torch.tensor([[False] * 4, [True] * 4, [True, False, False, True]])
    start = replace(dense, weight=dense.weight * mask, format=Format(mask=mask))
    after = kernel(DISTILL, start)
    assert not after.weight[0].any()
    torch.testing.assert_close(after.weight[1], dense.weight[1])
    dead = replace(start, gram=start.gram * 0)
    assert torch.equal(kernel(DISTILL, dead).weight, start.weight)


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 6))
    assert layer.gram is not None
    refused(lambda: kernel(DISTILL, replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(DISTILL, replace(layer, gram=layer.gram / 0)), "Gram matrix with nan")
    refused(lambda: kernel(DISTILL, replace(layer, weight=layer.weight / 0)), "weight with nan")
    factors = Factors(torch.ones(4, 1) / 0, torch.ones(1, 6))
    refused(lambda: kernel(DISTILL, replace(layer, format=Format(factors=factors))), "left factor with nan")

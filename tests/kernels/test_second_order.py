"""Kernels of second-order techniques: sizes, dtypes and devices that the exact encodings cannot reach."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _second_order, _shared
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, OBQ, OBS, AbsMax, Magnitude, SparseGPT
from compcomp.testing import check_encoding
from tests.helpers import DEVICES, HALVES, loss, refused, tensors

GIVEN: dict[str, Any] = {"order": "left_to_right", "static_groups": False}
COLUMN_BY_COLUMN = [
    *(GPTQ(bits=4, **GIVEN), GPTQ(bits=3, group=16, **GIVEN), GPTQ(bits=3, group=48, **GIVEN), GPTQ(bits=4, group=8)),
    *(GPTQ(bits=4, group=16, static_groups=False), GPTQ(bits=4, mask="kept"), GPTQ(bits=2, rounding="half_away")),
    *(GPTQ(bits=4, grid="full_range"), GPTQ(bits=3, group=16, static_groups=False, grid="clipped")),
    GPTQ(bits=4, group=16, static_groups=False, grid="full_range", scales="bfloat16"),
    *(SparseGPT("1/2"), SparseGPT("1/2", block=16), SparseGPT("1/2", block=48, bits=4), SparseGPT("1/2", block=37)),
    *(SparseGPT("1/2", pattern="2:4"), SparseGPT("1/4", pattern="3:4", bits=3, mask="kept")),
]
ALL = [*COLUMN_BY_COLUMN, OBS("1/2"), OBS("1/2", pattern="2:4"), OBQ(bits=4), OBQ(bits=2)]


def layer(shape: tuple[int, int] = (24, 96), device: str = "cpu", dtype: Any = torch.float64) -> LayerState:
    """A random layer a few of whose weights were dropped before."""
    return Magnitude("1/10").kernel()(Magnitude("1/10"), tensors(shape, device, dtype))


def run(technique: Technique, state: LayerState) -> LayerState:
    return technique.kernel()(technique, state)


def same(one: LayerState, other: LayerState) -> None:
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-9)
    for name in ("mask", "pattern"):
        left, right = (getattr(state.format, name) for state in (one, other))
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    if one.format.grid is not None:
        assert other.format.grid is not None
        torch.testing.assert_close(one.format.grid.step, other.format.grid.step, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("technique", COLUMN_BY_COLUMN, ids=str)
def test_how_many_columns_are_updated_together_does_not_show(
    technique: Technique, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(technique, layer())
    monkeypatch.setattr(_second_order, "BLOCK", block)
    same(run(technique, layer()), whole)


@pytest.mark.parametrize("technique", ALL[-4:], ids=str)
def test_chunks_do_not_show(technique: Technique, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(technique, layer())
    monkeypatch.setattr(_shared, "MEMORY", _second_order.Greedy.memory(96, 96) * 5)
    same(run(technique, layer()), whole)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("technique", ALL, ids=str)
def test_dtypes(technique: Technique, dtype: Any, device: str) -> None:
    start = layer((16, 48), device, dtype)
    start = replace(start, gram=tensors((16, 48), device, torch.float32).gram)
    after = run(technique, start)
    assert after.weight.dtype == dtype
    assert after.weight.device == start.weight.device
    assert after.weight.is_contiguous()
    if after.format.mask is not None:
        assert not after.weight[~after.format.mask].any()
    if (grid := after.format.grid) is not None:
        assert grid.step.dtype == _shared.wide(start.weight)
        levels = (after.weight.double() / grid.step.double()).nan_to_num()
        assert levels.max() <= grid.levels * (1 + 1e-2)
        assert levels.min() >= grid.lowest * (1 + 1e-2)
        assert torch.equal((levels.round().to(grid.step.dtype) * grid.step).to(dtype), after.weight)


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_a_transposed_weight(technique: Technique) -> None:
    start = layer((16, 48))
    turned = replace(start, weight=start.weight.T.contiguous().T)
    same(run(technique, turned), run(technique, start))


def test_quantizers_lose_less_than_rounding_and_pruners_less_than_no_update() -> None:
    start = tensors((32, 96), dtype=torch.float64)
    rounded = loss(run(AbsMax(bits=4, group=96), start))
    assert loss(run(GPTQ(bits=4), start)) < 0.9 * rounded
    assert loss(run(OBQ(bits=4), start)) < 0.9 * rounded
    assert loss(run(GPTQ(bits=4, group=16), start)) < loss(run(GPTQ(bits=4), start))
    for technique in (SparseGPT("1/2"), SparseGPT("1/2", pattern="2:4"), OBS("1/2"), OBS("1/2", pattern="2:4")):
        after = run(technique, start)
        alone = replace(start, weight=start.weight * after.format.mask)
        assert loss(after) < 0.7 * loss(alone)
    assert loss(run(OBS("1/2"), start)) < loss(run(SparseGPT("1/2"), start))


@pytest.mark.parametrize("technique", [OBS("1/4"), OBS("3/4"), OBQ(bits=3)], ids=str)
def test_zeros_stay_zero(technique: Technique) -> None:
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), tensors((24, 96), dtype=torch.float32))
    after = run(technique, start)
    assert not after.weight[~start.format.mask].any()  # type: ignore[operator]


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_few_tokens_and_dead_inputs(technique: Technique) -> None:
    """A Gram matrix of low rank with zero rows: the damping makes up for it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, 5, generator=generator, dtype=torch.float64)
    inputs[::7] = 0
    start = LayerState.dense(torch.randn(16, 48, generator=generator, dtype=torch.float64), inputs)
    after = run(technique, start)
    assert torch.isfinite(after.weight).all()
    assert not after.weight[:, ::7].any()


@pytest.mark.parametrize("technique", ALL, ids=str)
def test_what_it_cannot_use_is_refused(technique: Technique) -> None:
    start = tensors((8, 48), dtype=torch.float64)
    refused(lambda: run(technique, replace(start, gram=None)), "no inputs")
    refused(lambda: run(technique, replace(start, weight=start.weight / 0)), "nan or infinite")
    assert start.gram is not None
    refused(lambda: run(technique, replace(start, gram=-start.gram)), "positive definite")


def test_a_decomposition_is_used_again_for_the_same_gram_matrix_only() -> None:
    start, technique = layer(), GPTQ(bits=4)
    assert start.gram is not None
    first, gram = run(technique, start), start.gram.clone()
    again = _second_order.decomposed(technique, start, technique.damping, "left_to_right")
    assert again is _second_order.decomposed(technique, start, technique.damping, "left_to_right")
    changed = start.gram.numpy()
    changed[0, 0] *= 2  # no version of the tensor counts this
    other = _second_order.decomposed(technique, start, technique.damping, "left_to_right")
    assert other is not again
    changed[0, 0] /= 2
    same(run(technique, replace(start, gram=gram)), first)


def test_decompositions_go_with_their_gram_matrices() -> None:
    for seed in range(4):
        run(GPTQ(bits=4), tensors((8, 16), seed=seed))
    gc.collect()
    assert not _second_order._LATEST


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(("count", "size"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (8, 16)])
def test_the_smallest_of_few_along_either_dimension(count: int, size: int, ties: str) -> None:
    """Against a stable sort, with ties everywhere."""
    scores = torch.randint(4, (300, size), generator=torch.Generator().manual_seed(size)).double()
    taken = scores.argsort(dim=1, stable=True).argsort(dim=1) < count
    if ties == "all":
        taken = scores <= scores.sort(dim=1).values[:, count - 1 : count]
    assert torch.equal(_shared.smallest(scores, count, ties), taken)
    assert torch.equal(_shared.smallest(scores.T.contiguous(), count, ties, dim=0).T, taken)


@pytest.mark.parametrize(
    "technique",
    [
        *(GPTQ(bits=3, group=group, grid=grid) for group in (None, 2) for grid in ("full_range", "narrow_step")),
        *(OBQ(bits=3, grid=grid) for grid in ("full_range", "narrow_step")),
        SparseGPT("1/2", block=2, bits=3, grid="full_range"),
        SparseGPT("1/2", pattern="2:4", bits=3, grid="narrow_step", mask="kept"),
    ],
    ids=str,
)
def test_other_grids_are_those_of_the_encoding(technique: Technique) -> None:
    """On the full-range grid the largest weight of each group is at a midpoint, so that few layers are clear."""
    assert check_encoding(technique, max_examples=30).clear >= 6


@pytest.mark.parametrize("kind", ["GPTQ", "GPTQ in groups", "OBQ", "SparseGPT"])
@pytest.mark.parametrize(("grid", "reach"), [("full_range", 7.5), ("narrow_step", 7), ("clipped", 8)])
def test_weights_beyond_the_range_go_to_the_last_value(grid: str, reach: float, kind: str) -> None:
    start, group = tensors((16, 48)), 16 if kind == "GPTQ in groups" else None
    technique: Technique = {
        "OBQ": OBQ(bits=4, grid=grid),
        "SparseGPT": SparseGPT("1/10", bits=4, grid=grid),
    }.get(kind, GPTQ(bits=4, group=group, grid=grid))
    after = technique.kernel()(technique, start)
    kept = after.format.grid
    assert kept is not None
    largest = start.weight.reshape(-1, group or 48).abs().amax(dim=1, keepdim=True)
    steps = (largest / reach).expand(-1, group or 48).reshape(16, 48)
    torch.testing.assert_close(kept.step, steps, rtol=1e-6, atol=0)
    levels = after.weight / kept.step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    least, most = levels.round().aminmax()
    assert (kept.lowest, kept.levels) == (-8, 7) and most == 7
    # No update of OBQ takes a weight past its nearest value, and one of SparseGPT rarely past the largest weight.
    assert least in {("narrow_step", "OBQ"): (-7,), ("narrow_step", "SparseGPT"): (-8, -7)}.get((grid, kind), (-8,))

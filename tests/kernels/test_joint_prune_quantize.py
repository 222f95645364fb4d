from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.joint_prune_quantize import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, JointPruneQuantize, Magnitude
from tests.helpers import DEVICES, HALVES, refused, tensors

CASES = [
    {"sparsity": "1/2", "bits": 3},
    {"sparsity": "1/2", "bits": 3, "per": "row", "group": 5},
    {"sparsity": "3/5", "bits": 3, "pattern": "2:5", "group": 10, "ratios": "1, 7/8, 3/4"},
    {"sparsity": "3/5", "bits": 4, "pattern": "2:5", "ratios": "7/8, 1", "ties": "any"},
    {"sparsity": "1/3", "bits": 2, "per": "row", "ratios": "1, 1/2"},
]


def error(weight: Any, left: Any) -> float:
    return float((weight.double() - left.double()).square().sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_beats_both_orders(case: dict[str, Any], device: str) -> None:
    layer = tensors((12, 20), device, torch.float64)
    after = kernel(JointPruneQuantize(**case), layer)
    rest = {k: v for k, v in case.items() if k in ("sparsity", "pattern", "per")}
    prune, round_ = Magnitude(**rest), AbsMax(bits=case["bits"], group=case.get("group"))
    for sequence in (prune >> round_, round_ >> prune):
        other = sequence.kernel(layer)
        assert error(layer.weight, after.weight) <= error(layer.weight, other.weight) * (1 + 1e-12)
    level = after.weight / after.format.grid.step
    torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-9)
    assert int((after.weight == 0).sum()) >= int((~after.format.mask).sum()) == int((~other.format.mask).sum())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_in_small_parts(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tensors((12, 20))
    whole = kernel(JointPruneQuantize(**case), layer)
    monkeypatch.setattr(_shared, "MEMORY", 64 * 20 * 2)
    parts = kernel(JointPruneQuantize(**case), layer)
    assert torch.equal(whole.weight, parts.weight) and torch.equal(whole.format.mask, parts.format.mask)
    assert torch.equal(whole.format.grid.step, parts.format.grid.step)


def test_every_mask_of_a_small_row() -> None:
    """All masks and ratios of rows of 6, in plain loops."""
    weight = tensors((40, 6), dtype=torch.float64).weight
    after = kernel(JointPruneQuantize("1/2", 3, pattern="3:6", group=6, ratios="1, 0.8, 0.6"), LayerState.dense(weight))
    for row, left in zip(weight, after.weight, strict=True):
        best = float("inf")
        for ratio, mask in product((1, 0.8, 0.6), product((0, 1), repeat=6)):
            if sum(mask) == 3:
                step = ratio * float(row.abs().max()) / 3
                values = (row / step).round().clamp(-3, 3) * step * torch.tensor(mask)
                best = min(best, error(row, values))
        assert error(row, left) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    after = kernel(JointPruneQuantize("1/2", 4, group=10), tensors((12, 20), device, dtype))
    assert after.weight.dtype is dtype and after.format.grid.step.dtype is torch.float32
    assert bool(torch.isfinite(after.weight).all())


def test_zeros_and_what_is_wrong() -> None:
    zeros = LayerState.dense(torch.zeros(2, 4))
    after = kernel(JointPruneQuantize("1/2", 4, pattern="2:4", ratios="1, 1/2"), zeros)
    assert not after.weight.any() and after.format.mask.sum() == 4 and not after.format.grid.step.any()
    layer = tensors((4, 6))
    refused(lambda: kernel(JointPruneQuantize("1/2", 4, group=4), layer), "groups of 4")
    refused(lambda: kernel(JointPruneQuantize("1/2", 4), replace(layer, weight=layer.weight / 0)), "weight with nan")

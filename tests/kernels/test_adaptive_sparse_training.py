from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels.adaptive_sparse_training import kernel
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, AdaptiveSparseTraining, BlockMeans, GradientDistill, Magnitude, TruncatedSVD
from tests.helpers import DEVICES, correlated, loss, refused, tensors


def technique(sparsity: Any = "1/2", **options: Any) -> AdaptiveSparseTraining:
    return AdaptiveSparseTraining(sparsity, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"per": "row"}, {}])
def test_a_mask_that_adapts_loses_less_than_the_first_one_trained(device: str, options: dict[str, Any]) -> None:
    """As many steps on the mask by magnitude: on correlated inputs its loss is a good deal more."""
    for seed in range(5, 9):
        layer = correlated(device, seed)
        sequential = Magnitude("1/2", **options) >> GradientDistill(100)
        assert loss(kernel(technique(**options), layer)) < 0.85 * loss(sequential.kernel(layer))


@pytest.mark.parametrize("device", DEVICES)
def test_a_mask_that_is_never_found_again_is_magnitude_and_gradient_steps(device: str) -> None:
    layer = correlated(device, 0)
    found = kernel(technique(pattern="2:4", iterations=20, every=20), layer)
    expected = (Magnitude("1/2", pattern="2:4") >> GradientDistill(20)).kernel(layer)
    assert torch.equal(found.format.mask, expected.format.mask)
    torch.testing.assert_close(found.weight, expected.weight)


@pytest.mark.parametrize("options", [{}, {"per": "row"}, {"pattern": "2:4"}])
def test_the_count_is_exact(options: dict[str, Any]) -> None:
    after = kernel(technique(**options), correlated("cpu", 1))
    size = {"2:4": 4}.get(options.get("pattern", ""), 32 if "per" in options else 512)
    assert (after.format.mask.reshape(-1, size).sum(dim=1) == size // 2).all()
    assert not after.weight[~after.format.mask].any()
    assert after.format.pattern == (((2, 4),) if "pattern" in options else None)


def test_what_an_earlier_mask_drops_stays_out_and_a_grid_is_given_up() -> None:
    start = (Magnitude("1/4") >> AbsMax(4)).kernel(correlated("cpu", 2))
    after = kernel(technique(), start)
    assert not (after.format.mask & ~start.format.mask).any()
    assert after.format.mask.sum() == 256
    assert after.format.grid is None
    broken = replace(start, weight=start.weight + 1)
    assert not kernel(technique(), broken).weight[~start.format.mask].any()


def test_it_makes_up_for_what_was_lost_before() -> None:
    """Its target is the dense layer, and the low-rank branch is taken into account."""
    start = (AbsMax(3) >> TruncatedSVD(2, residual=True)).kernel(correlated("cpu", 3))
    after = kernel(technique("1/4"), start)
    assert after.format.factors is start.format.factors
    assert loss(after) < loss((Magnitude("1/4") >> GradientDistill(100)).kernel(start))


def test_the_branch_of_block_means_comes_after_it() -> None:
    layer = correlated("cpu", 4)
    after = (technique(pattern="2:4") >> BlockMeans(4)).kernel(layer)
    assert after.format.pattern == ((2, 4),) and after.format.factors.right.shape == (4, 32)


@pytest.mark.parametrize("weight", [torch.zeros(4, 8), torch.ones(4, 8)])
def test_degenerate_layers(weight: torch.Tensor) -> None:
    """Without inputs that say anything no weight moves, and what is dropped only decays."""
    after = kernel(technique(iterations=20, every=3), LayerState.dense(weight, gram=torch.zeros(8, 8)))
    assert after.format.mask.sum() == 16
    assert torch.equal(after.weight, weight * after.format.mask)


def test_the_dtype_stays() -> None:
    layer = tensors((4, 8), dtype=torch.bfloat16)
    after = kernel(technique(iterations=3), layer)
    assert after.weight.dtype == torch.bfloat16 and after.format.mask.dtype == torch.bool


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(technique(), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(technique(pattern="2:4"), tensors((4, 6))), "rows of 6")
    refused(lambda: kernel(technique(), replace(layer, weight=layer.weight / 0)), "nan or infinite")

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import _shared
from compcomp.kernels.learned_mask import kernel
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax, LearnedMask, Magnitude, TruncatedSVD, Wanda
from tests.helpers import DEVICES, correlated, loss, refused, tensors


def lost(technique: Technique, layer: LayerState) -> float:
    return loss(technique.kernel()(technique, layer))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_training_finds_a_better_mask(device: str, pattern: str) -> None:
    """On correlated inputs trained masks lose less than those by Wanda and magnitude, on average clearly less."""
    ratios = []
    for seed in range(5, 11):
        layer = correlated(device, seed)
        learned = lost(LearnedMask("1/2", pattern=pattern, per="row"), layer)
        others = (Wanda("1/2", pattern=pattern), Magnitude("1/2", pattern=pattern, per="row"))
        ratios.append([learned / lost(technique, layer) for technique in others])
    assert all(ratio <= 1 for both in ratios for ratio in both), ratios
    assert all(sum(both[k] for both in ratios) < 0.85 * len(ratios) for k in (0, 1)), ratios


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"per": "row"}, {"pattern": "2:4"}])
def test_the_count_is_exact_and_weights_stay(device: str, options: dict[str, Any]) -> None:
    layer = correlated(device, 0)
    technique = LearnedMask("1/2", **options, iterations=30)
    after = kernel(technique, layer)
    groups = after.format.mask.reshape(
        {"2:4": -1}.get(options.get("pattern", ""), 1), 4 if "pattern" in options else 512
    )
    assert (groups.sum(dim=1) == groups.shape[1] // 2).all()
    assert torch.equal(after.weight, layer.weight * after.format.mask)
    assert torch.equal(kernel(technique, layer).weight, after.weight), "the same seed gives the same mask"


def test_no_training_is_the_start() -> None:
    """By |w_ij| |x_j| inside every row, as Wanda drops."""
    layer = correlated("cpu", 1)
    assert torch.equal(
        kernel(LearnedMask("1/2", per="row", iterations=0), layer).weight,
        Wanda("1/2").kernel()(Wanda("1/2"), layer).weight,
    )


def test_the_more_it_trains_the_less_it_loses() -> None:
    losses = [lost(LearnedMask("1/2", per="row", iterations=n), correlated("cpu", 2)) for n in (0, 50, 400)]
    assert losses[0] > losses[1] > losses[2]


def test_it_makes_up_for_what_was_lost_before() -> None:
    """The target is the dense layer, also where the weight is rounded and has a low-rank branch."""
    layer = correlated("cpu", 3)
    start = (AbsMax(3) >> TruncatedSVD(2, residual=True)).kernel(layer)
    learned = kernel(LearnedMask("1/4"), start)
    assert learned.format.grid is start.format.grid and learned.format.factors is start.format.factors
    assert loss(learned) < 0.9 * loss(kernel(LearnedMask("1/4", iterations=0), start))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = correlated("cpu", 4)
    technique = LearnedMask("1/2", iterations=5)
    whole = kernel(technique, layer)
    monkeypatch.setattr(_shared, "MEMORY", 64 * 32 * 4)
    assert torch.equal(kernel(technique, layer).weight, whole.weight)


@pytest.mark.parametrize("weight", [torch.zeros(4, 8), torch.ones(4, 8)])
def test_degenerate_layers(weight: torch.Tensor) -> None:
    after = kernel(LearnedMask("1/2", iterations=10), LayerState.dense(weight, gram=torch.zeros(8, 8)))
    assert after.format.mask.sum() == 16
    assert torch.isfinite(after.weight).all()


def test_what_it_cannot_use_is_refused() -> None:
    layer = tensors((4, 8))
    refused(lambda: kernel(LearnedMask("1/2"), replace(layer, gram=None)), "no inputs")
    refused(lambda: kernel(LearnedMask("1/2", pattern="2:4"), tensors((4, 6))), "rows of 6")
    refused(lambda: kernel(LearnedMask("1/2"), replace(layer, weight=layer.weight / 0)), "nan or infinite")

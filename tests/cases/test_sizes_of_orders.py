"""The size that is reported of an order is that of the layers it leaves, whatever other order it was merged with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.language.size import layer_bits
from compcomp.models.bench import ModelBench
from compcomp.techniques import (
    AbsMax,
    BlockMeans,
    Hadamard,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    SmoothQuant,
    TruncatedSVD,
)
from tests.amount import spread

SHAPES = [(8, 8), (6, 8)]
INPUTS = [torch.randn(24, 8, generator=torch.Generator().manual_seed(1)).double()]
POOL: list[Any] = [
    *(LoRA(rank=2, iterations=1), LoRA(rank=1, iterations=2, merged=True), BlockMeans(rank=2)),
    *(TruncatedSVD(rank=1, residual=True), TruncatedSVD(rank=2), TruncatedSVD(rank=4)),
    *(Magnitude(sparsity="1/2"), Magnitude(sparsity="1/2", ties="all"), AbsMax(bits=4), AbsMax(bits=2, group=4)),
    *(LeastSquaresDistill(), Hadamard(), SmoothQuant()),
]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False)).double()


def rate(order: str | cc.Sequence) -> float:
    """By hand: every step on every layer, and the bits of what is left."""
    with ModelBench(model(), INPUTS, None, "cpu", loss_names=()) as bench:
        state = bench.start()
        for technique in cc.parse_sequence(str(order)) if isinstance(order, str) else order:
            state = bench.apply(technique, state)
        bits = sum(layer_bits(layer.format, tuple(layer.weight.shape)) for layer in state.values())
    return 1 - bits / sum(16 * rows * columns for rows, columns in SHAPES)


def plan_of(techniques: list[Any], **more: Any) -> Any:
    return cc.optimize_order(techniques, model=model(), calibration=INPUTS, device="cpu", **more)


@pytest.mark.parametrize("seed", spread(range(8), 3))
def test_every_measured_order_has_its_own_size(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    techniques = drawn.sample(POOL, drawn.randint(2, 3))
    loss = drawn.choice(["weight_l1", "weight_l2", "output_l2"])
    for store in (None, tmp_path / "plan.db", tmp_path / "plan.db"):  # the last one is resumed
        plan = plan_of(techniques, loss=loss, store=store)
        for row in plan.measurements:
            assert row["compression_rate"] == pytest.approx(rate(row["order"]), abs=1e-12), row["order"]
        assert plan.compression_rate == pytest.approx(rate(plan.order), abs=1e-12)
    saved = plan.save(tmp_path / "out") or tmp_path / "out"
    about = json.loads((Path(saved) / "compcomp.json").read_text())
    assert about["compression_rate"] == pytest.approx(plan.compression_rate, abs=1e-12)


@pytest.mark.parametrize("seed", spread(range(6), 2))
def test_no_proof_about_losses_hides_a_smaller_order(seed: int) -> None:
    """The largest rate of any order, tried by hand, is one that ``size`` finds."""
    from itertools import permutations

    drawn = random.Random(100 + seed)
    techniques = drawn.sample([t for t in POOL if getattr(t, "ties", "first") == "first"], 2 + seed % 2)
    largest = max(rate(cc.Sequence(order)) for order in permutations(techniques))
    plan = plan_of(techniques, loss="output_l2", size=min(1.0, max(0.0, largest - 1e-9)) if largest > 0 else None)
    assert max(row["compression_rate"] for row in plan.measurements) == pytest.approx(largest, abs=1e-12)
    if largest > 0:
        assert rate(plan.order) >= largest - 1e-6


@pytest.mark.parametrize("first", [LoRA(rank=2, iterations=1), BlockMeans(rank=2), TruncatedSVD(rank=2, residual=True)])
def test_what_stores_factors_is_not_taken_for_what_stores_none(first: Any) -> None:
    with pytest.raises(cc.InputError, match="size"):
        plan_of([first, AbsMax(bits=4)], loss="weight_l2", size=0.7)


def test_distillation_last_loses_the_rank() -> None:
    """It never loses more there, and takes more to store."""
    plan = plan_of([LeastSquaresDistill(), TruncatedSVD(rank=1)], loss="output_l2", size=0.4)
    assert str(plan.order) == "LeastSquaresDistill() >> TruncatedSVD(rank=1)"


def test_the_size_of_an_order_for_each_layer() -> None:
    techniques = [Magnitude(sparsity="1/2"), AbsMax(bits=4), TruncatedSVD(rank=2)]
    plan = plan_of(techniques, loss="output_l2", granularity="layer", size=0.6)
    own = {**dict.fromkeys(("0", "2"), str(plan.order)), **plan.layer_orders}
    with ModelBench(model(), INPUTS, None, "cpu", loss_names=()) as bench:
        state = bench.apply_each({name: cc.parse_sequence(order) for name, order in own.items()})
        assert plan.compression_rate == pytest.approx(bench.compression_rate(state), abs=1e-12)
    assert plan.compression_rate >= 0.6

"""The plan's winner is the exhaustive winner, on every set of a generated family and on layers no proof has seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from compcomp.language.technique import Technique
from compcomp.ordering.search import search
from compcomp.ordering.store import Store
from compcomp.techniques import (
    AbsMax,
    ApplyMask,
    BlockMeans,
    DistillFactors,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from tests.amount import spread
from tests.ordering.fakes import LayerBench, by_rules, exhaustive

FAMILY: list[Technique] = [
    Magnitude("1/4"),
    Magnitude("1/2"),
    Magnitude("3/4", per="row", ties="all"),
    Magnitude("1/2", pattern="2:4"),
    Magnitude("1/2", of="dense"),
    Wanda("1/4"),
    Wanda("1/2"),
    AbsMax(bits=2),
    AbsMax(bits=4),
    AbsMax(bits=7),
    AbsMax(bits=3, group=4),
    AbsMax(bits=5, group=2, rounding="half_away"),
    MinMax(bits=3, group=4),
    MinMax(bits=4, zero="none"),
    ApplyMask(),
    TruncatedSVD(rank=1, residual=True),
    TruncatedSVD(rank=2, residual=True),
    TruncatedSVD(rank=2),
    LeastSquaresDistill(),
    LoRA(rank=1, iterations=1),
    BlockMeans(rank=1),
    DistillFactors(),
]
LOSSES = ("output_l2", "weight_l2", "weight_l1")
BATCHES, EACH = 30, 11
"""330 sets in all: one of five techniques, three of four, seven of two or three in every batch."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Verdicts of earlier sets serve later ones, as they do for users."""
    path: Path = tmp_path_factory.mktemp("exhaustive") / "verdicts.db"
    kept = Store(path)
    yield kept
    kept.close()


@pytest.mark.slow
@pytest.mark.parametrize("batch", spread(range(BATCHES), 1))
def test_the_winner_is_the_exhaustive_winner(batch: int, store: Store) -> None:
    for turn in range(EACH):
        seed = EACH * batch + turn
        chance = random.Random(seed)
        size = 5 if turn == 0 else 4 if turn < 4 else chance.choice([2, 3, 3])
        techniques = chance.sample(FAMILY, size)
        loss = chance.choice(LOSSES)
        bench = LayerBench(techniques, shape=(3, chance.choice([4, 8])), seed=seed, metric=None)
        plan = search(techniques, loss, bench, prover=by_rules, store=store)
        every = exhaustive(bench, techniques)
        least = min(losses[loss] for losses, _ in every.values())
        what = f"seed {seed}: {', '.join(map(str, techniques))} under {loss}"
        assert plan.best["losses"][loss] <= least * (1 + 1e-9) + 1e-9, what
        found = every[str(plan.order)][0][loss]
        assert found == pytest.approx(plan.best["losses"][loss], rel=1e-9, abs=1e-9), what
        for account in plan.accounts:  # what stands for an order is no worse on these layers
            assert every[account["by"]][0][loss] <= every[account["order"]][0][loss] * (1 + 1e-9) + 1e-7, what

"""Several objectives: the front against brute force, and which order is taken where sizes differ."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from compcomp.errors import InputError
from compcomp.language.technique import Sequence
from compcomp.language.verdict import Status
from compcomp.layers.state import LayerState
from compcomp.ordering.measurement import Measurement, fronts, pareto, ranked
from compcomp.ordering.plan import PlanData
from compcomp.ordering.search import search
from compcomp.ordering.space import one_of, optional
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.ordering.fakes import LayerBench, Prover, bits

P, D = Magnitude("1/2", pattern="2:4"), LeastSquaresDistill()
Q3, Q5, L = AbsMax(bits=3, group=4), AbsMax(bits=5, group=4), TruncatedSVD(rank=1, residual=True)


def row(k: int, loss: float, metric: float | None, rate: float | None) -> Measurement:
    metrics = {} if metric is None else {"m": metric}
    return Measurement(Sequence((AbsMax(bits=2 + k % 15, group=4 + 4 * (k // 15)),)), metrics, {"l": loss}, rate)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Rates and worths: at least as good in both, and better in one."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


@pytest.mark.parametrize("seed", range(30))
def test_fronts_against_brute_force(seed: int) -> None:
    chance = random.Random(seed)
    points = [(chance.choice([0.1, 0.5, 0.8]), float(chance.randrange(12))) for _ in range(25)]
    if seed % 2:
        points = [(chance.random(), chance.random()) for _ in range(25)]
    left, expected, place = dict(enumerate(points)), [0] * len(points), 0
    while left:
        front: list[int] = []
        for k, point in left.items():
            beaten = any(dominates(other, point) for other in left.values())
            if not beaten and not any(points[j] == point for j in front):
                front.append(k)
        for k in front:
            expected[k] = place
            del left[k]
        place += 1
    assert fronts(points) == expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("metric", "lower"), [(None, True), ("m", True), ("m", False)])
def test_the_front_against_brute_force(seed: int, metric: str | None, lower: bool) -> None:
    chance = random.Random(seed)
    values = [math.nan, None, *map(float, range(9))]
    rows = [row(k, chance.random(), chance.choice(values), chance.choice([0.3, 0.5, 0.9])) for k in range(30)]

    def point(one: Measurement) -> tuple[float, float]:
        value = one.losses["l"] if metric is None else one.metrics.get("m", math.nan)
        return one.rate, value if lower or metric is None else -value

    known = [one for one in rows if not math.isnan(point(one)[1])]
    best = {point(one) for one in known if not any(dominates(point(other), point(one)) for other in known)}
    front = pareto(rows, "l", metric, lower)
    assert {point(one) for one in front} == best and len(front) == len(best)
    rates = [one["compression_rate"] for one in front]
    assert rates == sorted(rates, reverse=True)


def test_of_one_size_the_front_is_the_best() -> None:
    rows = [row(k, loss, None, 0.5) for k, loss in enumerate([3.0, 1.0, 2.0, 1.0])]
    assert pareto(rows, "l", None, True) == [ranked(rows, "l", None, True)[0]] == [rows[1]]
    unknown = [row(k, loss, None, None) for k, loss in enumerate([3.0, 1.0])]
    assert pareto(unknown, "l", None, True) == [unknown[1]]


# ------------------------------------------------------------------------------------ in a search


class Sized(LayerBench):
    """Its sizes are those of masks and grids."""

    def compression_rate(self, state: LayerState) -> float:
        return 1 - bits(state.format) / 16

    def rate(self, bits: int) -> float:
        return 1 - bits / (3 * 16)


def found(techniques: list[Any], **more: Any) -> PlanData:
    known = [P, Q3, Q5, D, L]
    prover = Prover(lambda claim: Status.UNKNOWN)
    return search(techniques, bench=Sized(known), prover=prover, **more)


def test_leaving_everything_out_is_not_the_answer() -> None:
    plan = found([optional(P), optional(one_of(Q3, Q5)), optional(D)])
    rates = {one["compression_rate"] for one in plan.measurements}
    assert len(rates) >= 4 and plan.compression_rate == max(rates) == plan.best["compression_rate"]
    largest = [one for one in plan.measurements if one["compression_rate"] == max(rates)]
    assert plan.measurements[: len(largest)] == largest and plan.worst == largest[-1]
    assert plan.best["metrics"]["error"] == min(one["metrics"]["error"] for one in largest)
    assert "of the largest compression rate (93.8%), of the" in plan.standing
    assert any(note.startswith("compression rates differ") for note in plan.notes)

    points = {one["order"]: (one["compression_rate"], one["metrics"]["error"]) for one in plan.measurements}
    front = {p for p in points.values() if not any(dominates(other, p) for other in points.values())}
    assert {points[one["order"]] for one in plan.pareto} == front and len(front) >= 4
    assert plan.pareto[0] == plan.best and plan.pareto[-1]["compression_rate"] == 0
    assert plan.to_json()["pareto"] == [one["order"] for one in plan.pareto]


def test_an_order_of_a_wanted_size() -> None:
    plan = found([optional(P), optional(one_of(Q3, Q5)), optional(D)], size=0.5)
    allowed = [one for one in plan.measurements if one["compression_rate"] >= 0.5]
    assert plan.best["metrics"]["error"] == min(one["metrics"]["error"] for one in allowed)
    assert 0.5 <= plan.best["compression_rate"] < 0.9 and plan.worst in allowed
    assert "with a compression rate of at least 0.5, of the" in plan.standing
    with pytest.raises(InputError, match=r"size: 0\.95; allowed: at most 0\.9375"):
        found([optional(P), optional(one_of(Q3, Q5))], size=0.95)
    with pytest.raises(InputError, match="size without a model"):
        search([P, D], size=0.5)


def test_orders_of_one_size_are_taken_as_ever() -> None:
    plan = found([P, D])
    assert plan.among == "" and plan.pareto == [plan.best] and plan.lower is True


def test_without_a_model_techniques_are_not_left_out() -> None:
    plan = search([optional(P), one_of(Q3, Q5)], prover=Prover(lambda claim: Status.UNKNOWN))
    assert len(plan.order) == 2 and any("sizes are not known" in note for note in plan.notes)


@pytest.mark.parametrize("size", [None, 0.7])
def test_few_evaluations_go_to_the_front_of_loss_and_size(size: float | None) -> None:
    slots = [optional(P), optional(one_of(Q3, Q5)), optional(D), optional(L)]
    plan = found(slots, evaluations=12, size=size)
    evaluated = [one for one in plan.measurements if one["metrics"]]
    assert len(evaluated) == 12 < len(plan.measurements) and plan.best in evaluated
    everything = found(slots, evaluations=1000, size=size)
    if size is None:
        assert plan.compression_rate == everything.compression_rate
    assert all(size is None or one["compression_rate"] >= size for one in evaluated)
    assert any("evaluated were the 12 orders" in note for note in plan.notes)

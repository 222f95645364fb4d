"""Intervals on parts, and the race that stops what cannot win."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mpmath import betainc, mpf

from compcomp.errors import InputError
from compcomp.language.verdict import Status
from compcomp.layers.state import LayerState
from compcomp.ordering.intervals import difference, half_width, mean, t_quantile
from compcomp.ordering.measurement import Measurement
from compcomp.ordering.parts import Kept, Parts, Race, looks
from compcomp.ordering.plan import INTERRUPTED, PlanData
from compcomp.ordering.search import search
from compcomp.ordering.store import Store
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.ordering.fakes import LayerBench, Prover

TECHNIQUES = [Magnitude("1/2", pattern="2:4"), AbsMax(bits=3, group=4), LeastSquaresDistill()]
LOW_RANK = TruncatedSVD(rank=1, residual=True)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 8, 15, 31, 100])
@pytest.mark.parametrize("level", [0.5, 0.05, 0.01, 1e-4, 1e-7])
def test_quantiles_of_student(level: float, degrees: int) -> None:
    t = mpf(t_quantile(level, degrees))
    beyond = betainc(mpf(degrees) / 2, mpf(1) / 2, 0, degrees / (degrees + t * t), regularized=True)
    assert float(beyond) == pytest.approx(level, rel=1e-6)


def test_quantiles_of_a_table() -> None:
    assert t_quantile(0.05, 7) == pytest.approx(2.365, abs=5e-4)
    assert t_quantile(0.01, 31) == pytest.approx(2.744, abs=5e-4)


def test_a_mean_with_its_interval() -> None:
    pairs = [(2.0, 2.0), (6.0, 2.0), (4.0, 2.0)]  # means 1, 3, 2
    assert mean(pairs) == 2
    assert half_width(pairs, 0.05) == pytest.approx(4.302652729749 * 1 / math.sqrt(3))
    assert math.isinf(half_width(pairs[:1], 0.05))
    others = [(sum_ - d, count) for (sum_, count), d in zip(pairs, (1.0, 2.0, 3.0), strict=True)]
    middle, half = difference(pairs, others, 0.05)
    assert middle == 1 and half == pytest.approx(4.302652729749 * 0.5 / math.sqrt(3))
    assert difference(pairs, pairs, 0.05) == (0, 0)
    assert math.isnan(half_width([(math.inf, 1.0), (1.0, 1.0)], 0.05))


def test_differences_without_a_spread_tell_nothing() -> None:
    middle, half = difference([(1.0, 1.0)] * 8, [(0.0, 1.0)] * 8, 0.05)
    assert middle == 1 and math.isinf(half)


@pytest.mark.parametrize("noise", ["normal", "skewed"])
def test_an_interval_on_paired_differences_holds_as_often_as_it_says(noise: str) -> None:
    """True mean difference 1; what parts share, many times as large, cancels."""
    chance, missed, runs = random.Random(0), 0, 4000
    for _ in range(runs):
        shared = [chance.gauss(0, 50) for _ in range(8)]
        apart = [chance.gauss(1, 1) if noise == "normal" else chance.expovariate(1) for _ in range(8)]
        ones = [(10 * (s + a), 10.0) for s, a in zip(shared, apart, strict=True)]
        middle, half = difference(ones, [(10 * s, 10.0) for s in shared], 0.05)
        missed += not middle - half <= 1 <= middle + half
    assert missed / runs < (0.062 if noise == "normal" else 0.13)  # docs/measuring.md: means of a part near normal


def test_looks() -> None:
    assert looks(32) == [8, 16, 32] and looks(40) == [8, 16, 40] and looks(15) == [15] and looks(1) == [1]


class Synthetic:
    """States that are numbers; every part has a difficulty that all states share."""

    def __init__(self, values: Sequence[list[float]], lower: bool = True) -> None:
        self.values, self.lower, self.asked = values, lower, 0
        self.parts = len(values[0])

    def evaluate_parts(self, state: Any, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
        self.asked += len(parts)
        return {"loss": [(7 * self.values[state][k], 7.0) for k in parts]}

    def is_log(self, metric: str) -> bool:
        return False

    def lower_is_better(self, metric: str) -> bool:
        return self.lower


def synthetic(seed: int, states: int = 6, parts: int = 32, lower: bool = True) -> Synthetic:
    chance = random.Random(seed)
    hard = [chance.gauss(3, 2) for _ in range(parts)]
    means = [chance.choice([0.0, 0.05, 0.2, 1.0]) for _ in range(states)]
    spread = chance.choice([0.02, 0.2, 0.5])
    sign = 1 if lower else -1
    draw = chance.choice([lambda: chance.gauss(0, spread), lambda: spread * (chance.expovariate(1) - 1)])
    return Synthetic([[sign * (h + m + draw()) for h in hard] for m in means], lower)


def raced(bench: Synthetic, confidence: float | None, kept: Kept | None = None) -> Race:
    states = range(len(bench.values))
    race = Race(Parts(bench, kept or Kept()), confidence, len(states))
    for state in states:
        race.enter(str(state), 0.5, lambda state=state: state)  # type: ignore[misc]
    return race


@pytest.mark.parametrize("lower", [True, False])
def test_a_race_keeps_the_best(lower: bool) -> None:
    """The best on all parts is stopped no more often than confidence 0.9 allows, and much is not measured."""
    lost, asked, all_parts, runs = 0, 0, 0, 400
    for seed in range(runs):
        bench = synthetic(seed, lower=lower)
        race = raced(bench, 0.9)
        sign = 1 if lower else -1
        best = min(range(len(bench.values)), key=lambda state: sign * sum(bench.values[state]))
        lost += race.runs[str(best)].parts < bench.parts
        asked, all_parts = asked + bench.asked, all_parts + 6 * bench.parts
    assert lost / runs <= 0.1
    assert asked < 0.8 * all_parts


def test_without_a_race_everything_is_measured() -> None:
    for seed in range(20):
        race, bench = raced(synthetic(seed), None), synthetic(seed)
        for state, values in enumerate(bench.values):
            row = race.completed(Measurement(None, {}, {}, 0.5), str(state), {})
            assert row["parts"] == 32 and "note" not in row
            assert row["metrics"]["loss"] == pytest.approx(sum(values) / 32)


def test_stopped_states_are_estimated_and_explained() -> None:
    hard = [float(k % 5) for k in range(32)]
    jitter = [0.01 * (-1) ** k for k in range(32)]
    bench = Synthetic([hard, [h + 1 + j for h, j in zip(hard, jitter, strict=True)], [math.nan] * 32])
    race = raced(bench, 0.99)
    bare, rival = Measurement(None, {}, {}, 0.5), {"0": TECHNIQUES[0] >> TECHNIQUES[1]}
    row = race.completed(bare, "1", rival)
    assert row["parts"] == 8 and row["metrics"]["loss"] == pytest.approx(mean([(h, 1.0) for h in hard]) + 1, abs=0.02)
    assert row["note"].startswith(f"stopped after 8 of 32 parts: worse than {rival['0']} by 0.9")
    assert row["note"].endswith("in loss at 99 %")
    assert row["intervals"]["loss"][0] < row["metrics"]["loss"] < row["intervals"]["loss"][1]
    behind = race.behind("1", "0")
    assert behind is not None and behind[0] < 1 < behind[1]
    ruined = race.completed(bare, "2", rival)
    assert ruined["note"] == "stopped after 8 of 32 parts: its loss is no finite number"
    assert math.isnan(ruined["metrics"]["loss"]) and ruined["intervals"] == {} and race.behind("2", "0") is None


def test_only_what_is_no_larger_stops_a_state() -> None:
    values = [[float(k % 5) + shift + 0.01 * (-1) ** k for k in range(32)] for shift in (0, 3, 3)]
    values[0] = [float(k % 5) for k in range(32)]
    race = Race(Parts(Synthetic(values), Kept()), 0.99, 3)
    for state, rate in enumerate((0.2, 0.8, 0.1)):
        race.enter(str(state), rate, lambda state=state: state)  # type: ignore[misc]
    assert [race.runs[str(k)].parts for k in range(3)] == [32, 32, 8]


def test_parts_are_kept(tmp_path: Path) -> None:
    kept = Kept(Store(tmp_path / "kept.db"), "key")
    first = raced(synthetic(3), 0.9, kept)
    bench = synthetic(3)
    again = raced(bench, 0.9, kept)
    assert bench.asked == 0 and again.runs == first.runs


def test_other_metrics_on_other_parts_are_an_error() -> None:
    class Fickle(Synthetic):
        def evaluate_parts(self, state: Any, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
            return {f"loss{len(parts) > 8}": [(1.0, 1.0)] * len(parts)}

    with pytest.raises(InputError, match="other metrics on other parts"):
        raced(Fickle([[0.0] * 32]), None)


# ------------------------------------------------------------------------------------ in a search


class InParts(LayerBench):
    """Its metric is a mean over 32 parts of different difficulty."""

    parts = 32

    def evaluate(self, state: LayerState) -> dict[str, float]:
        raise AssertionError("it is evaluated in parts")

    def evaluate_parts(self, state: LayerState, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
        self.evaluations += len(parts)
        (error,) = (value for name, value in super().evaluate(state).items() if name == "error")
        self.evaluations -= 1
        return {"error": [(error * (1 + 0.3 * math.sin(k)) + math.cos(k), 1.0) for k in parts]}


def unknown() -> Prover:
    return Prover(lambda claim: Status.UNKNOWN)


def reported(plan: PlanData) -> dict[str, Any]:
    data = plan.to_json()
    return {name: data[name] for name in ("order", "orders", "measurements", "dense", "best", "worst", "pareto")}


def test_a_race_finds_the_same_order_and_says_what_it_did_not_measure() -> None:
    bench, patient = InParts(TECHNIQUES), InParts(TECHNIQUES)
    plan = search(TECHNIQUES, bench=bench, prover=unknown())
    whole = search(TECHNIQUES, bench=patient, prover=unknown(), confidence=None)
    assert plan.order == whole.order and plan.best["metrics"] == whole.best["metrics"]
    assert bench.evaluations < patient.evaluations == 32 * (1 + whole.orders["measured"])
    stopped = [one for one in plan.measurements if one["parts"] < 32]
    assert stopped and all("note" in one for one in stopped) and plan.best["parts"] == 32
    assert any(note.startswith(f"{len(stopped)} of the ") for note in plan.notes)
    assert any("the best two" in note for note in plan.notes)
    assert "Stopped after " in plan.explain(stopped[0]["order"]) and "is an estimate" in plan.explain(
        stopped[0]["order"]
    )
    assert all(one["parts"] == 32 and "note" not in one for one in whole.measurements)
    for one in whole.measurements[1:]:
        low, high = one["behind"]
        apart = one["metrics"]["error"] - whole.best["metrics"]["error"]
        assert low <= apart <= high or apart == pytest.approx(low)
        assert one["intervals"]["error"][0] < one["metrics"]["error"] < one["intervals"]["error"][1]
    assert whole.pareto == [whole.best]


def test_a_second_run_evaluates_nothing_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    fresh, bench = InParts(TECHNIQUES), InParts(TECHNIQUES)
    whole = search(TECHNIQUES, bench=fresh, prover=unknown(), store=Store(tmp_path / "whole.db"))
    again = search(TECHNIQUES, bench=bench, prover=unknown(), store=Store(tmp_path / "whole.db"))
    assert bench.evaluations == bench.applications == 0 and reported(again) == reported(whole)

    class Dies(InParts):
        left = 0

        def evaluate_parts(self, state: LayerState, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().evaluate_parts(state, parts)

    for calls in range(12):
        store, dies = Store(tmp_path / f"{calls}.db"), Dies(TECHNIQUES)
        dies.left = calls
        try:  # a partial plan, if an order was measured
            assert search(TECHNIQUES, bench=dies, prover=unknown(), store=store).optimality == INTERRUPTED
        except KeyboardInterrupt:
            assert dies.left == 0
        resumed = InParts(TECHNIQUES)
        assert reported(search(TECHNIQUES, bench=resumed, prover=unknown(), store=store)) == reported(whole)
        assert resumed.evaluations + dies.evaluations == fresh.evaluations


@pytest.mark.parametrize("sources", ["others", None])
def test_what_other_sources_measured_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: str | None
) -> None:
    """Neither whole models nor layers; without a digest of the sources nothing is kept either."""
    first, again, last = (InParts(TECHNIQUES) for _ in range(3))
    search(TECHNIQUES, bench=first, prover=unknown(), store=Store(tmp_path / "s.db"))
    for module in ("on_model", "explore"):
        monkeypatch.setattr(f"compcomp.ordering.{module}.sources_of", lambda _: sources)
    for bench in (again, last):
        search(TECHNIQUES, bench=bench, prover=unknown(), store=Store(tmp_path / "s.db"))
    assert (again.evaluations, again.applications) == (first.evaluations, first.applications)
    assert (last.evaluations == 0) is (sources is not None)


def test_other_settings_use_what_is_stored_and_measure_the_rest(tmp_path: Path) -> None:
    """Stored parts may not reach as far as another race needs them: the state is made again."""
    four = [*TECHNIQUES, LOW_RANK]
    search(four, bench=InParts(four), prover=unknown(), store=Store(tmp_path / "s.db"))
    bench, fresh = InParts(four), InParts(four)
    patient = search(four, bench=bench, prover=unknown(), store=Store(tmp_path / "s.db"), confidence=None)
    assert reported(patient) == reported(search(four, bench=fresh, prover=unknown(), confidence=None))
    assert 0 < bench.evaluations < fresh.evaluations

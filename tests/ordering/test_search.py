"""The search never loses the best order, drops nothing without a proof, and counts every order once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from compcomp.bench import Coverage
from compcomp.errors import InputError
from compcomp.language.claim import Claim
from compcomp.language.loss import LOSSES
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Status
from compcomp.ordering import questions as module
from compcomp.ordering.ask import Asker
from compcomp.ordering.dag import ON_THIS_MODEL
from compcomp.ordering.measurement import Measurement, ranked
from compcomp.ordering.plan import PlanData
from compcomp.ordering.progress import Progress
from compcomp.ordering.search import search
from compcomp.techniques import (
    AWQ,
    AbsMax,
    AbsMaxInputs,
    GradientDistill,
    Hadamard,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    TruncatedSVD,
    Wanda,
)
from tests.amount import spread
from tests.ordering.fakes import LayerBench, Prover, by_rules, exhaustive, run

P, Q, D = Magnitude("1/2", pattern="2:4"), AbsMax(bits=3, group=4), LeastSquaresDistill()
L, W = TruncatedSVD(rank=1, residual=True), Wanda("1/2")


def consistent(plan: PlanData) -> None:
    counts = plan.orders
    assert counts["total"] == counts["merged"] + counts["dropped"] + counts["measured"]
    assert counts["measured"] == len(plan.measurements)
    outcomes = [account["fate"] for account in plan.accounts]
    assert len(outcomes) == counts["total"] == len({account["order"] for account in plan.accounts})
    assert all(outcomes.count(outcome) == counts[outcome] for outcome in ("merged", "dropped", "measured"))
    assert str(plan.order) == plan.best["order"] and plan.worst == plan.measurements[-1]
    assert plan.optimality == ("proved" if plan.left == 1 else "measured")
    assert counts["measured"] <= plan.left


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PROVED])
def test_without_proofs_everything_is_measured(status: Status) -> None:
    prover, bench = Prover(lambda claim: status), LayerBench([P, Q, D, L])
    plan = search([P, Q, D, L], "output_l2", bench, prover=prover)
    consistent(plan)
    assert plan.left == 24 and plan.orders["dropped"] == 0
    merged = [account for account in plan.accounts if account["fate"] == "merged"]
    assert all(account["because"] == ON_THIS_MODEL for account in merged)
    assert plan.applications["done"] == bench.applications <= plan.applications["full_tree"] == 64
    assert len({str(claim) for claim, _ in prover.asked}) < 24 * 23 / 2  # testing left most claims unasked


def test_proved_equality_merges() -> None:
    bench = LayerBench([D, L])
    plan = search([D, L], "output_l2", bench, prover=Prover(lambda c: PROVED if c.kind == "same state" else UNKNOWN))
    consistent(plan)
    assert plan.orders == {"total": 2, "merged": 1, "dropped": 0, "measured": 1}
    assert plan.optimality == "proved" and bench.applications == plan.applications["done"] == 1, "its factors"


def test_proved_dominance_drops() -> None:
    def last(claim: Claim) -> Status:
        return PROVED if claim.kind == "dominates" and claim.left.techniques[-1] == D else UNKNOWN

    plan = search([P, Q, D], "output_l2", LayerBench([P, Q, D]), prover=Prover(last))
    consistent(plan)
    assert plan.orders["dropped"] > 0 and plan.orders["merged"] == 0
    assert all(account["by"].endswith(str(D)) for account in plan.accounts if account["fate"] == "dropped")


PROVED, UNKNOWN = Status.PROVED, Status.UNKNOWN
IDLE = [
    *(LeastSquaresDistill(), LoRA(rank=1, iterations=1, merged=True), GradientDistill(iterations=2)),
    *(AWQ(alphas=(0,), group=None), Hadamard(block=1), LoRA(rank=1, iterations=1)),
]
"""Techniques that change nothing of a dense layer, each by another contract."""


@pytest.mark.parametrize("idle", IDLE, ids=str)
def test_what_changes_nothing_at_first_is_left_out_there(idle: Technique) -> None:
    plan = search([idle, Q], "output_l2", LayerBench([idle, Q]), prover=by_rules)
    consistent(plan)
    assert [plan.orderings.normal_form(prefix)[0] for prefix in ((0,), (0, 1), (1,))] == [(), (1,), (1,)]
    assert any(verdict.proved and str(verdict.claim) == f"{idle} same state as identity" for verdict in plan.verdicts)


def test_what_is_seen_to_change_a_layer_is_not_asked() -> None:
    prover = Prover(lambda claim: UNKNOWN)
    plan = search([P, Hadamard(block=4), GradientDistill(iterations=2)], "output_l2", prover=prover)
    asked = {str(claim) for claim, _ in prover.asked if str(claim).endswith("same state as identity")}
    assert asked == {f"{GradientDistill(iterations=2)} same state as identity"}
    assert plan.orderings.normal_form((2,))[0] == (2,), "nothing is merged without a proof"


def test_a_proof_at_one_shape_drops_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undecided pairs are asked again at a small shape: that is a verdict to read, not a reason to drop."""
    prover = Prover(lambda claim: UNKNOWN)
    answer = Prover.__call__

    def small(self: Prover, claim, scope, options):  # type: ignore[no-untyped-def]
        self.answer = lambda _: PROVED if scope.kind == "shape" else UNKNOWN
        return answer(self, claim, scope, options)

    monkeypatch.setattr(Prover, "__call__", small)
    plan = search([P, Q], "weight_l2", LayerBench([P, Q], shape=(3, 8)), prover=prover)
    assert [str(v.scope) for v in plan.verdicts] == ["any", "any", "1x4", "1x4"]
    assert plan.orders["measured"] == 2
    plan = search([P, Q], "weight_l2", LayerBench([P, Q], shape=(1, 4)), prover=prover)
    assert plan.orders["measured"] == 1  # here it is the shape of every layer


def test_pairs_are_asked_both_ways() -> None:
    plan = search([P, Q, D], "output_l2", LayerBench([P, Q, D]), prover=by_rules)
    pairs = {str(v.claim) for v in plan.verdicts[:6]}
    assert pairs == {f"{a >> b} dominates {b >> a}" for a, b in permutations([P, Q, D], 2)}


FAMILY: list[Technique] = [
    P,
    Q,
    D,
    L,
    W,
    Magnitude("1/4"),
    Magnitude("3/4", per="row", ties="all"),
    AbsMax(bits=2),
    AbsMax(bits=5, group=2, rounding="half_away"),
    TruncatedSVD(rank=2),
]


@pytest.mark.parametrize("seed", spread(range(12), 3))
def test_the_winner_is_the_exhaustive_winner(seed: int) -> None:
    """By the real rules, on techniques and layers drawn at random: ties apart, nothing better exists."""
    chance = random.Random(seed)
    techniques = chance.sample(FAMILY, chance.choice([2, 3, 3, 4]))
    loss = chance.choice(["output_l2", "weight_l2", "weight_l1"])
    bench = LayerBench(techniques, seed=seed, metric=None)
    plan = search(techniques, loss, bench, prover=by_rules)
    consistent(plan)
    every = exhaustive(LayerBench(techniques, seed=seed, metric=None), techniques)
    least = min(losses[loss] for losses, _ in every.values())
    assert plan.best["losses"][loss] <= least * (1 + 1e-9) + 1e-9
    assert plan.best["losses"][loss] == pytest.approx(every[plan.best["order"]][0][loss], rel=1e-9, abs=1e-9)
    for account in plan.accounts:  # what stands for an order is no worse, on layers the proofs never saw
        assert every[account["by"]][0][loss] <= every[account["order"]][0][loss] * (1 + 1e-9) + 1e-7
    assert bench.applications <= plan.applications["full_tree"]


def test_the_users_metric_ranks_and_its_direction_counts() -> None:
    techniques = [P, Q, D]
    lower = search(techniques, "output_l2", LayerBench(techniques), prover=Prover(lambda _: UNKNOWN))
    every = exhaustive(LayerBench(techniques), techniques)
    assert lower.metric == "error" and list(lower.dense) == ["error", "size"]
    assert lower.best["metrics"]["error"] == min(metrics["error"] for _, metrics in every.values())
    higher = search(techniques, "output_l2", LayerBench(techniques, metric="score"), prover=Prover(lambda _: UNKNOWN))
    assert higher.best["metrics"]["score"] == max(metrics["error"] for _, metrics in every.values())


def row(bits: int, metric: float, loss: float) -> Measurement:
    return Measurement(Sequence((AbsMax(bits),)), {"m": metric}, {"l": loss}, 0.0)


def test_ties_go_to_the_smaller_loss_then_to_the_text() -> None:
    nan = float("nan")
    rows = [row(5, nan, 0), row(4, 1, 2), row(3, 1, 2), row(2, 1, 3), row(6, 2, nan), row(7, 2, 9)]

    def order(metric: str | None, lower: bool) -> list[int]:
        return [int(str(one["order"]).partition("bits=")[2].rstrip(")")) for one in ranked(rows, "l", metric, lower)]

    assert order("m", True) == [3, 4, 2, 7, 6, 5]
    assert order("m", False) == [7, 6, 3, 4, 2, 5]
    assert order(None, True) == [5, 3, 4, 2, 7, 6]


def test_each_prefix_is_applied_once_and_let_go() -> None:
    bench = LayerBench([P, Q, D, W])
    plan = search([P, Q, D, W], "output_l2", bench, prover=Prover(lambda _: UNKNOWN))
    assert bench.applications == plan.applications["done"] < 64, "some states are the same on these layers"
    assert bench.most_live <= 5 and bench.evaluations == plan.orders["measured"] + 1


def test_a_technique_listed_twice() -> None:
    plan = search([P, Q, P], "weight_l2", LayerBench([P, Q]), prover=by_rules)
    consistent(plan)
    assert plan.orders["total"] == 3 and len(plan.verdicts[:2]) == 2
    same = search([P, P], "weight_l2", LayerBench([P]), prover=by_rules)
    assert same.orders == {"total": 1, "merged": 0, "dropped": 0, "measured": 1} and same.optimality == "proved"


@pytest.mark.parametrize("given", [[], [P] * 9])
def test_too_few_or_too_many(given: list[Technique]) -> None:
    with pytest.raises(InputError, match="1 to 8"):
        search(given, "weight_l2")


def test_without_a_bench_generated_layers_rank() -> None:
    plan = search([P, Q, D], "output_l2", prover=by_rules)
    consistent(plan)
    assert plan.measured_on == "generated layers" and plan.metric is None and plan.dense == {}
    assert plan.applications["done"] <= plan.applications["full_tree"] == 15
    assert not str(plan.order).startswith(str(D)) and "generated layers" in str(plan)
    losses = [one["losses"]["output_l2"] for one in plan.measurements]
    assert losses == sorted(losses)
    again = search([P, Q, D], "output_l2", prover=by_rules)
    assert again.measurements == plan.measurements


def test_quantized_inputs_commute_with_what_looks_at_none() -> None:
    plan = search([Magnitude("1/2"), AbsMax(4), AbsMaxInputs(4)], "output_l2", prover=by_rules)
    assert plan.orders == {"total": 6, "merged": 4, "dropped": 0, "measured": 2}


def test_too_many_for_screening_are_ranked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    full = search([P, Q, D], "output_l2", prover=Prover(lambda _: UNKNOWN))
    monkeypatch.setattr(module, "SCREENED", 5)
    plan = search([P, Q, D], "output_l2", prover=Prover(lambda _: UNKNOWN))
    consistent(plan)
    assert plan.measurements == full.measurements
    assert any("too many" in note for note in plan.notes)
    bench = LayerBench([P, Q, D])
    assert search([P, Q, D], "output_l2", bench, prover=by_rules).orders["total"] == 6


def test_techniques_that_fit_no_common_layer() -> None:
    with pytest.raises(InputError, match="no common layer"):
        search([AbsMax(4, group=1024), AbsMax(4, group=1023)], "weight_l2")


def test_events_tell_how_far_it_is() -> None:
    events = []
    search([P, Q, D], "output_l2", LayerBench([P, Q, D]), prover=by_rules, progress=Progress(events.append))
    assert {event["phase"] for event in events} == {"screen", "prove", "measure"}
    assert all(0 <= event["done"] <= event["total"] for event in events)
    last = [event for event in events if event["phase"] == "measure"][-1]
    assert last["done"] == last["total"]


def test_claims_in_rounds_are_the_same_for_every_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[list[str]] = []
    ask = Asker.ask

    def noted(self: Asker, claims, *rest):  # type: ignore[no-untyped-def]
        rounds.append([str(claim) for claim in claims])
        return ask(self, claims, *rest)

    monkeypatch.setattr(Asker, "ask", noted)
    search([P, Q, D, L], "output_l2", prover=by_rules)
    first, rounds = rounds, []
    search([P, Q, D, L], "output_l2", prover=by_rules)
    assert first == rounds


@pytest.mark.parametrize("seed", spread(range(4), 1))
def test_an_order_for_each_layer_is_the_best_of_each(seed: int) -> None:
    techniques = [P, Q, D, L]
    bench = LayerBench(techniques, seed=seed, metric=None)
    plan = search(techniques, "output_l2", bench, prover=by_rules, granularity="layer")
    consistent(plan)
    least = [float("inf")] * 3
    for order in permutations(techniques):
        losses = LOSSES["output_l2"].of(run(order, bench.start())).values
        least = [min(a, b) for a, b in zip(least, losses, strict=True)]
    assert plan.by_layer is not None
    assert plan.by_layer["losses"]["output_l2"] == pytest.approx(sum(least), rel=1e-9, abs=1e-9)
    assert plan.by_layer["losses"]["output_l2"] <= plan.best["losses"]["output_l2"] * (1 + 1e-9)
    assert (not plan.layer_orders) == any("one for all" in note for note in plan.notes)


def test_granularity_is_checked() -> None:
    with pytest.raises(InputError, match="'model', 'layer'"):
        search([P, Q], "weight_l2", LayerBench([P, Q]), granularity="block")
    with pytest.raises(InputError, match="without a model"):
        search([P, Q], "weight_l2", granularity="layer")


# ------------------------------------------------------------------------------------------ under conditions

EVEN, EIGHT = Magnitude("1/2", pattern="2:4", ties="all"), AbsMax(bits=8, group=4, rounding="half_up")


class Covered(LayerBench):
    """Says of every claim the same: on how many of the 12 weights of a layer it holds, and what is lost on the rest."""

    def __init__(
        self, covered: int, rest: tuple[float, float], metric: str | None = None, contradicted: int = 0
    ) -> None:
        super().__init__([EVEN, EIGHT], metric=metric)
        self.covered, self.rest, self.contradicted = covered, rest, contradicted
        self.claims: list[str] = []

    def coverage(self, claims: Any) -> Iterator[tuple[str, list[Coverage]]]:
        self.claims += map(str, claims)
        for k, name in enumerate(self.layer_names()):
            rows = []
            for claim in claims:
                one, other = self.rest if claim.left == EVEN >> EIGHT else self.rest[::-1]
                held = {str(c): self.covered for c in claim.given}
                groups, contradicted = dict.fromkeys(held, (3, 2)), self.contradicted if k == 1 else 0
                rows.append(Coverage(12, self.covered, held, groups, (2.0, one), (2.0, other), contradicted))
            yield name, rows


def test_a_pair_is_decided_under_conditions_and_by_measurement() -> None:
    bench = Covered(8, (1.0, 1.5))
    plan = search([EVEN, EIGHT], "output_l2", bench, prover=by_rules)
    consistent(plan)
    one, other = plan.conditional
    assert one["claim"] == f"{EVEN >> EIGHT} dominates {EIGHT >> EVEN} given no_ties" and one["given"] == ["no_ties"]
    assert one["coverage"] == pytest.approx(2 / 3) and one["layers"] == {"0": 2 / 3, "1": 2 / 3, "2": 2 / 3}
    assert one["left_loss"] == {"covered": 6.0, "rest": 3.0} and one["right_loss"] == {"covered": 6.0, "rest": 4.5}
    assert one["groups"] == {"no_ties": pytest.approx(2 / 3)} and one["contradicted"] == []
    assert (one["holds"], one["in_every_layer"], other["holds"], other["in_every_layer"]) == (True, True, False, False)
    assert plan.orders == {"total": 2, "merged": 0, "dropped": 1, "measured": 1} and plan.left == 2
    assert plan.optimality == "measured" and plan.order == EVEN >> EIGHT
    text = plan.explain(EIGHT >> EVEN)
    assert (
        "dropped" in text and "proved on 66.7 % of the weights, measured on the rest (output_l2 3 against 4.5)" in text
    )
    assert "says nothing of other models" in text and "given no_ties is proved" in plan.explain(EVEN >> EIGHT)
    assert plan.to_json()["conditional"] == plan.conditional
    assert any(v.proved and str(v.claim) == one["claim"] for v in plan.verdicts)


@pytest.mark.parametrize(
    ("bench", "dropped"),
    [
        (Covered(8, (1.5, 1.5)), 1),  # neither loses more
        (Covered(12, (0.0, 0.0), metric="error"), 1),  # proved on every weight, so whatever is evaluated
        (Covered(8, (1.0, 1.5), metric="error"), 0),  # what was only measured says nothing of a metric
        (Covered(0, (1.0, 1.5)), 0),  # no proof speaks of this model
        (Covered(8, (float("nan"), 1.5)), 0),
        (Covered(8, (1.0, 1.5), contradicted=2), 0),
    ],
)
def test_what_is_dropped_under_conditions(bench: Covered, dropped: int) -> None:
    plan = search([EVEN, EIGHT], "output_l2", bench, prover=by_rules)
    consistent(plan)
    assert plan.orders["dropped"] == dropped and len(plan.conditional) == 2
    loud = [note for note in plan.notes if note.startswith("CONTRADICTION on 1: ")]
    assert len(loud) == (2 if bench.contradicted else 0)
    if bench.covered == 0:
        assert "is measured to lose no more on this model" in plan.explain(EVEN >> EIGHT)
    assert not bench.contradicted or not any(entry["holds"] for entry in plan.conditional)


def test_conditions_are_looked_for_only_where_they_may_help() -> None:
    bench = Covered(8, (1.0, 1.5))
    plan = search([EVEN, EIGHT, D], "output_l2", bench, prover=by_rules)
    assert (
        len(plan.conditional) == 2
        and plan.orders == search([EVEN, EIGHT, D], "output_l2", LayerBench([EVEN, EIGHT]), prover=by_rules).orders
    ), "more than a pair: reported, but nothing is dropped"
    assert "Under conditions" not in plan.explain(EVEN >> D >> EIGHT)
    for techniques, loss, prover in (
        ([P, Q], "weight_l2", by_rules),  # proved without
        ([EVEN, EIGHT], "output_l2", Prover(lambda _: UNKNOWN)),
        ([EVEN, D], "output_l2", by_rules),  # one of them is neither a selection nor a map
    ):
        bench = Covered(8, (1.0, 1.5))
        plan = search(techniques, loss, bench, prover=prover)
        assert plan.conditional == [] and bench.claims == []
    assert search([EVEN, EIGHT], "output_l2", prover=by_rules).conditional == [], "nothing without a model"

"""What a plan tells."""

from __future__ import annotations

import json

import networkx as nx
import pytest

from compcomp.errors import InputError
from compcomp.language.claim import dominates, same_state
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import Options
from compcomp.ordering.plan import NOT_ACCURACY, PlanData, finite
from compcomp.ordering.search import search
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.ordering.fakes import LayerBench, Prover, verdict

P, D, L = Magnitude("1/2", pattern="2:4"), LeastSquaresDistill(), TruncatedSVD(rank=1, residual=True)
KEYS = {
    *("order", "optimality", "orders", "verdicts", "measurements", "dense", "best", "worst", "compression_rate"),
    *("loss", "metric", "applications", "seconds"),
}


def some(claim, scope, options: Options) -> Verdict:  # type: ignore[no-untyped-def]
    """Proves that distillation and factoring commute at first, and that it is best done last."""
    rules = [same_state(D >> L, L >> D), dominates(P >> L >> D, D >> L >> P, loss="output_l2")]
    proved = any(str(claim) == str(rule) for rule in rules)
    return verdict(claim, Status.PROVED if proved else Status.UNKNOWN, reason="rule r" if proved else "")


@pytest.fixture(scope="module")
def plan() -> PlanData:
    return search([P, D, L], "output_l2", LayerBench([P, D, L]), prover=some)


def test_the_counts(plan: PlanData) -> None:
    assert plan.orders == {"total": 6, "merged": 0, "dropped": 2, "measured": 4}
    assert plan.optimality == "measured"
    assert "best measured of the 4 orders that no proof excludes" in str(plan)
    assert NOT_ACCURACY in str(plan) and "error" in str(plan)


def test_explain_a_dropped_order(plan: PlanData) -> None:
    text = plan.explain(L >> D >> P)
    assert text.startswith(f"{L >> D >> P}: dropped.")
    assert f"{D >> L} same state as {L >> D}" in text and f"{P >> L >> D} dominates {D >> L >> P}" in text
    assert "any shape (rule r)" in text and NOT_ACCURACY in text


def test_explain_a_measured_order_by_names_alone(plan: PlanData) -> None:
    best = plan.explain(str(plan.order))
    assert "measured" in best and "the order to take" in best
    worst = plan.explain(plan.worst["order"])
    assert "place 4 of 4" in worst and "error" in worst and "output_l2" in worst
    named = plan.explain("Magnitude >> LeastSquaresDistill >> TruncatedSVD")
    assert named == plan.explain(P >> D >> L)


def test_explain_a_merged_order() -> None:
    plan = search([D, L], "output_l2", LayerBench([D, L]), prover=Prover(lambda _: Status.PROVED))
    text = plan.explain(L >> D)
    assert text.startswith(f"{L >> D}: merged.") and "in the same state as" in text
    assert "proved optimal under (output_l2, any shape)" in str(plan)


@pytest.mark.parametrize("order", ["Magnitude", "Magnitude >> AbsMax(bits=4)", "P >> Q", "import os", 3, P >> D])
def test_explain_wants_an_order_of_the_plan(plan: PlanData, order: object) -> None:
    with pytest.raises(InputError):
        plan.explain(order)  # type: ignore[arg-type]


def test_accounts_say_why(plan: PlanData) -> None:
    assert all(set(account) == {"order", "fate", "because", "by"} for account in plan.accounts)
    measured = {one["order"] for one in plan.measurements}
    for account in plan.accounts:
        assert (account["fate"] == "measured") == (account["order"] in measured)
        assert account["by"] in measured


def test_plain_data(plan: PlanData) -> None:
    data = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert set(data) >= KEYS
    assert data["orders"] == plan.orders and data["best"]["order"] == data["order"] == str(plan.order)
    assert json.dumps(nx.node_link_data(plan.graph, edges="edges"), allow_nan=False)
    assert plan.graph.nodes[str(plan.order)]["metrics"] == plan.best["metrics"]


def test_what_is_not_finite_is_null() -> None:
    assert finite({"a": [float("inf"), (float("nan"), 1.5)]}) == {"a": [None, [None, 1.5]]}


def test_the_scope_of_a_proof_that_covers_only_this_model() -> None:
    a, b = Magnitude("1/2"), AbsMax(3)

    def at_shape(claim, scope, options: Options) -> Verdict:  # type: ignore[no-untyped-def]
        proved = scope.kind == "shape" and claim.left == a >> b
        return verdict(claim, Status.PROVED if proved else Status.UNKNOWN, str(scope))

    plan = search([a, b], "weight_l2", LayerBench([a, b], shape=(1, 4)), prover=at_shape)
    assert plan.optimality == "proved" and "the shapes of this model" in str(plan)

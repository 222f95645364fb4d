"""What a search makes of a proof hangs on the data of its assumptions, never on their sentences."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from compcomp.language.assumption import OF_EVERY_LAYER, Assumption, Kind
from compcomp.language.claim import Claim, Scope, dominates, equal
from compcomp.language.technique import Technique
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Status, Verdict
from compcomp.optimize import optimize_order
from compcomp.ordering.covers import covers
from compcomp.ordering.dag import Orderings
from compcomp.ordering.plan import PlanData
from compcomp.ordering.search import search
from compcomp.proving.proof import DENSE_INPUTS, SAME_BASIS
from compcomp.proving.prove import prove
from compcomp.techniques import AbsMax, AbsMaxInputs, Hadamard, LeastSquaresDistill, LoRA, Magnitude, TruncatedSVD
from tests.claims import CLAIMS
from tests.ordering.fakes import LayerBench, by_rules, verdict
from tests.ordering.test_search import EIGHT, EVEN, Covered

P, Q, D = Magnitude("1/2"), AbsMax(bits=3), LeastSquaresDistill()
L, X, H = TruncatedSVD(rank=1, residual=True), AbsMaxInputs(bits=4), Hadamard()
NOISE = random.Random(0)
FORMER = (
    "exact arithmetic (reals, not floats)",
    "T keeps the mask (its contract)",
    "without loss of generality w >= 0",
    "the layer splits into independent blocks of 4 (every step acts inside one)",
    DENSE_INPUTS.text,
)
"""Sentences that once decided: each now stands for any assumption."""


def noise() -> str:
    return NOISE.choice([*FORMER, "".join(NOISE.choices("abc ()\\{}", k=NOISE.randrange(30)))])


def noisy(found: Verdict) -> Verdict:
    return replace(found, assumptions=tuple(replace(one, text=noise()) for one in found.assumptions))


def outcomes(plan: PlanData) -> dict[str, Any]:
    """All that a plan comes to, without what people read of assumptions."""
    data = plan.to_json()
    names = ("order", "optimality", "orders", "left", "measurements", "accounts", "conditional", "survives")
    found = {name: data[name] for name in names if name in data}
    proofs = [(str(v.claim), v.status, v.reach, v.local_rewrite, v.assumptions) for v in plan.verdicts if v.proved]
    return {**found, "proofs": proofs}


SETS: dict[str, tuple[list[Technique], str]] = {
    "rest": ([P, Q, D], "output_l2"),
    "low rank": ([Q, L, D], "output_l2"),
    "inputs": ([P, Q, X], "output_l2"),
    "inputs and a correction": ([Q, D, X], "output_l2"),
    "basis": ([D, H], "output_l2"),
    "basis and weights": ([Q, L, H], "weight_l2"),
    "trained": ([P, Q, LoRA(rank=1, iterations=1)], "output_l2"),
}


@pytest.mark.parametrize("name", SETS)
def test_noise_in_place_of_sentences_changes_no_search(name: str) -> None:
    techniques, loss = SETS[name]
    plain, with_noise = (
        search(techniques, loss, LayerBench(techniques), prover=prover)
        for prover in (by_rules, lambda *asked: noisy(by_rules(*asked)))
    )
    assert outcomes(plain) == outcomes(with_noise)
    assert sum(v.proved for v in plain.verdicts) > 1


@pytest.mark.parametrize("held", [12, 8])
def test_noise_changes_nothing_under_conditions(held: int) -> None:
    plain, with_noise = (
        search([EVEN, EIGHT], "output_l2", Covered(held, (1.0, 1.5)), prover=prover)
        for prover in (by_rules, lambda *asked: noisy(by_rules(*asked)))
    )
    assert outcomes(plain) == outcomes(with_noise)
    assert plain.orders["dropped"] == 1 and len(with_noise.conditional) == 2


def test_noise_changes_nothing_on_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def found(change: Callable[[Verdict], Verdict]) -> dict[str, Any]:
        def asked(claim: Claim, scope: Scope, **options: Any) -> Verdict:
            return change(prove(claim, scope, **{**options, "stages": ("rule",)}))

        monkeypatch.setattr("compcomp.proving.prove.prove", asked)
        inputs = [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]
        return outcomes(optimize_order([P, Q, D], model=network(), calibration=inputs, device="cpu"))

    plain = found(lambda verdict: verdict)
    assert plain == found(noisy) and plain["orders"]["dropped"] + plain["orders"]["merged"] > 0


@pytest.mark.parametrize("scope", ["block:4", "1x4"])
@pytest.mark.parametrize("techniques", [[Magnitude("1/2", pattern="2:4"), AbsMax(3, group=4)], [P, AbsMax(3)]])
def test_noise_changes_nothing_of_proofs_at_one_scope(techniques: list[Technique], scope: str) -> None:
    claim = dominates(techniques[0] >> techniques[1], techniques[1] >> techniques[0], loss="weight_l1")
    found = prove(claim, scope, stages=("bounded",), second=None, explain=False)
    assert found.proved
    for shapes in (None, [(1, 4)], [(2, 8)], [(3, 6)]):
        dropped = [Orderings(techniques, "weight_l1", shapes).drop(v) for v in (found, *map(noisy, [found] * 9))]
        assert len(set(dropped)) == 1
        local = techniques[0] != P
        wanted = shapes == [(1, 4)] if scope == "1x4" else bool(shapes) and shapes != [(3, 6)]
        assert dropped[0] == (wanted and (local or scope == "1x4")), (shapes, found.assumptions)


# --------------------------------------------------------------------------------------------- each kind


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_that_restricts_must_be_known_to_hold(kind: Kind) -> None:
    """An assumption counts as restricting unless it says that it does not, which only four kinds may say."""
    claim = equal(P >> Q, Q >> P)
    one = Assumption(kind, FORMER[0], technique="T", about="x")
    found = verdict(claim, Status.PROVED, assumptions=(one,))
    other = Assumption(kind, one.text, technique="T", about="y")
    assert not covers(found, None) and not covers(found, None, held={other}) and covers(found, None, held={one})
    assert not Orderings([P, Q], "weight_l2").merge(found)
    if kind in OF_EVERY_LAYER:
        assert covers(verdict(claim, Status.PROVED, assumptions=(replace(one, restricts=False),)), None)


def test_a_sentence_alone_restricts_whatever_it_says() -> None:
    for text in FORMER:
        found = verdict(equal(P >> Q, Q >> P), Status.PROVED, assumptions=(text,))
        assert not covers(found, None, held={DENSE_INPUTS, SAME_BASIS})
        assert not Orderings([P, Q], "weight_l2").covered(found)


def test_what_a_search_knows_to_hold_hangs_on_its_techniques() -> None:
    for techniques in ([P, Q], [P, X], [P, H], [X, H]):
        held = Orderings(techniques, "output_l2").held
        assert (DENSE_INPUTS in held) == (X not in techniques) and (SAME_BASIS in held) == (H not in techniques)


# ----------------------------------------------------------------------------------- those that proofs have


def formerly_free(text: str) -> bool:
    """Whether it restricts no layer, by the rule on sentences that the data stands for now."""
    free = ("without loss of generality ", "the layer splits into independent blocks ")
    return text == FORMER[0] or text.endswith(" (its contract)") or text.startswith(free)


def test_the_assumptions_of_proofs_restrict_as_their_kinds_do() -> None:
    kinds = set[Kind]()
    for text, loss, scope, status in CLAIMS[::6]:
        if status != "PROVED":
            continue
        found = prove(parse_claim(text, loss), scope, stages=("rule",), second=None, explain=False)
        for one in found.assumptions:
            kinds.add(one.kind)
            assert one.restricts == (one.kind not in OF_EVERY_LAYER) and one.kind is not Kind.OTHER
            assert one.restricts != formerly_free(one.text), one
        assert len(set(found.assumptions)) == len({one.text for one in found.assumptions}), (
            "distinguished by their data"
        )
    assert kinds >= {Kind.EXACT, Kind.CONTRACT}


def test_a_proof_that_depends_on_dense_inputs_is_not_used_where_they_change() -> None:
    found = prove(dominates(Q >> L, Q, loss="output_l2"), stages=("rule",), second=None, explain=False)
    assert found.proved and found.local_rewrite
    for order in permutations([Q, L, X]):
        orderings = Orderings(order, "output_l2")
        assert not (DENSE_INPUTS in found.assumptions and orderings.covered(noisy(found)))
    assert Orderings([Q, L], "output_l2").covered(noisy(found))

"""An assumption is distinguished by its data, and none that may restrict layers can be said not to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compcomp.errors import InputError
from compcomp.language.assumption import OF_EVERY_LAYER, TEXTS, Assumption, Kind, assumption, contract
from compcomp.language.claim import Scope, dominates, keeps
from compcomp.language.conditions import conditions
from compcomp.language.verdict import Status, Verdict
from compcomp.techniques import AbsMax, Magnitude, PruneNeurons

P, Q = Magnitude("1/2"), AbsMax(bits=4)
EACH = [assumption(kind, "T", "x") for kind in TEXTS]


def proof(*assumptions: Any) -> Verdict:
    return Verdict(dominates(P >> Q, Q >> P), Scope.of("any"), Status.PROVED, assumptions=assumptions)


@pytest.mark.parametrize("one", EACH, ids=lambda one: one.kind)
def test_the_text_is_for_people_alone(one: Assumption) -> None:
    other = replace(one, text="noise")
    assert other == one and hash(other) == hash(one) and str(other) == "noise" and {one: 1}[other] == 1
    assert replace(one, technique="U") != one and replace(one, about="y") != one
    assert one.restricts == (one.kind not in OF_EVERY_LAYER)
    assert Assumption.from_json(json.loads(json.dumps(one.to_json())), one.text) == one


def test_assumptions_of_two_kinds_are_two() -> None:
    assert len(set(EACH)) == len(EACH) == len(Kind) - 2, "a condition has a text of its own, and what is not known"


@pytest.mark.parametrize("kind", Kind)
def test_it_restricts_unless_it_is_known_not_to(kind: Kind) -> None:
    assert Assumption(kind, "text").restricts
    if kind in OF_EVERY_LAYER:
        assert not Assumption(kind, "text", restricts=False).restricts
    else:
        with pytest.raises(InputError, match="restricts=False"):
            Assumption(kind, "text", restricts=False)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "no kind"}, {"kind": None}, {"text": 3}, {"technique": 3}, {"about": None}, {"restricts": None}],
    ids=str,
)
def test_what_is_no_assumption(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Assumption"):
        Assumption(**{"kind": Kind.EXACT, "text": "text", **wrong})


def test_braces_in_a_technique_stay() -> None:
    assert str(contract("Own(of='{x}')", "keeps {y}")) == "Own(of='{x}') keeps {y} (its contract)"


def test_conditions_are_distinguished_by_their_parameters() -> None:
    boxes = [conditions(f"box(radius=1, around=(({weight}, 2),))")[0] for weight in (1, 3)]
    assert boxes[0].assumption.text == boxes[1].assumption.text and boxes[0].assumption != boxes[1].assumption


def test_techniques_that_share_units_are_one_kind() -> None:
    claim = keeps(P >> PruneNeurons("1/2"), "mask")
    assert claim.coupling and {one.kind for one in claim.coupling} == {Kind.WHOLE_MODEL}
    assert all(one.technique == str(PruneNeurons("1/2")) for one in claim.coupling)


def test_a_verdict_takes_a_sentence_for_one_of_which_nothing_is_known() -> None:
    (one,) = proof("exact arithmetic (reals, not floats)").assumptions
    assert one.kind is Kind.OTHER and one.restricts and one != assumption(Kind.EXACT)
    assert proof("one", "two").assumptions[0] != proof("one", "two").assumptions[1]
    for wrong in ((3,), (None,), ("text", 3)):
        with pytest.raises(InputError, match="an Assumption"):
            proof(*wrong)
    with pytest.raises(InputError, match="a tuple of Assumption"):
        Verdict(dominates(P, Q), Scope.of("any"), Status.PROVED, assumptions="text")  # type: ignore[arg-type]


def test_what_is_printed_holds_texts_and_data() -> None:
    verdict = proof(*EACH)
    data = verdict.to_json()
    assert data["assumptions"] == [one.text for one in EACH]
    assert list(map(Assumption.from_json, data["assumed"], data["assumptions"])) == EACH


def test_parts_are_found_in_the_text() -> None:
    assert "exact arithmetic" in assumption(Kind.EXACT) and "floats only" not in assumption(Kind.EXACT)

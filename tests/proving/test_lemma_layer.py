"""Layers on which the lemma of a refusal fails, run again in exact numbers."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import compcomp as cc
from compcomp.language.query import Query
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.text import parse_claim
from compcomp.layers.state import LayerState
from compcomp.proving import lemma_layer, why
from compcomp.proving.lemma_layer import with_layer
from compcomp.proving.prove import prove

P, Q, W, N = (
    "Magnitude(sparsity=1/2)",
    "AbsMax(bits=4)",
    "Wanda(sparsity=1/2)",
    "Magnitude(sparsity=1/2, pattern='2:4')",
)

SHOWN = [
    ("pair", f"{Q} >> {P} dominates {P} >> {Q}", "weight_l2"),
    ("pair", f"{Q} >> {P} dominates {P} >> {Q}", "weight_l1"),
    ("kept", "AbsMax(bits=4) dominates AbsMax(bits=5)", "weight_l2"),
    ("kept", f"{P} >> {Q} dominates {P}", "weight_l2"),
    ("kept", f"AbsMax(bits=4, group=4) dominates {N}", "weight_l2"),
    ("same value", "AbsMax(bits=5) >> AbsMax(bits=4) equals AbsMax(bits=4)", "weight_l2"),
    ("same value", f"{W} >> {Q} equals {Q} >> {W}", "weight_l2"),
    ("no pair", f"{P} >> {Q} equals {Q} >> {P}", "weight_l2"),
    ("no pair", f"{N} >> {Q} equals {Q} >> {N}", "weight_l2"),
    ("no pair", f"Magnitude(sparsity=1/2, ties='any') equals {P}", "weight_l2"),
]


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give more seconds than a busy machine needs."""
    for name in ("ADVICE_SECONDS", "VALUE_SECONDS", "LAYER_SECONDS"):
        monkeypatch.setattr(why, name, 100.0)


def matrix(rows: Any) -> Any:
    return np.array([list(row) for row in rows], dtype=object)


def of_rules(text: str, loss: str) -> list[Refusal]:
    return [a.refusal for a in cc.why(parse_claim(text, loss)) if a.refusal is not None]


@pytest.mark.parametrize(("lemma", "text", "loss"), SHOWN)
def test_the_lemma_fails_on_the_layer(lemma: str, text: str, loss: str) -> None:
    found = [r for r in of_rules(text, loss) if r.lemma is not None and r.lemma.name == lemma]
    assert found and all(r.layer is not None for r in found), found
    claim, refusal = parse_claim(text, loss), found[0]
    assert refusal.layer is not None and len(refusal.layer) == 1
    assert f"on the layer ({', '.join(map(str, refusal.layer[0]))})" in str(refusal)
    assert Refusal.from_json(json.loads(json.dumps(refusal.to_json()))) == refusal
    values = {name: Fraction(value) for name, value in refusal.values}
    inputs = None if refusal.inputs is None else matrix(refusal.inputs)
    assert (inputs is None) == (not claim.needs_inputs)
    if not claim.is_deterministic:
        return
    ends = [s.trace(LayerState.dense(matrix(refusal.layer), inputs))[-1] for s in claim.sequences]
    left, right = (list(end.effective()[0]) for end in ends)
    kept = [[True] * len(left) if e.format.mask is None else list(e.format.mask[0]) for e in ends]
    power = 1 if loss == "weight_l1" else 2
    shows = []
    for k, b in enumerate(refusal.layer[0]):
        if b != values["b"] or left[k] != values["A(b)"] or right[k] != values["B(b)"]:
            continue
        if lemma in ("kept", "same value"):
            worse = abs(b - left[k]) > abs(b - right[k])
            shows.append(kept[0][k] and kept[1][k] and (worse if lemma == "kept" else left[k] != right[k]))
            continue
        for j, a in enumerate(refusal.layer[0]):
            if a == values["a"] and not kept[0][j] and kept[1][j] and kept[0][k] and not kept[1][k]:
                one = abs(a) ** power + abs(b - left[k]) ** power
                shows.append(lemma == "no pair" or one > abs(a - right[j]) ** power + abs(b) ** power)
    assert any(shows), refusal


FORGED = [
    ("pair", f"{P} >> {Q} dominates {Q} >> {P}", (("a", "1/4"), ("b", "1/2"), ("scale", "1"))),
    ("kept", f"{P} >> {Q} dominates {Q} >> {P}", (("b", "1/2"), ("scale", "1"))),
    ("same value", "AbsMax(bits=4) >> AbsMax(bits=4) equals AbsMax(bits=4)", (("b", "1/2"), ("scale", "1"))),
    ("no pair", f"{P} >> {P} equals {P}", (("a", "0"), ("b", "0"))),
    ("kept", f"{W} dominates {W} >> {Q}", (("b", "1/2"), ("h_b", "7/3"))),
]


@pytest.mark.parametrize(("lemma", "text", "values"), FORGED)
def test_no_layer_shows_that_a_true_lemma_fails(lemma: str, text: str, values: tuple[tuple[str, str], ...]) -> None:
    claim = parse_claim(text)
    assert prove(claim, second=None).proved
    forged = Refusal("forged", "exchange", Reached.LEMMA, Query(lemma, "", "unsat", "sat", "z3", 1), values)
    assert with_layer(claim, forged, time.monotonic() + 3) == forged


def test_conditions_hold_on_the_layer() -> None:
    """Of equal magnitudes some go by their place: under no_ties such a layer is none."""
    text = f"Magnitude(sparsity=1/2, ties='any') equals {P}"
    values = (("a", "1"), ("b", "1"))
    refusal = Refusal("forged", "same", Reached.LEMMA, Query("no pair", "", "unsat", "sat", "z3", 1), values)
    assert with_layer(parse_claim(text), refusal, time.monotonic() + 60).layer is not None
    assert with_layer(parse_claim(f"{text} given no_ties"), refusal, time.monotonic() + 3).layer is None


@pytest.mark.parametrize("norm2", [Fraction(p, q) for p in range(40) for q in (1, 2, 3, 7)])
def test_norms_of_inputs_are_exact(norm2: Fraction) -> None:
    squares = lemma_layer._squares(norm2)
    assert 1 <= len(squares) <= 4 and sum(x * x for x in squares) == norm2


def test_an_unknown_verdict_names_the_layer_and_the_search_looks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = parse_claim(SHOWN[0][1])
    verdict = prove(claim, stages=("rule",), second=None)
    assert verdict.tried[0].layer is not None and "on the layer (" in verdict.cause

    def refused(*given: Any) -> Refusal:
        raise AssertionError(given)

    monkeypatch.setattr(why, "with_layer", refused)
    assert prove(claim, stages=("rule",), second=None, explain=False).tried[0].layer is None

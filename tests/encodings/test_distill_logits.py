from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import z3

from compcomp.language.text import parse_claim, parse_sequence
from compcomp.language.verdict import Status
from compcomp.layers.state import LayerState
from compcomp.proving.prove import prove
from compcomp.techniques import AbsMax, DistillHidden, DistillLogits, Magnitude, TruncatedSVD
from compcomp.terms import RandomChoices, SymbolicChoices
from tests.helpers import HUGE, layer, matrix, refused

INPUTS = [[1, 2], [0, 1], [2, 0], [1, 1]]
WEIGHT = [[3, 1, -2, 4], [2, 5, 1, -1]]
KINDS = [DistillLogits, DistillHidden]
P, Q = Magnitude("1/2"), AbsMax(bits=3)


def start(*techniques: Any, seed: int | None = None) -> LayerState:
    state = layer(WEIGHT, INPUTS)
    for technique in techniques:
        state = technique.encode(state)
    return state if seed is None else replace(state, choices=RandomChoices(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_any_weights_within_the_mask(kind: Any) -> None:
    technique, seen = kind(5), set()
    for seed in range(20):
        before = start(P, seed=seed)
        after = technique.encode(before)
        assert before.format.mask is not None
        assert all(after.weight[~before.format.mask.astype(bool)] == 0)
        assert bool(technique.feasible(before, after))
        seen.add(tuple(after.weight.ravel()))
    assert len(seen) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_and_factors_stay(kind: Any) -> None:
    technique = kind(5)
    quantized = start(Q, seed=1)
    assert technique.encode(quantized) is quantized
    corrected = start(P, TruncatedSVD(rank=1, residual=True), seed=1)
    assert technique.encode(corrected).format.factors is corrected.format.factors


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_feasible(kind: Any) -> None:
    technique, before, quantized = kind(5), start(P), start(Q)
    ones = replace(before, weight=before.weight + 1)
    for wrong in (
        ones,
        replace(before, format=replace(before.format, mask=None)),
        replace(before, reference=before.reference + 1),
        replace(before, gram=None),
    ):
        assert not bool(technique.feasible(before, wrong))
    moved = replace(quantized, weight=quantized.weight * 2)
    assert not bool(technique.feasible(quantized, moved)) and bool(technique.feasible(quantized, quantized))


def test_symbols_are_fresh_and_free() -> None:
    """Two runs from one state need not agree, and every outcome that is feasible is one that z3 allows."""
    weight = np.array([z3.Reals("a b")], dtype=object)
    mask = np.array([[True, False]], dtype=object)
    choices = SymbolicChoices()
    before = LayerState(weight, weight, gram=matrix([[1, 0], [0, 1]]), choices=choices)
    before = replace(before, format=replace(before.format, mask=mask))
    one, other = (DistillLogits(1).encode(before) for _ in range(2))
    solver = z3.Solver()
    assert not choices.premises
    assert solver.check(one.weight[0, 0] == 5, other.weight[0, 0] == -7, weight[0, 0] == 0) == z3.sat
    assert one.weight[0, 1] == 0


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        ("Magnitude(sparsity=1/2) >> {D} keeps mask", Status.PROVED),
        ("AbsMax(bits=4) >> {D} keeps grid", Status.PROVED),
        ("TruncatedSVD(rank=1) >> {D} keeps rank", Status.REFUTED),
        ("{D} equals {D}", Status.REFUTED),
        ("Magnitude(sparsity=1/2) >> {D} dominates Magnitude(sparsity=1/2)", Status.REFUTED),
        ("Magnitude(sparsity=1/2) dominates Magnitude(sparsity=1/2) >> {D}", Status.REFUTED),
        ("{D} >> Magnitude(sparsity=1/2) dominates Magnitude(sparsity=1/2) >> {D}", Status.REFUTED),
    ],
)
def test_a_claim_holds_only_for_every_outcome(claim: str, status: Status) -> None:
    verdict = prove(parse_claim(claim.replace("{D}", "DistillLogits(iterations=3)"), "output_l2"))
    assert verdict.status is status
    assert not verdict.proved or any(a.kind == "whole model" for a in verdict.assumptions)


def test_text_and_parameters() -> None:
    technique = DistillLogits(100, rate="3/1000", temperature=2, targets="self", seed=7)
    text = "DistillLogits(iterations=100, rate=3/1000, temperature=2, targets='self', seed=7)"
    assert str(technique) == text and parse_sequence(text).techniques == (technique,)
    assert parse_sequence("DistillHidden(iterations=5, rate=0.01)").techniques == (DistillHidden(5, Fraction(1, 100)),)
    for kind in KINDS:
        for wrong in (
            {"iterations": 0},
            {"iterations": 1.5},
            {"iterations": 5, "rate": 0},
            {"iterations": 5, "rate": 2},
        ):
            refused(lambda kind=kind, wrong=wrong: kind(**wrong), kind.__name__)
        refused(lambda kind=kind: kind(5, targets="labels"), "'data', 'self'")
        refused(lambda kind=kind: kind(5, seed=-1), "seed")
        refused(lambda kind=kind: kind(5).encode(layer(WEIGHT)), "calibration inputs")
    for wrong in (0, -1, 101, "hot"):
        refused(lambda wrong=wrong: DistillLogits(5, temperature=wrong), "temperature")


@pytest.mark.parametrize("value", [HUGE])
def test_huge_numbers_are_refused(value: int) -> None:
    refused(lambda: DistillLogits(value), "whole number")

"""Changes of basis: what is proved of them, and what would be wrongly proved if rules did not know of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compcomp.checking.directory import check_directory
from compcomp.language.assumption import Kind
from compcomp.language.claim import Claim, dominates, equal, keeps
from compcomp.language.loss import LOSSES
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Status, Verdict
from compcomp.layers.state import Format, LayerState
from compcomp.ordering.dag import Orderings
from compcomp.ordering.screen import generated
from compcomp.proving.meaning import fails
from compcomp.proving.proof import DENSE_INPUTS, SAME_BASIS
from compcomp.proving.prove import prove
from compcomp.techniques import (
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    Hadamard,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    SmoothQuant,
    TruncatedSVD,
    Wanda,
)
from tests.amount import spread

S, S2, H = "SmoothQuant()", "SmoothQuant(scales='power_of_two')", "Hadamard(block=4)"
P, Q, N = "Magnitude(sparsity=1/2)", "AbsMax(bits=4)", "Magnitude(sparsity=1/2, pattern='2:4')"
D, L, V = "LeastSquaresDistill()", "TruncatedSVD(rank=1, residual=True)", "TruncatedSVD(rank=1)"
X = "AbsMaxInputs(bits=4)"


def ruled(claim: Claim) -> Verdict:
    return prove(claim, "any", stages=("rule",), second=None, explain=False)


PROVED = [
    # A change of basis changes no loss.
    *((f"{t} dominates identity", loss) for t in (S, H) for loss in LOSSES),
    *((f"identity dominates {t}", loss) for t in (S2, H, f"{H} >> {S}") for loss in LOSSES),
    (f"{P} >> {Q} >> {S} dominates {Q} >> {P} >> {H}", "weight_l2"),
    (f"{P} >> {X} >> {H} dominates {Q} >> {P}", "weight_l2"),
    (f"{P} >> {Q} >> {X} >> {S} dominates {Q} >> {X} >> {P} >> {S}", "weight_l1"),
    (f"{P} is orthogonal to {Q} >> {S}", "weight_l1"),
    # It leaves the effective weight and the inputs alone.
    *((f"{t} equals identity", "weight_l2") for t in (S, H)),
    # What is done in the basis that is there.
    (f"{S} >> {D} equals {S}", "output_l2"),
    (f"{D} >> {H} >> {L} equals {H}", "output_l2"),
    (f"{S} >> {P} >> {D} dominates {S} >> {P}", "output_l2"),
    (f"{H} >> {P} >> {L} dominates {H} >> {P}", "output_l2"),
    (f"{S} >> {P} >> {P} equals {S} >> {P}", "weight_l2"),
    (f"{H} >> {Q} >> {Q} equals {H} >> {Q}", "weight_l2"),
    (f"{H} >> {P} >> {X} equals {H} >> {X} >> {P}", "weight_l2"),
    # What survives.
    (f"{P} >> {S} >> {Q} >> {D} keeps mask", "weight_l2"),
    (f"{Q} >> {S} >> {P} keeps grid", "weight_l2"),
    (f"MinMax(bits=4) >> {S} keeps grid", "weight_l2"),
    (f"{V} >> {S} >> {H} keeps rank", "weight_l2"),
]

REFUTED = [
    (f"{S} same state as identity", "weight_l2"),
    (f"{H} same state as identity", "weight_l2"),
    *((f"{a} >> {Q} dominates {Q} >> {a}", loss) for a in (S, S2, H) for loss in ("weight_l2", "output_l2")),
    *((f"{Q} >> {a} dominates {a} >> {Q}", loss) for a in (S, S2, H) for loss in ("weight_l2", "output_l2")),
    # Both proved without the change of basis.
    (f"{S} >> {P} >> {Q} dominates {S} >> {Q} >> {P}", "weight_l2"),
    (f"{H} >> {P} >> {Q} dominates {H} >> {Q} >> {P}", "weight_l1"),
    (f"{P} >> {S2} is orthogonal to {Q}", "weight_l1"),
    (f"{H} >> {X} equals {X} >> {H}", "weight_l2"),
    (f"{P} >> {H} keeps mask", "weight_l2"),
    (f"{N} >> {H} keeps n:m", "weight_l2"),
    (f"{Q} >> {H} keeps grid", "weight_l2"),
]


@pytest.mark.parametrize(("text", "loss"), PROVED)
def test_what_is_proved_for_any_shape(text: str, loss: str) -> None:
    verdict = prove(parse_claim(text, loss), "any", second=None)
    assert verdict.proved, verdict.cause or verdict.reason


@pytest.mark.parametrize(("text", "loss"), REFUTED)
def test_what_is_refuted_with_a_witness(text: str, loss: str) -> None:
    verdict = prove(parse_claim(text, loss), "any", search_seconds=10, second=None)
    assert verdict.refuted and verdict.witness is not None, verdict.cause


def test_at_one_shape_a_rotation_has_a_formula_without_reductions() -> None:
    verdict = prove(parse_claim(f"identity dominates {H} >> {P}", "weight_l1"), "1x4", stages=("bounded",), second=None)
    assert verdict.proved and not any(a.kind is Kind.WITHOUT_LOSS for a in verdict.assumptions)
    wrong = prove(parse_claim(f"{H} >> {P} dominates {P}", "weight_l1"), "1x4", stages=("bounded",), second=None)
    assert wrong.refuted


@pytest.mark.parametrize(
    "first", [S, S2, "SmoothQuant(alpha=1)", "AWQ(alphas=(0, 1), group=None)", "Hadamard(block=2)"]
)
@pytest.mark.parametrize("scope", ["any", "1x4", "block:4"])
@pytest.mark.parametrize("given", ["", " given diagonal_gram", " given no_ties"])
def test_what_has_no_formula_is_unknown(first: str, scope: str, given: str) -> None:
    """Roots, and scales that a Gram matrix does not tell: a formula has some number of tokens."""
    claim = parse_claim(f"AbsMax(bits=4) dominates {first} >> {P}{given}", "weight_l1")
    verdict = prove(claim, scope, stages=("rule", "bounded"), second=None)
    assert verdict.status is Status.UNKNOWN and verdict.cause
    if scope != "any":
        assert ("number of tokens" in verdict.cause) or ("no formula" in verdict.cause and first[0] == "H")


def test_a_claim_that_holds_for_few_tokens_is_not_proved() -> None:
    """Of one token mean and largest magnitudes are the same, of two they are not."""
    mean, largest = "AWQ(alphas=(1,), group=None)", "SmoothQuant(alpha=1)"
    verdict = prove(parse_claim(f"{mean} same state as {largest}"), "1x1", search_seconds=5, second=None)
    assert verdict.refuted and verdict.witness is not None and verdict.witness.inputs is not None
    assert len(verdict.witness.inputs[0]) > 1
    unsearched = prove(parse_claim(f"{mean} same state as {largest}"), "1x1", stages=("rule", "bounded"), second=None)
    assert unsearched.status is Status.UNKNOWN


# What the guard is for. A technique that does not say that it changes the basis leads every rule astray.


@dataclass(frozen=True)
class SilentScaling(SmoothQuant):
    def promises(self) -> Declared:
        return replace(super().promises(), changes_basis=False)


@dataclass(frozen=True)
class SilentRotation(Hadamard):
    def promises(self) -> Declared:
        return replace(super().promises(), changes_basis=False)


@dataclass(frozen=True)
class Turned(Technique):
    """Turns the errors of each row round: weight_l2 is what it was, in the basis that is there."""

    def promises(self) -> Declared:
        return Declared(never_increases=frozenset({"weight_l2"}))

    def encode(self, layer: LayerState) -> LayerState:
        return replace(layer, weight=layer.reference + (layer.weight - layer.reference)[:, ::-1], format=Format())


HALF, FOUR, FIT = Magnitude("1/2"), AbsMax(4), Turned()
ROUNDED = AbsMaxInputs(4)


def claims_led_astray(scaling: Technique, rotation: Technique) -> list[Claim]:
    return [
        dominates(scaling >> HALF >> FIT, scaling >> HALF, loss="weight_l2"),
        dominates(HALF >> scaling >> FOUR >> FIT, HALF >> scaling >> FOUR, loss="weight_l2"),
        equal(rotation >> ROUNDED, ROUNDED >> rotation),
    ]


SILENT = claims_led_astray(SilentScaling(scales="power_of_two"), SilentRotation(4))
DECLARED = claims_led_astray(SmoothQuant(scales="power_of_two"), Hadamard(4))


@pytest.mark.parametrize(("silent", "declared"), list(zip(SILENT, DECLARED, strict=True)), ids=map(str, DECLARED))
def test_what_the_guard_keeps_from_being_proved(silent: Claim, declared: Claim) -> None:
    assert ruled(silent).proved
    assert not ruled(declared).proved
    assert mistaken(declared, dense())


def test_an_improvement_of_weights_is_none_in_another_basis() -> None:
    verdict = ruled(dominates(FOUR >> FIT, FOUR, loss="weight_l2"))
    assert verdict.local_rewrite and SAME_BASIS in verdict.assumptions
    with np.errstate(all="ignore"):
        assert mistaken(verdict.claim, SmoothQuant().encode(dense()))
    for more, used in ((Wanda("1/2"), True), (SmoothQuant(), False), (Hadamard(4), False)):
        assert Orderings([FOUR, FIT, more], "weight_l2").improves_last(verdict) is used
    corrected = FOUR >> TruncatedSVD(1, residual=True)
    outputs = ruled(dominates(corrected, FOUR, loss="output_l2"))
    assert Orderings([*corrected, SmoothQuant()], "output_l2").improves_last(outputs)


# Whatever rules prove holds on generated layers, and where it is said to, from states in another basis.

SHAPE, LAYERS = (3, 4), 24
FAMILY: list[Technique] = [
    SmoothQuant(),
    SmoothQuant("1/4", scales="power_of_two"),
    Hadamard(4),
    Magnitude("1/2"),
    Magnitude("1/4", of="dense"),
    Wanda("1/2"),
    AbsMax(4),
    AbsMax(3, group=2),
    MinMax(3, zero="none"),
    ApplyMask(),
    TruncatedSVD(1, residual=True),
    TruncatedSVD(1),
    LeastSquaresDistill(),
    AbsMaxInputs(4),
    Turned(),
]


@cache
def dense() -> LayerState:
    return generated(SHAPE, FAMILY, np.random.default_rng(0), layers=LAYERS)


@cache
def elsewhere() -> list[tuple[Sequence, LayerState]]:
    """States in another basis."""
    prefixes: list[tuple[Technique, ...]] = [(FAMILY[0],), (FAMILY[2],), (FAMILY[3], FAMILY[0]), (FAMILY[0], FAMILY[6])]
    prefixes += [(FAMILY[2], FAMILY[6], FAMILY[0]), (FAMILY[10], FAMILY[1]), (FAMILY[2], FAMILY[13])]
    with np.errstate(all="ignore"):
        return [(Sequence(prefix), Sequence(prefix).encode(dense())) for prefix in prefixes]


def mistaken(claim: Claim, state: LayerState, tolerance: float = 1e-6) -> bool:
    """Whether the claim fails from this state, on some layer."""
    with np.errstate(all="ignore"):
        runs = [sequence.trace(state) for sequence in claim.sequences]
        found: Any = fails(claim, runs, tolerance)
    return bool(np.any(getattr(found, "values", found)))


def claims() -> list[Claim]:
    changing, random = FAMILY[:3], np.random.default_rng(1)
    found: list[Claim] = []
    for t in changing:
        for a, b in product(FAMILY, repeat=2):
            for order in ((t, a, b), (a, t, b), (a, b, t)):
                whole, shorter = Sequence(order), [Sequence(order[:2]), Sequence((a, b)), Sequence((order[0],))]
                others = [*shorter, Sequence((order[1], order[0], order[2])), Sequence((order[0], order[2], order[1]))]
                other = others[random.integers(len(others))]
                loss = ("weight_l1", "weight_l2", "output_l2")[random.integers(3)]
                found += [equal(whole, other), dominates(whole, other, loss=loss), dominates(other, whole, loss=loss)]
                if all(t.steps() or t.promises().changes_basis for t in order):  # others leave no zeros in floats
                    found += [keeps(whole, name) for name in ("mask", "grid")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", spread(range(17), 1))
def test_what_is_proved_of_changes_of_basis_holds(part: int) -> None:
    counts = {"equal": 0, "dominates": 0, "keeps": 0}
    for claim in claims()[part::17]:
        verdict = ruled(claim)
        if not verdict.proved:
            continue
        counts[claim.kind] += 1
        if any("divides input features" in str(one) for one in verdict.assumptions):
            continue  # scores that tie exactly do not in floats: tests/proving/test_scaling.py has exact numbers
        assert not mistaken(claim, dense()), f"{claim}: {verdict.reason}"
        if verdict.local_rewrite and SAME_BASIS not in verdict.assumptions:
            for prefix, state in elsewhere():
                dense_inputs = DENSE_INPUTS in verdict.assumptions
                if not (dense_inputs and prefix.changes_inputs):
                    assert not mistaken(claim, state), f"{claim} after {prefix}: {verdict.reason}"
    assert all(count > 10 for count in counts.values()), counts


def test_what_is_proved_from_every_state_holds_in_another_basis() -> None:
    """Claims without any change of basis, from states that one has led to."""
    found = needed = 0
    for a, b in product(FAMILY[3:], repeat=2):
        sides = [equal(a >> b, a), equal(a >> b, b >> a), dominates(a >> b, a, loss="weight_l2")]
        for claim in [*sides, dominates(a >> b, a, loss="output_l2")]:
            verdict = ruled(claim)
            if not verdict.local_rewrite:
                continue
            found += 1
            for prefix, state in elsewhere():
                if DENSE_INPUTS in verdict.assumptions and prefix.changes_inputs:
                    continue
                if SAME_BASIS in verdict.assumptions:
                    needed += mistaken(claim, state)
                else:
                    assert not mistaken(claim, state), f"{claim} after {prefix}: {verdict.reason}"
    assert found > 30 and needed


def test_a_saved_witness_is_replayed_without_the_prover(tmp_path: Path) -> None:
    for number, text in enumerate(
        (f"{S2} >> {Q} dominates {Q} >> {S2}", f"{H} same state as identity", f"{P} >> {H} keeps mask")
    ):
        verdict = prove(parse_claim(text, "output_l2"), "any", search_seconds=10, second=None)
        assert verdict.refuted
        report = check_directory(verdict.save(tmp_path / str(number)))
        assert report.outcome == "valid", report

"""Scalings before selections: what may be left out of claims about losses and equality, and what sees the scale."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compcomp.checking.directory import check_directory
from compcomp.language.claim import dominates, equal, orthogonal
from compcomp.language.loss import LOSSES
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.text import parse_claim
from compcomp.layers.basis import Scaling
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules.basis import simplified
from compcomp.proving.rules.scaling import invariant
from compcomp.techniques import RIA, AbsMax, GradualMagnitude, Hadamard, Magnitude, TruncatedSVD, Wanda
from compcomp.terms import Abs
from tests.helpers import layer

S, A, H = "SmoothQuant()", "AWQ(alphas=(0, 1), group=None)", "Hadamard(block=4)"
W, P, Q = "Wanda(sparsity=1/2)", "Magnitude(sparsity=1/2)", "AbsMax(bits=4)"

PROVED = [
    *((f"{t} >> {W} dominates {W}", loss) for t in (S, A) for loss in ("output_l2", "weight_l2")),
    *((f"{W} dominates {t} >> {W}", loss) for t in (S, A) for loss in ("output_l2", "weight_l1")),
    (f"{S} >> {W} dominates {A} >> {W} >> {H}", "output_l2"),
    (f"{S} >> Wanda(sparsity=1/4) >> {A} >> {W} dominates {W}", "output_l2"),
    (f"{S} >> Wanda(sparsity=Any, pattern='unstructured') dominates Wanda(sparsity=Any)", "output_l2"),
    *((f"{t} >> {W} equals {W}", "weight_l2") for t in (S, A)),
    (f"{S} >> {W} equals {A} >> {W} >> {H}", "weight_l2"),
    (f"{W} equals {S} >> Wanda(sparsity=1/4) >> {A} >> {W}", "weight_l2"),
    ("Magnitude(sparsity=1/2, per='row') dominates SmoothQuant() >> Wanda(sparsity=1/2)", "weight_l2"),
    (f"{P} >> {Q} dominates {Q} >> SmoothQuant() >> Wanda(sparsity=1/2, pattern='2:4')", "weight_l2"),
]

REFUTED = [
    (f"{S} >> {P} dominates {P}", "weight_l2"),  # magnitudes are scaled
    (f"{P} dominates {S} >> {P}", "output_l2"),
    (f"{S} >> {W} >> {Q} dominates {W} >> {Q}", "output_l2"),  # a map comes after it
    (f"{S} >> {W} same state as {W}", "weight_l2"),  # in another basis
    (f"{A} >> {W} same state as {W}", "weight_l2"),
    (f"{S} >> {P} equals {P}", "weight_l2"),
    (f"{S} >> {W} >> {Q} equals {W} >> {Q}", "weight_l2"),
    (f"{H} >> {W} equals {W}", "weight_l2"),
    (f"{S} >> Wanda(sparsity=1/2, ties='any') equals Wanda(sparsity=1/2, ties='any')", "weight_l2"),  # own choices
    (f"{H} >> {W} dominates {W}", "output_l2"),  # a rotation mixes columns
    (f"{W} dominates {H} >> {W}", "weight_l2"),
    (f"{S} >> Magnitude(sparsity=1/2, of='dense') dominates Magnitude(sparsity=1/2, of='dense')", "weight_l2"),
]


@pytest.mark.parametrize(("text", "loss"), PROVED)
def test_what_is_proved(text: str, loss: str) -> None:
    verdict = prove(parse_claim(text, loss), "any", second=None)
    assert verdict.proved, verdict
    assert any("input feature" in str(one) for one in verdict.assumptions)


@pytest.mark.parametrize(("text", "loss"), REFUTED)
def test_what_is_refuted(text: str, loss: str) -> None:
    verdict = prove(parse_claim(text, loss), "any", search_seconds=10, second=None)
    assert verdict.refuted and verdict.witness is not None, verdict


def test_a_certificate(tmp_path: Path) -> None:
    verdict = prove(parse_claim(f"{S} >> {W} dominates {W}", "output_l2"), "any", certify=True)
    assert str(verdict.grade) == "certified"
    assert check_directory(verdict.save(tmp_path / "proof")).outcome == "valid"


def test_conditions_that_see_the_scale_leave_it_in() -> None:
    session = default_prover().session(float("inf"))
    for given, gone in (("", True), (" given diagonal_gram", True), (" given no_ties", False)):
        claim, contracts = simplified(parse_claim(f"{S} >> {W} dominates {W}{given}", "output_l2"), session)
        assert bool(contracts) is gone and claim.changes_basis is not gone


# ------------------------------------------------------------------------------------------- attack


@dataclass(frozen=True)
class Scale(Technique):
    """Input features divided by these numbers, again and again."""

    scales: tuple[Fraction, ...]

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "grid", "rank", "shape"}),
            never_increases=frozenset(LOSSES),
            any_inputs=True,
            holds_reference=True,
            changes_basis=True,
            scales_inputs=True,
        )

    def encode(self, layer: LayerState) -> LayerState:
        columns = layer.weight.shape[1]
        scales = [self.scales[j % len(self.scales)] for j in range(columns)]
        return layer.rebased(Scaling(np.array(scales, dtype=object)))


@dataclass(frozen=True)
class Scored(Technique):
    """A selection by a score of its own in every row."""

    score: Callable[[Element], Any]
    ties: str = "first"

    def steps(self) -> tuple[Selection]:
        return (Selection(self.score, Partition.rows(), Fraction(1, 2), self.ties, needs_inputs=True),)


SCORES: dict[str, Callable[[Element], Any]] = {
    "wanda": lambda e: e.weight * e.weight * e.norm2,
    "minus wanda": lambda e: -e.weight * e.weight * e.norm2,
    "dense wanda": lambda e: e.reference * e.reference * e.norm2,
    "error": lambda e: (e.weight - e.reference) * (e.weight - e.reference) * e.norm2,
    "constant": lambda e: 0 * e.weight,
    "product": lambda e: e.weight * e.reference * e.norm2,
    "magnitude": lambda e: Abs(e.weight),
    "square": lambda e: e.weight * e.weight,
    "norm": lambda e: e.norm2,
    "half of it": lambda e: Abs(e.weight) * e.norm2,
    "square of it": lambda e: e.weight * e.weight * e.norm2 * e.norm2,
    "dense": lambda e: e.reference * e.reference,
}
INVARIANT = ("wanda", "minus wanda", "dense wanda", "error", "constant", "product")


@pytest.mark.parametrize("name", SCORES)
def test_which_scores_are_invariant(name: str) -> None:
    (step,) = Scored(SCORES[name]).steps()
    assert invariant(step, default_prover().session(float("inf"))) is (name in INVARIANT)


SCALES = [Scale(tuple(map(Fraction, scales))) for scales in ((2, 1), (1, "1/3"), (3, "1/2", 1), (5,))]
PRUNERS: list[Technique] = [
    *(Scored(score, ties) for score in SCORES.values() for ties in ("first", "all")),
    Wanda("1/2"),
    Wanda("1/4"),
    Magnitude("1/2"),
    GradualMagnitude("1/2", 2),
    RIA("1/2"),
    AbsMax(3),
    TruncatedSVD(1, residual=True),
    Hadamard(block=1),
]


def exact_layers(count: int) -> list[LayerState]:
    draw = np.random.default_rng(3)
    found = []
    for columns, tokens in itertools.islice(itertools.cycle(((2, 1), (3, 2), (4, 3))), count):
        found.append(
            layer(draw.integers(-3, 4, (2, columns)).tolist(), draw.integers(-2, 3, (columns, tokens)).tolist())
        )
    return found


def results(sequence: Sequence, dense: LayerState) -> list[Any]:
    """All losses, and the effective weight."""
    end = sequence.encode(dense)
    return [*(loss.of(end) for loss in LOSSES.values()), *end.effective().ravel()]


def test_what_is_left_out_changes_no_loss_and_no_effective_weight() -> None:
    """Every sequence of up to three such techniques around scalings, on exact layers; others are seen to matter."""
    session, dense = default_prover().session(float("inf")), exact_layers(3)
    left_out = matters = 0
    pruners = [t for t in PRUNERS if not isinstance(t, RIA | TruncatedSVD)]
    for scale, first, last in itertools.product(SCALES[:1], pruners[::2], pruners[1::8]):
        for techniques in ((scale, first), (first, scale, last), (scale, first, SCALES[2], last)):
            sequence = Sequence(techniques)
            claim = dominates(sequence, Sequence((first,)), "output_l2")
            shorter = simplified(claim, session)[0].left
            assert simplified(equal(sequence, Sequence((first,))), session)[0].left == shorter
            for one in dense:
                if shorter != sequence:
                    assert results(sequence, one) == results(shorter, one), (str(sequence), str(shorter))
            rotated = Sequence((Hadamard(block=4), *techniques)), Sequence((Hadamard(block=4), *shorter))
            if shorter != sequence:  # in another basis as well
                assert results(rotated[0], dense[2]) == results(rotated[1], dense[2]), str(rotated[0])
            left_out += shorter != sequence
            bare = Sequence(tuple(t for t in techniques if not isinstance(t, Scale)))
            if shorter == sequence:
                matters += any(results(sequence, one) != results(bare, one) for one in dense)
    assert left_out > 20 and matters > 20


def test_the_end_of_the_second_part_of_an_orthogonality_claim() -> None:
    session = default_prover().session(float("inf"))
    claim = orthogonal(AbsMax(3), SCALES[0] >> Wanda("1/2"), "output_l2")
    shorter = simplified(claim, session)[0]
    assert str(shorter.right) == "Wanda(sparsity=1/2)" and shorter.left == claim.left
    first = orthogonal(SCALES[0] >> Wanda("1/2"), AbsMax(3), "output_l2")
    assert simplified(first, session)[0].left == first.left  # AbsMax comes after it


@pytest.mark.parametrize("technique", PRUNERS[-4:-1], ids=str)
def test_what_else_comes_after_a_scaling_keeps_it(technique: Technique) -> None:
    session = default_prover().session(float("inf"))
    sequence = SCALES[0] >> technique
    assert simplified(dominates(sequence, Sequence((technique,)), "output_l2"), session)[0].left == sequence

"""Rule (reference): sequences that leave the dense layer alone lose nothing, and no others are proved to."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from compcomp.checking.contracts import derived
from compcomp.language.claim import Claim, dominates, equal
from compcomp.language.loss import LOSSES
from compcomp.language.refusal import Refusal
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.layers.state import LayerState
from compcomp.proving.meaning import fails
from compcomp.proving.proof import Proof
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.replay import Suspect, exact_runs
from compcomp.proving.rules.reference import at_reference
from compcomp.techniques import (
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    BlockMeans,
    DistillFactors,
    GradientDistill,
    Hadamard,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    PruneColumns,
    SmoothQuant,
    TruncatedSVD,
)

QUIET: list[Technique] = [
    Hadamard(),
    LeastSquaresDistill(),
    DistillFactors(),
    GradientDistill(iterations=1),
    TruncatedSVD(rank=1, residual=True),
    BlockMeans(rank=1),
    LoRA(rank=1, iterations=1),
    SmoothQuant(),
    ApplyMask(),
]
LOUD: list[Technique] = [AbsMax(3), Magnitude("1/2"), PruneColumns("1/2"), AbsMaxInputs(3), TruncatedSVD(rank=1)]
INPUTS = np.array([[2, 1], [1, 0], [0, 0], [-1, 1]], dtype=object) + Fraction(0)
LAYERS = [np.array([row], dtype=object) + Fraction(0) for row in product((-1, 0, 2), repeat=4)]
"""Of one row of four, as the Hadamard matrix of four is rational."""


def asked(claim: Claim) -> Proof | Refusal:
    return at_reference(claim, default_prover().session(time.monotonic() + 20))


def drawn(count: int) -> list[Sequence]:
    draw, found = random.Random(3), list[Sequence]()
    for _ in range(count):
        techniques = [draw.choice(QUIET) for _ in range(draw.choice((1, 2, 3)))]
        if draw.random() < 0.5:
            techniques.insert(draw.randrange(len(techniques) + 1), draw.choice(LOUD))
        found.append(Sequence(tuple(techniques)))
    return found


def breaks(claim: Claim) -> bool:
    """Whether a layer of a small set contradicts the claim, in exact numbers."""
    runs = (exact_runs(claim, Suspect(weight, INPUTS)) for weight in LAYERS)
    return any(bool(fails(claim, run)) for run in runs)


@pytest.mark.parametrize("loss", ["weight_l1", "output_l2"])
def test_what_is_proved_loses_nothing_on_every_small_layer(loss: str) -> None:
    nothing, proved = Sequence(()), 0
    for sequence in drawn(40):
        claim = dominates(sequence, nothing, loss)  # nothing loses nothing
        loud = any(technique in LOUD for technique in sequence)
        if isinstance(asked(claim), Proof):
            proved += 1
            if not any(isinstance(t, SmoothQuant) for t in sequence):  # its scales are roots
                assert not breaks(claim) and not breaks(equal(sequence, nothing)), claim
            assert not loud
        else:
            assert loud, claim
    assert proved >= 15


@pytest.mark.parametrize("loud", LOUD, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_it_dominates_whatever_the_other_side_does(loud: Technique, loss: str) -> None:
    assert isinstance(asked(dominates(Hadamard() >> LeastSquaresDistill(), loud, loss)), Proof)
    assert isinstance(asked(dominates(loud, Hadamard() >> LeastSquaresDistill(), loss)), Refusal)


def test_equality_takes_both_sides() -> None:
    assert isinstance(asked(equal(Hadamard(), LeastSquaresDistill())), Proof)
    assert isinstance(asked(equal(Hadamard(), AbsMax(4))), Refusal)
    assert isinstance(asked(equal(AbsMax(4), Hadamard())), Refusal)
    assert prove(equal(Hadamard(), AbsMaxInputs(4)), search_seconds=5, second=None).refuted


@dataclass(frozen=True)
class Promising(Technique):
    """Do nothing, and promise what is said."""

    said: Declared = field(default_factory=Declared)

    def promises(self) -> Declared:
        return self.said

    def encode(self, layer: LayerState) -> LayerState:
        return layer


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Declared(holds_reference=True), True),
        (Declared(no_op_on_dense=True), True),
        (Declared(no_op=frozenset({"always"})), True),
        (Declared(), False),
        (Declared(keeps=frozenset({"factors", "mask"}), never_increases=frozenset(LOSSES)), False),
        (Declared(leaves_weight=True), False),
        (Declared(holds_reference=True, changes_inputs=True), False),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_promise_that_the_argument_needs_is_needed(said: Declared, expected: bool, place: int) -> None:
    techniques: list[Technique] = [Hadamard(), DistillFactors()]
    techniques.insert(place, Promising(said))
    claim = dominates(Sequence(tuple(techniques)), AbsMax(4))
    assert isinstance(asked(claim), Proof) == expected
    assert derived(claim) == (expected and "always" not in said.no_op)


def test_what_changes_nothing_only_where_it_stands_is_asked_there() -> None:
    """ApplyMask does nothing where all that the mask drops is zero. Of a mask with open weights that is not known."""
    quiet = Promising(Declared(holds_reference=True, format_varies=True))
    assert isinstance(asked(dominates(Hadamard() >> ApplyMask(), AbsMax(4))), Proof)
    assert isinstance(asked(dominates(quiet >> ApplyMask(), AbsMax(4))), Refusal)

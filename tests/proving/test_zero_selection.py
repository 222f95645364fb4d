"""Rule (zero selection): what it proves holds of every layer of a small set, and what it must refuse it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from compcomp.language.claim import Equals, dominates, equal, same_state
from compcomp.language.parameters import ANY
from compcomp.language.steps import Element, GridMap, Selection, Step
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.partition import Partition
from compcomp.proving.meaning import fails
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, exact_runs
from compcomp.techniques import AbsMax, Magnitude, MinMax, TruncatedSVD, Wanda
from compcomp.terms import Abs, Term

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
P, Q, N = Magnitude("1/2"), AbsMax(4), Magnitude("1/2", pattern="2:4")
ROWS, WHOLE, PAIRS = Partition.rows(), Partition.tensor(), Partition.blocks(2)


@dataclass(frozen=True)
class Steps(Technique):
    """The given steps, one after the other."""

    given: tuple[Step, ...]

    def steps(self) -> tuple[Step, ...]:
        return self.given


def magnitude(element: Element) -> Term:
    return Abs(element.weight)


def select(
    share: Fraction, partition: Partition = WHOLE, ties: str = "first", score: Callable[[Element], Term] = magnitude
) -> Steps:
    return Steps((Selection(score, partition, share, ties),))


def proved(claim: Equals) -> bool:
    return prove(claim, stages=("rule",), second=None, explain=False).proved


LAST = [
    P >> Q >> P,
    P >> Q >> Magnitude("1/4"),
    N >> Magnitude("1/2", per="row"),
    N >> P,
    N >> AbsMax(3) >> P,
    Magnitude("3/4", pattern="1:4") >> Magnitude("1/2", per="row", ties="all"),
    P >> Q >> Magnitude("1/2", ties="any"),
    P >> Q >> P >> Magnitude("1/4"),
    Magnitude(ANY) >> AbsMax(ANY) >> Magnitude(ANY),
]


@pytest.mark.parametrize("left", LAST, ids=str)
def test_a_last_selection_that_drops_zeros_alone_changes_no_weight(left: Sequence) -> None:
    right = Sequence(left.techniques[:-1])
    verdict = prove(equal(left, right), second=None)
    assert verdict.proved and verdict.reason in ("rule zero selection", "rule absorption")
    assert prove(equal(right, left), second=None).proved
    assert prove(dominates(left, right, "output_l2"), second=None).proved


@pytest.mark.parametrize("left", [P >> Q >> P, N >> Magnitude("1/2", per="row")], ids=str)
def test_its_mask_is_another_and_so_is_the_state(left: Sequence) -> None:
    verdict = prove(same_state(left, Sequence(left.techniques[:-1])))
    assert verdict.refuted and verdict.witness is not None
    assert verdict.reason == verdict.witness.reason == "the two sequences give different states: they differ in mask"
    ends = [trace.steps[-1][1] for trace in verdict.witness.traces]
    assert ends[0] == ends[1], "the weights are the same"


REFUSED = [
    P >> Wanda("1/2"),  # a weight on a dead input scores as a zero does
    P >> Q >> Magnitude("3/4"),  # more than there are zeros
    Magnitude("1/2", per="row") >> N,  # zeros of a row lie in any of its groups
    Magnitude("1/2", per="row") >> P,  # int(c / 2) a row may be less than int(r c / 2)
    Q >> P,  # what rounds to zero may be less than half
    P >> MinMax(4, zero="none") >> P,  # zero is no value of the grid
    P >> TruncatedSVD(1) >> P,  # a matrix of less rank has other zeros
    P >> Q >> Magnitude("1/2", of="dense"),  # zeros do not score least
    P >> select(HALF, score=lambda e: -Abs(e.weight)),
    P >> Q >> select(HALF, score=lambda e: e.weight),  # negative weights score less
    P >> Q >> select(HALF, score=lambda e: Abs(e.weight) - Abs(e.reference)),
]


@pytest.mark.parametrize("left", REFUSED, ids=range(len(REFUSED)))
def test_it_refuses_what_is_not_so(left: Sequence) -> None:
    assert not proved(equal(left, Sequence(left.techniques[:-1])))


def layers(rows: int, columns: int) -> Iterator[Suspect]:
    for entries in product((-2, -1, 0, 1), repeat=rows * columns):
        weight = np.array([Fraction(x) for x in entries], dtype=object).reshape(rows, columns)
        yield Suspect(weight, None)


def test_all_that_it_proves_holds_of_every_small_layer() -> None:
    """Pairs of selections, with a map between them or none, against layers of 1 x 4 and 2 x 2 small integers."""
    steps = [
        select(share, partition, ties)
        for share in (QUARTER, HALF, Fraction(3, 4))
        for partition in (PAIRS, ROWS, WHOLE)
        for ties in ("first", "all")
    ]
    between = [Sequence(), as_sequence(Steps((GridMap(Abs, 1, "half_even", WHOLE),)))]
    checked = 0
    samples = [*layers(1, 4), *layers(2, 2)][::7]
    for first, last, middle in product(steps, steps, between):
        claim = equal(Sequence((first,)) >> middle >> last, Sequence((first,)) >> middle)
        if proved(claim):
            checked += 1
            assert not any(fails(claim, exact_runs(claim, suspect)) for suspect in samples), str(claim)
    assert checked > 40

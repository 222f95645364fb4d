"""Facts about two neighbouring maps hold for every group: brute force in exact numbers, for every convention."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest

from compcomp.language.parameters import ANY
from compcomp.language.steps import CodebookMap, GridMap, RangeMap, ScaledMap
from compcomp.layers import codebooks, walk
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.rules.rounding_twice import double_rounding, range_again
from compcomp.proving.session import Session
from compcomp.proving.solver import default_solver
from compcomp.terms import ROUNDINGS, Abs, Choices, RandomChoices

WHOLE = Partition.tensor()
BITS = (2, 3, 4, 5)
SYMMETRIC = tuple(map(Fraction, (-3, -1, 0, 1, 3)))
LOPSIDED = tuple(map(Fraction, (-4, -1, 0, 1, 2, 4)))
SHORT = tuple(map(Fraction, (-2, 0, 3)))


def session() -> Session:
    return Session(default_solver(), time.monotonic() + 60)


def grid(bits: int, rounding: str) -> GridMap:
    return GridMap(Abs, 2 ** (bits - 1) - 1, rounding, WHOLE)


def tables(rounding: str) -> list[ScaledMap]:
    known = (codebooks.E2M1, SYMMETRIC, LOPSIDED, SHORT, codebooks.whole_codes(9))
    found: list[ScaledMap] = [CodebookMap(Abs, codes, rounding, WHOLE) for codes in known]
    return [*found, GridMap(Abs, 3, rounding, WHOLE), GridMap(Abs, 9, rounding, WHOLE)]


def ends(step: ScaledMap) -> list[Fraction]:
    """The values of a map at context 1, in units of the context, and the midpoints between them."""
    values = step.codes if isinstance(step, CodebookMap) else codebooks.whole_codes(step.known_levels)  # type: ignore[attr-defined]
    values = [Fraction(x) / max(map(abs, values)) for x in values]
    return [*values, *((a + b) / 2 for a, b in itertools.pairwise(values))]


def alike(first: ScaledMap, second: ScaledMap) -> bool:
    """Whether both together give what the second gives alone: of groups of the largest magnitude and one weight.

    Weights are all midpoints and values of both maps, and what lies between two of these.
    """
    marks = sorted({Fraction(-1), Fraction(1), *ends(first), *ends(second)})
    marks += [(a + b) / 2 for a, b in itertools.pairwise(marks)]
    draws = [Choices(), *(RandomChoices(seed) for seed in range(3))]
    for largest, w, one, other, alone in itertools.product((1, -1), marks, draws, draws, draws[:2]):
        if first.rounding != "any" and one is not draws[0]:
            continue
        if second.rounding != "any" and (other is not draws[0] or alone is not draws[0]):
            continue
        layer = LayerState.dense(np.array([[Fraction(largest), w]], dtype=object))
        both = second.apply(replaced(first.apply(replaced(layer, one)), other))
        if differ(both, second.apply(replaced(layer, alone))):
            return False
    return True


def replaced(layer: LayerState, choices: Choices) -> LayerState:
    return LayerState(layer.weight, layer.reference, format=layer.format, choices=choices)


def differ(one: LayerState, other: LayerState) -> bool:
    return any(bool(term) for terms in walk.differences(one, other).values() for term in terms)


@pytest.mark.parametrize(("fine", "coarse"), [*itertools.product(ROUNDINGS, ROUNDINGS)])
def test_two_grids(fine: str, coarse: str) -> None:
    """Proved just where it is true: a proof is no less than that, and a refusal no more."""
    known, true = session(), set()
    for a, b in itertools.product(BITS, BITS):
        first, second = grid(a, fine), grid(b, coarse)
        if a != b and alike(first, second):
            true.add((a, b))
        assert a == b or double_rounding(first, second, known) is ((a, b) in true), (a, b)
    halves = {(5, 3)}
    ones = {(a, 2) for a in BITS[1:]}
    expected = {
        ("half_even", "half_even"): halves,
        ("half_up", "half_up"): halves | ones,
        ("half_away", "half_away"): halves | ones,
        ("half_even", "half_away"): ones,
    }
    assert true == expected.get((fine, coarse), set())


def test_more_bits() -> None:
    """Of levels a multiple of each other."""
    first, second, third = (grid(bits, "half_even") for bits in (7, 4, 3))
    assert double_rounding(first, second, session()) and alike(first, second)
    assert not double_rounding(second, third, session()) and not alike(second, third)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_tables(rounding: str) -> None:
    known, proved = session(), 0
    for first, second in itertools.permutations(tables(rounding), 2):
        if double_rounding(first, second, known):
            proved += 1
            assert alike(first, second), f"{first} then {second}"
    assert proved >= (0 if rounding == "any" else 2)


def test_what_it_takes_two_maps_to_share() -> None:
    known = session()
    fine, coarse = grid(5, "half_even"), grid(3, "half_even")
    assert double_rounding(fine, coarse, known)
    assert not double_rounding(fine, GridMap(Abs, 3, "half_even", Partition.blocks(2)), known)
    assert not double_rounding(fine, GridMap(lambda w: 2 * Abs(w), 3, "half_even", WHOLE), known)
    assert not double_rounding(fine, GridMap(Abs, ANY, "half_even", WHOLE), known)
    # It keeps no largest magnitude: of the group (3, -2, ...) in thirds, which the table has no -3 for.
    assert not double_rounding(CodebookMap(Abs, SHORT, "half_even", WHOLE), grid(2, "half_up"), known)
    power = CodebookMap(Abs, SYMMETRIC, "half_even", WHOLE, "power_of_two")
    assert not double_rounding(power, coarse, known) and not double_rounding(fine, power, known)


NUMBERS = [Fraction(k, 2) for k in range(-7, 8)]


def unchanged(step: RangeMap) -> bool:
    """Whether a second use changes nothing of any group of three of these numbers, of one or of two."""
    for group in (*itertools.combinations(NUMBERS, 3), *itertools.combinations(NUMBERS, 2), (NUMBERS[0],), (0,)):
        once = step.apply(LayerState.dense(np.array([list(map(Fraction, group))], dtype=object)))
        if differ(once, step.apply(once)):
            return False
    return True


@pytest.mark.parametrize(("zero", "rounding"), [*itertools.product((True, False), ROUNDINGS)])
def test_a_range_map_again(zero: bool, rounding: str) -> None:
    steps = [RangeMap(levels, rounding, WHOLE, zero) for levels in (1, 2, 3, 4, 7)]
    proved = {range_again(step, session()) for step in [*steps, RangeMap(ANY, rounding, WHOLE, zero)]}
    assert len(proved) == 1, "it holds of every number of levels or of none"
    true = [unchanged(step) for step in steps]
    if rounding == "any":
        assert proved == {False}, "two uses may choose differently"
    else:
        assert all(true) if proved == {True} else not all(true)
        assert proved == {not zero or rounding != "half_even"}

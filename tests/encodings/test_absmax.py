from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.magnitude import Magnitude
from compcomp.language.loss import loss_named
from tests.helpers import HUGE, MINUS_HUGE, layer, outcomes, refused, row

MIDPOINTS = [[14, 1, -1, 3, -3, 5, -5]]
"""4 bits: step 2, so that odd weights lie half way between levels."""


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [14, 0, 0, 4, -4, 4, -4]),
        ("half_up", [14, 2, 0, 4, -2, 6, -4]),
        ("half_away", [14, 2, -2, 4, -4, 6, -6]),
    ],
)
def test_midpoints(rounding: str, expected: list[int]) -> None:
    assert row(AbsMax(bits=4, rounding=rounding).encode(layer(MIDPOINTS))) == expected


def test_any_rounding_reaches_both_sides_of_each_midpoint() -> None:
    found = outcomes(AbsMax(bits=4, rounding="any").encode, [[14, 1, -3]])
    assert found == {(14, a, b) for a in (0, 2) for b in (-2, -4)}


def test_the_grid() -> None:
    state = AbsMax(bits=3, group=2).encode(layer([[3, 1, 0, 0], [1, -6, 2, 2]]))
    assert state.weight.tolist() == [[3, 1, 0, 0], [Fraction(0), -6, 2, 2]]
    assert state.format.grid is not None
    assert state.format.grid.step.tolist() == [[1, 1, 0, 0], [2, 2, Fraction(2, 3), Fraction(2, 3)]]
    assert (state.format.grid.levels, state.format.grid.scales) == (3, 4)


def test_an_all_zero_group_stays_zero() -> None:
    state = AbsMax(bits=8, group=2).encode(layer([[0, 0, 1, 2]]))
    assert row(state)[:2] == [0, 0] and row(state)[3] == 2


@pytest.mark.parametrize("bits", [2, 5, 16])
@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away", "any"])
def test_quantizing_twice_changes_nothing_more(bits: int, rounding: str) -> None:
    quantize = AbsMax(bits=bits, rounding=rounding)
    once = quantize.encode(layer([[7, "-1/3", "22/7", 0, 1, "-355/113"]]))
    assert row(quantize.encode(once)) == row(once)


def test_pruning_first_adds_no_error_but_pruning_last_does() -> None:
    """The witness of [harma2025], theorem 3.6: x = (10, 9, 6, 0), 2 bits, 2:4, errors in L1."""
    prune = Magnitude(sparsity="1/2", pattern="2:4", ties="any")
    quantize = AbsMax(bits=2)
    x, lost = [10, 9, 6, 0], loss_named("weight_l1").of
    alone = [lost(technique.encode(layer([x]))) for technique in (prune, quantize)]
    assert alone == [6, 5]
    assert lost((prune >> quantize).encode(layer([x]))) == 7
    last = outcomes((quantize >> prune).encode, [x])
    assert {sum(abs(a - b) for a, b in zip(x, w, strict=True)) for w in last} == {7, 13, 15}


@pytest.mark.parametrize(("rounding", "holds"), [("half_up", False), ("half_away", True)])
def test_the_rounding_of_midpoints_decides_an_order(rounding: str, holds: bool) -> None:
    """All ties pruned, 4 bits, L1: w = (13/14, 1, -13/14)."""
    prune = Magnitude(sparsity="1/3", ties="all")
    quantize = AbsMax(bits=4, rounding=rounding)
    first, second = (
        loss_named("weight_l1").of(order.encode(layer([["13/14", 1, "-13/14"]])))
        for order in (prune >> quantize, quantize >> prune)
    )
    assert (first <= second) is holds


@pytest.mark.parametrize("given", [1, 0, -4, 17, 100000, HUGE, MINUS_HUGE, 4.0, "4", None, True, float("nan")])
def test_bad_bits(given: Any) -> None:
    refused(lambda: AbsMax(bits=given), "AbsMax.bits", "from 2 to 16")


@pytest.mark.parametrize("given", [0, -1, 2**21, HUGE, 2.0, "128", False])
def test_bad_group(given: Any) -> None:
    refused(lambda: AbsMax(bits=4, group=given), "AbsMax.group")


@pytest.mark.parametrize("given", ["nearest", "half_even\nx", None, HUGE, []])
def test_bad_rounding(given: Any) -> None:
    refused(lambda: AbsMax(bits=4, rounding=given), "AbsMax.rounding", "half_even")


def test_a_group_must_divide_the_row() -> None:
    refused(lambda: AbsMax(bits=4, group=4).encode(layer([[1, 2, 3, 4, 5, 6]])), "rows of 6", "groups of 4")

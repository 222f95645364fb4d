from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
from compcomp.terms import Choices
from tests.helpers import HUGE, layer, outcomes, refused, row


def test_zero_is_a_value_of_the_grid_or_not() -> None:
    """Range 5, 2 bits: the step is 5/3, the exact zero point 1."""
    weight = [[-2, 0, 1, 3]]
    third = Fraction(1, 3)
    assert row(MinMax(bits=2).encode(layer(weight))) == [-5 * third, 0, 5 * third, 10 * third]
    assert row(MinMax(bits=2, zero="none").encode(layer(weight))) == [-2, -third, 4 * third, 3]


@pytest.mark.parametrize(
    ("weight", "zero", "least"),
    [
        ([2, 5, 8, 4], "exact", 0),
        ([2, 5, 8, 4], "none", 2),
        ([-2, -5, -8, -4], "exact", -8),
        ([-2, -5, -8, -4], "none", -8),
    ],
)
def test_weights_of_one_sign(weight: list[int], zero: str, least: int) -> None:
    grid = MinMax(bits=3, zero=zero).encode(layer([weight])).format.grid
    assert grid is not None and grid.offset is not None
    assert grid.offset.tolist() == [[least] * 4]
    assert set(grid.step[0]) == {Fraction(8 if zero == "exact" else 6, 7)}
    assert (grid.levels, grid.scales, grid.zero) == (7, 1, zero == "exact")


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [0, 0, 2, 2, 0, -2]),
        ("half_up", [0, 1, 2, 3, 0, -1]),
        ("half_away", [0, 1, 2, 3, -1, -2]),
    ],
)
def test_midpoints_of_an_exact_zero_are_those_of_the_weight(rounding: str, expected: list[int]) -> None:
    weight = [0, "1/2", "3/2", "5/2", "-1/2", "-3/2", 5, -2]
    assert row(MinMax(bits=3, rounding=rounding).encode(layer([weight])))[:6] == expected


@pytest.mark.parametrize(("rounding", "expected"), [("half_even", [1, 3, 3]), ("half_up", [2, 3, 4])])
def test_midpoints_without_a_zero_are_counted_from_the_least(rounding: str, expected: list[int]) -> None:
    weight = [1, 4, "3/2", "5/2", "7/2"]
    assert row(MinMax(bits=2, zero="none", rounding=rounding).encode(layer([weight])))[2:] == expected


def test_the_zero_point_is_rounded_and_the_far_end_is_cut_off() -> None:
    """low / s = -1/2: the zero point is 0 under half_even, 1 under half_away; one end is out of reach."""
    weight = [["-1/2", 0, "5/2"]]
    assert row(MinMax(bits=2).encode(layer(weight))) == [0, 0, 2]
    assert row(MinMax(bits=2, rounding="half_away").encode(layer(weight))) == [-1, 0, 2]
    assert row(MinMax(bits=2, rounding="half_up").encode(layer(weight))) == [0, 0, 3]


def test_any_rounding_reaches_both_sides_of_each_midpoint() -> None:
    """The zero point is one choice for its group."""
    found = outcomes(MinMax(bits=2, rounding="any").encode, [["-1/2", "1/2", "5/2"]])
    assert found == {(a, b, c) for a, c_s in ((0, (2, 3)), (-1, (2,))) for b in (0, 1) for c in c_s} | {
        (0, b, c) for b in (0, 1) for c in (2,)
    }


@pytest.mark.parametrize("zero", ["exact", "none"])
def test_where_the_range_is_a_point_the_weights_stay(zero: str) -> None:
    state = MinMax(bits=4, group=2, zero=zero).encode(layer([[0, 0, 1, 2], [5, 5, -3, -3]]))
    assert state.weight[0, :2].tolist() == [0, 0]
    assert state.weight[1].tolist() == [5, 5, -3, -3]  # zero="exact": the range reaches from 5 to 0, and 5 is its end
    assert state.format.grid is not None
    assert state.format.grid.scales == 4


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "half_away", "any"])
@pytest.mark.parametrize("zero", ["exact", "none"])
def test_every_weight_is_a_value_of_the_grid(zero: str, rounding: str) -> None:
    state = MinMax(bits=3, zero=zero, rounding=rounding).encode(layer([[7, "-1/3", "22/7", 0, 1, "-355/113"]]))
    grid = state.format.grid
    assert grid is not None
    assert all(grid.nearest(w, (0, k), Choices()) == w for k, w in enumerate(row(state)))
    assert (grid.nearest(Fraction(0), (0, 0), Choices()) == 0) is (zero == "exact")


def test_without_a_zero_what_was_pruned_comes_back() -> None:
    pruned = Magnitude(sparsity="1/2").encode(layer([[3, 1, -1, -2]]))
    assert row(MinMax(bits=2).encode(pruned))[1:3] == [0, 0]
    broken = MinMax(bits=2, zero="none").encode(pruned)
    assert row(broken)[1:3] == [Fraction(-1, 3)] * 2
    assert broken.format.mask is not None
    assert broken.format.mask[0].tolist() == [True, False, False, True]


def test_the_rank_is_not_kept_and_factors_are() -> None:
    start = layer([[1, 2], [2, 4]])
    after = MinMax(bits=2).encode(replace(start, format=replace(start.format, rank=1)))
    assert after.format.rank is None


@pytest.mark.parametrize("given", [1, 0, 17, HUGE, 4.0, "4", None, True])
def test_bad_bits(given: Any) -> None:
    refused(lambda: MinMax(bits=given), "MinMax.bits", "from 2 to 16")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"group": 0}, "MinMax.group"),
        ({"zero": "symmetric"}, "MinMax.zero"),
        ({"zero": None}, "MinMax.zero"),
        ({"rounding": "nearest"}, "MinMax.rounding"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: MinMax(bits=4, **parameters), where)


def test_a_group_must_divide_the_row() -> None:
    refused(lambda: MinMax(bits=4, group=4).encode(layer([[1, 2, 3, 4, 5, 6]])), "rows of 6", "groups of 4")

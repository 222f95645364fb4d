from __future__ import annotations

from typing import Any

import pytest

from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.nf4 import NF4
from compcomp.language.loss import loss_named
from compcomp.layers import codebooks
from tests.helpers import HUGE, layer, outcomes, refused, row

TABLE = codebooks.NF4


def test_the_values_of_the_table_stay() -> None:
    weight = [3 * code for code in TABLE]
    state = NF4(group=16).encode(layer([weight]))
    assert row(state) == weight
    assert state.format.grid is not None
    assert state.format.grid.step.tolist() == [[3] * 16]
    assert (state.format.grid.codes, state.format.grid.scales, state.format.grid.zero) == (TABLE, 1, True)


def test_both_ends_are_reached_and_zero_stays() -> None:
    assert row(NF4(group=4).encode(layer([[2, 0, -1, 1, -5, 0, 5, "1/10"]])))[:2] == [2, 0]
    assert row(NF4(group=4).encode(layer([[2, 0, -1, 1, -5, 0, 5, "1/10"]])))[4:] == [-5, 0, 5, 0]
    assert row(NF4(group=None).encode(layer([[0, 0]]))) == [0, 0]


@pytest.mark.parametrize(("rounding", "places"), [("half_even", (9, 7)), ("half_up", (9, 7)), ("half_away", (9, 6))])
def test_midpoints(rounding: str, places: tuple[int, int]) -> None:
    """Between the values 8 and 9, and between 6 and 7, which is 0."""
    above, below = (TABLE[8] + TABLE[9]) / 2, (TABLE[6] + TABLE[7]) / 2
    found = row(NF4(group=None, rounding=rounding).encode(layer([[1, above, below]])))
    assert found[1:] == [TABLE[k] for k in places]


def test_any_rounding_reaches_both_sides() -> None:
    middle = (TABLE[8] + TABLE[9]) / 2
    assert outcomes(NF4(group=None, rounding="any").encode, [[1, middle]]) == {(1, TABLE[8]), (1, TABLE[9])}


def test_a_table_that_is_not_symmetric_reverses_an_order() -> None:
    """(2, -1, 1): the table takes 1 to 0.44 * 2 and -1 to -0.525 * 2. Pruning afterwards keeps the latter, which lies
    closer; pruning first drops the one that comes first."""
    prune, quantize = Magnitude("1/3"), NF4(group=None)
    first, second = (
        loss_named("weight_l1").of(order.encode(layer([[2, -1, 1]])))
        for order in (prune >> quantize, quantize >> prune)
    )
    assert first == 1 + (1 - 2 * TABLE[12]) > second == 1 + (-2 * TABLE[2] - 1)


def test_scales_are_rounded_after_the_codes_are_chosen() -> None:
    """Scales 1, 2 and 6 have the mean 3: -2, -1 and 3 are rounded to 3 times a dynamic value."""
    state = NF4(group=2, scales="double").encode(layer([[1, "1/2", -2, 0, 6, 6]]))
    grid = state.format.grid
    assert grid is not None
    apart = [3 * min(codebooks.DYNAMIC8, key=lambda c, x=x: abs(3 * c - x)) for x in (-2, -1, 3)]  # type: ignore[misc]
    assert grid.step[0, ::2].tolist() == [3 + x for x in apart]
    assert row(state) == [3 + apart[0], (3 + apart[0]) * TABLE[12], -(3 + apart[1]), 0, 6, 6]
    assert (grid.scale_bits, grid.shared_bits) == (8, 64)


def test_a_scale_below_zero_becomes_zero() -> None:
    """One scale of 0 among many of 256: its distance from the mean, less the rounding, may be more than the mean."""
    weight = [[0] + [1] * 299]
    state = NF4(group=1, scales="double").encode(layer(weight))
    assert state.format.grid is not None
    assert all(s >= 0 for s in state.format.grid.step.ravel())
    assert row(state)[0] == 0


def test_the_dynamic_values() -> None:
    assert len(codebooks.DYNAMIC8) == 256 and codebooks.DYNAMIC8[-1] == 1
    assert float(codebooks.DYNAMIC8[0]) == pytest.approx(-0.99296875)


@pytest.mark.parametrize("given", [0, -1, 2**21, HUGE, 2.0, "64", False])
def test_bad_group(given: Any) -> None:
    refused(lambda: NF4(group=given), "NF4.group")


@pytest.mark.parametrize("given", ["nearest", None, HUGE])
def test_bad_rounding(given: Any) -> None:
    refused(lambda: NF4(rounding=given), "NF4.rounding", "half_even")


def test_bad_scales() -> None:
    refused(lambda: NF4(scales="8-bit"), "NF4.scales", "double")


def test_a_group_must_divide_the_row() -> None:
    for scales in ("exact", "double"):
        refused(lambda s=scales: NF4(scales=s).encode(layer([[1, 2, 3]])), "rows of 3", "groups of 64")  # type: ignore[misc]

from __future__ import annotations

from typing import Any

import pytest

from compcomp.encodings.fp4 import FP4
from tests.helpers import HUGE, layer, outcomes, refused, row


def test_the_values_of_the_format() -> None:
    weight = [0, "1/2", 1, "3/2", 2, 3, 4, 6, "-1/2", -1, "-3/2", -2, -3, -4, -6, 0]
    state = FP4(group=16).encode(layer([weight]))
    assert row(state) == row(layer([weight]))
    assert state.format.grid is not None and len(state.format.grid.codes or ()) == 15


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [0, 1, 1, 2, 2, 4, 4, 0, -1, -4]),
        ("half_up", ["1/2", 1, "3/2", 2, 3, 4, 6, 0, "-1/2", -4]),
        ("half_away", ["1/2", 1, "3/2", 2, 3, 4, 6, "-1/2", -1, -6]),
    ],
)
@pytest.mark.parametrize("scale", [1, 7])
def test_midpoints_go_to_even_mantissas(rounding: str, expected: list[Any], scale: int) -> None:
    middles = ["1/4", "3/4", "5/4", "7/4", "5/2", "7/2", 5, "-1/4", "-3/4", -5]
    found = FP4(group=None, rounding=rounding).encode(layer([[6, *middles]]))
    assert row(found)[1:] == row(layer([expected]))
    scaled = FP4(group=None, rounding=rounding).encode(layer(layer([[6, *middles]]).weight * scale))
    assert row(scaled) == [x * scale for x in row(found)]


def test_any_rounding_reaches_both_sides() -> None:
    assert outcomes(FP4(group=None, rounding="any").encode, [[6, 5]]) == {(6, 4), (6, 6)}


@pytest.mark.parametrize("given", [0, 2**21, HUGE, "32"])
def test_bad_group(given: Any) -> None:
    refused(lambda: FP4(group=given), "FP4.group")


def test_bad_rounding() -> None:
    refused(lambda: FP4(rounding="up"), "FP4.rounding", "half_even")

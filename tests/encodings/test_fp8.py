from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.fp8 import FP8
from tests.helpers import layer, refused, row


@pytest.mark.parametrize(("format", "largest", "places"), [("e4m3", 448, 3), ("e5m2", 57344, 2)])
def test_a_significand_of_few_bits(format: str, largest: int, places: int) -> None:
    """Between 1 and 2 the values lie 2^-places apart; midpoints go to even ones."""
    gap = Fraction(1, 2**places)
    weight = [largest, 1 + gap, 1 + gap / 2, 1 + 3 * gap / 2, 1 + gap * Fraction(49, 100)]
    assert row(FP8(format).encode(layer([weight]))) == [largest, 1 + gap, 1, 1 + 2 * gap, 1]


def test_scales_are_of_the_tensor_the_row_or_a_group() -> None:
    weight = [[448, 1, 224, "1/2"], [896, 0, 4, 448]]
    for technique, scales, step in (
        (FP8(), 1, [[2] * 4, [2] * 4]),
        (FP8(per="row"), 2, [[1] * 4, [2] * 4]),
        (FP8(group=2), 4, [[1, 1, "1/2", "1/2"], [2, 2, 1, 1]]),
    ):
        grid = technique.encode(layer(weight)).format.grid
        assert grid is not None and grid.scales == scales
        assert grid.step.tolist() == layer(step).weight.tolist()


def test_less_than_half_the_least_value_is_lost() -> None:
    least = Fraction(1, 2**9)
    assert row(FP8().encode(layer([[448, least / 2, least * Fraction(51, 100), -least]]))) == [448, 0, least, -least]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "e3m4"}, ("FP8.format", "e5m2")),
        ({"per": "token"}, ("FP8.per", "row")),
        ({"group": 0}, ("FP8.group",)),
        ({"group": 2, "per": "row"}, ("group=2", "per='tensor'")),
        ({"rounding": "down"}, ("FP8.rounding",)),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: tuple[str, ...]) -> None:
    refused(lambda: FP8(**given), *message)

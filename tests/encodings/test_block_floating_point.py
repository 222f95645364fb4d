from __future__ import annotations

from typing import Any

import pytest

from compcomp.encodings.block_floating_point import BlockFloatingPoint
from tests.helpers import HUGE, layer, refused, row


def test_mantissas_share_an_exponent() -> None:
    """4 bits: largest 6 in [4, 8) gives step 1, largest 1/2 gives step 1/8."""
    state = BlockFloatingPoint(4, group=4).encode(layer([[6, "5/2", "-3/2", "1/4", "1/2", "1/16", "3/16", 0]]))
    assert row(state) == row(layer([[6, 2, -2, 0, "1/2", 0, "1/4", 0]]))
    assert state.format.grid is not None
    assert state.format.grid.step.tolist() == layer([[1] * 4 + ["1/8"] * 4]).weight.tolist()
    assert (state.format.grid.levels, state.format.grid.scale_bits) == (14, 8)


def test_what_rounds_to_the_next_power_is_cut_off() -> None:
    assert row(BlockFloatingPoint(4, group=None).encode(layer([["63/8", "-63/8", 1]]))) == [7, -7, 1]
    assert row(BlockFloatingPoint(2, group=None).encode(layer([["3/2", 1, "1/2"]]))) == [1, 1, 0]


@pytest.mark.parametrize(
    ("rounding", "expected"), [("half_even", [2, -2]), ("half_up", [3, -2]), ("half_away", [3, -3])]
)
def test_midpoints(rounding: str, expected: list[int]) -> None:
    assert row(BlockFloatingPoint(4, None, rounding).encode(layer([[7, "5/2", "-5/2"]])))[1:] == expected


@pytest.mark.parametrize("given", [1, 9, HUGE, 4.0, None])
def test_bad_bits(given: Any) -> None:
    refused(lambda: BlockFloatingPoint(given), "BlockFloatingPoint.bits", "from 2 to 8")


def test_bad_group_and_rounding() -> None:
    refused(lambda: BlockFloatingPoint(4, group=0), "BlockFloatingPoint.group")
    refused(lambda: BlockFloatingPoint(4, rounding="up"), "BlockFloatingPoint.rounding")

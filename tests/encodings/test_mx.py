from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.mx import FORMATS, MX
from tests.helpers import HUGE, layer, refused, row


@pytest.mark.parametrize(
    ("largest", "step"),
    [(4, 1), (6, 1), ("63/8", 1), (8, 2), (1, "1/4"), ("3/4", "1/8"), ("1/3", "1/16"), (100, 16)],
)
def test_the_scale_of_fp4_is_a_power_of_two(largest: Any, step: Any) -> None:
    grid = MX(group=2).encode(layer([[largest, 0]])).format.grid
    assert grid is not None
    assert grid.step.tolist() == layer([[step] * 2]).weight.tolist()
    assert (grid.scale_bits, grid.zero) == (8, True)


@pytest.mark.parametrize(
    ("format", "exponent", "largest"),
    [
        *(("mxfp4", 2, 6), ("mxfp6_e2m3", 2, Fraction(15, 2)), ("mxfp6_e3m2", 4, 28)),
        *(("mxfp8_e4m3", 8, 448), ("mxfp8_e5m2", 15, 57344), ("mxint8", 0, Fraction(127, 64))),
    ],
)
def test_the_largest_element_is_not_reached_or_cut_off(format: str, exponent: int, largest: Any) -> None:
    """The block's largest magnitude lands in [2^e, 2^(e+1)) steps; the format ends at ``largest``."""
    state = MX(format, group=1).encode(layer([["63/32"], ["1"]]))
    assert state.format.grid is not None
    assert state.format.grid.step[0, 0] == Fraction(1, 2**exponent)
    assert state.weight[0, 0] == min(Fraction(63, 32), largest / 2**exponent)
    assert state.weight[1, 0] == 1


def test_it_does_not_scale_along_with_every_factor() -> None:
    one, three, four = (row(MX(group=2).encode(layer([[7 * k, k]]))) for k in (1, 3, 4))
    assert one == [6, 1] and three == [24, 4] and four == [24, 4]
    assert not MX().promises().homogeneous


def test_int8_leaves_out_the_least_value() -> None:
    assert FORMATS["mxint8"][0] == -FORMATS["mxint8"][-1] == Fraction(-127, 64)
    assert row(MX("mxint8", group=2).encode(layer([["-255/128", "1/128"]]))) == [Fraction(-127, 64), 0]


@pytest.mark.parametrize("given", [0, 2**21, HUGE, None, "32"])
def test_bad_group(given: Any) -> None:
    refused(lambda: MX(group=given), "MX.group")


def test_bad_format_and_rounding() -> None:
    refused(lambda: MX("mxfp5"), "MX.format", "mxfp4")
    refused(lambda: MX(rounding="up"), "MX.rounding")

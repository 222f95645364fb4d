from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from compcomp.layers import codebooks
from compcomp.layers.codebooks import float_codes
from compcomp.terms import ROUNDINGS, Batch, Choices, SymbolicChoices, nearest_code, power_of_two


@pytest.mark.parametrize(
    ("codes", "count", "largest", "least"),
    [
        (codebooks.E2M1, 15, 6, Fraction(1, 2)),
        (codebooks.E2M3, 63, Fraction(15, 2), Fraction(1, 8)),
        (codebooks.E3M2, 63, 28, Fraction(1, 16)),
        (codebooks.E4M3, 253, 448, Fraction(1, 2**9)),
        (codebooks.E5M2, 247, 57344, Fraction(1, 2**16)),
        (float_codes(5, 10, 15, 65504), 2 * 31 * 2**10 - 1, 65504, Fraction(1, 2**24)),
    ],
)
def test_the_values_of_a_format(codes: codebooks.Codes, count: int, largest: int, least: Fraction) -> None:
    assert len(codes) == count and all(a < b for a, b in pairwise(codes))
    assert codes[-1] == -codes[0] == largest and min(c for c in codes if c > 0) == least
    assert tuple(-c for c in reversed(codes)) == codes


def test_half_precision_is_every_finite_float16() -> None:
    finite = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert set(float_codes(5, 10, 15, 65504)) == {Fraction(float(x)) for x in finite if np.isfinite(x)}


def test_normal_float_is_16_float32_numbers() -> None:
    assert len(codebooks.NF4) == 16 and {Fraction(-1), Fraction(0), Fraction(1)} <= set(codebooks.NF4)
    assert all(Fraction(float(np.float32(float(c)))) == c for c in codebooks.NF4)


@given(st.fractions(min_value=0, max_value=10**6, max_denominator=10**6))
def test_the_power_of_two_below_a_number(x: Fraction) -> None:
    power = power_of_two(x, Choices())
    if not x:
        assert power == 0
        return
    assert power <= x < 2 * power
    assert power.numerator & (power.numerator - 1) == 0 and power.denominator & (power.denominator - 1) == 0
    assert power_of_two(z3.RealVal(str(x)), Choices()).eq(z3.RealVal(str(power)))


@given(st.floats(min_value=0, max_value=1e300))
def test_floats_and_batches_give_the_same_power(x: float) -> None:
    power = power_of_two(x, Choices())
    assert Fraction(power) == power_of_two(Fraction(x), Choices())
    assert power_of_two(Batch([x, 0.0]), Choices()).values.tolist() == [power, 0.0]


def test_a_symbolic_power_admits_the_power_and_is_one_for_each_argument() -> None:
    x, y, choices = z3.Real("x"), z3.Real("y"), SymbolicChoices()
    power = power_of_two(x, choices)
    assert power_of_two(x, choices).eq(power) and power_of_two(x, SymbolicChoices("b")).eq(power)
    assert not power_of_two(y, choices).eq(power)
    assert len(choices.premises) == 2
    solver = z3.Solver()
    solver.add(*choices.premises)
    for value, right, wrong in (("5", "4", "2"), ("4", "4", "8"), ("1/3", "1/4", "1/2"), ("0", "0", "1")):
        assert solver.check(x == z3.RealVal(value), power == z3.RealVal(right)) == z3.sat
        assert solver.check(x == z3.RealVal(value), power == z3.RealVal(wrong)) == z3.unsat


CODES = tuple(map(Fraction, (-4, -1, 0, 1, 2, 4)))


@pytest.mark.parametrize(
    "codes", [CODES, codebooks.E2M1, codebooks.NF4, tuple(map(Fraction, (-3, -1, 1, 2))), CODES[:1]]
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_nearest_code_by_brute_force(codes: codebooks.Codes, rounding: str) -> None:
    """Numbers, batches and z3 terms, on codes, midpoints and next to them, in a step of 3/4."""
    step = Fraction(3, 4)
    middles = [(a + b) / 2 for a, b in pairwise(codes)]
    places = [
        *codes,
        *middles,
        *(m + d for m in middles for d in (Fraction(1, 64), Fraction(-1, 64))),
        Fraction(9),
        Fraction(-9),
    ]
    exact = [nearest_code(x * step, step, codes, rounding, Choices()) for x in places]
    for x, value in zip(places, exact, strict=True):
        least = min(abs(x - c) for c in codes)
        assert abs(x - value / step) == least and value / step in codes
    if rounding == "any":
        return
    batch = nearest_code(Batch([float(x * step) for x in places]), float(step), codes, rounding, Choices())
    assert batch.values.tolist() == [float(value) for value in exact]
    terms = [nearest_code(z3.RealVal(str(x * step)), z3.RealVal("3/4"), codes, rounding, Choices()) for x in places]
    assert [Fraction(str(z3.simplify(term))) for term in terms] == exact


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("half_even", [-4, 0, 0, 2, 2]), ("half_up", [-1, 0, 1, 2, 4]), ("half_away", [-4, -1, 1, 2, 4])],
)
def test_where_midpoints_between_codes_go(rounding: str, expected: list[int]) -> None:
    """Places from 0 are -2, -1, 0, 1, 2, 3."""
    middles = [Fraction(x) for x in ("-5/2", "-1/2", "1/2", "3/2", "3")]
    assert [nearest_code(x, Fraction(1), CODES, rounding, Choices()) for x in middles] == expected

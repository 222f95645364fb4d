"""Rounding of steps to their stored format: against tables of all numbers, in every reading, and attacked."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import z3

from compcomp.errors import NotExactError
from compcomp.kernels._scales import stored as stored_tensor
from compcomp.layers.scales import SCALES, FloatFormat, scale_bits, stored
from compcomp.terms import Batch, Choices, SymbolicChoices

FORMATS = [name for name, of in SCALES.items() if of is not None]
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@cache
def table(scales: str) -> list[Fraction]:
    """All numbers of a format from 0 on, read from their bit patterns."""
    if scales == "power_of_two":
        return [Fraction(0), *(Fraction(2) ** e for e in range(-127, 128))]
    patterns = torch.arange(2**15, dtype=torch.int16).view(TORCH[scales])
    return [Fraction(x) for x in patterns.double().tolist() if x < float("inf")]


def nearest(x: Fraction, scales: str) -> Fraction:
    """By the table, where the place of a number is its bit pattern: at a midpoint the even one, as of mantissas."""
    numbers, size = table(scales), abs(x)
    place = min(bisect_left(numbers, size), len(numbers) - 1)
    below, above = numbers[max(place - 1, 0)], numbers[place]
    if 2 * size == below + above:
        even = below if max(place - 1, 0) % 2 == 0 else above
        found = above if scales == "power_of_two" and below else even
    else:
        found = below if 2 * size < below + above else above
    return found if x >= 0 else -found


def numbers(scales: str, count: int = 100) -> list[Fraction]:
    """Numbers of the format, midpoints, numbers close to both, and any, of every size and beyond."""
    draw, known = random.Random(5), table(scales)
    found = [Fraction(0), known[1] / 2, known[1] / 3, known[-1], known[-1] * Fraction(5, 4), known[-1] * 1000]
    for place in [draw.randrange(1, len(known) - 1) for _ in range(count)]:
        middle = (known[place] + known[place + 1]) / 2
        found += [known[place], middle, middle * (1 + Fraction(1, 2**40)), middle * (1 - Fraction(1, 2**40))]
        found.append(known[place] + (known[place + 1] - known[place]) * Fraction(draw.randint(0, 70), 70))
    return [sign * x for x in found for sign in (1, -1)]


@pytest.mark.parametrize("scales", ["float16", "bfloat16", "power_of_two"])
def test_the_nearest_number_of_a_table(scales: str) -> None:
    for x in numbers(scales):
        assert stored(x, scales, Choices()) == nearest(x, scales)


def test_float32_is_a_cast_of_float64() -> None:
    draw = random.Random(7)
    for _ in range(500):
        x = draw.uniform(-2, 2) * 2.0 ** draw.randint(-150, 126)
        assert stored(Fraction(x), "float32", Choices()) == Fraction(float(np.float32(x)))
    assert stored(Fraction(2) ** 200, "float32", Choices()) == Fraction(float(torch.finfo(torch.float32).max))


@pytest.mark.parametrize("scales", FORMATS)
def test_every_reading_agrees(scales: str) -> None:
    known = numbers(scales if scales != "float32" else "bfloat16", 50)
    given = [Fraction(float(x)) for x in known if abs(x) < Fraction(2) ** 1000]
    expected = [float(stored(x, scales, Choices())) for x in given]
    values = [float(x) for x in given]
    assert stored(Batch(values), scales, Choices()).values.tolist() == expected
    assert stored_tensor(torch.tensor(values, dtype=torch.float64), scales).tolist() == expected
    assert [stored(x, scales, Choices()) for x in values] == expected
    for x, found in zip(given[:40], expected, strict=False):
        assert stored(z3.RealVal(str(x)), scales, Choices()).as_fraction() == Fraction(found)


@pytest.mark.parametrize("scales", FORMATS)
def test_a_formula_admits_the_stored_number(scales: str) -> None:
    """What is known of it in z3 is true: a proof would be false else."""
    x, choices = z3.Real("x"), SymbolicChoices()
    found = stored(x, scales, choices)
    (known,) = choices.premises
    for given in numbers("bfloat16" if scales == "float32" else scales, 8):
        for number, holds in ((stored(given, scales, Choices()), True), (given * Fraction(9, 5) + 1, False)):
            values = ((x, z3.RealVal(str(given))), (found, z3.RealVal(str(number))))
            true = z3.is_true(z3.simplify(z3.substitute(known, *values)))
            assert true if holds else (not true or abs(given) < 4 * table("float16")[1])


def test_one_variable_for_an_argument() -> None:
    x, y, choices = z3.Real("x"), z3.Real("y"), SymbolicChoices()
    found = stored(x, "float16", choices)
    assert stored(x, "float16", choices).eq(found) and len(choices.premises) == 1
    assert not stored(y, "float16", choices).eq(found)
    assert not stored(x, "bfloat16", choices).eq(found)
    with pytest.raises(TypeError, match="premises"):
        stored(x, "float16", Choices())


def test_sympy_is_refused_where_it_is_no_number() -> None:
    import sympy

    assert stored(sympy.Rational(1, 3), "power_of_two", Choices()) == sympy.Rational(1, 4)
    with pytest.raises(NotExactError, match="sympy"):
        stored(sympy.Symbol("x"), "float16", Choices())


def test_an_exact_step_is_itself() -> None:
    x: Any = object()
    assert stored(x, "exact", Choices()) is x
    assert [scale_bits(name) for name in SCALES] == [16, 32, 16, 16, 8]


@pytest.mark.parametrize(("digits", "least"), list(itertools.product((1, 2, 3), (-2, 0))))
def test_the_bounds_are_the_least(digits: int, least: int) -> None:
    """Of a format with few numbers no smaller errors hold, and none is larger."""
    of = FloatFormat(digits, least, least + 3, 8)
    unit = Fraction(2) ** (least - 8)
    exact = [unit * k for k in range(1, int(of.largest / unit) + 1)]
    errors = [(abs(round_in(x, of) - x), x) for x in exact]
    normal = max(error / x for error, x in errors if x >= Fraction(2) ** least)
    assert normal <= of.error
    assert max(error for error, x in errors if x < Fraction(2) ** least) == of.smallest_error
    assert normal > of.error * Fraction(9, 10)


def round_in(x: Fraction, of: FloatFormat) -> Fraction:
    """By comparing all numbers of the format."""
    known = {Fraction(0), of.largest}
    for e in range(of.least, of.most + 1):
        known |= {Fraction(2) ** e * (1 + Fraction(m, 2 ** (of.digits - 1))) for m in range(2 ** (of.digits - 1))}
    known |= {Fraction(2) ** of.least * Fraction(m, 2 ** (of.digits - 1)) for m in range(2 ** (of.digits - 1))}
    return min(known, key=lambda number: abs(number - x))

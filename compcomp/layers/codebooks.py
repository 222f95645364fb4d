"""Define the tables of values of number formats with few bits, as exact numbers in ascending order."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

from compcomp.errors import InputError
from compcomp.terms import code_midpoint_goes_down


class Codes(tuple[Fraction, ...]):
    """Hold a table of Fractions in ascending order, not 0 alone.

    It is checked once, when it is made, as it may be long.

    Raises:
        InputError: the numbers are no such table.
    """

    __slots__ = ()

    def __new__(cls, numbers: Iterable[Fraction]) -> Codes:
        if isinstance(numbers, Codes):
            return numbers
        codes = super().__new__(cls, numbers)
        exact = any(codes) and all(isinstance(code, Fraction) for code in codes)
        if not exact or not all(low < high for low, high in pairwise(codes)):
            raise InputError(f"codes {str(tuple(codes))[:60]}", "Fractions in ascending order, not 0 alone", "codebook")
        return codes


def float_codes(exponent_bits: int, mantissa_bits: int, bias: int, largest: Fraction | int) -> Codes:
    """Return the finite values of a binary floating-point format with subnormals and a sign.

    For exponent field e and mantissa field m the magnitude is 2^(e - bias) (1 + m / 2^mantissa_bits), and
    2^(1 - bias) m / 2^mantissa_bits if e = 0. The two zeros count once.

    Args:
        exponent_bits: the bits of the exponent field.
        mantissa_bits: the bits of the mantissa field.
        bias: the bias of the exponent.
        largest: the largest magnitude; larger ones are left out.
    """
    steps = 2**mantissa_bits
    found = {Fraction(2) ** (1 - bias) * Fraction(m, steps) for m in range(steps)}
    for e in range(1, 2**exponent_bits):
        found |= {Fraction(2) ** (e - bias) * (1 + Fraction(m, steps)) for m in range(steps)}
    kept = [x for x in found if x <= largest]
    return Codes(sorted({*kept, *(-x for x in kept)}))


def whole_codes(levels: int, unit: Fraction | int = 1) -> Codes:
    """Return the codes ``k * unit`` for integers k, ``|k| <= levels``."""
    return Codes(Fraction(k) * unit for k in range(-levels, levels + 1))


def dynamic_codes(bits: int) -> Codes:
    """Return the values of a dynamic data type with so many bits: a sign, a decimal exponent and a linear fraction.

    The values are, for i < bits - 1, 10^(i - bits + 2) times the middles of 2^i equal parts of [1/10, 1], of both
    signs, and also 0 and 1.
    """
    found = {Fraction(0), Fraction(1)}
    for i in range(bits - 1):
        unit, part = Fraction(10) ** (i - bits + 2), Fraction(9, 10) / 2**i
        middles = {unit * (Fraction(1, 10) + part * (k + Fraction(1, 2))) for k in range(2**i)}
        found |= middles | {-x for x in middles}
    return Codes(sorted(found))


def midpoints_down(codes: tuple[Fraction, ...], rounding: str) -> list[bool]:
    """Return for each midpoint between neighbouring codes True if it goes to the lesser code; "any" is "half_up"."""
    rounding = "half_up" if rounding == "any" else rounding
    return [code_midpoint_goes_down(codes, k, rounding) for k, _ in enumerate(pairwise(codes))]


E2M1 = float_codes(2, 1, bias=1, largest=6)
E2M3 = float_codes(2, 3, bias=1, largest=Fraction(15, 2))
E3M2 = float_codes(3, 2, bias=3, largest=28)
E4M3 = float_codes(4, 3, bias=7, largest=448)
E5M2 = float_codes(5, 2, bias=15, largest=57344)

_NF4 = (
    *("-1.0", "-0.6961928009986877", "-0.5250730514526367", "-0.39491748809814453", "-0.28444138169288635"),
    *("-0.18477343022823334", "-0.09105003625154495", "0.0", "0.07958029955625534", "0.16093020141124725"),
    *("0.24611230194568634", "0.33791524171829224", "0.44070982933044434", "0.5626170039176941"),
    *("0.7229568362236023", "1.0"),
)
NF4 = Codes(Fraction(float(code)) for code in _NF4)
"""The table of 4-bit NormalFloat, with the exact float32 numbers that are in use [dettmers2023]."""

DYNAMIC8 = dynamic_codes(8)
"""The 8-bit dynamic data type, to which scales are rounded [dettmers2023]."""

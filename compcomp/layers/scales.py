"""Define the number formats in which the steps of grids are stored, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import numpy as np

from compcomp.errors import NotExactError
from compcomp.terms import Abs, Batch, Choices, SymbolicChoices, Term, power_of_two, reading


@dataclass(frozen=True)
class FloatFormat:
    """Define a binary floating-point format with subnormals, and without infinities.

    Args:
        digits: the significant bits of a normal number.
        least: the exponent of the least normal number.
        most: the exponent of the largest numbers.
        bits: the bits of a number.
    """

    digits: int
    least: int
    most: int
    bits: int

    @property
    def largest(self) -> Fraction:
        """The largest number."""
        return (2 - Fraction(2) ** (1 - self.digits)) * Fraction(2) ** self.most

    @property
    def error(self) -> Fraction:
        """The largest relative error of rounding to a normal number."""
        return Fraction(1, 2**self.digits + 1)

    @property
    def smallest_error(self) -> Fraction:
        """The largest error of rounding to a subnormal number."""
        return Fraction(2) ** (self.least - self.digits)


SCALES: dict[str, FloatFormat | None] = {
    "exact": None,
    "float32": FloatFormat(24, -126, 127, 32),
    "float16": FloatFormat(11, -14, 15, 16),
    "bfloat16": FloatFormat(8, -126, 127, 16),
    "power_of_two": FloatFormat(1, -127, 127, 8),
}
"""The formats that a parameter ``scales`` names. "power_of_two" has the range of E8M0, and also 0."""


def scale_bits(scales: str) -> int:
    """Return the bits of a stored step. An exact one counts as 16."""
    found = SCALES[scales]
    return 16 if found is None else found.bits


def stored(x: Term, scales: str, choices: Choices) -> Term:
    """Return the number of a format that is nearest to ``x``. Midpoints go to the even one.

    A number beyond the largest one goes to it, with the sign of ``x``.

    For z3 the result is a real p of which only bounds are known: its sign, the error of rounding, and the largest
    number. There is one p for each argument as it is written. A formula thus admits more values than the nearest
    number, so a statement proved for all of them holds for it.

    Args:
        x: the number.
        scales: one of :data:`SCALES`; "exact" returns ``x``.
        choices: records the margin, and collects the premises about p, for z3.

    Raises:
        NotExactError: ``x`` is a sympy term that is no number.
        TypeError: ``x`` is a z3 term and ``choices`` collects no premises.
    """
    to = SCALES[scales]
    if to is None:
        return x
    kind = reading(x)
    if kind == "number":
        found = _nearest(Fraction(x), to, choices)
        return float(found) if isinstance(x, float) else found
    if kind == "batch":
        return Batch(_nearest_floats(x.values, to))
    if kind == "sympy":
        import sympy

        if not x.is_Rational:
            raise NotExactError(f"rounding to {scales} is not written for sympy")
        return sympy.Rational(*_nearest(Fraction(int(x.p), int(x.q)), to, choices).as_integer_ratio())
    return _bounded(x, scales, to, choices)


def _nearest(x: Fraction, to: FloatFormat, choices: Choices) -> Fraction:
    if not x:
        return x
    unit: Fraction = max(power_of_two(abs(x), choices), Fraction(2) ** to.least) * Fraction(2) ** (1 - to.digits)
    ratio = x / unit
    choices.near(abs(float(ratio % 1 - Fraction(1, 2))))
    return max(-to.largest, min(to.largest, round(ratio) * unit))


def _nearest_floats(x: Any, to: FloatFormat) -> Any:
    unit = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 1, to.least) + 1 - to.digits)
    return np.clip(np.rint(x / unit) * unit, -float(to.largest), float(to.largest))


# Bounds. Let p be the nearest number to x, f the format, and L its largest number. If |x| >= L, |p| = L. Else let e be
# the exponent of x, at least that of the least normal number: neighbours of x are u = 2^(e + 1 - digits) apart, so
# |p - x| <= u / 2. For a normal x = (1 + t) 2^e the error is also at most t 2^e, as 2^e is a number, so it is at most
# min(t, 2^-digits) 2^e, a share of x of at most 2^-digits / (1 + 2^-digits) = 1 / (2^digits + 1). For a subnormal x it
# is at most 2^(least - digits). The sign does not change, as 0 is a number.


def _bounded(x: Term, scales: str, to: FloatFormat, choices: Choices) -> Term:
    import z3

    plain = z3.simplify(x)
    if z3.is_rational_value(plain):
        return z3.RealVal(_nearest(plain.as_fraction(), to, choices))
    if not isinstance(choices, SymbolicChoices):
        raise TypeError("a stored step is symbolic only with the premises that a prover collects")
    name = blake2b(plain.sexpr().encode(), digest_size=16).hexdigest()
    found, largest = z3.Real(f"{scales}_{name}"), z3.RealVal(to.largest)
    size, apart = Abs(x), Abs(found - x)
    near = z3.Or(apart <= z3.RealVal(to.error) * size, apart <= z3.RealVal(to.smallest_error))
    known = z3.And(
        z3.Implies(x >= 0, found >= 0),
        z3.Implies(x <= 0, found <= 0),
        z3.If(size >= largest, Abs(found) == largest, z3.And(near, Abs(found) <= largest)),
    )
    if not any(known.eq(premise) for premise in choices.premises):
        choices.assume(known)
    return found

"""Checks of the parameters techniques share. Each raises InputError with what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Generic, TypeAlias, TypeVar, dataclass_transform

import numpy as np

from compcomp.errors import InputError
from compcomp.layers.partition import Partition


def shown(given: Any) -> str:
    """What was given, in at most 60 characters."""
    try:
        return repr(given)[:60]
    except ValueError:  # Python does not print whole numbers of thousands of digits
        return "a huge number"


class Unknown:
    """A parameter that may have any of its values. A claim with one holds only if it holds for every value.

    There is one, ``Any``. In a claim all ``sparsity=Any`` stand for one sparsity, all ``bits=Any`` for one bit
    width.
    """

    def __repr__(self) -> str:
        return "Any"

    def __reduce__(self) -> str:
        return "ANY"


ANY = Unknown()
"""Written ``Any`` in text; in Python also ``typing.Any``."""


def is_unknown(given: object) -> bool:
    """Whether a parameter is given as Any."""
    return given is ANY or given is Any


# ------------------------------------------------------------------------------------------------ types

Number: TypeAlias = int | float | str | Fraction | Decimal | np.integer[Any] | np.floating[Any]
"""How an exact number may be given: see :func:`number`."""
AnyValue: TypeAlias = Unknown | type[Any]
"""How Any may be given: ``compcomp.ANY``, or ``typing.Any``."""

Read = TypeVar("Read", covariant=True)
Given = TypeVar("Given", contravariant=True)
Kind = TypeVar("Kind")


class Parameter(Generic[Read, Given]):
    """The type of a parameter that is given as one thing and reads as another, as its class checks and converts it.

    For type checkers alone, in classes that :func:`parametrized` decorates: while a program runs it is an attribute
    like any other.
    """

    def __get__(self, technique: object, kind: object) -> Read:
        raise NotImplementedError

    def __set__(self, technique: Any, value: Given) -> None:
        raise NotImplementedError


Exact: TypeAlias = Parameter[Fraction, Number]
"""An exact number."""
ExactOrAny: TypeAlias = Parameter[Fraction | Unknown, Number | AnyValue]
"""An exact number, or Any in claims."""
BitsOrAny: TypeAlias = Parameter[int | Unknown, int | AnyValue]
"""A whole number, or Any in claims."""


def default(value: object) -> Any:
    """Return the value: the default of a parameter whose type is a :class:`Parameter`."""
    return value


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def parametrized(kind: type[Kind]) -> type[Kind]:
    """Make a frozen dataclass, of which type checkers know how a :class:`Parameter` may be given."""
    return dataclass(frozen=True)(kind)


# ------------------------------------------------------------------------------------------------ checks

LARGEST = 10**9
"""Magnitude that a number may have: text says it of every number but those of a quotient."""
LONGEST = 100
"""Characters that an exact number may take to write."""
SIMPLE = {2: 16, 4: 1000, 8: 10_000}
"""By the bytes of a float, the largest denominator of what it may stand for: it is near one such fraction at most."""
NEAR = Fraction(1, 2**50)
"""How far a float may lie from the fraction that it stands for, after a sum or difference or two: 1 - 0.9 is 1/10."""


def number(given: Any, where: str, allowed: str) -> Fraction:
    """An exact number, of which the text is one again: an int, a Fraction, a Decimal, a text such as "1/2", a float.

    A float stands for the fraction with a denominator of up to 10 000 of which it is the float, or is within 2^-50
    (2/3, 1 - 0.9); where there is none, for its decimal digits. Numbers of numpy are read alike.
    """
    try:
        if isinstance(given, np.floating | float):
            return _short(_meant(given))
        if isinstance(given, np.integer):
            return _short(Fraction(int(given)))
        if not isinstance(given, int | str | Fraction | Decimal) or isinstance(given, bool):
            raise ValueError
        return _short(Fraction(_text(given)))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(shown(given), allowed, where) from None


def digits(given: Any, where: str, allowed: str) -> Fraction:
    """The same, of a float the number that its decimal digits are: for weights that are data."""
    try:
        if not isinstance(given, int | float | str | Fraction) or isinstance(given, bool):
            raise ValueError
        return Fraction(_text(given))
    except (ValueError, ZeroDivisionError):
        raise InputError(shown(given), allowed, where) from None


def _text(given: object) -> str:
    text = str(given)
    if len(text) > LONGEST or re.search(r"e[+-]?[\d_]{4}", text.lower()):  # Fraction("1e999999999") never ends
        raise ValueError
    return text


def _short(value: Fraction) -> Fraction:
    if abs(value) > LARGEST or len(str(value)) > LONGEST:
        raise ValueError
    return value


def _meant(given: Any) -> Fraction:
    """The fraction that a float stands for."""
    exact, size = Fraction(float(given)), given.nbytes if isinstance(given, np.floating) else 8
    simple = exact.limit_denominator(SIMPLE.get(size, SIMPLE[8]))
    near = size >= 8 and abs(exact) < 16 and abs(exact - simple) <= NEAR and abs(exact - simple) * 10**12 <= abs(exact)
    if near or type(given)(simple.numerator / simple.denominator) == given:
        return simple
    return Fraction(str(given))


def sparsity(given: Any, where: str) -> Fraction | Unknown:
    """A share of weights to drop: 0 <= s < 1, or Any."""
    if is_unknown(given):
        return ANY
    allowed = "a number in [0, 1) such as 1/2 or 0.5"
    value = number(given, where, allowed)
    if not 0 <= value < 1:
        raise InputError(shown(given), allowed, where)
    return value


def share(given: Any, where: str) -> Fraction:
    """A share of weights, rows or columns to drop: a number 0 <= s < 1, not Any."""
    value = sparsity(given, where)
    if isinstance(value, Unknown):
        raise InputError("Any", "a number in [0, 1) such as 1/2 or 0.5", where)
    return value


def step_length(given: Any, where: str) -> Fraction:
    """A step of gradient descent as a multiple of one that is sure not to increase the loss: between 0 and 2."""
    allowed = "a number between 0 and 2 such as 1 or 1/2"
    value = number(given, where, allowed)
    if not 0 < value < 2:
        raise InputError(shown(given), allowed, where)
    return value


def whole(given: Any, low: int, high: int, where: str) -> int:
    """A whole number in a range."""
    if type(given) is not int or not low <= given <= high:
        raise InputError(shown(given), f"a whole number from {low} to {high}", where)
    return given


def bit_width(given: Any, where: str) -> int | Unknown:
    """How many bits a grid has: 2 to 16, or Any."""
    return ANY if is_unknown(given) else whole(given, 2, 16, where)


def one_of(given: Any, allowed: Sequence[str], where: str) -> str:
    """One of the listed words."""
    if given not in allowed:
        raise InputError(shown(given), ", ".join(map(repr, allowed)), where)
    return str(given)


SCALES_PER = ("tensor", "channel")


def grid_partition(group: Any, per: Any, where: str) -> Partition:
    """The weights that share a scale: ``group`` consecutive ones of a row or, without a group, tensor or output row."""
    one_of(per, SCALES_PER, f"{where}.per")
    if group is None:
        return Partition.tensor() if per == "tensor" else Partition.rows()
    whole(group, 1, 2**20, f"{where}.group")
    if per != "tensor":
        raise InputError(f"group={group} with per={shown(per)}", "one of the two", where)
    return Partition.blocks(group)


def selection_partition(pattern: Any, per: str, share: Fraction | Unknown, where: str) -> Partition:
    """The groups of an unstructured or N:M selection; N:M keeps N of every M consecutive weights of a row."""
    allowed = "'unstructured' or 'n:m' with 0 < n <= m <= 256, such as '2:4'"
    if pattern == "unstructured":
        return Partition.rows() if per == "row" else Partition.tensor()
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern) if isinstance(pattern, str) else None
    if match is None or not 0 < int(match[1]) <= int(match[2]) <= 256:
        raise InputError(shown(pattern), allowed, f"{where}.pattern")
    kept, size = int(match[1]), int(match[2])
    if share != 1 - Fraction(kept, size):
        raise InputError(f"sparsity={share} with pattern={pattern!r}", f"sparsity={1 - Fraction(kept, size)}", where)
    return Partition.blocks(size)


def damping(given: Any, where: str) -> Fraction:
    """What is added to the diagonal of a Gram matrix, as a share of the diagonal's mean: more than 0."""
    allowed = "a number above 0 such as 1/100 or 0.01"
    value = number(given, where, allowed)
    if value <= 0:
        raise InputError(shown(given), allowed, where)
    return value


def known(given: Any, where: str) -> Any:
    """The value of a parameter that a layer needs known; InputError where it is Any."""
    if isinstance(given, Unknown):
        raise InputError(f"{where}=Any", "a number where a layer is compressed", where)
    return given

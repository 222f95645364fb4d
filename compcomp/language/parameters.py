"""Check the parameters that techniques share.

Each check raises InputError with the value that was given and the values that are allowed.
"""

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
    """Return a value as text of at most 60 characters."""
    try:
        return repr(given)[:60]
    except ValueError:  # Python does not print integers of thousands of digits
        return "a huge number"


class Unknown:
    """Represent a parameter that may have any of its values.

    A claim with such a parameter holds only if it holds for every value. There is one instance, ``Any``. In a claim all
    ``sparsity=Any`` stand for the same sparsity, and all ``bits=Any`` for the same bit width.
    """

    def __repr__(self) -> str:
        return "Any"

    def __reduce__(self) -> str:
        return "ANY"


ANY = Unknown()
"""The open parameter, written ``Any`` in text. In Python ``typing.Any`` is accepted too."""


def is_unknown(given: object) -> bool:
    """Return True if a parameter is given as Any."""
    return given is ANY or given is Any


# ------------------------------------------------------------------------------------------------ types

Number: TypeAlias = int | float | str | Fraction | Decimal | np.integer[Any] | np.floating[Any]
"""The types in which an exact number may be given, see :func:`number`."""
AnyValue: TypeAlias = Unknown | type[Any]
"""The types in which Any may be given: ``compcomp.ANY`` or ``typing.Any``."""

Read = TypeVar("Read", covariant=True)
Given = TypeVar("Given", contravariant=True)
Kind = TypeVar("Kind")


class Parameter(Generic[Read, Given]):
    """Type a parameter that is given in one type and read in another, because its class checks and converts it.

    It is for type checkers only, in classes that :func:`parametrized` decorates. At run time the parameter is an
    ordinary attribute.
    """

    def __get__(self, technique: object, kind: object) -> Read:
        raise NotImplementedError

    def __set__(self, technique: Any, value: Given) -> None:
        raise NotImplementedError


Exact: TypeAlias = Parameter[Fraction, Number]
"""An exact number."""
ExactOrAny: TypeAlias = Parameter[Fraction | Unknown, Number | AnyValue]
"""An exact number, or Any in claims."""
BitsOrAny: TypeAlias = Parameter[int | Unknown, int | np.integer[Any] | AnyValue]
"""An integer, or Any in claims."""


def default(value: object) -> Any:
    """Return the value, as the default of a parameter whose type is a :class:`Parameter`."""
    return value


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def parametrized(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass whose :class:`Parameter` fields are known to type checkers."""
    return dataclass(frozen=True)(kind)


# ------------------------------------------------------------------------------------------------ checks

LARGEST = 10**9
"""The largest magnitude of a number. In text it applies to every number except the parts of a quotient."""
LONGEST = 100
"""The number of characters that an exact number may have as text."""
SIMPLE = {2: 16, 4: 1000, 8: 10_000}
"""The largest denominator of the fraction that a float may represent, by the size of the float in bytes.

A float is near at most one such fraction.
"""
NEAR = Fraction(1, 2**50)
"""The largest distance of a float from the fraction that it represents.

It allows for the rounding of one or two sums or differences, so that 1 - 0.9 is 1/10.
"""


def number(given: Any, where: str, allowed: str) -> Fraction:
    """Return a number as an exact Fraction, whose text gives the same number again.

    A float represents a fraction with a denominator of up to 10 000, if it is the float of that fraction or within
    2^-50 of it (2/3, 1 - 0.9). If there is no such fraction, it represents the number with its decimal digits. numpy
    numbers are read in the same way.

    Args:
        given: an int, a Fraction, a Decimal, a text such as "1/2", or a float.
        where: the parameter that an error names.
        allowed: the allowed values that an error names.

    Raises:
        InputError: it is no number, or too large or too long.
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
    """Return a number as an exact Fraction, and a float as the number with its decimal digits.

    It is for weights that are data. Arguments and errors are those of :func:`number`.
    """
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
    """Return the fraction that a float represents."""
    exact, size = Fraction(float(given)), given.nbytes if isinstance(given, np.floating) else 8
    simple = exact.limit_denominator(SIMPLE.get(size, SIMPLE[8]))
    near = size >= 8 and abs(exact) < 16 and abs(exact - simple) <= NEAR and abs(exact - simple) * 10**12 <= abs(exact)
    if near or type(given)(simple.numerator / simple.denominator) == given:
        return simple
    return Fraction(str(given))


def sparsity(given: Any, where: str) -> Fraction | Unknown:
    """Return a share of weights to drop: a number 0 <= s < 1, or Any."""
    if is_unknown(given):
        return ANY
    allowed = "a number in [0, 1) such as 1/2 or 0.5"
    value = number(given, where, allowed)
    if not 0 <= value < 1:
        raise InputError(shown(given), allowed, where)
    return value


def share(given: Any, where: str) -> Fraction:
    """Return a share of weights, rows or columns to drop: a number 0 <= s < 1, not Any."""
    value = sparsity(given, where)
    if isinstance(value, Unknown):
        raise InputError("Any", "a number in [0, 1) such as 1/2 or 0.5", where)
    return value


def step_length(given: Any, where: str) -> Fraction:
    """Return the step of gradient descent, between 0 and 2.

    Its unit is a step that is certain not to increase the loss.
    """
    allowed = "a number between 0 and 2 such as 1 or 1/2"
    value = number(given, where, allowed)
    if not 0 < value < 2:
        raise InputError(shown(given), allowed, where)
    return value


def whole(given: Any, low: int, high: int, where: str) -> int:
    """Return an integer from ``low`` to ``high``."""
    if type(given) is not int or not low <= given <= high:
        raise InputError(shown(given), f"a whole number from {low} to {high}", where)
    return given


def bit_width(given: Any, where: str) -> int | Unknown:
    """Return the number of bits of a grid: 2 to 16, or Any."""
    return ANY if is_unknown(given) else whole(given, 2, 16, where)


def one_of(given: Any, allowed: Sequence[str], where: str) -> str:
    """Return the text that is given, if it is among the allowed ones."""
    if given not in allowed:
        raise InputError(shown(given), ", ".join(map(repr, allowed)), where)
    return str(given)


SCALES_PER = ("tensor", "channel")


def grid_partition(group: Any, per: Any, where: str) -> Partition:
    """Return the partition into weights that share a scale.

    Args:
        group: the number of consecutive weights of a row, or None for groups that ``per`` determines.
        per: "tensor" for the whole tensor, "channel" for each output row.
        where: the technique that an error names.

    Raises:
        InputError: a value is not allowed, or both are given.
    """
    one_of(per, SCALES_PER, f"{where}.per")
    if group is None:
        return Partition.tensor() if per == "tensor" else Partition.rows()
    whole(group, 1, 2**20, f"{where}.group")
    if per != "tensor":
        raise InputError(f"group={group} with per={shown(per)}", "one of the two", where)
    return Partition.blocks(group)


def selection_partition(pattern: Any, per: str, share: Fraction | Unknown, where: str) -> Partition:
    """Return the partition of an unstructured or N:M selection.

    Args:
        pattern: "unstructured", or N:M such as "2:4", which keeps N of every M consecutive weights of a row.
        per: "row" or "tensor", the groups of an unstructured selection.
        share: the share of weights to drop, which an N:M pattern determines.
        where: the technique that an error names.

    Raises:
        InputError: the pattern is not known, or contradicts the share.
    """
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
    """Return the damping of a Gram matrix, a number > 0.

    The damping times the mean of the diagonal is added to the diagonal.
    """
    allowed = "a number above 0 such as 1/100 or 0.01"
    value = number(given, where, allowed)
    if value <= 0:
        raise InputError(shown(given), allowed, where)
    return value


def known(given: Any, where: str) -> Any:
    """Return the value of a parameter that a layer depends on; raise InputError if it is Any."""
    if isinstance(given, Unknown):
        raise InputError(f"{where}=Any", "a number where a layer is compressed", where)
    return given

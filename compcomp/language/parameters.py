"""Checks of the parameters techniques share. Each raises InputError with what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.partition import Partition


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


def number(given: Any, where: str, allowed: str) -> Fraction:
    """An exact number from an int, a Fraction, a text such as "1/2", or a float read as its decimal digits."""
    try:
        known = isinstance(given, int | float | str | Fraction) and not isinstance(given, bool)
        text = str(given) if known else ""
        if len(text) > 40 or re.search(r"e[+-]?[\d_]{4}", text.lower()):  # Fraction("1e999999999") never ends
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(shown(given), allowed, where) from None


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

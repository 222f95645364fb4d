"""Checks of the parameters techniques share. Each raises InputError with what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.partition import Partition


def number(given: Any, where: str, allowed: str) -> Fraction:
    """An exact number from an int, a Fraction, a text such as "1/2", or a float read as its decimal digits."""
    if isinstance(given, bool) or not isinstance(given, int | float | str | Fraction) or len(str(given)) > 40:
        raise InputError(repr(given)[:60], allowed, where)
    try:
        return Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        raise InputError(repr(given)[:60], allowed, where) from None


def sparsity(given: Any, where: str) -> Fraction:
    """A share of weights to drop: 0 <= s < 1."""
    allowed = "a number in [0, 1) such as 1/2 or 0.5"
    value = number(given, where, allowed)
    if not 0 <= value < 1:
        raise InputError(repr(given)[:60], allowed, where)
    return value


def whole(given: Any, low: int, high: int, where: str) -> int:
    """A whole number in a range."""
    if type(given) is not int or not low <= given <= high:
        shown = repr(given) if not isinstance(given, int) or abs(given) < 10**30 else "a huge number"
        raise InputError(shown[:60], f"a whole number from {low} to {high}", where)
    return given


def one_of(given: Any, allowed: Sequence[str], where: str) -> str:
    """One of the listed words."""
    if given not in allowed:
        raise InputError(repr(given)[:60], ", ".join(map(repr, allowed)), where)
    return str(given)


def selection_partition(pattern: Any, per: str, share: Fraction, where: str) -> Partition:
    """The groups of an unstructured or N:M selection; N:M keeps N of every M consecutive weights of a row."""
    allowed = "'unstructured' or 'n:m' with 0 < n <= m <= 256, such as '2:4'"
    if pattern == "unstructured":
        return Partition.rows() if per == "row" else Partition.tensor()
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern) if isinstance(pattern, str) else None
    if match is None or not 0 < int(match[1]) <= int(match[2]) <= 256:
        raise InputError(repr(pattern)[:60], allowed, f"{where}.pattern")
    kept, size = int(match[1]), int(match[2])
    if share != 1 - Fraction(kept, size):
        raise InputError(f"sparsity={share} with pattern={pattern!r}", f"sparsity={1 - Fraction(kept, size)}", where)
    return Partition.blocks(size)

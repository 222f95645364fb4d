"""Run a part of many cases with every change, and all of them in ``make exhaustive``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def spread(values: Iterable[Any], kept: int) -> list[Any]:
    """Return all values as parameters of a test, ``kept`` of them plain, evenly spread, the others marked exhaustive.

    A tuple has a value for each argument of the test, so a single argument that is a tuple is given as ``(value,)``.
    """
    given = [value if type(value) is tuple else (value,) for value in values]
    plain = {k * len(given) // kept for k in range(kept)}
    marks = [() if place in plain else pytest.mark.exhaustive for place in range(len(given))]
    return [pytest.param(*value, marks=mark) for value, mark in zip(given, marks, strict=True)]

"""Run a part of many cases with every change, and all of them in ``make exhaustive``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def spread(values: Iterable[Any], kept: int) -> list[Any]:
    """Return all values as parameters of a test, evenly spread ``kept`` of them plain, the others marked exhaustive."""
    given = list(values)
    plain = {k * len(given) // kept for k in range(kept)}
    return [
        value
        if place in plain
        else pytest.param(*(value if type(value) is tuple else (value,)), marks=pytest.mark.exhaustive)
        for place, value in enumerate(given)
    ]

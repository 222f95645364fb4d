"""Run a part of many cases with every change, and all of them in ``make exhaustive``."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def marked(values: Iterable[Any], plain: Container[int]) -> list[Any]:
    """Return all values as parameters of a test, those at the places ``plain`` as they are, the others exhaustive.

    A tuple has a value for each argument of the test, so a single argument that is a tuple is given as ``(value,)``.
    """
    given = [value if type(value) is tuple else (value,) for value in values]
    marks = [() if place in plain else pytest.mark.exhaustive for place in range(len(given))]
    return [pytest.param(*value, marks=mark) for value, mark in zip(given, marks, strict=True)]


def spread(values: Iterable[Any], kept: int) -> list[Any]:
    """Return all values as parameters of a test, ``kept`` of them plain, evenly spread: see :func:`marked`."""
    values = list(values)
    return marked(values, {k * len(values) // kept for k in range(kept)})


def covering(items: Sequence[Any]) -> set[int]:
    """Return the places of few of these dataclass instances, so that every value of every field occurs in one."""
    values = [{(f.name, getattr(item, f.name)) for f in fields(item)} for item in items]
    missing, places = set[tuple[str, Any]]().union(*values), {0}
    missing -= values[0]
    while missing:
        best = max(range(len(items)), key=lambda place: len(values[place] & missing))
        places.add(best)
        missing -= values[best]
    return places


def drawn(*strategies: SearchStrategy[Any], kept: int, of: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let Hypothesis draw the arguments of a test, always alike: ``kept`` times with every change, ``of`` times in all.

    The test has no other arguments.
    """

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("examples", [kept, pytest.param(of, marks=pytest.mark.exhaustive)])
        def run(examples: int) -> None:
            settings(max_examples=examples, deadline=None, derandomize=True)(given(*strategies)(test))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorated

"""What answers are kept by: of a function not the object, which may come to do something else, but what it says."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import z3

from compcomp.language.steps import Element, ScaledMap, Selection
from compcomp.terms import Term

# A function stays the same object when a helper that it calls is defined anew (a notebook's cell run again) and when
# its module is reloaded in place. So a lemma about it is kept by the term that it makes of symbols now. Functions of
# this library stand for themselves: they do not change while it runs.


class _Said:
    """A term that a function made; equal to one that is built alike."""

    def __init__(self, term: Term) -> None:
        self._term = term

    def __hash__(self) -> int:
        return hash(self._term)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Said):
            return NotImplemented
        one, two = self._term, other._term
        if isinstance(one, z3.AstRef) or isinstance(two, z3.AstRef):
            return isinstance(one, z3.AstRef) and isinstance(two, z3.AstRef) and one.eq(two)
        return type(one) is type(two) and bool(one == two)


def _ours(function: Callable[..., Any]) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "compcomp"


def of_score(selection: Selection) -> Hashable:
    """What a selection scores by. Of a score of the whole layer rules know nothing: that stands for itself."""
    if selection.of_layer is not None:
        return selection.of_layer
    score = selection.score
    return score if _ours(score) else _Said(score(Element(*z3.Reals("weight norm2 reference"))))


def of_measure(step: ScaledMap) -> Hashable:
    """What a map measures."""
    return step.measure if _ours(step.measure) else _Said(step.measure(z3.Real("weight")))

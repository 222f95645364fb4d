"""Read the functions of steps as terms: scores and measures, and the keys of cached answers about them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from fractions import Fraction

import z3

from compcomp.errors import InputError
from compcomp.language.identity import is_ours, or_itself
from compcomp.language.steps import ScaledMap, Selection, Step
from compcomp.proving.script import has_text
from compcomp.terms import Term

# No function is a key: it stays the same object when a helper that it calls is defined anew (a notebook's cell run
# again) and when its module is reloaded in place. So a lemma about it is cached by the term that it makes of symbols
# now. Functions of this library are their own keys, because they do not change while it runs.


class _Said:
    """A z3 term that a function made. It equals a term of the same structure."""

    def __init__(self, term: z3.ArithRef) -> None:
        self._term = term

    def __hash__(self) -> int:
        return hash(self._term)

    def __eq__(self, other: object) -> bool:
        return self._term.eq(other._term) if isinstance(other, _Said) else NotImplemented


def of_score(selection: Selection) -> Hashable:
    """Return the key of a selection's score. Rules know nothing of a score of the whole layer but its identity."""
    if selection.of_layer is not None:
        return or_itself(selection.of_layer)
    if is_ours(selection.score):
        return selection.needs_inputs, or_itself(selection.score)
    symbols = z3.Reals("weight norm2 reference")
    return selection.needs_inputs, _said(selection.rate, *symbols, what="score", where="Selection")


def scored(selection: Selection, weight: Term, norm2: Term, reference: Term) -> Term:
    """Return a weight's score as a z3 term, also if it is a number."""
    return _symbolic(selection.rate(weight, norm2, reference))


def _symbolic(term: Term) -> Term:
    return z3.RealVal(term) if isinstance(term, int | float | Fraction) else term


def _said(function: Callable[..., Term], *symbols: Term, what: str, where: str) -> _Said:
    """Return the term that a user's function makes of symbols.

    Raises:
        InputError: the result is no number that solvers read.
    """
    try:
        term = _symbolic(function(*symbols))
        if isinstance(term, z3.ArithRef) and has_text(term):
            return _Said(term)
        given = repr(term)
    except z3.Z3Exception as error:
        given = f"terms that z3 refuses ({error})"
    raise InputError(f"a {what} of {given}", "a number made by +, -, * and the functions of compcomp.terms", where)


def of_measure(step: ScaledMap) -> Hashable:
    """Return the key of a map's measure."""
    if is_ours(step.measure):
        return or_itself(step.measure)
    return _said(step.measure, z3.Real("weight"), what="measure", where=type(step).__name__)


def of_step(step: Step) -> Hashable:
    """Return the key of a step and of its functions."""
    if isinstance(step, Selection):
        return or_itself(step), of_score(step)
    return (or_itself(step), of_measure(step)) if isinstance(step, ScaledMap) else or_itself(step)


def on_leaves(term: Term, function: Callable[[Term], Term], done: dict[int, Term]) -> Term:
    """Return the term with each value that its ites choose from replaced by ``function`` of it."""
    if not isinstance(term, z3.ExprRef):
        return function(z3.RealVal(term))
    key = term.get_id()
    if key not in done:
        if z3.is_app_of(term, z3.Z3_OP_ITE):
            condition, then, otherwise = term.children()
            done[key] = z3.If(condition, on_leaves(then, function, done), on_leaves(otherwise, function, done))
        else:
            done[key] = function(term)
    return done[key]

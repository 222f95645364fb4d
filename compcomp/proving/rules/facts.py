"""Facts about single steps, each proved by a query before a rule may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3

from compcomp.language.steps import Element, GridMap, Selection
from compcomp.proving.session import Session
from compcomp.terms import Abs, SymbolicChoices, Term, nearest

# A map rounds to a grid of step s = c / L. Multiplying weights and context by t > 0 multiplies its values by t
# (the nearest multiple of t s to t w is t times that of s to w; the query "homogeneous" asks that the measure
# scales too). So it is enough to look at s = 1 and c = L, and there the formulas are linear even for an unknown
# whole L >= 1: one answer holds for every number of levels.


@dataclass(frozen=True)
class MapFacts:
    """What is proved of a map q at a context c > 0 and weights of measure at most c, for every number of levels.

    function: no choice is left free.  zero: q(0) = 0.  even: measure(-w) = measure(w) >= 0, 0 only at 0, and
    measure(t w) = t measure(w) for t > 0.  odd: q(-w) = -q(w).  monotone: v <= w implies q(v) <= q(w).
    inside: measure(q(w)) <= c.  keeps_largest: measure(w) = c implies measure(q(w)) = c.
    idempotent: q(q(w)) = q(w).  nearest: |w - q(w)| <= |w - q(v)| for every v.
    """

    function: bool
    zero: bool
    even: bool
    odd: bool
    monotone: bool
    inside: bool
    keeps_largest: bool
    idempotent: bool
    nearest: bool


def map_facts(step: GridMap, session: Session) -> MapFacts:
    """Ask for every fact about a map. With free choices each use is a result of its own, and facts about two
    uses hold for any choices."""
    v, w, t = z3.Reals("v w t")
    levels = z3.Int("L")
    largest, measure = z3.ToReal(levels), step.measure

    def ask(name: str, conclusion: Callable[[Callable[[Term], Term]], Term], *extra: Term) -> bool:
        choices = SymbolicChoices()

        def q(x: Term) -> Term:
            return nearest(x, z3.RealVal(1), levels, step.rounding, choices)

        goal = conclusion(q)
        bound = [levels >= 1, measure(v) <= largest, measure(w) <= largest, *extra]
        return session.holds(f"{name} (map)", [*bound, *choices.premises], goal)

    function = ask("function", lambda q: q(w) == q(w))
    return MapFacts(
        function=function,
        zero=ask("zero", lambda q: q(z3.RealVal(0)) == 0),
        even=session.holds(
            "even, homogeneous (measure)",
            [t > 0],
            z3.And(
                measure(-w) == measure(w),
                measure(w) >= 0,
                (measure(w) == 0) == (w == 0),
                measure(t * w) == t * measure(w),
            ),
        ),
        odd=function and ask("odd", lambda q: q(-w) == -q(w)),
        monotone=function and ask("monotone", lambda q: q(v) <= q(w), v <= w),
        inside=ask("inside", lambda q: measure(q(w)) <= largest),
        keeps_largest=ask("keeps the largest", lambda q: measure(q(w)) == largest, measure(w) == largest),
        idempotent=ask("idempotent", lambda q: _again(q, w)),
        nearest=ask("nearest", lambda q: Abs(w - q(w)) <= Abs(w - q(v))),
    )


def _again(q: Callable[[Term], Term], w: Term) -> Term:
    value = q(w)
    return q(value) == value


def fixes(outer: GridMap, inner: GridMap, session: Session) -> bool:
    """Whether every value of the inner map is a value of the outer one: outer(inner(w)) = inner(w).

    Looked at for the context L L' (outer and inner levels), where both steps are whole numbers.
    """
    if outer == inner or outer.measure != inner.measure:
        return False
    w, choices = z3.Real("w"), SymbolicChoices()
    value = nearest(w, z3.RealVal(outer.levels), inner.levels, inner.rounding, choices)
    goal = nearest(value, z3.RealVal(inner.levels), outer.levels, outer.rounding, choices) == value
    bound = outer.measure(w) <= outer.levels * inner.levels
    return session.holds("nested grids", [bound, *choices.premises], goal)


def keeps_largest(selection: Selection, measure: Callable[[Term], Term], session: Session) -> bool:
    """Whether dropping x of largest measure and keeping y leaves y with the same measure, and 0 measures least.

    Then a selection that keeps some weight of a group keeps one of the group's largest measure.
    """
    x, y, g, h = z3.Reals("x y g h")
    drops = selection.score(Element(x, g)) <= selection.score(Element(y, h))
    premises = [g >= 0, h >= 0, drops, measure(y) <= measure(x)]
    goal = z3.And(measure(y) == measure(x), measure(z3.RealVal(0)) <= measure(x))
    return session.holds("a selection keeps the largest", premises, goal)

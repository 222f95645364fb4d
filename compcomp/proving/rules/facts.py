"""Facts about single steps, each proved by a query before a rule may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3

from compcomp.language.steps import Element, GroupMap, Selection
from compcomp.proving.session import Session
from compcomp.terms import Abs, Choices, SymbolicChoices, Term

# A map's value is looked at for the context 1 alone. The fact for a context c > 0 follows from
#   (homogeneous)  q(t w, t c) = t q(w, c)  and  measure(t w) = t measure(w)  for t > 0,
# which is asked too; where the solver gives no answer (wide grids, because of the division) the technique's
# own declaration stands in and the verdict lists it as an assumption.


@dataclass(frozen=True)
class MapFacts:
    """What is proved of a map q at a context c > 0 and weights of measure at most c.

    zero: q(0) = 0.  even: measure(-w) = measure(w) and it is 0 only for 0.  odd: q(-w) = -q(w).
    monotone: v <= w implies q(v) <= q(w).  inside: measure(q(w)) <= c.  keeps_largest: measure(w) = c implies
    measure(q(w)) = c.  idempotent: q(q(w)) = q(w).  nearest: |w - q(w)| <= |w - q(v)| for every v.
    """

    homogeneous: bool
    zero: bool
    even: bool
    odd: bool
    monotone: bool
    inside: bool
    keeps_largest: bool
    idempotent: bool
    nearest: bool


def map_facts(step: GroupMap, session: Session) -> MapFacts:
    """Ask for every fact about a map; a map with free choices has none but those that hold for all of them."""
    v, w = z3.Reals("v w")
    one = z3.RealVal(1)

    def q(x: Term) -> Term:
        return step.value(x, one, Choices())

    if not is_function(step, session):
        return MapFacts(*[False] * 9)
    measure = step.measure
    bound = [measure(v) <= 1, measure(w) <= 1]

    def ask(name: str, conclusion: Term, *extra: Term) -> bool:
        return session.holds(f"{name} of a map", [*bound, *extra], conclusion)

    return MapFacts(
        homogeneous=_homogeneous(step, session),
        zero=ask("zero", q(z3.RealVal(0)) == 0),
        even=session.holds(
            "even measure", [], z3.And(measure(-w) == measure(w), measure(w) >= 0, (measure(w) == 0) == (w == 0))
        ),
        odd=ask("odd", q(-w) == -q(w)),
        monotone=ask("monotone", q(v) <= q(w), v <= w),
        inside=ask("inside", measure(q(w)) <= 1),
        keeps_largest=ask("keeps the largest", measure(q(w)) == 1, measure(w) == 1),
        idempotent=ask("idempotent", q(q(w)) == q(w)),
        nearest=ask("nearest", Abs(w - q(w)) <= Abs(w - q(v))),
    )


def is_function(step: GroupMap, session: Session) -> bool:
    """Whether the map uses no free choice."""
    choices = SymbolicChoices()
    w = z3.Real("w")
    value = step.value(w, z3.RealVal(1), choices)
    return session.holds("no free choice", choices.premises, value == step.value(w, z3.RealVal(1), Choices()))


def _homogeneous(step: GroupMap, session: Session) -> bool:
    w, c, t = z3.Reals("w c t")
    scaled = step.value(t * w, t * c, Choices()) == t * step.value(w, c, Choices())
    measured = step.measure(t * w) == t * step.measure(w)
    return session.holds("homogeneous map", [t > 0, c > 0], z3.And(scaled, measured))


def fixes(outer: GroupMap, inner: GroupMap, session: Session) -> bool:
    """Whether every value of the inner map is a value of the outer one: outer(inner(w)) = inner(w)."""
    if outer == inner or outer.measure != inner.measure:
        return False
    w, one = z3.Real("w"), z3.RealVal(1)
    value = inner.value(w, one, Choices())
    goal = outer.value(value, one, Choices()) == value
    return session.holds("nested grids", [outer.measure(w) <= 1], goal)


def keeps_largest(selection: Selection, measure: Callable[[Term], Term], session: Session) -> bool:
    """Whether dropping x of largest measure and keeping y leaves y with the same measure, and 0 measures least.

    Then a selection that keeps some weight of a group keeps one of the group's largest measure.
    """
    x, y, g, h = z3.Reals("x y g h")
    drops = selection.score(Element(x, g)) <= selection.score(Element(y, h))
    premises = [g >= 0, h >= 0, drops, measure(y) <= measure(x)]
    goal = z3.And(measure(y) == measure(x), measure(z3.RealVal(0)) <= measure(x))
    return session.holds("a selection keeps the largest", premises, goal)

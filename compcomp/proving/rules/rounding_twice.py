"""Prove facts about two neighbouring maps, by which one of them may be left out.

Either the first changes nothing of the second one's result, or both are one range map.
"""

from __future__ import annotations

from fractions import Fraction

import z3

from compcomp.language.identity import all_but, same_but
from compcomp.language.parameters import Unknown
from compcomp.language.steps import CodebookMap, GridMap, RangeMap, ScaledMap
from compcomp.proving.functions import of_measure
from compcomp.proving.rules.facts import MapFacts
from compcomp.proving.session import Session
from compcomp.terms import SymbolicChoices, Term

# Fact (double rounding). Let f and g be scaled maps of one measure and one partition, with steps c / a and c / b at a
# context c (a and b: the numbers of levels, with what lies beyond them, or the largest magnitudes of the codes). Let f
# leave every group its context: no value measures more than c, and one of measure c keeps it (facts.py: inside,
# keeps_largest). Suppose that
#   once    g(f(w)) = g(w)     for measure(w) <= c, at one context for both, whatever f leaves free.
# Then f >> g equals g: in each group g finds after f the context that it would find without f, hence its own grid,
# and sends every weight to the same value. Neither map looks at what the other one records but the weight, and the
# second replaces the grid of the first. (A group of context 0 holds zeros, and both maps leave them alone.)
#   Both steps and all values scale along with c, as the measure does (facts.py: even), so it is enough to look at
# c = a b, where they are b and a, and the formulas are linear. If g leaves midpoints free, `once` fails: the two uses
# of g may choose differently.


def double_rounding(first: ScaledMap, second: ScaledMap, session: Session) -> bool:
    """Return True if the second of two maps is proved to give the same values with the first before it as without."""
    places = _places(first), _places(second)
    if None in places or not same_but(first.partition, second.partition) or of_measure(first) != of_measure(second):
        return False
    key = ("double rounding", of_measure(first), *(all_but(step, "measure", "partition") for step in (first, second)))
    kinds = type(first).__name__, type(second).__name__
    if not session.once((*key, *kinds), lambda: _once(first, second, session)):
        return False
    facts = MapFacts(first, session)
    return facts.even and facts.inside and facts.keeps_largest


def _places(step: ScaledMap) -> Fraction | None:
    """Return the context divided by the step, None if that is not one number."""
    if isinstance(step, GridMap):
        return None if isinstance(step.levels, Unknown) else Fraction(step.reach)
    return step.largest if isinstance(step, CodebookMap) and step.scale == "absmax" else None


def _once(first: ScaledMap, second: ScaledMap, session: Session) -> bool:
    a, b = _places(first), _places(second)
    assert a is not None and b is not None
    w, choices = z3.Real("w"), SymbolicChoices()

    def coarse(x: Term) -> Term:
        return second.rounded(x, z3.RealVal(a), choices)

    goal = coarse(first.rounded(w, z3.RealVal(b), choices)) == coarse(w)
    bound = first.measure(w) <= z3.RealVal(a * b)
    return session.holds("double rounding (two maps)", [bound, *choices.premises], goal)


# Fact (range again). Let a range map q be a function. At step 1 (facts.py, _Group) let a group have the bounds low and
# high = low + L, and let its grid reach from e to e + L. Suppose that, for low <= w <= high,
#   ends    q(low) = e and q(high) = e + L,
#   within  e <= q(w) <= e + L, and where the map reaches 0 also e <= 0 <= e + L and q(0) = 0,
#   least   for the bounds e and e + L the grid starts at e again,
#   again   q(q(w)) = q(w) on that grid.
# Then a second use changes nothing. It finds the bounds e and e + L: of a map that does not reach 0, low and high are
# weights of the group, and its values lie between e and e + L (`within`), which both are values (`ends`). Of one that
# reaches 0, low is a weight or 0. If it is a weight, e is a value and no value nor 0 is less. If not, low = 0 > e or
# all weights are positive, and e = q(low) = q(0) = 0, which no value is less than. Likewise of high. So the step is
# the same one, by `least` the grid is the one that is recorded, and by `again` every weight stays. Steps and values
# scale along with the weights, so step 1 is enough. A group with high = low has step 0: all of its weights are low (0
# where the map reaches 0), both uses leave them alone and record that grid.


def range_again(step: RangeMap, session: Session) -> bool:
    """Return True if a range map that follows itself directly is proved to change nothing."""
    if step.rounding == "any":
        return False
    key = ("range again", *all_but(step, "partition", "levels"))
    return session.once(key, lambda: all(_Bounded(step).holds(name, session) for name in _Bounded.NAMES))


class _Bounded:
    """A group of a range map at step 1, from low to high = low + L."""

    NAMES = ("ends", "within", "least", "again")

    def __init__(self, step: RangeMap) -> None:
        self.step, self.unit, self.levels = step, z3.RealVal(1), z3.Int("L")
        self.low, self.w = z3.Reals("low w")
        self.high = self.low + z3.ToReal(self.levels)

    def holds(self, name: str, session: Session) -> bool:
        choices = SymbolicChoices()
        least = self.step.offset(self.low, self.unit, self.levels, choices)
        last, zero = least + z3.ToReal(self.levels), z3.RealVal(0)

        def q(weight: Term) -> Term:
            return self.step.value(weight, least, self.unit, self.levels, choices)

        if name == "ends":
            goals = [q(self.low) == least, q(self.high) == last]
        elif name == "within":
            goals = [least <= q(self.w), q(self.w) <= last]
            goals += [least <= 0, last >= 0, q(zero) == 0] if self.step.zero else []
        elif name == "least":
            goals = [self.step.offset(least, self.unit, self.levels, choices) == least]
        else:
            value = q(self.w)
            goals = [q(value) == value]
        reaches = [self.low <= 0, self.high >= 0] if self.step.zero else []
        known = [self.levels >= 1, self.low <= self.w, self.w <= self.high, *reaches, *choices.premises]
        if choices.levels:  # true of whole numbers, and said because solvers branch without end if not
            first, *others = choices.levels
            top = first + self.levels
            known += [z3.Or(level <= top - 1, level == top, level >= top + 1) for level in others]
        return all(session.holds(f"{name} (range map)", known, goal) for goal in goals)

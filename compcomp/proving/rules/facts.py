"""Prove facts about single steps, each by a query before a rule may use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any, Generic, TypeVar

import z3

from compcomp.language.identity import all_but, same_but
from compcomp.language.parameters import Unknown
from compcomp.language.steps import CodebookMap, GridMap, RangeMap, ScaledMap, Selection
from compcomp.proving.functions import of_measure, of_score, on_leaves, scored
from compcomp.proving.session import Session
from compcomp.terms import Abs, Max, SymbolicChoices, Term, nearest

T = TypeVar("T")

# A map rounds to a grid of step s that follows from the context c, the largest measure of its group.
#
# Both normalisations below rest on the fact "even": the measure is >= 0, 0 only at 0, and scales along. Where that is
# not proved, nothing else is asked: a measure that is never as small as the context looked at makes all facts true.
#
# Normalisation (levels). s = c / (L + d), and the levels are -L - e to L, with d >= 0 and e fixed. Multiplying weights
# and context by t > 0 multiplies the map's values by t (the nearest multiple of t s to t w is t times that of s to w;
# the query "homogeneous" asks that the measure scales too). So it is enough to look at s = 1 and c = L + d, and there
# the formulas are linear even for an unknown whole L >= 1: one answer holds for every number of levels.
#
# Normalisation (codes). The values are s * k for k in fixed codes, and every fact below is about weights and values
# of one step, hence scales with t > 0 as above. "absmax": s = c / max|k|, so it is enough to look at s = 1 and
# c = max|k|. "power_of_two": s = p(c) / e with p(c) the power of two with p(c) <= c < 2 p(c), and e that of max|k|.
# Taking t = 1 / s, a power of two, gives a weight group of context t c with p(t c) = t p(c) = e and step 1: so it is
# enough to look at s = 1 and every c with e <= c < 2 e. The map does not scale with other t, and no fact says so.
#
# Long tables. That q is monotone is asked of two weights, v <= w, in cells of their own: of tables with many codes
# these are too many for a certificate. There it is asked that w lies between the midpoints m(k - 1) and m(k) around the
# code c(k) = q(w) (nothing is said where there is none), and that q is a function. Let v <= w, and let c(i) = q(v) be
# more than c(j) = q(w). Codes and midpoints ascend, so j <= i - 1 and w <= m(j) <= m(i - 1) <= v. So v = w, and then
# q(v) = q(w), as q is a function.

LONG_TABLE = 64
"""The largest number of codes for which monotone is asked of the cells of two weights."""


class lazy(Generic[T]):
    """A property that is computed once for each object.

    The ``cached_property`` of Python 3.11 holds a lock that all objects share while it computes. A fact waits for its
    solver, so proofs in two threads would wait for each other.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        found = vars(instance)[self._name] = self._function(instance)
        return found


class MapFacts:
    """Facts proved of a map q at a context c > 0 and weights of measure at most c, for every c (and any levels).

    - function: no choice is left free.
    - zero: q(0) = 0.
    - even: measure(-w) = measure(w) >= 0, 0 only at 0, and measure(t w) = t measure(w) for t > 0.
    - odd: q(-w) = -q(w).
    - monotone: v <= w implies q(v) <= q(w).
    - inside: measure(q(w)) <= c.
    - keeps_largest: measure(w) = c implies measure(q(w)) = c.
    - idempotent: q(q(w)) = q(w).
    - nearest: |w - q(w)| <= |w - q(v)| for every v.
    - mirrored: |w - q(w)| <= |w + q(v)| for every v. So no value's negative is nearer, whichever way midpoints go.
    - ordered: |v| < |w| implies |q(v)| <= |q(w)|.
    - half: |w - q(w)| is at most half a step.
    - same_step: after the map, a group that held a weight of measure c has the step that it had.

    Each is asked on first use, once for all maps that differ only in partition and levels, which no query contains.
    With free choices each use has a result of its own, and facts about two uses hold for any choices.
    """

    def __init__(self, step: ScaledMap, session: Session) -> None:
        self._step, self._session = step, session
        self._v, self._w = z3.Real("v"), z3.Real("w")
        self._key = (type(step).__name__, of_measure(step), *all_but(step, "measure", "partition", "levels"))

    @lazy
    def _unit(self) -> _Unit:
        return _Unit.of(self._step)

    def _once(self, name: str, lemma: Callable[[], bool]) -> bool:
        return self._session.once(("map", name, *self._key), lemma)

    def _ask(
        self, name: str, conclusion: Callable[[Callable[[Term], Term]], Term], *extra: Term, opposite: bool = False
    ) -> bool:
        """Ask a fact about the map at step 1.

        Args:
            name: of the fact.
            conclusion: the fact as a formula, from the map.
            extra: further premises.
            opposite: the conclusion compares a value with the negative of another.
        """
        choices, unit, measure = SymbolicChoices(), self._unit, self._step.measure

        def q(x: Term) -> Term:
            return unit.rounded(x, choices)

        goal = conclusion(q)
        if opposite:  # true of whole numbers, as what `nearest` says of two levels, and said for the same reason
            sums = (one + other for one, other in combinations(choices.levels, 2))
            choices.premises += [z3.Or(total <= -1, total == 0, total >= 1) for total in sums]
        bound = [*unit.known, measure(self._v) <= unit.context, measure(self._w) <= unit.context, *extra]
        return self._session.holds(f"{name} (map)", [*bound, *choices.premises], goal)

    def _fact(
        self, name: str, conclusion: Callable[[Callable[[Term], Term]], Term], *extra: Term, opposite: bool = False
    ) -> bool:
        return self.even and self._once(name, lambda: self._ask(name, conclusion, *extra, opposite=opposite))

    @lazy
    def function(self) -> bool:
        return self._fact("function", lambda q: q(self._w) == q(self._w))

    @lazy
    def zero(self) -> bool:
        return self._fact("zero", lambda q: q(z3.RealVal(0)) == 0)

    @lazy
    def even(self) -> bool:
        return self._once("even, homogeneous (measure)", lambda: _even(self._session, self._step.measure, self._w))

    @lazy
    def odd(self) -> bool:
        return self.function and self._fact("odd", lambda q: q(-self._w) == -q(self._w))

    @lazy
    def monotone(self) -> bool:
        if isinstance(self._step, CodebookMap) and len(self._step.codes) > LONG_TABLE:
            return self.function and self._fact("between its midpoints", self._between)
        return self.function and self._fact("monotone", lambda q: q(self._v) <= q(self._w), self._v <= self._w)

    def _between(self, q: Callable[[Term], Term]) -> Term:
        """Return the formula that w lies between the midpoints around q(w), as far as there are any."""
        assert isinstance(self._step, CodebookMap)
        codes, w = self._step.codes, self._w
        middles = [(low + high) / 2 for low, high in pairwise(codes)]
        below = dict(zip(codes, [w, *map(z3.RealVal, middles)], strict=True))
        above = dict(zip(codes, [*map(z3.RealVal, middles), w], strict=True))

        def at(ends: dict[Fraction, Term]) -> Term:
            return on_leaves(q(w), lambda leaf: ends[z3.simplify(leaf).as_fraction()], {})

        return z3.And(at(below) <= w, w <= at(above))

    @lazy
    def inside(self) -> bool:
        return self._fact("inside", lambda q: self._step.measure(q(self._w)) <= self._unit.context)

    @lazy
    def keeps_largest(self) -> bool:
        largest, measure = self._unit.context, self._step.measure
        return self._fact("keeps the largest", lambda q: measure(q(self._w)) == largest, measure(self._w) == largest)

    @lazy
    def idempotent(self) -> bool:
        return self._fact("idempotent", lambda q: _again(q, self._w))

    @lazy
    def nearest(self) -> bool:
        v, w = self._v, self._w
        return self._fact("nearest", lambda q: Abs(w - q(w)) <= Abs(w - q(v)))

    @lazy
    def mirrored(self) -> bool:
        v, w = self._v, self._w
        symmetric = self.odd and self.nearest  # -q(v) is the value of -v
        return symmetric or self._fact("mirrored", lambda q: Abs(w - q(w)) <= Abs(w + q(v)), opposite=True)

    @lazy
    def ordered(self) -> bool:
        if not self.even:
            return False
        return (self.odd and self.monotone) or self._once("ordered", lambda: _ordered(self._ask, self._v, self._w))

    @lazy
    def half(self) -> bool:
        return self._fact("half a step", lambda q: 2 * Abs(self._w - q(self._w)) <= 1)

    @lazy
    def same_step(self) -> bool:
        if not self.even:
            return False
        return (self.inside and self.keeps_largest) or self._once(
            "same step", lambda: _same_step(self._ask, self._step, self._w, self._unit.context)
        )


@dataclass(frozen=True)
class _Unit:
    """A map at step 1.

    Args:
        context: of the group.
        known: premises about the context.
        rounded: the map's values.
    """

    context: Term
    known: list[Term]
    rounded: Callable[[Term, SymbolicChoices], Term]

    @classmethod
    def of(cls, step: ScaledMap) -> _Unit:
        one = z3.RealVal(1)
        if isinstance(step, GridMap):
            levels = z3.Int("L")  # unknown, whatever the map's are
            context, below = z3.ToReal(levels), step.below
            if step.beyond:
                context += z3.RealVal(step.beyond)
            return cls(
                context, [levels >= 1], lambda x, choices: nearest(x, one, levels, step.rounding, choices, below)
            )
        assert isinstance(step, CodebookMap)
        if step.scale == "absmax":
            return cls(z3.RealVal(step.largest), [], lambda x, choices: step.rounded(x, one, choices))
        context, power = z3.Real("c"), z3.RealVal(step.largest_power)
        return cls(context, [power <= context, context < 2 * power], lambda x, choices: step.rounded(x, one, choices))


def _even(session: Session, measure: Callable[[Term], Term], w: Term) -> bool:
    t = z3.Real("t")
    goal = z3.And(
        measure(-w) == measure(w),
        measure(w) >= 0,
        (measure(w) == 0) == (w == 0),
        measure(t * w) == t * measure(w),
    )
    return session.holds("even, homogeneous (measure)", [t > 0], goal)


def _same_step(ask: Callable[..., bool], step: ScaledMap, w: Term, largest: Term) -> bool:
    """Return True if the largest measure is proved to stay between the same two powers of two.

    This is about steps that are a power of two. It is False for every other map.
    """
    if not isinstance(step, CodebookMap) or step.scale != "power_of_two":
        return False
    power, measure = z3.RealVal(step.largest_power), step.measure
    return ask("stays below the next power", lambda q: measure(q(w)) < 2 * power) and ask(
        "stays above the power", lambda q: measure(q(w)) >= power, measure(w) == largest
    )


def _ordered(ask: Callable[..., bool], v: Term, w: Term) -> bool:
    """Return True if |v| < |w| is proved to imply |q(v)| <= |q(w)|.

    It is asked sign by sign: i q(v) >= 0 where i v >= 0, and i q(v) <= j q(w).
    """
    signs = [ask("sign", lambda q, i=i: i * q(v) >= 0, i * v >= 0) for i in (1, -1)]
    return all(signs) and all(
        ask("ordered", lambda q, i=i, j=j: i * q(v) <= j * q(w), i * v >= 0, j * w >= 0, i * v < j * w)
        for i in (1, -1)
        for j in (1, -1)
    )


def _again(q: Callable[[Term], Term], w: Term) -> Term:
    value = q(w)
    return q(value) == value


# For a range map as well it is enough to look at step 1 and high - low = L, and the bounds of a group are those of its
# least weight v and its largest u. A group with high = low has the step 0 and the one value low: its weights stay, and
# they are 0 where one of them is, or where the map reaches 0.


class _Group:
    """One group of a range map at step 1: weights from v to u, the grid, and premises about them."""

    def __init__(self, step: RangeMap) -> None:
        self.step, self.choices = step, SymbolicChoices()
        self.levels, self.unit = z3.Int("L"), z3.RealVal(1)
        self.v, self.u = z3.Reals("v u")
        low, high = step.bounds([self.v, self.u])
        self.known = [self.levels >= 1, high - low == z3.ToReal(self.levels), self.v <= self.u]
        self.least = step.offset(low, self.unit, self.levels, self.choices)

    def value(self, weight: Term) -> Term:
        return self.step.value(weight, self.least, self.unit, self.levels, self.choices)

    def holds(self, name: str, session: Session, conclusion: Term, *extra: Term) -> bool:
        return session.holds(f"{name} (range map)", [*self.known, *extra, *self.choices.premises], conclusion)

    def on_grid(self, x: Term) -> Term:
        """Return the formula that x is a value of the grid: the value nearest to it, whichever way midpoints go."""
        above = Max([0, nearest(x - self.least, self.unit, self.levels, "any", self.choices)])
        if len(self.choices.levels) == 3:  # true of whole numbers, and said because cvc5 branches without end if not
            least, other, level = self.choices.levels
            total = least + level
            self.known.append(z3.Or(total <= other - 1, total == other, total >= other + 1))
        return x == self.least + above


def keeps_zero(step: RangeMap, session: Session) -> bool:
    """Return True if q(0) = 0 is proved for every group that holds a 0."""
    group, zero = _Group(step), z3.RealVal(0)
    return group.holds("zero", session, group.value(zero) == 0, group.v <= 0, group.u >= 0)


def lies_on_grid(step: RangeMap, session: Session) -> bool:
    """Return True if every value is proved to be one of the grid that the map sets up."""
    group, w = _Group(step), z3.Real("w")
    return group.holds("on its grid", session, group.on_grid(group.value(w)), group.v <= w, w <= group.u)


def has_zero(step: RangeMap, session: Session) -> bool:
    """Return True if 0 is proved to be a value of the grid in every group."""
    group = _Group(step)
    return group.holds("zero on its grid", session, group.on_grid(z3.RealVal(0)))


def fixes(outer: ScaledMap, inner: ScaledMap, session: Session) -> bool:
    """Return True if every value of the inner map is proved to be one of the outer: outer(inner(w)) = inner(w).

    The query is about the context L L' (outer and inner levels), in which both steps are whole numbers. Maps with codes
    give False, and so do grids with a value beyond the context, or without a value there.
    """
    if not isinstance(outer, GridMap) or not isinstance(inner, GridMap):
        return False
    if outer.below or outer.beyond or inner.below or inner.beyond:
        return False
    if same_but(outer, inner) or not same_but(outer, inner, "levels", "rounding", "partition"):
        return False
    if isinstance(outer.levels, Unknown) or isinstance(inner.levels, Unknown):
        return False
    w, choices = z3.Real("w"), SymbolicChoices()
    value = nearest(w, z3.RealVal(outer.levels), inner.levels, inner.rounding, choices)
    goal = nearest(value, z3.RealVal(inner.levels), outer.levels, outer.rounding, choices) == value
    bound = outer.measure(w) <= outer.levels * inner.levels
    return session.holds("nested grids", [bound, *choices.premises], goal)


def weight_independent(selection: Selection, session: Session) -> bool:
    """Return True if the score is proved independent of the current weight.

    It may depend on the dense weight and the norm of the input. Then every use of the selection in a claim finds the
    same scores, and drops the same weights unless ties are "any". Nothing is known of scores of the whole layer, here
    and below.
    """
    if selection.of_layer is not None:
        return False
    v, w, h, r = z3.Reals("v w h r")
    goal = scored(selection, v, h, r) == scored(selection, w, h, r)
    return session.holds("a score of the dense weight alone (selection)", [h >= 0], goal)


def keeps_largest(
    selection: Selection,
    step: ScaledMap,
    session: Session,
    *,
    equal_norms: bool = False,
    dense: bool = False,
) -> bool:
    """Return True if a selection that keeps some weight of a group is proved to keep one of largest measure there.

    The query: dropping x of a map's largest measure and keeping y leaves y with the same measure, and 0 measures least.

    Args:
        selection: the selection.
        step: the map whose measure counts.
        session: asks the query.
        equal_norms: the claim says that the norms of all inputs are equal and not 0.
        dense: the selection finds the dense weights. Otherwise it may find any, whatever the dense ones are.
    """
    if selection.of_layer is not None:
        return False
    others = all_but(selection, "score", "partition", "share", "ties")
    key = ("keeps largest", of_score(selection), others, of_measure(step), equal_norms, dense)
    return session.once(key, lambda: _keeps_largest(selection, step.measure, session, equal_norms, dense))


def _keeps_largest(
    selection: Selection, measure: Callable[[Term], Term], session: Session, equal_norms: bool, dense: bool
) -> bool:
    x, y, g, h = z3.Reals("x y g h")
    p, r = (x, y) if dense else z3.Reals("p r")
    drops = scored(selection, x, g, p) <= scored(selection, y, h, r)
    premises = [g >= 0, h >= 0, drops, measure(y) <= measure(x), *([g == h, g > 0] if equal_norms else [])]
    goal = z3.And(measure(y) == measure(x), measure(z3.RealVal(0)) <= measure(x))
    return session.holds("a selection keeps the largest", premises, goal)


def unit_norms(
    selections: Iterable[Selection], part: Callable[[Term, Term, Term], Term] | None, session: Session
) -> bool:
    """Return True if equal norms h > 0 of all inputs may be taken as 1, because scaling them changes no comparison.

    Scores: f(w, t h) <= f(v, t g) iff f(w, h) <= f(v, g), for all dense weights. Losses: l(r, v, t h) is t l(r, v, h),
    or is l(r, v, h), for all r, v, h >= 0 and t > 0.
    """
    v, w, p, r, g, h, t = z3.Reals("v w p r g h t")
    premises = [t > 0, g >= 0, h >= 0]
    for selection in selections:
        if selection.of_layer is not None:
            return False
        before = scored(selection, w, h, p) <= scored(selection, v, g, r)
        after = scored(selection, w, t * h, p) <= scored(selection, v, t * g, r)
        if not session.holds("scores for scaled inputs", premises, before == after):
            return False
    if part is None:
        return True
    scaled = part(r, v, t * h)
    return session.holds("loss does not see the inputs", premises, scaled == part(r, v, h)) or session.holds(
        "loss scales with the inputs", premises, scaled == t * part(r, v, h)
    )

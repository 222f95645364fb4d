"""Define the functions that encodings are written in.

A *term* is one scalar in one of these readings:

- an exact number (``int``, ``Fraction``) or a float, for replay;
- a z3 expression, for proofs;
- a sympy expression, for derivations and printing;
- a :class:`Batch`, a numpy vector with one entry for each candidate layer, for search.

Every function below accepts all of them, so an encoding is written once. Arrays of terms are numpy object arrays.
Do not use Python's ``if``, ``max``, ``sorted`` and ``in`` on terms: ``bool(x > y)`` on a z3 term raises, or returns a
wrong value.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from math import floor, frexp, ldexp
from typing import Any

import numpy as np
import numpy.typing as npt

from compcomp.errors import NotExactError

Term = Any
Array = npt.NDArray[Any]

NO_FLOATS = "a float in an encoding, which is exact: write Fraction(1, 10), or Fraction(0.1) if that float is meant"
LADDER_LEVELS = 32
"""Grids with up to this many levels on each side become a tree of comparisons in z3 (faster up to 5 bits)."""


# ---------------------------------------------------------------------------------------------- readings


class Batch:
    """Represent one number (or truth value) in each of many candidate layers.

    ``values`` has shape (candidates,) and dtype float64 or bool. A batch is deliberately not a sequence, so that numpy
    stores it as one entry of an object array.
    """

    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values: npt.NDArray[Any] = np.asarray(values)

    def __repr__(self) -> str:
        return f"Batch({self.values!r})"

    def __bool__(self) -> bool:
        raise TypeError("a batch has no single truth value: write If, And, Or, Not")

    def __neg__(self) -> Batch:
        return Batch(-self.values)

    def __abs__(self) -> Batch:
        return Batch(np.abs(self.values))


def _plain(x: Any) -> Any:
    if isinstance(x, Batch):
        return x.values
    return float(x) if isinstance(x, Fraction) else x


def _batch_operator(function: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    def forward(self: Batch, other: Any) -> Any:
        return NotImplemented if isinstance(other, np.ndarray) else Batch(function(self.values, _plain(other)))

    def backward(self: Batch, other: Any) -> Any:
        return NotImplemented if isinstance(other, np.ndarray) else Batch(function(_plain(other), self.values))

    return forward, backward


for _name in ("add", "sub", "mul", "truediv"):
    _forward, _backward = _batch_operator(getattr(operator, _name))
    setattr(Batch, f"__{_name}__", _forward)
    setattr(Batch, f"__r{_name}__", _backward)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Batch, f"__{_name}__", _batch_operator(getattr(operator, _name))[0])


def _is_z3(x: Any) -> bool:
    return type(x).__module__.startswith("z3.")


def _is_sympy(x: Any) -> bool:
    return type(x).__module__.startswith("sympy.")


def reading(*terms: Term) -> str:
    """Return the reading of these terms together: ``"z3"``, ``"batch"``, ``"sympy"`` or ``"number"``."""
    found = "number"
    for x in terms:
        if isinstance(x, Batch):
            return "batch"
        if _is_z3(x):
            return "z3"
        if _is_sympy(x):
            found = "sympy"
    return found


# ---------------------------------------------------------------------------------------------- logic


def If(condition: Term, then: Term, otherwise: Term) -> Term:
    """Return ``then`` if the condition holds, else ``otherwise``. Both are terms that are already evaluated."""
    if isinstance(condition, bool | np.bool_):
        return then if condition else otherwise
    if isinstance(condition, Batch):
        return Batch(np.where(condition.values, _plain(then), _plain(otherwise)))
    if _is_z3(condition):
        import z3

        if z3.is_true(condition) or z3.is_false(condition):
            return then if z3.is_true(condition) else otherwise
        if not _is_z3(then) and not _is_z3(otherwise):
            then = z3.RealVal(then) if not isinstance(then, bool) else z3.BoolVal(then)
        return z3.If(condition, then, otherwise)
    import sympy

    return sympy.Piecewise((then, condition), (otherwise, True))


def _connective(terms: Sequence[Term], number: Callable[[Iterable[bool]], bool], batch: Any, z3_name: str) -> Term:
    kind = reading(*terms)
    if kind == "batch":
        result = _plain(terms[0])
        for x in terms[1:]:
            result = batch(result, _plain(x))
        return Batch(result)
    if kind == "z3":
        import z3

        return getattr(z3, z3_name)(*terms)
    if kind == "sympy":
        import sympy

        return getattr(sympy, z3_name)(*terms)
    return number(bool(x) for x in terms)


def And(*terms: Term) -> Term:
    """Return a term that is true if all terms are."""
    return _connective(terms, all, np.logical_and, "And")


def Or(*terms: Term) -> Term:
    """Return a term that is true if at least one term is."""
    return _connective(terms, any, np.logical_or, "Or")


def Not(x: Term) -> Term:
    """Return a term that is true if the term is not."""
    kind = reading(x)
    if kind == "batch":
        return Batch(np.logical_not(x.values))
    if kind == "z3":
        import z3

        return z3.Not(x)
    if kind == "sympy":
        import sympy

        return sympy.Not(x)
    return not x


def Equal(x: Term, y: Term) -> Term:
    """Return a term that is true if two numbers are equal. ``==`` on sympy terms would compare how they are written."""
    if reading(x, y) == "sympy":
        import sympy

        return sympy.Eq(x, y)
    return x == y


# ---------------------------------------------------------------------------------------------- numbers


def Abs(x: Term) -> Term:
    """Return the magnitude of a number."""
    if _is_z3(x):
        return If(x >= 0, x, -x)
    return abs(x)


def Max(terms: Iterable[Term]) -> Term:
    """Return the largest of one or more numbers."""
    return _extreme(list(terms), largest=True)


def Min(terms: Iterable[Term]) -> Term:
    """Return the smallest of one or more numbers."""
    return _extreme(list(terms), largest=False)


def _extreme(terms: list[Term], *, largest: bool) -> Term:
    kind = reading(*terms)
    if kind == "number":
        return max(terms) if largest else min(terms)
    if kind == "sympy":
        import sympy

        return (sympy.Max if largest else sympy.Min)(*terms)
    result = terms[0]
    for x in terms[1:]:
        result = If(x > result if largest else x < result, x, result)
    return result


def Sum(terms: Iterable[Term]) -> Term:
    """Return the sum of numbers, which is 0 if there are none."""
    items = list(terms)
    if reading(*items) == "z3":
        import z3

        terms = [x if _is_z3(x) else z3.RealVal(x) for x in items]
        return terms[0] if len(terms) == 1 else z3.Sum(terms)  # SMT-LIB has no sum of one term
    total: Term = 0
    for x in items:
        total = total + x
    return total


def Div(x: Term, y: Term) -> Term:
    """Return ``x / y``, or 0 if ``y`` is 0. In SMT ``x / 0`` is any value, in Python an error."""
    kind = reading(x, y)
    if kind == "number":
        return Fraction(x) / y if y and isinstance(y, int) else (x / y if y else 0 * y)
    if kind == "batch":
        with np.errstate(divide="ignore", invalid="ignore"):
            divisor = _plain(y)
            return Batch(np.where(divisor == 0, 0.0, _plain(x) / divisor))
    return If(Equal(y, 0), 0, x / y)


def each(function: Callable[..., Term], *arrays: Array) -> Array:
    """Apply a function at every position of arrays of one shape, and return an object array of that shape."""
    first = arrays[0]
    result = np.empty(first.shape, dtype=object)
    for index in np.ndindex(*first.shape):
        result[index] = function(*(a[index] for a in arrays))
    return result


# ---------------------------------------------------------------------------------------------- choices


class Choices:
    """Make the choices that a convention leaves free: the order among ties, the side of a rounding midpoint.

    ``order(n)`` returns the priorities of n tied elements, ``flip()`` one truth value. This class always takes the
    first option; the prover and the search use subclasses. ``margin`` is the smallest relative distance to a tie or a
    midpoint seen so far, for tests that must stay away from them.
    """

    def __init__(self) -> None:
        self.margin: float = float("inf")

    def order(self, count: int) -> Any:
        """Return the priorities of ``count`` tied elements."""
        return np.arange(count)

    def flip(self) -> Term:
        """Return one truth value."""
        return False

    def number(self, usual: Term) -> Term:
        """Return any number, for an outcome of which nothing is known. ``usual`` is one possible outcome."""
        return usual

    def grid_value(self, x: Term, step: Term, levels: int, below: int = 0) -> Term:
        """Return any of ``k * step``, ``-levels - below <= k <= levels``, of an outcome of which no more is known.

        Args:
            x: the number whose nearest value is the usual outcome.
            step: the distance between neighbouring values. It may be negative if ``below`` is not 0.
            levels: the number of positive k.
            below: how many more negative k there are.
        """
        return (nearest_mirrored if below else nearest)(x, step, levels, "half_even", self, below)

    def context(self, term: Term) -> Term:
        """Return a group's shared context (its scale). The prover may replace it by a term that is proved equal."""
        return term

    def near(self, distance: float) -> None:
        """Record a relative distance to a tie or a midpoint."""
        self.margin = min(self.margin, distance)


class RandomChoices(Choices):
    """Make seeded random choices for one exact replay. Equal seeds give equal choices."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = np.random.default_rng(seed)

    def order(self, count: int) -> Any:
        return self._random.permutation(count)

    def flip(self) -> Term:
        return bool(self._random.integers(2))

    def number(self, usual: Term) -> Term:
        return usual + Fraction(int(self._random.integers(-8, 9)), 4)

    def grid_value(self, x: Term, step: Term, levels: int, below: int = 0) -> Term:
        """Return the nearest value, one of its neighbours, or any value."""
        move, far, level = (
            int(self._random.integers(*ends)) for ends in ((-1, 2), (0, 2), (-levels - below, levels + 1))
        )
        return step * level if far else super().grid_value(x + move * step, step, levels, below)


class BatchChoices(Choices):
    """Make independent random choices for each of ``size`` candidates."""

    def __init__(self, size: int, random: np.random.Generator) -> None:
        super().__init__()
        self.size, self._random = size, random

    def order(self, count: int) -> Any:
        return self._random.random((count, self.size))

    def flip(self) -> Term:
        return Batch(self._random.integers(2, size=self.size).astype(bool))

    def number(self, usual: Term) -> Term:
        return usual + Batch(self._random.integers(-8, 9, size=self.size) / 4)

    def grid_value(self, x: Term, step: Term, levels: int, below: int = 0) -> Term:
        move, far, level = (
            self._random.integers(*ends, size=self.size) for ends in ((-1, 2), (0, 2), (-levels - below, levels + 1))
        )
        near = super().grid_value(x + Batch(move) * step, step, levels, below)
        return If(Batch(far.astype(bool)), Batch(level) * step, near)


class SymbolicChoices(Choices):
    """Represent every choice by a fresh z3 variable, and collect the facts about them in ``premises``.

    Every variable is fresh, so a formula that is unsatisfiable is so for every choice.
    """

    def __init__(self, prefix: str = "choice") -> None:
        super().__init__()
        self.prefix, self.premises, self._count = prefix, list[Term](), 0
        self.levels: list[Term] = []

    def _name(self) -> str:
        self._count += 1
        return f"{self.prefix}_{self._count}"

    def flip(self) -> Term:
        import z3

        return z3.Bool(self._name())

    def number(self, usual: Term) -> Term:
        return self.real()

    def grid_value(self, x: Term, step: Term, levels: int, below: int = 0) -> Term:
        """Return any value of the grid, as a tree over a fresh real with up to :data:`LADDER_LEVELS` levels.

        Every leaf is reached by some real number, and the formula is linear.
        """
        import z3

        if levels > LADDER_LEVELS:
            level = self.integer()
            self.assume(z3.And(level >= -levels - below, level <= levels))
            return z3.ToReal(level) * step
        chosen = self.real()

        def tree(low: int, high: int) -> Term:
            if low == high:
                return step * low
            k = (low + high) // 2
            return If(chosen <= k, tree(low, k), tree(k + 1, high))

        return tree(-levels - below, levels)

    def real(self) -> Term:
        """Return a fresh real variable."""
        import z3

        return z3.Real(self._name())

    def integer(self) -> Term:
        """Return a fresh integer variable."""
        import z3

        return z3.Int(self._name())

    def assume(self, premise: Term) -> None:
        """Add a fact about fresh variables to the premises."""
        self.premises.append(premise)


# ---------------------------------------------------------------------------------------------- selection

TIES = ("first", "all", "any")
"""Conventions for equal scores at the threshold.

"first" drops the lowest index first, "all" drops all of them, and "any" may drop any of them.
"""


def smallest(scores: Sequence[Term], count: int, ties: str, choices: Choices) -> list[Term]:
    """Return a term for each score that is true if the score is among the ``count`` smallest.

    Args:
        scores: the scores of one group.
        count: how many are taken.
        ties: one of :data:`TIES`. "all" also takes every score equal to the last one taken, and nothing if ``count``
            is 0, as ``If(Abs(w) <= Abs(min_val), 0, w)`` of [hu2026] does.
        choices: makes the free choices of "any", and records the margin.
    """
    n = len(scores)
    if count == 0:
        return [False] * n
    kind = reading(*scores)
    if kind == "number" and ties == "any":  # numbers may be scores of terms: the choices have the reading
        kind = {BatchChoices: "batch", SymbolicChoices: "z3"}.get(_kind(choices), kind)
    if kind == "number":
        return _smallest_numbers(scores, count, ties, choices)
    if kind == "batch":
        return _smallest_batch(scores, count, ties, choices)
    if kind == "z3" and ties == "any":
        import z3

        assert isinstance(choices, SymbolicChoices)
        taken = [choices.flip() for _ in scores]
        choices.assume(Sum(If(t, 1, 0) for t in taken) == count)  # as fast as z3's PbEq, which is z3's alone
        for i in range(n):
            for j in range(n):
                if i != j:
                    choices.assume(z3.Implies(And(taken[i], Not(taken[j])), scores[i] <= scores[j]))
        return taken
    result = []
    for i in range(n):
        before = [
            scores[j] <= scores[i] if (j < i and ties != "all") else scores[j] < scores[i] for j in range(n) if j != i
        ]
        result.append(Sum(If(b, 1, 0) for b in before) < count)
    return result


def _kind(choices: Choices) -> type[Choices]:
    return next((kind for kind in (BatchChoices, SymbolicChoices) if isinstance(choices, kind)), Choices)


def _smallest_numbers(scores: Sequence[Term], count: int, ties: str, choices: Choices) -> list[Term]:
    n = len(scores)
    priority = choices.order(n) if ties == "any" else range(n)
    ranked = sorted(range(n), key=lambda i: (scores[i], priority[i]))
    last = scores[ranked[count - 1]]
    if count < n:
        following = scores[ranked[count]]
        size = abs(following) + abs(last)
        choices.near(float((following - last) / size) if size else 0.0)
    if ties == "all":
        return [bool(s <= last) for s in scores]
    taken = set(ranked[:count])
    return [i in taken for i in range(n)]


def _smallest_batch(scores: Sequence[Term], count: int, ties: str, choices: Choices) -> list[Term]:
    stacked = np.stack(np.broadcast_arrays(*[_plain(s) for s in scores]))  # (n, candidates)
    if ties == "all":
        last = np.partition(stacked, count - 1, axis=0)[count - 1]
        return [Batch(row <= last) for row in stacked]
    if ties == "any":
        order = choices.order(len(scores))
        stacked = np.broadcast_to(stacked.reshape(len(scores), -1), order.shape)
        ranked = np.lexsort((order, stacked), axis=0)
    else:
        ranked = np.argsort(stacked, axis=0, kind="stable")
    taken = np.zeros(stacked.shape, dtype=bool)
    np.put_along_axis(taken, ranked[:count], True, axis=0)
    return [Batch(row) for row in taken]


# ---------------------------------------------------------------------------------------------- grids

ROUNDINGS = ("half_even", "half_up", "half_away", "any")
"""Conventions for midpoints: to the even level, to the larger value, away from zero, or either way."""


def nearest(x: Term, step: Term, levels: int, rounding: str, choices: Choices, below: int = 0) -> Term:
    """Return the multiple ``k * step``, ``-levels - below <= k <= levels``, that is nearest to ``x``.

    The result is the value, not the level k. It is 0 if ``step`` is 0.

    Args:
        x: the number to round.
        step: a number >= 0.
        levels: the number of values above 0.
        rounding: one of :data:`ROUNDINGS`.
        choices: makes the free choices of "any", and records the margin.
        below: how many more values there are below 0 than above it.
    """
    kind, ends = reading(x, step), (-levels - below, levels)
    if kind == "number":
        return step * _nearest_level(x, step, ends, rounding, choices) if step else step * 0
    if kind == "batch":
        return Batch(_nearest_batch(_plain(x), _plain(step), ends, rounding, choices))
    if kind == "z3" and (_is_z3(levels) or levels > LADDER_LEVELS):
        if isinstance(choices, SymbolicChoices):
            return _nearest_defined_z3(x, step, ends, rounding, choices)
        return _nearest_integer_z3(x, step, ends, rounding, choices)
    tie = choices.flip() if rounding == "any" else None

    def tree(low: int, high: int) -> Term:
        if low == high:
            return step * low
        k = (low + high) // 2  # everything up to the midpoint between k and k + 1 belongs to the left
        left, middle = 2 * x, step * (2 * k + 1)
        if rounding == "any":
            goes_left = Or(left < middle, And(Equal(left, middle), tie))
        else:
            goes_left = left <= middle if _midpoint_goes_down(k, rounding) else left < middle
        return If(goes_left, tree(low, k), tree(k + 1, high))

    return tree(*ends)


def nearest_mirrored(x: Term, step: Term, levels: int, rounding: str, choices: Choices, below: int = 0) -> Term:
    """Return the same for a step that may be negative: the grid, and where midpoints go, are then mirrored at 0.

    So "half_up" takes the larger level, which is the smaller value where the step is negative.
    """
    mirrored = step < 0
    value = nearest(If(mirrored, -x, x), Abs(step), levels, rounding, choices, below)
    return If(mirrored, -value, value)


def _midpoint_goes_down(k: int, rounding: str) -> bool:
    """Return True if the midpoint between levels k and k + 1 goes to k."""
    if rounding == "half_even":
        return k % 2 == 0
    return rounding == "half_away" and k < 0


def _nearest_level(x: Term, step: Term, ends: tuple[int, int], rounding: str, choices: Choices) -> int:
    ratio = Fraction(x) / Fraction(step)
    k = floor(ratio)
    rest = ratio - k
    choices.near(abs(float(rest - Fraction(1, 2))))
    if rest == Fraction(1, 2):
        down = choices.flip() if rounding == "any" else _midpoint_goes_down(k, rounding)
        level = k if down else k + 1
    else:
        level = k if rest < Fraction(1, 2) else k + 1
    return max(ends[0], min(ends[1], level))


def _nearest_batch(x: Any, step: Any, ends: tuple[int, int], rounding: str, choices: Choices) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(step == 0, 0.0, x / step)
    if rounding == "half_even":
        level = np.rint(ratio)
    elif rounding == "half_up":
        level = np.floor(ratio + 0.5)
    elif rounding == "half_away":
        level = np.copysign(np.floor(np.abs(ratio) + 0.5), ratio)
    else:
        below = np.floor(ratio)
        midpoint = (ratio - below == 0.5) & choices.flip().values
        level = np.where(midpoint, below, np.floor(ratio + 0.5))
    return np.clip(level, *ends) * step


def _nearest_defined_z3(x: Term, step: Term, ends: tuple[Term, Term], rounding: str, choices: SymbolicChoices) -> Term:
    """Return the nearest value with the level as a fresh integer, defined by inequalities.

    There is no division, and the number of levels may be any.
    """
    import z3

    level = choices.integer()
    low, high = (2 * z3.ToReal(level) - 1) * step, (2 * z3.ToReal(level) + 1) * step
    first, last = level == ends[0], level == ends[1]
    choices.assume(z3.And(level >= ends[0], level <= ends[1]))
    # Redundant for integers, but without it cvc5 branches without end. Lemmas have two or three levels.
    for other in choices.levels if len(choices.levels) < 4 else []:
        choices.assume(z3.Or(level <= other - 1, level == other, level >= other + 1))
    choices.levels.append(level)
    choices.assume(z3.And(z3.Or(2 * x <= high, last), z3.Or(2 * x >= low, first)))
    upper, lower = z3.And(2 * x == high, z3.Not(last)), z3.And(2 * x == low, z3.Not(first))
    if rounding == "half_even":
        half = choices.integer()
        choices.assume(z3.Or(level == 2 * half, level == 2 * half + 1))
        choices.assume(z3.Implies(z3.Or(upper, lower), level == 2 * half))
    elif rounding == "half_up":
        choices.assume(z3.Not(upper))
    elif rounding == "half_away":
        choices.assume(z3.And(z3.Implies(upper, level < 0), z3.Implies(lower, level > 0)))
    return z3.If(step == 0, z3.RealVal(0), z3.ToReal(level) * step)


def _nearest_integer_z3(x: Term, step: Term, ends: tuple[int, int], rounding: str, choices: Choices) -> Term:
    """Return the nearest value with the level as ``ToInt``: a smaller term than a tree above 5 bits.

    The division is guarded against a step of 0.
    """
    import z3

    half = z3.RealVal("1/2")
    ratio = If(Equal(step, 0), z3.RealVal(0), x / step)
    up = z3.ToReal(z3.ToInt(ratio + half))  # half_up
    down = -z3.ToReal(z3.ToInt(half - ratio))  # midpoints to the smaller value
    if rounding == "half_up":
        level = up
    elif rounding == "half_away":
        level = If(ratio >= 0, up, down)
    elif rounding == "half_even":
        even = z3.ToReal(z3.ToInt(up / 2)) * 2
        level = If(Equal(even, up), up, down)
    else:
        level = If(choices.flip(), up, down)
    first, last = map(z3.RealVal, ends)
    return If(level > last, last, If(level < first, first, level)) * step


# ---------------------------------------------------------------------------------------------- roots


def Root(x: Term, degree: int) -> Term:
    """Return the root of this degree of a number > 0.

    Raises:
        NotExactError: the root is not rational, or the number is a z3 or sympy term.
    """
    if degree == 1:
        return x
    kind = reading(x)
    if kind == "batch":
        return Batch(_plain(x) ** (1 / degree))
    if kind != "number":
        raise NotExactError(f"a root of degree {degree} is not written for {kind}")
    if isinstance(x, float):
        return x ** (1 / degree)
    parts = [_whole_root(part, degree) for part in Fraction(x).as_integer_ratio()]
    if None in parts:
        raise NotExactError(f"the root of degree {degree} of {x} is not rational")
    return Fraction(*parts)  # type: ignore[arg-type]


def _whole_root(x: int, degree: int) -> int | None:
    """Return the integer whose power of this degree is x, or None if there is none."""
    low, high = 0, 1 << (x.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < x else (low, middle)
    return low if low**degree == x else None


def PowerOfTwo(x: Term, degree: int, choices: Choices) -> Term:
    """Return the power of two nearest to the root of this degree of a number > 0. Midpoints go to the larger one.

    Distances are in log2. Powers of x are compared, so that the result is exact even if the root is not rational.

    Args:
        x: a number > 0.
        degree: the degree of the root.
        choices: records the margin.

    Raises:
        NotExactError: x is a z3 or sympy term.
    """
    kind = reading(x)
    if kind == "batch":
        return Batch(np.exp2(np.floor(np.log2(_plain(x)) / degree + 0.5)))
    if kind != "number":
        raise NotExactError(f"a power of two near a root is not written for {kind}")
    square = Fraction(x) ** 2  # 2^k is nearest where 2^((2 k - 1) degree) <= square < 2^((2 k + 1) degree)
    top, bottom = square.as_integer_ratio()
    k = (top.bit_length() - bottom.bit_length()) // (2 * degree)
    while square < Fraction(2) ** ((2 * k - 1) * degree):
        k -= 1
    while square >= Fraction(2) ** ((2 * k + 1) * degree):
        k += 1
    for midpoint in (Fraction(2) ** ((2 * k - 1) * degree), Fraction(2) ** ((2 * k + 1) * degree)):
        choices.near(abs(float((square - midpoint) / midpoint)))
    return Fraction(2) ** k


def Repeated(x: Term, times: int) -> Term:
    """Return the power of ``x`` with the integer exponent ``times`` >= 0, by repeated multiplication."""
    result: Term = Fraction(1)
    for _ in range(times):
        result = x * result
    return result


# ---------------------------------------------------------------------------------------------- codebooks


def nearest_code(x: Term, step: Term, codes: Sequence[Fraction], rounding: str, choices: Choices) -> Term:
    """Return the value ``step * c`` that is nearest to ``x``, for c out of ``codes``; 0 if ``step`` is 0.

    With "half_even", a midpoint between two neighbouring codes goes to the one at an even number of places from 0 (from
    the least code if 0 is no code). Otherwise it goes to the larger one, away from zero, or either way. Counted from 0,
    the places of a floating-point format are its bit patterns, so "half_even" rounds ties to even mantissa.

    Args:
        x: the number to round.
        step: a number >= 0.
        codes: the codes, in ascending order.
        rounding: one of :data:`ROUNDINGS`.
        choices: makes the free choices of "any", and records the margin.
    """
    kind = reading(x, step)
    if kind == "number":
        return step * _nearest_code(x, step, codes, rounding, choices) if step else step * 0
    if kind == "batch":
        return Batch(_nearest_code_batch(_plain(x), _plain(step), codes, rounding, choices))
    tie = choices.flip() if rounding == "any" else None
    if kind == "z3":
        import z3

        values = [z3.RealVal(c) for c in codes]
        middles = [z3.RealVal(a + b) for a, b in pairwise(codes)]
    else:
        values, middles = list(codes), [a + b for a, b in pairwise(codes)]

    def tree(low: int, high: int) -> Term:
        if low == high:
            return step * values[low]
        k = (low + high) // 2  # everything up to the midpoint between codes k and k + 1 belongs to the left
        left, middle = 2 * x, step * middles[k]
        if rounding == "any":
            goes_left = Or(left < middle, And(Equal(left, middle), tie))
        else:
            goes_left = left <= middle if code_midpoint_goes_down(codes, k, rounding) else left < middle
        return If(goes_left, tree(low, k), tree(k + 1, high))

    return tree(0, len(codes) - 1)


def code_midpoint_goes_down(codes: Sequence[Fraction], k: int, rounding: str) -> bool:
    """Return True if the midpoint between codes k and k + 1 goes to code k, for any rounding but "any"."""
    if rounding == "half_even":
        zero = bisect_left(codes, 0)
        origin = zero if zero < len(codes) and codes[zero] == 0 else 0
        return (k - origin) % 2 == 0
    return rounding == "half_away" and codes[k] + codes[k + 1] < 0


def _nearest_code(x: Term, step: Term, codes: Sequence[Fraction], rounding: str, choices: Choices) -> Fraction:
    ratio = Fraction(x) / Fraction(step)
    k = bisect_right(codes, ratio) - 1
    if not 0 <= k < len(codes) - 1:
        return codes[max(k, 0)]
    share = (ratio - codes[k]) / (codes[k + 1] - codes[k])
    choices.near(abs(float(share - Fraction(1, 2))))
    if share == Fraction(1, 2):
        down = choices.flip() if rounding == "any" else code_midpoint_goes_down(codes, k, rounding)
    else:
        down = share < Fraction(1, 2)
    return codes[k] if down else codes[k + 1]


def _nearest_code_batch(x: Any, step: Any, codes: Sequence[Fraction], rounding: str, choices: Choices) -> Any:
    values, sums, goes_down = _code_floats(tuple(codes), rounding)
    if not len(sums):
        return values[0] * step + 0 * x
    x, step = np.broadcast_arrays(x, step)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(step == 0, 0.0, x / step)
    index = np.searchsorted(sums / 2, ratio)
    # The quotient is rounded. Comparing 2 x with the sum of two neighbours is exact for short dyadic floats.
    low, high = sums[np.maximum(index - 1, 0)] * step, sums[np.minimum(index, len(sums) - 1)] * step
    index = index - ((index > 0) & (2 * x < low)) + ((index < len(sums)) & (2 * x > high))
    for middle in (index - 1, index):  # on the midpoint below, or above
        at = np.clip(middle, 0, len(sums) - 1)
        tied = (middle == at) & (2 * x == sums[at] * step) & (step != 0)
        if rounding == "any":
            down = choices.flip().values
        else:
            down = goes_down[at]
        index = np.where(tied, np.where(down, at, at + 1), index)
    return values[index] * step


@lru_cache(maxsize=64)
def _code_floats(codes: tuple[Fraction, ...], rounding: str) -> tuple[Any, Any, Any]:
    """Return codes and sums of neighbouring codes as floats, and for each midpoint whether it goes down."""
    middles = range(len(codes) - 1)
    values, sums = (np.array([float(c) for c in row]) for row in (codes, [codes[k] + codes[k + 1] for k in middles]))
    return values, sums, np.array([code_midpoint_goes_down(codes, k, rounding) for k in middles], dtype=bool)


def power_of_two(x: Term, choices: Choices) -> Term:
    """Return the largest power of two that is at most ``x``, exactly; 0 if ``x`` is 0.

    For z3 the result is a real p of which only p <= x < 2 p is known (and p = 0 if x = 0). There is one p for each
    argument as it is written. A formula thus admits more values than the power, so a statement proved for all of them
    holds for the power.

    Args:
        x: a number >= 0.
        choices: collects the premise about p, for z3.

    Raises:
        TypeError: ``x`` is a z3 term and ``choices`` collects no premises.
    """
    kind = reading(x)
    if kind == "number":
        if not x:
            return x * 0
        if isinstance(x, float):
            return ldexp(1.0, frexp(x)[1] - 1)
        above, below = Fraction(x).as_integer_ratio()
        exponent = above.bit_length() - below.bit_length()  # 2^(exponent - 1) < x < 2^(exponent + 1)
        power = Fraction(2) ** exponent
        return power if power <= x else power / 2
    if kind == "batch":
        return Batch(np.where(x.values == 0, 0.0, np.ldexp(1.0, np.frexp(x.values)[1] - 1)))
    if kind == "sympy":
        import sympy

        return sympy.Piecewise((0, sympy.Eq(x, 0)), (2 ** sympy.floor(sympy.log(x, 2)), True))
    import z3

    plain = z3.simplify(x)
    if z3.is_rational_value(plain):
        return z3.RealVal(power_of_two(plain.as_fraction(), choices))
    if not isinstance(choices, SymbolicChoices):
        raise TypeError("a power of two is symbolic only with the premises that a prover collects")
    name = blake2b(plain.sexpr().encode(), digest_size=16).hexdigest()
    power = z3.Real(f"power_of_two_{name}")
    known = z3.If(x == 0, power == 0, z3.And(power <= x, x < 2 * power))
    if not any(known.eq(premise) for premise in choices.premises):
        choices.assume(known)
    return power

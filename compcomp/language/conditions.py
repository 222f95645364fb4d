"""Define the named conditions of claims.

A claim with conditions speaks only of the layers on which all of them hold, along the runs of its sequences. Each
condition can be checked on a layer, and names the facts that the prover may assume.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import numpy as np

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption, Kind
from compcomp.language.loss import Loss
from compcomp.language.parameters import digits
from compcomp.language.steps import RangeMap, ScaledMap, Selection, Step
from compcomp.language.technique import Sequence as Steps
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, And, Array, Batch, Equal, If, Or, Sum, Term, reading

Run = Sequence[LayerState]
"""The states of a layer from before the first technique to after the last."""

FACTS = ("strict selections", "largest kept", "scale unchanged", "diagonal Gram", "equal norms")
"""The facts that a rule may take from a condition, see :attr:`Condition.assumes`."""

INPUT_FACTS = ("diagonal Gram", "equal norms")
"""The facts that speak of the dense inputs."""

LARGEST_BOX = 4096


class Conditioned(Protocol):
    """Define the part of a claim (:class:`compcomp.language.claim.Claim`) that conditions depend on."""

    @property
    def sequences(self) -> tuple[Steps, ...]: ...

    @property
    def loss(self) -> Loss | None: ...

    @property
    def given(self) -> tuple[Condition, ...]: ...


@dataclass(frozen=True)
class Moment:
    """Hold one step of a run, the states before and after it as it sees them, and the later steps of its sequence."""

    step: Step
    before: LayerState
    after: LayerState
    later: tuple[Step, ...]


def moments(claim: Conditioned, run: Run, number: int) -> list[Moment]:
    """Return the steps of a sequence of the claim along a run of it. Techniques without steps are skipped.

    Args:
        claim: the claim.
        run: the states along the sequence.
        number: the position of the sequence among the claim's sequences, from 0.
    """
    techniques = claim.sequences[number].techniques
    steps = [technique.steps() for technique in techniques]
    found = []
    for k, own in enumerate(steps):
        if own:
            later = tuple(step for following in steps[k + 1 :] for step in following)
            found.append(Moment(own[0], run[k].working(), run[k + 1].working(), later))
    return found


@dataclass(frozen=True)
class Condition:
    """State one named condition. A subclass states it in its docstring, for the runs of all sequences of a claim.

    Class attributes:

    - name: its text form.
    - needs_inputs: True if it speaks of the calibration inputs.
    - local: if True, two laws hold. If the condition holds for a layer, it holds for every union of rows or blocks in
      which all steps of a claim act. It also holds for the layer with signs flipped, scaled by t > 0 or permuted,
      wherever such a change is proved to leave scores, contexts and values as they were up to that change.
    - assumes: the facts that a rule may take from it (:data:`FACTS`).
    - says: the condition as a phrase, for verdicts.
    """

    name: ClassVar[str] = ""
    needs_inputs: ClassVar[bool] = False
    local: ClassVar[bool] = True
    assumes: ClassVar[frozenset[str]] = frozenset()
    says: ClassVar[str] = ""

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        """Return a term that is true if the condition holds along these runs.

        Args:
            claim: the claim that it belongs to.
            runs: the run of each sequence of the claim.
            tolerance: relative slack for floats. Equalities may miss by it, strict inequalities must hold by more.
        """
        raise NotImplementedError

    def concerns(self, claim: Conditioned) -> bool:
        """Return True if the condition is relevant to this claim."""
        return True

    def implies(self, other: Condition) -> bool:
        """Return True if it is known that the other condition holds wherever this one does, along any runs."""
        return self == other

    def __str__(self) -> str:
        given = [f"{f.name}={_shown(getattr(self, f.name))}" for f in fields(self)]
        return f"{self.name}({', '.join(given)})" if given else self.name

    def describe(self) -> str:
        """Return one line for the assumptions of a verdict."""
        return f"given {self.name}: {self.says}"

    @property
    def assumption(self) -> Assumption:
        """The assumption of a proof that the condition holds."""
        return Assumption(Kind.CONDITION, self.describe(), about=str(self))


@dataclass(frozen=True)
class NoTies(Condition):
    """State ``no_ties``: no selection of any sequence has a tie at its threshold.

    Formally: in every selection of every sequence and in each of its groups, of which it drops k of n weights, the
    k-th smallest score is strictly less than the next one. If k = 0, the condition says nothing.

    It follows that "first", "all" and "any" ties drop the same k weights, and that every weight dropped scores strictly
    less than every weight kept.
    """

    name: ClassVar[str] = "no_ties"
    assumes: ClassVar[frozenset[str]] = frozenset({"strict selections"})
    says: ClassVar[str] = "in every selection the last weight dropped scores strictly less than the first kept"

    def concerns(self, claim: Conditioned) -> bool:
        return any(isinstance(step, Selection) for step in _steps(claim))

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        found = []
        for moment in _all_moments(claim, runs):
            step, layer = moment.step, moment.before
            if isinstance(step, Selection):
                for scores in step.scores(layer):
                    found.append(_separated(scores, step.count(len(scores)), tolerance))
        return _all(found)


@dataclass(frozen=True)
class LargestKept(Condition):
    """State ``largest_kept``: selections keep the largest measure of each group of later maps, or empty the group.

    Formally: take any selection and any later map of the same sequence that is scaled by a largest measure (a
    ScaledMap). In each group of the map, the largest measure is the same before and after the selection, or it is 0
    after the selection (the group is emptied).

    It follows that the map's scale is the one before the selection, or that all values of the group are 0 for any
    scale.
    """

    name: ClassVar[str] = "largest_kept"
    assumes: ClassVar[frozenset[str]] = frozenset({"largest kept"})
    says: ClassVar[str] = "every selection keeps a weight of largest magnitude of each later scale group, or empties it"

    def concerns(self, claim: Conditioned) -> bool:
        return any(
            isinstance(step, Selection) and any(isinstance(s, ScaledMap) for s in steps[k + 1 :])
            for steps in _sequences(claim)
            for k, step in enumerate(steps)
        )

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        found = []
        for moment in _all_moments(claim, runs):
            if not isinstance(moment.step, Selection):
                continue
            for later in dict.fromkeys((s.partition, s.measure) for s in moment.later if isinstance(s, ScaledMap)):
                step = next(s for s in moment.later if isinstance(s, ScaledMap) and (s.partition, s.measure) == later)
                for group in step.partition.groups(moment.before.weight.shape):
                    before, after = (_context(step, s.weight, group) for s in (moment.before, moment.after))
                    found.append(Or(_same(after, before, tolerance), _same(after, 0, 0)))
        return _all(found)


@dataclass(frozen=True)
class ScaleUnchanged(Condition):
    """State ``scale_unchanged``: every map of every sequence finds the scale of the dense group, in each group.

    The scale is the value that the weights of a group share: the largest measure, or the bounds.
    """

    name: ClassVar[str] = "scale_unchanged"
    assumes: ClassVar[frozenset[str]] = frozenset({"scale unchanged"})
    says: ClassVar[str] = "every map finds the scale of the dense group"

    def concerns(self, claim: Conditioned) -> bool:
        return any(isinstance(step, ScaledMap | RangeMap) for steps in _sequences(claim) for step in steps[1:])

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        found = []
        for moment in _all_moments(claim, runs):
            step, layer = moment.step, moment.before
            if isinstance(step, ScaledMap | RangeMap):
                for group in step.partition.groups(layer.weight.shape):
                    now, dense = (_shared(step, weight, group) for weight in (layer.weight, layer.reference))
                    found += [_same(one, other, tolerance) for one, other in zip(now, dense, strict=True)]
        return _all(found)


@dataclass(frozen=True)
class DiagonalGram(Condition):
    """State ``diagonal_gram``: for the dense inputs X (in x tokens), X X^T is diagonal.

    It follows that, if no technique changes the inputs, the output loss is the sum over weights of
    h_j (w_ij - w'_ij)^2, where h_j = (X X^T)_jj.
    """

    name: ClassVar[str] = "diagonal_gram"
    needs_inputs: ClassVar[bool] = True
    assumes: ClassVar[frozenset[str]] = frozenset({"diagonal Gram"})
    says: ClassVar[str] = (
        "X X^T is diagonal, so the output loss on X is a sum over weights, weighted by the norms of inputs"
    )

    def concerns(self, claim: Conditioned) -> bool:
        return _needs_inputs(claim)

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        return _diagonal(_gram(runs), tolerance)


@dataclass(frozen=True)
class OrthogonalInputs(Condition):
    """State ``orthogonal_inputs``: for the dense inputs X (in x tokens), X X^T = c I for some c > 0."""

    name: ClassVar[str] = "orthogonal_inputs"
    needs_inputs: ClassVar[bool] = True
    assumes: ClassVar[frozenset[str]] = frozenset({"diagonal Gram", "equal norms"})
    says: ClassVar[str] = "X X^T = c I with c > 0"

    def concerns(self, claim: Conditioned) -> bool:
        return _needs_inputs(claim)

    def implies(self, other: Condition) -> bool:
        return self == other or isinstance(other, DiagonalGram)

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        gram = _gram(runs)
        equal = [_same(gram[j, j], gram[0, 0], tolerance) for j in range(1, len(gram))]
        return _all([_diagonal(gram, tolerance), *equal, gram[0, 0] > 0])


@dataclass(frozen=True)
class Box(Condition):
    """State ``box(radius=r, around=W0)``: the dense weight W has the shape of W0, and |W - W0| <= r in every entry.

    Args:
        radius: r >= 0, an exact number.
        around: W0 as rows of exact numbers (out x in).

    Raises:
        InputError: the radius is negative, the rows differ in length, or there are more than :data:`LARGEST_BOX`
            numbers.
    """

    radius: Fraction
    around: tuple[tuple[Fraction, ...], ...]

    name: ClassVar[str] = "box"
    local: ClassVar[bool] = False
    says: ClassVar[str] = "every weight is within the radius of the given one"

    def __post_init__(self) -> None:
        allowed = "a number >= 0 such as 1/10"
        radius = digits(self.radius, "box.radius", allowed)
        if radius < 0:
            raise InputError(str(radius), allowed, "box.radius")
        object.__setattr__(self, "radius", radius)
        object.__setattr__(self, "around", _rows(self.around))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the layers that the condition allows."""
        return len(self.around), len(self.around[0])

    @property
    def size(self) -> Fraction:
        """The largest magnitude of its numbers."""
        return max(self.radius, *(abs(x) for row in self.around for x in row))

    def scaled(self, factor: Fraction) -> Box:
        """Return the box that contains the layers of this box times a factor > 0."""
        return Box(self.radius * factor, tuple(tuple(x * factor for x in row) for row in self.around))

    def implies(self, other: Condition) -> bool:
        """Return True if the other condition is a box that contains this one."""
        if not isinstance(other, Box) or other.shape != self.shape:
            return False
        pairs = (
            (x, y) for row, line in zip(self.around, other.around, strict=True) for x, y in zip(row, line, strict=True)
        )
        return all(abs(x - y) + self.radius <= other.radius for x, y in pairs)

    def describe(self) -> str:
        rows, columns = self.shape
        return f"given box: every weight is within {self.radius} of the given {rows} x {columns} weights"

    def holds(self, claim: Conditioned, runs: Sequence[Run], tolerance: float = 0) -> Term:
        weight = runs[0][0].reference
        if tuple(weight.shape) != self.shape:
            return False
        found = []
        for index, w in np.ndenumerate(weight):
            centre = self.around[index[0]][index[1]]
            slack = self.radius if not tolerance else float(self.radius) + tolerance * (1 + abs(float(centre)))
            if reading(w) == "z3":
                found += [w - _z3(centre) <= _z3(self.radius), _z3(centre) - w <= _z3(self.radius)]
            else:
                found.append(Abs(w - centre) <= slack)
        return _all(found)


CONDITIONS: dict[str, type[Condition]] = {
    kind.name: kind for kind in (NoTies, LargestKept, ScaleUnchanged, DiagonalGram, OrthogonalInputs, Box)
}

Given = Condition | str | Iterable["Condition | str"]


def follow(weaker: Iterable[Condition], stronger: Iterable[Condition]) -> bool:
    """Return True if each of the ``weaker`` conditions follows from one of the ``stronger``."""
    known = tuple(stronger)
    return all(any(s.implies(w) for s in known) for w in weaker)


# ------------------------------------------------------------------------------------------------- as text


def conditions(given: Given) -> tuple[Condition, ...]:
    """Return the conditions given as objects or as text, each once.

    Raises:
        InputError: something else is given.
    """
    if isinstance(given, str):
        return _parsed(given)
    if isinstance(given, Condition):
        return (given,)
    found: list[Condition] = []
    try:
        items = list(given)
    except TypeError:
        raise InputError(repr(given)[:60], _ALLOWED, "given") from None
    for item in items:
        if not isinstance(item, Condition | str):
            raise InputError(repr(item)[:60], _ALLOWED, "given")
        found += conditions(item)
    return tuple(dict.fromkeys(found))


_ALLOWED = f"conditions by name: {', '.join(name for name in CONDITIONS if name != 'box')}, box(radius=.., around=..)"


def _parsed(text: str) -> tuple[Condition, ...]:
    wrong = InputError(repr(" ".join(text.split()))[:80], _ALLOWED, "given")
    try:
        nodes = ast.parse(f"({text.strip()},)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    if not isinstance(nodes, ast.Tuple) or not nodes.elts:
        raise wrong
    return tuple(dict.fromkeys(_condition(node, wrong) for node in nodes.elts))


def _condition(node: ast.expr, wrong: InputError) -> Condition:
    if isinstance(node, ast.Name) and node.id in CONDITIONS and not fields(CONDITIONS[node.id]):
        return CONDITIONS[node.id]()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONDITIONS and not node.args:
        kind = CONDITIONS[node.func.id]
        given = {keyword.arg: _constant(keyword.value, wrong) for keyword in node.keywords if keyword.arg}
        if set(given) == {f.name for f in fields(kind)} and len(given) == len(node.keywords):
            return kind(**given)
    raise wrong


def _constant(node: ast.expr, wrong: InputError) -> Any:
    """Return the value of a number, its negative, a quotient of two integers, or a tuple or list of such."""
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_constant(item, wrong) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand, wrong)
        if isinstance(value, Fraction):
            return -value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return digits(node.value, "given", "a number such as 4, 1/2 or 0.5")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _constant(node.left, wrong), _constant(node.right, wrong)
        if isinstance(above, Fraction) and isinstance(below, Fraction) and below:
            return above / below
    raise wrong


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_shown, value)) + ("," if len(value) == 1 else "") + ")"
    return str(value)


def _rows(given: Any) -> tuple[tuple[Fraction, ...], ...]:
    allowed = f"rows of numbers such as ((1, 2), (3, 4)), up to {LARGEST_BOX} in all"
    try:
        rows = tuple(tuple(digits(x, "box.around", allowed) for x in row) for row in given)
    except TypeError:
        raise InputError(repr(given)[:60], allowed, "box.around") from None
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1 or len(rows) * len(rows[0]) > LARGEST_BOX:
        raise InputError(f"{len(rows)} rows", allowed, "box.around")
    return rows


# --------------------------------------------------------------------------------------------- the pieces


def check(claim: Conditioned) -> None:
    """Raise InputError if a claim's conditions cannot be checked on its runs."""
    for sequence in claim.sequences:
        for technique in sequence:
            if len(technique.steps()) > 1:
                raise InputError(str(technique), "techniques of one step where conditions are given", "given")
    shapes = {c.shape for c in claim.given if isinstance(c, Box)}
    if len(shapes) > 1:
        raise InputError("boxes of several shapes", "boxes around weights of one shape", "given")


def _sequences(claim: Conditioned) -> list[list[Step]]:
    return [[step for technique in sequence for step in technique.steps()] for sequence in claim.sequences]


def _steps(claim: Conditioned) -> list[Step]:
    return [step for steps in _sequences(claim) for step in steps]


def _needs_inputs(claim: Conditioned) -> bool:
    return bool(claim.loss and claim.loss.needs_inputs) or any(s.needs_inputs for s in claim.sequences)


def _all_moments(claim: Conditioned, runs: Sequence[Run]) -> list[Moment]:
    return [moment for k, run in enumerate(runs) for moment in moments(claim, run, k)]


def _context(step: ScaledMap, weight: Array, group: list[tuple[int, int]]) -> Term:
    return step.context([weight[index] for index in group])


def _shared(step: ScaledMap | RangeMap, weight: Array, group: list[tuple[int, int]]) -> tuple[Term, ...]:
    if isinstance(step, ScaledMap):
        return (_context(step, weight, group),)
    return step.bounds([weight[index] for index in group])


def _gram(runs: Sequence[Run]) -> Array:
    layer = runs[0][0]
    gram: Any = layer.gram
    if gram is None and layer.inputs is None:
        raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")
    inputs: Any = layer.inputs
    found: Array = inputs @ inputs.T if gram is None else gram
    return found


def _diagonal(gram: Array, tolerance: float) -> Term:
    side = len(gram)
    entries = [(gram[i, j], gram[i, i] + gram[j, j]) for i in range(side) for j in range(i)]
    return _all([Abs(x) <= tolerance * size if tolerance else _same(x, 0, 0) for x, size in entries])


def _same(a: Term, b: Term, tolerance: float) -> Term:
    return Abs(a - b) <= tolerance * (1 + Abs(b)) if tolerance else Equal(a, b)


def _all(terms: list[Term]) -> Term:
    return And(*terms) if terms else True


def _z3(value: Fraction) -> Term:
    import z3

    return z3.RealVal(value)


def _separated(scores: list[Term], count: int, tolerance: float) -> Term:
    """Return a term that is true if the ``count`` smallest scores are strictly less than all others."""
    n, kind = len(scores), reading(*scores)
    if count == 0 or count >= n:
        return True
    if kind == "number":
        ranked = sorted(scores)
        low, high = ranked[count - 1], ranked[count]
        return bool(high - low > tolerance * (abs(low) + abs(high)))
    if kind == "batch":
        stacked = np.stack(np.broadcast_arrays(*[s.values if isinstance(s, Batch) else float(s) for s in scores]))
        two = np.partition(stacked, (count - 1, count), axis=0)
        low, high = two[count - 1], two[count]
        return Batch(high - low > tolerance * (np.abs(low) + np.abs(high)))
    # No class of equal scores straddles the threshold: fewer than count below it and more than count up to it.
    found = []
    for i in range(n):
        others = [scores[j] for j in range(n) if j != i]
        below = Sum(If(s < scores[i], 1, 0) for s in others)
        upto = 1 + Sum(If(s <= scores[i], 1, 0) for s in others)
        found.append(Or(below >= count, upto <= count))
    return And(*found)


TEMPLATES: tuple[Condition, ...] = (NoTies(), LargestKept(), ScaleUnchanged(), DiagonalGram(), OrthogonalInputs())
"""The conditions to try for a claim that is not proved, weaker ones first."""

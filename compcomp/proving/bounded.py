"""Prove a claim at one shape: reduce it by proved properties of its steps, centre the loss, ask z3."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import z3

from compcomp.errors import NotExactError
from compcomp.language.assumption import SYMMETRIES, Assumption, Kind, assumption
from compcomp.language.claim import Claim, Dominates, Scope
from compcomp.language.query import Query
from compcomp.language.steps import ScaledMap, Selection, Step
from compcomp.language.technique import Sequence
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.functions import of_measure, on_leaves, scored
from compcomp.proving.meaning import fails
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.basis import simplified
from compcomp.proving.rules.facts import unit_norms
from compcomp.proving.session import Session
from compcomp.proving.solver import Answer
from compcomp.terms import Array, Choices, SymbolicChoices, Term, each

LARGEST_LAYER = 4096
"""The most weights of a layer for which a formula is written."""

OUT_OF_TIME = "the solver gave no answer on the whole formula in time"


@dataclass(frozen=True)
class Outcome:
    """A proof, or why there is none. ``suspect`` holds a layer that may refute the claim, to be replayed exactly."""

    proof: Proof | None
    cause: str = ""
    queries: tuple[Query, ...] = ()
    vacuous: bool = False
    suspect: tuple[Array, Array | None] | None = None


def bounded(claim: Claim, scope: Scope, session: Session) -> Outcome:
    """Try to prove the claim at the scope's shape. Anything but a clear proof is returned with its cause."""
    if scope.shape is None:
        return Outcome(None)
    (claim, contracts), needs_inputs = simplified(claim, session), claim.needs_inputs
    if claim.changes_inputs:  # a formula has so many tokens, and they stand for any number only through a Gram matrix
        return Outcome(None, "a technique changes the inputs, and a formula would speak of one number of tokens only")
    if _looks_at_tokens(claim):  # what they see of the inputs is not in a Gram matrix either
        return Outcome(None, "a technique looks at single inputs, and a formula would have one number of tokens only")
    if claim.sees_tokens:
        return Outcome(None, "a formula would speak of one number of tokens only")
    if not all(_not_negative(step, session) for step, _ in _contexts(claim, (1, claim.unit))):
        return Outcome(None, "a measure may be negative", tuple(session.queries))
    shape, reach, assumptions = _one_block(claim, scope)
    if shape[0] * shape[1] > LARGEST_LAYER:
        return Outcome(None, f"a formula for {shape[0]} x {shape[1]} weights would be too large")
    if scope.kind == "block" and claim.loss is not None and claim.part is None:
        return Outcome(None, f"{claim.loss.name} does not add over blocks of columns, and no rule decides the claim")
    outcome = Outcome(None, OUT_OF_TIME)
    for plan in _plans(claim, shape, session):
        if time.monotonic() >= session.until:  # the cause is that of the plan that took the time
            break
        try:
            outcome = _attempt(claim, shape, plan, session)
        except NotExactError as error:
            return Outcome(None, f"there is no formula of this claim: {error}", tuple(session.queries))
        if outcome.proof is not None:
            notes = (*assumptions, *outcome.proof.assumptions, *contracts)
            return replace(outcome, proof=replace(outcome.proof, reach=reach, assumptions=notes))
        if outcome.suspect is not None and outcome.suspect[1] is None and needs_inputs:  # any inputs will do
            return replace(outcome, suspect=(outcome.suspect[0], _identity(shape[1])))
        if outcome.vacuous or outcome.suspect is not None:
            return outcome
    return replace(outcome, queries=tuple(session.queries))


def satisfiable(claim: Claim, scope: Scope, session: Session) -> str:
    """Ask if some layer of the scope's shape satisfies the claim's conditions: "sat", "unsat" or "unknown"."""
    assert scope.shape is not None
    if scope.shape[0] * scope.shape[1] > LARGEST_LAYER or _looks_at_tokens(claim):
        return "unknown"
    weight = each(lambda index: z3.Real(f"w_{index[0]}_{index[1]}"), _indices(scope.shape))
    inputs, gram, known = _inputs(claim, scope.shape, session)
    runs = []
    for name, sequence in zip("abc", claim.sequences, strict=False):
        choices = SymbolicChoices(name)
        try:
            runs.append(sequence.trace(LayerState.dense(weight, inputs, gram, choices)))
        except NotExactError:
            return "unknown"
        known += choices.premises
    known += [_as_z3(condition.holds(claim, runs)) for condition in claim.given]
    return session.ask("conditions", known, "sat").answer


# ------------------------------------------------------------------------------------------- reductions

# Reduction (blocks). If every step of the claim's sequences acts inside the groups of a partition J, and
# the claim is about single weights or a loss that adds over them, then it holds for a layer if it holds for
# each group of J taken as a layer of its own. (States, losses and differences are unions or sums over J.)
#
# A score f(w, h, r) may look at the weight w, the norm h of its input and the weight r of the dense layer, which
# flips, scales and moves along with w; where only w is written, r is meant as well.
#
# Reduction (signs). If each score f satisfies f(-w) = f(w), each context c(.., -w, ..) = c(.., w, ..), each
# value q(-w, c) = -q(w, c), and the loss parts l(-r, -v) = l(r, v), then flipping the sign of a weight flips
# the sign of that weight in every state and changes no loss: it suffices to look at w >= 0.
#
# Reduction (scale). If for t > 0 f(t w) <= f(t w') iff f(w) <= f(w'), c(t w) = t c(w), q(t w, t c) = t q(w, c)
# and l(t r, t v) = t^d l(r, v), then scaling a layer changes no truth: it suffices to look at the zero layer
# and at layers whose largest magnitude is 1.
#
# Reduction (order). If c does not depend on the order of its group, then permuting weights inside cells that
# every step's groups respect permutes all states, provided that ties are broken by no index. With ties
# "first" replaced by "any" (which admits more results) the claim is only made stronger; it then suffices to
# look at weights sorted inside each cell.
#
# Reduction (inputs). Where inputs are orthogonal with equal norms h > 0, if for t > 0
# f(w, t h) <= f(w', t h') iff f(w, h) <= f(w', h'), and l(r, v, t h) is t l(r, v, h) or l(r, v, h), then scaling
# the inputs changes no selection, and no sign of a difference of losses: it suffices to look at h = 1.
#
# A map whose step does not scale with every t > 0 (one that is a power of two) leaves (scale) out.
# A step of another kind than these (a RangeMap is neither even nor odd, a score of the whole layer may be anything)
# leaves all but blocks out; a selection by such a score leaves blocks out too, as it acts inside no group. Of
# sequences with a technique that is no step, as those that change the basis of the inputs, nothing is reduced.
#
# A claim that a scheme is fitted is about single weights (its grid) and about groups of weights (how many are zero):
# J and the cells have to respect these groups too, and zeros and grids do not change with sign and scale. A rank is
# about all weights: then only Reduction (inputs) is left.
#
# Each "if" is asked as a query of its own, at the group sizes that occur; one that is not answered "unsat"
# leaves its reduction out. Conditions of the claim that are local carry over by the same "if"s: they speak of
# the order of scores, of equality of contexts and of inputs; with others (a box) nothing is reduced.


@dataclass(frozen=True)
class Plan:
    """The reductions that are applied."""

    signs: bool = False
    scale: bool = False
    order: bool = False

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        used = (about for name, about in SYMMETRIES.items() if getattr(self, name))
        return tuple(assumption(Kind.WITHOUT_LOSS, about=about) for about in used)


def _steps(claim: Claim) -> list[Step]:
    return [step for sequence in claim.sequences for t in sequence for step in t.steps()]


def _by_layer(claim: Claim) -> bool:
    """Return True if some selection scores weights by the whole layer."""
    return any(isinstance(step, Selection) and step.of_layer is not None for step in _steps(claim))


def _only_steps(claim: Claim) -> bool:
    return not claim.changes_basis and all(t.steps() for sequence in claim.sequences for t in sequence)


def _looks_at_tokens(claim: Claim) -> bool:
    return any(t.needs_tokens or t.needs_magnitudes for sequence in claim.sequences for t in sequence)


def _one_block(claim: Claim, scope: Scope) -> tuple[tuple[int, int], str, tuple[Assumption, ...]]:
    """Return the shape of the formula, the layers that a proof there covers, and the assumptions to state."""
    assert scope.shape is not None
    shape = scope.shape
    claim.check(shape)
    steps, partitions = _steps(claim), _partitions(claim)
    if not _local(claim):
        return shape, f"{scope.describe()}, inside the box", ()
    reach, notes = scope.describe(), tuple[Assumption, ...]()
    if scope.kind == "block":
        block = Partition.blocks(scope.columns)
        inside = _only_steps(claim) and claim.adds and all(partition.refines(block) for partition in partitions)
        if inside:
            reach = f"block of {scope.columns}: every matrix made of such blocks"
        else:
            notes = (assumption(Kind.INSIDE_BLOCK),)
    if _only_steps(claim) and claim.adds and steps:
        for whole in (Partition.rows(), _common_block(partitions)):
            if whole is not None and all(partition.refines(whole) for partition in partitions):
                shape = (1, whole.group_size(shape))
    if shape != scope.shape:
        notes = (*notes, assumption(Kind.BLOCKS, about=str(shape[1])))
    return shape, reach, notes


def _local(claim: Claim) -> bool:
    return all(condition.local for condition in claim.given)


def _partitions(claim: Claim) -> list[Partition]:
    """Return the groups in which the claim's steps act, and those of its scheme."""
    return [*(step.sees for step in _steps(claim)), *claim.partitions]


def _common_block(partitions: list[Partition]) -> Partition | None:
    sizes = [partition.size for partition in partitions]
    if any(size is None for size in sizes):
        return None
    largest = max(size for size in sizes if size is not None)
    return Partition.blocks(largest)


def _plans(claim: Claim, shape: tuple[int, int], session: Session) -> list[Plan]:
    """Return sets of reductions to try, the strongest first, each justified by its own queries."""
    reducible = all(isinstance(step, Selection | ScaledMap) for step in _steps(claim)) and not _by_layer(claim)
    if not reducible or not _only_steps(claim) or not claim.adds or not _local(claim):
        return [Plan()]
    signs, scale, order = (check(claim, shape, session) for check in (_signs_hold, _scale_holds, _order_holds))
    plans = [Plan(signs, scale, order and signs), Plan(signs, scale, False)]
    if not claim.any_ties:  # with ties taken adversely hardly anything is equal
        plans = plans[1:]
    return list(dict.fromkeys(plans))


def _variables(count: int) -> list[Term]:
    return [z3.Real(f"w{i}") for i in range(count)]


def _contexts(claim: Claim, shape: tuple[int, int]) -> list[tuple[ScaledMap, list[Term]]]:
    maps = dict.fromkeys(step for step in _steps(claim) if isinstance(step, ScaledMap))
    return [(step, _variables(step.partition.group_size(shape))) for step in maps]


def _selections(claim: Claim) -> list[Selection]:
    return list(dict.fromkeys(step for step in _steps(claim) if isinstance(step, Selection)))


def _signs_hold(claim: Claim, shape: tuple[int, int], session: Session) -> bool:
    w, h, c, r, v = z3.Reals("w h c r v")  # c: the step, as that follows from the context alone
    goals = [scored(s, -w, h, -r) == scored(s, w, h, r) for s in _selections(claim)]
    for step, group in _contexts(claim, shape):
        goals += [step.context(group) >= 0, step.context([-group[0], *group[1:]]) == step.context(group)]
        goals.append(step.rounded(-w, c, Choices()) == -step.rounded(w, c, Choices()))
    if claim.part is not None:
        goals.append(claim.part(-r, -v, h) == claim.part(r, v, h))
    premises = [h >= 0, c >= 0]
    return all(_deterministic_maps(claim)) and session.holds("signs", premises, z3.And(*goals))


def _not_negative(step: ScaledMap, session: Session) -> bool:
    """Return True if the measure, and so the step, is proved >= 0 for every weight. Negative steps round otherwise."""
    goal = step.measure(z3.Real("w")) >= 0
    return session.once(("not negative", of_measure(step)), lambda: session.holds("measure is not negative", [], goal))


def _deterministic_maps(claim: Claim) -> list[bool]:
    return [t.is_deterministic or not _has_map(t.steps()) for s in claim.sequences for t in s]


def _has_map(steps: tuple[Step, ...]) -> bool:
    return any(isinstance(step, ScaledMap) for step in steps)


def _scale_holds(claim: Claim, shape: tuple[int, int], session: Session) -> bool:
    w, w2, h, h2, c, t, r, r2, v = z3.Reals("w w2 h h2 c t r r2 v")
    goals = []
    if not all(step.homogeneous for step, _ in _contexts(claim, shape)):
        return False
    for s in _selections(claim):
        before = scored(s, w, h, r) <= scored(s, w2, h2, r2)
        after = scored(s, t * w, h, t * r) <= scored(s, t * w2, h2, t * r2)
        goals.append(before == after)
    for step, group in _contexts(claim, shape):
        goals.append(step.context(group) >= 0)
        goals.append(step.context([t * g for g in group]) == t * step.context(group))
        goals.append(step.step(t * c, Choices()) == t * step.step(c, Choices()))
        goals.append(step.value(t * w, t * c, Choices()) == t * step.value(w, c, Choices()))
    if claim.loss is not None and claim.part is not None:
        scaled = claim.part(r, v, h)
        for _ in range(claim.loss.degree):
            scaled = t * scaled
        goals.append(claim.part(t * r, t * v, h) == scaled)
    premises = [t > 0, h >= 0, h2 >= 0, c >= 0]
    return all(_deterministic_maps(claim)) and all(
        session.holds(f"scale {k}", premises, goal) for k, goal in enumerate(goals)
    )


def _order_holds(claim: Claim, shape: tuple[int, int], session: Session) -> bool:
    goals = []
    for step, group in _contexts(claim, shape):
        for i in range(len(group) - 1):
            swapped = [*group[:i], group[i + 1], group[i], *group[i + 2 :]]
            goals.append(step.context(swapped) == step.context(group))
    return not goals or session.holds("order", [], z3.And(*goals))


# -------------------------------------------------------------------------------------------- the proof


class _ProofChoices(SymbolicChoices):
    """Free choices as fresh variables. A context that is proved to be 1 or 0 becomes that number."""

    def __init__(self, prefix: str, known: list[Term], session: Session) -> None:
        super().__init__(prefix)
        self._known, self._session = known, session

    def context(self, term: Term) -> Term:
        for value in (1, 0):
            if self._session.holds(f"context is {value}", [*self._known, *self.premises], term == value):
                return z3.RealVal(value)
        return term


def _adverse(sequence: Sequence, layer: LayerState) -> list[LayerState]:
    """Run a sequence of steps with index ties replaced by any tie-breaking, and return its states."""
    states = [layer]
    for technique in sequence:
        for step in technique.steps():
            if isinstance(step, Selection) and step.ties == "first":
                step = replace(step, ties="any")
            layer = step.apply(layer)
        states.append(layer)
    return states


def _attempt(claim: Claim, shape: tuple[int, int], plan: Plan, session: Session) -> Outcome:
    weight = each(lambda index: z3.Real(f"w_{index[0]}_{index[1]}"), _indices(shape))
    inputs, gram, premises = _inputs(claim, shape, session)
    premises += _reduced(claim, shape, weight, plan)
    if session.ask("premises", premises, "sat").answer == "unsat":
        return Outcome(None, "the premises contradict each other", tuple(session.queries), vacuous=True)
    if plan.scale and (answer := _zero_layer(claim, shape, inputs, gram, session)).answer != "unsat":
        zero = each(lambda _: z3.RealVal(0), _indices(shape))
        fails_there = answer.answer == "sat"
        suspect = _from_model(answer, zero, inputs, gram) if fails_there else None
        cause = (
            "the zero layer may contradict it" if fails_there else _late("the zero layer could not be decided", session)
        )
        return Outcome(None, cause, tuple(session.queries), suspect=suspect)
    known, runs = list(premises), []
    for name, sequence in zip("abc", claim.sequences, strict=False):
        choices = _ProofChoices(name, premises, session)
        layer = LayerState.dense(weight, inputs, gram, choices)
        runs.append(_adverse(sequence, layer) if plan.order else sequence.trace(layer))
        known += choices.premises
    if empty := claim.says_nothing(lambda: [state.format for state in runs[0]]):
        return Outcome(None, empty, tuple(session.queries), vacuous=True)
    if session.ask("premises with choices", known, "sat").answer != "sat":
        cause = _late("the premises could not be shown to be satisfiable", session)
        return Outcome(None, cause, tuple(session.queries))
    # The conditions are shown to be satisfiable elsewhere (premises.unmet).
    known += [_as_z3(condition.holds(claim, runs)) for condition in claim.given]
    answer = session.ask("claim", [*known, _negated(claim, runs)], "unsat")
    if answer.answer == "unsat":
        proof = Proof("bounded", "", (EXACT, *plan.assumptions), tuple(session.queries))
        return Outcome(proof, queries=tuple(session.queries))
    suspect = _from_model(answer, weight, inputs, gram) if answer.answer == "sat" else None
    cause = answer.cause or ("no proof" if answer.answer == "sat" else "the solver gave no answer")
    cause = OUT_OF_TIME if answer.answer == "unknown" and time.monotonic() >= session.until else cause
    return Outcome(None, cause, tuple(session.queries), suspect=suspect)


def _indices(shape: tuple[int, int]) -> Array:
    result = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        result[index] = index
    return result


def _inputs(claim: Claim, shape: tuple[int, int], session: Session) -> tuple[Array | None, Array | None, list[Term]]:
    """Return symbolic inputs, their Gram matrix, and premises about them.

    As many tokens as features give every Gram matrix. If only norms matter, a diagonal Gram matrix is returned alone.
    """
    if not claim.needs_inputs:
        return None, None, []
    columns = shape[1]
    norms_alone = _only_steps(claim) and claim.adds and not _by_layer(claim)
    if norms_alone or claim.assumes("diagonal Gram"):
        gram = np.array([[z3.RealVal(0)] * columns for _ in range(columns)], dtype=object)
        norms = [z3.Real(f"h_{j}") for j in range(columns)]
        if claim.assumes("equal norms"):
            simple = norms_alone and unit_norms(_selections(claim), claim.part, session)
            norms = [z3.RealVal(1) if simple else norms[0]] * columns
        for j in range(columns):
            gram[j, j] = norms[j]
        return None, gram, [h >= 0 for h in norms]
    return each(lambda index: z3.Real(f"x_{index[0]}_{index[1]}"), _indices((columns, columns))), None, []


def _reduced(claim: Claim, shape: tuple[int, int], weight: Array, plan: Plan) -> list[Term]:
    flat = list(weight.ravel())
    premises: list[Term] = []
    if plan.signs:
        premises += [w >= 0 for w in flat]
    if plan.order:
        for cell in _cells(claim, shape):
            premises += [weight[a] <= weight[b] for a, b in pairwise(cell)]
    if plan.scale:
        magnitudes = flat if plan.signs else [z3.If(w >= 0, w, -w) for w in flat]
        premises += [m <= 1 for m in magnitudes]
        premises.append(z3.Or(*(m == 1 for m in magnitudes)))
    return premises


def _cells(claim: Claim, shape: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Return the sets of positions that may be permuted.

    These agree in their groups in every step and scheme, and in their column if inputs matter.
    """
    key: dict[tuple[int, int], list[int]] = {index: [] for index in np.ndindex(*shape)}
    for partition in _partitions(claim):
        for number, group in enumerate(partition.groups(shape)):
            for index in group:
                key[index].append(number)
    if claim.needs_inputs:
        for index in key:
            key[index].append(index[1])
    cells: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, numbers in key.items():
        cells.setdefault(tuple(numbers), []).append(index)
    return list(cells.values())


def _late(cause: str, session: Session) -> str:
    """Return the cause, followed by "in time" once the deadline has passed."""
    return f"{cause} in time" if time.monotonic() >= session.until else cause


def _zero_layer(
    claim: Claim, shape: tuple[int, int], inputs: Array | None, gram: Array | None, session: Session
) -> Answer:
    """Ask if the claim fails on the zero layer, which scaling to largest magnitude 1 leaves out."""
    zero = each(lambda _: z3.RealVal(0), _indices(shape))
    known, runs = [], []
    for name, sequence in zip("abc", claim.sequences, strict=False):
        choices = SymbolicChoices(f"zero_{name}")
        runs.append(sequence.trace(LayerState.dense(zero, inputs, gram, choices)))
        known += choices.premises
    return session.ask("zero layer", [*known, _as_z3(fails(claim, runs))], "unsat")


def _as_z3(term: Any) -> Term:
    return z3.BoolVal(term) if isinstance(term, bool | np.bool_) else term


def _negated(claim: Claim, runs: list[list[LayerState]]) -> Term:
    """Return the formula that the claim fails.

    A loss that adds over weights is centred at its value for a weight of zero.
    """
    if not isinstance(claim, Dominates) or claim.part is None:
        return _as_z3(fails(claim, runs))
    part, total = claim.part, []
    ends = [run[-1] for run in runs]
    norms = ends[0].input_norms2() if claim.needs_inputs else [None] * ends[0].weight.shape[1]
    values = [state.effective().ravel() for state in ends]
    columns = np.broadcast_to(np.array(norms, dtype=object), ends[0].weight.shape).ravel()
    for reference, norm, left, right in zip(ends[0].reference.ravel(), columns, *values, strict=True):
        total.append(_centred(reference, left, norm, part) - _centred(reference, right, norm, part))
    return z3.Sum(total) > 0


def _centred(reference: Term, value: Term, norm: Term, part: Callable[[Term, Term, Term], Term]) -> Term:
    """Return part(r, v) - part(r, 0), decided per cell of v. Squares of r cancel, so grid values leave it linear."""
    zero = part(reference, z3.RealVal(0), norm)
    return on_leaves(value, lambda leaf: z3.simplify(part(reference, leaf, norm) - zero, som=True), {})


def _identity(side: int) -> Array:
    return np.array([[Fraction(int(i == j)) for j in range(side)] for i in range(side)], dtype=object)


def _from_model(
    answer: Answer, weight: Array, inputs: Array | None, gram: Array | None
) -> tuple[Array, Array | None] | None:
    def value(variable: Term) -> Fraction:
        return Fraction(answer.model.get(variable.decl().name(), "0"))

    try:
        if inputs is None and gram is not None:  # one token a feature, as long as its norm, nearly
            inputs = each(lambda _: Fraction(0), gram)
            for j in range(len(gram)):
                norm = gram[j, j]
                square = norm.as_fraction() if z3.is_rational_value(norm) else value(norm)
                inputs[j, j] = Fraction(float(square) ** 0.5).limit_denominator(1000)
            return each(value, weight), inputs
        return each(value, weight), None if inputs is None else each(value, inputs)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None

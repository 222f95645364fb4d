"""Answer a claim from a known verdict on another claim, by the laws that are stated below."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, SameState, Scope
from compcomp.language.conditions import Box, Condition, follow
from compcomp.language.identity import or_itself, same
from compcomp.language.parameters import ANY
from compcomp.language.technique import Sequence, unknowns
from compcomp.language.verdict import Grade, Verdict, Witness
from compcomp.ordering.covers import covers
from compcomp.proving.rules.likeness import stands_for

# Claim C *implies* claim D if D holds on every layer (and for every choice and value left open) whenever C does. Then
# a proof of C proves D, and a layer that refutes D refutes C. L(C) denotes the layers that C is about: those on which
# its conditions hold along the runs of its sequences.
#
# (parameters)  Let D be C with one value v_p for each parameter p that is Any in C, the same wherever p is Any, and let
#               v_p be one of the values that Any stands for in every technique: not None, nor a text or another kind of
#               number (compcomp.proving.rules.likeness.stands_for). Then C implies D: C states it of each such value.
# (conditions)  Let C and D differ in their conditions only, and let each condition of C follow from one of D. Then
#               L(D) is part of L(C), and C implies D.
# (either way)  "A equals B" implies "B equals A", under the same conditions: these are about the runs of A and of B,
#               in no order. The same is true of "A same state as B".
# (state)       "A same state as B" implies "A equals B" under the same conditions: weight, low-rank product, transform
#               and inputs are fields of the state. The reverse is no law: masks or grids may differ.
# (equal)       "A equals B" implies "A dominates B" and "B dominates A" under every loss and the same conditions: a
#               loss is a function of the dense layer, the effective weight and the inputs.
# (scale)       Let every technique of C be homogeneous, let C have no conditions but boxes, and let D be C with every
#               box scaled by t > 0. Then C implies D: W is in L(D) iff W / t is in L(C). States of W are those of W / t
#               times t, so they are equal, keep a mask, a grid or a rank, iff those of W / t do. All losses are those
#               of W / t times one power of t.
#
# A proof of C at one scope is one of C at another:
#
# (any shape)   if it covers any shape, at every shape and block that the techniques of C fit.
# (blocks)      if it covers blocks of n, no assumption restricts the layers, every technique acts inside blocks and
#               the loss adds over weights (compcomp.ordering.covers), at every shape whose rows have k n weights.
#
# A proof needs premises that can be satisfied. A claim with more conditions, fewer layers or fewer values than the
# source is PROVED here only if a layer is found, in exact arithmetic, on which its conditions hold.
#
# A witness is a layer. It refutes the claim that is asked if it has its shape and fails it. This is replayed exactly,
# and in torch if its runs are others than those on record. The laws only say where to look.

SECONDS = 2.0
"""Seconds for finding a layer on which the conditions of a claim hold."""
ANYWHERE = Scope("any").describe()


def follows(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    """Return the verdict on a claim that a known verdict on another implies, None if no law says so.

    Its notes name the source and the laws, and its assumptions contain those of the source. Only proofs and refutations
    say anything about other claims.

    Args:
        source: The known verdict.
        claim: The claim that is asked.
        scope: The layers to cover.
    """
    try:
        scope = narrowed(claim, scope)
    except InputError:
        return None
    if scope.shape is not None and not claim.fits(scope.shape):
        return None
    if source.proved:
        return _proof(source, claim, scope)
    return _refutation(source, claim, scope) if source.refuted else None


def narrowed(claim: Claim, scope: Scope) -> Scope:
    """Return the scope as the prover reads it: for a claim about a box, the box's shape.

    Raises:
        InputError: Scope and box do not fit each other.
    """
    if not any(isinstance(condition, Box) for condition in claim.given):
        return scope
    from compcomp.proving.premises import within

    return within(claim, scope)


# ---------------------------------------------------------------------------------------------- one form


def canonical(claim: Claim) -> Claim:
    """Return one form for all claims that have the same meaning.

    Each condition occurs once, without those that follow from others, in the order of their texts. Boxes are scaled to
    size 1 if law (scale) allows it. The sides of an equality are in the order of their texts if no choice is left free,
    as a seed belongs to a side.
    """
    given = sorted(_essential(claim.given), key=str)
    size = _size(given)
    if size and _scales(claim):
        given = sorted(_scaled(given, 1 / size), key=str)
    claim = replace(claim, given=tuple(given))
    swapped = claim.swapped() if claim.symmetric and claim.is_deterministic else claim
    return swapped if str(swapped.left) < str(claim.left) else claim


def restated(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    """Return the verdict on a claim from that on another claim of the same canonical form.

    Args:
        source: The known verdict.
        claim: The claim as it is asked.
        scope: The layers to cover.

    Returns:
        The verdict on ``claim``, None if no law allows it.
    """
    if said(source.claim) == said(claim):
        return replace(source, claim=claim)
    if source.proved or source.refuted:
        return follows(source, claim, scope)
    return replace(source, claim=claim, scope=narrowed(claim, scope), witness=None, notes=_notes(source, ()))


def said(claim: Claim) -> Hashable:
    """Return a key that distinguishes a claim from all others.

    Its text is not enough, since it may hide fields of techniques of the user.
    """
    loss = claim.loss.name if claim.loss else None
    return str(claim), loss, *(tuple(map(or_itself, sequence)) for sequence in claim.sides)


def family(claim: Claim) -> str:
    """Return a text that two claims share if one may follow from the other. Unrelated claims may share it too.

    It has the techniques on both sides without the parameters that a claim may leave open, and neither loss nor
    conditions.
    """
    sides = map(_outline, claim.sides)
    return f"{claim.family} {' and '.join(sorted(sides))}"


def _outline(sequence: Sequence) -> str:
    shown = []
    for technique in sequence:
        kind = type(technique)
        fixed = [f.name for f in fields(technique) if f.name not in kind.examples]
        values = ", ".join(f"{name}={getattr(technique, name)!r}" for name in fixed)
        shown.append(f"{kind.__module__}.{kind.__qualname__}({values})")
    return " >> ".join(shown)


# ---------------------------------------------------------------------------------------------- what implies what


@dataclass(frozen=True)
class Implication:
    """Hold the reasons for which one claim implies another.

    Attributes:
        laws: The laws.
        scale: The factor of the boxes, from the one to the other.
        assumptions: The assumptions that it depends on.
        same_runs: True if both are the same statement about the same runs, in the same order.
        same_layers: True if both are about as many layers and values, up to scale.
    """

    laws: tuple[str, ...] = ()
    scale: Fraction = Fraction(1)
    assumptions: tuple[Assumption, ...] = ()
    same_runs: bool = True
    same_layers: bool = True


def implies(one: Claim, other: Claim) -> Implication | None:
    """Return by which laws one claim implies another, None if they do not show it."""
    for form, laws, same_runs in _forms(one, other):
        values = _values(form, other)
        if values is None:
            continue
        scale = _scale(form, other)
        if scale is None:
            continue
        assumptions: tuple[Assumption, ...] = ()
        opened = any(value is not ANY for value in values.values())
        if opened:
            laws = (*laws, "any parameter")
        if scale != 1:
            laws, same_runs = (*laws, "boxes of homogeneous techniques scale"), False
            assumptions = tuple(
                dict.fromkeys(contract(t, "scales along with the layer") for s in other.sequences for t in s)
            )
        fewer = not follow(other.given, _scaled(form.given, scale))
        if fewer:
            laws = (*laws, "under fewer conditions")
        return Implication(laws, scale, assumptions, same_runs, same_layers=not (opened or fewer))
    return None


def _forms(one: Claim, other: Claim) -> Iterator[tuple[Claim, tuple[str, ...], bool]]:
    """Yield the claims of the kind of ``other`` that ``one`` implies.

    Each comes with the laws that show it, and True if it is about the same runs.
    """
    if type(one) is type(other):
        yield one, (), True
        if one.symmetric:
            yield one.swapped(), ("equality holds either way",), False
    elif isinstance(one, SameState) and isinstance(other, Equals):
        for left, right in (one.sides, one.swapped().sides):
            yield Equals(left, right, given=one.given), ("equal states compute the same",), False
    elif isinstance(one, Equals | SameState) and isinstance(other, Dominates):
        for left, right in (one.sides, one.swapped().sides):
            yield Dominates(left, right, other.loss, given=one.given), ("what computes the same loses the same",), False


def _values(general: Claim, special: Claim) -> dict[str, Any] | None:
    """Return values for the open parameters of the general claim that make it the special one, or None."""
    if general.terms != special.terms:
        return None
    values: dict[str, Any] = {}
    for left, right in zip(general.sides, special.sides, strict=True):
        if len(left) != len(right):
            return None
        for one, other in zip(left, right, strict=True):
            if type(one) is not type(other) or not stands_for(one, other):
                return None
            for name in unknowns(one):
                found = getattr(other, name)
                if not same(values.setdefault(name, found), found):
                    return None
    return values


def _scale(one: Claim, other: Claim) -> Fraction | None:
    """Return a factor of the boxes of ``one`` with which its conditions follow from those of ``other``, or None."""
    if follow(one.given, other.given):
        return Fraction(1)
    sizes = _size(one.given), _size(other.given)
    if not all(sizes) or not (_scales(one) and _scales(other)):
        return None
    scale = sizes[1] / sizes[0]
    return scale if follow(_scaled(one.given, scale), other.given) else None


def _scales(claim: Claim) -> bool:
    """Return True if law (scale) is about this claim."""
    homogeneous = all(t.is_homogeneous for s in claim.sequences for t in s)
    return claim.scales and homogeneous and all(isinstance(c, Box) for c in claim.given)


def _scaled(given: Any, factor: Fraction) -> tuple[Condition, ...]:
    return tuple(c.scaled(factor) if isinstance(c, Box) else c for c in given)


def _size(given: Any) -> Fraction:
    return max((c.size for c in given if isinstance(c, Box)), default=Fraction(0))


def _essential(given: tuple[Condition, ...]) -> list[Condition]:
    """Return each condition once, without those that follow from another."""
    once = list(dict.fromkeys(given))
    return [c for c in once if not any(other != c and other.implies(c) for other in once)]


# ---------------------------------------------------------------------------------------------- proofs


def _proof(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    found = implies(source.claim, claim)
    if found is None:
        return None
    where = _reach(source, claim, scope, found)
    if where is None:
        return None
    reach, law = where
    if claim.given and not (found.same_layers and source.scope == scope) and not _satisfiable(claim, scope):
        return None
    assumptions = (*source.assumptions, *found.assumptions, *(condition.assumption for condition in claim.given))
    return replace(
        source,
        claim=claim,
        scope=scope,
        reach=reach,
        assumptions=tuple(dict.fromkeys(assumptions)),
        # A certificate is about the source, and does not contain the law.
        grade=Grade.ONE_SOLVER if source.grade is Grade.CERTIFIED else source.grade,
        needed=_needed(source, claim, found.scale),
        notes=_notes(source, (*found.laws, *law)),
        work={"rlimit": 0.0, "seconds": 0.0},
    )


def _reach(source: Verdict, claim: Claim, scope: Scope, found: Implication) -> tuple[str, tuple[str, ...]] | None:
    """Return the reach of a proof that is reused at a scope, and the law for it.

    None if the proof does not cover that scope.
    """
    if source.scope == scope:
        return (source.reach if found.same_layers or source.reach == ANYWHERE else scope.describe()), ()
    if source.reach == ANYWHERE or (source.scope.kind == "any" and not source.reach):
        return ANYWHERE, ("proved for any shape",)
    if source.scope.kind != "block" or scope.shape is None or source.claim.given:
        return None
    if covers(replace(source, claim=replace(claim, given=())), {scope.shape}):
        return scope.describe(), (f"proved for blocks of {source.scope.columns}",)
    return None


def _satisfiable(claim: Claim, scope: Scope) -> bool:
    """Return True if a layer is found on which every condition of the claim holds."""
    from compcomp.proving.fitting import example

    return any(example(instance, scope, time.monotonic() + SECONDS) is not None for instance in claim.instances())


def _needed(source: Verdict, claim: Claim, scale: Fraction) -> tuple[str, ...] | None:
    """Return the conditions of the claim that imply those that the source needs."""
    if not claim.given:
        return None
    names = [str(c) for c in source.claim.given] if source.needed is None else source.needed
    wanted = _scaled([c for c in source.claim.given if str(c) in names], scale)
    kept = [
        next((c for c in claim.given if c == w), None) or next(c for c in claim.given if c.implies(w)) for w in wanted
    ]
    return tuple(dict.fromkeys(map(str, kept)))


# ---------------------------------------------------------------------------------------------- refutations


def _refutation(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    witness = source.witness
    if witness is None or not _has_shape(witness, scope):
        return None
    texts = [trace.sequence for trace in witness.traces]
    refuted = next((c for c in source.claim.instances() if [str(s) for s in c.sequences] == texts), None)
    found = None if refuted is None else implies(claim, refuted)
    if refuted is None or found is None:
        return None
    refutes = _replayed(claim, refuted, witness, found)
    if refutes is None:
        return None
    return replace(
        source,
        claim=claim,
        scope=scope,
        reach=scope.describe(),
        assumptions=tuple(dict.fromkeys((*source.assumptions, *found.assumptions))),
        reason=refutes.reason,
        witness=refutes,
        notes=_notes(source, (*found.laws, "its witness, replayed")),
        work={"rlimit": 0.0, "seconds": 0.0},
    )


def _has_shape(witness: Witness, scope: Scope) -> bool:
    return scope.shape is None or (len(witness.weight), len(witness.weight[0])) == scope.shape


def _replayed(claim: Claim, refuted: Claim, witness: Witness, found: Implication) -> Witness | None:
    """Return the witness for the claim that is asked, None if it does not refute that claim too."""
    from compcomp.proving.replay import Suspect, confirmed, torch_agrees, witness_of

    instances = [claim.with_sides(*refuted.sides)]
    if claim.symmetric:
        instances.append(instances[0].swapped())
    instance = next((i for i in instances if _values(claim, i) is not None), None)
    if instance is None:
        return None
    weight = np.array(witness.weight, dtype=object) / found.scale
    inputs = None if witness.inputs is None else np.array(witness.inputs, dtype=object)
    suspect = Suspect(weight, inputs, witness.seed)
    if not confirmed(instance, suspect):
        return None
    if found.same_runs:
        return witness
    return witness_of(instance, suspect) if torch_agrees(instance, suspect) else None


def _notes(source: Verdict, laws: tuple[str, ...]) -> tuple[str, ...]:
    loss = f" under {source.claim.loss.name}" if source.claim.loss else ""
    by = f" ({', '.join(laws)})" if laws else ""
    return (*source.notes, f"follows from a verdict on {source.claim}{loss}, {source.scope.describe()}{by}")

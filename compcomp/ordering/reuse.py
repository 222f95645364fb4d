"""What a verdict says about other claims: the laws by which one that is known answers another that is asked."""

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
from compcomp.ordering.dag import covers
from compcomp.proving.rules.likeness import stands_for

# Claim C *implies* claim D where D holds on every layer (and for every choice and value left open) if C does. Then a
# proof of C proves D, and a layer that refutes D refutes C. Written L(C) for the layers that C speaks of, on which its
# conditions hold along the runs of its sequences:
#
# (parameters)  Let D be C with one value v_p for each parameter p that is Any in C, the same wherever p is Any, and let
#               v_p be one of the values that Any stands for in every technique: not None, nor a text or another kind of
#               number (compcomp.proving.rules.likeness.stands_for). Then C implies D: C says its statement of each.
# (conditions)  Let C and D differ in their conditions only, and let each condition of C follow from one of D. Then
#               L(D) is part of L(C), and C implies D.
# (either way)  "A equals B" implies "B equals A", under the same conditions: these speak of the runs of A and of B,
#               in no order. The same of "A same state as B".
# (state)       "A same state as B" implies "A equals B" under the same conditions: weight, low-rank product, transform
#               and inputs are fields of the state. The reverse is no law: masks or grids may differ.
# (equal)       "A equals B" implies "A dominates B" and "B dominates A" under every loss and the same conditions: a
#               loss is a function of the dense layer, the effective weight and the inputs.
# (scale)       Let every technique of C be homogeneous, let C have no conditions but boxes, and let D be C with every
#               box scaled by t > 0. Then C implies D: W is in L(D) iff W / t is in L(C); states of W are those of W / t
#               times t, so they are equal, keep a mask, a grid or a rank, iff those of W / t do, and all losses are
#               those of W / t times one power of t.
#
# A proof of C at one scope is one of C at another:
#
# (any shape)   where it covers any shape, at every shape and block that the techniques of C fit.
# (blocks)      where it covers blocks of n, no assumption restricts the layers, every technique acts inside blocks and
#               the loss adds over weights (compcomp.ordering.dag.covers), at every shape whose rows have k n weights.
#
# A proof needs premises that can be met. What has more conditions, fewer layers or fewer values than the source is
# PROVED here only where a layer is found, in exact arithmetic, on which its conditions hold.
#
# A witness is a layer. It refutes what is asked where it has its shape and fails it, which is replayed exactly, and in
# torch where its runs are others than those on record. The laws only tell where to look.

SECONDS = 2.0
"""For finding a layer on which the conditions of a claim hold."""
ANYWHERE = Scope("any").describe()


def follows(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    """The verdict on a claim that a known verdict on another implies, None where no law says so.

    Its notes name the source and the laws, its assumptions contain those of the source. Only proofs and
    refutations say anything about other claims.
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
    """The scope as the prover reads it: of a claim about a box, the box's shape. InputError where they do not fit."""
    if not any(isinstance(condition, Box) for condition in claim.given):
        return scope
    from compcomp.proving.premises import within

    return within(claim, scope)


# ---------------------------------------------------------------------------------------------- one form


def canonical(claim: Claim) -> Claim:
    """One form of all claims that say the same in other words.

    Conditions once each, without those that follow from others, in the order of their texts; boxes scaled to
    size 1, where law (scale) allows; the sides of an equality in the order of their texts, where no choice is
    left free (a seed belongs to a side).
    """
    given = sorted(_essential(claim.given), key=str)
    size = _size(given)
    if size and _scales(claim):
        given = sorted(_scaled(given, 1 / size), key=str)
    claim = replace(claim, given=tuple(given))
    swapped = claim.swapped() if claim.symmetric and claim.is_deterministic else claim
    return swapped if str(swapped.left) < str(claim.left) else claim


def restated(source: Verdict, claim: Claim, scope: Scope) -> Verdict | None:
    """The verdict on a claim whose canonical form is that of the source's claim, for the claim as it is asked."""
    if said(source.claim) == said(claim):
        return replace(source, claim=claim)
    if source.proved or source.refuted:
        return follows(source, claim, scope)
    return replace(source, claim=claim, scope=narrowed(claim, scope), witness=None, notes=_notes(source, ()))


def said(claim: Claim) -> Hashable:
    """What tells a claim from all others: not its text alone, which may hide what techniques of one's own hold."""
    loss = claim.loss.name if claim.loss else None
    return str(claim), loss, *(tuple(map(or_itself, sequence)) for sequence in claim.sides)


def family(claim: Claim) -> str:
    """What all claims have in common that may follow from one another: more claims have it, never fewer.

    The techniques on both sides without the parameters that a claim may leave open; no loss, no conditions.
    """
    sides = map(_outline, claim.sides)
    return f"{claim.family} {' and '.join(sorted(sides))}"


def _outline(sequence: Sequence) -> str:
    shown = []
    for technique in sequence:
        kind = type(technique)
        fixed = [f.name for f in fields(technique) if f.name not in kind.examples]  # type: ignore[arg-type]
        values = ", ".join(f"{name}={getattr(technique, name)!r}" for name in fixed)
        shown.append(f"{kind.__module__}.{kind.__qualname__}({values})")
    return " >> ".join(shown)


# ---------------------------------------------------------------------------------------------- what implies what


@dataclass(frozen=True)
class Implication:
    """That one claim implies another. ``laws``: by what. ``scale``: of the boxes, from the one to the other.

    ``assumptions``: what it rests on. ``same_runs``: both say the same of the same runs, in the same order.
    ``same_layers``: both speak of as many layers and values, up to scale.
    """

    laws: tuple[str, ...] = ()
    scale: Fraction = Fraction(1)
    assumptions: tuple[Assumption, ...] = ()
    same_runs: bool = True
    same_layers: bool = True


def implies(one: Claim, other: Claim) -> Implication | None:
    """How the laws show that one claim implies another; None where they do not."""
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
    """What the one claim says, of the kind of the other, by which laws, and whether of the same runs."""
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
    """A value for each parameter that is open in the general claim, with which it says what the special one does."""
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
    """By what to scale the one's boxes so that its conditions follow from the other's; None where nothing helps."""
    if follow(one.given, other.given):
        return Fraction(1)
    sizes = _size(one.given), _size(other.given)
    if not all(sizes) or not (_scales(one) and _scales(other)):
        return None
    scale = sizes[1] / sizes[0]
    return scale if follow(_scaled(one.given, scale), other.given) else None


def _scales(claim: Claim) -> bool:
    """Whether law (scale) speaks of this claim."""
    homogeneous = all(t.is_homogeneous for s in claim.sequences for t in s)
    return claim.scales and homogeneous and all(isinstance(c, Box) for c in claim.given)


def _scaled(given: Any, factor: Fraction) -> tuple[Condition, ...]:
    return tuple(c.scaled(factor) if isinstance(c, Box) else c for c in given)


def _size(given: Any) -> Fraction:
    return max((c.size for c in given if isinstance(c, Box)), default=Fraction(0))


def _essential(given: tuple[Condition, ...]) -> list[Condition]:
    """Conditions, each once, without those that follow from another."""
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
    if claim.given and not (found.same_layers and source.scope == scope) and not _can_be_met(claim, scope):
        return None
    assumptions = (*source.assumptions, *found.assumptions, *(condition.assumption for condition in claim.given))
    return replace(
        source,
        claim=claim,
        scope=scope,
        reach=reach,
        assumptions=tuple(dict.fromkeys(assumptions)),
        # A certificate speaks of the source, and no law is part of it.
        grade=Grade.ONE_SOLVER if source.grade is Grade.CERTIFIED else source.grade,
        needed=_needed(source, claim, found.scale),
        notes=_notes(source, (*found.laws, *law)),
        work={"rlimit": 0.0, "seconds": 0.0},
    )


def _reach(source: Verdict, claim: Claim, scope: Scope, found: Implication) -> tuple[str, tuple[str, ...]] | None:
    """What a proof covers that is reused at a scope, and by which law; None where it does not cover that scope."""
    if source.scope == scope:
        return (source.reach if found.same_layers or source.reach == ANYWHERE else scope.describe()), ()
    if source.reach == ANYWHERE or (source.scope.kind == "any" and not source.reach):
        return ANYWHERE, ("proved for any shape",)
    if source.scope.kind != "block" or scope.shape is None or source.claim.given:
        return None
    if covers(replace(source, claim=replace(claim, given=())), {scope.shape}):
        return scope.describe(), (f"proved for blocks of {source.scope.columns}",)
    return None


def _can_be_met(claim: Claim, scope: Scope) -> bool:
    """Whether a layer is found on which every condition of the claim holds."""
    from compcomp.proving.fitting import example

    return any(example(instance, scope, time.monotonic() + SECONDS) is not None for instance in claim.instances())


def _needed(source: Verdict, claim: Claim, scale: Fraction) -> tuple[str, ...] | None:
    """The conditions of the claim from which those follow that the source needs."""
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
    """The witness for the claim that is asked, where it fails that claim too."""
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

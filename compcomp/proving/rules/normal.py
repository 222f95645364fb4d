"""Prove that two sequences give the same state: they have one normal form, without the techniques that do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import z3

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.identity import same, same_but
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import RangeMap, ScaledMap, Selection, Step, at_most
from compcomp.language.technique import Sequence, Technique
from compcomp.proving.functions import scored
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.reasons import convention, owner
from compcomp.proving.rules.facts import MapFacts, weight_independent
from compcomp.proving.rules.inputs import acts_on_inputs
from compcomp.proving.rules.no_op import Known, again
from compcomp.proving.rules.rounding_twice import double_rounding, range_again
from compcomp.proving.session import Session

# Two states are equal when they agree in weight, reference, mask, grid, the product of their factors, the inputs,
# dense and current, and the transform; techniques map equal states to equal states, as they see factors through that
# product alone, unless they declare `sees_factors`. A normal form maps every dense state to a state equal to what the
# sequence maps it to. The rewritings below and those of no_op.py lead to it. All but (rest) leave the very factors that
# the sequence leaves.
#
# (rest) Call a state s *at the reference* when its effective weight equals its reference and its inputs are the dense
# ones. Let T declare `no_op_on_dense`: for every s at the reference, T(s) equals s. Let H declare `holds_reference`:
# for every s at the reference, H(s) is at the reference. The dense state is at the reference. So T may be left out of
# H1 >> ... >> Hk >> T >> R, unless T may leave other factors than it finds (it does not keep "factors") and a
# technique of R declares `sees_factors`: to that the states that T finds and leaves need not be alike. A technique
# that declares `changes_inputs` counts neither as T nor as an H.
#
# (inputs) Let T declare `changes_inputs`: what it makes of the inputs depends on them alone, and the rest of the state
# stays as it is. Let S be a step or technique that does not look at inputs (`needs_inputs`) and, as it does not
# declare `changes_inputs`, leaves them alone; nor does it change their basis. Then S >> T equals T >> S: neither sees
# what the other changes.
#
# (selections) Let two selections that agree in all but their shares (one score f, one partition, and what they see)
# follow each other directly, both with ties "first" or both "all". Let either f not depend on the current weight
# (facts.weight_independent), or a zero weight score f0, the same for all, and no weight score less. Then both
# together equal the one with the larger share.
#   f does not depend on the current weight: both see one order, of (score, index) or of scores. Ties "first" drop the
#   first k1 and the first k2 of it, ties "all" all up to the k1-th and all up to the k2-th: the larger set holds the
#   smaller. What is dropped twice is 0 and masked as if once.
#   Zero scores least, ties "first": let D be the k1 weights first in the order (score, index), and k2 the second
#   count. If some weight outside D scores f0, all of D scored f0 before and does after: the order is as it was, and
#   the second selection takes its first k2. Otherwise the weights of score f0 are now just those of D, and come first,
#   and the others follow in their old order. Either way what is dropped in the end is the first max(k1, k2) of the old
#   order.
#   Zero scores least, ties "all": D is the set {f <= t1}. If |D| >= k2 the second threshold is f0, which nothing
#   outside D scores unless t1 = f0: then it is in D. Otherwise D comes first and the others follow as before: the
#   threshold is that of k2 among the old scores, where it is not below t1. In both cases the larger set is dropped.
#
# (maps) Let one map follow itself directly, let it be a function, idempotent, and leave every group its step
# (facts.py): the context is what it was, or the step follows from the power of two below the context, and the context
# stays between the same two. Then the grid of the second use is that of the first, and every value is a fixed point:
# the second use changes nothing. (In a group of zeros both uses have step 0.) A range map that follows itself, and a
# map that changes nothing of what the next map makes: rounding_twice.py.
#
# (low rank) Let T declare `leaves_weight`: weight, mask, grid and rank are after T what they were before. Selections
# and maps see nothing else of a state but the reference and the inputs, and change nothing else. So if, by the last
# two, a step b right after a step a would change nothing, it changes nothing in a >> T1 >> ... >> Tk >> b either.
#
# All but (rest), and those of no_op.py that need the dense state, start from any state at all. Two sequences whose
# normal forms are reached without it and are one therefore give equal states from every state: they may be exchanged
# inside longer sequences.
#
# Rule (same state). If A and B have one normal form and are deterministic, they map every dense state to equal
# states: A same state as B, A equals B, and neither loses more than the other.
# Where (rest) is not used, this holds from every state.


SAME = "normal"
"""The name of the rule (same state) in refusals. A proof names the rewriting that it uses."""
NEEDS_SAME = "deterministic sequences with one normal form, after rest, no op, absorption and changed inputs"


@dataclass(frozen=True)
class Normal:
    """The normal form of a sequence.

    Args:
        atoms: steps, and techniques without steps.
        no_ops: techniques left out by (rest), because they are no-ops on the dense layer.
        idle: the contracts by which others were left out (no_op.py).
        branch_only: techniques that leave the weight alone, between a step and one that it absorbed.
        moved: techniques that change the inputs and were moved ahead of others.
        absorbed: True if a step absorbed another.
        deterministic: True if the techniques that are kept leave no choice free.
    """

    atoms: tuple[Step | Technique, ...]
    no_ops: tuple[Technique, ...]
    idle: tuple[Assumption, ...]
    branch_only: tuple[Technique, ...]
    moved: tuple[Technique, ...]
    absorbed: bool
    deterministic: bool

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """One assumption for every technique whose contract is used."""
        found = [contract(t, "changes nothing while the layer still equals the dense one") for t in self.no_ops]
        found += [contract(t, "changes nothing but the low-rank branch") for t in self.branch_only]
        return tuple(dict.fromkeys([*found, *self.idle, *map(acts_on_inputs, self.moved)]))


@rule(SAME, Dominates, Equals, SameState, needs=NEEDS_SAME)
def same_state(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that both sequences have one normal form."""
    return same_normal_form(claim, session, dense=True)


def same_normal_form(claim: Claim, session: Session, *, dense: bool) -> Proof | Refusal:
    """Prove that both sequences have one normal form; without (rest) unless they start from the dense state."""
    left, right = (normal_form(sequence, session, dense=dense) for sequence in claim.sides)
    if left.atoms != right.atoms:
        query = session.missed()
        reached = Reached.STRUCTURE if query is None else Reached.FACT
        return Refusal(f"normal forms differ: {first_difference(claim, left, right)}", lemma=query, reached=reached)
    if not (left.deterministic and right.deterministic):
        return leaves_choices(claim)
    absorbed, moved = left.absorbed or right.absorbed, left.moved or right.moved
    name = "no op" if left.idle or right.idle else "absorption" if absorbed else "inputs" if moved else "rest"
    assumptions = dict.fromkeys((EXACT, *left.assumptions, *right.assumptions))
    return Proof(name, "any shape", tuple(assumptions), tuple(session.queries), not dense)


def first_difference(claim: Claim, left: Normal, right: Normal) -> str:
    """Return the first difference of two normal forms, as text."""
    place = next((k for k, (a, b) in enumerate(zip(left.atoms, right.atoms, strict=False)) if a != b), None)
    place = min(len(left.atoms), len(right.atoms)) if place is None else place
    names = [
        "nothing more" if place == len(normal.atoms) else named(claim, normal.atoms[place]) for normal in (left, right)
    ]
    return f"step {place + 1} on the left is {names[0]}, on the right {names[1]}"


def named(claim: Claim, atom: Step | Technique) -> str:
    """Return the text of a technique, or of the one that a step belongs to."""
    return str(atom) if isinstance(atom, Technique) else owner(claim, atom)


def leaves_choices(claim: Claim) -> Refusal:
    """Refuse because a technique of the claim leaves choices free."""
    free = next(t for sequence in claim.sequences for t in sequence if not t.is_deterministic)
    reason = f"{free} leaves choices free, so two runs of it may differ"
    return Refusal(reason, advice=(convention("ties", "first"),))


def normal_form(sequence: Sequence, session: Session, *, dense: bool = True) -> Normal:
    """Rewrite a sequence until nothing more can be left out.

    Args:
        sequence: the sequence to rewrite.
        session: asks the facts about steps.
        dense: the sequence starts from the dense state, so (rest) may be used.
    """
    atoms, no_ops = list[Step | Technique](), list[Technique]()
    branch_only, moved = list[Technique](), list[Technique]()
    known, kept, idle, absorbed = Known(dense), list[Technique](), list[Assumption](), False
    for number, technique in enumerate(sequence):
        promises = technique.promises()
        if (why := known.no_op(technique)) is not None:
            idle.append(why)
            continue
        if promises.changes_inputs:
            place = len(atoms)
            while place and not _meets_inputs(atoms[place - 1]):
                place -= 1
            ahead = place < len(atoms)
            moved += [technique] if ahead else []
            if ahead and place and promises.idempotent and _is(atoms[place - 1], technique):
                idle.append(again(technique))
                continue
            atoms.insert(place, technique)
            kept.append(technique)
            known.follow(technique, ahead=ahead and known.last is not None and not _meets_inputs(known.last))
            continue
        if atoms and _is(atoms[-1], technique) and (why := known.undone(technique)) is not None:
            atoms.pop()
            kept.remove(technique)
            known.forget()
            idle.append(why)
            continue
        unseen = "factors" in promises.keeps or not _sees_factors(sequence.techniques[number + 1 :])
        if known.at_reference and promises.no_op_on_dense and unseen:
            no_ops.append(technique)
            continue
        known.follow(technique)
        kept.append(technique)
        for atom in technique.steps() or (technique,):
            merged: Step | Technique | None = atom
            while merged is not None:
                atom, passed = merged, _passed(atoms) if technique.steps() else []
                before = atoms[-1 - len(passed)] if len(passed) < len(atoms) else None
                merged = None if before is None else _absorbed(before, atom, session)
                if merged is None or (passed and merged != before):
                    atoms.append(atom)
                    break
                absorbed = True
                branch_only += passed
                if merged == before:
                    break
                atoms.pop()
    free = not all(technique.is_deterministic for technique in kept)
    return Normal(tuple(atoms), tuple(no_ops), tuple(idle), tuple(branch_only), tuple(moved), absorbed, not free)


def _is(atom: Step | Technique, technique: Technique) -> bool:
    return isinstance(atom, Technique) and same(atom, technique)


def merged(steps: Iterable[Step], session: Session) -> list[Step]:
    """Replace selections that follow each other by one, if (selections) proves them equal to it."""
    found = list[Step]()
    for step in steps:
        one = _absorbed(found[-1], step, session) if found and isinstance(step, Selection) else None
        if one is None:
            found.append(step)
        else:
            found[-1] = one
    return found


def _sees_factors(techniques: Iterable[Technique]) -> bool:
    return any(technique.promises().sees_factors for technique in techniques)


def _passed(atoms: list[Step | Technique]) -> list[Technique]:
    """Return the techniques at the end of ``atoms`` that leave the weight alone, the last first."""
    found: list[Technique] = []
    for atom in reversed(atoms):
        if not isinstance(atom, Technique) or not atom.promises().leaves_weight:
            break
        found.append(atom)
    return found


def _meets_inputs(atom: Step | Technique) -> bool:
    """Return True if it looks at the inputs, or changes them or their basis."""
    if isinstance(atom, Technique):
        promises = atom.promises()
        return atom.needs_inputs or promises.changes_inputs or promises.changes_basis
    return isinstance(atom, Selection) and atom.needs_inputs


def _absorbed(first: Step | Technique, second: Step | Technique, session: Session) -> Step | None:
    """Return the one step that two neighbours equal, or None."""
    if isinstance(first, Selection) and isinstance(second, Selection) and same_but(first, second, "share"):
        if first.ties != "any" and (_zero_scores_least(first, session) or weight_independent(first, session)):
            if at_most(second.share, first.share):
                return first
            return second if at_most(first.share, second.share) else None
        return None
    if isinstance(first, ScaledMap) and same_but(first, second):
        facts = MapFacts(first, session)
        if facts.function and facts.idempotent and facts.same_step:
            return first
    if isinstance(first, ScaledMap) and isinstance(second, ScaledMap) and double_rounding(first, second, session):
        return second
    if isinstance(first, RangeMap) and same_but(first, second) and range_again(first, session):
        return first
    return None


def _zero_scores_least(selection: Selection, session: Session) -> bool:
    if selection.of_layer is not None:  # what is left is scored anew
        return False
    w, g, h, p, r = z3.Reals("w g h p r")
    zero = scored(selection, z3.RealVal(0), g, p)
    goal = z3.And(
        zero == scored(selection, z3.RealVal(0), h, r),
        zero <= scored(selection, w, h, r),
    )
    return session.holds("zero scores least (selection)", [g >= 0, h >= 0], goal)

"""Prove claims by normal forms: the same state, or more steps at the end that never increase the loss."""

from __future__ import annotations

from dataclasses import replace

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.steps import Step
from compcomp.language.technique import Technique
from compcomp.proving.proof import DENSE_INPUTS, EXACT, SAME_BASIS, Proof, rule
from compcomp.proving.reasons import convention, owner
from compcomp.proving.rules.normal import Normal, normal_form
from compcomp.proving.session import Session

# Rule (same state). If A and B have one normal form and are deterministic, they map every dense state to equal
# states: A same state as B, A equals B, and neither loses more than the other.
# Where (rest) is not used, this holds from every state.
#
# Rule (last step). Let T declare that it never increases the loss f: f(T(s)) <= f(s) for every state s and every
# choice; where some technique of A changes the inputs, also for states s whose inputs are not the dense ones
# (`any_inputs`). If the normal form of A is that of B followed by such T1, ..., Tk, and B is deterministic, then A
# loses no more than B. (With free choices the two runs of B could differ.) This too holds from every state, as the
# premise does, unless (rest) is used; without `any_inputs` only inside sequences in which nothing changes the inputs,
# which is then an assumption of the proof.
# The promise speaks of s as T sees it, in the basis that is there. Where a technique of A changes the basis, f has to
# be the same in every basis (`any_basis`), or T do nothing but change it again. From every state the basis may be any:
# for another f it is an assumption of the proof that nothing in a longer sequence changes it.


SAME = "normal"
"""The name of the rule (same state) in refusals. A proof names the rewriting that it uses."""
LAST = "last step"
NEEDS_SAME = "deterministic sequences with one normal form, after rest, no op, absorption and changed inputs"
NEEDS_LAST = "a left sequence that continues the right one, in normal form, by techniques that never increase the loss"


@rule(SAME, Dominates, Equals, SameState, needs=f"either of the next two rules without (rest): {NEEDS_SAME}")
def from_every_state(claim: Claim, session: Session) -> Proof | Refusal:
    """Apply either rule without (rest), so that the proof may be used inside longer sequences."""
    found = _same_state(claim, session, dense=False)
    if isinstance(found, Refusal) and isinstance(claim, Dominates):
        return _last_step(claim, session, dense=False)
    return found


@rule(SAME, Dominates, Equals, SameState, needs=NEEDS_SAME)
def same_state(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that both sequences have one normal form."""
    return _same_state(claim, session, dense=True)


@rule(LAST, Dominates, needs=NEEDS_LAST)
def last_step_improves(claim: Dominates, session: Session) -> Proof | Refusal:
    """Prove that the left sequence is the right one, continued by techniques that never increase the loss."""
    return _last_step(claim, session, dense=True)


def _same_state(claim: Claim, session: Session, *, dense: bool) -> Proof | Refusal:
    left, right = (normal_form(sequence, session, dense=dense) for sequence in claim.sides)
    if left.atoms != right.atoms:
        query = session.missed()
        reached = Reached.STRUCTURE if query is None else Reached.FACT
        return Refusal(f"normal forms differ: {_differ(claim, left, right)}", lemma=query, reached=reached)
    if not (left.deterministic and right.deterministic):
        return _free(claim)
    absorbed, moved = left.absorbed or right.absorbed, left.moved or right.moved
    name = "no op" if left.idle or right.idle else "absorption" if absorbed else "inputs" if moved else "rest"
    assumptions = dict.fromkeys((EXACT, *left.assumptions, *right.assumptions))
    return Proof(name, "any shape", tuple(assumptions), tuple(session.queries), not dense)


def _differ(claim: Claim, left: Normal, right: Normal) -> str:
    """Return the first difference of two normal forms, as text."""
    place = next((k for k, (a, b) in enumerate(zip(left.atoms, right.atoms, strict=False)) if a != b), None)
    place = min(len(left.atoms), len(right.atoms)) if place is None else place
    names = [
        "nothing more" if place == len(normal.atoms) else _named(claim, normal.atoms[place]) for normal in (left, right)
    ]
    return f"step {place + 1} on the left is {names[0]}, on the right {names[1]}"


def _named(claim: Claim, atom: Step | Technique) -> str:
    return str(atom) if isinstance(atom, Technique) else owner(claim, atom)


def _free(claim: Claim) -> Refusal:
    free = next(t for sequence in claim.sequences for t in sequence if not t.is_deterministic)
    reason = f"{free} leaves choices free, so two runs of it may differ"
    return Refusal(reason, advice=(convention("ties", "first"),))


def _last_step(claim: Dominates, session: Session, *, dense: bool) -> Proof | Refusal:
    left, right = (normal_form(sequence, session, dense=dense) for sequence in claim.sides)
    shared, rest = left.atoms[: len(right.atoms)], left.atoms[len(right.atoms) :]
    if shared != right.atoms:
        return Refusal(f"the left sequence does not continue the right one: {_differ(claim, left, right)}", LAST)
    if not right.deterministic:
        return replace(_free(claim), rule=LAST)
    contracts: list[Assumption] = []
    for technique in rest:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            reason = f"{_named(claim, technique)} does not promise never to increase {claim.loss.name}"
            return Refusal(reason, LAST, Reached.FACT)
        if claim.left.changes_inputs and not technique.promises().any_inputs:
            reason = f"{technique} does not promise never to increase {claim.loss.name} on changed inputs"
            return Refusal(reason, LAST, Reached.FACT)
        if not (claim.loss.any_basis or technique.promises().changes_basis):
            if claim.changes_basis:
                reason = f"{claim.loss.name} depends on the basis of the inputs, which a technique changes"
                return Refusal(reason, LAST, Reached.FACT)
            contracts += [] if dense else [SAME_BASIS]
        contracts.append(contract(technique, f"never increases {claim.loss.name}"))
        if not dense and not technique.promises().any_inputs:
            contracts.append(DENSE_INPUTS)
    assumptions = dict.fromkeys((EXACT, *contracts, *left.assumptions, *right.assumptions))
    return Proof("last step", "any shape", tuple(assumptions), tuple(session.queries), not dense)

"""Prove dominance by techniques at the end that never increase the loss."""

from __future__ import annotations

from dataclasses import replace

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.technique import Technique
from compcomp.proving.proof import DENSE_INPUTS, EXACT, SAME_BASIS, Proof, rule
from compcomp.proving.rules.normal import (
    NEEDS_SAME,
    SAME,
    first_difference,
    leaves_choices,
    named,
    normal_form,
    same_normal_form,
)
from compcomp.proving.session import Session

# Rule (last step). Let T declare that it never increases the loss f: f(T(s)) <= f(s) for every state s and every
# choice; where some technique of A changes the inputs, also for states s whose inputs are not the dense ones
# (`any_inputs`). If the normal form of A is that of B followed by such T1, ..., Tk, and B is deterministic, then A
# loses no more than B. (With free choices the two runs of B could differ.) This too holds from every state, as the
# premise does, unless (rest) is used; without `any_inputs` only inside sequences in which nothing changes the inputs,
# which is then an assumption of the proof.
# The promise speaks of s as T sees it, in the basis that is there. Where a technique of A changes the basis, f has to
# be the same in every basis (`any_basis`), or T do nothing but change it again. From every state the basis may be any:
# for another f it is an assumption of the proof that nothing in a longer sequence changes it.


LAST = "last step"
NEEDS_LAST = "a left sequence that continues the right one, in normal form, by techniques that never increase the loss"


@rule(SAME, Dominates, Equals, SameState, needs=f"either of the next two rules without (rest): {NEEDS_SAME}")
def from_every_state(claim: Claim, session: Session) -> Proof | Refusal:
    """Apply rule (same state) or (last step) without (rest): the proof may be used inside longer sequences."""
    found = same_normal_form(claim, session, dense=False)
    if isinstance(found, Refusal) and isinstance(claim, Dominates):
        return _last_step(claim, session, dense=False)
    return found


@rule(LAST, Dominates, needs=NEEDS_LAST)
def last_step_improves(claim: Dominates, session: Session) -> Proof | Refusal:
    """Prove that the left sequence is the right one, continued by techniques that never increase the loss."""
    return _last_step(claim, session, dense=True)


def _last_step(claim: Dominates, session: Session, *, dense: bool) -> Proof | Refusal:
    left, right = (normal_form(sequence, session, dense=dense) for sequence in claim.sides)
    shared, rest = left.atoms[: len(right.atoms)], left.atoms[len(right.atoms) :]
    if shared != right.atoms:
        where = first_difference(claim, left, right)
        return Refusal(f"the left sequence does not continue the right one: {where}", LAST)
    if not right.deterministic:
        return replace(leaves_choices(claim), rule=LAST)
    contracts: list[Assumption] = []
    for technique in rest:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            reason = f"{named(claim, technique)} does not promise never to increase {claim.loss.name}"
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

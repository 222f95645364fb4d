"""Rules on normal forms: the same state, or one more step that never increases the loss."""

from __future__ import annotations

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.technique import Technique
from compcomp.proving.proof import DENSE_INPUTS, EXACT, SAME_BASIS, Proof
from compcomp.proving.rules.normal import normal_form
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


def from_every_state(claim: Claim, session: Session) -> Proof | None:
    """Either rule without (rest), so that the proof may be used inside longer sequences."""
    return _same_state(claim, session, dense=False) or _last_step(claim, session, dense=False)


def same_state(claim: Claim, session: Session) -> Proof | None:
    """Both sequences have one normal form."""
    return _same_state(claim, session, dense=True)


def last_step_improves(claim: Claim, session: Session) -> Proof | None:
    """The left sequence is the right one, continued by techniques that never increase the loss."""
    return _last_step(claim, session, dense=True)


def _same_state(claim: Claim, session: Session, *, dense: bool) -> Proof | None:
    if not isinstance(claim, Dominates | Equals | SameState):
        return None
    left, right = (normal_form(sequence, session, dense=dense) for sequence in (claim.left, claim.right))
    if left.atoms != right.atoms or not (left.deterministic and right.deterministic):
        return None
    absorbed, moved = left.absorbed or right.absorbed, left.moved or right.moved
    rule = "no op" if left.idle or right.idle else "absorption" if absorbed else "inputs" if moved else "rest"
    assumptions = dict.fromkeys((EXACT, *left.assumptions, *right.assumptions))
    return Proof(rule, "any shape", tuple(assumptions), tuple(session.queries), not dense)


def _last_step(claim: Claim, session: Session, *, dense: bool) -> Proof | None:
    if claim.kind != "dominates" or claim.loss is None:
        return None
    left, right = (normal_form(sequence, session, dense=dense) for sequence in (claim.left, claim.right))
    shared, rest = left.atoms[: len(right.atoms)], left.atoms[len(right.atoms) :]
    if shared != right.atoms or not right.deterministic:
        return None
    contracts: list[Assumption] = []
    for technique in rest:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            return None
        if claim.left.changes_inputs and not technique.promises().any_inputs:
            return None
        if not (claim.loss.any_basis or technique.promises().changes_basis):
            if claim.changes_basis:
                return None
            contracts += [] if dense else [SAME_BASIS]
        contracts.append(contract(technique, f"never increases {claim.loss.name}"))
        if not dense and not technique.promises().any_inputs:
            contracts.append(DENSE_INPUTS)
    assumptions = dict.fromkeys((EXACT, *contracts, *left.assumptions, *right.assumptions))
    return Proof("last step", "any shape", tuple(assumptions), tuple(session.queries), not dense)

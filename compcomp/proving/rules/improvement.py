"""Rules on normal forms: the same state, or one more step that never increases the loss."""

from __future__ import annotations

import time

from compcomp.language.claim import Claim
from compcomp.language.technique import Technique
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.normal import normal_form
from compcomp.proving.session import Session
from compcomp.proving.solver import Solver

# Rule (same state). If A and B have one normal form and are deterministic, they map every dense state to equal
# states: A equals B, and neither loses more than the other.
#
# Rule (last step). Let T declare that it never increases the loss f: f(T(s)) <= f(s) for every state s and every
# choice; where some technique of A changes the inputs, also for states s whose inputs are not the dense ones
# (`any_inputs`). If the normal form of A is that of B followed by such T1, ..., Tk, and B is deterministic, then A
# loses no more than B. (With free choices the two runs of B could differ.)


def same_state(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Both sequences have one normal form."""
    if claim.kind not in ("equal", "dominates"):
        return None
    session = Session(solver, time.monotonic() + deadline)
    left, right = normal_form(claim.left, session), normal_form(claim.right, session)
    if left.atoms != right.atoms or not (left.deterministic and right.deterministic):
        return None
    rule = "absorption" if left.absorbed or right.absorbed else "inputs" if left.moved or right.moved else "rest"
    assumptions = dict.fromkeys((EXACT, *left.assumptions, *right.assumptions))
    return Proof(rule, "any shape", tuple(assumptions), tuple(session.queries))


def last_step_improves(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """The left sequence is the right one, continued by techniques that never increase the loss."""
    if claim.kind != "dominates" or claim.loss is None:
        return None
    session = Session(solver, time.monotonic() + deadline)
    left, right = normal_form(claim.left, session), normal_form(claim.right, session)
    shared, rest = left.atoms[: len(right.atoms)], left.atoms[len(right.atoms) :]
    if shared != right.atoms or not right.deterministic:
        return None
    contracts = []
    for technique in rest:
        if not isinstance(technique, Technique) or claim.loss.name not in technique.promises().never_increases:
            return None
        if claim.left.changes_inputs and not technique.promises().any_inputs:
            return None
        contracts.append(f"{technique} never increases {claim.loss.name} (its contract)")
    assumptions = dict.fromkeys((EXACT, *contracts, *left.assumptions, *right.assumptions))
    return Proof("last step", "any shape", tuple(assumptions), tuple(session.queries))

"""A last step that never increases the loss."""

from __future__ import annotations

from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.rules.rest import deterministic, resting_assumptions, trimmed
from compcomp.proving.solver import Solver

# Rule (last step). Let T declare that it never increases the loss f: f(T(s)) <= f(s) for every state s and
# every choice. Then for every deterministic S and such T1, ..., Tk:   S >> T1 >> ... >> Tk   loses no more
# than S. Both sides may first be trimmed of resting techniques (rule rest). S has to be deterministic: with
# free choices the two runs of S could differ.


def last_step_improves(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """The left sequence is the right one, continued by steps that never increase the loss."""
    if claim.kind != "dominates" or claim.loss is None:
        return None
    (left, resting_left), (right, resting_right) = trimmed(claim.left), trimmed(claim.right)
    shared, rest = left.techniques[: len(right)], left.techniques[len(right) :]
    if Sequence(shared) != right or not deterministic(right):
        return None
    if not all(claim.loss.name in t.promises().never_increases for t in rest):
        return None
    contracts = tuple(f"{t} never increases {claim.loss.name} (its contract)" for t in dict.fromkeys(rest))
    return Proof("last step", "any shape", (EXACT, *contracts, *resting_assumptions(resting_left, resting_right)))

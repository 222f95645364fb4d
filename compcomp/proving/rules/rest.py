"""Techniques that rest while the layer still computes what the dense one does."""

from __future__ import annotations

from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence, Technique
from compcomp.proving.proof import EXACT, Proof
from compcomp.proving.solver import Solver

# Rule (rest). Two states are equal when they agree in weight, reference, mask, grid and the product of their
# factors; techniques map equal states to equal states, as they see factors through that product alone. Call
# a state s *at the reference* when its effective weight equals its reference. Let T declare `rests`: for
# every s at the reference, T(s) equals s. Let H declare `holds_reference`: for every s at
# the reference, H(s) is at the reference. The dense state is at the reference. So for H1, ..., Hk that hold
# the reference:   H1 >> ... >> Hk >> T >> R   and   H1 >> ... >> Hk >> R   map every dense state to
# equal states, whatever R is. If trimming A and B of such T gives one sequence of deterministic techniques,
# then A and B give the same state, and neither loses more than the other.


def trimmed(sequence: Sequence) -> tuple[Sequence, list[Technique]]:
    """The sequence without the techniques that rest, and those techniques."""
    left, resting, at_reference = list[Technique](), list[Technique](), True
    for technique in sequence:
        promises = technique.promises()
        if at_reference and promises.rests:
            resting.append(technique)
        else:
            left.append(technique)
        at_reference = at_reference and promises.holds_reference
    return Sequence(tuple(left)), resting


def deterministic(sequence: Sequence) -> bool:
    """Equal inputs give equal results: no convention is left free."""
    return all(t.promises().deterministic for t in sequence)


def resting_assumptions(*resting: list[Technique]) -> tuple[str, ...]:
    """One line for every technique whose resting a proof uses."""
    used = {str(t): None for group in resting for t in group}
    return tuple(f"{t} changes nothing while the layer still equals the dense one (its contract)" for t in used)


def same_after_resting(claim: Claim, solver: Solver, deadline: float) -> Proof | None:
    """Both sequences become one when resting techniques are left out."""
    if claim.kind == "keeps":
        return None
    (left, resting_left), (right, resting_right) = trimmed(claim.left), trimmed(claim.right)
    if left != right or not deterministic(left):
        return None
    assumptions = (EXACT, *resting_assumptions(resting_left, resting_right))
    return Proof("rest", "any shape", assumptions)

"""Prove that both sequences give the same state: any shape, any sparsity, through one or two weights."""

from __future__ import annotations

from compcomp.language.claim import Claim, Dominates, Equals, SameState
from compcomp.language.refusal import Reached, Refusal
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.rules.exchange import problem_of
from compcomp.proving.session import Session

# Rule (same). Take sequences A and B as in rule exchange, with at most one selection each, of the same share, or
# none on both sides: so |D_A| = |D_B| in every group of R. Suppose that
#   same value   m_A(w) = m_B(w)                                              for w in neither D_A nor D_B,
#   no pair      there are no a in D_A \ D_B and b in D_B \ D_A               in one group of R.
# Then D_A = D_B, as of two sets of one size, if they differ, each has an element that the other lacks. So both
# leave the same weights: A equals B, and loses no more than B under every loss, as a loss depends on the reference, the
# weight and the inputs alone (selections and maps leave no low-rank term). The masks are equal: the complement of
# D_A = D_B, or none. If the last maps are the same up to rounding and both find the dense contexts, the grids are
# equal too, and with them the states.
#
# The formulas are those of rule exchange, with its facts about contexts and conditions. There, a group of which
# nothing is left may have any context; so for grids to be equal something has to be left of every group.


@rule(
    "same",
    Dominates,
    Equals,
    SameState,
    needs="both sequences made of selections over one partition and scaled maps, at most one selection each and of "
    "the same share; then no pair and same value lemmas, and for equal states the same grid at the end",
)
def same_states(claim: Claim, session: Session) -> Proof | Refusal:
    """Prove that both sequences drop the same weights and leave the same values."""
    problem = problem_of(claim, session)
    if isinstance(problem, Refusal):
        return problem
    if problem.counts != "equal":
        return Refusal("the sequences may drop unlike numbers of weights")
    if isinstance(claim, SameState) and not problem.same_grids():
        return Refusal("it is not proved that both sequences end with the same grid", reached=Reached.FACT)
    goals = ["same value", *(["no pair"] if problem.selects else [])]
    if not problem.once("same", lambda: all(problem.holds(goal) for goal in goals)):
        return problem.refusal()
    return Proof("same", "any shape", (EXACT,), tuple(problem.lemmas.session.queries))

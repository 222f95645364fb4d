"""Prove that composition adds no error, because the composition loses no more than one of its parts."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

from compcomp.errors import InputError
from compcomp.language.claim import Dominates, Orthogonal
from compcomp.language.refusal import Reached, Refusal
from compcomp.proving.proof import Proof, Rule, rule
from compcomp.proving.rules.basis import simplified, unlike_bases
from compcomp.proving.session import Session

# Rule (composed). Let "f >> g dominates f" or "f >> g dominates g" hold under a loss: on every layer, and for every
# choice in either run. Then f is orthogonal to g in the norm of that loss, with any slack.
#   A norm grows with its loss: it is the loss itself, or its square root. So |e(f >> g)| is at most |e(f)|, or at most
#   |e(g)|. Either is at most |e(f)| + |e(g)| and the slack, as none of these is negative.
# "f is orthogonal to g" speaks of three runs, among them the two runs of the dominance. A condition speaks of all runs
# of its claim: where it holds for the three, it holds for the two.
#
# The dominance is proved by the rules for its kind, each within its own restrictions, also those on changed bases.


def composed_by(rules: Items[Rule], any_basis: frozenset[Rule]) -> Rule:
    """Return the rule that proves orthogonality by dominance.

    Args:
        rules: prove claims of dominance.
        any_basis: those of them that hold where techniques change the basis of the inputs.
    """

    @rule("composed", Orthogonal, needs="a rule that proves that f >> g dominates f, or dominates g")
    def composed(claim: Orthogonal, session: Session) -> Proof | Refusal:
        """Prove that the composition loses no more than one of its parts."""
        refusals = list[Refusal]()
        for part in dict.fromkeys(claim.sides):
            try:
                dominance = Dominates(claim.left >> claim.right, part, claim.loss, given=claim.given)
            except InputError as error:  # a condition that does not concern it
                return Refusal(str(error))
            found = _asked(dominance, session, rules, any_basis)
            if isinstance(found, Proof):
                return replace(found, rule="composed", local_rewrite=False)
            refusals.append(found)
        return max(refusals, key=lambda refusal: refusal.reached)

    return composed


def _asked(claim: Dominates, session: Session, rules: Items[Rule], any_basis: frozenset[Rule]) -> Proof | Refusal:
    """Ask the rules about a claim of dominance. Return the first proof, or the nearest refusal."""
    reducing = session.anew()
    shorter, contracts = simplified(claim, reducing)
    refusals = list[Refusal]()
    for each in rules:
        if shorter.changes_basis and each not in any_basis:
            refusals.append(unlike_bases(shorter, each.name))
            continue
        found = each(shorter, session.anew())
        if isinstance(found, Proof):
            queries = (*reducing.queries, *found.queries)
            return replace(found, assumptions=(*found.assumptions, *contracts), queries=queries)
        refusals.append(found)
    nearest = max(refusals, key=lambda refusal: refusal.reached)
    name = str(claim.right) if claim.right.techniques else "nothing at all"
    reason = f"the composition is not proved to lose no more than {name}: {nearest}"
    return Refusal(reason, reached=min(nearest.reached, Reached.FACT))

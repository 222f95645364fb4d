"""Techniques that scale the columns of a weight, before selections that such a scaling does not move."""

from __future__ import annotations

import z3

from compcomp.language.assumption import Assumption, contract
from compcomp.language.claim import Claim, Dominates, Equals, Orthogonal
from compcomp.language.conditions import INPUT_FACTS
from compcomp.language.steps import Selection
from compcomp.language.technique import Sequence, Technique
from compcomp.proving.functions import of_score, scored
from compcomp.proving.session import Session

# Reduction (scaling). Let T declare `scales_inputs`: all it does is divide every input feature by some number > 0,
# which may depend on anything, and multiply its column of the weight by that. Let every technique after T in its
# sequence be another such T', or consist of selections whose scores f satisfy, for t > 0,
#   invariant   f(t w, h, t r) = f(w, t^2 h, r)      w the weight, h the squared norm of its input, r the dense weight.
# Then T may be left out on the left and right of "A dominates B" and "A equals B", and in g of "f is orthogonal to g".
#
# Call two states alike if the one is the other with every column of weight and low-rank term times some t_j > 0 and
# every input feature divided by it, so that effective weight, reference and inputs are the same. T leads from a state
# to one that is alike. From alike states, a selection finds the weights t_j w, the norms h / t_j^2 and the dense
# weights t_j r: the scores of each group are the same numbers by `invariant`, so it may drop the same weights in both,
# and what it leaves is alike. T' leads alike states to alike ones, whatever its numbers. So the sequence leaves states
# alike with and without T, choice by choice. A loss is a function of effective weight, reference and inputs, and "A
# equals B" compares effective weights and inputs alone. As g stands at the end of f >> g and of g, this holds for both.
# All of it holds from every state. Alike states have other weights and another basis, so nothing is left out of "A same
# state as B".
#
# Conditions about the inputs or the dense weight do not see T. With others nothing is left out.


def without_scalings(claim: Claim, session: Session) -> tuple[Claim, tuple[Assumption, ...]]:
    """The claim without scalings that no later selection sees, and the contracts that this depends on."""
    if not isinstance(claim, Dominates | Equals | Orthogonal) or not claim.changes_basis:
        return claim, ()
    if not all(condition.assumes <= {*INPUT_FACTS} and condition.name != "no_ties" for condition in claim.given):
        return claim, ()
    left, of_left = (claim.left, ()) if isinstance(claim, Orthogonal) else _without(claim.left, session)
    right, of_right = _without(claim.right, session)
    return claim.with_sides(left, right), (*of_left, *of_right)


def _without(sequence: Sequence, session: Session) -> tuple[Sequence, tuple[Assumption, ...]]:
    """The sequence without the scalings after which there are only scalings and selections that they do not move."""
    techniques = list(sequence)
    places = [k for k, technique in enumerate(techniques) if technique.promises().scales_inputs]
    first = len(techniques)
    while places and first > places[0] and _passes(techniques[first - 1], session):
        first -= 1
    left_out = [k for k in places if k >= first]
    contracts = [contract(techniques[k], "divides input features by numbers > 0, and does no more") for k in left_out]
    return Sequence(tuple(t for k, t in enumerate(techniques) if k not in left_out)), tuple(contracts)


def _passes(technique: Technique, session: Session) -> bool:
    if technique.promises().scales_inputs:
        return True
    steps = technique.steps()
    return bool(steps) and all(isinstance(step, Selection) and invariant(step, session) for step in steps)


def invariant(selection: Selection, session: Session) -> bool:
    """Whether its scores are the same where columns are multiplied by numbers > 0 and inputs divided by them."""
    if selection.of_layer is not None:
        return False
    t, w, h, r = z3.Reals("t w h r")
    goal = scored(selection, t * w, h, t * r) == scored(selection, w, t * t * h, r)
    return session.once(
        ("scaled columns", of_score(selection)),
        lambda: session.holds("a score that scaled columns leave alone (selection)", [t > 0, h >= 0], goal),
    )

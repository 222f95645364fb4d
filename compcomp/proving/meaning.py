"""Define when runs contradict a claim with its conditions, once for all readings: numbers, batches, z3 terms."""

from __future__ import annotations

from collections.abc import Sequence

from compcomp.language.claim import Claim
from compcomp.language.conditions import Run as Run
from compcomp.layers import walk
from compcomp.layers.state import LayerState
from compcomp.terms import And, Term


def fails(claim: Claim, runs: Sequence[Run], tolerance: float = 0) -> Term:
    """Return the truth-valued term that these runs of the claim's sequences contradict it.

    They do if every condition of the claim holds and its statement is false. ``tolerance``: relative slack for floats,
    0 for exact numbers.
    """
    failure = claim.contradicted(runs, tolerance)
    return And(conditions_hold(claim, runs, tolerance), failure) if claim.given else failure


def conditions_hold(claim: Claim, runs: Sequence[Run], tolerance: float = 0) -> Term:
    """Return the term that all conditions of the claim hold along these runs, true if it has none."""
    return And(True, *(condition.holds(claim, runs, tolerance) for condition in claim.given))


def differences(left: LayerState, right: LayerState, tolerance: float = 0) -> list[Term]:
    """Return truth-valued terms, one of which holds if the states differ in some field."""
    return [term for terms in walk.differences(left, right, tolerance).values() for term in terms]

"""Proofs that need no solver, made anew from what the techniques of a claim promise: a few lines each.

docs/proofs/ has the arguments (rest, last step, kept). What is not derived here may be true all the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from compcomp.language.claim import Claim, Dominates, Equals, Keeps
from compcomp.language.identity import same
from compcomp.language.technique import Sequence, Technique

KEPT = ("mask", "n:m", "rank")
"""The invariants of which a promise says all: of grids and shapes it depends on more."""


def derived(claim: Claim) -> bool:
    """Whether the claim holds for every layer by the promises of its techniques alone."""
    if parts := claim.parts():
        return all(map(derived, parts.values()))
    if isinstance(claim, Keeps):
        return claim.invariant in KEPT and all(
            claim.invariant in technique.promises().keeps for technique in claim.left.techniques[1:]
        )
    if not isinstance(claim, Equals | Dominates):
        return False
    techniques = [t for sequence in claim.sequences for t in sequence]
    if any(t.promises().changes_inputs or t.promises().changes_basis for t in techniques):
        return _same(claim.left.techniques, claim.right.techniques) and claim.left.is_deterministic
    left, right = _active(claim.left), _active(claim.right)
    more = left[len(right) :]
    if not _same(left[: len(right)], right) or not claim.right.is_deterministic:
        return False
    if isinstance(claim, Equals):
        return not more and claim.left.is_deterministic
    return all(claim.loss.name in t.promises().never_increases for t in more)


def _same(left: Items[Technique], right: Items[Technique]) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _active(sequence: Sequence) -> tuple[Technique, ...]:
    """The techniques without those that change nothing where they stand, as the layer is the dense one still."""
    found, at_reference = list[Technique](), True
    for number, technique in enumerate(sequence):
        promises = technique.promises()
        later = sequence.techniques[number + 1 :]
        unseen = "factors" in promises.keeps or not any(t.promises().sees_factors for t in later)
        if at_reference and promises.rests and unseen:
            continue
        at_reference = at_reference and promises.holds_reference
        found.append(technique)
    return tuple(found)

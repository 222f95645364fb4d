"""Decide whether a proof covers the layers that a search is about."""

from __future__ import annotations

from collections.abc import Collection

from compcomp.bench import Shape
from compcomp.language.assumption import Assumption
from compcomp.language.claim import Claim
from compcomp.language.verdict import Verdict


def covers(verdict: Verdict, shapes: Collection[Shape] | None, held: Collection[Assumption] = ()) -> bool:
    """Return True if a proof covers every layer of these shapes.

    An assumption that may restrict the layers (:attr:`Assumption.restricts`) must be among ``held``. A proof for one
    block covers layers made of such blocks if every technique acts inside a block and the loss adds over weights. An
    output loss does not, as blocks of a row share its outputs.

    Args:
        verdict: The verdict.
        shapes: The shapes (out, in) of the layers. None stands for layers of any shape.
        held: Assumptions known to hold for the layers.
    """
    if not verdict.proved:
        return False
    if any(assumption.restricts and assumption not in held for assumption in verdict.assumptions):
        return False
    scope = verdict.scope
    if scope.kind == "any":
        return True
    if not shapes:
        return False
    if scope.kind == "shape":
        return all(shape == scope.shape for shape in shapes)
    return all(columns % scope.columns == 0 for _, columns in shapes) and _acts_in_blocks(verdict.claim, scope.columns)


def _acts_in_blocks(claim: Claim, size: int) -> bool:
    if not claim.adds or (claim.loss is not None and claim.loss.element is None):
        return False
    if any(p.size is None or size % p.size for p in claim.partitions):
        return False
    for technique in (t for sequence in claim.sequences for t in sequence):
        sizes = [step.sees.size for step in technique.steps()]
        if technique.promises().changes_basis or not sizes or any(s is None or size % s for s in sizes):
            return False
    return True

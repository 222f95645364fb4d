"""Define the claim ``A is orthogonal to B``: errors of two sequences at most add up [harma2025]."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from compcomp.errors import InputError
from compcomp.language.claims.bases import OfLosses
from compcomp.language.claims.claim import Claim
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.loss import LOSSES, Loss, loss_named
from compcomp.language.parameters import number
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, And, If, Sum, Term

NORMS = ("weight_l1", "weight_l2", "output_l2")
"""The losses whose norms claims of orthogonality compare."""


@dataclass(frozen=True)
class Orthogonal(OfLosses):
    """State that the error of ``left >> right`` is at most the sum of the errors of ``left`` and ``right`` alone.

    Errors are measured in the norm of the loss [harma2025].

    Args:
        right: the second sequence.
        loss: the loss whose norm is used.
        slack: grid steps of additional error allowed for every weight that is dropped.
    """

    loss: Loss = field(default=LOSSES["weight_l1"])
    slack: Fraction = Fraction(0)

    kind: ClassVar[str] = "orthogonal"
    verb: ClassVar[str] = "is orthogonal to"

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        second, *slack = re.split(r"\s+within\s+", after, maxsplit=1)
        return orthogonal(left, sequence(second), loss, slack=slack[0] if slack else 0, given=given)

    @property
    def object(self) -> str:
        return f"{self.right} within {self.slack}" if self.slack else str(self.right)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        return (self.left >> self.right, self.left, self.right)

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        whole, first, second = (self.loss.of(run[-1]) for run in runs)
        excess = whole - first - second - self._allowance(runs[0][-1])
        slack = tolerance * (1 + whole)
        if self.loss.degree == 1:
            return excess > slack
        # The root of the whole exceeds the sum of the two roots: squared twice, so that numbers stay rational.
        return And(excess > slack, excess * excess > 4 * first * second + slack * slack)

    def _allowance(self, end: LayerState) -> Term:
        """Return the additional error allowed: ``slack`` grid steps for every weight that the final mask drops."""
        mask, grid = end.format.mask, end.format.grid
        if not self.slack or mask is None or grid is None:
            return 0
        steps = map(Abs, grid.step.ravel()) if grid.below else grid.step.ravel()
        dropped = (If(keep, 0, step) for keep, step in zip(mask.ravel(), steps, strict=True))
        return self.slack * Sum(dropped)

    def reason(self, runs: Items[Run]) -> str:
        losses = [self.loss.of(run[-1]) for run in runs]
        whole, first, second = self.sequences
        return f"{whole} loses {losses[0]}; {first} loses {losses[1]}, {second} {losses[2]}"


def orthogonal(
    first: Technique | Sequence,
    second: Technique | Sequence,
    loss: str = "weight_l1",
    *,
    slack: Any = 0,
    given: Given = (),
) -> Orthogonal:
    """Return the claim that the error of ``first >> second`` is at most the sum of the errors alone [harma2025].

    It compares norms, so it takes the square roots of weight_l2 and output_l2.

    Args:
        first: the technique or sequence that is applied first.
        second: the technique or sequence that is applied next.
        loss: the name of the loss, out of :data:`NORMS`.
        slack: grid steps of additional error allowed for every weight that is dropped (weight_l1 only).
        given: conditions or their names. The claim speaks only of layers on which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: the loss or a condition is not known, or the slack is negative or not for this loss.
    """
    if loss not in NORMS:
        raise InputError(f"loss {loss!r}", ", ".join(NORMS), "orthogonal")
    more = number(slack, "orthogonal.slack", "a number such as 1/2, at least 0")
    if more < 0 or (more and loss != "weight_l1"):
        raise InputError(f"slack {more} under {loss}", "at least 0, and weight_l1", "orthogonal")
    left, right = as_sequence(first), as_sequence(second)
    return Orthogonal(left, right, loss_named(loss), more, given=conditions(given))

"""Define the claim ``A dominates B``: the loss after A is never larger than the loss after B."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

from compcomp.language.claims.bases import OfLosses
from compcomp.language.claims.claim import Claim
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.loss import loss_named
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.terms import Term


@dataclass(frozen=True)
class Dominates(OfLosses):
    """State that on every layer the loss after ``left`` is at most the loss after ``right``."""

    kind: ClassVar[str] = "dominates"
    verb: ClassVar[str] = "dominates"
    any_ties: ClassVar[bool] = True

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return dominates(left, sequence(after), loss, given=given)

    @property
    def family(self) -> str:
        return "compared"

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        left, right = (self.loss.of(run[-1]) for run in runs)
        return left - right > tolerance * (1 + right) if tolerance else left > right

    def reason(self, runs: Items[Run]) -> str:
        losses = [self.loss.of(run[-1]) for run in runs]
        return f"{self.left} loses {losses[0]}, {self.right} only {losses[1]}"


def dominates(
    left: Technique | Sequence, right: Technique | Sequence, loss: str = "weight_l2", *, given: Given = ()
) -> Dominates:
    """Return the claim that ``left`` never has a larger loss than ``right``.

    Args:
        left: the technique or sequence with the smaller loss.
        right: the technique or sequence that it is compared with.
        loss: the name of the loss, out of :data:`compcomp.language.loss.LOSSES`.
        given: conditions or their names, such as ``["no_ties", "diagonal_gram"]``. The claim speaks only of layers on
            which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: a technique, loss or condition is not known.
    """
    return Dominates(as_sequence(left), as_sequence(right), loss_named(loss), given=conditions(given))

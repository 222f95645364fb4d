"""Define the claim ``A same state as B``: two sequences lead to layers that agree in every recorded field."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

from compcomp.language.claims.bases import Agreement
from compcomp.language.claims.claim import Claim
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers import walk
from compcomp.layers.state import LayerState
from compcomp.terms import Term


@dataclass(frozen=True)
class SameState(Agreement):
    """State that both sequences lead to the same state.

    A state is weight, mask, grid, pattern, basis, cut, low-rank product and inputs;
    :data:`compcomp.layers.walk.FIELDS` says how each field is compared. Every technique that follows then has the same
    effect after both, unless it looks at single factors. The claim implies that both sequences are equal.
    """

    kind: ClassVar[str] = "same state"
    verb: ClassVar[str] = "same state as"

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return same_state(left, sequence(after), given=given)

    @staticmethod
    def differences(one: LayerState, other: LayerState, tolerance: float = 0) -> dict[str, list[Term]]:
        return walk.differences(one, other, tolerance)

    def reason(self, runs: Items[Run]) -> str:
        return f"the two sequences give different states: they differ in {', '.join(self.differing(runs))}"


def same_state(left: Technique | Sequence, right: Technique | Sequence, *, given: Given = ()) -> SameState:
    """Return the claim that both sequences always lead to the same state, in every recorded field.

    Args:
        left: a technique or sequence.
        right: the technique or sequence that it is compared with.
        given: conditions or their names. The claim speaks only of layers on which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: a technique or condition is not known.
    """
    return SameState(as_sequence(left), as_sequence(right), given=conditions(given))

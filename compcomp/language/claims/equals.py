"""``A equals B``: two sequences give the same state."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

from compcomp.language.claims.claim import Claim, Comparison, holds_some
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers import walk
from compcomp.terms import Term


@dataclass(frozen=True)
class Equals(Comparison):
    """Both sequences give the same state: weight, mask, grid, low-rank product and inputs."""

    kind: ClassVar[str] = "equal"
    verb: ClassVar[str] = "equals"
    scales: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    reads_layers: ClassVar[bool] = False

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return equal(left, sequence(after), given=given)

    @property
    def family(self) -> str:
        return "compared"

    @property
    def adds(self) -> bool:
        return True

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        found = walk.differences(runs[0][-1], runs[1][-1], tolerance)
        return holds_some([term for terms in found.values() for term in terms])

    def reason(self, runs: Items[Run]) -> str:
        return "the two sequences give different states"


def equal(left: Technique | Sequence, right: Technique | Sequence, *, given: Given = ()) -> Equals:
    """The claim that both sequences always give the same state, on the layers on which the conditions hold."""
    return Equals(as_sequence(left), as_sequence(right), given=conditions(given))

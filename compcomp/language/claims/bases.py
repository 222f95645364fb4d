"""Define what kinds of claims about two sequences share: claims that states agree, and claims about losses."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import ClassVar

from compcomp.language.claims.claim import Comparison, holds_some
from compcomp.language.conditions import Run
from compcomp.language.loss import LOSSES, Loss
from compcomp.layers.state import LayerState
from compcomp.terms import Term


@dataclass(frozen=True)
class Agreement(Comparison):
    """State that both sequences lead to states that agree."""

    scales: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    reads_layers: ClassVar[bool] = False

    @staticmethod
    def differences(one: LayerState, other: LayerState, tolerance: float = 0) -> Mapping[str, Items[Term]]:
        """Return truth-valued terms by name, one of which is true if two states differ in what the kind compares.

        Args:
            one: a state.
            other: the state that it is compared with.
            tolerance: relative slack for floats; 0 is exact.
        """
        raise NotImplementedError

    @property
    def family(self) -> str:
        return "compared"

    @property
    def adds(self) -> bool:
        return True

    def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
        found = self.differences(runs[0][-1], runs[1][-1], tolerance)
        return holds_some([term for terms in found.values() for term in terms])

    def differing(self, runs: Items[Run]) -> list[str]:
        """Return the names of what differs at the end of exact runs."""
        return [name for name, terms in self.differences(runs[0][-1], runs[1][-1]).items() if any(terms)]


@dataclass(frozen=True)
class OfLosses(Comparison):
    """Compare the losses of sequences."""

    loss: Loss = field(default=LOSSES["weight_l2"])

    scales: ClassVar[bool] = True
    reads_layers: ClassVar[bool] = False

    @property
    def compares_inputs(self) -> bool:
        return self.loss.needs_inputs

    @property
    def needs_inputs(self) -> bool:
        return self.loss.needs_inputs or super().needs_inputs

    @property
    def adds(self) -> bool:
        return self.part is not None

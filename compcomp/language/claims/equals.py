"""Define the claim ``A equals B``: two sequences lead to the same effective weight and the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, ClassVar

from compcomp.language.claims.bases import Agreement
from compcomp.language.claims.claim import Claim
from compcomp.language.conditions import Condition, Given, Run, conditions
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.state import LayerState
from compcomp.layers.walk import apart
from compcomp.terms import Term


@dataclass(frozen=True)
class Equals(Agreement):
    """State that both sequences lead to the same effective weight and the same inputs.

    The effective weight includes the low-rank term and is in the dense basis, so both layers compute the same
    function. Recorded formats, such as mask and grid, may differ. The claim that they agree as well is
    :class:`compcomp.language.claims.same_state.SameState`.
    """

    kind: ClassVar[str] = "equal"
    verb: ClassVar[str] = "equals"

    @classmethod
    def read(
        cls, left: Sequence, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
    ) -> Claim:
        return equal(left, sequence(after), given=given)

    @staticmethod
    def differences(one: LayerState, other: LayerState, tolerance: float = 0) -> dict[str, list[Term]]:
        return computes_apart(one, other, tolerance)

    def reason(self, runs: Items[Run]) -> str:
        return f"the two sequences give different {' and '.join(self.differing(runs))}"


def computes_apart(one: LayerState, other: LayerState, tolerance: float = 0) -> dict[str, list[Term]]:
    """Return truth-valued terms for effective weights and inputs, one of which is true if two states differ there.

    Inputs are compared only if some technique has changed them.

    Args:
        one: a state.
        other: the state that it is compared with.
        tolerance: relative slack for floats; 0 is exact.
    """
    found = {"effective weights": _unlike(one.effective(), other.effective(), tolerance)}
    if one.reference_inputs is not None or other.reference_inputs is not None:
        found["inputs"] = _unlike(one.inputs, other.inputs, tolerance)
    return found


def _unlike(one: Any, other: Any, tolerance: float) -> list[Term]:
    if one is None or other is None:
        return [one is not other]
    return [apart(x, y, tolerance) for x, y in zip(one.ravel(), other.ravel(), strict=True)]


def equal(left: Technique | Sequence, right: Technique | Sequence, *, given: Given = ()) -> Equals:
    """Return the claim that both sequences always lead to the same effective weight and inputs.

    Args:
        left: a technique or sequence.
        right: the technique or sequence that it is compared with.
        given: conditions or their names. The claim speaks only of layers on which all of them hold.

    Returns:
        The claim.

    Raises:
        InputError: a technique or condition is not known.
    """
    return Equals(as_sequence(left), as_sequence(right), given=conditions(given))

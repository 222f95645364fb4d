"""Choose the inputs that techniques are calibrated on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from compcomp.errors import InputError
from compcomp.language.parameters import one_of
from compcomp.language.technique import Technique

CALIBRATIONS = {
    "sequential": "the outputs of the compressed blocks before",
    "block": "the outputs of the compressed blocks before",
    "dense": "the inputs of the dense model",
}
"""The choices of ``calibrate``, and what the layers of a block are calibrated on."""
INSIDE = {"together": "", "in turn": " and of the compressed layers before in the block"}
"""The choices of ``inside`` for ``calibrate="sequential"``, and what they add to the inputs."""
PASSES = {"one": "all steps of an order share one pass over the blocks", "own": "each step makes a pass of its own"}
"""The choices of ``passes``."""


@dataclass(frozen=True)
class Calibration:
    """The inputs that techniques are calibrated on.

    Attributes:
        calibrate: One of :data:`CALIBRATIONS`.
        sharing: One of :data:`PASSES`.
        inside: One of :data:`INSIDE`: if the layers of a block are calibrated together, or each behind the ones before.
        blocks: Patterns of the blocks, or None (see :func:`compcomp.models.blocks.find_blocks`).
    """

    calibrate: str = "sequential"
    sharing: str = "one"
    inside: str = "together"
    blocks: tuple[str, ...] | None = None

    @property
    def dense(self) -> bool:
        """Return True if every layer is calibrated on the inputs that it has in the dense model."""
        return self.calibrate == "dense"

    @property
    def each(self) -> bool:
        """Return True if every layer is a block of its own."""
        return self.inside == "in turn"

    @property
    def described(self) -> str:
        """A description of the inputs, as text."""
        return CALIBRATIONS[self.calibrate] + INSIDE[self.inside]

    def passes(self, steps: Iterable[Technique]) -> list[list[Technique]]:
        """Return the steps in groups that share a pass. A technique that acts on the whole model is one alone."""
        found: list[list[Technique]] = []
        for step in steps:
            alone = step.whole_model or (self.sharing == "own" and not self.dense)
            if not found or alone or found[-1][0].whole_model:
                found.append([step])
            else:
                found[-1].append(step)
        return found


SEQUENTIAL, DENSE = Calibration(), Calibration("dense")


def calibration_of(calibrate: Any, passes: Any, inside: Any = "together", blocks: Any = None) -> Calibration:
    """Read the arguments that choose the inputs. Raises InputError if one cannot be used."""
    from compcomp.models.patterns import patterns_of

    one_of(calibrate, list(CALIBRATIONS), "calibrate")
    one_of(passes, list(PASSES), "passes")
    one_of(inside, list(INSIDE), "inside")
    if inside == "in turn" and calibrate != "sequential":
        raise InputError(f"inside='in turn' with calibrate={calibrate!r}", "calibrate='sequential'", "inside")
    return Calibration(calibrate, passes, inside, None if blocks is None else patterns_of(blocks, "blocks"))

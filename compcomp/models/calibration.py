"""Choose the inputs that techniques are calibrated on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from compcomp.language.parameters import one_of
from compcomp.language.technique import Technique

CALIBRATIONS = {
    "sequential": "the outputs of the compressed blocks before",
    "block": "the outputs of the compressed blocks before; inside a block those of its dense layers",
    "dense": "the dense model",
}
"""The choices of ``calibrate``, and where the inputs of a layer come from."""
PASSES = {"one": "all steps of an order share one pass over the blocks", "own": "each step makes a pass of its own"}
"""The choices of ``passes``."""


@dataclass(frozen=True)
class Calibration:
    """The inputs that techniques are calibrated on.

    Attributes:
        calibrate: One of :data:`CALIBRATIONS`.
        sharing: One of :data:`PASSES`.
        blocks: Patterns of the blocks, or None (see :func:`compcomp.models.blocks.find_blocks`).
    """

    calibrate: str = "sequential"
    sharing: str = "one"
    blocks: tuple[str, ...] | None = None

    @property
    def dense(self) -> bool:
        """Return True if every layer is calibrated on the inputs that it has in the dense model."""
        return self.calibrate == "dense"

    @property
    def described(self) -> str:
        """Where the inputs of a layer come from, in words."""
        return CALIBRATIONS[self.calibrate]

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


def calibration_of(calibrate: Any, passes: Any, blocks: Any = None) -> Calibration:
    """Read the arguments that choose the inputs. Raises InputError if one cannot be used."""
    from compcomp.models.patterns import patterns_of

    one_of(calibrate, list(CALIBRATIONS), "calibrate")
    one_of(passes, list(PASSES), "passes")
    return Calibration(calibrate, passes, None if blocks is None else patterns_of(blocks, "blocks"))

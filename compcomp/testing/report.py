"""Count the layers that were compared, and report one on which a check fails."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from compcomp.language.technique import Technique
from compcomp.layers import walk
from compcomp.layers.state import LayerState


@dataclass
class Coverage:
    """Count the layers that were compared.

    clear: Layers away from every tie and midpoint.
    at_ties: Layers at a tie or midpoint that is exact in floats.
    promises: Layers on which contracts were checked.
    skipped: Layers on which floats may differ, or whose optimum is not rational.
    """

    clear: int = 0
    at_ties: int = 0
    promises: int = 0
    skipped: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def failure(technique: Technique, what: str, layer: LayerState, *results: tuple[str, Any]) -> AssertionError:
    """Return an error that says what is wrong, with results by name and the layer."""
    lines = [f"{technique}: {what}", *(f"  {name}: {value}" for name, value in results)]
    lines += [f"  {line}" for line in walk.lines(layer)]
    return AssertionError("\n".join(lines))

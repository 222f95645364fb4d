"""Define the grids of symmetric quantization that are in use: their levels, and their step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from compcomp.layers.scales import stored
from compcomp.terms import Abs, Choices, Div, If, Max, Term


@dataclass(frozen=True)
class Levels:
    """Define the levels and the step of a grid, given its number L of positive levels.

    The values of a group are ``k * step``, ``-L - below <= k <= L``. The step is m / (L + beyond), m the largest
    magnitude of the group.

    Args:
        below: how many more negative levels there are than positive ones.
        beyond: the level of m, less L. A weight beyond the last level goes to it.
        signed: the step is -e / (L + beyond), e the weight of largest magnitude with its sign, the first such weight if
            there are several. So the step may be negative.
    """

    below: int = 0
    beyond: Fraction = Fraction(0)
    signed: bool = False

    def reach(self, levels: int) -> int | Fraction:
        """Return the largest magnitude in steps, for this number of positive levels."""
        return levels + self.beyond if self.beyond else levels


GRIDS = {
    "narrow": Levels(),
    "full_range": Levels(below=1, beyond=Fraction(1, 2)),
    "narrow_step": Levels(below=1),
    "clipped": Levels(below=1, beyond=Fraction(1)),
    "signed": Levels(below=1, beyond=Fraction(1), signed=True),
}
"""The grids that a parameter ``grid`` names, for L = 2^(bits - 1) - 1.

- narrow: as many levels on each side (GGUF Q8_0).
- full_range: all 2^bits levels, over 2 m (compressed-tensors, llm-compressor).
- narrow_step: all 2^bits levels, and the step of the narrow grid (AutoAWQ).
- clipped: all 2^bits levels, and m at the least one, so that +m is clipped by a step [yao2022].
- signed: as clipped, but with the sign of each group such that the weight of largest magnitude is a value (GGUF Q4_0,
  AutoRound).
"""

UNSIGNED = tuple(name for name, of in GRIDS.items() if not of.signed)
"""The grids whose steps are not negative."""


def step_of(weights: Sequence[Term], of: Levels, levels: int, scales: str, choices: Choices) -> Term:
    """Return the step of the grid of a group of weights, as it is stored.

    Args:
        weights: the weights of the group.
        of: the levels and the step.
        levels: the number of positive levels.
        scales: one of :data:`compcomp.layers.scales.SCALES`.
        choices: collects what is known of a stored step, for z3.
    """
    size = -extreme(weights) if of.signed else choices.context(Max(map(Abs, weights)))
    return stored(Div(size, of.reach(levels)), scales, choices)


def extreme(weights: Iterable[Term]) -> Term:
    """Return the first weight of largest magnitude, with its sign."""
    first, *others = weights
    for weight in others:
        first = If(Abs(weight) > Abs(first), weight, first)
    return first

"""Define what a reader returns: the steps of a recipe, each with the techniques that it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique

PRUNES = "prunes"
QUANTIZES = "quantizes"
TRAINS = "trains"
SCALES = "scales"
LEAVES = "leaves the weights"
UNKNOWN = "unknown"
"""The things that a step may do to the weights of a layer."""


@dataclass(frozen=True)
class Step:
    """One step of a tool's recipe.

    Args:
        name: the tool's own name of the step.
        place: where the recipe has it.
        does: one of the constants of this module.
        techniques: what the step is here. Empty if it leaves the weights, or if there is no such technique.
        conventions: how this tool, in this version, carries the step out.
        differs: where the tool's conventions are not those of the techniques, and what does not depend on this.
        unknown: what could not be read or is not known.
        layers: the layers that the recipe names for the step, as text.
        keeps_mask: the recipe's change that makes the step keep earlier zeros. Empty if the tool has none.
        nearest: for GPTQ, the technique that rounds to nearest on the tool's kind of grid.
        source: where the conventions were read.
    """

    name: str
    place: str = ""
    does: str = UNKNOWN
    techniques: tuple[Technique, ...] = ()
    conventions: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    layers: str = ""
    keeps_mask: str = ""
    nearest: Technique | None = None
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the step as plain data."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        nearest = None if self.nearest is None else str(self.nearest)
        return {**data, "techniques": [str(t) for t in self.techniques], "nearest": nearest}


@dataclass(frozen=True)
class Problem:
    """One thing about a recipe that its tool would refuse, ignore, or read as something else.

    Args:
        text: one line.
        breaks: True if the recipe does not do what it says, so that its promises count as broken.
    """

    text: str
    breaks: bool = True


@dataclass(frozen=True)
class ToolRecipe:
    """A recipe as a tool reads it.

    Args:
        tool: the name of the tool.
        version: the version whose conventions were used.
        steps: the steps in the order in which the tool takes them.
        problems: what the tool would refuse or ignore.
        notes: further remarks.
        name: which of several orders in one file this is.
    """

    tool: str
    version: str
    steps: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""


@dataclass
class Values:
    """Take parameters of a step from a mapping, and remember which were not understood."""

    given: Mapping[str, Any]
    unknown: list[str] = field(default_factory=list)

    def whole(self, name: str, default: int, least: int = 1, most: int = 2**20) -> int:
        """Return a whole number, or the default with a remark if there is none that can be used."""
        value = self.given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.unknown.append(
                f"{name}: {str(value)[:40]!r} is no whole number from {least} to {most}; {default} is used"
            )
            return default
        return value

    def share(self, name: str, default: Fraction) -> Fraction:
        """Return a number in [0, 1) as an exact fraction, or the default with a remark."""
        value = self.given.get(name, default)
        if not isinstance(value, bool) and isinstance(value, int | float | Fraction) and 0 <= value < 1:
            return Fraction(str(value)).limit_denominator(1000)
        self.unknown.append(f"{name}: {str(value)[:40]!r} is no share from 0 to 1; {default} is used")
        return default

    def truth(self, name: str, default: bool) -> bool:
        """Return True or False, or the default with a remark."""
        value = self.given.get(name, default)
        if not isinstance(value, bool):
            self.unknown.append(f"{name}: {str(value)[:40]!r} is neither true nor false; {default} is used")
            return default
        return value


def dropped_of(n: int, m: int) -> dict[str, Any]:
    """Return sparsity and pattern of a technique that drops n of every m weights of a row."""
    if not 0 < n < m <= 64:
        raise InputError(f"n = {n}, m = {m}", "0 < n < m <= 64", "n:m")
    return {"sparsity": Fraction(n, m), "pattern": f"{m - n}:{m}"}


def sequence_of(steps: tuple[Step, ...]) -> Sequence | None:
    """Return all techniques of some steps in order, None if there are none."""
    found = tuple(t for step in steps for t in step.techniques)
    return Sequence(found) if found else None

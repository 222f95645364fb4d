"""Read compcomp's own recipes and plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compcomp.auditing.asking import invariants_of
from compcomp.auditing.steps import LEAVES, PRUNES, QUANTIZES, SCALES, Problem, Step, ToolRecipe
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.version import __version__

TOOL = "compcomp"


def is_recipe(data: Any) -> bool:
    """Return True if the data is a recipe or a plan of compcomp."""
    return isinstance(data, dict) and (
        isinstance(data.get("techniques"), list | str) or isinstance(data.get("order"), str)
    )


def read(data: Mapping[str, Any], version: str | None = None) -> list[ToolRecipe]:
    """Return the order of a plan, or the techniques of a recipe in the order in which they are written."""
    notes, problems = list[str](), list[Problem]()
    if isinstance(data.get("order"), str):
        techniques = list(parse_sequence(data["order"]))
    else:
        notes.append("a recipe leaves the order open: compcomp optimize finds it. Audited as it is written")
        techniques = _listed(data["techniques"], notes)
    steps = tuple(_step(technique) for technique in techniques)
    if not steps:
        problems.append(Problem("there is no technique: the recipe does nothing"))
    return [ToolRecipe(TOOL, version or __version__, steps, tuple(problems), tuple(notes))]


def _listed(given: Any, notes: list[str]) -> list[Technique]:
    """Return the techniques of a list. Of alternatives the first is taken, and optional ones are there."""
    if isinstance(given, str):
        return list(parse_sequence(given))
    found = list[Technique]()
    for item in given:
        part = item["optional"] if isinstance(item, dict) and list(item) == ["optional"] else item
        if part is not item:
            notes.append(f"{str(part)[:60]} is optional; it is audited as if it were there")
        if isinstance(part, list) and part:
            notes.append(f"of alternatives the first is audited: {str(part[0])[:60]}")
            part = part[0]
        if not isinstance(part, str):
            raise InputError(repr(item)[:60], "a technique such as AbsMax(bits=4)", "audit: techniques")
        found += parse_sequence(part)
    return found


def _step(technique: Technique) -> Step:
    found = invariants_of(technique)
    does = PRUNES if "mask" in found else QUANTIZES if "grid" in found else SCALES
    if technique.promises().leaves_weight:
        does = LEAVES
    mask = getattr(technique, "mask", None)
    return Step(
        type(technique).__name__,
        does=does,
        techniques=(technique,),
        keeps_mask="mask='kept'" if mask == "ignored" else "",
    )

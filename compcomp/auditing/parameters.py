"""Say a technique in the form of another tool's recipe: its writer, its pattern, its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from compcomp.errors import InputError
from compcomp.language.technique import Technique

WHERE = "export_recipe"
Written = TypeVar("Written")


def written_by(
    writers: Mapping[type[Technique], Callable[[Any], Written]],
    technique: Technique,
    tool: str,
    more: tuple[type[Technique], ...] = (),
) -> Written:
    """Return what the writer of a technique's class writes.

    Args:
        writers: by class, a function of a technique.
        technique: the technique.
        tool: the name of the tool, for messages.
        more: further classes that the tool has, for messages.

    Raises:
        InputError: there is no writer for it.
    """
    for kind, write in writers.items():
        if isinstance(technique, kind):
            return write(technique)
    known = ", ".join(kind.__name__ for kind in (*writers, *more))
    raise InputError(str(technique), f"a technique that {tool} has: {known}", WHERE)


def dropped_by(technique: Any) -> tuple[int, int] | None:
    """Return n and m of a pruning that drops n of every m weights, None if it is unstructured."""
    kept, _, size = str(technique.pattern).partition(":")
    return (int(size) - int(kept), int(size)) if size else None


def number(parameter: Any) -> float:
    """Return an exact parameter of a technique as recipes have it."""
    return float(parameter)

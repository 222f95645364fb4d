"""Read orders of function names with parameters: ``{tool: [name, {name: {parameter: value}}, ...]}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from compcomp.auditing.steps import Problem, Step, ToolRecipe, Values

Reader = Callable[[Values, tuple[Step, ...]], Step]
"""A function of a call's parameters and of the steps before it."""


def is_order(data: Any, tool: str) -> bool:
    """Return True if the data is an order of this tool."""
    return isinstance(data, dict) and isinstance(data.get(tool), list)


def read_order(
    data: Mapping[str, Any], key: str, tool: str, version: str, source: str, readers: Mapping[str, Reader]
) -> list[ToolRecipe]:
    """Return the calls of an order as steps."""
    steps, problems = list[Step](), list[Problem]()
    for item in data[key]:
        name: Any = item
        given: Any = {}
        if isinstance(item, dict) and len(item) == 1:
            name, given = next(iter(item.items()))
        if not isinstance(name, str):
            problems.append(Problem(f"{str(item)[:60]!r} names no function of {tool}"))
            continue
        values = Values(given if isinstance(given, dict) else {})
        reader = readers.get(name.lower())
        if reader is None:
            problems.append(Problem(f"{tool} has no {name[:60]!r} that is known here; known: {', '.join(readers)}"))
            steps.append(Step(name, unknown=(f"{name} is not known here",), source=source))
            continue
        step = reader(values, tuple(steps))
        steps.append(replace(step, name=name, unknown=(*step.unknown, *values.unknown), source=source))
    if not steps:
        problems.append(Problem(f"the order of {tool} has no steps: it does nothing"))
    return [ToolRecipe(tool, version, tuple(steps), tuple(problems))]

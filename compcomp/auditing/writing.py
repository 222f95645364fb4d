"""Write an order as a recipe of another tool, if the tool carries out each step with the same conventions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from itertools import zip_longest
from types import ModuleType
from typing import Any

import yaml

from compcomp.auditing import llm_compressor, llm_compressor_recipe, olive, olive_workflow
from compcomp.auditing.parameters import WHERE
from compcomp.auditing.steps import ToolRecipe
from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique

TOOLS: Mapping[str, tuple[ModuleType, ModuleType]] = {
    "llm-compressor": (llm_compressor, llm_compressor_recipe),
    "olive": (olive, olive_workflow),
}
"""For each tool, the reader of its recipes and their writer."""


def recipe_text(
    sequence: Sequence,
    tool: str,
    targets: tuple[str, ...] = ("Linear",),
    ignore: tuple[str, ...] = ("lm_head",),
    model: str = "model",
) -> str:
    """Write an order in the form that a tool reads: YAML for llm-compressor, JSON for Olive.

    The text is read again, as :func:`compcomp.audit` would, and must give the same techniques with the same parameters.
    Where the tool differs in a detail that no parameter names, a warning says so.

    Args:
        sequence: The order.
        tool: "llm-compressor" or "olive".
        targets: Patterns of the layers to compress, as for :func:`compcomp.apply`.
        ignore: Patterns of the layers to leave alone.
        model: The path or name of the model, for tools whose recipes have it.

    Raises:
        InputError: The tool has no such step, or carries it out with other conventions. The message names both.
    """
    if tool not in TOOLS:
        raise InputError(f"tool={tool!r}"[:60], " or ".join(map(repr, TOOLS)), WHERE)
    reader, writer = TOOLS[tool]
    data = writer.written(tuple(sequence), targets, ignore, model)
    (read,) = reader.read(data)
    _check_same(tuple(sequence), read)
    differs = [f"{step.name}: {text}" for step in read.steps for text in step.differs]
    for text in differs:
        warnings.warn(f"{read.tool} {read.version}, {text}", UserWarning, stacklevel=3)
    if reader is olive:
        return json.dumps(data, indent=1) + "\n"
    head = [f"{sequence}", f"for {read.tool} {read.version}", *(f"differs: {text}" for text in differs)]
    return "".join(f"# {line}\n" for line in head) + yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Write what occurs twice in full each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _check_same(given: tuple[Technique, ...], read: ToolRecipe) -> None:
    """Raise InputError unless a recipe, as it was read, is the given order."""
    about = f"{read.tool} {read.version}"
    for problem in read.problems:
        raise InputError(str(Sequence(given)), f"what {about} runs ({problem.text})", WHERE)
    found = tuple(technique for step in read.steps for technique in step.techniques)
    for number, (own, theirs) in enumerate(zip_longest(given, found), 1):
        if own == theirs:
            continue
        if own is None or type(own) is not type(theirs):
            raise InputError(f"step {number}, {own}", f"a step of {about}, which would take {theirs}", WHERE)
        other = [f.name for f in fields(own) if getattr(own, f.name) != getattr(theirs, f.name)]
        allowed = ", ".join(f"{name}={_shown(getattr(theirs, name))}" for name in other)
        raise InputError(f"step {number}, {own}", f"{allowed}, as {about} has it", WHERE)
    unknown = [f"{step.name}: {text}" for step in read.steps for text in step.unknown]
    if unknown:
        raise InputError(str(Sequence(given)), f"steps of {about} that are known ({unknown[0]})", WHERE)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | bool) or value is None else str(value)

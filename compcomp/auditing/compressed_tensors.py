"""Read what a ``config.json`` of compressed-tensors says about its checkpoint.

It names the state at the end, not the steps that led there, so claims about it depend on the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compcomp.auditing.schemes import SOURCE, grid_of, inputs_of
from compcomp.auditing.steps import PRUNES, QUANTIZES, Problem, Step, ToolRecipe, Values, dropped_of
from compcomp.techniques import GPTQ, LearnedMask

TOOL = "compressed-tensors"


def _config(data: Any) -> Mapping[str, Any] | None:
    for key in ("quantization_config", "compression_config"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    if isinstance(data, dict) and (data.get("quant_method") == TOOL or "sparsity_config" in data):
        return data
    return None


def is_recipe(data: Any) -> bool:
    """Return True if the data is a config of this tool."""
    return _config(data) is not None


def read(data: Any, version: str | None = None) -> list[ToolRecipe]:
    """Return the two ways to the state that the config names: rounding to nearest, and GPTQ."""
    config = _config(data)
    assert config is not None
    version = version or str(config.get("version", "0.14"))
    problems, notes = list[Problem](), ["the config names the state at the end; only the tensors show whether it holds"]
    sparse = _sparsity(config.get("sparsity_config"), notes)
    groups = config.get("config_groups")
    steps = [] if sparse is None else [sparse]
    orders: list[tuple[str, list[Step]]] = []
    if isinstance(groups, dict) and groups:
        first = next(
            (part for part in groups.values() if isinstance(part, dict) and isinstance(part.get("weights"), dict)), None
        )
        if first is not None:
            grid, refused, unknown = grid_of(first["weights"])
            problems += [Problem(f"{TOOL} refuses this config: {text}") for text in refused]
            inputs, text = inputs_of(first.get("input_activations"))
            more = (inputs,) if inputs else ()
            if len(groups) > 1:
                unknown.append("config_groups has several groups; the first is audited")
            if grid is not None:
                base: dict[str, Any] = {
                    "name": "config_groups",
                    "place": "quantization_config",
                    "does": QUANTIZES,
                    "differs": grid.differs(),
                    "unknown": tuple(unknown),
                    "source": SOURCE,
                }
                said = (str(grid), *([text] if text else []))
                rtn = Step(
                    techniques=(grid.nearest(), *more), conventions=(*said, "if it was rounded to nearest"), **base
                )
                gptq = Step(
                    techniques=(GPTQ(bits=grid.bits, group=grid.group), *more),
                    conventions=(*said, "if it was made by GPTQ without a mask"),
                    **base,
                )
                orders = [("if rounded to nearest", [*steps, rtn]), ("if made by GPTQ", [*steps, gptq])]
    if not orders:
        orders = [("", steps)]
    if not steps and len(orders) == 1:
        problems.append(Problem(f"{TOOL} reads neither quantization nor sparsity from this config: it says nothing"))
    if sparse is None:
        orders = orders[:1]
    return [ToolRecipe(TOOL, version, tuple(order), tuple(problems), tuple(notes), name) for name, order in orders]


def _sparsity(config: Any, notes: list[str]) -> Step | None:
    if not isinstance(config, dict):
        return None
    structure = str(config.get("sparsity_structure", "unstructured"))
    numbers = structure.split(":")
    values = Values(config)
    pattern: dict[str, Any] = {}
    if len(numbers) == 2 and all(part.isdigit() for part in numbers) and 0 < int(numbers[0]) < int(numbers[1]) <= 64:
        pattern = dropped_of(int(numbers[1]) - int(numbers[0]), int(numbers[1]))
    elif structure in ("0:0", "unstructured"):
        from fractions import Fraction

        pattern = {"sparsity": values.share("global_sparsity", Fraction(1, 2))}
    else:
        notes.append(f"sparsity_structure {structure[:40]!r} is not known here")
        return None
    return Step(
        "sparsity_config",
        "quantization_config",
        does=PRUNES,
        techniques=(LearnedMask(**pattern, iterations=0),),
        conventions=(f"structure {structure}", "how the mask was chosen is not said; any mask stands for it"),
        unknown=tuple(values.unknown),
        source=SOURCE,
    )

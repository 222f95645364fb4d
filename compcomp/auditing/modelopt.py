"""Read ModelOpt's lists of modes with their configs, as given to ``apply_mode`` or as its state has them.

Data from NVIDIA/Model-Optimizer 0.47, ``modelopt/torch/sparsity`` and ``modelopt/torch/quantization``: the modes, what
they do to weights, and which modes may follow which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from compcomp.auditing.schemes import Grid, inputs_of
from compcomp.auditing.steps import LEAVES, PRUNES, QUANTIZES, TRAINS, Problem, Step, ToolRecipe, Values, dropped_of
from compcomp.language.technique import Technique
from compcomp.techniques import AWQ, GPTQ, DistillLogits, Magnitude, SmoothQuant, SparseGPT

TOOL, VERSION = "ModelOpt", "0.47"
SOURCE = "NVIDIA/Model-Optimizer, modelopt/torch (0.47)"

MODES = (
    "sparse_magnitude",
    "sparsegpt",
    "export_sparse",
    "quantize",
    "auto_quantize",
    "real_quantize",
    "export_quantize",
    "kd_loss",
    "export_kd_loss",
    "autonas",
    "fastnas",
    "gradnas",
    "mcore_minitron",
    "export_nas",
)
NEXT: dict[str, frozenset[str]] = {
    "sparse_magnitude": frozenset({"export_sparse", "kd_loss", "quantize"}),
    "sparsegpt": frozenset({"export_sparse", "kd_loss", "quantize"}),
    "fastnas": frozenset({"kd_loss", "quantize", "sparse_magnitude", "sparse_gpt", "export_nas"}),
}
"""The modes that a mode names as those that may follow it at once."""
PROHIBITED: dict[str, frozenset[str]] = {"quantize": frozenset({"sparsity", "autonas", "fastnas", "gradnas"})}
"""The modes that a mode names as those that may not follow it."""
PRESETS: dict[str, dict[str, Any]] = {
    "INT8_DEFAULT_CFG": {"num_bits": 8, "axis": 0},
    "INT8_SMOOTHQUANT_CFG": {"num_bits": 8, "axis": 0, "algorithm": "smoothquant"},
    "FP8_DEFAULT_CFG": {"num_bits": [4, 3], "axis": None},
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": {"num_bits": 4, "block_sizes": {"-1": 128}},
    "INT4_AWQ_CFG": {"num_bits": 4, "block_sizes": {"-1": 128}, "algorithm": "awq_lite"},
    "NVFP4_DEFAULT_CFG": {"num_bits": [2, 1], "block_sizes": {"-1": 16}},
    "MXFP4_DEFAULT_CFG": {"num_bits": [2, 1], "block_sizes": {"-1": 32}},
}


def is_recipe(data: Any) -> bool:
    """Return True if the data looks like a list of modes of this tool."""
    if isinstance(data, dict) and isinstance(data.get("modes"), list):
        data = data["modes"]
    if not isinstance(data, list) or not data:
        return False
    return any(_name(item) in MODES or _name(item) in ("sparse_gpt", "sparsity") for item in data)


def _name(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and isinstance(item[0], str):
        return item[0]
    if isinstance(item, dict) and isinstance(item.get("mode"), str):
        return str(item["mode"])
    if isinstance(item, dict) and len(item) == 1:
        return str(next(iter(item)))
    return None


def _config(item: Any) -> Mapping[str, Any]:
    config: Any = {}
    if isinstance(item, list) and len(item) > 1:
        config = item[1]
    elif isinstance(item, dict):
        config = item.get("config", {}) if "mode" in item else next(iter(item.values()))
    return config if isinstance(config, dict) else {}


def read(data: Any, version: str | None = None) -> list[ToolRecipe]:
    """Return the modes in their order."""
    items = data["modes"] if isinstance(data, dict) else data
    problems, notes, steps = list[Problem](), list[str](), list[Step]()
    names = []
    enforced = False
    for item in items:
        name = _name(item)
        if name is None:
            problems.append(Problem(f"{TOOL} refuses {str(item)[:60]!r}, which names no mode"))
            continue
        if name not in MODES:
            problems.append(Problem(f"{TOOL} refuses {name!r}, which is no mode; it has {', '.join(MODES)}"))
        names.append(name)
        steps.append(_step(name, _config(item), notes, enforced=enforced))
        enforced = (enforced or name in ("sparse_magnitude", "sparsegpt")) and name != "export_sparse"
    for before, after in pairwise(names):
        _check_rules(before, after, problems, notes)
    return [ToolRecipe(TOOL, version or VERSION, tuple(steps), tuple(problems), tuple(notes))]


def _check_rules(before: str, after: str, problems: list[Problem], notes: list[str]) -> None:
    """Apply the tool's own rules about order, and say where they name modes that do not exist."""
    allowed, prohibited = NEXT.get(before), PROHIBITED.get(before, frozenset())
    if allowed is not None and after not in allowed:
        strange = sorted(allowed - set(MODES))
        why = f" (its list says {strange[0]!r}, which is no mode)" if strange else ""
        problems.append(Problem(f"{TOOL} refuses {after!r} right after {before!r}{why}"))
    strange = sorted(prohibited - set(MODES))
    if strange and after in ("sparsegpt", "sparse_magnitude"):
        notes.append(
            f"{TOOL} means to prohibit sparsity after {before!r}, but names {strange[0]!r}, which is no mode: it lets "
            f"{after!r} through"
        )


def _step(name: str, config: Mapping[str, Any], notes: list[str], *, enforced: bool) -> Step:
    values = Values(config)
    step = Step(name, unknown=(f"the mode {name} is not known here",))
    if name in ("sparsegpt", "sparse_magnitude", "sparse_gpt"):
        step = _sparse(name, values)
    elif name == "quantize":
        step = _quantize(values, enforced=enforced)
    elif name == "auto_quantize":
        step = Step(name, unknown=("each layer gets a format of its own; which one depends on the model",))
    elif name == "kd_loss":
        if enforced:
            kept = "training may change every weight; zeros stay zero, as the mask is in force"
            step = Step(name, does=TRAINS, techniques=(DistillLogits(iterations=1),), conventions=(kept,))
        else:
            step = Step(name, unknown=("training without a mask may change every weight, zeros too",))
    elif name.startswith("export_") or name == "real_quantize":
        step = Step(name, does=LEAVES, conventions=("changes the form of the model, not the values of its weights",))
        if name == "export_sparse":
            notes.append("after export_sparse the mask is no longer in force: a later change of weights may fill zeros")
    return replace(step, unknown=(*step.unknown, *values.unknown), source=SOURCE)


def _sparse(name: str, values: Values) -> Step:
    said = values.given.get("pattern")
    if said is None:
        inner = [part for part in values.given.values() if isinstance(part, dict) and "pattern" in part]
        said = inner[0]["pattern"] if inner else "2:4 sparsity"
    numbers = str(said).removesuffix("sparsity").strip().split(":")
    n, m = 2, 4
    if len(numbers) == 2 and all(part.isdigit() for part in numbers) and 0 < int(numbers[0]) < int(numbers[1]) <= 64:
        n, m = map(int, numbers)
    else:
        values.unknown.append(f"pattern: {str(said)[:40]!r}; 2:4 stands for it")
    pattern = dropped_of(m - n, m)
    technique = Magnitude(**pattern) if name == "sparse_magnitude" else SparseGPT(**pattern)
    return Step(
        name,
        does=PRUNES,
        techniques=(technique,),
        conventions=(f"keeps {n} of every {m} weights", "the mask stays in force until export_sparse"),
    )


def _weights(values: Values) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the attributes of weight quantizers and of input quantizers."""
    given = values.given.get("quant_cfg", {})
    if isinstance(given, str):
        preset = PRESETS.get(given)
        if preset is None:
            values.unknown.append(f"quant_cfg: {given[:40]!r}")
        return dict(preset or {}), None
    pairs: list[tuple[str, Any]] = []
    if isinstance(given, dict):
        pairs = [(str(key), value) for key, value in given.items()]
    elif isinstance(given, list):
        for item in given:
            if isinstance(item, dict) and "quantizer_name" in item:
                pairs.append((str(item["quantizer_name"]), item.get("cfg", item)))
            elif isinstance(item, dict) and len(item) == 1:
                pairs += [(str(key), value) for key, value in item.items()]
    found: dict[str, dict[str, Any]] = {}
    for kind in ("weight_quantizer", "input_quantizer"):
        for key, value in pairs:  # later entries win, as in the tool
            part = value[0] if isinstance(value, list) and value else value
            if isinstance(part, dict) and (key == "default" or fnmatchcase(f"layer.{kind}", key) or key.endswith(kind)):
                found[kind] = {**found.get(kind, {}), **part}
    return found.get("weight_quantizer", {}), found.get("input_quantizer")


def _quantize(values: Values, *, enforced: bool) -> Step:
    weights, inputs = _weights(values)
    algorithm = values.given.get("algorithm", weights.get("algorithm", "max"))
    if isinstance(algorithm, dict):
        algorithm = algorithm.get("method", "max")
    if not weights or weights.get("enable") is False or "num_bits" not in weights:
        values.unknown += [] if weights.get("enable") is False else ["no quantizer of weights was found in quant_cfg"]
        return Step("quantize", does=LEAVES if weights.get("enable") is False else "unknown")
    bits, blocks, axis = weights["num_bits"], weights.get("block_sizes"), weights.get("axis")
    size = None
    if isinstance(blocks, dict):
        size = next((value for key, value in blocks.items() if str(key) == "-1" and isinstance(value, int)), None)
    kind = "int"
    if isinstance(bits, list | tuple):
        bits, kind = sum(x for x in bits if isinstance(x, int)) + 1, "float"
    elif isinstance(bits, str):
        kind, bits = ("float", 8) if "4,3" in bits.replace(" ", "") else ("float", 4)
    if (
        isinstance(bits, bool)
        or not isinstance(bits, int)
        or not 2 <= bits <= 16
        or (kind == "float" and bits not in (4, 8))
    ):
        values.unknown.append(f"num_bits: {str(weights['num_bits'])[:40]!r}")
        return Step("quantize")
    strategy = "group" if size else "channel" if axis in (0, [0]) else "tensor"
    grid = Grid(bits, kind, True, size, strategy, "narrow")
    techniques: list[Technique] = []
    said = [f"{grid}", f"algorithm {str(algorithm)[:40]}"]
    if algorithm == "smoothquant":
        techniques.append(SmoothQuant(alpha=1))
    elif str(algorithm).startswith("awq"):
        techniques.append(AWQ(bits=min(bits, 16), group=size))
    if str(algorithm).startswith("gptq"):
        techniques.append(GPTQ(bits=bits, group=size))
        said.append("zeros of earlier steps are not kept")
    elif algorithm in ("max", "smoothquant", "mse", None) or str(algorithm).startswith("awq"):
        techniques.append(grid.nearest())
        said.append("round to nearest, the step from the largest magnitude")
    else:
        values.unknown.append(f"algorithm: {str(algorithm)[:40]!r}")
        return Step("quantize", conventions=tuple(said))
    if enforced:
        said.append("weights are masked before they are rounded")
    if isinstance(inputs, dict) and inputs.get("enable") is not False and isinstance(inputs.get("num_bits"), int):
        _, text = inputs_of({"num_bits": inputs["num_bits"], "strategy": "tensor"})
        said.append(text)
    differs: tuple[str, ...] = ()
    if kind == "int" and algorithm == "max":
        said.append(f"the step is max|w| / {2 ** (bits - 1) - 1}: the grid of the technique here")
    elif kind == "float":
        differs = grid.differs()
    return Step(
        "quantize",
        does=QUANTIZES,
        techniques=tuple(techniques),
        conventions=tuple(said),
        differs=differs,
        nearest=grid.nearest(),
    )

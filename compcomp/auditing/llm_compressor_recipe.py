"""Write recipes of llm-compressor: one stage with a group of one modifier for each step.

Names and defaults are those of :mod:`compcomp.auditing.llm_compressor`.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import translate
from typing import Any

from compcomp.auditing.llm_compressor import SAVING
from compcomp.auditing.parameters import WHERE, dropped_by, number, written_by
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.techniques import (
    FP4,
    FP8,
    GPTQ,
    MX,
    AbsMax,
    AbsMaxInputs,
    FP8Inputs,
    MinMax,
    SmoothQuant,
    SparseGPT,
    Wanda,
)

Parameters = dict[str, Any]


def written(steps: tuple[Technique, ...], targets: tuple[str, ...], ignore: tuple[str, ...], model: str) -> Any:
    """Return the recipe as data. Whether it says the same as the steps is checked by reading it again."""
    layers = {"targets": list(map(_pattern, targets)), "ignore": list(map(_pattern, ignore))}
    groups: dict[str, Any] = {}
    scheme: Parameters = {}
    for technique in steps:
        if isinstance(technique, AbsMaxInputs | FP8Inputs):
            if not scheme or "input_activations" in scheme:
                raise InputError(str(technique), "a quantizer of inputs behind one of weights", WHERE)
            scheme["input_activations"] = _inputs(technique)
            continue
        if scheme:
            given = f"{technique} behind a quantizer of weights"
            raise InputError(given, f"the quantizer last, as llm-compressor does this: {SAVING}", WHERE)
        name, parameters, weights = written_by(_WRITERS, technique, "llm-compressor", (AbsMaxInputs, FP8Inputs))
        if weights is not None:
            scheme = {"targets": layers["targets"], "weights": weights}
            parameters = {"config_groups": {"group_0": scheme}, "ignore": layers["ignore"], **parameters}
        elif name != "SmoothQuantModifier":
            parameters = {**layers, **parameters}
        groups[f"step_{len(groups) + 1}_modifiers"] = {name: parameters}
    return {"compress_stage": groups}


def _pattern(pattern: str) -> str:
    """Return a pattern of layers in the tool's form: a class or a name as it is, else a regular expression."""
    if pattern.startswith("re:") or (pattern.isidentifier() and pattern[0].isupper()):
        return pattern
    body = translate(pattern).removesuffix(r"\Z").removesuffix(r"\z").removeprefix("(?s:").removesuffix(")")
    return rf"re:(.*\.)?{body}(\..*)?$"


def _inputs(technique: AbsMaxInputs | FP8Inputs) -> Parameters:
    if isinstance(technique, AbsMaxInputs):
        kind: Parameters = {"num_bits": technique.bits, "type": "int"}
    else:
        kind = {"num_bits": 8, "type": "float"}
    return {**kind, "symmetric": True, "strategy": technique.per, "dynamic": technique.per == "token"}


def _mask(technique: SparseGPT | Wanda) -> Parameters:
    dropped = dropped_by(technique)
    if dropped is None:
        return {"sparsity": number(technique.sparsity), "mask_structure": "0:0"}
    n, m = dropped
    return {"sparsity": n / m, "mask_structure": f"{n}:{m}"}


def _sparsegpt(technique: SparseGPT) -> tuple[str, Parameters, None]:
    more = {"block_size": technique.block, "dampening_frac": number(technique.damping)}
    return "SparseGPTModifier", {**_mask(technique), **more, "preserve_sparsity_mask": technique.mask == "kept"}, None


def _wanda(technique: Wanda) -> tuple[str, Parameters, None]:
    return "WandaPruningModifier", _mask(technique), None


def _gptq(technique: GPTQ) -> tuple[str, Parameters, Parameters]:
    order = "static" if technique.order == "activation" else None
    weights = _integers(technique.bits, technique.group, "channel", symmetric=True)
    return "GPTQModifier", {"dampening_frac": number(technique.damping), "actorder": order}, weights


def _integers(bits: Any, group: int | None, strategy: str, *, symmetric: bool) -> Parameters:
    shared = {"strategy": strategy} if group is None else {"strategy": "group", "group_size": group}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **shared}


def _nearest(technique: AbsMax | MinMax) -> tuple[str, Parameters, Parameters]:
    weights = _integers(technique.bits, technique.group, technique.per, symmetric=isinstance(technique, AbsMax))
    return "QuantizationModifier", {}, weights


def _fp8(technique: FP8) -> tuple[str, Parameters, Parameters]:
    shared = {"strategy": "group", "group_size": technique.group} if technique.group else {}
    shared = shared or {"strategy": "channel" if technique.per == "row" else "tensor"}
    return "QuantizationModifier", {}, {"num_bits": 8, "type": "float", "symmetric": True, **shared}


def _fp4(technique: FP4) -> tuple[str, Parameters, Parameters]:
    shared = {"strategy": "tensor_group", "group_size": technique.group} if technique.group else {"strategy": "tensor"}
    return "QuantizationModifier", {}, {"num_bits": 4, "type": "float", "symmetric": True, **shared}


def _mx(technique: MX) -> tuple[str, Parameters, Parameters]:
    bits = 4 if technique.format == "mxfp4" else 8
    weights = {"num_bits": bits, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    return "QuantizationModifier", {}, weights


def _smooth(technique: SmoothQuant) -> tuple[str, Parameters, None]:
    return "SmoothQuantModifier", {"smoothing_strength": number(technique.alpha)}, None


_WRITERS: dict[type[Technique], Callable[[Any], tuple[str, Parameters, Parameters | None]]] = {
    SparseGPT: _sparsegpt,
    Wanda: _wanda,
    GPTQ: _gptq,
    AbsMax: _nearest,
    MinMax: _nearest,
    FP8: _fp8,
    FP4: _fp4,
    MX: _mx,
    SmoothQuant: _smooth,
}

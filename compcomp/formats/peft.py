"""Read the folders of PEFT, the factors of low-rank adapters, and write low-rank terms as such."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.numbers import Array, is_float, rounded_to
from compcomp.formats.own import ABOUT
from compcomp.formats.stored import Block, Claim, Contents, Layer, total
from compcomp.formats.tensors import WHERE, Tensor, header_of, read_json
from compcomp.formats.writing import Part, SavedLayer, SavedModel, Structure, TensorWriter, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."
FOLDER = "adapter"
"""The folder next to the weights of the base in which adapters are written."""
MODULES = ("Linear", "Conv1D")
"""The classes of modules that adapters are written for."""
DTYPES = ("F32", "F16", "BF16")
FUSED = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj", "conv1d")
"""Types of models whose fused kernels read weights without adapters, and the modules that PEFT refuses there."""
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of classes end that continue a text."""


def contents(folder: Path) -> Contents:
    """Return the adapters of a folder, each as the product of its factors.

    Raises:
        InputError: A file is missing or damaged, or factors do not fit together.
    """
    config = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{str(folder)!r} without {WEIGHTS}", "adapters in safetensors", WHERE)
    tensors = header_of(folder / WEIGHTS)
    layers = []
    for name in sorted(name for name in tensors if ".lora_A." in name or ".lora_embedding_A" in name):
        other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        if other not in tensors:
            raise InputError(f"{name!r} without {other!r}", "both factors of each adapter", WHERE)
        layers.append(_layer(name, tensors[name], tensors[other], config))
        del tensors[name], tensors[other]
    kind = str(config.get("peft_type", "PEFT"))
    if not layers:
        raise InputError(f"{str(folder)!r}, which holds {kind} and no factors of LoRA", "LoRA adapters", WHERE)
    return Contents(f"PEFT {kind}", layers, total(tensors.values()), config=config)


def _layer(name: str, first: Tensor, second: Tensor, config: Mapping[str, Any]) -> Layer:
    label = name.split(".lora_")[0].removeprefix(BEFORE)
    a, b = first.array(), second.array()
    a, b = a.reshape(len(a), -1), b.reshape(b.shape[0], -1)
    if not is_float(first.dtype) or a.shape[0] != b.shape[1]:
        raise InputError(f"{label!r}, with factors {list(b.shape)} and {list(a.shape)}", "out x r and r x in", WHERE)
    claimed = _of_pattern(config, "rank_pattern", label, config.get("r"))
    alpha = _of_pattern(config, "alpha_pattern", label, config.get("lora_alpha", a.shape[0]))
    share = a.shape[0] ** 0.5 if config.get("use_rslora") is True else a.shape[0]
    scale = float(alpha) / share if isinstance(alpha, int | float) and share else 1.0

    def read(start: int, last: int) -> Block:
        return Block(start, np.float32(scale) * (b[start:last] @ a))

    claim = Claim(CONFIG, rank=claimed if isinstance(claimed, int) else None)
    size, shape = first.nbytes + second.nbytes, (b.shape[0], a.shape[1])
    return Layer(label, shape, "LoRA", size, read, None, None, claim, a.shape[0])


def _of_pattern(config: Mapping[str, Any], patterns: str, label: str, default: Any) -> Any:
    """Return what the first pattern that names a layer says of it. Other patterns than names are not read."""
    given = config.get(patterns)
    for pattern, value in given.items() if isinstance(given, dict) else ():
        name = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^"))
        if label == name or (label.endswith(f".{name}") and not pattern.startswith("^")):
            return value
    return default


class PEFT(TensorWriter):
    """Write the weights without their low-rank terms, and these as LoRA adapters in a folder next to them."""

    name: ClassVar[str] = "peft"
    needs: ClassVar[str] = "a weight with a low-rank term, in Linear or Conv1D layers"

    def misfit(self, layer: Structure) -> str | None:
        if layer.basis:
            return f"its inputs are in another basis ({', '.join(layer.basis)})"
        if not layer.branch:
            return "it has no low-rank term"
        if layer.module not in MODULES:
            return f"its module is {layer.module}, and adapters are for {', '.join(MODULES)}"
        return None

    def misfit_of_model(self, model: SavedModel) -> str | None:
        for name, owner in model.tied.items():
            if owner in model.layers:
                return f"{owner} and {name} share a weight, and an adapter is added to one of them only"
        for name, layer in model.layers.items():
            if layer.weight.dtype not in DTYPES:
                return f"{name} is in {layer.weight.dtype}, and it has {', '.join(DTYPES)}"
            if model.config.get("model_type") in FUSED[0] and name.split(".")[-1] in FUSED[1]:
                return f"{name} is read without adapters by kernels of {model.config['model_type']}, so PEFT refuses it"
        return None

    def step_dtype(self, layer: SavedLayer) -> str:
        return "F64"  # no step is stored, so none is rounded

    def written_weight(self, layer: SavedLayer) -> Array | None:
        left, right = (factor.array().astype(np.float64) for factor in layer.factors())
        return rounded_to(layer.base(), layer.weight.dtype) + left @ right

    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        base = layer.base()
        return {"weight": Part.of(base.T if layer.structure.module == "Conv1D" else base, layer.weight.dtype)}

    def settings(self, model: SavedModel) -> dict[str, Any]:
        return {}

    def write(self, model: SavedModel, folder: Path) -> None:
        super().write(model, folder)
        adapter = folder / FOLDER
        adapter.mkdir()
        write_file(_adapters(model), adapter / WEIGHTS)
        for name, content in ((CONFIG, _settings(model)), (ABOUT, {"exported": self.name})):
            (adapter / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapters(model: SavedModel) -> Iterable[tuple[str, Part]]:
    """Return the tensors of the adapters by the names that PEFT gives them."""
    for name, layer in model.layers.items():
        left, right = layer.factors()
        yield f"{BEFORE}{name}.lora_A.weight", right
        yield f"{BEFORE}{name}.lora_B.weight", left


def _settings(model: SavedModel) -> dict[str, Any]:
    """Return the adapter_config.json, in which each product of factors is added once."""
    ranks = {name: layer.structure.branch for name, layer in model.layers.items()}
    largest = max(ranks.values())
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    causal = str(next(iter(model.config.get("architectures") or ()), "")).endswith(CAUSAL)
    return {
        "alpha_pattern": patterns,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": all(layer.structure.module == "Conv1D" for layer in model.layers.values()),
        "inference_mode": True,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": largest,
        "rank_pattern": patterns,
        "target_modules": list(ranks),
        "task_type": "CAUSAL_LM" if causal else None,
        "use_dora": False,
        "use_rslora": False,
    }

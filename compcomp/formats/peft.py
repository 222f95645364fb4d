"""Read the folders of PEFT: the factors of low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.numbers import is_float
from compcomp.formats.stored import Block, Claim, Contents, Layer, total
from compcomp.formats.tensors import WHERE, Tensor, header_of, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."


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
    claimed = config.get("r")
    ranks = config.get("rank_pattern")
    for pattern, rank in ranks.items() if isinstance(ranks, dict) else ():
        if label == pattern or label.endswith(f".{pattern}"):
            claimed = rank
    alpha = config.get("lora_alpha", a.shape[0])
    scale = float(alpha) / a.shape[0] if isinstance(alpha, int | float) and a.shape[0] else 1.0

    def read(start: int, last: int) -> Block:
        return Block(start, np.float32(scale) * (b[start:last] @ a))

    claim = Claim(CONFIG, rank=claimed if isinstance(claimed, int) else None)
    size, shape = first.nbytes + second.nbytes, (b.shape[0], a.shape[1])
    return Layer(label, shape, "LoRA", size, read, None, None, claim, a.shape[0])

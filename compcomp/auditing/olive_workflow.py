"""Write workflows of Olive: one pass for each step.

Names and defaults are those of :mod:`compcomp.auditing.olive`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compcomp.auditing.parameters import WHERE, dropped_by, number, written_by
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.techniques import FP4, GPTQ, NF4, AbsMax, MinMax, SparseGPT

LEFT_ALONE = "lm_head"
"""The layer that Olive's quantizers leave alone."""


def written(steps: tuple[Technique, ...], targets: tuple[str, ...], ignore: tuple[str, ...], model: str) -> Any:
    """Return the workflow as data. Whether it says the same as the steps is checked by reading it again."""
    if set(targets) != {"Linear"} or set(ignore) != {LEFT_ALONE}:
        given = f"targets={list(targets)}, ignore={list(ignore)}"
        raise InputError(given, f"all linear layers but {LEFT_ALONE}, as Olive compresses them", WHERE)
    passes = {f"step_{k}": written_by(_WRITERS, technique, "Olive") for k, technique in enumerate(steps, 1)}
    return {"input_model": {"type": "HfModel", "model_path": model}, "passes": passes}


def _sparsegpt(technique: SparseGPT) -> dict[str, Any]:
    dropped = dropped_by(technique)
    share: Any = number(technique.sparsity) if dropped is None else list(dropped)
    return {"type": "SparseGPT", "sparsity": share, "blocksize": technique.block, "percdamp": number(technique.damping)}


def _gptq(technique: GPTQ) -> dict[str, Any]:
    ordered = technique.order == "activation"
    size = -1 if technique.group is None else technique.group
    more = {"damp_percent": number(technique.damping), "desc_act": ordered}
    return {"type": "Gptq", "bits": technique.bits, "group_size": size, "sym": True, **more}


def _rtn(technique: AbsMax | MinMax) -> dict[str, Any]:
    size = technique.group if technique.group is not None else -1 if technique.per == "channel" else 0
    return {"type": "Rtn", "bits": technique.bits, "group_size": size, "sym": isinstance(technique, AbsMax)}


def _four(technique: NF4 | FP4) -> dict[str, Any]:
    return {"type": "OnnxBnb4Quantization", "precision": "nf4" if isinstance(technique, NF4) else "fp4"}


_WRITERS: dict[type[Technique], Callable[[Any], dict[str, Any]]] = {
    SparseGPT: _sparsegpt,
    GPTQ: _gptq,
    AbsMax: _rtn,
    MinMax: _rtn,
    NF4: _four,
    FP4: _four,
}

"""Saved weights under the names of the modules that hold them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from compcomp.models.layers import is_from_transformers


def under_own_names(model: nn.Module, weights: Path) -> dict[str, Tensor] | None:
    """The tensors of a file that transformers wrote under other names than the model's, or None where it did not.

    It writes fused experts one by one and some output heads, attentions and norms under the names that they had in
    earlier versions, and has the rules to read them. ``weights``: a file in the folder with the model's config. None
    too where what is read so does not fit the model; no part of the model changes.
    """
    if not is_from_transformers(model, "PreTrainedModel"):
        return None
    with safe_open(weights, framework="pt") as file:
        if set(file.keys()) <= model.state_dict().keys():
            return None
    config: Any = model.config
    kind: Any = type(model)
    try:
        loaded, told = kind.from_pretrained(
            weights.parent,
            config=copy.deepcopy(config),
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError):
        return None
    if any(told.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        return None
    found: dict[str, Tensor] = loaded.state_dict()
    return found

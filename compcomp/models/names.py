"""Read saved weights under the names of the modules that hold them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from compcomp.models.layers import is_from_transformers


def under_own_names(model: nn.Module, weights: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file that transformers wrote under other names than the model's, or None if it did not.

    transformers writes fused experts one by one. It writes some output heads, attentions and norms under names of
    earlier versions. It has the rules to read them again. The result is also None if the tensors read in this way do
    not fit the model. The model itself does not change.

    Args:
        model: The model.
        weights: The file, in the folder with the model's config.
    """
    if not is_from_transformers(model, "PreTrainedModel"):
        return None
    with safe_open(weights, framework="pt") as file:
        if set(file.keys()) <= model.state_dict().keys():
            return None
    config: Any = model.config
    kind: Any = type(model)
    try:
        loaded, report = kind.from_pretrained(
            weights.parent,
            config=copy.deepcopy(config),
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError):
        return None
    if any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")):
        return None
    found: dict[str, Tensor] = loaded.state_dict()
    return found

"""Read and write weights that are stored as plain floats, in safetensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from compcomp.formats.numbers import Array, is_float
from compcomp.formats.stored import Block, Layer
from compcomp.formats.tensors import Tensor
from compcomp.formats.writing import Part, SavedLayer, SavedModel, Structure, TensorWriter

TRANSPOSED = {"gpt2": ("c_attn", "c_proj", "c_fc"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
"""Layers that transformers stores as in x out, by ``model_type``."""


def take(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> list[Layer]:
    """Remove the float matrices from the tensors, and return them as layers.

    Tensors with more than two axes, such as fused experts, count as one matrix of their last axis.
    """
    turned = TRANSPOSED.get(str(config.get("model_type")), ())
    found = []
    for name, tensor in sorted(tensors.items()):
        if not is_float(tensor.dtype) or len(tensor.shape) < 2 or math.prod(tensor.shape) == 0:
            continue
        del tensors[name]
        label = name.removesuffix(".weight")
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        if len(tensor.shape) == 2 and label.split(".")[-1] in turned:
            found.append(Layer(label, (columns, rows), "dense", tensor.nbytes, _turned(tensor), tensor.dtype))
        else:
            found.append(Layer(label, (rows, columns), "dense", tensor.nbytes, _plain(tensor), tensor.dtype))
    return found


def _plain(tensor: Tensor) -> Any:
    return lambda first, last: Block(first, tensor.rows(first, last))


def _turned(tensor: Tensor) -> Any:
    kept: list[Array] = []

    def read(first: int, last: int) -> Block:
        if not kept:
            kept.append(np.ascontiguousarray(tensor.array().T))
        block = Block(first, kept[0][first:last])
        if last == tensor.shape[1]:
            kept.clear()
        return block

    return read


class Dense(TensorWriter):
    """Write the weights that a model of transformers has itself, pruned ones as zeros."""

    name: ClassVar[str] = "dense"
    needs: ClassVar[str] = "any"

    def misfit(self, layer: Structure) -> str | None:
        return None

    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        return {"weight": Part.copied(layer.weight)}

    def settings(self, model: SavedModel) -> dict[str, Any]:
        return {}

    def written_weight(self, layer: SavedLayer) -> Array | None:
        return None

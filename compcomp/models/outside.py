"""What of a model no technique acts on: its share, and its largest tensors by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from compcomp.models.layers import Layer, layers_by_name, unwrap

SHOWN = 3
"""Tensors that are named."""


def outside(model: nn.Module, layers: Iterable[Layer]) -> dict[str, Any]:
    """The parameters that stay as they are, each counted once, however many names it has.

    ``share``: of all parameters. ``parameters``, ``of``: how many, of how many. ``largest``: names and sizes of the
    largest tensors among them. ``unsupported``: the same of weights that multiply what passes through the model, in
    modules that are no layers to compcomp (fused experts, attention's in_proj_weight, convolutions, recurrent weights).
    """
    model = unwrap(model)
    modules = [m for layer in layers for m in (*layer.modules, *(follower for _, follower in layer.followers))]
    inside = {id(module._parameters["weight"]) for module in modules}
    known = {
        id(layer.parameter)
        for layer in layers_by_name(model).values()
        if layer.modules[0]._parameters.get("weight") is not None
    }
    others = {id(p) for m in model.modules() if _is_table(m) or _is_norm(m) for p in m._parameters.values()}
    left, foreign, total = [], [], 0
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):  # of no size yet
            continue
        total += parameter.numel()
        if id(parameter) in inside:
            continue
        left.append((name, parameter.numel()))
        matrix = sum(size > 1 for size in parameter.shape) > 1
        if matrix and id(parameter) not in known | others:
            foreign.append((name, parameter.numel()))
    count = sum(size for _, size in left)
    return {
        "share": count / total if total else 0.0,
        "parameters": count,
        "of": total,
        "largest": _largest(left),
        "unsupported": {"parameters": sum(size for _, size in foreign), "largest": _largest(foreign)},
    }


def note_of(found: dict[str, Any]) -> str | None:
    """One line on weights that no technique reaches; None where all weights are in layers or are embeddings."""
    foreign = found["unsupported"]
    if not foreign["parameters"]:
        return None
    named = ", ".join(f"{one['name']} ({one['parameters']:,})" for one in foreign["largest"])
    return (
        f"left dense: {foreign['parameters'] / found['of']:.1%} of the parameters are weights in modules other than "
        f"Linear layers, the largest {named}; with all else that is outside {found['share']:.1%} stay as they were"
    )


def _largest(tensors: list[tuple[str, int]]) -> list[dict[str, Any]]:
    ranked = sorted(tensors, key=lambda one: -one[1])[:SHOWN]
    return [{"name": name, "parameters": size} for name, size in ranked]


def _is_table(module: nn.Module) -> bool:
    """An embedding: rows that are looked up."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Embedding" in type(module).__name__


def _is_norm(module: nn.Module) -> bool:
    """A norm: its weights scale what passes, some with a row for each head."""
    return "Norm" in type(module).__name__

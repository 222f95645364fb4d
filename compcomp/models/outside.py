"""Find the parameters of a model that no technique acts on: their share, and the largest tensors by name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from compcomp.bench import Outside, Tensors
from compcomp.models.layers import Layer, layers_by_name, unwrap

SHOWN = 3
"""The number of tensors that are named."""


def outside(model: nn.Module, layers: Iterable[Layer]) -> Outside:
    """Return the parameters of a model that stay as they are when these layers are compressed."""
    model = unwrap(model)
    inside: dict[int, int] = {}  # the entries of each parameter that are weights of layers
    for layer in layers:
        followers = [module._parameters["weight"] for _, module in layer.followers]
        for parameter in {id(p): p for p in (*layer.held(), *followers)}.values():
            inside[id(parameter)] = inside.get(id(parameter), 0) + layer.weight.numel()
    known = {id(parameter) for layer in layers_by_name(model).values() for parameter in layer.held()}
    others = {id(p) for m in model.modules() if _is_table(m) or _is_norm(m) for p in m._parameters.values()}
    left, foreign, total = [], [], 0
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):  # without a size yet
            continue
        total += parameter.numel()
        rest = parameter.numel() - inside.get(id(parameter), 0)
        if not rest:
            continue
        left.append((name, rest))
        matrix = sum(size > 1 for size in parameter.shape) > 1 and "bias" not in name.rpartition(".")[2]
        if matrix and id(parameter) not in known | others:
            foreign.append((name, parameter.numel()))
    return Outside(_tensors(left), total, _tensors(foreign))


def note_of(found: Outside) -> str | None:
    """Return one line on weights that no technique reaches; None if all weights are in layers or are embeddings."""
    foreign = found.unsupported
    if not foreign.parameters:
        return None
    named = ", ".join(f"{name} ({size:,})" for name, size in foreign.largest)
    return (
        f"left dense: {foreign.parameters / found.of:.1%} of the parameters are weights that no layer holds, "
        f"the largest {named}; with all else that is outside {found.share:.1%} stay as they were"
    )


def _tensors(found: list[tuple[str, int]]) -> Tensors:
    return Tensors(sum(size for _, size in found), tuple(sorted(found, key=lambda one: -one[1])[:SHOWN]))


def _is_table(module: nn.Module) -> bool:
    """Return True for an embedding, whose rows are looked up."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Embedding" in type(module).__name__


def _is_norm(module: nn.Module) -> bool:
    """Return True for a norm, whose weights scale activations, in some models with a row for each head."""
    return "Norm" in type(module).__name__

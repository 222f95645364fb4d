"""Which layers of a model belong together: neurons, heads and blocks, by the names that models give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from compcomp.errors import InputError
from compcomp.language.whole import Group, Part
from compcomp.models.layers import Layer, unwrap

FEED_FORWARD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen2, Gemma
    (("gate_up_proj",), "down_proj"),  # Phi-3: the gates first, then the values
    (("up_proj",), "down_proj"),  # Nemotron
    (("fc1",), "fc2"),  # OPT, Phi
    (("c_fc",), "c_proj"),  # GPT-2
    (("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Falcon, BLOOM
    (("wi_0", "wi_1"), "wo"),  # T5 v1.1
    (("wi",), "wo"),  # T5
    (("lin1",), "lin2"),  # DistilBERT
)
"""Children of a feed-forward network: those whose rows are its neurons, and the one whose columns read them."""

ATTENTION: tuple[tuple[tuple[str, ...], str], ...] = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen2, Gemma
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT
    (("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    (("c_attn",), "c_proj"),  # GPT-2: queries, keys and values one after another
)
"""Children of an attention: queries, keys and values, and what reads its heads."""


def feed_forwards(model: nn.Module, layers: Mapping[str, Layer]) -> list[Group]:
    """The neurons of every feed-forward network among these layers."""
    found = []
    for name, module, names, reads in _families(model, layers, FEED_FORWARD):
        units, parts = layers[reads].shape[1], list[Part]()
        if names[0].endswith("gate_up_proj"):
            if layers[names[0]].shape[0] != 2 * units:
                continue
            parts = [Part(names[0], "out"), Part(names[0], "out", start=units)]
        elif all(layers[one].shape[0] == units for one in names) and "c_attn" not in module._modules:
            parts = [Part(one, "out") for one in names]
        if parts:
            found.append(Group(name, units, (*parts, Part(reads, "in"))))
    return found


def attentions(model: nn.Module, layers: Mapping[str, Layer]) -> list[Group]:
    """The heads of every attention among these layers; heads that share keys and values are one unit."""
    found = []
    for name, module, names, reads in _families(model, layers, ATTENTION):
        side = head_size(module)
        queries = layers[reads].shape[1]
        if side is None or queries % side:
            continue
        if len(names) == 1:
            if layers[names[0]].shape[0] == 3 * queries:
                parts = [Part(names[0], "out", side, start=k * queries) for k in range(3)]
                found.append(Group(name, queries // side, (*parts, Part(reads, "in", side))))
            continue
        rows = [layers[one].shape[0] for one in names]
        units = rows[1] // side
        if rows[0] == queries and rows[1] == rows[2] == units * side and units and queries % rows[1] == 0:
            sizes = (queries // units, side, side)
            parts = [Part(one, "out", size) for one, size in zip(names, sizes, strict=True)]
            found.append(Group(name, units, (*parts, Part(reads, "in", sizes[0]))))
    return found


def head_size(attention: nn.Module) -> int | None:
    """Rows of one head."""
    for name in ("head_dim", "attention_head_size", "dim_per_head"):
        if isinstance(size := getattr(attention, name, None), int):
            return size
    heads = next(
        (h for n in ("num_heads", "n_heads", "num_attention_heads") if (h := getattr(attention, n, None))), None
    )
    width: Any = next((w for n in ("embed_dim", "hidden_size", "dim") if (w := getattr(attention, n, None))), None)
    return width // heads if isinstance(heads, int) and isinstance(width, int) else None


def _families(
    model: nn.Module, layers: Mapping[str, Layer], known: tuple[tuple[tuple[str, ...], str], ...]
) -> Iterator[tuple[str, nn.Module, list[str], str]]:
    """Modules whose children have the names of a family: name, module, names of its layers, and of the reading one."""
    for name, module in unwrap(model).named_modules():
        for inner, reads in known:
            names = [f"{name}.{child}" if name else child for child in (*inner, reads)]
            if all(child in module._modules for child in (*inner, reads)) and all(one in layers for one in names):
                yield name, module, names[:-1], names[-1]
                break


def block_list(model: nn.Module, layers: Mapping[str, Layer]) -> tuple[str, nn.ModuleList] | None:
    """The list of the model's blocks: of those that hold modules of one class the one with the most layers."""
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(child) for child in module}) == 1:
            count = sum(one.startswith(f"{name}.") for one in layers)
            if count and (best is None or count > best[0]):
                best = count, name, module
    return None if best is None else best[1:]


def blocks(model: nn.Module, layers: Mapping[str, Layer]) -> list[list[str]]:
    """The names of the layers in each block."""
    found = block_list(model, layers)
    if found is None:
        raise InputError("a model without a list of blocks", "a transformer whose blocks are in a ModuleList", "model")
    name, modules = found
    return [[one for one in layers if one.startswith(f"{name}.{k}.")] for k in range(len(modules))]

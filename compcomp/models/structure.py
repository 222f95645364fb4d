"""Find layers of a model that belong together, by the names that models give them: neurons, heads and blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from compcomp.errors import InputError
from compcomp.layers.whole import Group, Part
from compcomp.models.layers import Layer, unwrap

Family = tuple[tuple[str, ...], str]

FEED_FORWARD: tuple[Family, ...] = (
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen2, Gemma
    (("gate_up_proj",), "down_proj"),  # Phi-3, GLM: the gates first, then the values
    (("up_proj",), "down_proj"),  # Nemotron, MPT
    (("fc1",), "fc2"),  # OPT, Phi, BART, ViT, CLIP
    (("c_fc",), "c_proj"),  # GPT-2, Starcoder2
    (("fc_in",), "fc_out"),  # GPT-J
    (("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, Falcon, BLOOM
    (("wi_0", "wi_1"), "wo"),  # T5 v1.1
    (("wi",), "wo"),  # T5
    (("lin1",), "lin2"),  # DistilBERT
    (("intermediate.dense",), "output.dense"),  # BERT, RoBERTa, ELECTRA, DeBERTa
    (("ffn",), "ffn_output"),  # ALBERT
)
"""Layers of a feed-forward network below its module: those whose rows are its neurons, and the one that reads them."""

ATTENTION: tuple[Family, ...] = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen2, Gemma
    (("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT, GPT-J, BART
    (("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    (("self.query", "self.key", "self.value"), "output.dense"),  # BERT, RoBERTa, ELECTRA
    (("query", "key", "value"), "dense"),  # ALBERT
    (("q", "k", "v"), "o"),  # T5
)
"""Layers of an attention below its module: queries, keys and values, and the one that reads its heads."""

STACKED: tuple[Family, ...] = (
    (("c_attn",), "c_proj"),  # GPT-2, GPT-BigCode of one head for keys and values
    (("qkv_proj",), "o_proj"),  # Phi-3
    (("Wqkv",), "out_proj"),  # MPT
)
"""Attentions with one layer for all queries, then all keys, then all values."""

WOVEN: tuple[Family, ...] = (
    (("query_key_value",), "dense"),  # GPT-NeoX, BLOOM, Falcon, Persimmon
    (("c_attn",), "c_proj"),  # GPT-BigCode of many heads for keys and values
)
"""Attentions with one layer that holds the queries, key and value of one head after another.

Heads that share a key and a value come together.
"""


def feed_forwards(model: nn.Module, layers: Mapping[str, Layer]) -> list[Group]:
    """Return the neurons of every feed-forward network among these layers."""
    found = []
    for name, module, names, reads in _families(model, layers, FEED_FORWARD):
        units, parts = layers[reads].shape[1], list[Part]()
        if names[0].endswith("gate_up_proj"):
            if layers[names[0]].shape[0] != 2 * units:
                continue
            parts = [Part(names[0], "out"), Part(names[0], "out", start=units)]
        elif "gate_proj" in module._modules and len(names) == 1:
            continue  # these layers lack the gates: the neurons cannot be removed as a whole
        elif all(layers[one].shape[0] == units for one in names) and "c_attn" not in module._modules:
            parts = [Part(one, "out") for one in names]
        if parts:
            found.append(Group(name, units, (*parts, Part(reads, "in"))))
    return found


def attentions(model: nn.Module, layers: Mapping[str, Layer]) -> list[Group]:
    """Return the heads of every attention among these layers. Heads that share keys and values are one unit."""
    found = []
    for name, module, names, reads in _families(model, layers, (*ATTENTION, *STACKED, *WOVEN)):
        side = head_size(module)
        queries = layers[reads].shape[1]
        if side is None or queries % side:
            continue
        rows = [layers[one].shape[0] for one in names]
        shared = (rows[0] - queries) // 2 if len(names) == 1 else rows[1]
        if shared < side or shared % side or queries % shared:
            continue
        units = shared // side
        sizes = (queries // units, side, side)
        if len(names) == 3:
            if rows != [queries, shared, shared]:
                continue
            parts = [Part(one, "out", size) for one, size in zip(names, sizes, strict=True)]
        elif rows[0] != queries + 2 * shared:
            continue
        elif _woven(module, names[0]):
            parts = [Part(names[0], "out", sum(sizes))]
        else:
            starts = (0, queries, queries + shared)
            parts = [Part(names[0], "out", size, start) for size, start in zip(sizes, starts, strict=True)]
        found.append(Group(name, units, (*parts, Part(reads, "in", sizes[0]))))
    return found


def _woven(attention: nn.Module, packed: str) -> bool:
    """Return True if a packed layer holds one head after another."""
    return packed.endswith("query_key_value") or getattr(attention, "multi_query", None) is False


def head_size(attention: nn.Module) -> int | None:
    """Return the number of rows of one head, or None if the module does not say."""
    for holder in (attention, attention._modules.get("self")):
        for name in ("head_dim", "attention_head_size", "head_size", "dim_per_head", "key_value_proj_dim"):
            if isinstance(size := getattr(holder, name, None), int):
                return size
    heads = next(
        (h for n in ("num_heads", "n_heads", "num_attention_heads") if (h := getattr(attention, n, None))), None
    )
    width: Any = next((w for n in ("embed_dim", "hidden_size", "dim") if (w := getattr(attention, n, None))), None)
    return width // heads if isinstance(heads, int) and isinstance(width, int) else None


def _families(
    model: nn.Module, layers: Mapping[str, Layer], known: tuple[Family, ...]
) -> Iterator[tuple[str, nn.Module, list[str], str]]:
    """Yield modules that hold the layers of a family: name, module, names of its layers, name of the reading one."""
    for name, module in unwrap(model).named_modules():
        for inner, reads in known:
            names = [f"{name}.{child}" if name else child for child in (*inner, reads)]
            if all(one in layers for one in names):
                yield name, module, names[:-1], names[-1]
                break


def block_list(model: nn.Module, layers: Mapping[str, Layer]) -> tuple[str, nn.ModuleList] | None:
    """Return the list of the model's blocks: among lists of modules of one class, the one with the most layers."""
    return max(
        (found for found in _lists(model) if _holds(found[0], layers)),
        key=lambda found: _holds(found[0], layers),
        default=None,
    )


def block_lists(model: nn.Module, layers: Mapping[str, Layer]) -> list[tuple[str, nn.ModuleList]]:
    """Return every list of blocks that is inside no other one: those of an encoder and those of a decoder."""
    found = list[tuple[str, nn.ModuleList]]()
    for name, modules in _lists(model):
        if _holds(name, layers) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, modules))
    return found


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the lists of modules of one class."""
    for name, module in unwrap(model).named_modules():
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1:
            yield name, module


def _holds(name: str, layers: Mapping[str, Layer]) -> int:
    """Return the number of layers that a module holds."""
    return sum(one.startswith(f"{name}.") for one in layers)


def blocks(model: nn.Module, layers: Mapping[str, Layer]) -> list[list[str]]:
    """Return the names of the layers in each block. Raises InputError if the model has no list of blocks."""
    found = block_list(model, layers)
    if found is None:
        raise InputError("a model without a list of blocks", "a transformer whose blocks are in a ModuleList", "model")
    name, modules = found
    return [[one for one in layers if one.startswith(f"{name}.{k}.")] for k in range(len(modules))]

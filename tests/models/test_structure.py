"""Neurons, heads and blocks, found by name and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.layers.whole import Part
from compcomp.models.layers import find_layers
from compcomp.models.structure import attentions, block_list, blocks, feed_forwards
from compcomp.optimize import apply
from compcomp.techniques import PruneHeads, PruneNeurons, RemoveBlocks
from tests.models.fakes import Tiny, gpt2, qwen2


def known(model: nn.Module, **more: Any) -> Any:
    return {layer.name: layer for layer in find_layers(model, **more)}


def built(name: str, **sizes: Any) -> Any:
    """A small model of another architecture, by the name of its configuration."""
    import transformers

    config = getattr(transformers, f"{name}Config")(vocab_size=32, **sizes)
    kind = "ForMaskedLM" if name == "DistilBert" else "ForCausalLM"
    return getattr(transformers, f"{name}{kind}")(config).eval()


def llama_like() -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    }


def test_the_embedded_architecture() -> None:
    model = qwen2()
    layers = known(model)
    (mlp, _), (attention, _) = feed_forwards(model, layers), attentions(model, layers)
    prefix = "model.layers.0."
    assert (mlp.name, mlp.units) == (f"{prefix}mlp", 24)
    assert mlp.parts == tuple(
        Part(f"{prefix}mlp.{name}", side)
        for name, side in (("gate_proj", "out"), ("up_proj", "out"), ("down_proj", "in"))
    )
    assert (attention.name, attention.units) == (f"{prefix}self_attn", 1)  # two heads share one key and value
    assert [part.size for part in attention.parts] == [16, 8, 8, 16]
    assert blocks(model, layers) == [[n for n in layers if n.startswith(f"model.layers.{k}.")] for k in range(2)]
    assert sum(map(len, blocks(model, layers))) == len(layers) == 14


def test_gpt2() -> None:
    model = gpt2()
    (mlp,), (attention,) = feed_forwards(model, known(model)), attentions(model, known(model))
    assert (mlp.units, mlp.reads.layer) == (64, "transformer.h.0.mlp.c_proj")
    assert (attention.units, [(part.start, part.size) for part in attention.parts]) == (
        2,
        [(0, 8), (16, 8), (32, 8), (0, 8)],
    )


OPT = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16}
NEOX = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "sizes", "neurons", "heads"),
    [
        ("Llama", llama_like(), [24, 24], [2, 2]),
        ("Mistral", llama_like(), [24, 24], [2, 2]),
        ("Gemma", llama_like() | {"head_dim": 4}, [24, 24], [2, 2]),
        ("Phi3", llama_like(), [24, 24], [2, 2]),  # all queries, all keys, all values in one layer
        ("OPT", OPT, [24, 24], [2, 2]),
        ("GPTNeoX", NEOX, [24], [2]),  # head by head in one layer
        ("DistilBert", {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}, [24, 24], [2, 2]),
    ],
)
def test_common_names(name: str, sizes: dict[str, Any], neurons: list[int], heads: list[int]) -> None:
    """And what is pruned changes nothing but what it says: units without any weight put out nothing."""
    model = built(name, **sizes)
    head = [name for name, _ in model.named_modules() if name.startswith("vocab_")]
    layers = known(model, ignore=["lm_head", *head])
    assert [group.units for group in feed_forwards(model, layers)] == neurons
    assert [group.units for group in attentions(model, layers)] == heads
    assert len(blocks(model, layers)) == len(neurons)
    ids = torch.arange(8)[None]
    group = feed_forwards(model, layers)[0]
    seen = list[torch.Tensor]()
    reads = model.get_submodule(group.reads.layer)
    handle = reads.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids)
        for part in group.parts[:-1]:  # the rows of neuron 3, biases too: what is read of it is activation(0)
            module = model.get_submodule(part.layer)
            module.weight[part.start + 3] = 0
            if module.bias is not None:
                module.bias[part.start + 3] = 0
        model(input_ids=ids)
    handle.remove()
    before, after = (x.reshape(-1, group.units) for x in seen)
    changed = (before != after).any(dim=0)
    assert changed.tolist() == [unit == 3 for unit in range(group.units)]


@pytest.mark.parametrize("model", [qwen2(), gpt2(), built("Llama", **llama_like())], ids=["qwen2", "gpt2", "llama"])
def test_heads_by_what_the_model_computes(model: Any) -> None:
    """Without the values of a unit all that it puts out is zero, and what the others put out stays."""
    group = attentions(model, known(model))[0]
    values, reads, seen = group.parts[2], group.reads, list[torch.Tensor]()
    module = model.get_submodule(values.layer)
    unit = group.units - 1
    rows = slice(values.start + unit * values.size, values.start + (unit + 1) * values.size)
    handle = model.get_submodule(reads.layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    kept = [module.weight.detach().clone(), None if module.bias is None else module.bias.detach().clone()]
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
        (module.weight.T if isinstance(module, nn.Linear) else module.weight)[:, rows] = 0
        if module.bias is not None:
            module.bias[rows] = 0
        model(input_ids=torch.arange(8)[None])
        module.weight.copy_(kept[0])
        if module.bias is not None:
            module.bias.copy_(kept[1])
    handle.remove()
    before, after = (x.reshape(-1, group.units, reads.size) for x in seen)
    assert torch.equal(before[:, :unit], after[:, :unit])
    assert bool(before[:, unit].any()) and not bool(after[:, unit].any())


def test_layers_that_are_left_alone_are_in_no_group() -> None:
    model = qwen2()
    layers = known(model, ignore=["lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj"])
    assert [g.name for g in feed_forwards(model, layers)] == ["model.layers.1.mlp"]
    assert [g.name for g in attentions(model, layers)] == ["model.layers.0.self_attn"]
    with pytest.raises(InputError, match="no feed-forward network"):
        apply(PruneNeurons("1/2"), qwen2(), device="cpu", targets=["*_attn.*"])
    with pytest.raises(InputError, match="no attention"):
        apply(PruneHeads("1/2"), qwen2(), device="cpu", targets=["*mlp*"])


def test_a_model_of_other_names_has_blocks_alone() -> None:
    model = Tiny()
    layers = known(model)
    assert not feed_forwards(model, layers) and not attentions(model, layers)
    found = block_list(model, layers)
    assert found is not None and found[0] == "blocks" and len(blocks(model, layers)) == 2
    # the output projection of its blocks has a bias: without its weights a block still is no identity
    with pytest.raises(InputError, match="still changes the hidden states"):
        apply(RemoveBlocks(count=1), model, [torch.arange(10)[None] % 16], device="cpu")

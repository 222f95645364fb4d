from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.models.layers import check_sequence, evaluating, find_layers
from compcomp.techniques import AbsMax, Magnitude
from tests.models.fakes import Tiny, gpt2, qwen2

BLOCKS = [f"blocks.{i}.{name}" for i in (0, 1) for name in "qko"]


def names(model: nn.Module, **given: Any) -> list[str]:
    return [layer.name for layer in find_layers(model, **given)]


def test_every_linear_layer_but_the_head_is_found_in_order() -> None:
    assert names(Tiny()) == BLOCKS
    assert names(Tiny(), ignore=()) == [*BLOCKS, "lm_head"]


def test_a_head_tied_to_the_embedding_is_left_alone_even_when_asked_for() -> None:
    assert names(Tiny(tied=True), ignore=()) == BLOCKS
    with pytest.raises(InputError, match=r"no Linear layer among targets lm_head \(1 left alone"):
        find_layers(Tiny(tied=True), targets="lm_head", ignore=())


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        ("q", (), ["blocks.0.q", "blocks.1.q"]),
        ("blocks.1.*", ("o",), ["blocks.1.q", "blocks.1.k"]),
        (["*.q", "lm_head"], (), ["blocks.0.q", "blocks.1.q", "lm_head"]),
        ("Linear", ["blocks.0.*", "lm_head"], ["blocks.1.q", "blocks.1.k", "blocks.1.o"]),
        (None, "blocks.*", ["lm_head"]),
    ],
)
def test_patterns_match_names_last_parts_and_classes(targets: Any, ignore: Any, expected: list[str]) -> None:
    assert names(Tiny(), targets=targets, ignore=ignore) == expected


def test_a_target_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="'q_prj', which matches no Linear layer"):
        find_layers(Tiny(), targets=["q", "q_prj"])
    with pytest.raises(InputError, match="targets: 3"):
        find_layers(Tiny(), targets=[3])  # type: ignore[list-item]


def test_a_module_used_under_two_names_is_one_layer() -> None:
    model = Tiny()
    model.blocks[1].q = model.blocks[0].q
    assert names(model) == [name for name in BLOCKS if name != "blocks.1.q"]
    assert names(model, ignore=("blocks.1.q", "lm_head")) == [n for n in BLOCKS if not n.endswith(".q")]


def test_modules_that_share_a_weight_are_one_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    (layer,) = find_layers(model)
    assert layer.name == "0" and layer.modules == (model[0], model[2])


def test_parameters_that_share_memory_are_one_layer_and_written_together() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    (layer,) = find_layers(model)
    model[1].weight.data = model[0].weight.data.clone()  # as .to(device) leaves them
    layer.set(torch.ones(4, 4))
    assert bool((model[0].weight == 1).all()) and bool((model[1].weight == 1).all())


def test_conv1d_is_shown_out_by_in() -> None:
    model = gpt2()
    layers = {layer.name: layer for layer in find_layers(model)}
    assert list(layers) == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.c_proj",
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj",
    ]
    layer, stored = layers["transformer.h.0.attn.c_attn"], model.transformer.h[0].attn.c_attn.weight
    assert layer.shape == (48, 16) and stored.shape == (16, 48)
    assert torch.equal(layer.weight, stored.T)
    layer.set(torch.arange(48 * 16).reshape(48, 16))
    assert stored[0, 1].item() == 16
    assert names(model, targets="Conv1D", ignore="c_proj") == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.mlp.c_fc",
    ]
    with pytest.raises(InputError, match=r"no Linear layer among targets Linear \(1 left alone"):
        find_layers(model, targets="Linear", ignore=())


def test_the_models_own_output_head_is_ignored_whatever_its_name() -> None:
    class Model(Tiny):
        def get_output_embeddings(self) -> nn.Module:
            return self.blocks[1].o

    assert names(Model()) == BLOCKS[:-1]


def test_transformers_layers_are_found() -> None:
    found = names(qwen2())
    assert len(found) == 14 and "model.layers.1.mlp.down_proj" in found
    assert "lm_head" in names(qwen2(), ignore=())
    assert "lm_head" not in names(qwen2(tied=True), ignore=())


def _meta() -> nn.Module:
    return Tiny().to("meta")


def _infinite() -> nn.Module:
    model = Tiny()
    model.blocks[1].k.weight.data[0, 0] = float("inf")
    return model


def _parametrized() -> nn.Module:
    model = Tiny()
    nn.utils.parametrizations.weight_norm(model.blocks[1].k)
    return model


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    model = Tiny()
    prune.l1_unstructured(model.blocks[1].k, "weight", 0.5)
    return model


def _integer() -> nn.Module:
    model = Tiny()
    model.blocks[1].k.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return model


def _subclass() -> nn.Module:
    class Packed(torch.Tensor):
        pass

    model = Tiny()
    model.blocks[1].k.weight = nn.Parameter(torch.zeros(8, 8).as_subclass(Packed))
    return model


def _lazy() -> nn.Module:
    model = Tiny()
    model.blocks[1].k = nn.LazyLinear(8)
    return model


def _empty() -> nn.Module:
    model = Tiny()
    with pytest.warns(UserWarning, match="zero-element"):
        model.blocks[1].k = nn.Linear(0, 8)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_meta, r"layer blocks\.0\.q: a weight on the meta device"),
        (_infinite, r"layer blocks\.1\.k: weights that are not finite"),
        (_parametrized, r"layer blocks\.1\.k: a weight computed from other parameters"),
        (_pruned, r"layer blocks\.1\.k: a weight computed from other parameters"),
        (_integer, r"layer blocks\.1\.k: a weight that is a Parameter of int8"),
        (_subclass, r"layer blocks\.1\.k: a weight that is a Packed of float32"),
        (_lazy, r"layer blocks\.1\.k: a weight that is a UninitializedParameter"),
        (_empty, r"layer blocks\.1\.k: a weight of shape 8x0"),
    ],
)
def test_weights_that_cannot_be_compressed_are_named(build: Any, message: str) -> None:
    model = build()
    with pytest.raises(InputError, match=message) as raised:
        find_layers(model)
    assert "\n" not in str(raised.value)
    if build is not _meta:
        assert names(model, ignore=("lm_head", "blocks.1.k")) == [n for n in BLOCKS if n != "blocks.1.k"]


def test_a_model_without_linear_layers_is_an_error() -> None:
    with pytest.raises(InputError, match="model: no Linear layer outside ignore lm_head; allowed"):
        find_layers(nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match="model: a dict"):
        find_layers({})  # type: ignore[arg-type]


def test_a_sequence_that_does_not_fit_names_the_layer() -> None:
    layers = find_layers(nn.Sequential(nn.Linear(8, 4), nn.Linear(6, 4)))
    check_sequence(layers, Magnitude(sparsity="1/2"))
    with pytest.raises(InputError, match=r"layer 1: .*4x6 .*: rows of 6 weights; allowed: .*groups of 4"):
        check_sequence(layers, Magnitude(sparsity="1/2", pattern="2:4") >> AbsMax(bits=4))


def test_a_compiled_model_shows_its_own_names() -> None:
    compiled: Any = torch.compile(Tiny(), backend="eager")
    assert names(compiled) == BLOCKS


def test_modes_come_back_module_by_module() -> None:
    model = Tiny().train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        model.train()
        raise KeyError
    assert [module.training for module in model.modules()] == before

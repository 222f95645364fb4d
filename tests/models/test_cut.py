"""What does nothing is removed, and the model computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique
from compcomp.models.bench import ModelBench
from compcomp.models.cut import cut
from compcomp.techniques import DistillHidden, Magnitude, PruneHeads, PruneNeurons, RemoveBlocks
from tests.models.fakes import gpt2, qwen2
from tests.models.test_structure import built, llama_like

N, H, B = PruneNeurons("1/2"), PruneHeads("1/2"), RemoveBlocks(count=1)
IDS = {"input_ids": torch.arange(12).reshape(2, 6)}


def llama() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return built("Llama", **llama_like(), attention_bias=True)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS).logits  # type: ignore[no-any-return]


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("order", [N, H, B, B >> H >> N, N >> DistillHidden(2) >> Magnitude("1/4")], ids=str)
def test_outputs_stay_and_parameters_go(order: Technique | Sequence, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = llama()
    before = numbers(model)
    with ModelBench(model, [IDS], device="cpu", keep_batches=True) as bench:
        state = bench.apply(order, bench.start())
        bench.write(state)
    wanted, gone = logits(model), 0
    for name, layer in state.items():
        form, (rows, columns) = layer.format.cut, layer.weight.shape
        if form is not None:
            kept = int(form.rows.sum()) * int(form.columns.sum())
            gone += rows * columns - kept
            if model.get_submodule(name).bias is not None:
                gone += int((~form.rows).sum())
    if RemoveBlocks in {type(t) for t in (order if isinstance(order, Sequence) else [order])}:
        gone += 2 * 16  # the norms of a block
    assert cc.cut(model, IDS) is model
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-6)
    assert numbers(model) == before - gone and gone > 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    ids = IDS["input_ids"][:1]
    with torch.no_grad():  # with the cache, whose places are those of the blocks that are left
        grown = model.generate(ids, max_new_tokens=4, do_sample=False)
        plain = ids
        for _ in range(4):
            plain = torch.cat([plain, model(input_ids=plain, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(grown, plain)


def test_units_that_differ_from_block_to_block_keep_one_number_that_the_config_can_say(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, :10] = 0
        model.model.layers[1].mlp.down_proj.weight[:, 5] = 0
    wanted = logits(model)
    cut(model, IDS)
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == [23, 23]
    assert model.config.intermediate_size == 23
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


class Networks(nn.Module):
    """Two feed-forward networks of one size, of a module without a config."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two = (nn.ModuleDict({"fc1": nn.Linear(4, 24), "fc2": nn.Linear(24, 4)}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.one, self.two):
            x = x + part["fc2"](torch.relu(part["fc1"](x)))
        return x


def test_a_model_without_a_config_is_as_small_as_it_can_be() -> None:
    model, x = Networks(), torch.randn(3, 4)
    with torch.no_grad():
        model.one["fc2"].weight[:, :10] = 0
        model.two["fc2"].weight[:, 5] = 0
        wanted = model(x)
        cut(model, x)
        torch.testing.assert_close(model(x), wanted)
    assert [part["fc2"].in_features for part in (model.one, model.two)] == [14, 23]


def test_gpt2_loses_neurons_and_keeps_packed_heads() -> None:
    model = cc.apply(N >> H, gpt2(), device="cpu")
    wanted = logits(model)
    with pytest.warns(UserWarning, match="heads of transformer.h.0.attn: sizes that GPT2Config cannot say"):
        cut(model, IDS)
    block = model.transformer.h[0]  # type: ignore[union-attr, index]
    assert (block.mlp.c_fc.weight.shape, block.mlp.c_proj.weight.shape) == ((16, 32), (32, 16))  # type: ignore[union-attr]
    assert block.mlp.c_fc.bias.shape == (32,) and block.mlp.c_fc.nf == block.mlp.c_proj.nx == 32  # type: ignore[union-attr]
    assert block.attn.c_attn.weight.shape == (16, 48)  # type: ignore[union-attr]
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-6)
    assert model.config.n_inner == 32  # type: ignore[union-attr]


def test_what_does_something_stays() -> None:
    model = qwen2()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    cut(model, IDS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_one_of_each_stays_where_nothing_does_anything() -> None:
    model = qwen2()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    wanted = logits(model)
    cut(model, IDS)
    assert len(model.model.layers) == 1 and model.model.layers[0].mlp.gate_proj.out_features == 1
    assert torch.equal(logits(model), wanted)


def test_a_block_that_writes_a_bias_stays() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].self_attn.o_proj.bias.fill_(0.5)
    wanted = logits(model)
    cut(model, IDS)
    assert len(model.model.layers) == 2
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-6)


class Watching(nn.Module):
    """A network that also sums its neurons: removing those that are read by zeros is not without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.fc1(x)
        return self.fc2(inner) + inner.sum(-1, keepdim=True)  # type: ignore[no-any-return]


def test_a_model_that_would_change_is_left_as_it_was() -> None:
    model = Watching()
    with torch.no_grad():
        model.fc2.weight[:, 2] = 0
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match="outputs change"):
        cut(model, torch.randn(3, 4))
    assert model.fc1.out_features == model.fc2.in_features == 6
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_undoing_of_blocks_and_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    from compcomp.models import cut as module

    model = cc.apply(B >> N >> H, llama(), [IDS], device="cpu")
    config, before = model.config.to_dict(), {name: p.clone() for name, p in model.named_parameters()}
    wanted = logits(model)
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="outputs change"):
        cut(model, IDS)
    assert model.config.to_dict() == config and [m.self_attn.layer_idx for m in model.model.layers] == [0, 1]  # type: ignore[union-attr]
    assert {name: p.shape for name, p in model.named_parameters()} == {name: p.shape for name, p in before.items()}
    assert torch.equal(logits(model), wanted)

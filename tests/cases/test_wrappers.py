"""Compilers, data parallelism, modules around a model and adapters change nothing, or are named in one line."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.layers import find_layers
from compcomp.models.save import load_weights
from compcomp.techniques import AbsMax, Magnitude
from tests.amount import spread
from tests.models.fakes import Tiny, qwen2, tokens

P, Q = Magnitude("1/2"), AbsMax(4)
IDS = tokens(2)


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def parts_compiled(model: Any) -> Any:
    blocks = model.blocks if hasattr(model, "blocks") else model.model.layers
    blocks[0] = compiled(blocks[0])
    blocks[1] = nn.DataParallel(blocks[1]) if hasattr(model, "blocks") else compiled(blocks[1])
    return model


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


AROUND: dict[str, Callable[[Any], Any]] = {
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "both": lambda m: nn.DataParallel(compiled(m)),
    "the other way round": lambda m: compiled(nn.DataParallel(m)),
    "parts compiled": parts_compiled,
    "compiled in place": in_place,
}


def score(model: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        output = model(IDS[0])
    return {"loss": getattr(output, "logits", output).double().square().mean().item()}


def searched(model: nn.Module, **more: Any) -> Any:
    return cc.optimize_order([P, Q], model=model, calibration=IDS, evaluate=score, **more)


@pytest.mark.parametrize(("around", "build"), spread(product(AROUND, [Tiny, qwen2]), 4))
def test_nothing_changes(around: str, build: Callable[[], Any], tmp_path: Path) -> None:
    plain, wrapped = build().eval(), AROUND[around](build().eval())
    first = next(layer.name for layer in find_layers(plain))
    assert [layer.name for layer in find_layers(wrapped)] == [layer.name for layer in find_layers(plain)]
    for more in ({"targets": [first]}, {"ignore": ["lm_head", f"{first.rsplit('.', 1)[0]}.*"]}, {}):
        ours, theirs = searched(wrapped, **more), searched(plain, **more)
        assert [(r["order"], r["metrics"], r["losses"]) for r in ours.measurements] == [
            (r["order"], r["metrics"], r["losses"]) for r in theirs.measurements
        ]
    ours.save(tmp_path / "ours")
    theirs.save(tmp_path / "theirs")
    names = [sorted(path.name for path in (tmp_path / one).iterdir()) for one in ("ours", "theirs")]
    assert names[0] == names[1]
    for file in ("model.safetensors", "components.safetensors"):
        mine, yours = load_file(tmp_path / "ours" / file), load_file(tmp_path / "theirs" / file)
        assert mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)
    assert load_weights(AROUND[around](build()), tmp_path / "ours") is not None
    assert ours.apply(wrapped) is wrapped
    theirs.apply(plain)
    assert score(wrapped) == score(plain)
    ours.save(tmp_path / "ours")
    if around in ("compiled", "DataParallel"):
        assert cc.apply(P, AROUND[around](build())) is not None
    if build is qwen2:
        from transformers import AutoModelForCausalLM

        assert score(AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()) == score(plain)


class Around(nn.Module):
    """A module around a model, as training scripts have it."""

    def __init__(self, model: nn.Module, extra: bool = False) -> None:
        super().__init__()
        self.model = model
        if extra:
            self.value_head = nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Any:
        return self.model(ids)


def test_a_module_around_a_transformers_model_is_saved_as_that_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain, wrapped = qwen2(), compiled(Around(qwen2()))
    ours, theirs = searched(wrapped), searched(plain)
    assert [r["metrics"] for r in ours.measurements] == [r["metrics"] for r in theirs.measurements]
    ours.save(tmp_path)
    theirs.apply(plain)
    assert score(AutoModelForCausalLM.from_pretrained(tmp_path).eval()) == score(plain)
    assert score(load_weights(Around(qwen2()), tmp_path)) == score(plain)
    assert set(load_file(tmp_path / "components.safetensors")) <= {
        f"{layer.name}.{part}" for layer in find_layers(plain) for part in ("levels", "scales", "mask", "offsets")
    }


def test_a_module_with_tensors_of_its_own_is_saved_as_it_is(tmp_path: Path) -> None:
    wrapped = Around(qwen2(), extra=True)
    plan = searched(wrapped, ignore=["lm_head", "value_head"])
    plan.save(tmp_path)
    assert "value_head.weight" in load_file(tmp_path / "model.safetensors")
    plan.apply(wrapped)
    assert score(load_weights(Around(qwen2(), extra=True), tmp_path)) == score(wrapped)


def test_the_output_head_of_a_model_inside_is_left_alone() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = GPTNeoXForCausalLM(config)
    for given, prefix in ((model, ""), (Around(model), "model."), (nn.DataParallel(Around(model)), "model.")):
        names = [layer.name for layer in find_layers(given)]
        assert names and f"{prefix}embed_out" not in names


# --------------------------------------------------------------------------------------------- adapters


def adapted(kind: str, **more: Any) -> Any:
    import peft

    configs = {
        "lora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False),
        "dora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["q_proj", "o_proj"], feedforward_modules=[]),
        "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
        "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj", "o_proj"]),
        "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj", "o_proj"]),
        "prompts": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8),
    }
    return peft.get_peft_model(qwen2(), configs[kind]()).eval()


LAYERS = {layer.name for layer in find_layers(qwen2())}


def base_names(model: Any, **more: Any) -> set[str]:
    prefix = "base_model." if hasattr(model, "prompt_encoder") else "base_model.model."
    names = [layer.name.removeprefix(prefix) for layer in find_layers(model, **more)]
    return {name.removesuffix(".base_layer") for name in names}


KINDS = ["lora", "dora", "ia3", "vera", "loha", "oft"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_an_adapter_at_work_is_refused(kind: str) -> None:
    model = adapted(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(InputError, match=r"layer .*q_proj.*adapter.*merge the adapter") as caught:
        cc.apply(P, model)
    assert "\n" not in str(caught.value)
    cc.apply(P, model, ignore=["lm_head", "*q_proj*", "*o_proj*"])
    for name, p in model.named_parameters():
        changed = any(part in name for part in ("k_proj", "v_proj", "mlp")) and name.endswith("weight")
        assert torch.equal(p, before[name]) is not changed, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["merged", "disabled"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_adapters_at_work_the_layers_are_those_of_the_model(kind: str, how: str) -> None:
    model = adapted(kind)
    if how == "merged":
        model.merge_adapter()
    else:
        model.base_model.disable_adapter_layers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert base_names(model) == LAYERS
    cc.apply(P, model)
    for name, p in model.named_parameters():
        changed = any(f"{layer.rsplit('.', 1)[1]}." in name for layer in LAYERS) and name.endswith("weight")
        changed = changed and not any(part in name for part in ("lora_", "ia3_", "vera_", "hada_", "oft_"))
        assert torch.equal(p, before[name]) is not changed, name


@pytest.mark.filterwarnings("ignore")
def test_prompt_encoders_are_no_layers_either() -> None:
    assert base_names(adapted("prompts")) == LAYERS


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_is_like_any_other(tmp_path: Path) -> None:
    merged = adapted("lora").merge_and_unload()
    assert {layer.name for layer in find_layers(merged)} == LAYERS
    plan = searched(merged)
    plan.save(tmp_path)
    plan.apply(merged)
    assert score(load_weights(qwen2(), tmp_path)) == score(merged)


def test_layers_with_parameters_of_their_own_are_remarked_on() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.gain

    plan = cc.optimize_order([P, Q], model=nn.Sequential(nn.Linear(8, 8), Scaled()), loss="weight_l2")
    assert any("layer 1: it also holds gain" in note for note in plan.notes)
    assert "gain" in str(plan)

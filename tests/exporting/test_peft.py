"""Low-rank terms as LoRA adapters: PEFT adds them to the base, and the sum is what was compressed."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import compcomp as cc
from compcomp.exporting.export import check, modules_of
from compcomp.exporting.structures import check_fits
from compcomp.formats.checkpoint import opened
from compcomp.formats.numbers import half_ulp
from compcomp.formats.peft import FOLDER
from compcomp.formats.saved import saved_model
from compcomp.formats.writers import WRITERS
from compcomp.layers.state import LayerState
from compcomp.models.checkpoint import Checkpoint
from compcomp.models.layers import layers_by_name
from compcomp.models.save import save
from compcomp.models.states import applied_in_turn
from compcomp.techniques import AbsMax, TruncatedSVD
from tests.exporting.models import IDS, compressed, llama, loaded, logits_of, weights_of
from tests.helpers import refused

peft = pytest.importorskip("peft")

NAME = "model.layers.0.mlp.up_proj"
AFTER = ">> TruncatedSVD(rank=4, residual=True)"
SEQUENCES = [
    f"AbsMax(bits=4, group=32) {AFTER}",
    f"MinMax(bits=3, group=16) {AFTER}",
    f"NF4(group=32) {AFTER}",
    f"Magnitude(sparsity=1/2, pattern='2:4') >> MinMax(bits=4, group=32) {AFTER}",
    f"TruncatedSVD(rank=6) {AFTER}",
    "Magnitude(sparsity=1/2) >> BlockMeans(rank=4)",
    "LoftQ(bits=4, rank=4)",
    "LPLR(rank=4, bits=8)",
    "LPLR(rank=4, bits=8) >> NF4(group=32)",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("small") / "model", num_hidden_layers=1)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("halves") / "model", torch.bfloat16, num_hidden_layers=1)


def adapted(folder: Path) -> Any:
    """The model with its adapters, as PEFT loads them."""
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder / FOLDER).eval()


def sums_of(model: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each adapted layer by name, the weight of the base and the product that PEFT adds, in float64, out x in."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            weight = module.get_base_layer().weight.detach().double()
            left, right = (part["default"].weight.detach().double() for part in (module.lora_B, module.lora_A))
            turned = not isinstance(module.get_base_layer(), nn.Linear)
            found[name] = (weight.T if turned else weight, module.scaling["default"] * left @ right)
    return found


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_base_and_product_are_the_compressed_weight(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "peft")
    assert (found.layers, found.step_error) == (7, 0)
    ours, theirs = loaded(saved), adapted(tmp_path / "out")
    sums = sums_of(theirs)
    assert len(sums) == 7
    if "LPLR" in sequence:
        assert not any(base.any() for base, _ in sums.values())
    apart = []
    for name, (base, product) in sums.items():
        weight = weights_of(ours)[name]
        assert product.any(), name
        bound = half_ulp((base.abs() + product.abs()).numpy(), "F32")
        assert ((base + product - weight).abs().numpy() <= 2 * bound).all(), name
        apart.append(float(((base + product).float() - weight).abs().max() / weight.abs().max()))
    assert sum(share == 0 for share in apart) == found.exact and max(apart) == pytest.approx(found.weight_error)
    assert found.exact == 7 or "MinMax" in sequence or "rank=6" in sequence
    torch.testing.assert_close(logits_of(theirs), logits_of(ours), rtol=0, atol=2e-6)
    with theirs.disable_adapter():
        assert float((logits_of(theirs) - logits_of(ours)).abs().max()) > 1e-3


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_in_bfloat16(sequence: str, halves: Path, tmp_path: Path) -> None:
    """The factors are added in float32, so that the sum has the rounding of the base's weight alone."""
    saved = compressed(sequence, halves, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "peft")
    assert found.weight_error <= 2**-7
    ours, theirs = loaded(saved), adapted(tmp_path / "out")
    for name, (base, product) in sums_of(theirs).items():
        weight = weights_of(ours)[name].double()
        bound = half_ulp((base.abs() + product.abs()).numpy(), "BF16")
        assert ((base + product - weight).abs().numpy() <= 2 * bound).all(), name
    torch.testing.assert_close(logits_of(theirs), logits_of(ours), rtol=0, atol=2**-5)


def test_a_file_holds_the_fractions_of_the_encoding(small: Path, tmp_path: Path) -> None:
    """Of weights whose steps and means are numbers that floats hold."""
    model = llama(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(model / "model.safetensors")
    draw = np.random.default_rng(0)
    exact = np.array([Fraction(int(k), 64) for k in draw.integers(-27, 28, 96 * 64)]).reshape(96, 64)
    exact[:, ::8] = Fraction(7, 16)
    tensors[f"{NAME}.weight"] = torch.tensor(exact.astype(float), dtype=torch.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    sequence = "AbsMax(bits=4, group=8) >> BlockMeans(rank=4)"
    saved = compressed(sequence, model, tmp_path / "saved", targets=[NAME])
    cc.export(saved, tmp_path / "out", "peft")
    after = cc.parse_sequence(sequence).encode(LayerState.dense(exact[:8]))
    factors = after.format.factors
    assert factors is not None
    base = load_file(tmp_path / "out" / "model.safetensors")[f"{NAME}.weight"][:8]
    own = load_file(tmp_path / "out" / FOLDER / "adapter_model.safetensors")
    before = f"base_model.model.{NAME}"
    assert own.keys() == {f"{before}.lora_A.weight", f"{before}.lora_B.weight"}
    assert _exactly(base) == after.weight.tolist()
    assert _exactly(own[f"{before}.lora_B.weight"][:8]) == factors.left.tolist()
    assert _exactly(own[f"{before}.lora_A.weight"]) == factors.right.tolist()
    sums, product = sums_of(adapted(tmp_path / "out"))[NAME]
    assert _exactly((sums + product)[:8]) == after.effective().tolist()


def _exactly(tensor: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(x) for x in row] for row in tensor.double().tolist()]


def test_each_layer_has_its_own_rank(small: Path, tmp_path: Path) -> None:
    """And PEFT's names of them are those of these layers alone."""
    model = loaded(small)
    ranks = {"self_attn.q_proj": 2, "mlp.up_proj": 5, "mlp.down_proj": 3}
    state = {}
    for name, layer in layers_by_name(model).items():
        rank = next((rank for part, rank in ranks.items() if name.endswith(part)), None)
        if rank is not None:
            steps = [AbsMax(bits=3, group=32), TruncatedSVD(rank=rank, residual=True)]
            state[name] = applied_in_turn(steps, name, LayerState.dense(layer.weight))
    saved = save(model, state, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "peft")
    settings = json.loads((tmp_path / "out" / FOLDER / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (5, 5) and len(settings["rank_pattern"]) == 2
    theirs = adapted(tmp_path / "out")
    layers = {name: layer for name, layer in theirs.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    assert {name.removeprefix("base_model.model."): layer.r["default"] for name, layer in layers.items()} == {
        f"model.layers.0.{part}": rank for part, rank in ranks.items()
    }
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}
    torch.testing.assert_close(logits_of(theirs), logits_of(loaded(saved)), rtol=0, atol=2e-6)
    sums = sums_of(theirs)
    for layer in opened(tmp_path / "out" / FOLDER).layers:  # as `compcomp inspect` reads them
        assert layer.claim is not None and layer.claim.rank == layer.branch_rank == ranks[layer.name.split(".", 3)[-1]]
        values = np.concatenate([block.values for block in layer.blocks()])
        np.testing.assert_allclose(values, sums[layer.name][1].numpy(), rtol=0, atol=1e-6)


def test_the_configuration_is_what_the_library_reads(tmp_path: Path) -> None:
    """Also with so many layers that PEFT looks for shorter names of them."""
    saved = compressed(SEQUENCES[0], llama(tmp_path / "model", num_hidden_layers=3), tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "peft")
    settings = json.loads((tmp_path / "out" / FOLDER / "adapter_config.json").read_text())
    read = peft.PeftConfig.from_pretrained(tmp_path / "out" / FOLDER)
    assert isinstance(read, peft.LoraConfig)
    known = {**read.to_dict(), "target_modules": sorted(read.target_modules)}
    assert {key: known[key] for key in settings} == {**settings, "target_modules": sorted(settings["target_modules"])}
    theirs = adapted(tmp_path / "out")
    assert isinstance(theirs, peft.PeftModelForCausalLM) and len(sums_of(theirs)) == 21
    torch.testing.assert_close(logits_of(theirs), logits_of(loaded(saved)), rtol=0, atol=2e-6)


def test_layers_of_gpt2(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=128)).save_pretrained(tmp_path / "model")
    saved = compressed(SEQUENCES[0], tmp_path / "model", tmp_path / "saved")
    assert cc.export(saved, tmp_path / "out", "peft").exact == 4
    theirs = adapted(tmp_path / "out")
    assert not [one for one in recwarn if "fan_in_fan_out" in str(one.message)]
    assert len(sums_of(theirs)) == 4
    torch.testing.assert_close(logits_of(theirs), logits_of(loaded(saved)), rtol=0, atol=2e-6)


def test_a_plan_is_saved_with_its_adapters(small: Path, tmp_path: Path) -> None:
    model = loaded(small)
    techniques = [AbsMax(bits=3, group=32), TruncatedSVD(rank=4, residual=True)]
    plan = cc.optimize_order(techniques, model=model, calibration=[IDS], device="cpu", loss="weight_l2")
    plan.save(tmp_path / "out", format="peft")
    assert (tmp_path / "out" / "plan.json").is_file()
    torch.testing.assert_close(logits_of(adapted(tmp_path / "out")), logits_of(plan.apply(model)), rtol=0, atol=2e-6)


def test_a_folder_of_adapters_goes_with_its_base(small: Path, tmp_path: Path) -> None:
    """It is replaced as a whole, or goes when another format is written. Folders of others stay."""
    out = tmp_path / "out"
    four, two = (compressed(SEQUENCES[0].replace("4,", f"{n},"), small, tmp_path / f"saved{n}") for n in (4, 2))
    found = cc.export(four, out, "peft")
    first = (out / FOLDER / "adapter_model.safetensors").read_bytes()
    sizes = [path.stat().st_size for path in (out / "model.safetensors", *(out / FOLDER).iterdir())]
    assert found.bytes == sum(sizes)
    (out / FOLDER / "optimizer.bin").write_text("of an earlier one")
    (out / "mine").mkdir()
    (out / "mine" / "adapter_config.json").write_text("{}")
    cc.export(two, out, "peft")
    assert {path.name for path in (out / FOLDER).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "compcomp.json",
    }
    assert (out / FOLDER / "adapter_model.safetensors").read_bytes() != first
    cc.export(two, out, "dense")
    assert not (out / FOLDER).exists() and (out / "mine" / "adapter_config.json").read_text() == "{}"
    torch.testing.assert_close(logits_of(loaded(out)), logits_of(loaded(two)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sequence", "parts"),
    [
        ("AbsMax(bits=4, group=32)", ["it has no low-rank term"]),
        (f"Hadamard(block=32) >> AbsMax(bits=4, group=32) {AFTER}", ["in another basis (Hadamard 32)", "on"]),
    ],
)
def test_what_does_not_fit_is_refused(sequence: str, parts: list[str], small: Path, tmp_path: Path) -> None:
    refused(lambda: check_fits(WRITERS["peft"], cc.parse_sequence(sequence), {}), *parts)
    saved = compressed(sequence, small, tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", "peft"), parts[0], "formats that fit: ")
    assert not (tmp_path / "out").exists()


def test_modules_that_adapters_do_not_fit_are_refused(small: Path, tmp_path: Path) -> None:
    saved = compressed(SEQUENCES[0], small, tmp_path / "saved", targets=["embed_tokens"])
    refused(lambda: cc.export(saved, tmp_path / "out", "peft"), "its module is Embedding, and adapters are for Linear")
    saved = compressed(SEQUENCES[0], small, tmp_path / "other")
    modules, _ = modules_of(Checkpoint(saved).model)
    model = saved_model(saved, modules, {"lm_head": NAME})
    refused(lambda: check(WRITERS["peft"], model), f"{NAME} and lm_head share a weight")


def test_modules_that_peft_refuses_are_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 64, "time_step_rank": 4}
    model = MambaForCausalLM(MambaConfig(**sizes))
    model.save_pretrained(tmp_path / "model")
    saved = compressed(SEQUENCES[0], tmp_path / "model", tmp_path / "saved", targets=["out_proj"])
    refused(lambda: cc.export(saved, tmp_path / "out", "peft"), "mixer.out_proj", "PEFT refuses it")
    with pytest.raises(ValueError, match="out_proj"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["out_proj"]))

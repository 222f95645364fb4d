"""What is written as GGUF is read by gguf and transformers as the saved weights, bit for bit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
from compcomp.encodings.mx import MX
from compcomp.errors import InputError
from compcomp.formats import gguf_blocks
from compcomp.formats.checkpoint import opened
from compcomp.formats.gguf_writing import FILE, GGUF, GGUFDense, GGUFRounded
from compcomp.formats.saved import saved_model
from compcomp.formats.writers import WRITERS, writer_named
from compcomp.formats.writing import SavedModel, Structure
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.models.layers import layers_by_name
from compcomp.models.save import save
from compcomp.models.states import applied_in_turn
from tests.helpers import refused

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 130,
}
"""Queries and keys have different numbers of rows, so that each order of rows is seen."""
FOUR = AbsMax(bits=4, group=32, grid="signed")


def model(family: str = "llama", dtype: Any = torch.float32, **more: Any) -> Any:
    """Return a model whose weights in each group of 32 are whole numbers, -8 to 7, of a step that float16 has."""
    kind = {"llama": "Llama", "qwen2": "Qwen2"}[family]
    config = getattr(transformers, f"{kind}Config")(**SIZES | more)
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    draw = torch.Generator().manual_seed(1)
    for layer in layers_by_name(made, embeddings=True).values():
        rows, columns = layer.shape
        levels = torch.randint(-7, 8, (rows, columns // 32, 32), generator=draw)
        levels[..., 3] = -8
        steps = (torch.rand(rows, columns // 32, 1, generator=draw) / 32 + 1 / 128).half().float()
        steps *= 1 - 2 * torch.randint(0, 2, steps.shape, generator=draw)
        layer.set((levels * steps).reshape(rows, columns))
    for name, parameter in made.named_parameters():
        if parameter.ndim == 1:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 4 + ("norm" in name)
    return made.to(dtype).eval()


def saved(folder: Path, given: Any, *steps: Technique, embeddings: bool = False) -> SavedModel:
    """Return what is saved after these steps on each layer."""
    states = {}
    for name, layer in layers_by_name(given, embeddings=embeddings).items():
        if name != "lm_head":
            states[name] = applied_in_turn(steps, name, LayerState.dense(layer.weight.float()))
    save(given, states, folder)
    return saved_model(folder, dict.fromkeys(states, "Linear"), {})


def written(folder: Path, what: SavedModel, writer: Any = GGUF) -> Any:
    """Return gguf's reader of the file that is written."""
    folder.mkdir()
    (folder / "config.json").write_text((what.folder / "config.json").read_text())
    writer().write(what, folder)
    return gguf.GGUFReader(folder / FILE)


def loaded(folder: Path, **more: Any) -> Any:
    pytest.importorskip("accelerate")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, **more).eval()


def check_alike(one: Any, folder: Path) -> None:
    """Assert that a saved folder and a loaded model have the same weights and logits."""
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=one.dtype).eval()
    given, expected = dict(one.named_parameters()), dict(other.named_parameters())
    assert given.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(given[name], weight), name
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(one(tokens).logits, other(tokens).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_loads_the_saved_model(tmp_path: Path, family: str) -> None:
    what = saved(tmp_path / "saved", model(family, tie_word_embeddings=family == "llama"), FOUR)
    reader = written(tmp_path / "out", what)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {
        kind for name, kind in kinds.items() if name.startswith("blk") and "norm" not in name and "bias" not in name
    } == {"Q4_0"}
    assert ("output.weight" in kinds) == (family == "qwen2")
    check_alike(loaded(tmp_path / "out"), tmp_path / "saved")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_file_holds_levels_times_steps_and_not_their_rounding(tmp_path: Path, dtype: Any) -> None:
    what = saved(tmp_path / "saved", model(dtype=dtype), FOUR)
    reader = written(tmp_path / "out", what)
    found = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    layer = what.layers["model.layers.1.mlp.up_proj"]
    levels, steps = layer.levels(), layer.per_group("scales")
    assert np.array_equal(found["blk.1.ffn_up.weight"], levels * np.repeat(steps, 32, 1))
    check_alike(loaded(tmp_path / "out", dtype=dtype), tmp_path / "saved")
    assert {t.tensor_type.name for t in reader.tensors if t.name == "token_embd.weight"} == {
        "F16" if dtype == torch.float16 else "BF16"
    }


def test_embeddings_are_written_once(tmp_path: Path) -> None:
    what = saved(tmp_path / "saved", model(tie_word_embeddings=True), FOUR, embeddings=True)
    reader = written(tmp_path / "out", what)
    assert [t.tensor_type.name for t in reader.tensors if t.name in ("token_embd.weight", "output.weight")] == ["Q4_0"]
    check_alike(loaded(tmp_path / "out"), tmp_path / "saved")


def test_all_weights_as_floats(tmp_path: Path) -> None:
    what = saved(tmp_path / "saved", model(), Magnitude(Fraction(1, 2)))
    assert "no grid" in str(GGUF().misfit(what.layers["model.layers.0.mlp.up_proj"].structure))
    reader = written(tmp_path / "out", what, GGUFDense)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    check_alike(loaded(tmp_path / "out"), tmp_path / "saved")


def _step(draw: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.rand(shape, generator=draw) / 32 + 1 / 128).half().float()


def on_grid(kind: str) -> tuple[torch.Tensor, Technique]:
    """Return a weight (6 x 128) on a grid of one step for 64 weights, and the technique that finds this grid."""
    draw = torch.Generator().manual_seed(3)
    low, high, technique = {
        "Q4_0": (-7, 7, AbsMax(bits=4, group=64)),
        "Q5_0": (-15, 15, AbsMax(bits=5, group=64)),
        "Q8_0": (-127, 127, AbsMax(bits=8, group=64)),
        "Q4_1": (0, 15, MinMax(bits=4, group=64, zero="none")),
        "Q5_1": (0, 31, MinMax(bits=5, group=64, zero="none")),
        "zero point": (0, 15, MinMax(bits=4, group=64)),
    }[kind]
    levels = torch.randint(low, high + 1, (6, 2, 64), generator=draw)
    levels[..., 5], levels[..., 7] = low, high
    weight = levels * _step(draw, (6, 2, 1))
    if kind == "zero point":
        weight = (levels - torch.randint(0, 16, (6, 2, 1), generator=draw)) * _step(draw, (6, 2, 1))
    elif low == 0:
        weight = weight - torch.randint(1, 9, (6, 2, 1), generator=draw) / 32
    return weight.reshape(6, 128), technique


def blocks(tmp_path: Path, weight: torch.Tensor, *steps: Technique) -> tuple[str, Any, Any]:
    """Return the type, gguf's weight and the saved weight of a layer after these steps."""
    layer = one_layer(tmp_path, weight, *steps)
    assert gguf_blocks.misfit(layer.structure) is None
    kind = gguf_blocks.type_of(layer.structure)
    found = gguf_blocks.blocks_of(layer)
    read = gguf.dequantize(found, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(gguf_blocks.weight_of(layer, found), read)
    return kind, read, layer.weight.array()


def one_layer(tmp_path: Path, weight: torch.Tensor, *steps: Technique) -> Any:
    module = torch.nn.Sequential(torch.nn.Linear(*weight.T.shape, bias=False))
    module[0].weight.data = weight.clone()
    save(module, {"0": applied_in_turn(steps, "0", LayerState.dense(weight))}, tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text("{}")
    return saved_model(tmp_path / "one", {"0": "Linear"}, {}).layers["0"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1", "zero point"])
def test_every_type_holds_the_saved_weight(tmp_path: Path, kind: str) -> None:
    weight, technique = on_grid(kind)
    found, read, expected = blocks(tmp_path, weight, technique)
    assert found == {"zero point": "Q5_0"}.get(kind, kind)
    assert np.array_equal(read, expected)
    assert np.array_equal(read, weight.numpy())


def test_mxfp4_holds_the_saved_weight(tmp_path: Path) -> None:
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(4)) * torch.logspace(-9, 9, 8)[:, None]
    weight[2, 32:64] = 0
    kind, read, expected = blocks(tmp_path, weight, MX("mxfp4"))
    assert kind == "MXFP4"
    assert np.array_equal(read, expected)
    assert len(np.unique(np.abs(read[0] / np.abs(read[0]).max()))) > 4


@pytest.mark.parametrize("technique", [FOUR, AbsMax(bits=8, group=32), MinMax(bits=4, group=32, zero="none")])
def test_steps_that_float16_does_not_hold_are_refused_or_rounded_on_request(tmp_path: Path, technique: Any) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    layer = one_layer(tmp_path, weight, technique)
    refused(lambda: GGUF().written_weight(layer), "float16 holds exactly", "'0'")
    rounded = GGUFRounded().written_weight(layer)
    assert rounded is not None
    apart = np.abs(rounded - layer.weight.array()).max() / float(weight.abs().max())
    assert 0 < apart < 2.0**-10


def test_steps_beyond_float16_are_never_written(tmp_path: Path) -> None:
    layer = one_layer(tmp_path, torch.full((2, 32), 1e7), AbsMax(bits=4, group=32))
    refused(lambda: GGUFRounded().written_weight(layer), "float16")
    layer = one_layer(tmp_path, torch.full((2, 32), 1e-9), AbsMax(bits=4, group=32))
    refused(lambda: GGUFRounded().written_weight(layer), "float16")


def test_steps_that_are_no_power_of_two_are_refused(tmp_path: Path) -> None:
    layer = one_layer(tmp_path, torch.randn(2, 32, generator=torch.Generator().manual_seed(6)), MX("mxfp4"))
    steps = layer.parts["scales"]
    with steps.path.open("r+b") as file:
        file.seek(steps.start)
        file.write(np.array([0.3], "<f4").tobytes())
    refused(lambda: GGUF().written_weight(layer), "power of two")


def test_a_saved_weight_that_its_parts_do_not_give_is_refused(tmp_path: Path) -> None:
    layer = one_layer(tmp_path, on_grid("Q4_0")[0], AbsMax(bits=4, group=64))
    with layer.weight.path.open("r+b") as file:
        file.seek(layer.weight.start + 4 * 130)
        file.write(np.array([0.75], "<f4").tobytes())
    refused(lambda: GGUF().written_weight(layer), "at 1, 2 is not its level times its step")


FIT = Structure((64, 64), -8, 7, 32)
CODES = tuple(Fraction(value) / 2 for value in (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12))


@pytest.mark.parametrize(
    ("structure", "kind"),
    [
        (FIT, "Q4_0"),
        (replace(FIT, masked=True, patterns=((2, 4),)), "Q4_0"),
        (replace(FIT, lowest=-9), "Q5_0"),
        (replace(FIT, highest=8, group=64), "Q5_0"),
        (replace(FIT, lowest=-128, highest=127, group=0), "Q8_0"),
        (replace(FIT, lowest=0, highest=15, offsets="minimum"), "Q4_1"),
        (replace(FIT, lowest=0, highest=16, offsets="minimum"), "Q5_1"),
        (replace(FIT, lowest=0, highest=15, offsets="zero point"), "Q5_0"),
        (replace(FIT, lowest=0, highest=14, codes=CODES), "MXFP4"),
    ],
)
def test_the_type_with_the_fewest_bits_is_taken(structure: Structure, kind: str) -> None:
    assert gguf_blocks.misfit(structure) is None
    assert gguf_blocks.type_of(structure) == kind


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (Structure((64, 64)), "no grid"),
        (replace(FIT, highest=128), "levels go from -8 to 128"),
        (replace(FIT, group=16), "groups of 16"),
        (replace(FIT, group=48, shape=(64, 96)), "groups of 48"),
        (replace(FIT, group=0, shape=(64, 80)), "rows of 80"),
        (replace(FIT, group=None), "not shared by runs"),
        (replace(FIT, basis=("Hadamard",)), "another basis"),
        (replace(FIT, branch=4), "rank 4"),
        (replace(FIT, lowest=0, highest=15, offsets="minimum", masked=True), "no value of its grid"),
        (replace(FIT, lowest=0, highest=32, offsets="minimum"), "end at 31"),
        (replace(FIT, lowest=0, highest=255, offsets="zero point"), "from -255"),
        (replace(FIT, lowest=0, highest=13, codes=CODES[1:]), "codebook"),
    ],
)
def test_what_does_not_fit_is_named(structure: Structure, reason: str) -> None:
    assert reason in str(GGUF().misfit(structure))


def test_a_file_says_what_inspect_reads(tmp_path: Path) -> None:
    what = saved(tmp_path / "saved", model(), FOUR)
    written(tmp_path / "out", what)
    found = {layer.name: layer for layer in opened(tmp_path / "out" / FILE).layers}
    layer = found["blk.0.ffn_down"]
    assert layer.read is not None and layer.grid is not None
    assert (layer.format, layer.grid.bits, layer.grid.group) == ("GGUF Q4_0", 4, 32)
    assert np.array_equal(layer.read(0, 64).values, what.layers["model.layers.0.mlp.down_proj"].weight.array())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "opt"}, "model_type is opt"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is yarn"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_type is dynamic"),
    ],
)
def test_models_that_llama_cpp_would_run_otherwise_are_named(change: dict[str, Any], reason: str) -> None:
    config = {"model_type": "llama", **change}
    for writer in (GGUF(), GGUFDense()):
        assert reason in str(writer.misfit_of_model(SavedModel(Path(), config, {}, {})))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda config, others: config.update(intermediate_size=128), "as config.json says"),
        (lambda config, others: config.update(tie_word_embeddings=False), "lm_head"),
        (lambda config, others: others.update(odd=others["model.norm.weight"]), "'odd'"),
        (lambda config, others: others.pop("model.embed_tokens.weight"), "embed_tokens"),
        (lambda config, others: config.pop("hidden_size"), "hidden_size"),
    ],
)
def test_models_with_other_tensors_are_refused(tmp_path: Path, change: Callable[..., Any], reason: str) -> None:
    what = saved(tmp_path / "saved", model(tie_word_embeddings=True), FOUR)
    config, others = dict(what.config), dict(what.others)
    change(config, others)
    refused(lambda: written(tmp_path / "out", replace(what, config=config, others=others)), reason)


def test_llama_3_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 512}
    given = model(head_dim=64, max_position_embeddings=4096, rope_parameters=rope)
    what = saved(tmp_path / "saved", given, FOUR)
    reader = written(tmp_path / "out", what)
    (factors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    plain = 5e5 ** (-np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / factors, given.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert len(set(factors)) > 3
    assert reader.get_field("llama.attention.key_length").contents() == 64


@pytest.fixture
def tokenizer() -> dict[str, Any]:
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4}
    return {
        "added_tokens": [{"id": 0, "content": "<s>", "special": True}, {"id": 5, "content": "<x>", "special": False}],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "model": {"type": "BPE", "ignore_merges": False, "vocab": vocabulary, "merges": [["a", "b"]]},
    }


def with_tokenizer(tmp_path: Path, tokenizer: dict[str, Any], **generation: Any) -> Any:
    what = saved(tmp_path / "saved", model(), FOUR)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({**what.config, "bos_token_id": 3, "eos_token_id": [2, 1]}))
    (out / "generation_config.json").write_text(json.dumps(generation))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<x>", "unk_token": "<s>"}))
    (out / "chat_template.jinja").write_text("{{ messages }}")
    GGUF().write(what, out)
    return gguf.GGUFReader(out / FILE)


def test_the_tokenizer_is_written(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    reader = with_tokenizer(tmp_path, tokenizer, bos_token_id=0)
    found = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    known = ["<s>", "a", "b", "ab", "Ġ", "<x>"]
    assert found.pop("tokenizer.ggml.tokens") == [*known, *(f"[PAD{number}]" for number in range(6, 130))]
    assert found.pop("tokenizer.ggml.token_type") == [3, 1, 1, 1, 1, 4, *[5] * 124]
    assert found == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["model"].update(type="Unigram"), "Unigram"),
        (lambda t: t["model"].update(ignore_merges=True), "ignore_merges"),
        (lambda t: t["model"]["vocab"].update(far=400), "token 400"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda t: t.update(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "Digits and ByteLevel"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(
    tmp_path: Path, tokenizer: dict[str, Any], change: Callable[..., Any], reason: str
) -> None:
    change(tokenizer)
    refused(lambda: with_tokenizer(tmp_path, tokenizer), reason)


@pytest.mark.parametrize("name", ["gguf", "gguf-rounded", "gguf-dense"])
def test_without_the_package_the_format_is_refused_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'compcomp\[gguf\]'"):
        writer_named(name)
    assert writer_named("dense") is WRITERS["dense"]

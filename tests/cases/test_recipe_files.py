"""Keys that are there twice, and model folders that do not hold a plain model: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import compcomp.techniques  # noqa: F401
from compcomp.errors import InputError
from compcomp.models.causal_lm import load_directory, token_windows, vocabulary_of
from compcomp.recipe import load_recipe

# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("techniques: [AbsMax(bits=4)]\ntechniques: [Magnitude(sparsity=1/2)]\n", "techniques"),
        ("techniques: [AbsMax(bits=4)]\ncalibration: {batches: 1, length: 8, batches: 2}\n", "batches"),
        ("techniques: [AbsMax(bits=4)]\n'loss': weight_l1\nloss: weight_l2\n", "loss"),
        ("techniques:\n  - {optional: AbsMax(bits=4), optional: Magnitude(sparsity=1/2)}\n", "optional"),
        ("techniques: [AbsMax(bits=4)]\nevaluate:\n  text: a\n  length: 4\n  text: b\n", "text"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error_at_every_level(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"r\.yaml: the key '{key}' is there twice \(line \d\); allowed: each key once"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    "text",
    [
        "techniques: [AbsMax(bits=4)]\ncalibration: {batches: 1}\nevaluate: {<<: {length: 4}, length: 8}\n",
        "techniques: [AbsMax(bits=4)]\ncalibration: &a {length: 8}\nevaluate:\n  <<: *a\n  windows: 2\n",
        "techniques: [AbsMax(bits=4)]\ncalibration: &a {length: 8}\nevaluate: *a\n",
    ],
)
def test_anchors_and_merges_stay(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml").evaluate["length"] == 8


# --------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _config(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def _without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def _lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _sharded(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _without(folder, "model.safetensors")


DAMAGES: dict[str, tuple[Any, str]] = {
    "gptq": (
        lambda f: _config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized already, by gptq",
    ),
    "awq": (lambda f: _config(f, quantization_config={"quant_method": "awq", "bits": 4}), "quantized already, by awq"),
    "unknown format": (lambda f: _config(f, quantization_config={"quant_method": "nonsense"}), "nonsense"),
    "other sizes": (lambda f: _config(f, intermediate_size=12), r"24.* in the file and .*12.* by config\.json"),
    "more layers": (lambda f: _config(f, num_hidden_layers=2), r"lack model\.layers\.1"),
    "a weight less": (_lacking, r"its files lack model\.layers\.0\.mlp\.up_proj\.weight"),
    "cut off": (_cut_off, "SafetensorError"),
    "no such shard": (_sharded, "model-00001-of-00002"),
    "no weights": (lambda f: _without(f, "model.safetensors"), "model.safetensors"),
    "no config": (lambda f: _without(f, "config.json"), r"no config\.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "JSON"),
    "unknown type": (lambda f: _config(f, model_type="nonsense"), "nonsense"),
    "an adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "an adapter"),
    "with an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "an adapter"),
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], "empty"),
    "gguf": (lambda f: [*[p.unlink() for p in f.iterdir()], (f / "m.gguf").write_text("GGUF")], "GGUF"),
    "a file": (lambda f: [shutil.rmtree(f), f.write_text("x")], "a file"),
    "not there": (shutil.rmtree, "not there"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_is_no_model_is_refused_in_one_line(
    saved: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage, reason = DAMAGES[name]
    damage(folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=rf"^recipe: model: '.*model' \(.*({reason}).*\); allowed: ") as caught:
        load_directory(folder)
    assert "\n" not in str(caught.value)
    assert not capfd.readouterr().err, "what transformers reports goes to standard error"


def test_a_sound_folder_loads(saved: Path) -> None:
    model = load_directory(saved)
    assert not model.training
    assert vocabulary_of(model) == 256


@pytest.mark.parametrize(
    ("vocabulary", "tokenizer", "reason"),
    [
        (64, None, "no tokenizer, and a vocabulary of 64"),
        (32_000, None, "no tokenizer, and a vocabulary of 32000"),
        (256, "{", "its tokenizer does not load"),
        (2, "words", "its tokenizer gives token 3, its vocabulary has 2"),
    ],
)
def test_a_tokenizer_that_does_not_fit(
    saved: Path, tmp_path: Path, vocabulary: int, tokenizer: str | None, reason: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (tmp_path / "text.txt").write_text("a b c d a b c d")
    if tokenizer == "words":
        from tokenizers import Tokenizer, models, pre_tokenizers

        loaded = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3, "[UNK]": 4}, unk_token="[UNK]"))
        loaded.pre_tokenizer = pre_tokenizers.Whitespace()
        loaded.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    elif tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(InputError, match=rf"recipe: model: .*{reason}"):
        token_windows(folder, tmp_path / "text.txt", 4, 2, vocabulary)


def test_the_shell_says_it_in_one_line(saved: Path, tmp_path: Path) -> None:
    from compcomp.cli import app

    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    _config(folder, intermediate_size=12)
    (tmp_path / "r.yaml").write_text("techniques: ['AbsMax(bits=4)']\nmodel: model\n")
    result = CliRunner().invoke(app, ["optimize", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)  # which the program prints, with exit status 2
    assert "recipe: model:" in str(result.exception)

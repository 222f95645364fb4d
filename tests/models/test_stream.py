"""A checkpoint compressed into another: the same model as in memory, whatever ends a run early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models import states, stream
from compcomp.models.checkpoint import Checkpoint
from compcomp.models.layers import find_layers
from compcomp.models.save import load_components
from compcomp.techniques import GPTQ, AbsMax, Magnitude, PruneHeads, SparseGPT, Wanda
from tests.amount import spread
from tests.architectures import ARCHITECTURES

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
HALF: Any = "1/2"
ORDER = SparseGPT(HALF) >> GPTQ(bits=4, mask="kept")
CAUSAL = [name for name, one in ARCHITECTURES.items() if "Causal" in one.model or one.model == "GPT2LMHeadModel"]
CAUSAL.remove("mamba")  # whose scan rounds by where its tensors lie in memory
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"]


def saved(name: str, folder: Path, size: str = "9KB") -> Any:
    """A model in several files in a folder."""
    model = ARCHITECTURES[name].build()
    model.save_pretrained(folder, max_shard_size=size)
    return model


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()  # type: ignore[no-any-return]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:left dense")  # routers
@pytest.mark.parametrize("name", spread(CAUSAL, 8))
@pytest.mark.parametrize("order", [ORDER, Magnitude(HALF) >> AbsMax(bits=4)], ids=["calibrated", "free of data"])
def test_it_is_the_model_that_apply_makes(name: str, order: Any, tmp_path: Path) -> None:
    batches = ARCHITECTURES[name].batches()
    model = saved(name, tmp_path / "dense")
    found = cc.compress_checkpoint(order, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    cc.apply(order, model, batches, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())
    about = json.loads((tmp_path / "out" / "compcomp.json").read_text())
    assert set(about["layers"]) == set(load_components(tmp_path / "out")) and about["compression_rate"] == found.rate
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def headers(folder: Path) -> dict[str, Any]:
    """The shape and dtype of each tensor in the files, by its name there."""
    found = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = part.get_shape(), part.get_dtype()
    return found


@pytest.mark.filterwarnings("ignore:left dense")  # routers
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_read_and_written_under_the_names_in_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ARCHITECTURES[name].batches(length=16)
    model = saved(name, tmp_path / "dense")
    before = headers(tmp_path / "dense")
    assert name == "gpt_oss" or not before.keys() <= model.state_dict().keys()
    with monkeypatch.context() as patch:
        stopping(patch, 34)
        with pytest.raises(Stopped):
            cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    found = cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    assert found.resumed > 0
    cc.apply(ORDER, model, batches, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())
    assert headers(tmp_path / "out") == before
    names = {layer.name for layer in find_layers(model)}
    assert set(load_components(tmp_path / "out")) == names and any(".experts." in layer for layer in names)


def test_files_of_the_model_inside_are_read_too(tmp_path: Path) -> None:
    model = ARCHITECTURES["gpt2"].build()
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    assert "h.0.ln_1.weight" in tensors
    save_file(tensors, path, metadata={"format": "pt"})
    cc.compress_checkpoint(Magnitude(HALF), tmp_path / "dense", tmp_path / "out", device="cpu")
    cc.apply(Magnitude(HALF), model)
    assert same(loaded(tmp_path / "out"), model.state_dict())


def test_most_architectures_stream(tmp_path: Path) -> None:
    assert len(CAUSAL) > 15
    names, refused = ("llama", "qwen2", "gpt2", "opt", "gemma"), []
    for name in (name for name in names if name in ARCHITECTURES):
        saved(name, tmp_path / name)
        try:
            Checkpoint(tmp_path / name)
        except InputError:
            refused.append(name)
    assert not refused


class Stopped(BaseException):
    pass


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the run end when so many layers have been compressed."""
    plain, calls = states.applied, list[int]()

    def applied(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Stopped
        return plain(*given)

    monkeypatch.setattr(states, "applied", applied)


@pytest.mark.parametrize("after", [0, 3, 20])
def test_a_run_that_ended_early_is_continued(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = ARCHITECTURES["llama"].batches()
    model = saved("llama", tmp_path / "dense")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("the earlier one")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        stopping(patch, after)
        with pytest.raises(Stopped):
            cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "the earlier one"
    found = cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    assert found.resumed == (after >= 14)  # a block has seven layers, each takes two steps
    cc.apply(ORDER, model, batches, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_what_an_other_run_left_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = ARCHITECTURES["llama"].batches()
    model = saved("llama", tmp_path / "dense")
    with monkeypatch.context() as patch:
        stopping(patch, 20)
        with pytest.raises(Stopped):
            cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    others = ARCHITECTURES["llama"].batches(seed=5)
    assert cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", others, "cpu").resumed == 0
    cc.apply(ORDER, model, others, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())


KILLED = """
import sys, os, signal, torch, compcomp as cc, compcomp.techniques
from compcomp.models import states
from tests.architectures import ARCHITECTURES
plain, calls = states.applied, []
def applied(*given):
    calls.append(1)
    if len(calls) > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*given)
states.applied = applied
order = cc.parse_sequence("SparseGPT(sparsity=1/2) >> GPTQ(bits=4, mask='kept')")
cc.compress_checkpoint(order, sys.argv[1] + "/dense", sys.argv[1] + "/out", ARCHITECTURES["llama"].batches(), "cpu")
"""


def test_a_kill_leaves_what_is_needed_to_go_on(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "dense")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "20"], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    batches = ARCHITECTURES["llama"].batches()
    assert cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu").resumed == 1
    cc.apply(ORDER, model, batches, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())


def one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    batches = ARCHITECTURES["llama"].batches()
    saved("llama", tmp_path / "dense")
    shards = sorted((tmp_path / "dense").glob("model-*.safetensors"))
    assert len(shards) > 2
    whole = shards[1].read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        shards[1].write_bytes(damaged)
        with pytest.raises(InputError) as error:
            cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
        one_line(error, shards[1].name)
    shards[1].unlink()
    with pytest.raises(InputError) as error:
        cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    one_line(error, shards[1].name)
    assert not (tmp_path / "out").exists()


def test_a_layer_of_nan_is_named_and_what_was_written_stays(tmp_path: Path) -> None:
    batches = ARCHITECTURES["llama"].batches()
    saved("llama", tmp_path / "dense")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("the earlier one")
    name = "model.layers.1.mlp.up_proj.weight"
    path = next(p for p in (tmp_path / "dense").glob("*.safetensors") if name in load_file(p))
    tensors = load_file(path)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError) as error:
        cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    one_line(error, "model.layers.1.mlp.up_proj", "not finite")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "the earlier one"


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_full_disk_is_one_line_and_the_run_continues_later(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ARCHITECTURES["llama"].batches()
    model = saved("llama", tmp_path / "dense")
    plain, calls = stream.save_file, list[int]()

    def full(*given: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) >= at:
            raise OSError(28, "No space left on device")
        plain(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "save_file", full)
        with pytest.raises(InputError) as error:
            cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
        one_line(error, "No space left on device")
    assert not (tmp_path / "out").exists()
    cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", batches, "cpu")
    cc.apply(ORDER, model, batches, device="cpu")
    assert same(loaded(tmp_path / "out"), model.state_dict())


def test_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ARCHITECTURES["llama"]
    one.build(num_hidden_layers=6).save_pretrained(tmp_path / "dense", max_shard_size="9KB")
    opened, most, grams = list[Checkpoint](), list[int](), list[weakref.ref[Any]]()
    plain = states.applied

    def checkpoint(directory: Path) -> Checkpoint:
        opened.append(Checkpoint(directory))
        return opened[0]

    def applied(technique: Any, name: str, layer: Any) -> Any:
        most.append(sum(p.ndim == 2 and not p.is_meta for p in opened[0].model.parameters()))
        grams.append(weakref.ref(layer.gram))
        assert len({id(found) for gram in grams if (found := gram()) is not None}) <= 7
        return plain(technique, name, layer)

    monkeypatch.setattr(stream, "Checkpoint", checkpoint)
    monkeypatch.setattr(states, "applied", applied)
    cc.compress_checkpoint(ORDER, tmp_path / "dense", tmp_path / "out", one.batches(), "cpu")
    assert len(most) == 6 * 14 and set(most) == {7 + 2}  # a block's layers, the embedding, the head


def test_arguments_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    batches = ARCHITECTURES["llama"].batches()
    saved("llama", tmp_path / "dense")
    wrong: list[tuple[Any, ...]] = [
        (ORDER, tmp_path / "nowhere", tmp_path / "out", batches),
        (ORDER, tmp_path / "dense", tmp_path / "dense", batches),
        (ORDER, tmp_path / "dense", tmp_path / "dense" / "out", batches),
        (ORDER, tmp_path / "dense", tmp_path / "out"),
        (PruneHeads(HALF), tmp_path / "dense", tmp_path / "out", batches),
        (Wanda(HALF, pattern="2:4") >> GPTQ(bits=4, group=7), tmp_path / "dense", tmp_path / "out", batches),
    ]
    for given in wrong:
        with pytest.raises(InputError) as error:
            cc.compress_checkpoint(*given, device="cpu")
        one_line(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_the_command_says_what_became_of_the_model(tmp_path: Path) -> None:
    saved("llama", tmp_path / "dense")
    order = Magnitude(HALF) >> AbsMax(bits=4)
    refused = subprocess.run(
        [sys.executable, "-m", "compcomp", "apply", str(ORDER), "dense", "--out", "out", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert refused.returncode == 2 and "no calibration" in refused.stderr.strip().rpartition("\n")[2]
    found = subprocess.run(
        [sys.executable, "-m", "compcomp", "apply", str(order), "dense", "--out", "out", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 0, found.stderr
    data = json.loads(found.stdout)
    assert 0 < data["model_compression_rate"] < data["compression_rate"] < 1 and data["bytes"] > 0
    model = ARCHITECTURES["llama"].build()
    cc.apply(order, model)
    assert same(loaded(tmp_path / "out"), model.state_dict())

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp.models.save as saving
from compcomp.errors import InputError
from compcomp.models.bench import ModelBench
from compcomp.models.components import unpack
from compcomp.models.measure import effective_weight
from compcomp.models.save import load_components, load_weights, save
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.models.fakes import Tiny, gpt2, qwen2, scaled, tokens

SEQUENCE = (
    Magnitude(Fraction(1, 2), pattern="2:4")
    >> AbsMax(4, group=4)
    >> LeastSquaresDistill()
    >> TruncatedSVD(1, residual=True)
)


def compressed(model: nn.Module, sequence: Any = SEQUENCE) -> tuple[ModelBench, Any]:
    bench = ModelBench(model, tokens(), device="cpu")
    return bench, bench.apply(sequence, bench.start())


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result = model.eval()(tokens(1, seed=9)[0])
    return getattr(result, "logits", result)  # type: ignore[no-any-return]


RELOAD = """
import sys, torch
from tests.models.fakes import Tiny, tokens
kind, *directories, out = sys.argv[1:]
results = []
for directory in directories:
    if kind == "Tiny":
        from compcomp.models.save import load_weights
        model = load_weights(Tiny(tied=True), directory)
    else:
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        result = model.eval()(tokens(1, seed=9)[0])
    results.append(getattr(result, "logits", result))
torch.save(results, out)
"""


def reloaded(kind: str, *directories: Path) -> list[torch.Tensor]:
    """The outputs of the saved models in a new process."""
    root, out = Path(__file__).parents[2], directories[0].parent / "outputs.pt"
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", RELOAD, kind, *map(str, directories), str(out)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(out)  # type: ignore[no-any-return]


def test_a_plain_module_gives_the_same_outputs_in_a_new_process(tmp_path: Path) -> None:
    model = Tiny(tied=True)
    bench, state = compressed(model)
    assert save(model, state, tmp_path / "out") == tmp_path / "out"
    bench.write(state)
    assert torch.equal(reloaded("Tiny", tmp_path / "out")[0], logits(model))


@pytest.mark.slow
def test_transformers_loads_it_in_a_new_process(tmp_path: Path) -> None:
    here, directories = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for model in (qwen2(), qwen2(tied=True), gpt2()):
            bench, state = compressed(model.to(dtype))
            directories.append(save(model, state, tmp_path / str(len(directories))))
            bench.write(state)
            here.append(logits(model))
    for mine, theirs in zip(here, reloaded("transformers", *directories), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_transformers_loads_it_in_this_process(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

    model = qwen2(tied=True)
    bench, state = compressed(model)
    save(model, state, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "components.safetensors",
        "compcomp.json",
    }
    bench.write(state)
    there = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(there, Qwen2ForCausalLM) and there.lm_head.weight is there.model.embed_tokens.weight
    assert torch.equal(logits(there), logits(model))
    assert torch.equal(logits(load_weights(qwen2(tied=True), tmp_path)), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [Tiny, gpt2])
def test_components_add_up_to_the_saved_weights(build: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build().to(dtype)
    bench, state = compressed(model)
    save(model, state, tmp_path)
    parts = load_components(tmp_path)
    bench.write(state)
    assert parts.keys() == state.keys()
    for name, layer in parts.items():
        assert layer.keys() == {"levels", "scales", "mask", "left", "right"}
        weight = unpack(layer)
        torch.testing.assert_close(weight, effective_weight(state[name]).double(), rtol=1e-6, atol=1e-7)
        stored = bench.layers[name].weight.double()
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(weight, stored, rtol=tolerance, atol=1e-6)


def test_the_model_keeps_the_weights_it_has(tmp_path: Path) -> None:
    model = Tiny()
    _, state = compressed(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(model, state, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    other = load_weights(Tiny(), tmp_path)
    assert not torch.equal(other.blocks[0].q.weight, model.blocks[0].q.weight)  # type: ignore[union-attr, index]
    assert torch.equal(other.blocks[0].o.bias, model.blocks[0].o.bias)  # type: ignore[union-attr, index]


def test_what_is_said_about_the_layers(tmp_path: Path) -> None:
    model = Tiny()
    bench, state = compressed(model)
    extra = {"order": "P >> Q", "metrics": {"ppl": float("inf"), "acc": [float("nan"), 0.5]}}
    save(model, state, tmp_path, extra)
    about = json.loads((tmp_path / "compcomp.json").read_text(), parse_constant=pytest.fail)
    assert about["order"] == "P >> Q" and about["metrics"] == {"ppl": "inf", "acc": ["nan", 0.5]}
    assert about["compression_rate"] == bench.compression_rate(state)
    assert sum(layer["bits"] for layer in about["layers"].values()) == bench.bits(state)
    assert about["layers"]["blocks.0.q"] == {
        "shape": [8, 8],
        "bits": 32 * 4 + 64 + 16 * 16 + 16 * 16,
        "dense_bits": 64 * 16,
        "kept": 32,
        "levels": 7,
        "lowest": -7,
        "codes": None,
        "scales": 16,
        "offsets": 0,
        "factor_rank": 1,
        "factor_levels": [None, None],
        "rank": None,
        "pattern": ["2:4"],
        "basis": [],
    }


def test_other_files_stay_and_old_ones_are_replaced(tmp_path: Path) -> None:
    model, out = Tiny(), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("report")
    save(model, compressed(model, scaled(2))[1], out)
    first = load_weights(Tiny(), out).blocks[0].q.weight  # type: ignore[union-attr, index]
    save(model, compressed(model, scaled(3))[1], out)
    second = load_weights(Tiny(), out).blocks[0].q.weight  # type: ignore[union-attr, index]
    torch.testing.assert_close(first * 1.5, second)
    assert (out / "report.html").read_text() == "report"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    model = Tiny()
    target = save(model, compressed(model)[1], tmp_path / "a" / "b")
    (plain := tmp_path / "plain").touch()
    (folder := tmp_path / "folder").mkdir()
    assert {path.stat().st_mode for path in target.iterdir()} == {plain.stat().st_mode}
    assert target.stat().st_mode == folder.stat().st_mode


def test_folders_in_a_directory_stay_or_are_replaced_whole(tmp_path: Path) -> None:
    draft, out = tmp_path / "draft", tmp_path / "out"
    for name in ("draft/adapter/deep", "out/adapter/deep", "out/notes", "out/ours"):
        (tmp_path / name).mkdir(parents=True)
    (draft / "adapter" / "deep" / "new").write_text("new")
    for name in ("adapter/old", "adapter/deep/old", "notes/adapter_config.json", "ours/adapter_config.json"):
        (out / name).write_text("old")
    (out / "ours" / "compcomp.json").write_text("{}")
    for path in (draft, draft / "adapter", draft / "adapter" / "deep"):
        path.chmod(0o700)
    (draft / "adapter" / "deep" / "new").chmod(0o600)
    saving.put_in_place(draft, out)
    there = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert there == {"adapter", "adapter/deep", "adapter/deep/new", "notes", "notes/adapter_config.json"}
    (plain := tmp_path / "plain").touch()
    assert (out / "adapter" / "deep").stat().st_mode == (out / "notes").stat().st_mode
    assert (out / "adapter" / "deep" / "new").stat().st_mode == plain.stat().st_mode
    assert not draft.exists()


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiny()
    save(model, compressed(model, scaled(2))[1], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(saving, "save_file", fail)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("out", "new"):
        with pytest.raises(OSError, match="no space"):
            save(model, compressed(model, scaled(3))[1], tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_wrong_use(tmp_path: Path) -> None:
    model = Tiny()
    _, state = compressed(model)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"save: .*which is a file; allowed: a directory"):
        save(model, state, tmp_path / "file")
    with pytest.raises(InputError, match=r"save: .*allowed: a writable directory"):
        save(model, state, tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"layer 'blocks\.0\.q'; allowed: the state of layers of this model"):
        save(nn.Sequential(nn.Linear(8, 8)), state, tmp_path / "out")
    with pytest.raises(InputError, match="the state of layers of this model"):
        save(Tiny(width=4), state, tmp_path / "out")
    with pytest.raises(InputError, match=r"save: extra data"):
        save(model, state, tmp_path / "out", {"a": object()})
    with pytest.raises(InputError, match=r"save: the key 'layers'"):
        save(model, state, tmp_path / "out", {"layers": 1})
    with pytest.raises(InputError, match="what fits into float16"):
        save(Tiny(dtype=torch.float16), compressed(model, scaled(1e9))[1], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    model = Tiny()
    with pytest.raises(InputError, match=r"model\.safetensors'?, which is not there"):
        load_weights(model, tmp_path)
    with pytest.raises(InputError, match=r"components\.safetensors'?, which is not there"):
        load_components(tmp_path)
    save(model, compressed(model)[1], tmp_path)
    for other in (Tiny(width=4), nn.Linear(2, 2)):
        with pytest.raises(InputError, match="allowed: weights saved from such a model") as raised:
            load_weights(other, tmp_path)
        assert "\n" not in str(raised.value)
    for name, load in (("model.safetensors", lambda: load_weights(model, tmp_path)),):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(InputError, match="allowed: weights saved from such a model"):
            load()

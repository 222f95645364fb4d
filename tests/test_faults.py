"""Damaged files, a full disk, a process that ends at any moment: one line, the earlier output, the same result."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models import backup
from compcomp.techniques import GPTQ, AbsMax, Magnitude, SparseGPT
from tests.amount import spread
from tests.architectures import ARCHITECTURES
from tests.by_hand import memory
from tests.by_hand import same as differing
from tests.faults import changing, full_from

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[1]
HALF: Any = "1/2"
ORDER = SparseGPT(HALF) >> GPTQ(bits=4, mask="kept")
FREE = Magnitude(HALF) >> AbsMax(bits=4)
EARLIER = {"model.safetensors": "weights", "compcomp.json": "{}", "notes.txt": "mine", "logs/first/a.txt": "more"}
MINE = ("notes.txt", "logs/first/a.txt")
MOMENTS = 90
"""More moments than a run has at which files change."""


def model(name: str = "llama", layers: int = 2) -> Any:
    return ARCHITECTURES[name].build(num_hidden_layers=layers)


def stream(folder: Path, name: str = "llama", order: Any = ORDER, out: str = "out") -> Any:
    return cc.compress_checkpoint(order, folder / "dense", folder / out, ARCHITECTURES[name].batches(), "cpu")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def earlier(folder: Path) -> None:
    for name, text in EARLIER.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def begun(folder: Path) -> dict[str, bytes]:
    """A checkpoint in ``dense``, and in ``wanted`` what a run makes of it that nothing disturbs."""
    model().save_pretrained(folder / "dense", max_shard_size="9KB")
    earlier(folder / "wanted")
    stream(folder, out="wanted")
    return content(folder / "wanted")


def is_one_of(found: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    """True for the earlier output or for the new one, each whole."""
    return found in ({name: text.encode() for name, text in EARLIER.items()}, wanted)


def one_line(error: pytest.ExceptionInfo[Any], *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], list[str]]:
    folder = tmp_path_factory.mktemp("made")
    wanted = begun(folder)
    earlier(folder / "out")
    with changing(folder, lambda number, name: None) as moments:
        stream(folder)
    assert content(folder / "out") == wanted and not hidden(folder)
    assert 30 < len(moments.names) < MOMENTS and moments.names.count("done.json") == 2
    shutil.rmtree(folder / "out")
    return folder, wanted, moments.names


@pytest.mark.parametrize("first", spread(range(MOMENTS), 15))
def test_a_disk_that_is_full_from_any_moment_on(first: int, made: Any) -> None:
    folder, wanted, names = made
    if first >= len(names):
        return
    shutil.rmtree(folder / "out", ignore_errors=True)
    earlier(folder / "out")
    written = len(names)
    with changing(folder, full_from(first)) as moments:
        try:
            stream(folder)
        except InputError as error:
            assert "\n" not in str(error) and "No space left on device" in str(error)
            assert content(folder / "out") == {name: text.encode() for name, text in EARLIER.items()}
            written = moments.names.count("done.json")
        else:  # links that could not be made, and were not needed
            assert content(folder / "out") == wanted
    assert moments.names[:first] == names[:first]
    found = stream(folder)
    assert content(folder / "out") == wanted and not hidden(folder)
    assert found.resumed == written % len(names)


KILLED = """
import json, shutil, sys, contextlib
from pathlib import Path
from tests import test_faults as own
from tests.faults import in_a_process, killed_at, changing, without_exchange
folder, exchanging, wanted = Path(sys.argv[1]), sys.argv[2] == "True", json.loads(sys.argv[3])
own.stream(folder, out="first")
for moment in wanted:
    out = f"ended/{moment}"
    own.earlier(folder / out)
    def run():
        with contextlib.nullcontext() if exchanging else without_exchange(), changing(folder, killed_at(moment)):
            own.stream(folder, out=out)
    print(json.dumps([moment, in_a_process(run)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchanging", [True, False])
@pytest.mark.parametrize("part", spread(range(5), 1))
def test_a_process_that_ends_at_any_moment(part: int, exchanging: bool, made: Any) -> None:
    folder, wanted, names = made
    moments = list(range(len(names) + (0 if exchanging else 2)))[part::5]
    if not exchanging:  # what differs is at the end
        moments = [moment for moment in moments if moment >= len(names) - 25]
    given = [sys.executable, "-c", KILLED, str(folder), str(exchanging), json.dumps(moments)]
    ended = subprocess.run(given, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines == [[moment, -signal.SIGKILL] for moment in moments], ended.stderr[-2000:]
    shutil.rmtree(folder / "first")
    for moment in moments:
        out = folder / "ended" / str(moment)
        if exchanging:
            assert is_one_of(content(out), wanted), moment
        found = stream(folder, out=f"ended/{moment}")
        assert content(out) == wanted, moment
        if moment < names.index("exchange"):
            assert found.resumed == (names[:moment].count("done.json") if "os.remove" not in names[:moment] else 0)
    assert not hidden(folder / "ended")
    shutil.rmtree(folder / "ended")


def test_a_limit_of_the_system_is_one_line_too(made: Any) -> None:
    folder, wanted, _ = made
    earlier(folder / "limited")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 3000):  # not even the note, and not the tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(InputError) as error:
                stream(folder, out="limited")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        one_line(error, "too large")
        assert content(folder / "limited") == {name: text.encode() for name, text in EARLIER.items()}
    stream(folder, out="limited")
    assert content(folder / "limited") == wanted and not hidden(folder)


@pytest.mark.parametrize("damage", ["half", "empty", "lost", "note"])
def test_what_an_earlier_run_wrote_is_made_again_if_it_is_damaged(damage: str, made: Any) -> None:
    folder, wanted, names = made
    last = len(names) - 1 - names[::-1].index("done.json") + 1
    earlier(folder / "out")
    with changing(folder, full_from(last)), pytest.raises(InputError):
        stream(folder)
    draft = folder / ".out.partial"
    first = min(draft.glob("model-*.safetensors"))
    if damage == "note":
        (draft / "done.json").write_text("{")
    elif damage == "lost":
        first.unlink()
    else:
        first.write_bytes(first.read_bytes()[: len(first.read_bytes()) // 2 if damage == "half" else 0])
    assert stream(folder).resumed == (0 if damage == "note" else 1)
    assert content(folder / "out") == wanted and not hidden(folder)


def test_files_of_the_earlier_output_are_those_of_the_moment_it_is_replaced(made: Any) -> None:
    folder, _, _ = made
    shutil.rmtree(folder / "out", ignore_errors=True)
    earlier(folder / "out")

    def act(number: int, name: str) -> None:
        if name == "exchange":
            raise KeyboardInterrupt

    with changing(folder, act), pytest.raises(KeyboardInterrupt):
        stream(folder)
    (folder / "out" / "notes.txt").unlink()
    (folder / "out" / "notes.txt").write_text("changed since")
    shutil.rmtree(folder / "out" / "logs")
    stream(folder)
    assert (folder / "out" / "notes.txt").read_text() == "changed since" and not (folder / "out" / "logs").exists()
    shutil.rmtree(folder / "out")


# -------------------------------------------------------------------------------------------- files that are damaged


def tensor_changed(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(dense: Path) -> None:
        path = next(p for p in dense.glob("*.safetensors") if name in load_file(p))
        tensors = load_file(path)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, path, metadata={"format": "pt"})

    return damage


def file_changed(change: Callable[[bytes], bytes], name: str = "") -> Callable[[Path], None]:
    def damage(dense: Path) -> None:
        path = dense / (name or sorted(p.name for p in dense.glob("model-*.safetensors"))[1])
        path.write_bytes(change(path.read_bytes()))

    return damage


UP, EXPERT = "model.layers.1.mlp.up_proj.weight", "model.layers.1.block_sparse_moe.experts.2.w1.weight"
DAMAGED: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "half a shard": ("llama", file_changed(lambda b: b[: len(b) // 2]), ("model-00002-of",)),
    "an end that is missing": ("llama", file_changed(lambda b: b[:-1]), ("model-00002-of",)),
    "an empty shard": ("llama", file_changed(lambda b: b""), ("model-00002-of",)),
    "a header of noise": ("llama", file_changed(lambda b: b"\xff" * 64), ("model-00002-of",)),
    "a header that is too long": (
        "llama",
        file_changed(lambda b: b"\xff" * 4 + b"\0" * 4 + b[8:]),
        ("model-00002-of",),
    ),
    "a header of other text": ("llama", file_changed(lambda b: b[:8] + b"[" * 40 + b[48:]), ("model-00002-of",)),
    "no tensor where the index says": ("llama", tensor_changed(UP, lambda t: None), (UP, "index")),
    "another shape": ("llama", tensor_changed(UP, lambda t: t[:, 1:].clone()), (UP, "(24, 15)", "(24, 16)")),
    "whole numbers": ("llama", tensor_changed(UP, lambda t: t.to(torch.int8)), (UP, "I8")),
    "eight bits": ("llama", tensor_changed(UP, lambda t: t.to(torch.float8_e4m3fn)), (UP, "F8")),
    "no expert": ("mixtral", tensor_changed(EXPERT, lambda t: None), (EXPERT, "index")),
    "an expert of another shape": (
        "mixtral",
        tensor_changed(EXPERT, lambda t: t[:, 1:].clone()),
        ("layers.1", "experts"),
    ),
    "an expert of whole numbers": ("mixtral", tensor_changed(EXPERT, lambda t: t.to(torch.int8)), (EXPERT, "I8")),
    "no index": ("llama", lambda d: (d / "model.safetensors.index.json").unlink(), ("index",)),
    "an index of noise": ("llama", file_changed(lambda b: b[:50], "model.safetensors.index.json"), ("index",)),
    "an index of something else": ("llama", file_changed(lambda b: b"[]", "model.safetensors.index.json"), ("index",)),
    "a config of noise": ("llama", file_changed(lambda b: b[:50], "config.json"), ("dense",)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused_before_anything_is_done(what: str, tmp_path: Path) -> None:
    name, damage, parts = DAMAGED[what]
    model(name).save_pretrained(tmp_path / "dense", max_shard_size="9KB")
    damage(tmp_path / "dense")
    earlier(tmp_path / "out")
    with pytest.raises(InputError) as error:
        stream(tmp_path, name)
    one_line(error, *parts)
    assert content(tmp_path / "out") == {name: text.encode() for name, text in EARLIER.items()}
    assert not hidden(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("name", "tensor", "layer"),
    [("llama", UP, UP.removesuffix(".weight")), ("mixtral", EXPERT, "model.layers.1.mlp.experts.gate_up_proj.2")],
)
@pytest.mark.parametrize("order", [ORDER, FREE], ids=["calibrated", "free of data"])
def test_a_layer_that_is_not_finite_is_named(
    order: Any, name: str, tensor: str, layer: str, value: float, tmp_path: Path
) -> None:
    model(name).save_pretrained(tmp_path / "dense", max_shard_size="9KB")

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[-1, -1] = value
        return weight

    tensor_changed(tensor, change)(tmp_path / "dense")
    earlier(tmp_path / "out")
    with pytest.raises(InputError) as error:
        stream(tmp_path, name, order)
    one_line(error, f"layer {layer}:", "not finite")
    assert content(tmp_path / "out") == {name: text.encode() for name, text in EARLIER.items()}


@pytest.mark.parametrize("stated", ["bfloat16", None])
def test_dtypes_are_those_that_the_loaded_model_has(stated: str | None, tmp_path: Path) -> None:
    import transformers

    one = model().to(torch.bfloat16)
    one.save_pretrained(tmp_path / "dense", max_shard_size="9KB")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config | {"dtype": stated}))
    tensor_changed(UP, lambda t: t.float() * 1.0001)(tmp_path / "dense")
    tensor_changed("model.layers.0.input_layernorm.weight", lambda t: t.half())(tmp_path / "dense")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")
    stream(tmp_path)
    cc.apply(ORDER, loaded, ARCHITECTURES["llama"].batches(), device="cpu")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name], t) for name, t in loaded.state_dict().items())


# ------------------------------------------------------------------------------------------------- a model in memory


@pytest.mark.parametrize("order", [ORDER, FREE], ids=["calibrated", "free of data"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ended"])
def test_a_model_in_memory_is_as_it_was_whichever_copy_cannot_be_kept(
    error: BaseException, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, batches = model(), ARCHITECTURES["llama"].batches()
    before, plain, calls, left = memory(one), save_file, list[int](), [0]

    def failing(*given: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) > left[0]:
            raise error
        plain(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(backup, "save_file", failing)
        for at in range(14):
            calls.clear()
            left[0] = at
            with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as found:
                cc.apply(order, one, batches, device="cpu")
            assert not differing(before, memory(one))
            if isinstance(error, OSError):
                one_line(found, "No space left on device", "TMPDIR")
    assert len(calls) == 14
    cc.apply(order, one, batches, device="cpu")
    other = model()
    cc.apply(order, other, batches, device="cpu")
    assert not differing(memory(one), memory(other)) and differing(before, memory(one))


def test_a_temporary_directory_that_cannot_be_written_to_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model()
    before = memory(one)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(InputError) as error:
        cc.apply(ORDER, one, ARCHITECTURES["llama"].batches(), device="cpu")
    one_line(error, "/nowhere/at/all", "TMPDIR")
    assert not differing(before, memory(one))

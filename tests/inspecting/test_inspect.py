"""`cc.inspect` and `compcomp inspect`: what is planted in a checkpoint is found, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import compcomp as cc
from compcomp.cli import app
from compcomp.inspecting.expect import Expected
from compcomp.inspecting.measure import Measured
from compcomp.inspecting.rank import RankSketch
from compcomp.models.bench import ModelBench
from compcomp.models.save import save
from compcomp.techniques import AbsMax, Magnitude
from tests.formats import files
from tests.formats.files import NAME


def gaussian(rows: int = 48, columns: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), device="cpu") * 0.02


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    parts = weight.reshape(-1, 4)
    lowest = parts.abs().argsort(dim=1)[:, :2]
    return parts.scatter(1, lowest, 0.0).reshape(weight.shape)


def narrow(weight: torch.Tensor, group: int = 64, bits: int = 4) -> torch.Tensor:
    top = 2 ** (bits - 1) - 1
    parts = weight.reshape(-1, group)
    step = parts.abs().amax(1, keepdim=True) / top
    return (torch.round(parts / step) * step).reshape(weight.shape)


def layer_of(tmp_path: Path, weight: torch.Tensor, config: dict[str, Any] | None = None) -> Measured:
    files.write(tmp_path, {f"{NAME}.weight": weight}, config)
    return cc.inspect(tmp_path).layers[0]


@pytest.mark.parametrize("planted", [0, 1, 7, 200])
@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_exactly_the_planted_groups_are_broken(tmp_path: Path, planted: int, pattern: tuple[int, int]) -> None:
    n, m = pattern
    rng = np.random.default_rng(planted)
    kept = rng.permuted(np.tile(np.arange(m) < n, (48 * 128 // m, 1)), axis=1)
    places = np.sort(rng.choice(len(kept), planted, replace=False))
    kept[places] = True
    weight = torch.where(torch.from_numpy(kept.reshape(48, 128)), gaussian() + 0.1, 0.0)
    text = f"{n}:{m}"
    files.write(tmp_path, {f"{NAME}.weight": weight.to(torch.bfloat16)})
    found = cc.inspect(tmp_path, text)
    layer = found.layers[0]
    assert (layer.pattern, layer.broken, layer.groups) == (pattern, planted, len(kept))
    assert layer.patterns[text] == 1 - planted / len(kept)
    expected = [(int(p) * m // 128, int(p) * m % 128) for p in places[:20]]
    assert list(layer.first_broken) == expected
    assert found.fits == (planted == 0)
    assert list(found.failures) == ([NAME] if planted else [])


def test_zeros_without_a_pattern_are_no_broken_pattern(tmp_path: Path) -> None:
    weight = gaussian() * (torch.rand(48, 128, generator=torch.Generator().manual_seed(1), device="cpu") < 0.5)
    layer = layer_of(tmp_path, weight)
    assert (layer.pattern, layer.broken) == (None, 0)
    assert layer.sparsity == pytest.approx(float((weight == 0).float().mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_planted_weight_off_the_grid_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = narrow(gaussian()).to(dtype)
    assert layer_of(tmp_path / "a", weight).grid.off == 0
    weight[31, 70] = weight[31, 64:128].abs().max() * 0.40
    layer = layer_of(tmp_path / "b", weight)
    grid = layer.grid
    assert (grid.kind, grid.bits, grid.group, grid.groups) == ("narrow", 4, 64, 96)
    assert (grid.off, grid.weights_off, grid.first) == (1, 1, ((31, 70),))
    found = cc.inspect(tmp_path / "b", "W4g64")
    assert not found.fits
    assert "row 31 column 70" in found.verdict


def test_kinds_of_grids_are_named(tmp_path: Path) -> None:
    given = gaussian(64, 256)
    parts = given.reshape(-1, 32)
    extreme = parts.gather(1, parts.abs().argmax(1, keepdim=True))
    signed = (torch.clamp(torch.round(parts / (extreme / -8)), -8, 7) * (extreme / -8)).reshape(64, 256)
    step = extreme.abs() / 7.5
    full = (torch.clamp(torch.round(parts / step), -8, 7) * step).reshape(64, 256)
    for name, weight in (("signed", signed), ("full levels", full), ("narrow", narrow(given, 32))):
        grid = layer_of(tmp_path / name, weight).grid
        assert (grid.kind, grid.bits, grid.group, grid.off) == (name, 4, 32, 0)
    assert layer_of(tmp_path / "dense", given).grid is None


def test_zero_points_beyond_the_sample_are_no_fault(tmp_path: Path) -> None:
    weight = narrow(gaussian(400, 64))
    step = float(weight[101].abs().max()) / 7
    weight[101] = torch.arange(64, device="cpu") % 16 * step  # levels 0 to 15, in a row that no sample looks at
    grid = layer_of(tmp_path, weight).grid
    assert (grid.kind, grid.off, grid.levels) == ("zero point", 0, (-7, 15))


@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (64, 300), (500, 64)])
@pytest.mark.parametrize("rank", [1, 9, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rank_is_found(tmp_path: Path, shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    left, right = gaussian(shape[0], rank, 1), gaussian(rank, shape[1], 2)
    layer = layer_of(tmp_path, (left @ right).to(dtype))
    assert (layer.rank, layer.rank_is_least) == (rank, False)
    assert layer.low_rank and not layer.is_dense


@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (64, 300), (500, 64)])
def test_full_rank_is_not_taken_for_low(tmp_path: Path, shape: tuple[int, int]) -> None:
    layer = layer_of(tmp_path, gaussian(*shape).to(torch.bfloat16))
    assert layer.rank == min(64, *shape)
    assert not layer.low_rank and layer.is_dense


def test_the_sketch_does_not_depend_on_blocks() -> None:
    weight = (gaussian(300, 20, 1) @ gaussian(20, 200, 2)).numpy()
    for step in (1, 7, 300):
        sketch = RankSketch((300, 200), "F32")
        for start in range(0, 300, step):
            sketch.add(weight[start : start + step])
        assert sketch.rank() == 20


def test_dead_rows_columns_and_what_is_not_finite(tmp_path: Path) -> None:
    weight = gaussian()
    weight[3], weight[:, 5], weight[:, 77] = 0, 0, 0
    layer = layer_of(tmp_path / "a", weight)
    assert (layer.dead_rows, layer.dead_columns, layer.not_finite) == (1, 2, 0)
    weight[7, 9], weight[8, 9] = torch.nan, torch.inf
    layer = layer_of(tmp_path / "b", weight)
    assert layer.not_finite == 2
    assert not cc.inspect(tmp_path / "b", "W16").fits


def test_claims_are_compared_with_the_tensors(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (16, 128))
    tensors = files.compressed_tensors(codes, np.ones((16, 2), np.float32), 4)
    weights = {"num_bits": 4, "group_size": 128, "strategy": "group", "type": "int", "symmetric": True}
    settings = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "sparsity_config": {"sparsity_structure": "2:4", "format": "dense"},
    }
    found = cc.inspect(files.write(tmp_path, tensors, {"quantization_config": settings}))
    assert found.layers[0].grid.levels == (-8, 7)
    assert found.layers[0].grid.kind == "full levels"
    assert found.problems == (
        f"{NAME}: config.json claims groups of 128, and they have 64 weights",
        f"{NAME}: config.json claims 2:4, and {found.layers[0].broken} of 512 groups are not",
    )
    weights["group_size"], weights["num_bits"] = 32, 3
    found = cc.inspect(files.write(tmp_path, tensors, {"quantization_config": settings}))
    assert f"{NAME}: config.json claims 3 bits, and the grid has 4" in found.problems
    assert f"{NAME}: config.json claims groups of 32, and they have 64 weights" in found.problems
    found = cc.inspect(files.write(tmp_path, tensors, {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert "config.json claims gptq, and the weights are stored as compressed-tensors" in found.problems


def test_what_compressed_tensors_writes_is_read(tmp_path: Path) -> None:
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for bits in (3, 4, 8):
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (16, 64), device="cpu").to(torch.int8)
        own = packing.pack_to_int32(codes, bits).numpy()
        assert np.array_equal(own, files.packed(codes.numpy().astype(int) + 2 ** (bits - 1), bits))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that compcomp wrote: 2:4, then four bits in groups of 64."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False), torch.nn.Linear(64, 128, bias=False))
    state = ModelBench(model).apply_all(Magnitude(sparsity="1/2", pattern="2:4") >> AbsMax(bits=4, group=64))
    folder = tmp_path_factory.mktemp("own")
    save(model, state, folder)
    return folder


def test_our_own_output_keeps_what_it_says(saved: Path) -> None:
    found = cc.inspect(saved, "2:4 W4g64 50%")
    assert found.fits and not found.problems
    assert {layer.broken for layer in found.layers} == {0}
    assert {layer.grid.kind for layer in found.layers} == {"narrow"}
    assert found.bits_per_weight == 8 + 8 + 32 / 64  # in the file: levels, mask and scales


def test_another_weight_than_the_parts_say_is_found(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["1.weight"][5, 6] += 1.0
    save_file(tensors, tmp_path / "model.safetensors")
    problems = cc.inspect(tmp_path).problems
    assert any("1: components.safetensors gives another weight in row 5, column 6" in each for each in problems)


@pytest.mark.parametrize(
    ("text", "part"),
    [("W4g0", "W4g0"), ("2:4 2:4", "2:4"), ("", "''"), ("W4A8", "inputs"), ("W4g64 W4g32", "g32"), ("int4", "int4")],
)
def test_what_cannot_be_expected_is_refused(text: str, part: str) -> None:
    with pytest.raises(cc.InputError, match=part):
        Expected.of(text)


def test_embeddings_and_ignored_layers_are_not_asked(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": gaussian(),
        "model.layers.0.a.weight": narrow(gaussian()),
        "model.layers.1.gate.weight": gaussian(),
        "lm_head.weight": gaussian(),
    }
    files.write(tmp_path, tensors)
    found = cc.inspect(tmp_path, "W4")
    assert found.checked == ("model.layers.0.a", "model.layers.1.gate")
    assert list(found.failures) == ["model.layers.1.gate"]
    assert cc.inspect(tmp_path, "W4", ignore=["gate"]).fits
    assert not cc.inspect(tmp_path, "W4", ignore=["*"]).fits  # nothing is left to ask


# Files that cannot be read


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def damaged(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    files.write(tmp_path, {f"{NAME}.weight": gaussian()})
    whole = (tmp_path / "model.safetensors").read_bytes()

    def named(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    yield named("short.safetensors", whole[:-1]), "cut off"
    yield named("header.safetensors", whole[:40]), "cut off"
    yield named("empty.safetensors", b""), "not safetensors"
    yield named("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS"
    yield named("zip.safetensors", b"PK\x03\x04" + bytes(100)), "pickle"
    yield named("other.safetensors", b"GGUF" + bytes(100)), "GGUF under another name"
    yield named("text.safetensors", b"<html><body>not found</body>"), "HTML"
    header = json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 60]}}).encode()
    yield named("sizes.safetensors", len(header).to_bytes(8, "little") + header + bytes(64)), "60 bytes"
    header = b'{"a": [1, 2, 3]}'
    yield named("list.safetensors", len(header).to_bytes(8, "little") + header), "header cannot be read"
    yield named("model.bin", b"\x80\x02"), "never opened"
    yield named("wrong.gguf", whole), "does not begin with GGUF"
    yield files.gguf(tmp_path / "cut.gguf", {"a.weight": ((2, 64), 8, bytes(136))}, cut=30), "cut off"
    yield cut(files.gguf(tmp_path / "head.gguf", {"a.weight": ((2, 64), 8, bytes(136))}), 60), "cut off"
    yield files.gguf(tmp_path / "type.gguf", {"a.weight": ((2, 64), 77, bytes(136))}), "unknown type 77"
    yield files.gguf(tmp_path / "rows.gguf", {"a.weight": ((2, 40), 8, bytes(136))}), "blocks of 32"
    yield tmp_path / "nothing", "not there"


def test_each_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    seen = 0
    for path, part in damaged(tmp_path):
        with pytest.raises(cc.InputError) as error:
            cc.inspect(path)
        assert part in str(error.value), path
        assert "\n" not in str(error.value)
        seen += 1
    assert seen == 16


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    shards = files.write(tmp_path / "shards", {"a.weight": gaussian()})
    places = {"weight_map": {"a.weight": "model.safetensors", "b.weight": "model-00002-of-00002.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(places))
    names = files.write(tmp_path / "names", {"a.weight": gaussian()})
    places = {"weight_map": {"b.weight": "model.safetensors"}}
    (names / "model.safetensors.index.json").write_text(json.dumps(places))
    outside = files.write(tmp_path / "outside", {"a.weight": gaussian()})
    (outside / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../names/x"}}))
    parts = files.write(tmp_path / "parts", {"a.weight": gaussian()})
    (parts / "model.safetensors").rename(parts / "model-00001-of-00002.safetensors")
    for folder, part in (
        (empty, "holds no weights"),
        (pickles, "never opened"),
        (shards, "without model-00002-of-00002.safetensors"),
        (names, "names 'b.weight'"),
        (outside, "files of the same folder"),
        (parts, "without model-00002-of-00002.safetensors"),
    ):
        with pytest.raises(cc.InputError, match=part):
            cc.inspect(folder)


def test_layers_whose_tensors_do_not_fit_are_named(tmp_path: Path) -> None:
    good = files.compressed_tensors(np.zeros((8, 64), int), np.ones((8, 2), np.float32), 4)
    for part, wrong in (
        ("weight_packed", np.zeros((8, 3), np.int32)),
        ("weight_scale", np.ones((7, 2), np.float32)),
        ("weight_shape", None),
    ):
        tensors = {key: value for key, value in good.items() if not key.endswith(part)}
        if wrong is not None:
            tensors[f"{NAME}.{part}"] = wrong
        folder = files.write(tmp_path / part, tensors)
        with pytest.raises(cc.InputError):
            cc.inspect(folder)


def test_random_damage_is_an_input_error_or_a_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 16))
    zeros, ones = rng.integers(1, 16, (2, 16)), np.ones((2, 16))
    state = {"quant_type": "nf4", "blocksize": 32, "dtype": "float16", "shape": [4, 32]}
    kinds: dict[str, dict[str, Any]] = {
        "gptq": files.gptq(codes, ones, zeros, np.arange(64) // 32, 4),
        "awq": files.awq(codes, ones, zeros),
        "packed": files.compressed_tensors(codes - 8, np.ones((64, 1), np.float32), 4),
        "nf4": {
            f"{NAME}.weight": np.zeros((64, 1), np.uint8),
            f"{NAME}.weight.quant_map": np.ones(16, np.float32),
            f"{NAME}.weight.absmax": np.ones(4, np.float32),
            f"{NAME}.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8).copy(),
        },
    }
    whole = {
        kind: (files.write(tmp_path / kind, tensors) / "model.safetensors").read_bytes()
        for kind, tensors in kinds.items()
    }
    raw = {"a.weight": ((2, 64), 8, bytes(136)), "b.weight": ((2, 32), 2, bytes(36))}
    whole["gguf"] = files.gguf(tmp_path / "whole.gguf", raw).read_bytes()
    refused = 0
    for kind, content in whole.items():
        path = tmp_path / ("damaged.gguf" if kind == "gguf" else "damaged.safetensors")
        for _ in range(60):
            changed = bytearray(content)
            for place in rng.integers(0, len(changed) // 2, 3):
                changed[place] = rng.integers(256)
            path.write_bytes(bytes(changed[: rng.integers(len(changed) // 2, len(changed) + 1)]))
            try:
                with np.errstate(all="ignore"):
                    cc.inspect(path)
            except cc.InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 150


# The command


def test_the_command(tmp_path: Path) -> None:
    weight = two_of_four(gaussian())
    files.write(tmp_path / "good", {f"{NAME}.weight": narrow(weight).to(torch.bfloat16)})
    weight[4, :4] = 0.02
    files.write(tmp_path / "bad", {f"{NAME}.weight": weight})
    run = CliRunner().invoke
    good = run(app, ["inspect", str(tmp_path / "good"), "--expect", "2:4 W4g64"])
    assert good.exit_code == 0, good.output
    assert "FITS: 2:4 W4g64 in all of 1 layers" in good.output
    picture = tmp_path / "broken.png"
    bad = run(app, ["inspect", str(tmp_path / "bad"), "--expect", "2:4", "--json", "--plot", str(picture)])
    assert bad.exit_code == 1
    given_back = json.loads(bad.stdout)
    assert given_back["failures"] == {NAME: ["1 of 1536 groups (0.1%) are not 2:4"]}
    assert given_back["layers"][0]["first_broken"] == [[4, 0]]
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain = run(app, ["inspect", str(tmp_path / "bad")])
    assert plain.exit_code == 0
    assert "1 of 1536 groups (0.1%) are not" in plain.output


def test_memory_stays_below_three_times_the_largest_tensor(tmp_path: Path) -> None:
    rows, columns = 24576, 2048  # 96 MiB
    rng = np.random.default_rng(0)
    part = (rng.standard_normal((1024, columns)) * 0.02).astype(np.float16)
    save_file({"a.weight": torch.from_numpy(np.tile(part, (rows // 1024, 1)))}, tmp_path / "model.safetensors")
    code = (
        "import resource, sys, compcomp as cc\n"
        "from compcomp.inspecting.inspect import inspect\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = inspect(sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.layers[0].nbytes)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    used, largest = map(int, run.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert used * unit < 3 * largest

"""Each format's weights are read as its published layout says, from files that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.formats.checkpoint import opened
from compcomp.formats.numbers import E2M1, NF4, decoded
from compcomp.formats.stored import Layer
from tests.formats import files
from tests.formats.files import NAME

RNG = np.random.default_rng(0)


def only(path: Path) -> Layer:
    layers = opened(path).layers
    assert len(layers) == 1
    return layers[0]


def weight(layer: Layer, step: int = 5) -> np.ndarray:
    """Return all of it, read in blocks of a few rows."""
    assert layer.read is not None
    rows = range(0, layer.shape[0], step)
    return np.concatenate([layer.read(row, min(row + step, layer.shape[0])).values for row in rows])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors(tmp_path: Path, bits: int, asymmetric: bool) -> None:
    half = 1 << (bits - 1)
    codes = RNG.integers(-half, half, (12, 96))
    zeros = RNG.integers(-half, half, (12, 3)) if asymmetric else np.zeros((12, 3), int)
    scales = RNG.random((12, 3)).astype(np.float32)
    tensors = files.compressed_tensors(codes, scales, bits, zeros if asymmetric else None)
    layer = only(files.write(tmp_path, tensors))
    assert (layer.shape, layer.grid.bits, layer.grid.group) == ((12, 96), bits, 32)
    assert layer.grid.kind == ("zero point" if asymmetric else "integers")
    expected = (codes - np.repeat(zeros, 32, 1)) * np.repeat(scales, 32, 1)
    assert np.array_equal(weight(layer), expected.astype(np.float32))
    assert layer.nbytes == sum(np.asarray(t).nbytes for t in tensors.values())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path: Path, bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (96, 32))
    zeros = RNG.integers(1, 1 << bits, (3, 32))
    scales = RNG.random((3, 32)).astype(np.float16)
    order = RNG.permutation(np.arange(96) // 32)
    config = {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": 32}}
    layer = only(files.write(tmp_path, files.gptq(codes, scales, zeros, order, bits), config))
    expected = ((codes - zeros[order]) * scales[order].astype(np.float32)).T
    assert (layer.format, layer.shape, layer.grid.bits, layer.grid.group) == ("GPTQ", (32, 96), bits, 0)
    assert np.array_equal(weight(layer), expected.astype(np.float32))
    assert (layer.claim.bits, layer.claim.group) == (bits, 32)


def test_gptq_in_the_order_of_its_columns_has_groups(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (64, 16)), np.full((2, 16), 8)
    tensors = files.gptq(codes, np.ones((2, 16)), zeros, np.arange(64) // 32, 4)
    layer = only(files.write(tmp_path, tensors))
    assert (layer.grid.kind, layer.grid.group) == ("integers", 32)


def test_awq(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (64, 24)), RNG.integers(0, 16, (2, 24))
    scales = RNG.random((2, 24)).astype(np.float16)
    layer = only(files.write(tmp_path, files.awq(codes, scales, zeros)))
    expected = ((codes - np.repeat(zeros, 32, 0)) * np.repeat(scales, 32, 0).astype(np.float32)).T
    assert (layer.format, layer.shape, layer.grid.group) == ("AWQ", (24, 64), 32)
    assert np.array_equal(weight(layer), expected.astype(np.float32))


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_four_bits(tmp_path: Path, nested: bool) -> None:
    places = RNG.integers(0, 16, (6, 64))
    codes = np.array(NF4, np.float32)
    steps = RNG.random(12).astype(np.float32)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 32, "dtype": "float16", "shape": [6, 64]}
    tensors = {
        f"{NAME}.weight": ((places.ravel()[::2] << 4) | places.ravel()[1::2]).astype(np.uint8)[:, None],
        f"{NAME}.weight.quant_map": codes,
        f"{NAME}.weight.absmax": steps,
    }
    if nested:
        table, outer = RNG.standard_normal(256).astype(np.float32), RNG.random(2).astype(np.float32)
        at = RNG.integers(0, 256, 12).astype(np.uint8)
        state |= {"nested_blocksize": 8, "nested_offset": 0.25}
        tensors |= {
            f"{NAME}.weight.absmax": at,
            f"{NAME}.weight.nested_absmax": outer,
            f"{NAME}.weight.nested_quant_map": table,
        }
        steps = table[at] * np.repeat(outer, 8)[:12] + 0.25
    tensors[f"{NAME}.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    layer = only(files.write(tmp_path, tensors))
    assert (layer.format, layer.shape, layer.grid.kind, layer.grid.group) == ("bitsandbytes NF4", (6, 64), "NF4", 32)
    expected = codes[places] * np.repeat(steps, 32).reshape(6, 64)
    assert np.allclose(weight(layer), expected, rtol=1e-6)


def test_bitsandbytes_itself_writes_what_is_read(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    given = torch.randn(8, 128, generator=torch.Generator().manual_seed(0), device="cpu")
    codes, state = functional.quantize_4bit(given, blocksize=64, quant_type="nf4", compress_statistics=True)
    tensors = {f"{NAME}.weight": codes}
    tensors |= {f"{NAME}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    expected = functional.dequantize_4bit(codes, state)
    assert np.allclose(weight(only(files.write(tmp_path, tensors))), expected.numpy(), atol=1e-6)


def test_bitsandbytes_eight_bits(tmp_path: Path) -> None:
    levels = RNG.integers(-127, 128, (6, 32)).astype(np.int8)
    scales = RNG.random(6).astype(np.float32)
    layer = only(files.write(tmp_path, {f"{NAME}.weight": levels, f"{NAME}.SCB": scales}))
    assert np.allclose(weight(layer), levels * scales[:, None] / 127, rtol=1e-6)


def test_fp8_and_fp4_of_compressed_tensors(tmp_path: Path) -> None:
    given = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), device="cpu")
    scale = torch.tensor([[0.5], [1.0], [2.0], [0.25]], device="cpu")
    eight = given.to(torch.float8_e4m3fn)
    layer = only(files.write(tmp_path / "8", {f"{NAME}.weight": eight, f"{NAME}.weight_scale": scale}))
    assert np.array_equal(weight(layer), (eight.float() * scale).numpy())
    octets = torch.tensor([[126], [127], [128], [125]], device="cpu").to(torch.uint8)  # MXFP8
    layer = only(files.write(tmp_path / "8 mx", {f"{NAME}.weight": eight, f"{NAME}.weight_scale": octets}))
    assert layer.format == "compressed-tensors mxfp8-quantized"
    assert np.array_equal(weight(layer), (eight.float() * scale).numpy())
    places = RNG.integers(0, 16, (4, 32))
    values = np.array([*E2M1, *(-c for c in E2M1)], np.float32)[places]
    four = {
        f"{NAME}.weight_packed": (places[:, ::2] | places[:, 1::2] << 4).astype(np.uint8),
        f"{NAME}.weight_scale": torch.ones(4, 2, device="cpu").mul(1.5).to(torch.float8_e4m3fn),
        f"{NAME}.weight_global_scale": np.array([3.0], np.float32),
    }
    layer = only(files.write(tmp_path / "4", four))
    assert (layer.grid.kind, layer.grid.group) == ("FP4", 16)
    assert np.array_equal(weight(layer), values * np.float32(0.5))


def test_every_float_dtype_is_decoded_as_torch_does() -> None:
    octets = torch.arange(256, device="cpu").to(torch.uint8)
    for name, kind in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        expected = octets.view(kind).float().numpy()
        assert np.array_equal(decoded(bytes(range(256)), name), expected, equal_nan=True)
    packs = torch.arange(65536, device="cpu").to(torch.uint16)
    for name, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = packs.view(kind).float().numpy()
        assert np.array_equal(decoded(packs.numpy().tobytes(), name), expected, equal_nan=True)


BLOCKS = 6


def of_gguf(tmp_path: Path, kind: int, raw: bytes, columns: int = 64) -> Layer:
    return only(files.gguf(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": ((3, columns), kind, raw)}))


def test_gguf_blocks(tmp_path: Path) -> None:
    step = RNG.standard_normal(BLOCKS).astype(np.float16)
    least = RNG.standard_normal(BLOCKS).astype(np.float16)
    codes = RNG.integers(0, 16, (BLOCKS, 32))
    halves = (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)
    wide = step.astype(np.float32)[:, None]
    q4_0 = b"".join(step[b].tobytes() + halves[b].tobytes() for b in range(BLOCKS))
    assert np.array_equal(weight(of_gguf(tmp_path, 2, q4_0), 2), (wide * (codes - 8)).reshape(3, 64).astype("f4"))
    q4_1 = b"".join(step[b].tobytes() + least[b].tobytes() + halves[b].tobytes() for b in range(BLOCKS))
    expected = wide * codes.astype("f4") + least.astype("f4")[:, None]
    assert np.array_equal(weight(of_gguf(tmp_path, 3, q4_1)), expected.reshape(3, 64))
    whole = RNG.integers(-127, 128, (BLOCKS, 32)).astype(np.int8)
    q8_0 = b"".join(step[b].tobytes() + whole[b].tobytes() for b in range(BLOCKS))
    assert np.array_equal(weight(of_gguf(tmp_path, 8, q8_0)), (wide * whole).reshape(3, 64))
    exponents = RNG.integers(120, 130, BLOCKS).astype(np.uint8)
    values = np.array([*E2M1, *(-c for c in E2M1)], np.float32)[codes]
    mxfp4 = b"".join(exponents[b].tobytes() + halves[b].tobytes() for b in range(BLOCKS))
    expected = np.ldexp(values, exponents[:, None].astype(int) - 127)
    assert np.array_equal(weight(of_gguf(tmp_path, 39, mxfp4)), expected.reshape(3, 64))
    floats = RNG.standard_normal((3, 64)).astype(np.float16)
    assert np.array_equal(weight(of_gguf(tmp_path, 1, floats.tobytes())), floats.astype("f4"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_gguf_as_its_own_package_reads_it(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    raw = gguf.quants.quantize(RNG.standard_normal((3, 64)).astype(np.float32), kind)
    layer = of_gguf(tmp_path, int(kind), raw.tobytes())
    assert np.array_equal(weight(layer), gguf.quants.dequantize(raw, kind))


def test_gguf_superblocks_are_counted_or_read_by_its_package(tmp_path: Path) -> None:
    layer = of_gguf(tmp_path, 12, bytes(3 * 144), 256)
    assert (layer.nbytes, layer.grid.bits, layer.grid.group) == (432, 4, 32)
    try:
        import gguf  # noqa: F401
    except ImportError:
        assert layer.read is None
        assert "pip install gguf" in opened(tmp_path / "a.gguf").problems[0]
    else:
        assert not weight(layer).any()


def test_transposed_layers_are_turned(tmp_path: Path) -> None:
    given = RNG.standard_normal((8, 12)).astype(np.float32)
    files.write(tmp_path, {"h.0.attn.c_attn.weight": given}, {"model_type": "gpt2"})
    layer = only(tmp_path)
    assert layer.shape == (12, 8)
    assert np.array_equal(weight(layer), given.T)


def test_adapters(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    a, b = RNG.standard_normal((3, 16)).astype("f4"), RNG.standard_normal((8, 3)).astype("f4")
    before = "base_model.model.model.layers.0.q_proj"
    save_file({f"{before}.lora_A.weight": a, f"{before}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    layer = only(tmp_path)
    assert (layer.name, layer.branch_rank, layer.claim.rank) == ("model.layers.0.q_proj", 3, 3)
    assert np.allclose(weight(layer), 2 * b @ a, atol=1e-5)
    for settings, scale, claimed in (
        ({"alpha_pattern": {"layers.0.q_proj": 12, "q_proj": 1}, "rank_pattern": {"q_proj": 4}}, 4, 4),
        ({"alpha_pattern": {r"^model\.layers\.0\.q_proj": 3}, "rank_pattern": {"^q_proj": 9}}, 1, 3),
        ({"use_rslora": True}, 6 / 3**0.5, 3),
    ):
        settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, **settings}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        layer = only(tmp_path)
        assert layer.claim.rank == claimed
        assert np.allclose(weight(layer), scale * b @ a, atol=1e-5)

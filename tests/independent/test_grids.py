"""Grids against other implementations: bitsandbytes, torchao, compressed-tensors, torch.

Known differences, each with its reason:

- bitsandbytes multiplies by the float32 reciprocal of the largest magnitude and sends midpoints to the smaller value,
  with midpoints in float32; a weight within a few units in the last place of a midpoint may go to the other neighbour.
- Its "fp4" is no E2M1 (its values are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1), so FP4 is compared with torchao instead.
- Its table of 8-bit dynamic values is in float32, and a scale there is a float32 sum; ours are exact. It does not
  always find the nearest dynamic value: where scales differ, ours lies no farther from the exact one. Scales below
  zero, which it keeps, become 0 here.
- compressed-tensors takes max|w| / 7.5 as the scale of 4 bits (half of the 15 steps between -8 and 7), and so on; it is
  given our scale, max|w| / 7. Its ratio w / s is rounded to the weight's dtype before it is rounded to a whole number.
- torchao cuts off the exponents of scales at 2^-127 and 2^127; the blocks compared here lie inside.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from compcomp.language.technique import Technique
from compcomp.layers import codebooks
from compcomp.layers.state import LayerState
from compcomp.techniques import FP8, MX, NF4, AbsMax, MinMax

SHAPES = [(4, 256), (16, 128), (3, 64)]


def weights(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random weights of unlike sizes, with a row of zeros where there are many."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator) * torch.logspace(-3, 2, shape[0])[:, None]
    if len(found) > 4:
        found[1] = 0
    return found.to(dtype)


def ours(technique: Technique, weight: torch.Tensor) -> LayerState:
    return technique.kernel()(technique, LayerState.dense(weight))


# ------------------------------------------------------------------------------------------------ bitsandbytes


def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes.functional")


def test_the_table_of_normal_float() -> None:
    table = bitsandbytes().get_4bit_type("nf4", device="cpu")
    assert tuple(Fraction(x) for x in table.tolist()) == codebooks.NF4


def test_the_table_of_dynamic_values() -> None:
    table = sorted(bitsandbytes().create_dynamic_map().tolist())
    assert table == pytest.approx([float(c) for c in codebooks.DYNAMIC8], rel=3e-7)


def away_from_midpoints(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Weights that are not within 1e-6 of the largest magnitude of a midpoint of the table."""
    table = torch.tensor([float(c) for c in codebooks.NF4], dtype=torch.float64)
    rows = weight.double().reshape(-1, group)
    ratio = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    near = (ratio[..., None] - (table[1:] + table[:-1]) / 2).abs().amin(dim=2) < 1e-6
    return ~near.reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_normal_float_bit_for_bit(shape: tuple[int, int], seed: int) -> None:
    functional, weight = bitsandbytes(), weights(shape, seed)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    clear = away_from_midpoints(weight, 64)
    assert clear.double().mean() > 0.999
    assert torch.equal(ours(NF4(64), weight).weight[clear], theirs[clear])


@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("seed", range(3))
def test_rounded_scales_of_normal_float(rows: int, seed: int) -> None:
    """40 x 512 has 320 scales, more than one run of 256."""
    functional = bitsandbytes()
    weight = torch.randn((rows, 512), generator=torch.Generator().manual_seed(seed))
    packed = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    after = ours(NF4(64, scales="double"), weight)
    state = packed[1]
    scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    mine = after.format.grid.step.reshape(-1, 64)[:, 0]  # type: ignore[union-attr]
    same = torch.isclose(mine, scales, rtol=1e-5)
    assert same.double().mean() > 0.9
    largest = weight.reshape(-1, 64).abs().amax(dim=1)
    assert bool(((mine - largest).abs() <= (scales - largest).abs() + 1e-6)[~same].all())
    clear = away_from_midpoints(weight, 64) & same.repeat_interleave(64).reshape(weight.shape)
    torch.testing.assert_close(after.weight[clear], functional.dequantize_4bit(*packed)[clear], rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------ torchao, torch

MX_FORMATS = {
    "mxfp4": lambda: torch.float4_e2m1fn_x2,
    "mxfp8_e4m3": lambda: torch.float8_e4m3fn,
    "mxfp8_e5m2": lambda: torch.float8_e5m2,
}


@pytest.mark.parametrize("format", MX_FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_microscaling_bit_for_bit(format: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    tensors = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    for seed in range(3):
        weight = weights(shape, seed, dtype)
        mode = tensors.ScaleCalculationMode.FLOOR
        theirs = tensors.MXTensor.to_mx(weight, MX_FORMATS[format](), 32, mode).dequantize(dtype)
        assert torch.equal(ours(MX(format, 32), weight).weight, theirs)


@pytest.mark.parametrize(("format", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("seed", range(3))
def test_eight_bit_floats_as_torch_casts_them(format: str, dtype: torch.dtype, per: str, seed: int) -> None:
    """In float64, where w / s is next to exact, and rounded once: torch casts from float32 and would round twice.

    A scale that is a power of two keeps all ratios exact.
    """
    weight = weights((8, 64), seed)
    top = torch.finfo(dtype).max
    pinned = weight.clamp(-3.5, 3.5) if format == "e4m3" else weight.clamp(-7, 7)
    pinned[:, 0] = 3.5 if format == "e4m3" else 7.0  # the scale is 2^-7, or 2^-13
    after = ours(FP8(format, per), pinned)
    scale = pinned[0, 0] / top
    assert torch.equal(after.weight, (pinned / scale).to(dtype).float() * scale)


# ------------------------------------------------------------------------------------------------ compressed-tensors


def fake_quantized(weight: torch.Tensor, scale: torch.Tensor, **given: Any) -> torch.Tensor:
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    args = quantization.QuantizationArgs(**{"symmetric": True, **given})
    found: torch.Tensor = forward.fake_quantize(weight, scale, torch.zeros_like(scale), args)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 32])
def test_whole_levels(shape: tuple[int, int], bits: int, group: int | None) -> None:
    for seed in range(3):
        weight = weights(shape, seed, torch.float64)
        weight[weight == 0] = 1e-3  # they divide by a tiny scale where all is 0
        after = ours(AbsMax(bits, group), weight)
        step = after.format.grid.step  # type: ignore[union-attr]
        scale = step[:1, :1] if group is None else step[:, ::group]
        kind = {"strategy": "tensor"} if group is None else {"strategy": "group", "group_size": group}
        theirs = fake_quantized(weight, scale.contiguous(), num_bits=bits, type="int", **kind)
        torch.testing.assert_close(after.weight, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_eight_bit_floats(shape: tuple[int, int], per: str) -> None:
    """They cast the float32 ratio w / s; where that is a midpoint by rounding, a neighbour is as near."""
    for seed in range(3):
        weight = weights(shape, seed)
        weight[weight == 0] = 1e-3
        after = ours(FP8("e4m3", "tensor" if per == "tensor" else "row"), weight)
        step = after.format.grid.step  # type: ignore[union-attr]
        scale = step[:1, :1] if per == "tensor" else step[:, :1]
        theirs = fake_quantized(weight, scale.contiguous(), num_bits=8, type="float", strategy=per)
        same = after.weight == theirs
        assert same.double().mean() > 0.999
        ratio, off = (weight.double() / step.double())[~same], (after.weight - theirs)[~same].double()
        assert bool(
            ((after.weight[~same] + theirs[~same]).double() / step[~same].double() / 2 - ratio)
            .abs()
            .le(1e-5 * ratio.abs())
            .all()
        )
        assert bool((off != 0).all())


# ------------------------------------------------------------------------------------------------ torch


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["symmetric", "exact"])
def test_torchs_fake_quantization(bits: int, zero: str) -> None:
    """float32; torch rounds w times the reciprocal of the scale, which may fall on the other side of a midpoint."""
    for seed in range(3):
        weight = torch.randn((8, 64), generator=torch.Generator().manual_seed(seed))
        after = ours(AbsMax(bits) if zero == "symmetric" else MinMax(bits), weight)
        grid = after.format.grid
        assert grid is not None
        step = float(grid.step[0, 0])
        levels = 2 ** (bits - 1) - 1
        low, high = (-levels, levels) if grid.offset is None else (0, 2**bits - 1)
        point = 0 if grid.offset is None else round(-float(grid.offset[0, 0]) / step)
        theirs = torch.fake_quantize_per_tensor_affine(weight, step, point, low, high)
        apart = (after.weight - theirs).abs() > 1e-6 * weight.abs().max()
        assert apart.double().mean() < 0.005
        ratio = weight.double() / step
        assert bool(((ratio - ratio.floor()) - 0.5).abs()[apart].le(1e-5).all())

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.language.text import parse_sequence
from compcomp.layers.state import Format, Grid, LayerState
from compcomp.models.components import pack, unpack
from compcomp.models.measure import effective_weight
from compcomp.techniques import AbsMax
from tests.models.fakes import seeded

WEIGHT = torch.randn(8, 16, generator=seeded())
assert AbsMax  # importing the registry makes the techniques known to parse_sequence


@pytest.mark.parametrize(
    ("sequence", "parts"),
    [
        ("identity", {"values": (8, 16)}),
        ("Magnitude(sparsity=1/2)", {"values": (64,), "mask": (8, 16)}),
        ("AbsMax(bits=4)", {"levels": (8, 16), "scales": (1,)}),
        ("AbsMax(bits=4, group=4)", {"levels": (8, 16), "scales": (32,)}),
        ("AbsMax(bits=8, group=16)", {"levels": (8, 16), "scales": (8,)}),
        ("AbsMax(bits=12, group=8)", {"levels": (8, 16), "scales": (16,)}),
        ("AbsMax(bits=16)", {"levels": (8, 16), "scales": (1,)}),
        (
            "Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=3, group=8) >> TruncatedSVD(rank=2, residual=True)",
            {"levels": (8, 16), "scales": (16,), "mask": (8, 16), "left": (8, 2), "right": (2, 16)},
        ),
        ("AbsMax(bits=4, group=4) >> Magnitude(sparsity=1/2)", {"levels": (8, 16), "scales": (32,), "mask": (8, 16)}),
        ("NF4(group=4)", {"levels": (8, 16), "scales": (32,), "codes": (16,)}),
        ("NF4(group=4, scales='double')", {"levels": (8, 16), "scales": (32,), "codes": (16,)}),
        ("FP8()", {"levels": (8, 16), "scales": (1,), "codes": (253,)}),
        (
            "MX(group=8) >> Magnitude(sparsity=1/2)",
            {"levels": (8, 16), "scales": (16,), "codes": (15,), "mask": (8, 16)},
        ),
        ("MinMax(bits=4)", {"levels": (8, 16), "scales": (1,), "offsets": (1,)}),
        ("MinMax(bits=8, group=4)", {"levels": (8, 16), "scales": (32,), "offsets": (32,)}),
        ("MinMax(bits=16, group=8, zero='none')", {"levels": (8, 16), "scales": (16,), "offsets": (16,)}),
        (
            "Magnitude(sparsity=1/2) >> MinMax(bits=3, group=8)",
            {"levels": (8, 16), "scales": (16,), "offsets": (16,), "mask": (8, 16)},
        ),
        (
            "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none')",
            {"levels": (8, 16), "scales": (1,), "offsets": (1,)},
        ),
        (
            "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> ApplyMask()",
            {"levels": (8, 16), "scales": (1,), "offsets": (1,), "mask": (8, 16)},
        ),
        ("TruncatedSVD(rank=2)", {"weight_left": (8, 2), "weight_right": (2, 16)}),
        ("TruncatedSVD(rank=7)", {"values": (8, 16)}),
        (
            "LPLR(rank=2, bits=4)",
            {
                **{"weight_left": (8, 0), "weight_right": (0, 16), "left_levels": (8, 2), "left_scales": (1,)},
                **{"right_levels": (2, 16), "right_scales": (1,)},
            },
        ),
        *(
            (
                f"LPLR(rank=2, bits=4) >> {step}",
                {
                    **{"levels": (8, 16), "scales": (16,), **own, "left_levels": (8, 2), "left_scales": (1,)},
                    **{"right_levels": (2, 16), "right_scales": (1,)},
                },
            )
            for step, own in (
                ("AbsMax(bits=3, group=8)", {}),
                ("MinMax(bits=3, group=8)", {"offsets": (16,)}),
                ("NF4(group=8)", {"codes": (16,)}),
            )
        ),
    ],
)
def test_parts_add_up_to_the_effective_weight(sequence: str, parts: dict[str, Any]) -> None:
    state = parse_sequence(sequence).kernel(LayerState.dense(WEIGHT))
    packed = pack(state, torch.float32)
    assert {name: tuple(part.shape) for name, part in packed.items()} == parts
    for order in (packed, dict(sorted(packed.items())), dict(sorted(packed.items(), reverse=True))):
        torch.testing.assert_close(unpack(order), effective_weight(state).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bits", "kind"), [(2, torch.int8), (8, torch.int8), (9, torch.int16), (16, torch.int16)])
def test_levels_are_whole_numbers_as_small_as_they_can_be(bits: int, kind: torch.dtype) -> None:
    state = AbsMax(bits=bits).kernel()(AbsMax(bits=bits), LayerState.dense(WEIGHT))
    levels = pack(state, torch.float32)["levels"]
    assert levels.dtype == kind and int(levels.abs().max()) == 2 ** (bits - 1) - 1


def test_a_group_of_zeros_stays_zero() -> None:
    weight = WEIGHT.clone()
    weight[0] = 0
    state = AbsMax(bits=4, group=16).kernel()(AbsMax(bits=4, group=16), LayerState.dense(weight))
    assert not unpack(pack(state, torch.float32))[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_on_an_asymmetric_grid_is_stored_exactly(dtype: torch.dtype) -> None:
    state = parse_sequence("MinMax(bits=4, group=8)").kernel(LayerState.dense(WEIGHT.to(dtype)))
    packed = pack(state, dtype)
    assert packed["levels"].dtype == torch.uint8
    assert (state.weight == 0).any()
    assert torch.equal(unpack(packed) == 0, state.weight == 0)


def test_a_weight_off_its_grid_is_stored_as_it_is() -> None:
    form = Format(grid=Grid(step=torch.full((8, 16), 0.1), levels=7, scales=1))
    state = replace(LayerState.dense(WEIGHT), format=form)
    assert torch.equal(pack(state, torch.float32)["values"], WEIGHT)


def test_scales_that_are_no_runs_are_stored_for_every_weight() -> None:
    step = torch.tensor([0.5, 0.25]).repeat(8, 8)  # two groups, interleaved
    levels = torch.randint(-7, 8, (8, 16), generator=seeded())
    form = Format(grid=Grid(step=step, levels=7, scales=2))
    state = replace(LayerState.dense(levels * step), format=form)
    packed = pack(state, torch.float32)
    assert torch.equal(packed["levels"], levels.to(torch.int8)) and packed["scales"].shape == (128,)
    assert torch.equal(unpack(packed), (levels * step).double())


def test_values_have_the_models_dtype() -> None:
    assert pack(LayerState.dense(WEIGHT), torch.bfloat16)["values"].dtype == torch.bfloat16

"""What is said to be zero is exactly zero after a kernel, in every dtype, and a kernel that leaves dust is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from compcomp.encodings.truncated_svd import TruncatedSVD as SVD
from compcomp.kernels.truncated_svd import closest
from compcomp.language.technique import Kernel, Technique, run_kernel
from compcomp.language.text import parse_sequence
from compcomp.layers.state import Factors, LayerState
from compcomp.techniques import ApplyMask, PruneColumns, PruneRows, TruncatedSVD
from compcomp.testing import check_encoding

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOW_RANK = [
    *("TruncatedSVD(rank=2)", "TruncatedSVD(rank=2, metric='output')", "TruncatedSVD(rank=99)"),
    *("LoftQ(rank=2, bits=3)", "LPLR(rank=2, bits=4)", "LoSparse(rank=2, sparsity=1/4)", "SmoothQuant()"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", LOW_RANK)
@pytest.mark.parametrize("first", [PruneRows("1/2"), PruneColumns("1/2")], ids=str)
def test_removed_rows_and_columns_stay_zero(first: Technique, text: str, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(7)
    weight = torch.randn(24, 32, generator=source).to(dtype)
    inputs = torch.randn(32, 70, generator=source).to(torch.promote_types(dtype, torch.float32))
    start = run_kernel(first, LayerState.dense(weight, inputs))
    end = run_kernel(parse_sequence(text).techniques[0], start)
    cut = start.format.cut
    assert cut is not None and int((~cut.rows).sum() + (~cut.columns).sum()) in (12, 16)
    factors = end.format.factors
    parts = [end.weight.double(), *([] if factors is None else [factors.left.double() @ factors.right.double()])]
    for part in parts:
        assert not bool(part[~cut.rows].any() or part[:, ~cut.columns].any())
        assert bool(torch.isfinite(part).all())
    assert any(bool(part[cut.rows][:, cut.columns].any()) for part in parts)


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_the_closest_matrix_has_the_zeros_of_the_matrix(rank: int, with_inputs: bool) -> None:
    source = torch.Generator().manual_seed(3)
    matrix = torch.randn(30, 40, generator=source, dtype=torch.float64)
    matrix[::3], matrix[:, 1::4] = 0, 0
    inputs = torch.randn(40, 60, generator=source, dtype=torch.float64)
    left, right = closest(matrix, rank, inputs @ inputs.T if with_inputs else None, 1e-12)
    product = left @ right
    assert not bool(product[::3].any() or product[:, 1::4].any())
    assert left.shape == (30, rank) and right.shape == (rank, 40)
    if rank == 40:
        torch.testing.assert_close(product, matrix)


# A kernel of one's own that leaves dust


@dataclass(frozen=True)
class Dusty(Technique):
    """Another technique, with a kernel that changes the result."""

    inner: Technique
    change: Callable[[LayerState, LayerState], LayerState]

    def promises(self) -> Any:
        return self.inner.promises()

    def steps(self) -> Any:
        return self.inner.steps()

    @property
    def needs_inputs(self) -> bool:
        return self.inner.needs_inputs

    def check(self, shape: tuple[int, ...]) -> None:
        self.inner.check(shape)

    def encode(self, layer: LayerState) -> LayerState:
        return self.inner.encode(layer)

    def kernel(self) -> Kernel:
        return lambda technique, layer: self.change(layer, self.inner.kernel()(self.inner, layer))


def dust_everywhere(before: LayerState, after: LayerState) -> LayerState:
    if not bool(after.weight.any()):  # dust in a layer of zeros is no rounding error
        return after
    return replace(after, weight=torch.where(after.weight == 0, 1e-30, after.weight.double()).to(after.weight.dtype))


def dust_in_factors(before: LayerState, after: LayerState) -> LayerState:
    factors = after.format.factors
    if factors is None or not bool((factors.left @ factors.right).any()):
        return after
    left = torch.where(factors.left == 0, 1e-30, factors.left.double()).to(factors.left.dtype)
    return replace(after, format=replace(after.format, factors=Factors(left, factors.right)))


def dust_in_bfloat16(before: LayerState, after: LayerState) -> LayerState:
    return dust_everywhere(before, after) if after.weight.dtype is torch.bfloat16 else after


ROWS, COLUMNS = PruneRows("1/2"), PruneColumns("1/2")


@pytest.mark.parametrize(
    ("inner", "change"),
    [
        (ApplyMask(), dust_everywhere),
        (ApplyMask(), dust_in_bfloat16),
        (ROWS, dust_everywhere),
        (COLUMNS, dust_everywhere),
        (ROWS, dust_in_factors),
        (SVD(1), dust_everywhere),
        (TruncatedSVD(2, metric="output"), dust_in_bfloat16),
    ],
)
def test_conformance_catches_dust(inner: Technique, change: Callable[[LayerState, LayerState], LayerState]) -> None:
    with pytest.raises(AssertionError, match="not exactly zero after the kernel in torch"):
        check_encoding(Dusty(inner, change), max_examples=200, minimise=False)
    check_encoding(Dusty(inner, lambda before, after: after), max_examples=20, minimise=False)

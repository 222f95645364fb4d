from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compcomp.kernels import truncated_svd
from compcomp.kernels.truncated_svd import kernel
from compcomp.layers.state import Factors, Format, LayerState
from compcomp.techniques import AbsMax, Magnitude, TruncatedSVD
from tests.helpers import DEVICES, HALVES, loss, refused, tensors
from tests.other_device import other_device


def leading(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The closest matrix of a rank, from the eigenvectors of its Gram matrix."""
    vectors = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:]
    return matrix @ vectors @ vectors.T


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 8)])
def test_against_an_eigendecomposition(device: str, shape: tuple[int, int]) -> None:
    layer = tensors(shape, device, torch.float64)
    after = kernel(TruncatedSVD(rank=3), layer)
    torch.testing.assert_close(after.weight, leading(layer.weight, min(3, *shape)), rtol=1e-9, atol=1e-9)
    assert after.format == Format(rank=3)


@pytest.mark.parametrize("device", DEVICES)
def test_the_residual(device: str) -> None:
    start = AbsMax(bits=3).kernel()(AbsMax(bits=3), tensors((12, 20), device, torch.float64))
    after = kernel(TruncatedSVD(rank=4, residual=True), start)
    assert torch.equal(after.weight, start.weight) and after.format.grid is start.format.grid
    expected = leading(start.reference - start.weight, 4)
    torch.testing.assert_close(after.effective() - after.weight, expected, rtol=1e-9, atol=1e-9)
    again = kernel(TruncatedSVD(rank=4, residual=True), after)
    assert again.format.factors.rank == 8
    assert torch.equal(again.format.factors.left[:, :4], after.format.factors.left)
    torch.testing.assert_close(
        again.effective() - again.weight, leading(start.reference - start.weight, 8), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("rank", [6, 9])
def test_a_rank_above_the_sides_is_exact_and_padded(device: str, shape: tuple[int, int], rank: int) -> None:
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), tensors(shape, device))
    assert torch.equal(kernel(TruncatedSVD(rank=rank), start).weight, start.weight)
    after = kernel(TruncatedSVD(rank=rank, residual=True), start)
    assert torch.equal(after.effective(), start.reference)
    assert after.format.factors.left.shape == (shape[0], rank)
    assert after.format.factors.right.shape == (rank, shape[1])


def test_replacing_takes_the_factors_in() -> None:
    weight = torch.diag(torch.tensor([2.0, 0.0, 0.0]))
    factors = Factors(torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    start = replace(LayerState.dense(weight), format=Format(factors=factors))
    after = kernel(TruncatedSVD(rank=1), start)
    torch.testing.assert_close(after.weight, weight)
    assert after.format == Format(rank=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(device: str, dtype: Any) -> None:
    layer = tensors((12, 20), device, dtype)
    after = kernel(TruncatedSVD(rank=3), layer)
    assert after.weight.dtype is dtype
    expected = leading(layer.weight.double(), 3)
    torch.testing.assert_close(after.weight.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    start = Magnitude("1/2").kernel()(Magnitude("1/2"), layer)
    assert kernel(TruncatedSVD(rank=3, residual=True), start).format.factors.left.dtype is dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 8)])
@pytest.mark.parametrize("residual", [False, True])
def test_outputs_against_the_inverse_of_a_cholesky_factor(device: str, shape: tuple[int, int], residual: bool) -> None:
    """SVD_r(M S) S^-1 with S the Cholesky factor of the Gram matrix, as published."""
    start = tensors(shape, device, torch.float64)
    start = replace(start, gram=start.gram + torch.eye(shape[1], dtype=torch.float64, device=device) / 10)
    if residual:
        start = AbsMax(bits=3).kernel()(AbsMax(bits=3), start)
    matrix = start.reference - start.weight if residual else start.weight
    scale = torch.linalg.cholesky(start.gram)
    expected = leading(matrix @ scale, min(3, *shape)) @ torch.linalg.inv(scale)
    after = kernel(TruncatedSVD(rank=3, residual=residual, metric="output"), start)
    found = after.effective() - after.weight if residual else after.weight
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert loss(after) <= loss(kernel(TruncatedSVD(rank=3, residual=residual), start)) * (1 + 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_of_a_singular_gram_matrix(device: str) -> None:
    start = tensors((12, 20), device, torch.float64)
    few = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    start = LayerState.dense(start.weight, few)
    after = kernel(TruncatedSVD(rank=4, metric="output"), start)
    torch.testing.assert_close(after.weight @ few, start.weight @ few, rtol=1e-9, atol=1e-9)
    assert int(torch.linalg.matrix_rank(after.weight)) == 2


def test_what_is_not_finite_is_refused() -> None:
    layer = tensors((4, 6))
    refused(lambda: kernel(TruncatedSVD(rank=1), replace(layer, weight=layer.weight / 0)), "weight with nan")
    broken = replace(layer, reference=layer.weight / 0)
    refused(lambda: kernel(TruncatedSVD(rank=1, residual=True), broken), "reference with nan")
    refused(lambda: kernel(TruncatedSVD(rank=1, metric="output"), replace(layer, gram=None)), "no inputs")


@pytest.mark.parametrize("shape", [(256, 320), (320, 256)])
@pytest.mark.parametrize("decay", [1.0, 0.9, 0.3])
def test_a_few_triples_of_a_large_matrix_are_those_of_the_svd(shape: tuple[int, int], decay: float) -> None:
    """Also where singular values fall so fast that the Gram matrix would lose them."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 256, dtype=torch.float64, generator=generator) for n in shape)
    weight = (left * decay ** torch.arange(256)) @ right.T
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for rank in (1, 8, 64):
        expected = u[:, :rank] * s[:rank] @ vh[:rank]
        found = kernel(TruncatedSVD(rank), LayerState.dense(weight)).weight
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(s[0]))


def spectrum(values: torch.Tensor) -> torch.Tensor:
    """A square matrix of these singular values, descending, and random vectors."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(len(values), len(values), dtype=torch.float64, generator=generator) for _ in "ab")
    return torch.linalg.qr(left).Q * values @ torch.linalg.qr(right).Q.T


GAPS = {
    "a slow decay": 0.99 ** torch.arange(512.0, dtype=torch.float64),
    "a fast one": torch.cat([2.0 - 0.1 * torch.arange(8.0, dtype=torch.float64), torch.full((504,), 0.1).double()]),
    "equal values among those kept": torch.cat([torch.ones(8), torch.linspace(0.9, 0.1, 504)]).double(),
    "equal values after those kept": torch.cat([torch.linspace(2, 1, 8), torch.full((504,), 0.98)]).double(),
}


@pytest.mark.parametrize("kind", GAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_krylov_space_has_the_optimum_to_the_precision_of_the_weight(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncated_svd, "HUGE", 512)
    weight = spectrum(GAPS[kind]).to(dtype)
    precision = torch.finfo(dtype).eps
    found = truncated_svd._krylov(weight.double(), 8, precision)
    assert found is not None
    u, s, vh = torch.linalg.svd(weight.double())
    product = weight.double() @ found @ found.T
    assert torch.linalg.matrix_norm(product - u[:, :8] * s[:8] @ vh[:8], 2) <= 4 * precision * s[0]
    assert torch.equal(kernel(TruncatedSVD(8), LayerState.dense(weight)).weight, product.to(dtype))


@pytest.mark.parametrize("tied", [9, 12, 40, 512])
def test_without_a_gap_the_eigenvalues_decide(tied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of these values are equal, so no span is the leading one."""
    values = torch.linspace(1, 0.5, 512, dtype=torch.float64)
    values[:tied] = 1
    weight = spectrum(values).float()
    monkeypatch.setattr(truncated_svd, "HUGE", 512)
    assert truncated_svd._krylov(spectrum(values), 8, torch.finfo(torch.float32).eps) is None
    after = kernel(TruncatedSVD(8), LayerState.dense(weight)).weight
    lost = (weight.double() - after.double()).square().sum()
    assert lost <= torch.linalg.svdvals(weight.double())[8:].square().sum() * (1 + 1e-6)


def test_a_krylov_space_on_another_device() -> None:
    matrix = spectrum(GAPS["a fast one"])
    expected = truncated_svd._krylov(matrix, 8, 1e-7)
    with other_device() as device:
        found = truncated_svd._krylov(matrix.to(device), 8, 1e-7)
        assert found is not None and expected is not None
        assert torch.equal(found.cpu(), expected)

"""Low-rank and joint techniques against formulations written from the papers with torch.linalg, in float64.

Nothing here is taken from the kernels. Differences, all on purpose:
- [wang2025] writes the data-aware truncation as SVD_r(W S) S^-1; the kernel projects from the left. Equal where the
  Gram matrix is regular, up to the condition of S: tolerance 1e-8 relative.
- [li2023] quantizes with NF4 as well; here the uniform absmax grid, bit for bit in levels.
- [saha2023] dithers, and its sketch is Gaussian in floats; here the same whole-numbered sketch, and half to even.
- [hu2022] trains with an optimiser; here by steepest descent, each step as long as a search along it finds best.
- The joint optimum has no published algorithm: brute force over every mask of rows of eight.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from compcomp.layers.state import Factors, Format, LayerState
from compcomp.techniques import LPLR, DistillFactors, JointPruneQuantize, LoftQ, LoRA, LoSparse, TruncatedSVD

SHAPES = [(6, 10), (10, 6), (16, 16), (5, 24)]
SEEDS = [0, 1, 2]
each_case = pytest.mark.parametrize(("shape", "seed"), [(shape, seed) for shape in SHAPES for seed in SEEDS])


def layer(shape: tuple[int, int], seed: int) -> LayerState:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(shape[1], 3 * shape[1], generator=generator, dtype=torch.float64)
    return LayerState.dense(weight, inputs)


def run(technique: Any, state: LayerState) -> Any:
    return technique.kernel()(technique, state)


def svd(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]


def absmax(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    levels = 2 ** (bits - 1) - 1
    scale = matrix.abs().max() / levels
    return torch.clamp(torch.round(matrix / scale), -levels, levels) * scale


def output_error(state: LayerState, weight: torch.Tensor) -> float:
    x: Any = state.inputs
    return float(((state.reference - weight) @ x).square().sum())


@each_case
@pytest.mark.parametrize("rank", [1, 3])
def test_svd_llm(shape: tuple[int, int], seed: int, rank: int) -> None:
    state = layer(shape, seed)
    w: Any = state.weight
    s = torch.linalg.cholesky(state.gram)
    expected = torch.linalg.solve_triangular(s, svd(w @ s, rank), upper=False, left=False)
    found = run(TruncatedSVD(rank, metric="output"), state).weight
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert output_error(state, found) <= output_error(state, svd(w, rank)) * (1 + 1e-12)
    singular = torch.linalg.svdvals(w @ state.inputs)
    assert output_error(state, found) == pytest.approx(float(singular[rank:].square().sum()), rel=1e-8)


@each_case
def test_lorc_by_outputs(shape: tuple[int, int], seed: int) -> None:
    state = layer(shape, seed)
    rounded = absmax(state.weight, 3)
    after = run(TruncatedSVD(2, residual=True, metric="output"), replace(state, weight=rounded))
    s = torch.linalg.cholesky(state.gram)
    expected = svd((state.weight - rounded) @ s, 2) @ torch.linalg.inv(s)
    torch.testing.assert_close(after.effective() - rounded, expected, rtol=1e-7, atol=1e-7)


@each_case
@pytest.mark.parametrize("rounds", [1, 5])
def test_loftq(shape: tuple[int, int], seed: int, rounds: int) -> None:
    state = layer(shape, seed)
    w: Any = state.weight
    low = torch.zeros_like(w)
    for _ in range(rounds):
        q = absmax(w - low, 4)
        low = svd(w - q, 2)
    after = run(LoftQ(4, 2, rounds), state)
    torch.testing.assert_close(after.weight, q, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.effective(), q + low, rtol=1e-9, atol=1e-9)


@each_case
@pytest.mark.parametrize("bits", [3, 8])
def test_lplr(shape: tuple[int, int], seed: int, bits: int) -> None:
    state = layer(shape, seed)
    w: Any = state.weight
    technique = LPLR(3, bits, right_bits=bits + 1, seed=seed)
    left = absmax(w @ torch.from_numpy(technique.sketched(shape[1])).double(), bits)
    right = absmax(torch.linalg.lstsq(left, w, driver="gelsd").solution, bits + 1)
    after = run(technique, state)
    torch.testing.assert_close(after.effective(), left @ right, rtol=1e-8, atol=1e-8)


@each_case
def test_losparse(shape: tuple[int, int], seed: int) -> None:
    state = layer(shape, seed)
    low = svd(state.weight, 2)
    rest: Any = state.weight - low
    order = rest.norm(dim=1).argsort()
    rest[order[: shape[0] // 2]] = 0
    torch.testing.assert_close(run(LoSparse(2, "1/2"), state).weight, rest, rtol=1e-9, atol=1e-9)


@each_case
def test_distilled_factors(shape: tuple[int, int], seed: int) -> None:
    """Least squares over one factor at a time, from the inputs themselves: each column or row by lstsq."""
    state = layer(shape, seed)
    x: Any = state.inputs
    rounded = absmax(state.weight, 3)
    left, right = torch.linalg.qr(state.weight - rounded)[0][:, :2].clone(), torch.eye(2, shape[1], dtype=torch.float64)
    start = replace(state, weight=rounded, format=Format(factors=Factors(left, right)))
    goal = (state.weight - rounded) @ x
    for _ in range(2):
        left = torch.linalg.lstsq((right @ x).T, goal.T).solution.T
        whole = torch.kron(left, x.T.contiguous())  # vec(L R X) for the rows of R, one after the other
        right = torch.linalg.lstsq(whole, goal.reshape(-1, 1)).solution.reshape(2, -1)
    after = run(DistillFactors(2), start)
    torch.testing.assert_close(after.effective() - rounded, left @ right, rtol=1e-6, atol=1e-6)


@each_case
@pytest.mark.parametrize("masked", [False, True])
def test_lora(shape: tuple[int, int], seed: int, masked: bool) -> None:
    """Gradients by autograd, lengths by a parabola through three points of the loss."""
    state = layer(shape, seed)
    rounded = absmax(state.weight, 3)
    start = replace(state, weight=rounded)
    technique = LoRA(2, 4, seed=seed, merged=True, masked=masked)
    keep = (rounded != 0).double() if masked else torch.ones_like(rounded)
    parts = [torch.zeros(shape[0], 2).double(), torch.from_numpy(technique.first(shape[1])).double() / 1024]

    def loss(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        x: Any = state.inputs
        return ((state.weight - rounded - (b @ a) * keep) @ x).square().sum()

    for step in range(4):
        moved = step % 2
        factor = parts[moved].clone().requires_grad_()
        loss(*[factor if k == moved else parts[k] for k in (0, 1)]).backward()
        down: Any = -factor.grad  # type: ignore[operator]
        values = [float(loss(*[parts[k] + t * down if k == moved else parts[k] for k in (0, 1)])) for t in (0, 1, -1)]
        curve, slope = (values[1] + values[2]) / 2 - values[0], (values[1] - values[2]) / 2
        parts[moved] = parts[moved] - slope / (2 * curve) * down
    expected = rounded + (parts[0] @ parts[1]) * keep
    torch.testing.assert_close(run(technique, start).weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_joint_pruning_and_rounding(seed: int, bits: int) -> None:
    """Every mask of rows of eight with four zeros, every one of three clip ratios."""
    weight: Any = layer((6, 8), seed).weight
    technique = JointPruneQuantize("1/2", bits, pattern="4:8", group=8, ratios="1, 0.9, 0.7")
    after = run(technique, LayerState.dense(weight))
    levels = 2 ** (bits - 1) - 1
    for row, left in zip(weight, after.weight, strict=True):
        best = float("inf")
        for ratio in (1, 0.9, 0.7):
            scale = ratio * row.abs().max() / levels
            error = (row - torch.clamp(torch.round(row / scale), -levels, levels) * scale).square()
            for drop in combinations(range(8), 4):
                gone = list(drop)
                best = min(best, float(error.sum() - error[gone].sum() + row[gone].square().sum()))
        assert float((row - left).square().sum()) == pytest.approx(best, rel=1e-12)
        assert int((left == 0).sum()) >= 4

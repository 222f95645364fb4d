"""Pruning against implementations that share no code with ours.

Where they differ, and why:

- llm-compressor's Wanda computes scores in float32 and as |w| sqrt(mean |x_j|^2); ours compares squares in float64.
  Both name the same weights where scores are not within a few units in the last place of float32: the inputs here keep
  away from that, which is checked. Its N:M takes ``torch.topk``, whose choice among equal scores is not defined; ours
  takes the lowest index, so N:M is compared on data without ties, unstructured (a stable sort) with ties as well.
- torchao's WandaSparsifier (0.18) leaves out the root: its observer gathers |x_j|_2^2, and its score is |w| |x_j|_2^2;
  and it compares over the whole layer, not over each row as published. It is given inputs of which the squared norm is
  |x_j|_2, and without blocks a layer of one row; then it drops what ours drops. Its blocks of 4 keep two.
- torch.ao's WeightNormSparsifier prunes whole 1 x 4 tiles of least norm by default; with ``zeros_per_block=2`` and
  ``sparsity_level=1`` it keeps the two largest magnitudes of each tile, with ties left to ``torch.topk``.
- torch.nn.utils.prune rounds a share to the nearest count; ours takes the whole part. Counts are given here.
- Torch-Pruning's norms of groups sum |w|^p over the rows (columns) of a group and normalise; the order is ours.
- torch.svd_lowrank is a randomised method: with as many columns as the matrix has it is exact up to rounding.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.techniques import RIA, Magnitude, PruneColumns, PruneRows, Taylor, TruncatedSVD, Wanda

SHAPES = [(8, 16), (32, 64), (48, 40)]
SEEDS = range(3)


def drawn(shape: tuple[int, int], seed: int, dtype: Any = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out x in) and inputs (in x tokens) of features of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=dtype)
    scale = torch.rand(shape[1], 1, generator=generator, dtype=dtype) * 3 + 0.1
    return weight, scale * torch.randn(shape[1], 3 * shape[1], generator=generator, dtype=dtype)


def ours(technique: Technique, weight: torch.Tensor, inputs: torch.Tensor | None = None) -> LayerState:
    return technique.kernel()(technique, LayerState.dense(weight, inputs))


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = torch.nn.Parameter(weight.clone())
    return module


def masked_by(module: torch.nn.Module) -> torch.Tensor:
    mask = module.weight_mask
    assert isinstance(mask, torch.Tensor)
    return mask.bool()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", ["1/2", "1/3", "9/10"])
def test_magnitude_is_l1_unstructured(shape: tuple[int, int], seed: int, share: str) -> None:
    weight, _ = drawn(shape, seed)
    module = linear(weight)
    prune.l1_unstructured(module, "weight", amount=int(weight.numel() * Fraction(share)))
    after = ours(Magnitude(Fraction(share)), weight)
    assert torch.equal(after.format.mask, masked_by(module))
    assert torch.equal(after.weight, module.weight)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("score", "norm"), [("l1", 1), ("l2", 2)])
def test_rows_and_columns_are_ln_structured(shape: tuple[int, int], seed: int, score: str, norm: int) -> None:
    weight, _ = drawn(shape, seed, torch.float64)
    for dim, kind in enumerate((PruneRows, PruneColumns)):
        module = linear(weight)
        prune.ln_structured(module, "weight", amount=int(shape[dim] * Fraction(3, 8)), n=norm, dim=dim)
        after = ours(kind("3/8", score=score), weight)
        assert torch.equal(after.format.mask, masked_by(module))
        assert torch.equal(after.weight, module.weight)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (2, 4), (1, 2), (4, 8)])
def test_wanda_is_llm_compressors(shape: tuple[int, int], seed: int, n: int, m: int) -> None:
    wanda = pytest.importorskip("llmcompressor.modifiers.pruning.wanda.wanda_sparsify")
    weight, inputs = drawn(shape, seed)
    module = linear(weight)
    scalars, samples = wanda.make_empty_row_scalars(module), 0
    for tokens in inputs.T.split(shape[1]):  # three batches
        scalars, samples = wanda.accumulate_row_scalars(tokens, module, scalars, samples)
    expected = wanda.sparsify_weight(module, {module: scalars}, 0.5, m - n, m)
    pattern = f"{n}:{m}" if m else "unstructured"
    assert torch.equal(ours(Wanda("1/2", pattern=pattern), weight, inputs).weight, expected)
    size = m or shape[1]
    scores = (weight.double().abs() * inputs.double().norm(dim=1)).reshape(-1, size).sort(dim=1).values
    assert ((scores[:, size // 2] - scores[:, size // 2 - 1]) > 1e-6 * scores[:, size // 2]).all(), "a tie in float32"


def test_ties_go_as_llm_compressors_stable_sort_takes_them() -> None:
    wanda = pytest.importorskip("llmcompressor.modifiers.pruning.wanda.wanda_sparsify")
    weight = torch.randint(-3, 4, (32, 64), generator=torch.Generator().manual_seed(0)).float()
    module = linear(weight)
    expected = wanda.sparsify_weight(module, {module: torch.ones(64)}, 0.5, 0, 0)
    assert torch.equal(ours(Wanda("1/2"), weight, torch.eye(64)).weight, expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.filterwarnings("ignore")
def test_wanda_is_torchaos(seed: int, block: int | None) -> None:
    sparsity = pytest.importorskip("torchao.sparsity")
    weight, inputs = drawn((32 if block else 1, 64), seed)
    model = torch.nn.Sequential(linear(weight))
    sparsifier = sparsity.WandaSparsifier(sparsity_level=0.5, semi_structured_block_size=block)
    sparsifier.prepare(model, config=None)
    model((inputs / inputs.norm(dim=1, keepdim=True).sqrt()).T)
    sparsifier.step()
    sparsifier.squash_mask()
    after = ours(Wanda("1/2", pattern="2:4" if block else "unstructured"), weight, inputs)
    assert torch.equal(after.weight, model[0].weight)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")
def test_two_of_four_is_the_weight_norm_sparsifiers(seed: int) -> None:
    pruning = pytest.importorskip("torch.ao.pruning")
    weight, _ = drawn((32, 64), seed)
    model = torch.nn.Sequential(linear(weight))
    sparsifier = pruning.WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    assert torch.equal(ours(Magnitude("1/2", pattern="2:4"), weight).weight, model[0].weight)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_rows_and_columns_are_torch_prunings(seed: int, power: int) -> None:
    pruning = pytest.importorskip("torch_pruning")
    weight, inputs = drawn((32, 64), seed, torch.float64)
    model = torch.nn.Sequential(linear(weight), torch.nn.Linear(32, 4, dtype=torch.float64))
    graph = pruning.DependencyGraph().build_dependency(model, inputs.T[:2])
    score = "l1" if power == 1 else "l2"
    for prune_it, kind, dim in (
        (pruning.prune_linear_out_channels, PruneRows, 0),
        (pruning.prune_linear_in_channels, PruneColumns, 1),
    ):
        group = graph.get_pruning_group(model[0], prune_it, list(range(weight.shape[dim])))
        alone = pruning.dependency.Group()
        alone._group, alone._DG = group[:1], graph  # the layer's own part
        importance = pruning.importance.MagnitudeImportance(p=power, group_reduction="sum", normalizer=None)
        scores = importance(alone)
        cut = ours(kind("1/2", score=score), weight).format.cut
        assert cut is not None
        gone = ~(cut.rows, cut.columns)[dim]
        assert set(gone.nonzero()[:, 0].tolist()) == set(scores.argsort()[: len(scores) // 2].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_taylor_is_torch_prunings(seed: int) -> None:
    """Its element-wise importance, |w g| of each weight summed over rows, with the gradient that autograd finds."""
    pruning = pytest.importorskip("torch_pruning")
    weight, inputs = drawn((32, 64), seed, torch.float64)
    model = torch.nn.Sequential(linear(weight))
    (model(inputs.T).square().sum() / 2).backward()
    graph = pruning.DependencyGraph().build_dependency(model, inputs.T[:2])
    group = graph.get_pruning_group(model[0], pruning.prune_linear_out_channels, list(range(32)))
    scores = pruning.importance.TaylorImportance(group_reduction="sum", normalizer=None, multivariable=False)(group)
    cut = ours(Taylor("1/2", group="row"), weight, inputs).format.cut
    assert cut is not None
    assert set((~cut.rows).nonzero()[:, 0].tolist()) == set(scores.argsort()[:16].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_ria_without_structure_is_wanda(seed: int) -> None:
    """Where all rows and columns sum to the same, relative importance is magnitude, and power 1 gives Wanda's order."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.zeros(16, 16, dtype=torch.float64)
    for size in torch.rand(16, generator=generator, dtype=torch.float64) + 0.1:  # sums of permutations
        square[torch.arange(16), torch.randperm(16, generator=generator)] += size
    _, inputs = drawn((16, 16), seed, torch.float64)
    one, other = (ours(t, square, inputs) for t in (RIA("1/2", per="row", power=Fraction(1)), Wanda("1/2")))
    assert torch.equal(one.format.mask, other.format.mask)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_truncated_svd_is_linalg_svd_and_svd_lowrank(shape: tuple[int, int], seed: int, rank: int) -> None:
    weight, _ = drawn(shape, seed, torch.float64)
    after = ours(TruncatedSVD(rank), weight).weight
    u, s, vh = torch.linalg.svd(weight)
    assert torch.allclose(after, u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank], atol=1e-12)
    torch.manual_seed(seed)
    u, s, v = torch.svd_lowrank(weight, q=min(shape), niter=2)
    assert torch.allclose(after, u[:, :rank] @ torch.diag(s[:rank]) @ v[:, :rank].T, atol=1e-9)
    half = ours(Magnitude("1/2"), weight)
    factors = TruncatedSVD(rank, residual=True).kernel()(TruncatedSVD(rank, residual=True), half).format.factors
    assert factors is not None
    u, s, vh = torch.linalg.svd(weight - half.weight)
    assert torch.allclose(factors.left @ factors.right, u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank], atol=1e-12)

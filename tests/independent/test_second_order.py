"""GPTQ, SparseGPT, OBS and OBQ against llm-compressor and against the papers' formulas in plain numpy.

llm-compressor: ``gptq_quantize.quantize_weight`` and ``sgpt_sparsify.sparsify_weight``, on one weight and Gram matrix.
Differences, and how they are taken out:

- Both compute in float32; ours in float64. What lies near a midpoint or a threshold may go the other way and change all
  that follows in its row (for SparseGPT's choice over a block, in its neighbours' rows), so rows are compared, and all
  but a few must agree up to float32 rounding.
- GPTQ is given its scales: there an observer sets them, here absmax does. They are handed over as ours. Its groups are
  static: scales never come from updated weights. So only rows and ``static_groups`` are compared.
- Its symmetric grid of b bits has 2^b values, one more on the negative side; ours 2^b - 1. Rows in which an update has
  pushed a weight to that value are left out.
- SparseGPT drops one weight more of each block than int(n * sparsity), and all that tie with it. It is asked for a
  sparsity that makes up for the one; random weights do not tie.
- Its Gram matrix is a mean with a factor of 2. Of every multiple damping and updates are the same, except that the
  diagonal entry of a dead input becomes 1 and counts for the mean: with a dead input the same matrix is handed over,
  without one a multiple of it.
- Its N:M counts how many of M go, ours how many stay.
- ``preserve_sparsity_mask`` leaves weights dropped before without updates from earlier blocks; in our ``mask="kept"``
  the errors of these weights, too, are spread. Not compared.
- On a Gram matrix that is not positive definite both fall back to no updates; ours refuses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, OBQ, OBS, SparseGPT
from tests.helpers import tensors

SHAPES = [(32, 96), (64, 256), (16, 40)]


def alike(ours: torch.Tensor, theirs: torch.Tensor, share: float) -> None:
    """So large a share of the rows agrees up to float32 rounding."""
    rows = (ours.double() - theirs.double()).abs().amax(dim=1) <= 2e-4 * ours.abs().max()
    assert rows.double().mean() >= share, f"{int(rows.sum())} of {len(rows)} rows"


def start(shape: tuple[int, int], seed: int, dead: bool) -> LayerState:
    """A float32 layer, one of whose inputs is always zero if so wished."""
    state = tensors(shape, dtype=torch.float32, seed=seed)
    assert state.gram is not None
    gram = state.gram.clone()
    if dead:
        gram[3], gram[:, 3] = 0, 0
    return replace(state, gram=gram)


@pytest.mark.parametrize(("seed", "dead"), [(0, True), (1, False)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("order", ["left_to_right", "activation"])
@pytest.mark.parametrize("group", [None, 8])
def test_gptq(shape: tuple[int, int], bits: int, seed: int, dead: bool, order: str, group: int | None) -> None:
    module = pytest.importorskip("llmcompressor.modifiers.gptq.gptq_quantize")
    arguments = pytest.importorskip("compressed_tensors.quantization").QuantizationArgs
    state = start(shape, seed, dead)
    technique = GPTQ(bits=bits, group=group, order=order, static_groups=group is not None)
    after = technique.kernel()(technique, state)
    assert after.format.grid is not None and state.gram is not None
    scales = after.format.grid.step[:, :: group or shape[1]].float()
    args = arguments(
        num_bits=bits,
        symmetric=True,
        strategy="channel" if group is None else "group",
        group_size=group,
        # "weight" keeps the groups of the columns as they are in the weight; with one scale a row there are none.
        actorder=None if order == "left_to_right" else "static" if group is None else "weight",
    )
    theirs, _, fallback = module.quantize_weight(
        state.weight.clone()[None],
        state.gram.clone()[None] * (1 if dead else 0.02),
        scales[None],
        torch.zeros_like(scales)[None],
        None,
        args,
        percdamp=0.01,
    )
    assert not fallback.any()
    within = (theirs[0] / after.format.grid.step).nan_to_num().amin(dim=1) > -(2 ** (bits - 1)) + 0.5
    assert within.sum() >= 4
    alike(after.weight[within], theirs[0][within], 0.8)


@pytest.mark.parametrize(("seed", "dead"), [(0, True), (1, False)])
@pytest.mark.parametrize(("shape", "block"), [((32, 96), 16), ((64, 256), 128), ((64, 256), 32), ((16, 40), 8)])
def test_sparse_gpt_unstructured(shape: tuple[int, int], block: int, seed: int, dead: bool) -> None:
    module = pytest.importorskip("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    state, technique = start(shape, seed, dead), SparseGPT("1/2", block=block)
    after, size = technique.kernel()(technique, state), shape[0] * block
    fewer = (size // 2 - 0.5) / size  # int(n * fewer) + 1 = n / 2
    alike(after.weight, sparsified(module, state, fewer, 0, 0, block), 0.9)


@pytest.mark.parametrize(("seed", "dead"), [(0, True), (1, False)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (4, 8)])
def test_sparse_gpt_in_a_pattern(shape: tuple[int, int], kept: int, size: int, seed: int, dead: bool) -> None:
    module = pytest.importorskip("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    state, technique = start(shape, seed, dead), SparseGPT(f"{size - kept}/{size}", pattern=f"{kept}:{size}")
    after = technique.kernel()(technique, state)
    alike(after.weight, sparsified(module, state, 0.5, size - kept, size, 128), 0.8)


def test_sparse_gpt_drops_one_less_of_each_block() -> None:
    module = pytest.importorskip("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    state, technique = start((8, 32), 0, dead=False), SparseGPT("1/2", block=16)
    assert int((technique.kernel()(technique, state).weight == 0).sum()) == 128
    assert int((sparsified(module, state, 0.5, 0, 0, 16) == 0).sum()) == 130


def sparsified(module: Any, state: LayerState, share: float, dropped: int, size: int, block: int) -> torch.Tensor:
    linear = torch.nn.Linear(state.weight.shape[1], state.weight.shape[0], bias=False)
    linear.weight.data = state.weight.clone()
    assert state.gram is not None
    grams = {linear: state.gram.clone() * (0.02 if bool(state.gram.diagonal().all()) else 1)}
    with torch.no_grad():
        _, weight = module.sparsify_weight(linear, grams, share, dropped, size, block, 0.01, False)
    result: torch.Tensor = weight
    return result


# The papers' formulas in numpy


def damped(state: LayerState, share: float = 0.01) -> np.ndarray[Any, Any]:
    assert state.gram is not None
    gram: np.ndarray[Any, Any] = state.gram.double().numpy()
    return gram + share * np.trace(gram) / len(gram) * np.eye(len(gram))


def exact_start(shape: tuple[int, int], seed: int) -> LayerState:
    """A float64 layer with a Gram matrix that is symmetric to the last bit."""
    state = tensors(shape, dtype=torch.float64, seed=seed)
    assert state.gram is not None
    return replace(state, gram=(state.gram + state.gram.T) / 2)


def best_without(weight: Any, gram: Any, gone: list[int]) -> tuple[float, Any]:
    """The row of least damped error with zeros there: least squares on the root of the Gram matrix."""
    root = np.linalg.cholesky(gram).T  # |root @ error|^2 = error @ gram @ error
    left = [j for j in range(len(weight)) if j not in gone]
    found = np.zeros_like(weight)
    found[left] = np.linalg.lstsq(root[:, left], root @ weight, rcond=None)[0]
    return float(np.sum((root @ (weight - found)) ** 2)), found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_obs_takes_the_best_single_removal_each_time(seed: int) -> None:
    state = exact_start((4, 10), seed)
    gram, technique = damped(state), OBS("1/2")
    after = technique.kernel()(technique, state)
    for i, weight in enumerate(state.weight.numpy()):
        gone: list[int] = []
        for _ in range(5):
            left = [j for j in range(10) if j not in gone]
            gone.append(min(left, key=lambda j: best_without(weight, gram, [*gone, j])[0]))
        assert sorted(gone) == (~after.format.mask[i]).nonzero()[:, 0].tolist()  # type: ignore[index]
        np.testing.assert_allclose(after.weight[i], best_without(weight, gram, gone)[1], atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("bits", [2, 4])
def test_obq_with_an_inverse_of_what_is_left_each_time(seed: int, bits: int) -> None:
    state = exact_start((4, 12), seed)
    gram, levels, technique = damped(state), 2 ** (bits - 1) - 1, OBQ(bits=bits)
    after = technique.kernel()(technique, state)
    for i, row in enumerate(state.weight.numpy()):
        weight, left, step = row.copy(), list(range(12)), np.abs(row).max() / levels
        while left:
            inverse = np.linalg.inv(gram[np.ix_(left, left)])
            goals = np.clip(np.rint(weight[left] / step), -levels, levels) * step
            error = weight[left] - goals
            chosen = int(np.argmin(error**2 / np.diag(inverse)))
            weight[left] -= error[chosen] / inverse[chosen, chosen] * inverse[chosen]
            weight[left[chosen]] = goals[chosen]
            del left[chosen]
        np.testing.assert_allclose(after.weight[i], weight, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptq_and_sparse_gpt_column_by_column(seed: int) -> None:
    """What is to the right is solved by least squares for the errors so far: no factor of an inverse."""
    state = exact_start((6, 20), seed)
    gram, dense = damped(state), state.weight.numpy()
    steps = np.abs(dense).max(axis=1) / 3
    rounded, pruned = (
        t.kernel()(t, state).weight.numpy() for t in (GPTQ(bits=3, order="left_to_right"), SparseGPT("1/2", block=5))
    )
    for i, j in np.ndindex(6, 20):
        for after in (rounded, pruned):
            moved = dense[i, j:] - np.linalg.solve(gram[j:, j:], gram[j:, :j] @ (after[i, :j] - dense[i, :j]))
            goals = [np.clip(np.rint(moved[0] / steps[i]), -3, 3) * steps[i]] if after is rounded else [0, moved[0]]
            assert min(abs(after[i, j] - goal) for goal in goals) < 1e-9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sparse_gpt_scores_with_the_factor_of_the_inverse(seed: int) -> None:
    state, technique = exact_start((6, 20), seed), SparseGPT("1/4", block=20)
    root = np.linalg.cholesky(np.linalg.inv(damped(state))).T
    score = (state.weight.numpy() / np.diag(root)) ** 2
    mask = technique.kernel()(technique, state).format.mask
    assert mask is not None
    assert np.array_equal(~mask.numpy(), score <= np.sort(score.ravel())[29])

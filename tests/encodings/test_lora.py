from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.lora import FINENESS, LoRA
from compcomp.language.loss import LOSSES
from compcomp.layers.state import Format
from compcomp.techniques import AbsMax, Magnitude
from tests.helpers import layer, matrix, refused

INPUTS = [[1, 2, 0], [0, 1, 1], [2, 0, 1]]


def test_the_first_iteration_by_hand() -> None:
    """One row: B is a number, and the best is <E G, A> / <A G, A> for the error E and the random A."""
    start = layer([[4, 1, -2]], INPUTS)
    start = replace(start, weight=start.weight * 0)
    technique = LoRA(rank=1, iterations=1)
    a = matrix(technique.first(3)) / FINENESS
    best = (start.reference @ start.gram @ a.T)[0, 0] / (a @ start.gram @ a.T)[0, 0]
    after = technique.encode(start)
    assert after.effective().tolist() == (best * a).tolist()
    assert after.format.factors is not None and not after.weight.any()


@pytest.mark.parametrize("options", [{}, {"merged": True}, {"merged": True, "masked": True}], ids=str)
def test_iterations_lower_the_output_error(options: dict[str, bool]) -> None:
    start = layer([[4, 1, -2], [1, 3, 2], [2, 2, 1]], INPUTS)
    start = (Magnitude("1/3") >> AbsMax(bits=2)).encode(start)
    losses = [LOSSES["output_l2"].of(start)]
    losses += [LOSSES["output_l2"].of(LoRA(1, k, **options).encode(start)) for k in (1, 2, 3, 4)]
    assert all(b < a for a, b in itertools.pairwise(losses))


def test_a_masked_adapter_keeps_zeros() -> None:
    start = (Magnitude("1/2") >> AbsMax(bits=3)).encode(layer([[4, 1, -2, 3], [1, 3, 2, 1]], [*INPUTS, [1, 1, 0]]))
    after = LoRA(1, 2, merged=True, masked=True).encode(start)
    assert np.array_equal(after.weight != 0, start.weight != 0)
    assert after.format.mask is start.format.mask and after.format.grid is None and after.format.factors is None
    dense = LoRA(1, 2, merged=True).encode(start)
    assert dense.format == Format() and (dense.weight != 0).sum() > (start.weight != 0).sum()


def test_merging_changes_what_is_stored_and_not_what_is_computed() -> None:
    start = AbsMax(bits=2).encode(layer([[4, 1, -2], [1, 3, 2]], INPUTS))
    apart, merged = LoRA(2, 3).encode(start), LoRA(2, 3, merged=True).encode(start)
    assert apart.effective().tolist() == merged.weight.tolist() == merged.effective().tolist()
    assert apart.format.grid is start.format.grid and apart.weight is start.weight
    again = LoRA(1, 1).encode(apart)
    assert again.format.factors is not None and again.format.factors.rank == 3


def test_seeds() -> None:
    one, same, other = (LoRA(3, 1, seed=k).first(50) for k in (1, 1, 2))
    assert one.shape == (3, 50) and np.array_equal(one, same) and not np.array_equal(one, other)


def test_nothing_to_train_on() -> None:
    for state in (layer([[1, 2]], [[0], [0]]), layer([[1, 2]], [[1], [0]])):
        lost = replace(state, weight=state.weight * 0) if not state.gram.any() else state  # type: ignore[union-attr]
        assert LoRA(1, 3).encode(lost).effective().tolist() == lost.weight.tolist()
    refused(lambda: LoRA(1, 1).encode(layer([[1, 2]])), "no inputs")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("rank", x) for x in (0, 1.0, None)),
        *(("iterations", x) for x in (0, 1.0, None, True)),
        *(("seed", x) for x in (-1, 1.0, None)),
        *(("merged", x) for x in (0, "yes", None)),
        *(("masked", x) for x in (1, None, True)),
    ],
)
def test_bad_parameters(name: str, given: Any) -> None:
    refused(lambda: LoRA(**{"rank": 1, "iterations": 1, name: given}), f"LoRA.{name}")

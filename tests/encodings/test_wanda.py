from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.wanda import Wanda
from tests.helpers import HUGE, layer, refused, row


def test_inputs_decide() -> None:
    """The scores |w| |x| are 4 * 1, 3 * 2, 2 * 4 and 1 * 5."""
    inputs = [[1, 0], [0, 2], [4, 0], [3, 4]]
    assert row(Wanda(sparsity="1/2").encode(layer([[4, 3, 2, 1]], inputs))) == [0, 3, 2, 0]
    assert row(Magnitude(sparsity="1/2").encode(layer([[4, 3, 2, 1]], inputs))) == [4, 3, 0, 0]


def test_equal_norms_give_magnitude_pruning_of_each_row() -> None:
    weight, inputs = [[4, -3, 2, -1], [1, 2, 3, 4]], np.eye(4, dtype=int) * 3
    wanda = Wanda(sparsity="1/2").encode(layer(weight, inputs))
    assert np.array_equal(wanda.weight, Magnitude(sparsity="1/2", per="row").encode(layer(weight, inputs)).weight)


def test_squares_order_as_the_published_score_does() -> None:
    """Against argsort of |W| * sqrt(diag(X X^T)), row by row, on data without ties."""
    random = np.random.default_rng(0)
    weight, inputs = random.permutation(48).reshape(4, 12) - 20, random.integers(-9, 9, (12, 7))
    metric = np.abs(weight) * np.sqrt((inputs * inputs).sum(axis=1))
    expected = weight.copy()
    for values, order in zip(expected, np.argsort(metric, axis=1, kind="stable"), strict=True):
        values[order[:5]] = 0
    state = Wanda(sparsity=0.42).encode(layer(weight.tolist(), inputs.tolist()))
    assert state.weight.tolist() == expected.tolist()


def test_dead_inputs_go_first_and_from_the_left() -> None:
    assert row(Wanda(sparsity="1/2").encode(layer([[9, 9, 9, 1]], [[0], [0], [0], [1]]))) == [0, 0, 9, 1]
    all_go = Wanda(sparsity="1/2", ties="all").encode(layer([[9, 9, 9, 1]], [[0], [0], [0], [1]]))
    assert row(all_go) == [0, 0, 0, 1]


def test_a_pattern_acts_inside_its_blocks() -> None:
    inputs = [[1], [1], [5], [5]]
    assert row(Wanda("1/2", pattern="1:2").encode(layer([[1, 2, 1, 2]], inputs))) == [0, 2, 0, 2]


def test_it_needs_inputs() -> None:
    assert Wanda(sparsity="1/2").needs_inputs
    refused(lambda: Wanda(sparsity="1/2").encode(layer([[1, 2]])), "no inputs")


@pytest.mark.parametrize("given", [-1, 1, float("nan"), None, HUGE, "1e-999999999"])
def test_bad_sparsity(given: Any) -> None:
    refused(lambda: Wanda(sparsity=given), "Wanda.sparsity", "[0, 1)")


@pytest.mark.parametrize("parameters", [{"pattern": "1:4"}, {"pattern": "a"}, {"ties": "none"}, {"ties": 1}])
def test_bad_parameters(parameters: dict[str, Any]) -> None:
    refused(lambda: Wanda(sparsity="1/2", **parameters), "Wanda")


def test_a_pattern_must_divide_the_row() -> None:
    refused(lambda: Wanda("1/2", pattern="2:4").encode(layer([[1, 2]], [[1], [1]])), "rows of 2")

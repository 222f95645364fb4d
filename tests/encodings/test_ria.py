from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.ria import RIA, Score
from tests.helpers import layer, refused, row

WEIGHT = [[4, 1, 1], [4, 2, 0], [4, 3, 1]]


def test_relative_importance_by_hand() -> None:
    """Column sums 12, 6, 2 and row sums 6, 6, 8: with power 0 the scores of the first row are 1, 1/3 and 2/3."""
    scores = Score(Fraction(0))(layer(WEIGHT))
    assert scores[0].tolist() == [1, Fraction(1, 3), Fraction(2, 3)]
    assert scores[1].tolist() == [1, Fraction(2, 3), 0]
    assert scores[2].tolist() == [Fraction(5, 6), Fraction(7, 8), Fraction(5, 8)]


def test_a_large_column_is_not_all_that_is_kept() -> None:
    """Magnitude keeps the first column alone: whole channels go. Relative importance keeps a 3 instead of a 4."""
    assert Magnitude("2/3").encode(layer(WEIGHT)).weight.tolist() == [[4, 0, 0], [4, 0, 0], [4, 0, 0]]
    assert RIA("2/3", power=0).encode(layer(WEIGHT)).weight.tolist() == [[4, 0, 0], [4, 0, 0], [0, 3, 0]]


@pytest.mark.parametrize("power", ["0", "1/2", "1", "3/2", "1/3"])
def test_powers_order_as_the_published_score_does(power: str) -> None:
    """Against argsort of the score itself in floats, on data without ties."""
    random = np.random.default_rng(0)
    weight, inputs = random.permutation(48).reshape(4, 12) - 20, random.integers(-9, 9, (12, 7))
    sizes = np.abs(weight)
    metric = sizes / sizes.sum(axis=0) + sizes / sizes.sum(axis=1, keepdims=True)
    metric = metric * np.sqrt((inputs * inputs).sum(axis=1)) ** float(Fraction(power))
    expected = weight.copy()
    expected.ravel()[np.argsort(metric.ravel(), kind="stable")[:20]] = 0
    state = RIA(Fraction(20, 48), power=power).encode(layer(weight.tolist(), inputs.tolist()))
    assert state.weight.tolist() == expected.tolist()


def test_rows_and_columns_of_zeros_score_nothing() -> None:
    scores = Score(Fraction(1, 2))(layer([[0, 0], [0, 3]], [[1], [1]]))
    assert scores.tolist() == [[0, 0], [0, 16]]  # (3/3 + 3/3)^4 * 1


def test_sums_are_over_the_whole_row_and_column_even_in_a_pattern() -> None:
    """In each pair by magnitude 1 and 3 would go; column sums 1, 2, 4, 3 and equal row sums turn the second pair."""
    state = RIA("1/2", pattern="1:2", power=0).encode(layer([[1, 2, 4, 3], [0, 0, 4, 0]]))
    assert row(state) == [0, 2, 0, 3]


def test_what_it_needs() -> None:
    assert RIA("1/2").needs_inputs
    assert not RIA("1/2", power=0).needs_inputs
    refused(lambda: RIA("1/2").encode(layer([[1, 2]])), "no inputs")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"power": -1}, "RIA.power"),
        ({"power": 3}, "RIA.power"),
        ({"power": "1/7"}, "RIA.power"),
        ({"power": None}, "RIA.power"),
        ({"per": "column"}, "RIA.per"),
        ({"pattern": "1:4"}, "RIA"),
        ({"ties": "last"}, "RIA.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: RIA(sparsity="1/2", **parameters), where)

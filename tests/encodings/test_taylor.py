from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.prune_rows import PruneRows
from compcomp.encodings.taylor import Taylor, importance
from tests.helpers import layer, refused, row

WEIGHT, INPUTS = [[1, 2, -1, 3], [2, -2, 1, 1]], [[1, 0], [1, 1], [0, 2], [-1, 0]]


def test_the_score_is_weight_times_gradient_of_the_energy() -> None:
    """Against a central difference of |W X|^2 / 2, which is exact for a quadratic."""
    start = layer(WEIGHT, INPUTS)
    scores = importance(start)
    for index in np.ndindex(2, 4):
        energies = []
        for sign in (1, -1):
            moved = start.weight.copy()
            moved[index] += sign
            energies.append(sum(x * x for x in (moved @ start.inputs).ravel()) / Fraction(2))
        assert scores[index] == abs(start.weight[index] * (energies[0] - energies[1]) / 2)


def test_single_weights() -> None:
    """The row's outputs are (1 + 2 - 3, 2 - 2) = (0, 0): nothing matters, and the first go."""
    assert row(Taylor("1/2").encode(layer([WEIGHT[0]], INPUTS))) == [0, 0, -1, 3]
    scores = importance(layer([WEIGHT[1]], INPUTS))[0].tolist()
    assert scores == [2 * 1, 2 * 1, 0, 1]  # outputs (-1, 0): g = (-1, -1, 0, 1)
    assert row(Taylor("1/2").encode(layer([WEIGHT[1]], INPUTS))) == [2, -2, 0, 0]


def test_groups_sum_magnitudes() -> None:
    state = Taylor("1/2", group="row").encode(layer(WEIGHT, INPUTS))
    assert state.format.cut is not None and list(state.format.cut.rows) == [False, True]
    state = Taylor("1/2", group="column").encode(layer(WEIGHT, INPUTS))
    assert state.format.cut is not None and list(state.format.cut.columns) == [True, True, False, False]
    state = Taylor("1/2", group="column", size=2).encode(layer(WEIGHT, INPUTS))
    assert state.format.cut is not None and list(state.format.cut.columns) == [True, True, False, False]


def test_without_cancellation_a_row_scores_its_activation() -> None:
    """sum_j w_j g_j = |w X|^2; where no term is negative that is the sum of magnitudes."""
    weight, inputs = np.random.default_rng(0).integers(0, 9, (6, 4)).tolist(), [[1, 2], [0, 3], [2, 2], [1, 0]]
    one, other = (t.encode(layer(weight, inputs)) for t in (Taylor("1/3", "row"), PruneRows("1/3", 1, "activation")))
    assert one.weight.tolist() == other.weight.tolist()


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"sparsity": 1}, "Taylor.sparsity"),
        ({"sparsity": Any}, "Taylor.sparsity"),
        ({"group": "head"}, "Taylor.group"),
        ({"size": 2}, "size=2"),
        ({"group": "row", "pattern": "2:4"}, "pattern='2:4'"),
        ({"group": "row", "per": "row"}, "per='row'"),
        ({"group": "row", "size": 0}, "Taylor.size"),
        ({"per": "token"}, "Taylor.per"),
        ({"ties": "none"}, "Taylor.ties"),
        ({"pattern": "1:4"}, "sparsity=3/4"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: Taylor(**{"sparsity": "1/2", **parameters}), where)


def test_what_does_not_fit() -> None:
    refused(lambda: Taylor("1/2").encode(layer(WEIGHT)), "no inputs")
    refused(lambda: Taylor("1/2", group="row", size=3).encode(layer(WEIGHT, INPUTS)), "2 rows", "groups of 3")
    refused(lambda: Taylor("1/2", pattern="1:3").encode(layer(WEIGHT, INPUTS)), "sparsity")
    refused(lambda: Taylor("1/3", pattern="2:3").encode(layer(WEIGHT, INPUTS)), "rows of 4")

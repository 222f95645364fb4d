from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compcomp.algebra.cuts import column_scores
from compcomp.encodings.prune_columns import PruneColumns
from compcomp.layers.state import Factors
from compcomp.terms import RandomChoices
from tests.helpers import layer, matrix, refused

WEIGHT = [[5, 3, 1, -2], [0, 3, 1, 2], [0, 0, 1, 3]]


def columns(state: Any) -> list[int]:
    """Which columns are left."""
    return [i for i, kept in enumerate(state.format.cut.columns) if kept]


def test_scores_by_hand() -> None:
    weight = matrix(WEIGHT)
    assert column_scores(weight, 1, "l1") == [5, 6, 3, 7]
    assert column_scores(weight, 1, "l2") == [25, 18, 3, 17]
    assert column_scores(weight, 2, "l2") == [43, 20]
    assert column_scores(weight, 2, "activation", [1, 2, 3, 4]) == [3, 7]


def test_norms_differ() -> None:
    assert columns(PruneColumns("1/2").encode(layer(WEIGHT))) == [1, 3]
    assert columns(PruneColumns("1/2", score="l2").encode(layer(WEIGHT))) == [0, 1]


def test_silent_inputs_go() -> None:
    state = PruneColumns("1/2", score="activation").encode(layer(WEIGHT, [[1, 0], [1, 1], [2, 0], [0, 3]]))
    assert columns(state) == [2, 3]
    assert state.weight.tolist() == [[0, 0, 1, -2], [0, 0, 1, 2], [0, 0, 1, 3]]
    assert all(state.format.cut.rows)


def test_groups_go_whole() -> None:
    state = PruneColumns("1/2", size=2).encode(layer(WEIGHT))
    assert columns(state) == [0, 1]


def test_the_low_rank_term_loses_the_column() -> None:
    start = layer(WEIGHT)
    factors = Factors(matrix([[1], [1], [1]]), matrix([[1, 1, 1, 1]]))
    state = PruneColumns("1/2").encode(replace(start, format=replace(start.format, factors=factors)))
    assert columns(state) == [1, 3]  # 8, 9, 6, 8: of two 8s the first goes
    assert [j for j, x in enumerate(state.format.factors.right[0]) if x] == columns(state)
    assert not state.effective()[:, [j for j in range(4) if j not in columns(state)]].any()


@pytest.mark.parametrize(("ties", "expected"), [("first", {(1,)}), ("all", {()}), ("any", {(0,), (1,)})])
def test_ties(ties: str, expected: set[tuple[int, ...]]) -> None:
    technique = PruneColumns("1/2", ties=ties)
    found = {tuple(columns(technique.encode(layer([[1, 2], [2, 1]], choices=RandomChoices(s))))) for s in range(20)}
    assert found == expected


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"sparsity": -1}, "PruneColumns.sparsity"),
        ({"size": "2"}, "PruneColumns.size"),
        ({"score": "max"}, "PruneColumns.score"),
        ({"ties": 1}, "PruneColumns.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: PruneColumns(**{"sparsity": "1/2", **parameters}), where)


def test_what_does_not_fit() -> None:
    refused(lambda: PruneColumns("1/2", size=3).encode(layer(WEIGHT)), "4 columns", "groups of 3")
    refused(lambda: PruneColumns("1/2", score="activation").encode(layer(WEIGHT)), "no inputs")

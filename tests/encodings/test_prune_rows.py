from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compcomp.algebra.cuts import row_scores
from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.prune_columns import PruneColumns
from compcomp.encodings.prune_rows import PruneRows
from compcomp.layers.state import Factors
from compcomp.terms import RandomChoices
from tests.helpers import HUGE, layer, matrix, refused

WEIGHT = [[5, 0, 0], [3, 3, 0], [1, 1, 1], [-2, 2, 3]]


def rows(state: Any) -> list[int]:
    """Which rows are left."""
    return [i for i, kept in enumerate(state.format.cut.rows) if kept]


@pytest.mark.parametrize(
    ("score", "expected"),
    [("l1", [25, 18, 3, 17]), ("l2", [25, 18, 3, 17]), ("activation", [25, 81, 9, 22])],
)
def test_scores_by_hand(score: str, expected: list[int]) -> None:
    weight = matrix(WEIGHT)
    gram = matrix([[1, 0, 0], [0, 1, 0], [0, 0, 1]]) + matrix([[0, 3.5, 0], [3.5, 0, 0], [0, 0, 0]])
    if score == "l1":
        expected = [5, 6, 3, 7]
    if score == "activation":  # w G w^T = |w|^2 + 7 w_1 w_2
        expected = [25, 18 + 63, 3 + 7, 17 - 28]
    assert row_scores(weight, 1, score, gram) == expected


def test_norms_differ() -> None:
    assert rows(PruneRows("1/2").encode(layer(WEIGHT))) == [1, 3]
    assert rows(PruneRows("1/2", score="l2").encode(layer(WEIGHT))) == [0, 1]


def test_an_output_that_is_never_large_goes() -> None:
    """The first row is large, and the inputs it looks at are always 0."""
    inputs = [[0], [1], [0]]
    assert rows(PruneRows("1/2", score="activation").encode(layer(WEIGHT, inputs))) == [1, 3]


def test_heads_go_whole() -> None:
    state = PruneRows("1/2", size=2).encode(layer(WEIGHT))
    assert rows(state) == [0, 1]
    assert state.weight.tolist() == [[5, 0, 0], [3, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert state.format.mask.tolist() == [[True] * 3, [True] * 3, [False] * 3, [False] * 3]
    assert all(state.format.cut.columns)


def test_the_low_rank_term_loses_the_row_and_counts_for_scores() -> None:
    start = layer(WEIGHT)
    factors = Factors(matrix([[0], [0], [9], [0]]), matrix([[1, 1, 1]]))
    start = replace(start, format=replace(start.format, factors=factors))
    state = PruneRows("1/2").encode(start)
    assert rows(state) == [2, 3]  # 27 + 3, and 7
    assert state.format.factors.left.tolist() == [[0], [0], [9], [0]]
    other = PruneRows("3/4", score="l2").encode(replace(start, format=replace(start.format, factors=factors)))
    assert rows(other) == [2]
    assert rows(PruneRows("3/4").encode(replace(start, weight=matrix([[9, 9, 9]] * 4)))) == [2]
    gone = PruneRows("3/4").encode(replace(start, weight=matrix([[0] * 3, [0] * 3, [-9] * 3, [1] * 3])))
    assert rows(gone) == [3]  # the third is 0 in effect, and its part of the low-rank term goes too
    assert gone.format.factors.left.tolist() == [[0], [0], [0], [0]]
    assert not gone.effective()[:3].any()


def test_cuts_and_masks_accumulate_and_the_grid_stays() -> None:
    state = (AbsMax(4) >> PruneColumns("1/3") >> PruneRows("1/4") >> PruneRows("1/2")).encode(layer(WEIGHT))
    assert rows(state) == [0, 1]  # the row that went first is 0 and counts again
    assert sum(state.format.cut.columns) == 2
    kept = [[r and c for c in state.format.cut.columns] for r in state.format.cut.rows]
    assert state.format.mask.tolist() == kept
    assert state.format.grid is not None


@pytest.mark.parametrize(("ties", "expected"), [("first", {(1,)}), ("all", {()}), ("any", {(0,), (1,)})])
def test_ties(ties: str, expected: set[tuple[int, ...]]) -> None:
    technique = PruneRows("1/2", ties=ties)
    found = {tuple(rows(technique.encode(layer([[1, 2], [2, 1]], choices=RandomChoices(s))))) for s in range(20)}
    assert found == expected


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"sparsity": 1}, "PruneRows.sparsity"),
        ({"sparsity": Any}, "PruneRows.sparsity"),
        ({"sparsity": "half"}, "PruneRows.sparsity"),
        ({"size": 0}, "PruneRows.size"),
        ({"size": 1.5}, "PruneRows.size"),
        ({"size": 10**30}, "PruneRows.size"),
        ({"score": "l3"}, "PruneRows.score"),
        ({"ties": "last"}, "PruneRows.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: PruneRows(**{"sparsity": "1/2", **parameters}), where)


@pytest.mark.parametrize("given", [HUGE, None, True, "1/0"])
def test_bad_sparsity(given: Any) -> None:
    refused(lambda: PruneRows(given), "PruneRows.sparsity", "[0, 1)")


def test_what_does_not_fit() -> None:
    refused(lambda: PruneRows("1/2", size=3).encode(layer(WEIGHT)), "4 rows", "groups of 3")
    refused(lambda: PruneRows("1/2", score="activation").encode(layer(WEIGHT)), "no inputs")

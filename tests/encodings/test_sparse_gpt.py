from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import compcomp as cc
from compcomp.language.loss import loss_named
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, AbsMax, Magnitude, SparseGPT, Wanda
from compcomp.testing import check_encoding
from tests.helpers import layer, refused, row

IDENTITY = np.eye(4, dtype=int).tolist()
ALIKE = [[2, 1, 0, 1], [1, 2, 0, 1], [1, 1, 1, 1], [0, 1, 1, 3]]
LOST = loss_named("output_l2").of


def kept(state: LayerState) -> list[list[bool]]:
    assert state.format.mask is not None
    return [[bool(x) for x in entries] for entries in state.format.mask]


def test_by_hand() -> None:
    """H = [[4, 2], [2, 4]] with damping 1: column 1 scores w^2 (4 - 2 * 2 / 4) = 3 w^2, column 2 4 w^2."""
    start = layer([[4, 3]], [[1, 1], [1, 1]])
    assert row(SparseGPT("1/2", damping=1).encode(start)) == [4, 0]  # 48 against 36
    after = SparseGPT("1/2", damping=1).encode(layer([[3, 3]], [[1, 1], [1, 1]]))
    assert row(after) == [0, Fraction(9, 2)]  # 3 / 2 of the first goes to the second
    assert kept(after) == [[False, True]]


def test_independent_inputs_of_one_norm_are_pruned_by_magnitude() -> None:
    start = layer([[1, -4, 2, 3], [5, 6, -7, 8]], IDENTITY)
    after, expected = SparseGPT("1/2").encode(start), Magnitude("1/2").encode(start)
    assert np.array_equal(after.weight, expected.weight)
    assert kept(after) == kept(expected)


def test_independent_inputs_of_an_n_m_pattern_are_pruned_like_wanda_with_damped_norms() -> None:
    start = layer([[1, -4, 2, 3], [5, 6, -7, 8]], (np.array(IDENTITY) * [9, 1, 1, 2]).tolist())
    technique = SparseGPT("1/2", pattern="2:4", damping="1/100000")
    assert np.array_equal(technique.encode(start).weight, Wanda("1/2", pattern="2:4").encode(start).weight)


def test_a_choice_for_each_block_over_all_rows() -> None:
    start = layer([[1, 2, 30, 40], [3, 4, 10, 20]], IDENTITY)
    assert kept(SparseGPT("1/2", block=2).encode(start)) == [[False, False, True, True], [True, True, False, False]]
    assert kept(SparseGPT("1/2", block=4).encode(start)) == [[False, False, True, True], [False, False, True, True]]
    assert kept(SparseGPT("1/2", block=3).encode(start)) == [[False, False, True, True], [False, True, True, False]]


def test_how_many_go() -> None:
    """int(n * sparsity) of a block's n; the last block may be narrower."""
    start = layer([[1, 2, 3, 4], [5, 6, 7, 9], [8, 1, 3, 2]], ALIKE)
    for block, expected in ((4, int(12 * 0.3)), (3, int(9 * 0.3) + int(3 * 0.3)), (1, 0)):
        assert sum(not x for entries in kept(SparseGPT("3/10", block=block).encode(start)) for x in entries) == expected


def test_ties() -> None:
    start = layer([[1, 1, 1, 2]], IDENTITY)
    assert kept(SparseGPT("1/2").encode(start)) == [[False, False, True, True]]
    assert kept(SparseGPT("1/2", ties="all").encode(start)) == [[False, False, False, True]]
    check_encoding(SparseGPT("1/2", ties="any", block=2), max_examples=30)
    check_encoding(SparseGPT("1/2", pattern="2:4", ties="any", bits=2, rounding="any"), max_examples=30)


def test_rounding_in_the_same_pass_on_the_grid_of_the_weights_it_starts_with() -> None:
    start = layer([[6, 1, "5/2", 3], [2, 0, 1, 2]], ALIKE)
    after = SparseGPT("1/2", block=2, bits=3).encode(start)
    grid = after.format.grid
    assert grid is not None and (grid.levels, grid.scales) == (3, 2)
    assert grid.step[:, 0].tolist() == [2, Fraction(2, 3)]
    without = GPTQ(bits=3, order="left_to_right").encode(start)
    assert np.array_equal(SparseGPT("0", bits=3).encode(start).weight, without.weight)
    assert AbsMax(bits=3, group=4).encode(start).format.grid.step.tolist() == grid.step.tolist()  # type: ignore[union-attr]


def test_pruning_with_updates_loses_less_than_without_where_inputs_are_alike() -> None:
    inputs = [[3, 3, 3, 3, 1], [3, 3, 3, 1, 3], [3, 3, 1, 3, 3], [3, 1, 3, 3, 3]]
    start = layer([[4, 3, -1, 2], [1, 5, 6, -2]], inputs)
    after = SparseGPT("1/2", pattern="2:4").encode(start)
    alone = replace(start, weight=start.weight * after.format.mask)
    assert LOST(after) < LOST(alone)


def test_weights_of_dead_inputs_go() -> None:
    after = SparseGPT("1/4").encode(layer([[6, 1, 2, 3]], [[0], [1], [2], [1]]))
    assert row(after)[0] == 0
    assert kept(after) == [[False, True, True, True]]


def test_once_more_changes_nothing() -> None:
    start = layer([[4, 3, -1, 2], [1, 5, 6, -2]], ALIKE)
    for technique in (SparseGPT("1/2"), SparseGPT("1/2", block=2), SparseGPT("1/2", pattern="2:4")):
        once = technique.encode(start)
        assert np.array_equal(technique.encode(once).weight, once.weight)


def test_an_earlier_mask_is_broken_unless_it_is_to_be_kept() -> None:
    """One of two zeros of the last column is filled: a choice for each column drops one of two."""
    start = Magnitude("1/4").encode(layer([[3, 1, 2, "1/2"], [9, 4, 3, "1/4"]], ALIKE))
    assert kept(start) == [[True, True, True, False]] * 2
    broken = SparseGPT("1/2", block=1).encode(start)
    assert sum(broken.weight[:, 3] != 0) == 1
    assert np.array_equal(broken.format.mask, broken.weight != 0)
    after = SparseGPT("1/2", block=1, mask="kept").encode(start)
    assert not any(after.weight[:, 3])


def test_a_kept_mask_counts_as_chosen() -> None:
    """Three of eight were dropped before: one more goes at 1/2, none at 1/4."""
    start = layer([[3, 1, 2, 5], [9, 4, 3, 8]], IDENTITY)
    mask = np.array([[False, True, True, False], [True, True, True, False]], dtype=object)
    start = replace(start, format=replace(start.format, mask=mask))
    dropped = [
        sum(not x for entries in kept(SparseGPT(s, mask="kept").encode(start)) for x in entries) for s in ("1/2", "1/4")
    ]
    assert dropped == [4, 3]


def test_patterns_are_recorded() -> None:
    start = layer([[4, 3, -1, 2]], ALIKE)
    assert SparseGPT("1/2", pattern="2:4").encode(start).format.pattern == ((2, 4),)
    before = Magnitude("1/2", pattern="1:2").encode(start)
    assert SparseGPT("1/2", pattern="2:4").encode(before).format.pattern == ((2, 4),)
    assert SparseGPT("1/2", pattern="2:4", mask="kept").encode(before).format.pattern == ((1, 2), (2, 4))
    assert SparseGPT("1/2").encode(before).format.pattern is None


@pytest.mark.parametrize("technique", [SparseGPT("7/10"), SparseGPT("1/4", pattern="3:4", bits=4), SparseGPT("1/4")])
def test_other_conventions(technique: SparseGPT) -> None:
    assert check_encoding(technique, max_examples=40).clear >= 10


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        (cc.keeps(Magnitude("1/2") >> SparseGPT("1/2", block=2), "mask"), "REFUTED"),
        (cc.keeps(Magnitude("1/2") >> SparseGPT("1/2", block=2, mask="kept"), "mask"), "PROVED"),
        (cc.keeps(SparseGPT("1/2") >> Magnitude("1/2"), "mask"), "PROVED"),
        (cc.keeps(AbsMax(bits=4) >> SparseGPT("1/2"), "grid"), "REFUTED"),
        (cc.keeps(Magnitude("1/2", pattern="2:4") >> SparseGPT("1/2", block=1), "n:m"), "REFUTED"),
        (cc.dominates(SparseGPT("1/2"), Wanda("1/2"), loss="output_l2"), "REFUTED"),
        (
            cc.dominates(SparseGPT("1/2") >> GPTQ(bits=4, mask="kept"), SparseGPT("1/2", bits=4), loss="output_l2"),
            "REFUTED",
        ),
    ],
    ids=str,
)
def test_verdicts(claim: Any, status: str) -> None:
    assert str(cc.prove(claim, timeout=20).status) == status


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"sparsity": 1}, "SparseGPT.sparsity"),
        ({"pattern": "1:4"}, "sparsity=3/4"),
        ({"pattern": "four"}, "SparseGPT.pattern"),
        ({"block": 0}, "SparseGPT.block"),
        ({"damping": 0}, "SparseGPT.damping"),
        ({"bits": 1}, "SparseGPT.bits"),
        ({"rounding": "nearest"}, "SparseGPT.rounding"),
        ({"ties": "last"}, "SparseGPT.ties"),
        ({"mask": "broken"}, "SparseGPT.mask"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: SparseGPT(**{"sparsity": "1/2", **parameters}), where)


def test_what_it_cannot_use() -> None:
    refused(lambda: SparseGPT("1/2", pattern="2:4").encode(layer([[1, 2, 3]], [[1], [1], [1]])), "rows of 3")
    refused(lambda: SparseGPT("1/2").encode(layer([[1, 2, 3]])), "no inputs")

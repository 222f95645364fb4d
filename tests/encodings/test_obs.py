from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import compcomp as cc
from compcomp.algebra.least_squares import least_squares_change
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, OBS, AbsMax, LeastSquaresDistill, Magnitude, SparseGPT
from compcomp.terms import Choices
from compcomp.testing import check_encoding
from compcomp.testing.strategies import exact
from tests.helpers import layer, outcomes, refused, row

ALIKE = [[2, 1, 0, 1], [1, 2, 0, 1], [1, 1, 1, 1], [0, 1, 1, 3]]
WEIGHT = [[4, 3, -1, 2], [1, 5, 6, -2], [2, 2, -7, 1]]


def damped(state: LayerState, damping: Fraction) -> Any:
    gram: Any = state.gram
    side = len(gram)
    return gram + exact(np.eye(side, dtype=int)) * np.trace(gram) * damping / side


def best(weight: Any, gram: Any, removed: set[int]) -> tuple[Fraction, Any]:
    """The least damped output error of a row without these weights, and the row, by the normal equations."""
    free = np.array([[j not in removed for j in range(len(gram))]], dtype=object)
    start = np.array([[Fraction(0) if j in removed else w for j, w in enumerate(weight)]], dtype=object)
    error = np.array([weight], dtype=object) - start
    after = start + least_squares_change(error, gram, free, Choices())
    error = np.array([weight], dtype=object) - after
    return ((error @ gram) * error).sum(), after[0]


@pytest.mark.parametrize("damping", ["1/100", 1])
def test_each_removal_is_the_best_that_least_squares_finds(damping: Any) -> None:
    state = layer(WEIGHT, ALIKE)
    gram = damped(state, Fraction(damping))
    for i, weight in enumerate(state.weight):
        removed = set[int]()
        for count in range(1, 4):
            left = [j for j in range(4) if j not in removed]
            removed = removed | {min(left, key=lambda j: best(weight, gram, removed | {j})[0])}
            after = OBS(Fraction(count, 4), damping=damping).encode(state)
            assert after.format.mask is not None
            assert {j for j in range(4) if not after.format.mask[i, j]} == removed
            assert after.weight[i].tolist() == best(weight, gram, removed)[1].tolist()


def test_one_removal_is_the_best_of_all() -> None:
    state = layer(WEIGHT, ALIKE)
    gram, after = damped(state, Fraction(1, 100)), OBS("1/4").encode(state)
    for i, weight in enumerate(state.weight):
        error = weight - after.weight[i]
        assert error @ gram @ error == min(best(weight, gram, {j})[0] for j in range(4))


def test_greedy_is_not_always_best() -> None:
    """Two at a time may be better than the best one and the best after it: what it promises is each step."""
    state = layer([[3, 3, 4]], [[1, 0], [0, 1], [1, 1]])
    gram, after = damped(state, Fraction(1, 100)), OBS("2/3").encode(state)
    error = (state.weight - after.weight)[0]
    pairs = [best(state.weight[0], gram, set(pair))[0] for pair in combinations(range(3), 2)]
    assert error @ gram @ error >= min(pairs)


def test_distilled_within_its_mask_it_hardly_changes() -> None:
    """Without damping nothing would: it already is the least-squares answer."""
    after = OBS("1/2", damping="1/1000000").encode(layer(WEIGHT, ALIKE))
    again = LeastSquaresDistill().encode(after)
    assert np.abs((again.weight - after.weight).astype(float)).max() < 1e-4


def test_no_weight_changes_its_sign() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        inputs = random.integers(-1, 2, (4, 4)) + random.integers(-4, 5, (1, 4)) * random.integers(1, 9, (4, 1))
        state = layer(random.integers(-9, 10, (1, 4)).tolist(), inputs.tolist())
        after = OBS("3/4", damping="1/1000").encode(state)
        assert all(old * new >= 0 for old, new in zip(row(state), row(after), strict=True))


def test_within_a_pattern() -> None:
    state = layer([[4, 3, 2, 1], [1, 5, 6, -2]], np.eye(4, dtype=int).tolist())
    after = OBS("1/2", pattern="1:2").encode(state)
    assert row(after) == [4, 0, 2, 0]
    assert after.weight[1].tolist() == [0, 5, 6, 0]
    assert after.format.pattern == ((1, 2),)
    assert row(OBS("1/2").encode(state)) == [4, 3, 0, 0]


def test_zeros_go_first_and_stay() -> None:
    start = Magnitude("1/2").encode(layer(WEIGHT, ALIKE))
    few, many = OBS("1/4").encode(start), OBS("3/4").encode(start)
    assert np.array_equal(few.weight[0], start.weight[0])
    assert start.format.mask is not None and many.format.mask is not None
    assert not any(many.weight[~start.format.mask.astype(bool)] != 0)
    assert not any(many.format.mask.astype(bool)[~start.format.mask.astype(bool)])


def test_a_pattern_may_break_an_earlier_mask() -> None:
    """Under 1:2 only one weight of a pair goes: of two zeros the other is filled."""
    start = replace(layer([[0, 0, 3, 4]], ALIKE))
    after = OBS("1/2", pattern="1:2").encode(start)
    assert [x != 0 for x in row(after)] == [False, True, False, True]


def test_ties() -> None:
    state = [[1, 1, 1]]
    identity = np.eye(3, dtype=int).tolist()
    assert row(OBS("1/3").encode(layer(state, identity))) == [0, 1, 1]

    def run(start: LayerState) -> LayerState:
        return OBS("1/3", ties="any").encode(replace(start, gram=exact(identity)))

    assert outcomes(run, state) == {(0, 1, 1), (1, 0, 1), (1, 1, 0)}


def test_weights_of_dead_inputs_go() -> None:
    after = OBS("1/4").encode(layer([[6, 1, 2, 3]], [[0], [1], [2], [1]]))
    assert row(after) == [0, 1, 2, 3]


def test_a_grid_is_gone() -> None:
    after = OBS("1/4").encode(AbsMax(bits=3).encode(layer(WEIGHT, ALIKE)))
    assert after.format.grid is None


def test_another_damping() -> None:
    assert check_encoding(OBS("1/2", damping=2), max_examples=30).clear >= 10


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        (cc.keeps(Magnitude("1/2") >> OBS("1/2"), "mask"), "PROVED"),
        (cc.keeps(SparseGPT("1/2", pattern="2:4") >> OBS("3/4"), "n:m"), "PROVED"),
        (cc.keeps(Magnitude("1/2") >> OBS("1/2", pattern="1:2"), "mask"), "REFUTED"),
        (cc.keeps(AbsMax(bits=4) >> OBS("1/2"), "grid"), "REFUTED"),
        (cc.dominates(OBS("1/2"), Magnitude("1/2", per="row"), loss="output_l2"), "REFUTED"),
        (
            cc.dominates(OBS("1/2") >> GPTQ(bits=4, mask="kept"), GPTQ(bits=4) >> OBS("1/2"), loss="output_l2"),
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
        ({"sparsity": 1}, "OBS.sparsity"),
        ({"pattern": "1:4"}, "sparsity=3/4"),
        ({"damping": 0}, "OBS.damping"),
        ({"ties": "all"}, "OBS.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: OBS(**{"sparsity": "1/2", **parameters}), where)


def test_what_it_cannot_use() -> None:
    refused(lambda: OBS("1/2", pattern="2:4").encode(layer([[1, 2, 3]], [[1], [1], [1]])), "rows of 3")
    refused(lambda: OBS("1/2").encode(layer([[1, 2, 3]])), "no inputs")

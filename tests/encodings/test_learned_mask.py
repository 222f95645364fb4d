from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.learned_mask import LearnedMask
from compcomp.encodings.magnitude import Magnitude
from compcomp.layers.state import LayerState
from compcomp.terms import Batch, BatchChoices, RandomChoices, SymbolicChoices, smallest
from tests.helpers import layer, matrix, outcomes, refused

INPUTS = [[1], [1], [1], [1]]


def test_any_mask_of_the_count_is_a_result() -> None:
    def run(state: LayerState) -> LayerState:
        return LearnedMask("1/2").encode(replace(state, gram=matrix(np.eye(4, dtype=int))))

    assert outcomes(run, [[1, 2, 3, 4]], seeds=200) == {
        tuple(0 if j in gone else j + 1 for j in range(4)) for gone in combinations(range(4), 2)
    }


def test_a_pattern_limits_it() -> None:
    def run(state: LayerState) -> LayerState:
        return LearnedMask("1/2", pattern="1:2").encode(replace(state, gram=matrix(np.eye(4, dtype=int))))

    expected = {(0, 2, 0, 4), (0, 2, 3, 0), (1, 0, 0, 4), (1, 0, 3, 0)}
    assert outcomes(run, [[1, 2, 3, 4]], seeds=100) == expected


@pytest.mark.parametrize("seed", range(3))
def test_every_choice_is_feasible(seed: int) -> None:
    start = layer([[1, 0, 3, 4], [5, 6, 0, 8]], INPUTS, RandomChoices(seed))
    for technique in (LearnedMask("1/2"), LearnedMask("1/2", pattern="2:4"), LearnedMask("3/4", per="row")):
        assert technique.feasible(start, technique.encode(start))
    by_row, by_pattern = Magnitude("1/2", per="row"), Magnitude("1/2", pattern="2:4")
    assert LearnedMask("1/2").feasible(start, by_row.encode(start))
    assert LearnedMask("1/2", pattern="2:4").feasible(start, by_pattern.encode(start))
    assert not LearnedMask("1/2", pattern="2:4").feasible(start, by_row.encode(start))


def test_what_is_not_feasible() -> None:
    technique, start = LearnedMask("1/2"), layer([[1, 2, 3, 4]], INPUTS)
    after = technique.encode(start)
    assert technique.feasible(start, after)
    for wrong in (
        Magnitude("1/4").encode(start),
        Magnitude("3/4").encode(start),
        replace(after, weight=start.weight),
        replace(after, weight=after.weight * 2),
        replace(after, format=replace(after.format, mask=None)),
        replace(after, format=replace(after.format, mask=np.full((1, 4), True))),
        replace(after, format=replace(after.format, rank=1)),
        replace(after, format=replace(after.format, pattern=((2, 4),))),
    ):
        assert not technique.feasible(start, wrong)
    assert not LearnedMask("1/2", pattern="1:2").feasible(start, Magnitude("1/2").encode(start))


def test_weights_that_a_mask_drops_count_when_they_are_dropped_again() -> None:
    technique, start = LearnedMask("1/2"), layer([[1, 2, 3, 4]], INPUTS)
    masked = Magnitude("1/4").encode(start)  # drops 1
    for weight, mask, feasible in (
        ([0, 0, 3, 4], [False, False, True, True], True),  # the 0 and one more, or two more
        ([0, 0, 0, 4], [False, False, False, True], True),
        ([0, 0, 0, 0], [False, False, False, False], False),
        ([0, 2, 3, 4], [False, True, True, True], False),
    ):
        form = replace(masked.format, mask=np.array([mask]))
        assert bool(technique.feasible(masked, replace(masked, weight=matrix([weight]), format=form))) is feasible
    broken = replace(masked, weight=start.weight)  # the mask says 0, the weight is 1
    form = replace(masked.format, mask=np.array([[False, False, False, True]]))
    assert technique.feasible(broken, replace(broken, weight=matrix([[1, 0, 0, 4]]), format=form))
    assert not technique.feasible(broken, replace(broken, weight=matrix([[0, 0, 0, 4]]), format=form))


def test_equal_scores_that_are_numbers_leave_terms_free() -> None:
    """Constant scores have no reading of their own: any of them may go, in every reading."""
    batch = smallest([0, 0], 1, "any", BatchChoices(50, np.random.default_rng(0)))
    assert isinstance(batch[0], Batch)
    assert set(batch[0].values.tolist()) == {True, False}
    assert (batch[0].values ^ batch[1].values).all()
    symbolic = SymbolicChoices()
    taken = smallest([0, 0], 1, "any", symbolic)
    assert len(symbolic.premises) == 3 and str(taken[0]) != str(taken[1])


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"iterations": -1}, "LearnedMask.iterations"),
        ({"rate": 0}, "LearnedMask.rate"),
        ({"rate": "fast"}, "LearnedMask.rate"),
        ({"seed": -1}, "LearnedMask.seed"),
        ({"per": "token"}, "LearnedMask.per"),
        ({"pattern": "1:4"}, "LearnedMask"),
        ({"sparsity": 2}, "LearnedMask.sparsity"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: LearnedMask(**{"sparsity": "1/2", **parameters}), where)

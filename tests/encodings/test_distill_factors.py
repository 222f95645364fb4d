from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compcomp.encodings.distill_factors import DistillFactors
from compcomp.language.loss import LOSSES
from compcomp.layers.state import Factors, Format, Grid
from compcomp.techniques import AbsMax, TruncatedSVD
from tests.helpers import HUGE, layer, matrix, refused


def with_factors(state: Any, left: Any, right: Any) -> Any:
    return replace(state, format=replace(state.format, factors=Factors(matrix(left), matrix(right))))


def test_one_sweep_by_hand() -> None:
    """W = (2, 4; 1, 2) is of rank 1: for R = (1, 0) the fit to both inputs is L = (2, 1), then R = (1, 2)."""
    start = layer([[2, 4], [1, 2]], [[1, 0], [0, 1]])
    start = with_factors(replace(start, weight=start.weight * 0), [[1], [1]], [[1, 0]])
    after = DistillFactors().encode(start)
    assert after.format.factors is not None
    assert after.format.factors.left.tolist() == [[2], [1]] and after.format.factors.right.tolist() == [[1, 2]]
    assert after.effective().tolist() == start.reference.tolist()
    assert not after.weight.any()


def test_it_lowers_the_output_error_sweep_by_sweep() -> None:
    start = AbsMax(bits=2).encode(layer([[4, 1, -2], [1, 3, 2], [2, 2, 1]], [[1, 2, 0], [0, 1, 1], [2, 0, 1]]))
    start = with_factors(start, [[1], [0], [1]], [[0, 1, 1]])
    losses = [LOSSES["output_l2"].of(s) for s in (start, *(DistillFactors(k).encode(start) for k in (1, 2)))]
    assert losses[0] > losses[1] > losses[2] > 0


def test_it_makes_up_for_changed_inputs() -> None:
    start = layer([[1, 0], [0, 1]], [[2, 0], [0, 2]]).with_inputs(matrix([[1, 0], [0, 1]]))
    for factors in (([[0, 0], [0, 0]], [[1, 0], [0, 1]]), ([[1, 0], [0, 1]], [[0, 0], [0, 0]])):
        assert DistillFactors().encode(with_factors(start, *factors)).effective().tolist() == [[2, 0], [0, 2]]


def test_without_factors_nothing_happens() -> None:
    start = AbsMax(bits=2).encode(layer([[4, 1]], [[1, 0], [0, 1]]))
    assert DistillFactors(3).encode(start) is start


def test_factors_leave_their_grids() -> None:
    grid = Grid(matrix([[1], [1]]), 1, 1)
    factors = Factors(matrix([[1], [0]]), matrix([[0, 1]]), grid, None)
    start = replace(layer([[2, 4], [1, 2]], [[1, 0], [0, 1]]), format=Format(factors=factors))
    after = DistillFactors().encode(start).format.factors
    assert after is not None and after.left_grid is None


def test_after_a_truncation_by_outputs_there_is_nothing_to_gain() -> None:
    start = layer([[-3, 2], [3, 2]], [[-2, -1], [3, -3]])
    best = TruncatedSVD(rank=1, residual=True, metric="output").encode(replace(start, weight=start.weight * 0))
    assert DistillFactors().encode(best).effective().tolist() == best.effective().tolist()


def test_it_needs_inputs() -> None:
    refused(lambda: DistillFactors().encode(layer([[1, 2]])), "no inputs")


@pytest.mark.parametrize("given", [0, -1, 1001, 1.0, "1", None, True, HUGE])
def test_bad_sweeps(given: Any) -> None:
    refused(lambda: DistillFactors(given), "DistillFactors.sweeps")

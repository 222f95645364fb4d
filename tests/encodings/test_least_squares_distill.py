from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.least_squares_distill import LeastSquaresDistill
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.language.loss import loss_named
from tests.helpers import layer, matrix, refused, row

DISTILL = LeastSquaresDistill()
LOST = loss_named("output_l2").of
INPUTS = [[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]]


def test_without_a_mask_the_reference_comes_back() -> None:
    start = replace(layer([[1, 2]], [[1, 0], [1, 1]]), weight=matrix([[7, "1/3"]]))
    assert row(DISTILL.encode(start)) == [1, 2]


def test_within_a_mask_the_normal_equations_hold() -> None:
    start = Magnitude(sparsity="1/2").encode(layer([[3, 1, -2, 4], [2, 5, 1, -1]], INPUTS))
    after = DISTILL.encode(start)
    assert start.format.mask is not None and after.gram is not None
    slope = (after.reference - after.weight) @ after.gram
    assert all(slope[start.format.mask.astype(bool)] == 0)
    assert all(after.weight[~start.format.mask.astype(bool)] == 0)
    assert LOST(after) < LOST(start)


def test_the_least_change_where_the_inputs_leave_it_open() -> None:
    """Both features always agree, so only the sum of the weights matters: the gap of 1 is shared."""
    start = replace(layer([[1, 2]], [[1, 3], [1, 3]]), weight=matrix([[0, 2]]))
    assert row(DISTILL.encode(start)) == [matrix([["1/2"]])[0, 0], matrix([["5/2"]])[0, 0]]


def test_the_weight_of_a_dead_input_stays() -> None:
    start = replace(layer([[1, 2]], [[1], [0]]), weight=matrix([[0, 5]]))
    assert row(DISTILL.encode(start)) == [1, 5]


def test_factors_are_accounted_for() -> None:
    start = replace(layer([[5, 1], [2, 2]], [[1, 0], [1, 1]]), weight=matrix([[4, 1], [2, 2]]))
    start = TruncatedSVD(rank=1, residual=True).encode(start)
    assert np.array_equal(start.effective(), start.reference)
    assert np.array_equal(DISTILL.encode(start).weight, start.weight)


@pytest.mark.parametrize("prune_first", [True, False])
def test_on_a_grid_it_improves_and_stays_on_the_grid_and_in_the_mask(prune_first: bool) -> None:
    prune, quantize = Magnitude(sparsity="1/4", per="row"), AbsMax(bits=3, group=2)
    order = prune >> quantize if prune_first else quantize >> prune
    start = order.encode(layer([[10, 3, -7, 4], [2, 9, 1, -5]], INPUTS))
    after = DISTILL.encode(start)
    grid, mask = after.format.grid, after.format.mask
    assert grid is not None and mask is not None and grid is start.format.grid
    assert all(w % s == 0 and abs(w) <= 3 * s for w, s in zip(after.weight.ravel(), grid.step.ravel(), strict=True))
    assert all(after.weight[~mask.astype(bool)] == 0)
    assert LOST(after) < LOST(start)


def test_on_a_grid_it_is_no_minimiser() -> None:
    start = AbsMax(bits=2).encode(layer([[10, 4, 4, 4]], INPUTS))
    best = min(
        LOST(replace(start, weight=matrix([[10 * k for k in levels]]))) for levels in product((-1, 0, 1), repeat=4)
    )
    assert (best, LOST(DISTILL.encode(start)), LOST(start)) == (12, 72, 352)


def test_it_is_a_no_op_at_the_reference() -> None:
    dense = layer([[3, 1, -2, 4]], INPUTS)
    assert np.array_equal(DISTILL.encode(dense).weight, dense.weight)
    quantized = AbsMax(bits=4).encode(dense)
    quantized = replace(quantized, reference=quantized.weight)
    assert np.array_equal(DISTILL.encode(quantized).weight, quantized.weight)


def test_it_needs_inputs() -> None:
    assert DISTILL.needs_inputs
    refused(lambda: DISTILL.encode(layer([[1, 2]])), "no inputs", "LeastSquaresDistill()")

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.layers.state import Factors, Format
from tests.helpers import HUGE, layer, matrix, refused


def test_the_largest_singular_values_stay() -> None:
    state = TruncatedSVD(rank=2).encode(layer([[3, 0, 0], [0, 0, -2], [0, 1, 0]]))
    assert state.weight.tolist() == [[3, 0, 0], [0, 0, -2], [0, 0, 0]]
    assert state.format == Format(rank=2)


def test_a_rotated_matrix() -> None:
    """U diag(2, 1) V^T with U = V = ((3, -4), (4, 3)) / 5, so rank 1 leaves 2 u v^T."""
    u = matrix([["3/5", "-4/5"], ["4/5", "3/5"]])
    weight = u @ matrix([[2, 0], [0, 1]]) @ u.T
    state = TruncatedSVD(rank=1).encode(layer(weight.tolist()))
    assert state.weight.tolist() == (2 * u[:, :1] @ u[:, :1].T).tolist()


@pytest.mark.parametrize("weight", [[[1, 0], [0, 1]], [[1, 1], [0, 1]]], ids=["not unique", "not rational"])
def test_no_exact_optimum_says_so(weight: list[list[int]]) -> None:
    with pytest.raises(NotExactError):
        TruncatedSVD(rank=1).encode(layer(weight))


def test_a_neighbouring_eigenvalue_is_not_mistaken_for_the_largest() -> None:
    """W W^T has the eigenvalues 4.30..., 4 and 0.69...: the largest is not rational."""
    with pytest.raises(NotExactError):
        TruncatedSVD(rank=1).encode(layer([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 2]]))


@pytest.mark.parametrize("rank", [2, 3, 65536 // 4096])
@pytest.mark.parametrize("residual", [False, True])
def test_a_rank_above_the_sides_changes_nothing(rank: int, residual: bool) -> None:
    start = Magnitude(sparsity="1/2").encode(layer([[1, 2, 3], [4, 5, 6]]))
    after = TruncatedSVD(rank=rank, residual=residual).encode(start)
    assert np.array_equal(after.effective(), start.reference if residual else start.weight)


def test_the_residual_is_added_to_the_branch() -> None:
    start = AbsMax(bits=2).encode(layer([[4, 1], [1, 4]]))
    assert start.weight.tolist() == [[4, 0], [0, 4]]
    factors = Factors(matrix([[1], [0]]), matrix([[0, 1]]))
    after = TruncatedSVD(rank=1, residual=True).encode(replace(start, format=replace(start.format, factors=factors)))
    assert after.format.grid is start.format.grid
    assert after.format.factors is not None and after.format.factors.rank == 2
    assert after.format.factors.left[:, 0].tolist() == [1, 0]
    assert after.weight.tolist() == start.weight.tolist()
    assert after.effective().tolist() == [[4, 1], [1, 4]]


def test_replacing_the_weight_takes_the_factors_in() -> None:
    start = layer([[2, 0], [0, 0]])
    factors = Factors(matrix([[0], [1]]), matrix([[0, 1]]))
    after = TruncatedSVD(rank=2).encode(replace(start, format=Format(rank=1, factors=factors)))
    assert after.weight.tolist() == [[Fraction(2), 0], [0, 1]]
    assert after.format == Format(rank=2)


def test_the_outputs_decide_what_stays() -> None:
    """The inputs see the second row nine times as much: it stays, although the first is larger."""
    start = layer([[2, 0], [0, 1]], [[1, 0], [0, 3]])
    assert TruncatedSVD(rank=1).encode(start).weight.tolist() == [[2, 0], [0, 0]]
    after = TruncatedSVD(rank=1, metric="output").encode(start)
    assert after.weight.tolist() == [[0, 0], [0, 1]]
    assert after.format == Format(rank=1)


@pytest.mark.parametrize(
    ("weight", "inputs"),
    [
        ([[-3, 2], [3, 2]], [[-2, -1], [3, -3]]),
        ([[2, 2], [-1, 1]], [[3, 3], [-2, 1]]),
        ([[3, 3], [1, -1]], [[-1, -3], [2, 2]]),
    ],
)
def test_no_matrix_of_that_rank_has_closer_outputs(weight: Any, inputs: Any) -> None:
    """Against every matrix u v^T with entries in quarters of u and v up to 2."""
    start = layer(weight, inputs)
    after = TruncatedSVD(rank=1, metric="output").encode(start)
    best = LOSSES["output_l2"].of(after)
    error = start.weight.astype(float) @ start.inputs.astype(float)
    left = np.linalg.svd(error)[1][1:]
    assert float(best) == pytest.approx(float((left**2).sum()), abs=1e-9)
    values = [Fraction(k, 2) for k in range(-4, 5)]
    for a, b, c in product(values, repeat=3):
        for u in ([1, a], [a, 1]):
            other = replace(start, weight=matrix([[u[0] * b, u[0] * c], [u[1] * b, u[1] * c]]))
            assert LOSSES["output_l2"].of(other) >= best


def test_what_no_input_sees_goes_to_zero() -> None:
    """One token: M X has rank 1, and a third of M is not seen. From the full rank on, everything stays."""
    start = layer([[1, 0, 5], [0, 1, 0], [1, 1, 1]], [[1], [1], [0]])
    after = TruncatedSVD(rank=2, metric="output").encode(start)
    assert (after.weight @ start.inputs).tolist() == (start.weight @ start.inputs).tolist()
    u = matrix([[1], [1], [2]])
    assert after.weight.tolist() == (u @ (u.T @ start.weight) / 6).tolist()
    assert TruncatedSVD(rank=3, metric="output").encode(start).weight.tolist() == start.weight.tolist()
    blind = layer([[1, 2], [3, 4]], [[0], [0]])
    assert TruncatedSVD(rank=1, metric="output").encode(blind).weight.tolist() == [[0, 0], [0, 0]]


def test_the_residual_makes_up_for_changed_inputs() -> None:
    """The input is halved on its way, so the weight that gives the dense output is twice the dense one."""
    start = layer([[1, 0], [0, 1]], [[2, 0], [0, 2]]).with_inputs(matrix([[1, 0], [0, 1]]))
    after = TruncatedSVD(rank=2, residual=True, metric="output").encode(start)
    assert after.effective().tolist() == [[2, 0], [0, 2]]
    assert TruncatedSVD(rank=2, residual=True).encode(start).effective().tolist() == [[1, 0], [0, 1]]


def test_outputs_need_inputs() -> None:
    refused(lambda: TruncatedSVD(rank=1, metric="output").encode(layer([[1, 2]])), "no inputs")
    assert TruncatedSVD(rank=1, metric="output").needs_inputs and not TruncatedSVD(rank=1).needs_inputs


@pytest.mark.parametrize("given", ["outputs", "", None, 1, HUGE])
def test_bad_metric(given: Any) -> None:
    refused(lambda: TruncatedSVD(rank=1, metric=given), "TruncatedSVD.metric", "'weight', 'output'")


@pytest.mark.parametrize("given", [0, -1, 2**16 + 1, HUGE, 1.0, "8", None, True])
def test_bad_rank(given: Any) -> None:
    refused(lambda: TruncatedSVD(rank=given), "TruncatedSVD.rank")


@pytest.mark.parametrize("given", [0, 1, "yes", None, HUGE])
def test_bad_residual(given: Any) -> None:
    refused(lambda: TruncatedSVD(rank=1, residual=given), "TruncatedSVD.residual", "True or False")

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from compcomp.algebra.least_squares import right_factor
from compcomp.encodings.lplr import FINENESS, LPLR
from compcomp.layers.state import Factors, Format
from compcomp.terms import RandomChoices
from tests.helpers import layer, matrix, refused


def test_by_hand() -> None:
    """S is (1, 1) up to sign: W S = (3, 1) goes to the grid 3 k / 1 as (3, 0); R = (1, 0) W / 3 = (1, 0)."""
    technique = LPLR(rank=1, bits=2, sketch="signs", seed=next(k for k in range(9) if _signs(k) == [1, 1]))
    after = technique.encode(layer([[3, 0], [0, 1]]))
    factors = after.format.factors
    assert factors is not None
    assert factors.left.tolist() == [[3], [0]] and factors.right.tolist() == [[1, 0]]
    assert after.weight.tolist() == [[0, 0], [0, 0]] and after.effective().tolist() == [[3, 0], [0, 0]]
    assert after.format == Format(factors=factors, rank=0)
    assert factors.left_grid is not None and factors.left_grid.step.tolist() == [[3], [3]]
    assert factors.right_grid is not None and factors.right_grid.step.tolist() == [[1, 1]]
    assert (factors.left_grid.scales, factors.right_grid.levels) == (1, 1)


def _signs(seed: int) -> list[int]:
    return [int(x) for x in LPLR(rank=1, bits=2, sketch="signs", seed=seed).sketched(2)[:, 0]]


def test_sketches_are_seeded_and_of_their_kind() -> None:
    one, same, other = (LPLR(rank=50, bits=2, seed=k).sketched(40) for k in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert abs(float(one.std()) / FINENESS - 1) < 0.1 and abs(float(one.mean()) / FINENESS) < 0.1
    signs = LPLR(rank=50, bits=2, sketch="signs").sketched(40)
    assert set(signs.ravel().tolist()) == {1, -1} and abs(float(signs.mean())) < 0.1


def test_the_right_factor_is_a_least_squares_fit_of_least_norm() -> None:
    left, target = matrix([[1, 2], [2, 4], [0, 0]]), matrix([[5, 0], [0, 5], [1, 1]])
    right = right_factor(left, target, layer([[1]]).choices)
    assert (left.T @ (target - left @ right)).tolist() == [[0, 0], [0, 0]]
    assert (matrix([[2, -1]]) @ right).tolist() == [[0, 0]]  # nothing along the null space of the left factor
    expected = np.linalg.pinv(left.astype(float)) @ target.astype(float)
    assert np.allclose(right.astype(float), expected)


def test_many_bits_and_the_full_rank_lose_little() -> None:
    start = layer([[1, 2, 3], [4, 5, 7]])
    after = LPLR(rank=2, bits=16).encode(start)
    error = after.effective() - start.weight
    assert 0 < max(abs(x) for x in error.ravel()) < Fraction(1, 100)


def test_it_starts_from_what_the_layer_computes_with() -> None:
    factors = Factors(matrix([[0], [1]]), matrix([[0, 1]]))
    mask = np.array([[True, False], [False, False]], dtype=object)
    start = replace(layer([[3, 0], [0, 0]]), format=Format(mask=mask, factors=factors))
    after = LPLR(rank=2, bits=4).encode(start)
    plain = LPLR(rank=2, bits=4).encode(layer([[3, 0], [0, 1]]))
    assert after.effective().tolist() == plain.effective().tolist() and after.format.mask is None


def test_free_midpoints() -> None:
    technique = LPLR(rank=1, bits=2, sketch="signs", rounding="any")
    found = {tuple(technique.encode(layer([[1, 2]], choices=RandomChoices(seed))).effective()[0]) for seed in range(20)}
    assert found == {(0, 2), (2, 2)}


def test_a_layer_of_zeros_stays_zero() -> None:
    assert not LPLR(rank=1, bits=4).encode(layer([[0, 0]])).effective().any()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("rank", x) for x in (0, -1, 2**16 + 1, 1.0, None)),
        *(("bits", x) for x in (1, 17, 2.0, "4", None, True)),
        *(("right_bits", x) for x in (1, 17, 2.0, "4", True)),
        *(("sketch", x) for x in ("normal", "", None, 1)),
        *(("seed", x) for x in (-1, 2**32, 1.0, None, True)),
        *(("rounding", x) for x in ("up", "", None, 1)),
    ],
)
def test_bad_parameters(name: str, given: Any) -> None:
    refused(lambda: LPLR(**{"rank": 1, "bits": 4, name: given}), f"LPLR.{name}")

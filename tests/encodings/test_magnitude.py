from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.magnitude import Magnitude
from compcomp.layers.state import Factors, Format
from tests.helpers import HUGE, layer, matrix, outcomes, refused, row


def test_the_running_minimum_of_the_paper_is_not_repeated() -> None:
    """The published pseudocode compares magnitudes with a signed minimum: it prunes -3, 1 and 2 here."""
    assert row(Magnitude(sparsity="1/4").encode(layer([[-3, 4, 1, 2]]))) == [-3, 4, 0, 2]


@pytest.mark.parametrize(("ties", "expected"), [("first", {(0, 0, 2, 1)}), ("all", {(0, 0, 2, 0)}), ("any", None)])
def test_ties(ties: str, expected: set[tuple[int, ...]] | None) -> None:
    """With ties="all" every weight that equals the threshold goes, as If(Abs(w) <= threshold, 0, w) does."""
    expected = expected or {(0, 0, 2, 1), (0, -1, 2, 0), (1, 0, 2, 0)}
    assert outcomes(Magnitude(sparsity="1/2", ties=ties).encode, [[1, -1, 2, 1]]) == expected


@pytest.mark.parametrize("ties", ["first", "all", "any"])
def test_nothing_to_drop_drops_nothing(ties: str) -> None:
    state = Magnitude(sparsity="1/5", ties=ties).encode(layer([[0, 0, 1, 2]]))
    assert row(state) == [0, 0, 1, 2]
    assert state.format.mask is not None and state.format.mask.all()


def test_the_count_is_exact() -> None:
    assert int(100 * 0.29) == 28, "floats lose one here"
    state = Magnitude(sparsity=0.29).encode(layer([list(range(1, 101))]))
    assert sum(w == 0 for w in row(state)) == 29
    assert sum(w == 0 for w in row(Magnitude(sparsity="2/3").encode(layer([[1, 2, 3, 4]])))) == 2


def test_groups() -> None:
    weight = [[1, 2, 3, 4], [5, 6, 7, 8]]
    half = Fraction(1, 2)
    assert Magnitude(half).encode(layer(weight)).weight.tolist() == [[0, 0, 0, 0], [5, 6, 7, 8]]
    assert Magnitude(half, per="row").encode(layer(weight)).weight.tolist() == [[0, 0, 3, 4], [0, 0, 7, 8]]
    pairs = Magnitude(half, pattern="1:2").encode(layer(weight)).weight
    assert pairs.tolist() == [[0, 2, 0, 4], [0, 6, 0, 8]]


def test_an_all_zero_group_loses_its_first_weights() -> None:
    state = Magnitude(sparsity="1/2", pattern="2:4").encode(layer([[0, 0, 0, 0, 1, 2, 3, 4]]))
    assert row(state) == [0, 0, 0, 0, 0, 0, 3, 4]
    assert state.format.mask is not None
    assert state.format.mask[0].tolist() == [False, False, True, True, False, False, True, True]


def test_masks_accumulate_and_the_rest_of_the_format_stays() -> None:
    start = Magnitude(sparsity="1/4").encode(layer([[4, -4, 1, 2]]))
    grid = AbsMax(bits=4).encode(start).format.grid
    factors = Factors(matrix([[1]]), matrix([[1, 1, 1, 1]]))
    start = replace(start, format=Format(start.format.mask, grid, factors, rank=1))
    after = Magnitude(sparsity="1/4", ties="any").encode(start)
    assert after.format.mask is not None
    assert after.format.mask[0].tolist() == [True, True, False, True]
    assert after.format.grid is grid and after.format.factors is factors
    assert after.format.rank is None


def test_scores_of_the_dense_weights() -> None:
    """Quantized to (0, 2, 2, 4) the second and third tie; the dense weights order them."""
    start = AbsMax(bits=3, rounding="half_up").encode(layer([["1/3", 2, "-3/2", 3]]))
    start = replace(start, weight=matrix([[1, 2, 2, 4]]))
    assert row(Magnitude(sparsity="1/2").encode(start)) == [0, 0, 2, 4]
    assert row(Magnitude(sparsity="1/2", of="dense").encode(start)) == [0, 2, 0, 4]


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("weight", [[[5, -2, 2, 1]], [[7, 3, -3, 3]], [[0, 0, 0, 0]]])
def test_with_dense_scores_pruning_and_quantizing_commute(ties: str, weight: Any) -> None:
    prune, quantize = Magnitude(sparsity="1/2", of="dense", ties=ties), AbsMax(bits=2)
    one, other = (order.encode(layer(weight)) for order in (prune >> quantize, quantize >> prune))
    assert row(one) == row(other)
    assert one.format.mask is not None and other.format.mask is not None
    assert one.format.mask.tolist() == other.format.mask.tolist()


@pytest.mark.parametrize(
    "given", [-1, 1, "1", 2, float("nan"), float("inf"), "nan", "half", "1/0", "", None, True, [], HUGE, "1e999999999"]
)
def test_bad_sparsity(given: Any) -> None:
    refused(lambda: Magnitude(sparsity=given), "Magnitude.sparsity", "[0, 1)")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"pattern": "2:8"}, "sparsity=3/4"),
        ({"pattern": "4:2"}, "Magnitude.pattern"),
        ({"pattern": "0:4"}, "Magnitude.pattern"),
        ({"pattern": "2:999"}, "Magnitude.pattern"),
        ({"pattern": "2:4\n"}, "Magnitude.pattern"),
        ({"pattern": None}, "Magnitude.pattern"),
        ({"pattern": 10**60}, "Magnitude.pattern"),
        ({"per": "column"}, "Magnitude.per"),
        ({"ties": "last"}, "Magnitude.ties"),
        ({"of": "reference"}, "Magnitude.of"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: Magnitude(sparsity="1/2", **parameters), where)


def test_a_pattern_must_divide_the_row() -> None:
    refused(lambda: Magnitude("1/2", pattern="2:4").encode(layer([[1, 2, 3, 4, 5, 6]])), "rows of 6", "1x6")

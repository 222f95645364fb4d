from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import compcomp as cc
from compcomp.language.loss import loss_named
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, OBQ, AbsMax, Magnitude, SparseGPT
from compcomp.terms import Choices, RandomChoices, nearest
from compcomp.testing import check_encoding
from tests.encodings.test_obs import damped
from tests.helpers import HUGE, layer, refused, row

ALIKE = [[2, 1, 0, 1], [1, 2, 0, 1], [1, 1, 1, 1], [0, 1, 1, 3]]
LOST = loss_named("output_l2").of


def greedy(state: LayerState, bits: int, damping: Fraction) -> list[list[Fraction]]:
    """The definition, written down again: what is left is solved anew at each step, with no inverse updated."""
    gram, levels, found = damped(state, damping), 2 ** (bits - 1) - 1, []
    for weight in state.weight:
        step = max(map(abs, weight)) / levels
        values, left = list(weight), list(range(len(weight)))
        while left:
            inverse = _inverse(gram[np.ix_(left, left)])
            goals = [nearest(values[j], step, levels, "half_even", Choices()) for j in left]
            losses = [(values[j] - q) ** 2 / inverse[k, k] for k, (j, q) in enumerate(zip(left, goals, strict=True))]
            chosen = min(range(len(left)), key=lambda k: losses[k])
            error = values[left[chosen]] - goals[chosen]
            for k, j in enumerate(left):
                values[j] = values[j] - error * inverse[chosen, k] / inverse[chosen, chosen]
            values[left[chosen]] = goals[chosen]
            del left[chosen]
        found.append(values)
    return found


def _inverse(matrix: Any) -> Any:
    """By the adjugate: nothing in common with the way the encoding goes."""
    side = len(matrix)
    whole = _determinant(matrix)
    result = np.empty((side, side), dtype=object)
    for i, j in np.ndindex(side, side):
        minor = np.delete(np.delete(matrix, j, axis=0), i, axis=1)
        result[i, j] = (-1) ** (i + j) * _determinant(minor) / whole
    return result


def _determinant(matrix: Any) -> Fraction:
    if not len(matrix):
        return Fraction(1)
    rest = np.delete(matrix, 0, axis=0)
    terms = ((-1) ** j * matrix[0, j] * _determinant(np.delete(rest, j, axis=1)) for j in range(len(matrix)))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("bits", [2, 3])
def test_each_rounding_is_the_one_of_least_loss(bits: int) -> None:
    random = np.random.default_rng(bits)
    for _ in range(12):
        state = layer(random.integers(-9, 10, (2, 4)).tolist(), random.integers(-2, 3, (4, 5)).tolist())
        if any(state.gram[j, j] == 0 for j in range(4)):  # type: ignore[index]
            continue
        expected = greedy(state, bits, Fraction(1, 100))
        assert OBQ(bits=bits).encode(state).weight.tolist() == expected


def test_no_weight_leaves_the_range_of_its_row() -> None:
    """Even where an error of the one is one of many steps of the other: small errors go first."""
    random = np.random.default_rng(0)
    for _ in range(40):
        inputs = random.integers(-1, 2, (4, 4)) + random.integers(-4, 5, (1, 4)) * random.integers(1, 9, (4, 1))
        state = layer([random.choice([60, 59, 58, -60, 37, 14, -5], 4).tolist()], inputs.tolist())
        after = OBQ(bits=4, damping="1/1000").encode(state)
        assert max(map(abs, row(after))) <= max(map(abs, row(state)))
        assert np.array_equal(OBQ(bits=4, damping="1/1000").encode(after).weight, after.weight)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    start = layer([[1, "7/2", -2, 5], [0, 0, 1, "1/3"]], [[3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    after = OBQ(bits=3).encode(start)
    expected = AbsMax(bits=3, group=4).encode(start)
    assert np.array_equal(after.weight, expected.weight)
    assert after.format.grid is not None and expected.format.grid is not None
    assert np.array_equal(after.format.grid.step, expected.format.grid.step)
    assert (after.format.grid.levels, after.format.grid.scales) == (3, 2)


def test_less_is_lost_than_by_rounding_where_inputs_are_alike() -> None:
    start = layer([[7, 3, -4, 2], [2, 5, 6, -3]], ALIKE)
    assert LOST(OBQ(bits=2).encode(start)) < LOST(AbsMax(bits=2, group=4).encode(start))


def test_zeros_stay_zero() -> None:
    start = Magnitude("1/2").encode(layer([[4, 3, -1, 2], [1, 5, 6, -2]], ALIKE))
    after = OBQ(bits=3).encode(start)
    assert not any(after.weight[~start.format.mask.astype(bool)] != 0)  # type: ignore[union-attr]
    assert np.array_equal(after.format.mask, start.format.mask)


def test_weights_of_dead_inputs_go_but_count_for_the_scale() -> None:
    after = OBQ(bits=3).encode(layer([[6, 1, 2, 3]], [[0], [1], [2], [1]]))
    assert row(after)[0] == 0
    assert after.format.grid is not None and after.format.grid.step[0, 0] == 2


def test_what_comes_first_among_roundings_without_loss_does_not_matter() -> None:
    start = layer([[3, -3, 0, 2], [1, 1, 1, 1]], ALIKE)
    once = OBQ(bits=2).encode(start)
    for seed in range(20):
        other = OBQ(bits=2, ties="any").encode(replace(start, choices=RandomChoices(seed)))
        assert np.array_equal(other.weight, once.weight)


@pytest.mark.parametrize("technique", [OBQ(bits=4, damping=1), OBQ(bits=2, rounding="half_up", ties="any")])
def test_other_conventions(technique: OBQ) -> None:
    assert check_encoding(technique, max_examples=40).clear >= 10


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        (cc.keeps(Magnitude("1/2") >> OBQ(bits=4), "mask"), "PROVED"),
        (cc.keeps(SparseGPT("1/2", pattern="2:4") >> OBQ(bits=4), "n:m"), "PROVED"),
        (cc.keeps(AbsMax(bits=4) >> OBQ(bits=3), "rank"), "VACUOUS"),
        (cc.dominates(OBQ(bits=4), GPTQ(bits=4), loss="output_l2"), "REFUTED"),
        (cc.dominates(GPTQ(bits=4), OBQ(bits=4), loss="output_l2"), "REFUTED"),
    ],
    ids=str,
)
def test_verdicts(claim: Any, status: str) -> None:
    assert str(cc.prove(claim, timeout=20).status) == status


@pytest.mark.parametrize("given", [1, 0, 17, HUGE, 4.0, "4", None, True])
def test_bad_bits(given: Any) -> None:
    refused(lambda: OBQ(bits=given), "OBQ.bits", "from 2 to 16")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"damping": 0}, "OBQ.damping"),
        ({"rounding": "nearest"}, "OBQ.rounding"),
        ({"ties": "all"}, "OBQ.ties"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: OBQ(bits=4, **parameters), where)

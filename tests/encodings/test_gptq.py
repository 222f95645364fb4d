from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

import compcomp as cc
from compcomp.techniques import GPTQ, AbsMax, Magnitude, TruncatedSVD
from compcomp.terms import RandomChoices
from compcomp.testing import check_encoding
from tests.amount import spread
from tests.helpers import HUGE, layer, matrix, refused, row

DIAGONAL = [[3, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
ALIKE = [[2, 1, 0], [1, 2, 0], [1, 1, 1]]


def test_by_hand() -> None:
    """H = [[4, 2], [2, 4]] with damping 1: rounding column 1 by e changes column 2 by e times H_12 / H_22 = 1/2."""
    after = GPTQ(bits=2, damping=1).encode(layer([[1, 4]], [[1, 1], [1, 1]]))
    assert row(after) == [0, 4]  # column 2 is 4 + 1/2 before it is rounded: the largest value is 4
    after = GPTQ(bits=3, damping=1).encode(layer([[2, 3]], [[1, 1], [1, 1]]))
    assert row(after) == [2, 3]
    after = GPTQ(bits=3, damping=1).encode(layer([["7/5", "8/5", 3]], [[1, 1], [1, 1], [0, 0]]))
    # The dead input is set to 1: H = diag(5/3 .. ) + [[2, 2], [2, 2]]; 7/5 becomes 1, 8/5 grows by 2/5 * 2/(2 + 5/3).
    assert row(after) == [1, 2, 0]
    assert after.format.grid is not None
    assert (after.format.grid.levels, after.format.grid.scales) == (3, 1)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("order", ["left_to_right", "activation"])
def test_independent_inputs_are_rounded_to_nearest(group: int, order: str) -> None:
    start = layer([[1, "7/2", -2, 5], [0, 0, 1, "1/3"]], DIAGONAL)
    after = GPTQ(bits=3, group=group, order=order, static_groups=order == "activation").encode(start)
    expected = AbsMax(bits=3, group=group).encode(start)
    assert np.array_equal(after.weight, expected.weight)
    assert after.format.grid is not None and expected.format.grid is not None
    assert np.array_equal(after.format.grid.step, expected.format.grid.step)
    assert after.format.grid.scales == expected.format.grid.scales


def test_the_error_is_spread_as_least_squares_would() -> None:
    """After column j is fixed, those to the right are the damped least-squares answer to the errors so far."""
    start = layer([[3, -1, 2], [5, 4, 1]], ALIKE)
    gram = start.gram + np.diag([np.trace(start.gram) / 3 * Fraction(1, 10)] * 3)
    after = GPTQ(bits=2, damping="1/10", order="left_to_right").encode(start)
    for i in range(2):
        for j in range(3):
            error = after.weight[i, :j] - start.weight[i, :j]
            if j:
                rest = np.linalg.solve(gram[j:, j:].astype(float), -(gram[j:, :j] @ error).astype(float))
            else:
                rest = np.zeros(3)
            target = float(start.weight[i, j]) + rest[0]
            step = float(after.format.grid.step[i, j])  # type: ignore[union-attr]
            nearest = min((k * step for k in (-1, 0, 1)), key=lambda value: abs(value - target))
            assert float(after.weight[i, j]) == pytest.approx(nearest)


def test_groups_take_their_scale_from_the_weights_as_they_are_by_then() -> None:
    start = layer([[5, 2, 3, 1]], [[1, 2], [1, 1], [2, 3], [1, 1]])
    moving, still = (
        GPTQ(bits=2, group=2, order="left_to_right", static_groups=static).encode(start) for static in (False, True)
    )
    grids = [state.format.grid for state in (moving, still)]
    assert grids[0] is not None and grids[1] is not None
    assert grids[1].step[0].tolist() == [5, 5, 3, 3]
    assert grids[0].step[0, 0] == 5
    assert grids[0].step[0, 2] != 3
    assert grids[0].scales == 2


def test_activation_order_goes_by_the_diagonal() -> None:
    """Column 2 first: its error goes to column 1, not the other way round."""
    inputs = [[1, 0], [3, 1]]
    given, turned = [["4/3", "5/4"]], [["5/4", "4/3"]]
    after = GPTQ(bits=3, order="activation").encode(layer(given, inputs))
    as_given = GPTQ(bits=3, order="left_to_right")
    expected = as_given.encode(layer(turned, inputs[::-1]))
    assert row(after) == row(expected)[::-1]
    assert row(after) != row(as_given.encode(layer(given, inputs)))


def test_weights_of_dead_inputs_go_but_count_for_the_scale_of_a_row() -> None:
    start = layer([[6, 1, 2, 0]], [[0], [1], [0], [1]])
    whole = GPTQ(bits=3).encode(start)
    assert row(whole)[0] == row(whole)[2] == 0
    assert whole.format.grid is not None and whole.format.grid.step[0, 0] == 2
    grouped = GPTQ(bits=3, group=2).encode(start).format.grid
    assert grouped is not None and grouped.step[0].tolist()[:2] == [Fraction(1, 3)] * 2


def test_the_mask_is_broken_unless_it_is_to_be_kept() -> None:
    start = Magnitude("1/2").encode(layer([[0, 0, 1, 0], [3, 2, 2, 0]], [[0], [1], [1], [1]]))
    broken = GPTQ(bits=4).encode(start)
    assert start.format.mask is not None
    assert any(broken.weight[~start.format.mask.astype(bool)] != 0)
    assert broken.format.mask is None
    kept = GPTQ(bits=4, mask="kept").encode(start)
    assert not any(kept.weight[~start.format.mask.astype(bool)] != 0)
    assert np.array_equal(kept.format.mask, start.format.mask)


def test_a_kept_mask_is_restored_and_the_error_spread() -> None:
    start = layer([[4, 2, 4]], [[1], [1], [1]])
    mask = np.array([[True, False, True]], dtype=object)
    kept = GPTQ(bits=2, mask="kept").encode(replace(start, format=replace(start.format, mask=mask)))
    assert row(kept)[1] == 0
    grid = kept.format.grid
    assert grid is not None and set(grid.step[0]) == {4}


def test_factors_stay_and_the_rank_does_not() -> None:
    start = TruncatedSVD(rank=1, residual=True).encode(replace(layer([[3, 1]], [[1], [1]]), weight=matrix([[2, 1]])))
    after = GPTQ(bits=2).encode(replace(start, format=replace(start.format, rank=1)))
    assert after.format.factors is start.format.factors
    assert after.format.rank is None


def test_any_rounding_reaches_both_sides() -> None:
    found = {
        tuple(row(GPTQ(bits=3, rounding="any").encode(layer([[1, 2]], [[1, 0], [0, 1]], RandomChoices(seed)))))
        for seed in range(30)
    }
    assert found == {(Fraction(2, 3), 2), (Fraction(4, 3), 2)}


@pytest.mark.parametrize(("damping", "bits"), spread(product(["1/1000", 1], [2, 4, 8]), 3))
def test_other_bits_and_damping(damping: Any, bits: int) -> None:
    assert check_encoding(GPTQ(bits=bits, group=3, damping=damping, order="activation"), max_examples=25).clear >= 8


def test_that_it_breaks_a_mask_is_refuted_with_a_small_witness() -> None:
    claim = cc.keeps(Magnitude("1/2") >> GPTQ(bits=4), "mask")
    for scope in ("any", "1x3"):
        verdict = cc.prove(claim, scope, timeout=20)
        assert str(verdict.status) == "REFUTED"
        assert verdict.witness is not None
        assert all(x.denominator == 1 and abs(x) <= 20 for entries in verdict.witness.weight for x in entries)
    kept = cc.prove(cc.keeps(Magnitude("1/2") >> GPTQ(bits=4, mask="kept"), "mask"))
    assert kept.proved
    assert any(a.about in ("keeps the mask", "restores the mask") for a in kept.assumptions)


@pytest.mark.parametrize("given", [1, 0, 17, HUGE, 4.0, "4", None, True])
def test_bad_bits(given: Any) -> None:
    refused(lambda: GPTQ(bits=given), "GPTQ.bits", "from 2 to 16")


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"group": 0}, "GPTQ.group"),
        ({"damping": 0}, "GPTQ.damping"),
        ({"damping": "-1/100"}, "GPTQ.damping"),
        ({"damping": "much"}, "GPTQ.damping"),
        ({"order": "act"}, "GPTQ.order"),
        ({"static_groups": 1, "group": 2}, "GPTQ.static_groups"),
        ({"rounding": "nearest"}, "GPTQ.rounding"),
        ({"mask": True}, "GPTQ.mask"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], where: str) -> None:
    refused(lambda: GPTQ(bits=4, **parameters), where)


def test_what_it_cannot_use() -> None:
    refused(lambda: GPTQ(bits=4, group=4).encode(layer([[1, 2, 3]], ALIKE)), "rows of 3", "groups of 4")
    refused(lambda: GPTQ(bits=4).encode(layer([[1, 2, 3]])), "no inputs")
    refused(lambda: GPTQ(bits=Any).encode(layer([[1]], [[1]])), "Any")

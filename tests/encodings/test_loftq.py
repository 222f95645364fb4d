from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.loftq import LoftQ
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.language.loss import LOSSES
from compcomp.layers.state import Factors, Format
from tests.helpers import layer, matrix, outcomes, refused


def test_two_rounds_by_hand() -> None:
    """One level of step 4: 1 goes to 0, and from there into the low-rank term."""
    start = layer([[4, 0], [0, 1]])
    first = LoftQ(bits=2, rank=1, rounds=1).encode(start)
    assert first.weight.tolist() == [[4, 0], [0, 0]]
    assert (first.effective() - first.weight).tolist() == [[0, 0], [0, 1]]
    assert first.format.grid is not None and first.format.grid.step.tolist() == [[4, 4], [4, 4]]
    again = LoftQ(bits=2, rank=1, rounds=2).encode(start)  # W - L = diag(4, 0) is on its grid
    assert again.weight.tolist() == first.weight.tolist() and again.effective().tolist() == start.weight.tolist()


def test_a_round_can_help_and_can_hurt() -> None:
    """One level of step 5: the first round leaves diag(0, -2, 1)."""
    start = layer([[5, 0, 0], [0, 3, 0], [0, 0, 1]])
    losses = [LOSSES["weight_l2"].of(LoftQ(bits=2, rank=1, rounds=k).encode(start)) for k in (1, 2, 3)]
    assert losses[0] == 1  # Q = diag(5, 5, 0), and -2 goes into the low-rank term
    assert min(losses) <= losses[0]


def test_one_round_is_absmax_and_its_residual() -> None:
    start = layer([[3, 1, 0, 2], [0, 1, 2, 2]])
    once = LoftQ(bits=2, rank=2, rounds=1, group=2).encode(start)
    steps = TruncatedSVD(rank=2, residual=True).encode(AbsMax(bits=2, group=2).encode(start))
    assert once.weight.tolist() == steps.weight.tolist()
    assert once.effective().tolist() == steps.effective().tolist() == start.weight.tolist()
    assert once.format.grid is not None and once.format.grid.scales == 4


def test_it_starts_from_what_the_layer_computes_with() -> None:
    factors = Factors(matrix([[0], [1]]), matrix([[0, 1]]))
    start = layer([[4, 0], [0, 0]])
    mask = np.array([[True, False], [False, False]], dtype=object)
    start = replace(start, format=Format(mask=mask, factors=factors))
    after = LoftQ(bits=2, rank=1).encode(start)
    assert after.effective().tolist() == [[4, 0], [0, 1]]
    assert after.format.mask is None and after.format.factors is not None and after.format.factors.rank == 1


def test_free_midpoints() -> None:
    found = outcomes(LoftQ(bits=2, rank=1, rounds=1, rounding="any").encode, [[2, 1]])
    assert found == {(2, 0), (2, 2)}


def test_what_fits() -> None:
    assert LoftQ(bits=4, rank=1, group=4).unit == 4 and LoftQ(bits=4, rank=1).unit == 1
    assert not LoftQ(bits=4, rank=1, group=4).fits((2, 6))
    refused(lambda: LoftQ(bits=4, rank=1, group=4).encode(layer([[1, 2]])), "groups of 4")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("bits", x) for x in (1, 17, 2.0, "4", None, True)),
        *(("rank", x) for x in (0, -1, 2**16 + 1, 1.0, None)),
        *(("rounds", x) for x in (0, -1, 1001, 1.0, None, True)),
        *(("group", x) for x in (0, -1, 1.0, "2", True)),
        *(("rounding", x) for x in ("up", "", None, 1)),
    ],
)
def test_bad_parameters(name: str, given: Any) -> None:
    refused(lambda: LoftQ(**{"bits": 4, "rank": 1, name: given}), f"LoftQ.{name}")

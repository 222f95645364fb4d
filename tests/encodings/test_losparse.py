from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compcomp.encodings.losparse import LoSparse
from compcomp.layers.state import Factors, Format
from tests.helpers import layer, matrix, refused


def test_by_hand() -> None:
    """The low-rank term takes the 3, and of what is left, rows of norms 0, 2 and 1, one goes or two."""
    start = layer([[3, 0, 0], [0, 2, 0], [0, 0, 1]])
    one, two = (LoSparse(1, share).encode(start) for share in ("1/3", "2/3"))
    assert one.weight.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert one.effective().tolist() == start.weight.tolist()
    assert two.weight.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert two.format.mask is not None and two.format.mask[:, 0].tolist() == [False, True, False]
    assert two.effective().tolist() == [[3, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert two.format.factors is not None and two.format.factors.rank == 1 and two.format.cut is None


def test_rows_go_together() -> None:
    start = layer([[4, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    after = LoSparse(1, "1/2", size=2).encode(start)
    assert after.weight.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert not LoSparse(1, "1/2", size=2).fits((3, 4))


@pytest.mark.parametrize(("ties", "kept"), [("first", [2, 3]), ("all", [])])
def test_ties(ties: str, kept: list[int]) -> None:
    start = layer([[4, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    after = LoSparse(1, "1/2", ties=ties).encode(start)
    assert [i for i in range(4) if after.weight[i].any()] == kept


def test_it_starts_from_what_the_layer_computes_with() -> None:
    factors = Factors(matrix([[0], [1]]), matrix([[0, 2]]))
    start = replace(layer([[3, 0], [0, 0]]), format=Format(rank=1, factors=factors))
    after = LoSparse(1, 0).encode(start)
    assert after.effective().tolist() == [[3, 0], [0, 2]] and after.format.rank is None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("rank", x) for x in (0, 1.0, None)),
        *(("sparsity", x) for x in (1, -1, "x", None)),
        *(("size", x) for x in (0, 1.0, None)),
        *(("ties", x) for x in ("last", None)),
    ],
)
def test_bad_parameters(name: str, given: Any) -> None:
    refused(lambda: LoSparse(**{"rank": 1, "sparsity": "1/2", name: given}), f"LoSparse.{name}")

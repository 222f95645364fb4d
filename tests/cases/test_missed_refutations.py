"""False claims of which no layer of small integers shows that they are: number formats, many rows, wide runs."""

from __future__ import annotations

import pytest

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.language.text import parse_claim
from compcomp.proving.prove import prove

INT8 = "MX(format='mxint8', group=2, rounding='any')"
FALSE = [
    (f"{INT8} >> {INT8} equals {INT8}", "weight_l2"),
    (f"{INT8} >> LeastSquaresDistill() equals LeastSquaresDistill() >> {INT8}", "weight_l2"),
]


@pytest.mark.parametrize(("text", "loss"), FALSE)
def test_refuted_by_the_search(text: str, loss: str) -> None:
    claim = parse_claim(text, loss)
    verdict = prove(claim, timeout=30, stages=("search",), search_seconds=2.0)
    assert verdict.refuted, verdict

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from compcomp.language.text import parse_claim, parse_sequence
from compcomp.language.verdict import Status
from compcomp.proving.prove import prove
from compcomp.techniques import Magnitude, PruneHeads, PruneNeurons, TruncatedSVD
from compcomp.terms import RandomChoices
from tests.helpers import layer, refused

STACK = [[1, 1, 5], [3, 3, 3], [0, 6, 0]]
"""Three neurons with sums of magnitudes 7, 9, 6 and of squares 27, 27, 36."""


def rows(technique: PruneNeurons | PruneHeads, seed: int | None = None) -> list[bool]:
    after = technique.encode(layer(STACK, choices=None if seed is None else RandomChoices(seed)))
    assert after.format.cut is not None and after.format.mask is not None
    assert list(after.format.cut.columns) == [True] * 3
    assert np.array_equal(after.format.mask, np.repeat(after.format.cut.rows[:, None], 3, axis=1))
    assert all(after.weight[~after.format.cut.rows.astype(bool)].ravel() == 0)
    return list(after.format.cut.rows)


@pytest.mark.parametrize("kind", [PruneNeurons, PruneHeads])
def test_the_rows_of_least_score_go(kind: type[PruneNeurons]) -> None:
    third = Fraction(1, 3)
    assert rows(kind(third, score="l1")) == [True, True, False]
    assert rows(kind(third, score="l2")) == [False, True, True]
    assert rows(kind(third, score="l2", ties="all")) == [False, False, True]
    assert {tuple(rows(kind(third, score="l2", ties="any"), seed)) for seed in range(20)} == {
        (False, True, True),
        (True, False, True),
    }
    assert rows(kind(Fraction(0))) == [True] * 3
    assert rows(kind(Fraction(1, 2))) == [False, True, True]  # int(3 / 2) is 1


@pytest.mark.parametrize("kind", [PruneNeurons, PruneHeads])
def test_units_that_put_out_least_go(kind: type[PruneNeurons]) -> None:
    """Rows that put out (0, 5), (0, 3) and (-6, 0)."""
    technique = kind(Fraction(1, 3), score="activation")
    after = technique.encode(layer(STACK, inputs=[[1, 0], [-1, 0], [0, 1]]))
    assert technique.needs_inputs and not kind(Fraction(1, 3)).needs_inputs
    assert after.format.cut is not None and list(after.format.cut.rows) == [True, False, True]
    refused(lambda: technique.encode(layer(STACK)), "inputs")


def test_the_low_rank_term_counts_and_goes_with_its_row() -> None:
    start = Magnitude("2/3", per="row").encode(layer(STACK))
    corrected = TruncatedSVD(rank=3, residual=True).encode(start)  # what the layer computes with is dense again
    after = PruneNeurons(Fraction(1, 3), score="l1").encode(corrected)
    assert after.format.cut is not None and list(after.format.cut.rows) == [True, True, False]
    assert all(after.effective()[2] == 0) and np.array_equal(after.effective()[:2], corrected.effective()[:2])
    assert after.format.factors is not None and after.format.factors.rank == 3


def test_cuts_accumulate() -> None:
    first = PruneNeurons(Fraction(1, 3), score="l1").encode(layer(STACK))
    assert list(PruneNeurons(Fraction(2, 3), score="l1").encode(first).format.cut.rows) == [False, True, False]  # type: ignore[union-attr]
    assert list(PruneNeurons(Fraction(1, 3), score="l1").encode(first).format.cut.rows) == [True, True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        ("PruneNeurons(sparsity=1/2) >> Magnitude(sparsity=1/2) keeps mask", Status.PROVED),
        ("TruncatedSVD(rank=1) >> PruneNeurons(sparsity=1/2) keeps rank", Status.PROVED),
        ("AbsMax(bits=4) >> PruneHeads(sparsity=1/2) keeps grid", Status.PROVED),
        ("PruneNeurons(sparsity=1/2) >> MinMax(bits=2, zero='none') keeps mask", Status.REFUTED),
        ("PruneNeurons(sparsity=1/2, score='l1') equals PruneNeurons(sparsity=1/2)", Status.REFUTED),
    ],
)
def test_claims(claim: str, status: Status) -> None:
    verdict = prove(parse_claim(claim))
    assert verdict.status is status
    assert not verdict.proved or any(a.kind == "whole model" for a in verdict.assumptions)


def test_text_and_parameters() -> None:
    text = "PruneHeads(sparsity=1/4, score='l1', ties='all')"
    assert str(parse_sequence(text)) == text
    for kind in (PruneNeurons, PruneHeads):
        for wrong in (1, -1, "some", None):
            refused(lambda kind=kind, wrong=wrong: kind(wrong), "sparsity")
        refused(lambda kind=kind: kind("1/2", score="wanda"), "'l1', 'l2'")
        refused(lambda kind=kind: kind("1/2", ties="last"), "'first'")

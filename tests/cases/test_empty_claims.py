"""Claims of which no layer fits all techniques are VACUOUS, in every scope; all others are decided."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.language.claim import Claim
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Status
from compcomp.ordering.table import registered
from compcomp.proving.premises import fits_some_layer
from compcomp.proving.prove import prove

EMPTY = [
    "Hadamard() >> AbsMax(bits=4, group=3) keeps grid",
    "AbsMax(bits=4, group=12) >> Hadamard() equals AbsMax(bits=4, group=12) >> Hadamard()",
    "Magnitude(sparsity=1/2, pattern='3:6') >> Hadamard() keeps mask",
    "Hadamard() >> MinMax(bits=4, group=6) dominates Hadamard() >> MinMax(bits=2, group=6)",
    "Hadamard() >> Magnitude(sparsity=1/3, pattern='2:3') fits 2:3",
    "Hadamard() >> BlockMeans(rank=3) equals Hadamard()",
    "PruneColumns(sparsity=1/2, size=5) >> Hadamard() keeps shape",
    "Hadamard(block=8) >> Hadamard() >> MX(format='mxfp4', group=24) keeps mask",
    "Hadamard() >> Magnitude(sparsity=Any) >> AbsMax(bits=4, group=3) keeps mask",
    "PruneNeurons(sparsity=1/2) >> Hadamard() >> AbsMax(bits=4, group=3) keeps shape",
]
SOME = [
    "Hadamard(block=4) >> AbsMax(bits=4, group=3) keeps grid",
    "Hadamard() >> AbsMax(bits=4, group=64) keeps grid",
    "PruneRows(sparsity=1/2, size=6) >> LoSparse(rank=1, sparsity=1/2, size=4) equals identity",
    "RemoveBlocks(count=700) >> AbsMax(bits=4) keeps mask",
    "PruneRows(sparsity=1/2, size=1000) >> Hadamard(block=512) keeps shape",
    "RemoveBlocks(count=3) >> PruneRows(sparsity=1/2, size=9) >> Hadamard(block=4) keeps shape",
]


@pytest.mark.parametrize("text", EMPTY)
@pytest.mark.parametrize("scope", ["any", "2x3", "4x8", "block:32"])
def test_no_layer_fits(text: str, scope: str) -> None:
    verdict = prove(parse_claim(text), scope, timeout=20)
    assert verdict.status is Status.VACUOUS
    assert "fits" in verdict.cause


@pytest.mark.parametrize("text", SOME)
def test_some_layer_fits(text: str) -> None:
    assert fits_some_layer(parse_claim(text))


def test_by_trying_every_shape() -> None:
    """All pairs of representatives and some with groups: the answer is that of every shape up to 48 x 24."""
    random = np.random.default_rng(1)
    groups = [f"AbsMax(bits=4, group={n})" for n in (2, 3, 5, 6, 8)] + ["PruneRows(sparsity=1/2, size=3)"]
    texts = [*map(str, registered()), *groups, "Hadamard(block=2)", "LoSparse(rank=1, sparsity=1/2, size=2)"]
    answers = []
    for _ in range(120):
        names = [texts[k] for k in random.integers(len(texts), size=3)] + ["Hadamard()"] * int(random.random() < 0.4)
        claim = parse_claim(f"{' >> '.join(names)} equals identity")
        found = fits_some_layer(claim)
        answers.append(found)
        assert found or not any_shape(claim), claim
        if claim.unit * 3 <= 24 and claim.row_unit * claim.unit * 3 <= 48:
            assert found is any_shape(claim), claim
    assert True in answers and False in answers


def any_shape(claim: Claim) -> bool:
    return any(claim.fits(shape) for shape in product(range(1, 49), range(1, 25)))

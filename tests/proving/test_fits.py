"""Proofs that schemes are fitted, over all registered techniques, against layers of small shapes."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

import compcomp as cc
from compcomp.errors import InputError, NotExactError
from compcomp.language.claim import Scope, fits
from compcomp.language.claims.fits import misfits
from compcomp.language.samples import sample
from compcomp.language.scheme import Scheme
from compcomp.language.technique import Sequence, Technique
from compcomp.layers.state import Format
from compcomp.proving.candidates import Candidates
from compcomp.proving.meaning import fails
from compcomp.proving.proof import Proof
from compcomp.proving.prove import default_prover
from compcomp.proving.rules.fits import fits_scheme
from compcomp.proving.session import Session
from compcomp.techniques import (
    FP4,
    NF4,
    AbsMax,
    AbsMaxInputs,
    Hadamard,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    SmoothQuant,
)
from compcomp.testing.strategies import conventions

SCHEMES = ["W2", "W3", "W4", "W8", "1:2", "2:4", "50%", "25%/row", "50%/row", "r1", "W16 +r2", "W4 +r1", "A3"]
SHAPES = [(2, 4), (1, 8), (4, 4)]
LAYERS = 60
TOLERANCE = 1e-4
"""Of floats: scales of features whose weights are zero but for rounding make much of it."""


def candidates(shape: tuple[int, int], seed: int) -> Candidates:
    """Small whole numbers, half of them with many zeros and ties."""
    random = np.random.default_rng(seed)
    weights = random.integers(-9, 10, (LAYERS, *shape)).astype(float)
    weights[::2] = random.integers(-1, 2, weights[::2].shape)
    return Candidates(weights, random.integers(-9, 10, (LAYERS, shape[1], 3)).astype(float))


def missed(sequence: Sequence, schemes: list[str], seed: int = 0) -> dict[str, tuple[int, int]]:
    """The schemes, out of these, that some layer does not fit after the sequence, and its shape."""
    found: dict[str, tuple[int, int]] = {}
    for shape in SHAPES:
        asked = [s for s in schemes if fits(sequence, s).fits(shape)]
        if not asked:
            continue
        random = np.random.default_rng(seed)
        try:
            end = sequence.encode(candidates(shape, seed).layer(random))
        except (InputError, NotExactError):
            continue
        for text in asked:
            for terms in misfits(Scheme.of(text), end, TOLERANCE).values():
                if any(np.any(getattr(term, "values", term)) for term in terms):
                    found[text] = shape
    return found


def proved(sequence: Sequence, schemes: list[str]) -> list[str]:
    solver = default_prover().solver
    return [
        s for s in schemes if isinstance(fits_scheme(fits(sequence, s), Session(solver, time.monotonic() + 10)), Proof)
    ]


KINDS = list(Technique.kernels)
LATER = [k for k in KINDS if k.__name__ not in ("RemoveBlocks",)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", KINDS, ids=lambda kind: kind.__name__)
def test_no_pair_of_techniques_misses_what_is_proved(first: type[Technique]) -> None:
    for second in LATER:
        sequence = Sequence((sample(first), sample(second)))
        known = proved(sequence, SCHEMES)
        assert not missed(sequence, known), f"{sequence}: {known}"


BASES = [
    *(Magnitude("1/2", pattern="2:4"), Magnitude("1/2", pattern="1:2"), Magnitude("1/2")),
    *(AbsMax(2), AbsMaxInputs(bits=3), MinMax(2, zero="none"), LeastSquaresDistill(), Hadamard(), SmoothQuant()),
    FP4(group=None),
    *(sample(kind) for kind in KINDS if kind.__name__ in ("ApplyMask", "SparseGPT", "PruneColumns", "TruncatedSVD")),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", range(len(BASES)))
def test_no_three_techniques_miss_what_is_proved(first: int) -> None:
    for second, third in itertools.product(BASES, repeat=2):
        sequence = Sequence((BASES[first], second, third))
        known = proved(sequence, ["W3", "2:4", "50%", "A3"])
        assert not missed(sequence, known), f"{sequence}: {known}"


def test_what_is_proved_of_codes_and_bases() -> None:
    half = Magnitude("1/2", pattern="2:4")
    assert proved(half >> FP4(group=None), ["W4 2:4", "W3", "50%"]) == ["W4 2:4", "50%"]
    assert proved(Sequence((NF4(group=None),)), ["W4", "W3"]) == ["W4"]
    assert proved(Hadamard() >> half >> AbsMax(4), ["W4 2:4"]) == ["W4 2:4"]
    assert proved(half >> AbsMax(4) >> Hadamard(), ["W4", "2:4"]) == []
    assert proved(Hadamard() >> AbsMaxInputs(bits=3), ["A3", "A2"]) == ["A3"]
    assert proved(AbsMaxInputs(bits=3) >> Hadamard(), ["A3"]) == []
    assert missed(AbsMaxInputs(bits=3) >> Hadamard(), ["A3"])
    assert not missed(Hadamard() >> AbsMaxInputs(bits=3), ["A3"])


def test_a_root_that_is_not_rational_is_no_error() -> None:
    for first in KINDS:
        if first.__name__ in ("LoRA", "BlockMeans"):
            verdict = cc.prove(fits(sample(first) >> Hadamard(), "1:2"))
            assert not verdict.proved, str(verdict)


def test_a_contract_about_a_broken_mask_says_nothing() -> None:
    """What is dropped before and moved from zero again is dropped by the mask, too."""
    half, pattern = Magnitude("1/2"), Magnitude("1/2", pattern="2:4")
    broken = half >> MinMax(2, zero="none") >> pattern
    assert proved(broken, ["2:4"]) == ["2:4"]
    for kind in KINDS:
        last = sample(kind)
        promises = last.promises()
        void = not last.steps() and not promises.restores and "weights" not in promises.zeros
        if void and "n:m" not in promises.keeps:
            assert proved(broken >> last, ["2:4"]) == [], last


def test_numbers_of_formats_do_not_depend_on_the_shape() -> None:
    """What one run shows of levels, codes, patterns and ranks holds for layers of any shape."""

    def numbers(form: Format) -> tuple[object, ...]:
        grid, factors = form.grid, form.factors
        return (
            (form.rank, form.pattern, None if factors is None else factors.rank, form.mask is None),
            None if grid is None else (grid.levels, grid.codes, grid.zero, grid.offset is None),
        )

    for kind in KINDS:
        for technique in conventions(kind)[:6]:
            found = set()
            for shape in ((2, 4), (1, 8), (8, 16), (6, 4)):
                if technique.fits(shape) and not technique.promises().format_varies:
                    end = Sequence((technique,)).encode(candidates(shape, 1).layer(np.random.default_rng(1)))
                    found.add(numbers(end.format))
            assert len(found) <= 1, technique


def test_what_is_refuted_at_one_block_is_not_proved_of_more() -> None:
    """Each block of a matrix has rank one where it is a row; the matrix has not."""
    from compcomp.proving.prove import prove

    verdict = prove(fits(AbsMax(2, group=2), "r1"), Scope.of("block:2"), timeout=10, second=None)
    assert "every matrix" not in str(verdict.reach)
    assert fails(fits(Sequence(()), "r1"), [[candidates((2, 4), 0).layer(np.random.default_rng(0))]]).values.any()

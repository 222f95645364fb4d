"""What a technique says it keeps, it keeps after every other technique: each pair on small exact layers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.errors import InputError, NotExactError
from compcomp.language.samples import sets_up
from compcomp.language.technique import Declared, Technique, run
from compcomp.layers.state import INVARIANTS, LayerState
from compcomp.ordering.table import registered
from compcomp.techniques import LPLR, TruncatedSVD
from compcomp.terms import Array, Choices, each
from compcomp.testing import check_encoding
from compcomp.testing.properties import invariant_kept

ALL = registered()


def exact_layers(random: np.random.Generator, count: int) -> list[LayerState]:
    """Small layers, some of rank one, so that truncations find rationals."""
    found = []
    for k in range(count):
        shape = ((2, 4), (4, 4), (1, 4), (4, 8))[k % 4]
        weight: Array = random.integers(-4, 5, size=shape)
        if k % 3 == 0:
            weight = random.integers(-2, 3, size=(shape[0], 1)) @ random.integers(-2, 3, size=(1, shape[1]))
        inputs = each(Fraction, random.integers(-2, 3, size=(shape[1], shape[1])).astype(object))
        found.append(LayerState.dense(each(Fraction, weight.astype(object)), inputs, choices=Choices()))
    return found


def broken(first: Technique, second: Technique, layers: list[LayerState]) -> list[str]:
    """The invariants that the first sets up and the second says it keeps, and some layer shows that it does not."""
    wrong = []
    for layer in layers:
        try:
            before = run(first, layer)
            after = run(second, before)
        except (InputError, NotExactError):
            continue
        for invariant in sets_up(first) & second.promises().keeps & INVARIANTS.keys():
            if before.format.transform is None and not invariant_kept(invariant, before, after):
                wrong.append(f"{first} >> {second}: {invariant}")
    return wrong


@pytest.mark.parametrize("invariant", ["rank", "shape"])
def test_promises_after_every_technique_that_sets_up(invariant: str) -> None:
    layers, looked = exact_layers(np.random.default_rng(0), 3), 0
    for first in [t for t in ALL if invariant in sets_up(t)]:
        for second in [t for t in ALL if invariant in t.promises().keeps]:
            looked += 1
            assert not broken(first, second, layers)
    assert looked > 40


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", ALL, ids=str)
def test_promises_after_every_technique(first: Technique) -> None:
    layers = exact_layers(np.random.default_rng(1), 16)
    for second in ALL:
        assert not broken(first, second, layers)


class Boasting(TruncatedSVD):
    """A truncation that says it keeps a rank, whatever the low-rank branch holds."""

    def promises(self) -> Declared:
        promised = super().promises()
        return replace(promised, keeps=promised.keeps | {"rank"})


def test_a_rank_that_a_low_rank_term_raises_is_not_kept() -> None:
    assert "rank" not in TruncatedSVD(1).promises().keeps
    assert broken(LPLR(1, 3), Boasting(1), exact_layers(np.random.default_rng(0), 8))
    with pytest.raises(AssertionError, match=r"keeps=\{'rank'\} is false"):
        check_encoding(Boasting(2), kernel=TruncatedSVD(2).kernel(), max_examples=600, minimise=False)

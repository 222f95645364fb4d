"""Numbers as Python, numpy and people write them: what is meant, and a text that says it again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.parameters import number
from compcomp.language.samples import conventions, representatives
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.techniques import GPTQ, AbsMax, Magnitude
from tests.helpers import refused

HARD = (2 / 3, 0.1 + 0.2, 1 - 0.9, 1 / 3, np.float32(2 / 3), np.float64(0.7), Decimal("0.3"), "0.3", "2/3", math.pi / 4)


def meant(given: Any) -> Fraction:
    return number(given, "here", "a number")


@given(st.integers(1, 999).flatmap(lambda q: st.tuples(st.integers(0, q), st.just(q))))
def test_a_float_stands_for_the_fraction_it_is_made_of(pair: tuple[int, int]) -> None:
    above, below = pair
    exact = Fraction(above, below)
    assert meant(above / below) == meant(np.float64(above / below)) == exact
    assert meant(1 - (1 - above / below)) == exact
    assert meant(np.float32(above) / np.float32(below)) == exact
    assert meant(str(exact)) == meant(exact) == exact


@given(st.integers(0, 10**9), st.integers(1, 9))
def test_a_short_decimal_is_itself(digits: int, places: int) -> None:
    text = f"0.{digits:09d}"[: 2 + places]
    assert meant(float(text)) == meant(text) == meant(Decimal(text)) == Fraction(text)


@given(st.floats(-1e9, 1e9, allow_subnormal=False))
def test_what_a_float_stands_for_is_near_it_or_refused(x: float) -> None:
    try:
        found = meant(x)
    except InputError:
        assert 0 < abs(x) < 1e-30
        return
    assert abs(found - Fraction(x)) <= max(Fraction(1, 2**50), abs(Fraction(x)) / 2**52)


@pytest.mark.parametrize("given", [math.inf, -math.inf, math.nan, 1e-300, 1e10, True, np.True_, None, "1e400", "x"])
def test_what_is_no_number(given: Any) -> None:
    refused(lambda: Magnitude(given), "Magnitude.sparsity", "number in [0, 1)")
    refused(lambda: meant(given), "here", "a number")


def parameters() -> Iterator[tuple[Technique, str]]:
    for kind in Technique.known().values():
        for technique in representatives(kind):
            for f in fields(technique):
                if isinstance(getattr(technique, f.name), Fraction):
                    yield technique, f.name


def test_every_text_is_the_technique_again() -> None:
    tried = 0
    for technique, name in parameters():
        for value in HARD:
            try:
                made = replace(technique, **{name: value})
            except InputError:
                continue
            tried += 1
            (again,) = parse_sequence(str(made))
            assert again == made and type(getattr(made, name)) is Fraction
    assert tried > 100
    for kind in Technique.known().values():
        for technique in [*representatives(kind), *conventions(kind)[:100]]:
            assert parse_sequence(str(technique)).techniques == (technique,)


def test_numbers_of_numpy_are_numbers() -> None:
    for kind in Technique.known().values():
        for technique in representatives(kind):
            values = {f.name: getattr(technique, f.name) for f in fields(technique) if f.init}
            foreign = {name: _numpy(value) for name, value in values.items()}
            assert str(kind(**foreign)) == str(technique)
            assert all(type(getattr(kind(**foreign), name)) is type(value) for name, value in values.items())


def _numpy(value: Any) -> Any:
    if type(value) is int:
        return np.int64(value)
    if type(value) is str:
        return np.str_(value)
    return np.bool_(value) if type(value) is bool else value


@pytest.mark.parametrize(
    ("share", "size", "gone"), [(2 / 3, 12, 8), (1 - 0.9, 100, 10), (0.1 + 0.2, 10, 3), (0.29, 100, 29)]
)
def test_as_many_weights_go_as_the_fraction_says(share: float, size: int, gone: int) -> None:
    model = nn.Sequential(nn.Linear(size, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, size + 1))
    cc.apply(Magnitude(share), model)
    assert int((model[0].weight == 0).sum()) == gone


def test_a_plan_explains_its_own_order() -> None:
    plan = cc.optimize_order([Magnitude(2 / 3), AbsMax(np.int64(4))])
    assert plan.explain(str(plan.order))
    assert str(GPTQ(4, damping=0.1 + 0.2)) == "GPTQ(bits=4, damping=3/10)"

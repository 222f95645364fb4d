"""The symbolic readings of an encoding agree with its exact one, on numbers written as z3 and sympy terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import sympy
import z3
from hypothesis import HealthCheck, given, settings

from compcomp.errors import NotExactError
from compcomp.language.technique import Technique
from compcomp.layers.grids import GRIDS
from compcomp.layers.state import LayerState
from compcomp.techniques import (
    FP4,
    MX,
    NF4,
    AbsMax,
    BlockFloatingPoint,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import ROUNDINGS, Choices, RandomChoices, SymbolicChoices, each
from compcomp.testing import conventions, layers
from tests.amount import spread
from tests.helpers import layer

FEW = settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
STEPPED = [
    technique
    for kind in (Magnitude, Wanda, AbsMax, MinMax)
    for technique in conventions(
        kind,
        sparsity=(Fraction(1, 4), Fraction(1, 2)),
        bits=(2, 4),
        group=(None, 2),
        of=("current",),
        scales=("exact",),
    )
]
ENDS = [t for t in STEPPED if isinstance(t, MinMax) and (t.zero, t.group) == ("none", 2)]
"""Both weights of a group are an end of the range: nothing is ever rounded."""
FREE = [
    *(t for t in STEPPED if not t.promises().deterministic and t not in ENDS),
    *(FP4(None, "any"), MX("mxfp4", 2, "any")),
]
STORED = [
    *(AbsMax(4, 2, grid=grid, scales=scales) for grid, scales in (("signed", "float16"), ("clipped", "power_of_two"))),
    *(MinMax(2, zero=zero, scales="bfloat16") for zero in ("exact", "none")),
]
DETERMINISTIC = [
    *(t for t in STEPPED if t.promises().deterministic),
    *(kind for r in ROUNDINGS if r != "any" for kind in (NF4(2, r), FP4(None, r), MX("mxfp4", 2, r))),
    BlockFloatingPoint(3, None),
]
WIDE = [kind(bits=8, rounding=rounding) for kind in (AbsMax, MinMax) for rounding in ROUNDINGS]
"""Grids beyond the tree of comparisons: z3 rounds them through integers."""


def in_z3(state: LayerState, choices: Choices) -> LayerState:
    def term(x: Any) -> Any:
        return z3.RealVal(str(x))

    return replace(
        state,
        weight=each(term, state.weight),
        reference=each(term, state.reference),
        gram=None if state.gram is None else each(term, state.gram),
        inputs=None if state.reference_inputs is None else each(term, state.inputs),
        reference_inputs=None if state.reference_inputs is None else each(term, state.reference_inputs),
        choices=choices,
    )


def in_sympy(state: LayerState) -> LayerState:
    def term(x: Any) -> Any:
        return sympy.Rational(x.numerator, x.denominator)

    gram = None if state.gram is None else each(term, state.gram)
    weight, reference = each(term, state.weight), each(term, state.reference)
    return replace(state, weight=weight, reference=reference, gram=gram, inputs=None, choices=Choices())


def number(x: Any) -> Any:
    """A term without variables as a Fraction or a bool."""
    if isinstance(x, z3.ExprRef):
        x = z3.simplify(x)
        return z3.is_true(x) if z3.is_bool(x) else Fraction(str(x))
    if isinstance(x, bool | np.bool_) or x in (sympy.true, sympy.false):
        return bool(x)
    return Fraction(int(x.p), int(x.q)) if isinstance(x, sympy.Basic) else Fraction(x)


def fields(state: LayerState) -> Iterator[list[Any]]:
    yield [number(x) for x in state.weight.ravel()]
    if state.format.mask is not None:
        yield [number(x) for x in state.format.mask.ravel()]
    if state.format.grid is not None:
        yield [number(x) for x in state.format.grid.step.ravel()]
        if state.format.grid.offset is not None:
            yield [number(x) for x in state.format.grid.offset.ravel()]


@pytest.mark.parametrize("technique", [*spread(DETERMINISTIC, 20), *STORED], ids=str)
def test_z3_and_sympy_agree_with_fractions(technique: Technique) -> None:
    @FEW
    @given(layers((2, 4), started=False))
    def agree(state: LayerState) -> None:
        expected = list(fields(technique.encode(state)))
        assert list(fields(technique.encode(in_z3(state, SymbolicChoices())))) == expected
        assert list(fields(technique.encode(in_sympy(state)))) == expected

    agree()


@pytest.mark.parametrize("technique", [t for t in WIDE if t.rounding != "any"], ids=str)
def test_wide_grids_agree_with_fractions(technique: Technique) -> None:
    @FEW
    @given(layers((1, 3), started=False))
    def agree(state: LayerState) -> None:
        exact = technique.encode(state)
        assert list(fields(technique.encode(in_z3(state, Choices())))) == list(fields(exact))
        assert solutions(technique, state) == {tuple(exact.weight[0])}

    agree()


def solutions(technique: Technique, state: LayerState) -> set[tuple[Fraction, ...]]:
    """The first row of the weight for every way z3 may choose."""
    choices = SymbolicChoices()
    weights = technique.encode(in_z3(state, choices)).weight[0]
    solver, found = z3.Solver(), set[tuple[Fraction, ...]]()
    solver.add(*choices.premises)
    while solver.check() == z3.sat:
        model = solver.model()
        values = tuple(Fraction(str(model.eval(w, model_completion=True))) for w in weights)
        found.add(values)
        solver.add(z3.Or(*(w != z3.RealVal(str(v)) for w, v in zip(weights, values, strict=True))))
    return found


@pytest.mark.parametrize("technique", [*FREE, *(t for t in WIDE if t.rounding == "any")], ids=str)
def test_any_in_z3_is_every_exact_choice_and_nothing_else(technique: Technique) -> None:
    """All solutions of the premises against many seeded replays, on a layer full of ties and midpoints."""
    state = layer([[2, 1, -1, 1]], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    if isinstance(technique, AbsMax):
        largest = 2 * GRIDS[technique.grid].reach(technique.levels)
        state = layer([[largest, 1, -largest, -largest + 1]])  # a midpoint in each block
    if isinstance(technique, MinMax):
        largest = technique.levels
        state = layer([[largest, "1/2", *([0, "3/2"] if technique.group is None else [-largest, "-1/2"])]])
    if isinstance(technique, FP4):
        state = layer([[6, 5, "-5/2", "1/4"]])
    if isinstance(technique, MX):
        state = layer([[6, 5, 2, "3/4"]])
    exact = {tuple(technique.encode(replace(state, choices=RandomChoices(seed))).weight[0]) for seed in range(200)}
    assert len(exact) > 1
    assert solutions(technique, state) == exact


@pytest.mark.parametrize(
    "technique",
    [
        *(LeastSquaresDistill(), TruncatedSVD(rank=1), TruncatedSVD(rank=1, residual=True), TruncatedSVD(rank=2)),
        TruncatedSVD(rank=1, metric="output"),
        *(LoRA(1, 2), LoRA(1, 1, merged=True, masked=True)),
        TruncatedSVD(rank=1, residual=True, metric="output"),
    ],
    ids=str,
)
def test_the_exact_optimum_satisfies_its_contract(technique: Technique) -> None:
    """A contract without its optimum would prove what is false."""
    seen = 0

    @FEW
    @given(layers((2, 3)))
    def satisfies(state: LayerState) -> None:
        nonlocal seen
        try:
            exact = technique.encode(state)
        except NotExactError:
            return
        choices = SymbolicChoices()
        symbolic = technique.encode(in_z3(state, choices))
        solver = z3.SolverFor("QF_NRA") if symbolic.format.grid is None else z3.Solver()
        solver.set("timeout", 20_000)
        solver.add(*choices.premises)
        for term, value in zip(symbolic.effective().ravel(), exact.effective().ravel(), strict=True):
            solver.add(term == z3.RealVal(str(value)))
        assert solver.check() == z3.sat
        seen += 1

    satisfies()
    assert seen >= 5


def test_every_selection_of_a_small_group() -> None:
    """Brute force over all weights in {-1, 0, 1, 2}^3: z3 takes what the exact reading takes."""
    technique = Magnitude(sparsity="2/3")
    for values in product((-1, 0, 1, 2), repeat=3):
        state = layer([values])
        assert list(fields(technique.encode(in_z3(state, SymbolicChoices())))) == list(fields(technique.encode(state)))

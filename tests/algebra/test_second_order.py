"""The algebra of second-order techniques: against its definitions, and in the readings that prove and search."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import z3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compcomp.algebra import second_order
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState
from compcomp.techniques import GPTQ, OBQ, OBS, SparseGPT
from compcomp.terms import Choices, RandomChoices, SymbolicChoices, each
from compcomp.testing import layers
from compcomp.testing.strategies import exact, integers
from tests.amount import spread
from tests.helpers import layer

FEW = settings(max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
UNIQUE = [
    *(GPTQ(bits=3), GPTQ(bits=2, group=1), GPTQ(bits=4, group=3), GPTQ(bits=4, group=3, static_groups=False)),
    *(GPTQ(bits=2, order="left_to_right"), GPTQ(bits=3, mask="kept", rounding="half_up")),
    *(SparseGPT("1/2"), SparseGPT("1/2", block=2, ties="all"), SparseGPT("1/3", block=1, bits=3, mask="kept")),
    *(SparseGPT("2/3", pattern="1:3"), SparseGPT("1/3", pattern="2:3", bits=2)),
    *(OBS("1/2"), OBS("2/3", pattern="1:3"), OBQ(bits=3), OBQ(bits=2, rounding="half_away")),
]
FREE = [
    *(GPTQ(bits=3, rounding="any"), SparseGPT("1/2", ties="any"), SparseGPT("2/3", pattern="1:3", ties="any")),
    *(OBS("2/3", ties="any"), OBQ(bits=2, rounding="any"), OBQ(bits=2, ties="any")),
]


@FEW
@given(st.integers(1, 5).flatmap(lambda side: integers((side, side + 1), 4)))
def test_factor_and_inverse_are_those_of_the_definition(inputs: Any) -> None:
    matrix = inputs @ inputs.T + exact(np.eye(len(inputs), dtype=int))
    lower, values = second_order.inverse_factor(matrix, Choices())
    identity = exact(np.eye(len(matrix), dtype=int))
    assert np.array_equal(lower @ np.diag(values) @ lower.T @ matrix, identity)
    assert np.array_equal(np.tril(lower), lower)
    assert np.array_equal(np.diag(lower), np.diag(identity))
    assert all(value > 0 for value in values)
    assert np.array_equal(second_order.inverse(matrix, Choices()) @ matrix, identity)


def test_damping_is_a_share_of_the_mean_after_dead_inputs_are_set_to_one() -> None:
    gram, dead = second_order.damped(layer([[1, 2]], [[3], [0]]), Fraction(1, 10), "here")
    assert dead == [False, True]
    assert gram.tolist() == [[Fraction(19, 2), 0], [0, Fraction(3, 2)]]


def test_an_order_and_what_undoes_it() -> None:
    order = second_order.descending([Fraction(x) for x in (2, 5, 2, 7)], Choices())
    matrix = exact([[2, 5, 3, 7]])
    there = second_order.rearranged(matrix, order, Choices())
    assert there.tolist() == [[7, 5, 2, 3]]
    assert np.array_equal(second_order.rearranged(there, second_order.undone(order), Choices()), matrix)


# Readings


def in_z3(state: LayerState, choices: Choices) -> LayerState:
    def term(x: Any) -> Any:
        return z3.RealVal(str(x))

    return replace(state, weight=each(term, state.weight), gram=each(term, state.gram), inputs=None, choices=choices)


def flat(state: LayerState) -> list[Any]:
    form = state.format
    parts = [state.weight, form.mask, form.grid and form.grid.step]
    return [x for part in parts if part is not None for x in part.ravel()]


def number(x: Any) -> Any:
    if isinstance(x, z3.ExprRef):
        x = z3.simplify(x)
        return z3.is_true(x) if z3.is_bool(x) else Fraction(str(x))
    return x


@pytest.mark.parametrize("technique", UNIQUE, ids=str)
def test_z3_terms_agree_with_fractions(technique: Technique) -> None:
    @FEW
    @given(layers((2, 3), started=False))
    def agree(state: LayerState) -> None:
        found = technique.encode(in_z3(state, Choices()))
        assert [number(x) for x in flat(found)] == flat(technique.encode(state))

    agree()


def only_solution(technique: Technique, state: LayerState) -> tuple[Any, ...]:
    """The one result that the premises for the prover leave possible, as each fixes one variable more."""
    choices = SymbolicChoices()
    terms = [x for x in flat(technique.encode(in_z3(state, choices))) if isinstance(x, z3.ExprRef)]
    values: list[tuple[Any, Any]] = []
    for premise in choices.premises:
        left = z3.simplify(z3.substitute(premise, *values))
        if z3.is_true(left):
            continue
        solver = z3.Solver()
        solver.add(left)
        assert solver.check() == z3.sat
        variables = list(solver.model())
        assert len(variables) == 1
        variable = variables[0]()
        values.append((variable, solver.model()[variable]))
        solver.add(variable != values[-1][1])
        assert solver.check() == z3.unsat
    return tuple(number(z3.substitute(x, *values)) for x in terms)


def solution(technique: Technique, state: LayerState) -> tuple[Any, ...]:
    """What the exact reading makes of the fields that are z3 terms in the other one."""
    symbolic, numbers = flat(technique.encode(in_z3(state, SymbolicChoices()))), flat(technique.encode(state))
    return tuple(x for x, term in zip(numbers, symbolic, strict=True) if isinstance(term, z3.ExprRef))


@pytest.mark.parametrize("technique", spread(UNIQUE, 7), ids=str)
def test_what_the_prover_assumes_has_the_exact_result_as_its_only_solution(technique: Technique) -> None:
    for weight, inputs in (
        ([[3, -1, 2], [1, 5, -4]], [[1, 2], [0, 1], [1, 1]]),
        ([[0, 2, 1], [0, 0, 0]], [[1], [0], [2]]),
        ([[7, 6, -3], [2, -2, 2]], [[4, 4], [4, 3], [3, 4]]),
    ):
        state = layer(weight, inputs)
        assert only_solution(technique, state) == solution(technique, state)


def solutions(technique: Technique, state: LayerState) -> set[tuple[Any, ...]]:
    """All that the premises for the prover leave possible."""
    choices = SymbolicChoices()
    terms = [x for x in flat(technique.encode(in_z3(state, choices))) if isinstance(x, z3.ExprRef)]
    solver, found = z3.Solver(), set[tuple[Any, ...]]()
    solver.add(*choices.premises)
    while (answer := solver.check()) == z3.sat:
        model = solver.model()
        values = [model.eval(x, model_completion=True) for x in terms]
        found.add(tuple(number(v) for v in values))
        solver.add(z3.Or(*(x != v for x, v in zip(terms, values, strict=True))))
    assert answer == z3.unsat
    return found


@pytest.mark.parametrize("technique", FREE, ids=str)
def test_any_in_z3_is_every_exact_choice_and_nothing_else(technique: Technique) -> None:
    state = layer([[2, 1, -1] if isinstance(technique, GPTQ) else [1, 1, -1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    if isinstance(technique, OBQ):
        state = layer([[2, 1]], [[1, 1], [1, 1]])
    exact_ones = {solution(technique, replace(state, choices=RandomChoices(seed))) for seed in range(100)}
    assert len(exact_ones) > 1 or isinstance(technique, OBQ)  # whose ties here change nothing
    assert solutions(technique, state) == exact_ones


@pytest.mark.parametrize("technique", spread(UNIQUE, 7), ids=str)
def test_formulas_do_not_explode_in_sequences(technique: Technique) -> None:
    """Every result is a variable, or a choice among few: no formula holds another technique's whole result."""
    choices = SymbolicChoices()
    weight = each(lambda index: z3.Real(f"w{index[0]}{index[1]}"), indices((2, 3)))
    inputs = each(lambda index: z3.Real(f"x{index[0]}{index[1]}"), indices((3, 3)))
    state = LayerState.dense(weight, inputs, choices=choices)
    for _ in range(3):
        state = technique.encode(state)
    terms = [x for x in [*flat(state), *choices.premises] if isinstance(x, z3.ExprRef)]
    assert max(map(size, terms)) < 1000
    assert sum(map(size, terms)) < 60_000


def indices(shape: tuple[int, int]) -> Any:
    found = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        found[index] = index
    return found


def size(term: Any) -> int:
    """How many nodes it has, as a tree."""
    return 1 + sum(map(size, term.children()))

"""Every fact that is proved of a map holds for the map itself, at any scale: brute force in exact numbers."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import z3

from compcomp.language.steps import CodebookMap, GridMap, ScaledMap
from compcomp.layers import codebooks
from compcomp.layers.grids import GRIDS
from compcomp.layers.partition import Partition
from compcomp.proving.functions import on_leaves
from compcomp.proving.prove import default_prover
from compcomp.proving.rules import facts as rule
from compcomp.proving.rules.facts import MapFacts, lazy
from compcomp.proving.session import Session
from compcomp.terms import ROUNDINGS, Abs, Choices, RandomChoices

CODES = {
    "E2M1": codebooks.E2M1,
    "NF4": codebooks.NF4,
    "whole": codebooks.whole_codes(3),
    "lopsided": tuple(map(Fraction, (-4, -1, 0, 1, 2, 4))),
    "short": tuple(map(Fraction, (-2, 0, 3))),
    "no zero": tuple(map(Fraction, (-3, -1, 1, 3))),
    "wide": tuple(map(Fraction, (-5, -1, 0, 1, 5))),
}
CONTEXTS = [
    Fraction(c) for c in ("1", "3/2", "7/4", "3", "4", "9/2", "5", "11/2", "6", "7", "63/8", "100", "1/3", "1/7")
]

MAPS: list[ScaledMap] = [
    *(
        CodebookMap(Abs, codes, rounding, Partition.tensor(), scale)
        for codes in CODES.values()
        for scale in ("absmax", "power_of_two")
        for rounding in ROUNDINGS
    ),
    *(GridMap(Abs, levels, rounding, Partition.tensor()) for levels in (1, 3) for rounding in ROUNDINGS),
    *(
        GridMap(Abs, levels, rounding, Partition.tensor(), below, Fraction(beyond))
        for levels in (1, 3)  # odd, as those of every bit width: where half a level is even, fewer facts are false
        for below, beyond in ((1, "1/2"), (1, "0"), (1, "1"), (0, "1/2"), (2, "1/3"))
        for rounding in ROUNDINGS
    ),
]


def facts_of(step: ScaledMap) -> dict[str, bool]:
    facts = MapFacts(step, Session(default_prover().solver, time.monotonic() + 60))
    names = [name for name, value in vars(MapFacts).items() if isinstance(value, lazy)]
    assert len(names) > 10
    return {name: getattr(facts, name) for name in names}


def weights(step: ScaledMap, context: Fraction) -> list[Fraction]:
    """Weights of at most this magnitude: values of the grid, midpoints between them, and values close to these."""
    unit = Fraction(step.step(context, Choices()))
    if isinstance(step, CodebookMap):
        codes = step.codes
    else:
        assert isinstance(step, GridMap)
        codes = codebooks.Codes(map(Fraction, range(-step.known_levels - step.below, step.known_levels + 1)))
    found = {Fraction(0), context, -context, *(unit * code for code in codes)}
    for a, b in pairwise(codes):
        middle = unit * (a + b) / 2
        found |= {middle, -middle, middle + unit / 100, middle - unit / 100, unit * (3 * a + b) / 4}
    return sorted(w for w in found if abs(w) <= context)


def broken(step: ScaledMap, context: Fraction) -> set[str]:
    """The facts that some weights of a group of this context contradict."""
    known = weights(step, context)
    unit = Fraction(step.step(context, Choices()))
    draws: list[Choices] = [Choices(), *(RandomChoices(seed) for seed in range(2 if step.rounding == "any" else 0))]
    uses = [{w: Fraction(step.value(w, context, choices)) for w in known} for choices in draws]
    q, ends = uses[0], (context, -context)
    single = [(w, use[w]) for use in uses for w in known]
    pairs = [
        (v, w, a[v], b[w]) for a, b in itertools.product(uses, repeat=2) for v, w in itertools.product(known, known)
    ]
    again = {x: {step.rounded(x, unit, choices) for choices in draws} for _, x in single}
    top = {max(abs(x), abs(use[end])) for use in uses for x in use.values() for end in ends}
    found = {
        "function": any(use != q for use in uses),
        "zero": any(x != 0 for w, x in single if w == 0),
        "odd": any(q[w] != -q[-w] for w in known if -w in q),
        "monotone": any(v <= w and x > y for v, w, x, y in pairs),
        "inside": any(abs(x) > context for _, x in single),
        "keeps_largest": any(abs(x) != context for w, x in single if abs(w) == context),
        "idempotent": any(again[x] != {x} for _, x in single),
        "nearest": any(abs(w - y) > abs(w - x) for _, w, x, y in pairs),
        "mirrored": any(abs(w - y) > abs(w + x) for _, w, x, y in pairs),
        "ordered": any(abs(v) < abs(w) and abs(x) > abs(y) for v, w, x, y in pairs),
        "half": any(2 * abs(w - x) > unit for w, x in single),
        "same_step": any(step.step(largest, Choices()) != unit for largest in top),
    }
    return {name for name, is_broken in found.items() if is_broken}


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", MAPS, ids=lambda step: f"{step.numbers}-{step.rounding}"[:60])
def test_what_is_proved_of_a_map_holds(step: ScaledMap) -> None:
    facts = facts_of(step)
    false = set().union(*(broken(step, context) for context in CONTEXTS))
    assert facts["even"]
    assert not {name for name, proved in facts.items() if proved} & false
    # Nor is a fact left unproved that nothing contradicts, but where it is asked only together with another.
    asked = {name for name, proved in facts.items() if not proved} - false
    assert asked <= ({"monotone", "odd"} if not facts["function"] else set()) | (
        set() if facts["zero"] else {"ordered"}
    )


@pytest.mark.parametrize(
    ("codes", "scale", "false"),
    [
        ("NF4", "absmax", {"odd", "mirrored", "ordered"}),
        ("E2M1", "absmax", {"half"}),
        ("E2M1", "power_of_two", {"half", "inside", "keeps_largest"}),
        ("no zero", "absmax", {"zero", "half", "odd", "ordered"}),
        ("short", "absmax", {"odd", "mirrored", "ordered", "keeps_largest", "half", "same_step"}),
    ],
)
def test_facts_of_some_codebooks(codes: str, scale: str, false: set[str]) -> None:
    facts = facts_of(CodebookMap(Abs, CODES[codes], "half_even", Partition.tensor(), scale))
    assert {name for name, proved in facts.items() if not proved} == false


@pytest.mark.parametrize(
    ("grid", "false"),
    [
        ("narrow", set()),
        ("narrow_step", set()),
        ("full_range", {"odd", "inside", "keeps_largest", "same_step"}),
        ("clipped", {"odd", "mirrored", "ordered", "keeps_largest", "half", "same_step"}),
    ],
)
def test_facts_of_the_grids_in_use(grid: str, false: set[str]) -> None:
    """Proved for every number of levels. What is not proved is false with a few."""
    of = GRIDS[grid]
    step = GridMap(Abs, 3, "half_even", Partition.tensor(), of.below, of.beyond)
    assert {name for name, proved in facts_of(step).items() if not proved} == false
    every = [GridMap(Abs, n, "half_even", Partition.tensor(), of.below, of.beyond) for n in (1, 2, 3)]
    assert set().union(*(broken(step, context) for step in every for context in CONTEXTS)) == false


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", ["absmax", "power_of_two"])
@pytest.mark.parametrize("codes", CODES)
def test_long_tables_are_monotone_where_short_ones_are(
    codes: str, scale: str, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one weight between midpoints it follows what is asked of two of a short table."""
    step = CodebookMap(Abs, CODES[codes], rounding, Partition.tensor(), scale)
    usual = MapFacts(step, Session(default_prover().solver, time.monotonic() + 60)).monotone
    monkeypatch.setattr(rule, "LONG_TABLE", 0)
    session = Session(default_prover().solver, time.monotonic() + 60)
    assert MapFacts(step, session).monotone is usual is (rounding != "any")
    assert usual is any(query.name.startswith("between") for query in session.queries)


def test_a_weight_outside_its_midpoints_is_found() -> None:
    """The question can fail: of another table's values it does."""
    step = CodebookMap(Abs, CODES["short"], "half_even", Partition.tensor())
    known = MapFacts(step, Session(default_prover().solver, time.monotonic() + 60))
    moved = CodebookMap(Abs, tuple(map(Fraction, (-2, 2, 3))), "half_even", Partition.tensor())
    low, middle, high = step.codes

    def other(w: Any) -> Any:  # the nearest of -2, 2 and 3, named by the codes -2, 0 and 3
        return on_leaves(
            moved.rounded(w, z3.RealVal(1), Choices()),
            lambda leaf: z3.RealVal({-2: low, 2: middle, 3: high}[int(z3.simplify(leaf).as_fraction())]),
            {},
        )

    w = z3.Real("w")
    solver = z3.Solver()
    solver.add(Abs(w) <= 3, z3.Not(known._between(other)))
    assert solver.check() == z3.sat
    solver = z3.Solver()
    solver.add(Abs(w) <= 3, z3.Not(known._between(lambda w: step.rounded(w, z3.RealVal(1), Choices()))))
    assert solver.check() == z3.unsat

"""Conditional claims: what conditions mean in every reading, what they let be proved, and attacks on those proofs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import z3
from hypothesis import strategies as st

import compcomp.techniques
from compcomp.errors import InputError
from compcomp.language.claim import Claim, dominates, equal, keeps
from compcomp.language.conditions import (
    CONDITIONS,
    Box,
    Condition,
    DiagonalGram,
    LargestKept,
    NoTies,
    OrthogonalInputs,
    ScaleUnchanged,
)
from compcomp.language.technique import Sequence, Technique
from compcomp.language.text import parse_claim
from compcomp.layers.state import LayerState
from compcomp.ordering.store import verdict_from_json, verdict_to_json
from compcomp.proving.candidates import Candidates
from compcomp.proving.conditions import find_condition
from compcomp.proving.meaning import fails
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, confirmed, exact_runs
from compcomp.proving.solver import Answer
from compcomp.techniques import AbsMax, Magnitude, Wanda
from compcomp.terms import Batch, Choices
from tests.amount import drawn, marked, spread

P, Q, W = "Magnitude(sparsity=1/2)", "AbsMax(bits=4)", "Wanda(sparsity=1/2)"
PQ = f"{P} >> {Q} dominates {Q} >> {P}"
QP = f"{Q} >> {P} dominates {P} >> {Q}"
WQ = f"{W} >> {Q} dominates {Q} >> {W}"
M = "Magnitude(sparsity=1/2, per='row')"
ALL = "Magnitude(sparsity=1/3, ties='all')"
UP = "AbsMax(bits=4, rounding='half_up')"

# ------------------------------------------------------------------------------------------------ as text


@pytest.mark.parametrize(
    "text",
    [
        f"{PQ} given no_ties",
        f"{PQ} given no_ties, diagonal_gram",
        f"{P} >> {Q} keeps mask given largest_kept",
        f"{P} equals {P} given box(radius=1/10, around=((1, -2/3), (3, 4)))",
        f"{P} equals {P} given scale_unchanged, orthogonal_inputs, box(radius=0, around=((7,),))",
    ],
)
def test_round_trip(text: str) -> None:
    claim = parse_claim(text, "output_l2")
    assert str(claim) == text
    assert parse_claim(str(claim), "output_l2") == claim


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nothing",
        "no_ties,",
        "no_ties no_ties",
        "box",
        "box(1)",
        "box(radius=1)",
        "box(radius=-1, around=((1,),))",
        "box(radius=1, around=((1, 2), (3,)))",
        "box(radius=1, around=())",
        "box(radius=1, around=((True,),))",
        "no_ties(x=1)",
        "__import__('os')",
        "(" * 3000,
        "box(radius=1, around=((1,),)), box(radius=1, around=((1, 2),))",
    ],
)
def test_bad_conditions_get_one_line(given: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_claim(f"{PQ} given {given}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_conditions_may_be_named_or_given() -> None:
    p, q = Magnitude("1/2"), AbsMax(4)
    one = dominates(p >> q, q >> p, given=["no_ties", DiagonalGram()])
    assert one == dominates(p >> q, q >> p, given="no_ties, diagonal_gram")
    assert one.given == (NoTies(), DiagonalGram())
    assert equal(p, p, given=NoTies()).given == keeps(p, "mask", given=("no_ties",)).given == (NoTies(),)
    with pytest.raises(InputError):
        equal(p, p, given=[3])  # type: ignore[list-item]


def test_claims_that_differ_in_conditions_differ() -> None:
    assert parse_claim(PQ) != parse_claim(f"{PQ} given no_ties")
    assert not parse_claim(PQ, "weight_l2").needs_inputs
    assert parse_claim(f"{PQ} given diagonal_gram", "weight_l2").needs_inputs


# ------------------------------------------------------------------------------------- what they mean

PRUNE, QUANTIZE = Magnitude("1/2"), AbsMax(3)


def _holds(condition: Condition, claim: Claim, weight: list[list[int]], inputs: list[list[int]] | None = None) -> bool:
    array = np.array([[Fraction(x) for x in row] for row in weight], dtype=object)
    tokens = None if inputs is None else np.array([[Fraction(x) for x in row] for row in inputs], dtype=object)
    return bool(condition.holds(claim, exact_runs(claim, Suspect(array, tokens))))


@pytest.mark.parametrize(
    ("condition", "weight", "inputs", "expected"),
    [
        (NoTies(), [[1, 2, 9, 10]], None, True),
        (NoTies(), [[1, 2, -2, 4]], None, False),
        (NoTies(), [[2, 2, 9, 9]], None, True),  # ties away from the threshold
        (NoTies(), [[10, 11, 12, 20]], None, False),  # tied after quantization to -3 ... 3
        (ScaleUnchanged(), [[1, 2, 3, 4]], None, True),
        (LargestKept(), [[1, 2, 3, 4]], None, True),
        (DiagonalGram(), [[1, 2]], [[1, 1], [1, -1]], True),
        (DiagonalGram(), [[1, 2]], [[1, 1], [1, 0]], False),
        (OrthogonalInputs(), [[1, 2]], [[1, 1], [1, -1]], True),
        (OrthogonalInputs(), [[1, 2]], [[1, 0], [0, 2]], False),
        (OrthogonalInputs(), [[1, 2]], [[0], [0]], False),
        (Box(Fraction(1), ((Fraction(1), Fraction(5)),)), [[2, 4]], None, True),
        (Box(Fraction(1), ((Fraction(1), Fraction(5)),)), [[3, 4]], None, False),
        (Box(Fraction(1), ((Fraction(1), Fraction(5)),)), [[1, 5, 0]], None, False),
    ],
)
def test_meaning(condition: Condition, weight: Any, inputs: Any, expected: bool) -> None:
    claim = dominates(PRUNE >> QUANTIZE, QUANTIZE >> PRUNE)
    assert _holds(condition, claim, weight, inputs) is expected


def test_wanda_may_drop_the_largest() -> None:
    claim = dominates(Wanda("1/2") >> QUANTIZE, QUANTIZE)
    for condition in (LargestKept(), ScaleUnchanged()):
        assert not _holds(condition, claim, [[9, 1]], [[0], [1]])
        assert _holds(condition, claim, [[9, 1]], [[1], [1]])


def test_largest_kept_allows_a_group_to_be_emptied() -> None:
    claim = dominates(PRUNE >> AbsMax(3, group=2), AbsMax(3, group=2))
    assert _holds(LargestKept(), claim, [[1, 2, 5, 6]])
    assert not _holds(ScaleUnchanged(), claim, [[1, 2, 5, 6]])


READ = [NoTies(), LargestKept(), ScaleUnchanged(), DiagonalGram(), OrthogonalInputs()]
CLAIMS = [
    dominates(PRUNE >> QUANTIZE, QUANTIZE >> PRUNE, "output_l2"),
    dominates(Wanda("1/2") >> QUANTIZE, QUANTIZE >> Wanda("1/4"), "output_l2"),
    dominates(Magnitude("1/3", ties="all"), AbsMax(2, rounding="half_up") >> PRUNE, "output_l2"),
]


@drawn(st.sampled_from(READ), st.sampled_from(CLAIMS), st.data(), kept=12, of=40)
def test_readings_agree(condition: Condition, claim: Claim, data: st.DataObject) -> None:
    """Numbers, batches and z3 terms say the same of a condition."""
    entries = st.integers(-3, 3)
    weight = data.draw(st.lists(entries, min_size=4, max_size=4))
    inputs = data.draw(st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=4, max_size=4))
    expected = _holds(condition, claim, [weight], inputs)
    batch = Candidates(np.array([[weight]] * 2, dtype=float), np.array([inputs] * 2, dtype=float))
    layer = batch.layer(np.random.default_rng(0))
    found = condition.holds(claim, [s.trace(layer) for s in claim.sequences], 1e-9)
    assert bool(found.values[0] if isinstance(found, Batch) else found) is expected
    w = np.array([[z3.RealVal(x) for x in weight]], dtype=object)
    x = np.array([[z3.RealVal(x) for x in row] for row in inputs], dtype=object)
    runs = [s.trace(LayerState.dense(w, x, choices=Choices())) for s in claim.sequences]
    term = condition.holds(claim, runs)
    assert bool(term if isinstance(term, bool) else z3.is_true(z3.simplify(term))) is expected


def test_a_claim_fails_only_where_its_conditions_hold() -> None:
    weight = np.array([[Fraction(x) for x in (5, 6, 6, 7)]], dtype=object)
    inputs = np.array([[Fraction(x)] for x in (1, 0, 0, 0)], dtype=object)
    found = prove(parse_claim(PQ, "output_l2"), (1, 4)).witness
    assert found is not None and found.inputs is not None
    weight, inputs = (np.array([list(row) for row in m], dtype=object) for m in (found.weight, found.inputs))
    assert confirmed(parse_claim(PQ, "output_l2"), Suspect(weight, inputs))
    assert not confirmed(parse_claim(f"{PQ} given no_ties", "output_l2"), Suspect(weight, inputs))


# ------------------------------------------------------------------------------------------- verdicts

TABLE = [
    # Where no score ties, pruning by magnitude and rounding to a grid of the largest magnitude commute.
    (f"{PQ} given no_ties", "output_l2", "any", "PROVED"),
    (f"{QP} given no_ties", "output_l2", "any", "PROVED"),
    (f"{P} >> {Q} equals {Q} >> {P} given no_ties", "weight_l2", "any", "PROVED"),
    (f"{P} >> {Q} equals {Q} >> {P} given no_ties", "weight_l2", "1x4", "PROVED"),
    (f"{P} >> {Q} equals {Q} >> {P} given largest_kept", "weight_l2", "any", "REFUTED"),
    (f"{PQ} given diagonal_gram", "output_l2", "any", "REFUTED"),
    (f"{PQ} given orthogonal_inputs", "output_l2", "any", "PROVED"),
    (f"{PQ} given orthogonal_inputs", "output_l2", "1x4", "PROVED"),
    (f"{PQ} given largest_kept", "output_l2", "any", "REFUTED"),
    # Wanda is the best mask where inputs are uncorrelated, and is magnitude where they have one norm.
    (f"{W} dominates Magnitude(sparsity=1/2, per='row')", "output_l2", "any", "REFUTED"),
    (f"{W} dominates Magnitude(sparsity=1/2, per='row') given diagonal_gram", "output_l2", "any", "PROVED"),
    (f"{WQ} given orthogonal_inputs", "weight_l2", "any", "PROVED"),
    (f"{WQ} given orthogonal_inputs", "output_l2", "any", "PROVED"),
    (f"{WQ} given no_ties, largest_kept, diagonal_gram", "weight_l2", "any", "REFUTED"),
    (f"{WQ} given no_ties, largest_kept, diagonal_gram", "output_l2", "any", "REFUTED"),
    # Magnitude is the best mask in weight loss, and stays so after quantization where no scale changes.
    (f"{M} >> {Q} dominates {W} >> {Q}", "weight_l1", "any", "REFUTED"),
    (f"{M} >> {Q} dominates {W} >> {Q} given largest_kept", "weight_l1", "any", "PROVED"),
    (f"{M} >> {Q} dominates {W} >> {Q} given scale_unchanged", "weight_l2", "any", "PROVED"),
    # A finer nested grid, under the output loss.
    ("AbsMax(bits=7) dominates AbsMax(bits=4)", "output_l2", "any", "REFUTED"),
    ("AbsMax(bits=7) dominates AbsMax(bits=4) given diagonal_gram", "output_l2", "any", "PROVED"),
    # The paper's ties, all of which go, with midpoints rounded up.
    (f"{ALL} >> {UP} dominates {UP} >> {ALL}", "weight_l1", "1x3", "REFUTED"),
    (f"{ALL} >> {UP} dominates {UP} >> {ALL} given no_ties", "weight_l1", "any", "PROVED"),
    # Scales: two Wandas that drop the same weights, then a finer grid of the same scale.
    (f"{W} >> AbsMax(bits=7) dominates {W} >> AbsMax(bits=4)", "weight_l2", "any", "PROVED"),
    (
        f"{W} >> AbsMax(bits=7) dominates Wanda(sparsity=1/2, ties='all') >> AbsMax(bits=4) "
        "given no_ties, largest_kept",
        "weight_l2",
        "any",
        "PROVED",
    ),
    (
        f"{W} >> {Q} equals Wanda(sparsity=1/2, ties='all') >> {Q} given no_ties, scale_unchanged",
        "weight_l2",
        "any",
        "PROVED",
    ),
    # Around given weights.
    (f"{QP} given box(radius=1/10, around=((1, 2, 3, 4),))", "weight_l2", "any", "PROVED"),
    (f"{W} dominates {P} given box(radius=1/10, around=((1, 2, 3, 4),))", "weight_l2", "any", "REFUTED"),
    # Conditions that no layer meets.
    (f"{P} >> Magnitude(sparsity=1/3) dominates {Q} given no_ties", "weight_l1", "1x6", "VACUOUS"),
    (f"{P} >> Magnitude(sparsity=1/3) dominates {P} given no_ties", "weight_l1", "1x6", "VACUOUS"),
]


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), TABLE)
def test_verdict(text: str, loss: str, scope: str, expected: str) -> None:
    claim = parse_claim(text, loss)
    verdict = prove(claim, scope, timeout=30)
    assert str(verdict.status) == expected, verdict
    if expected == "PROVED":
        assert {c.assumption for c in claim.given} <= set(verdict.assumptions)
        assert verdict.needed == (tuple(map(str, claim.given)) if claim.given else None)
        data = verdict.to_json()
        assert data["given"] == (data["needed"] or []) == list(map(str, claim.given))
        assert verdict_from_json(verdict_to_json(verdict)).needed == verdict.needed
    if expected == "REFUTED" and claim.given:
        assert verdict.witness is not None
        inputs = verdict.witness.inputs
        for condition in claim.given:
            suspect = Suspect(
                np.array([list(row) for row in verdict.witness.weight], dtype=object),
                None if inputs is None else np.array([list(row) for row in inputs], dtype=object),
            )
            assert condition.holds(claim, exact_runs(claim, suspect))


@pytest.mark.parametrize(
    ("text", "loss", "expected"),
    [
        (f"{PQ} given no_ties, largest_kept, scale_unchanged, diagonal_gram", "weight_l2", ()),
        (f"{PQ} given diagonal_gram, no_ties, scale_unchanged", "output_l2", ("no_ties",)),
        (f"{WQ} given no_ties, orthogonal_inputs", "output_l2", ("orthogonal_inputs",)),
    ],
)
def test_needed(text: str, loss: str, expected: tuple[str, ...]) -> None:
    verdict = prove(parse_claim(text, loss), timeout=30)
    assert verdict.proved and verdict.needed == expected
    assert f"it needs {', '.join(expected) or 'none'}" in str(verdict)


def test_claims_without_conditions_need_none() -> None:
    assert prove(parse_claim(PQ), stages=("rule",)).needed is None


class Agreeable:
    """A solver that calls everything unsatisfiable."""

    def ask(self, smtlib: str, deadline: float) -> Answer:
        return Answer("unsat")


@pytest.mark.parametrize("scope", ["any", "1x4"])
def test_a_lying_solver_proves_nothing_vacuous(scope: str) -> None:
    claim = parse_claim(f"{P} >> Magnitude(sparsity=1/4) dominates {Q} given no_ties, largest_kept")
    assert not prove(claim, scope, solver=Agreeable(), second=None, stages=("rule", "bounded")).proved


@pytest.mark.parametrize("scope", ["2x2", "block:8", (1, 3)])
def test_a_box_is_for_its_shape(scope: Any) -> None:
    claim = parse_claim(f"{P} dominates {P} given box(radius=1, around=((1, 2),))")
    with pytest.raises(InputError, match="box"):
        prove(claim, scope)
    assert prove(claim, "any").scope.shape == (1, 2)


def test_a_technique_of_several_steps_takes_no_conditions() -> None:
    @dataclass(frozen=True)
    class Two(Technique):
        def steps(self) -> Any:
            return (*PRUNE.steps(), *QUANTIZE.steps())

    with pytest.raises(InputError, match="one step"):
        dominates(Two(), Two(), given="no_ties")


# ---------------------------------------------------------------------------------------- find_condition


@pytest.mark.parametrize(
    ("text", "loss", "given", "also"),
    [
        (PQ, "weight_l2", (), []),
        (PQ, "output_l2", ("no_ties",), [("orthogonal_inputs",)]),
        (WQ, "weight_l2", ("orthogonal_inputs",), []),
        (f"{Q} >> {W} dominates {W} >> {Q}", "weight_l2", ("no_ties", "orthogonal_inputs"), []),
        ("AbsMax(bits=7) dominates AbsMax(bits=4)", "output_l2", ("diagonal_gram",), []),
    ],
)
def test_find_condition(text: str, loss: str, given: tuple[str, ...], also: list[tuple[str, ...]]) -> None:
    finding = find_condition(parse_claim(text, loss), timeout=60)
    assert finding.given is not None and tuple(map(str, finding.given)) == given
    assert finding.verdict.proved and finding.found
    assert [tuple(map(str, v.claim.given)) for v in finding.also] == also
    assert finding.to_json()["given"] == list(given)


def test_find_condition_says_why_there_is_none() -> None:
    finding = find_condition(parse_claim("AbsMax(bits=8) dominates AbsMax(bits=4)"))
    assert finding.given is None and not finding.found and finding.complete
    assert finding.reasons and "REFUTED" in finding.reasons[0]
    with pytest.raises(TypeError):
        bool(finding)


def test_find_condition_takes_templates() -> None:
    finding = find_condition(parse_claim(PQ, "output_l2"), ["diagonal_gram", OrthogonalInputs()])
    assert finding.given == (OrthogonalInputs(),)
    assert finding.reasons[1].startswith("diagonal_gram: REFUTED")
    with pytest.raises(InputError):
        find_condition(parse_claim(PQ), ["nothing"])


# -------------------------------------------------------------------------------------------- attacks

PRUNERS: list[Technique] = [
    Magnitude("1/2"),
    Magnitude("1/2", per="row"),
    Magnitude("1/2", per="row", ties="all"),
    Magnitude("1/4", ties="any"),
    Magnitude("1/4", per="row"),
    Wanda("1/4"),
    Magnitude("1/2", pattern="1:2"),
    Wanda("1/2"),
    Wanda("1/4", ties="all"),
]
MAPS: list[Technique] = [
    AbsMax(2),
    AbsMax(3, rounding="half_up"),
    AbsMax(3, group=2),
    AbsMax(2, rounding="half_away"),
]
FAMILY = PRUNERS + MAPS

LENGTHS = [(1, 1, 1, 1), (0, 1, 1, 2), (2, 1, 1, 0), (1, 3, 2, 1), (0, 0, 1, 3)]
DENSE = [((1, 0), (1, 1), (0, 1), (1, -1)), ((1, 1), (1, -1), (0, 1), (2, 0))]


def every_case() -> list[Candidates]:
    """Every 1 x 4 layer of whole numbers up to 4, and every 2 x 2 one, with several inputs each."""
    grid = np.array(list(itertools.product(range(-4, 5), repeat=4)), dtype=float)
    found = []
    for shape in ((1, 4), (2, 2)):
        columns = shape[1]
        weights = grid.reshape(len(grid), *shape)
        tokens = [np.diag(lengths[:columns]) for lengths in LENGTHS] + [np.array(x[:columns]) for x in DENSE]
        for x in tokens:
            inputs = np.broadcast_to(x.astype(float), (len(grid), *x.shape))
            found.append(Candidates(weights, inputs))
    return found


CASES = every_case()


def counterexample(claim: Claim, shape: tuple[int, int] | None = None) -> bool:
    """Whether some layer, of this shape if one is given, meets the claim's conditions and contradicts it."""
    for candidates in CASES:
        if shape not in (None, candidates.weights.shape[1:]):
            continue
        layer = candidates.layer(np.random.default_rng(3))
        found = fails(claim, [sequence.trace(layer) for sequence in claim.sequences], tolerance=1e-9)
        if bool(found.values.any() if isinstance(found, Batch) else found):
            return True
    return False


@st.composite
def conditional_claims(draw: st.DrawFn) -> Claim:
    p, q, r = draw(st.sampled_from(PRUNERS)), draw(st.sampled_from(MAPS)), draw(st.sampled_from(FAMILY))
    other, map_ = draw(st.sampled_from([p, *PRUNERS])), draw(st.sampled_from([q, *MAPS]))
    shapes = [
        (p >> q, map_ >> other),
        (q >> p, other >> map_),
        (p >> q, p >> r),
        (Sequence((p,)), other >> r),
        (p >> q, other >> map_),
    ]
    left, right = draw(st.sampled_from(shapes))
    given = draw(st.lists(st.sampled_from(READ), min_size=1, max_size=3, unique=True))
    if draw(st.booleans()):
        return dominates(left, right, draw(st.sampled_from(["weight_l1", "weight_l2", "output_l2"])), given=given)
    return dominates(left, right, "output_l2", given=given) if draw(st.booleans()) else equal(left, right, given=given)


@pytest.mark.slow
@drawn(conditional_claims(), kept=40, of=250)
def test_nothing_false_is_proved_under_conditions(claim: Claim) -> None:
    """Rules alone: every small layer that meets the conditions has to obey a proof for any shape."""
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim), verdict


@pytest.mark.slow
@pytest.mark.parametrize("part", spread(range(5), 1))
@pytest.mark.parametrize("condition", READ, ids=str)
def test_reversed_pairs_under_one_condition(condition: Condition, part: int) -> None:
    proved = 0
    for p, q in list(itertools.product(PRUNERS, MAPS))[part::5]:
        for claim in (
            dominates(p >> q, q >> p, "output_l2", given=condition),
            dominates(q >> p, p >> q, "weight_l2", given=condition),
            equal(p >> q, q >> p, given=condition),
        ):
            verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
            proved += verdict.proved
            assert not (verdict.proved and counterexample(claim)), verdict
    if condition in (NoTies(), OrthogonalInputs()):
        assert proved > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", marked(range(11), {3}))
@pytest.mark.parametrize("condition", [LargestKept(), ScaleUnchanged()], ids=str)
def test_masks_before_one_map(condition: Condition, part: int) -> None:
    """A fact about the scale: where Wanda drops the largest weight, the claim fails."""
    proved = 0
    for (p, other), q in itertools.product(list(itertools.permutations(PRUNERS, 2))[part::11], MAPS):
        for loss in ("weight_l1", "weight_l2"):
            claim = dominates(p >> q, other >> q, loss, given=condition)
            verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
            proved += verdict.proved and str(condition) in (verdict.needed or ())
            assert not (verdict.proved and counterexample(claim)), verdict
    assert proved > 0 or part not in (3, 5)  # those have magnitudes in rows against Wanda


@pytest.mark.slow
@pytest.mark.parametrize("first", marked(FAMILY, {0, len(PRUNERS)}), ids=str)
def test_sequences_that_start_alike(first: Technique) -> None:
    """Without conditions: what both sequences start with is shared by their formulas."""
    finer: list[Technique] = [AbsMax(5), AbsMax(3), AbsMax(3, rounding="half_up"), AbsMax(2), FAMILY[0]]
    for one, other in itertools.permutations([*finer, first], 2):
        for left, right in ((first >> one, first >> other), (first >> one, first >> one >> other)):
            claim = dominates(left, right, "weight_l2")
            verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
            assert not (verdict.proved and counterexample(claim)), verdict


@pytest.mark.slow
@drawn(conditional_claims(), kept=6, of=15)
def test_nothing_false_is_proved_at_one_shape(claim: Claim) -> None:
    verdict = prove(claim, (1, 4), timeout=5, stages=("bounded",), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, (1, 4)), verdict


def test_every_condition_is_tried_somewhere() -> None:
    assert {type(c) for c in READ} | {Box} == set(CONDITIONS.values())
    assert compcomp.techniques.__all__

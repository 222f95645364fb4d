"""Attack the prover: whatever it proves must survive every layer of a dense set of small ones."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from compcomp.kernels._codebook import quantize
from compcomp.language.assumption import Kind
from compcomp.language.claim import Claim, dominates, equal, fits, keeps, orthogonal, same_state
from compcomp.language.conditions import conditions
from compcomp.language.steps import CodebookMap, Element, Selection
from compcomp.language.technique import Declared, Kernel, Sequence, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.candidates import Candidates
from compcomp.proving.meaning import fails
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules.facts import keeps_largest
from compcomp.proving.session import Session
from compcomp.techniques import (
    FP4,
    MX,
    NF4,
    RIA,
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    BlockFloatingPoint,
    GradualMagnitude,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    PruneColumns,
    PruneRows,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Abs, Batch
from tests.amount import drawn, spread

LARGEST = 12
WEIGHT_LOSSES = [f"weight_l{p}" for p in range(1, 5)]

TECHNIQUES: list[Technique] = [
    Magnitude("1/2"),
    Magnitude("1/3", ties="all"),
    Magnitude("1/3", ties="any"),
    Magnitude("2/3"),
    AbsMax(2),
    AbsMax(3),
    AbsMax(3, rounding="half_up"),
    AbsMax(2, rounding="half_away"),
    AbsMax(3, rounding="any"),
    Magnitude("1/2", of="dense"),
    Magnitude("1/3", of="dense", ties="all"),
    MinMax(2),
    MinMax(2, zero="none"),
    ApplyMask(),
]

# Groups of two inside rows of four, for rules that reason over groups.
GROUPED: list[Technique] = [
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/2", per="row"),
    Magnitude("1/4", ties="any"),
    AbsMax(2, group=2),
    AbsMax(3, group=2, rounding="half_up"),
    AbsMax(3),
    AbsMax(5),
    AbsMax(2, rounding="half_away"),
    Magnitude("1/2", pattern="1:2", of="dense"),
    Magnitude("1/4", of="dense"),
    Magnitude("1/2", pattern="1:2", of="dense", ties="all"),
    MinMax(2, group=2),
    MinMax(3, zero="none"),
    ApplyMask(),
]


@dataclass(frozen=True)
class Scored(Technique):
    """A selection by a score of its own, of half the weights: for what no registered technique does."""

    score: Callable[[Element], Any]

    def steps(self) -> tuple[Selection]:
        return (Selection(self.score, Partition.tensor(), Fraction(1, 2), "first"),)


# Where scores of the dense weights meet those of the current ones, and masks are broken and restored.
DETERMINISTIC: list[Technique] = [
    Magnitude("1/2", of="dense"),
    Magnitude("1/2", of="dense", ties="all"),
    Magnitude("1/2", of="dense", ties="any"),
    Magnitude("1/4", of="dense"),
    Magnitude("1/2"),
    Scored(lambda element: -Abs(element.weight)),
    Scored(lambda element: Abs(element.weight - element.reference)),
    AbsMax(2),
    AbsMax(3, rounding="any"),
]
MASKED: list[Technique] = [
    Magnitude("1/2"),
    Magnitude("1/4", of="dense"),
    AbsMax(2),
    MinMax(2),
    MinMax(2, zero="none"),
    MinMax(3, zero="none", rounding="any"),
    ApplyMask(),
    TruncatedSVD(rank=1),
]


SCHEMES = ["W2", "W3", "1:2", "W3 1:2", "50%", "25%/row", "W2 50%/row", "r1", "W3 +r1", "1:2 +r2", "75%"]
# What sets up formats and breaks them, in rows of two and four.
FORMATS: list[Technique] = [
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/2", pattern="2:4"),
    Magnitude("3/4", pattern="1:4", ties="all"),
    Magnitude("1/2", per="row"),
    Magnitude("1/3"),
    AbsMax(2),
    AbsMax(3, group=2),
    MinMax(2),
    MinMax(3, zero="none"),
    ApplyMask(),
    TruncatedSVD(1),
    TruncatedSVD(1, residual=True),
]


@dataclass(frozen=True)
class Coded(Technique):
    """A codebook that no registered technique has."""

    codes: tuple[int, ...]
    scale: str = "absmax"
    rounding: str = "half_even"
    group: int | None = None

    def steps(self) -> tuple[CodebookMap]:
        partition = Partition.tensor() if self.group is None else Partition.blocks(self.group)
        return (CodebookMap(Abs, tuple(map(Fraction, self.codes)), self.rounding, partition, self.scale),)

    def promises(self) -> Declared:
        return Declared(homogeneous=self.scale == "absmax", deterministic=self.rounding != "any")

    def kernel(self) -> Kernel:
        return quantize


# Grids of any values, with steps that scale along and steps that are powers of two.
CODED: list[Technique] = [
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/2", pattern="1:2", ties="any"),
    Magnitude("1/4"),
    Magnitude("1/2", pattern="1:2", of="dense"),
    NF4(group=None),
    FP4(group=None),
    FP4(group=2, rounding="half_up"),
    FP4(group=2, rounding="any"),
    MX(group=4),
    MX(group=2, rounding="half_away"),
    BlockFloatingPoint(2, group=2),
    BlockFloatingPoint(3, group=None, rounding="half_up"),
    Coded((-4, -1, 0, 1, 2, 4)),
    Coded((-3, -1, 1, 2), group=2),
    Coded((-2, 0, 3)),
    Coded((-5, -1, 0, 1, 5), "power_of_two"),
    AbsMax(3, group=2),
    MinMax(2, zero="none"),
    ApplyMask(),
]
# Grids that are not symmetric, whose largest weights move, and that are nested in no other.
GRIDDED: list[Technique] = [
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/2", ties="any"),
    Magnitude("1/4", of="dense"),
    AbsMax(2, grid="full_range"),
    AbsMax(2, group=2, grid="full_range", rounding="any"),
    AbsMax(3, group=2, grid="full_range", rounding="half_up"),
    AbsMax(3, grid="full_range", rounding="half_away"),
    AbsMax(2, grid="narrow_step"),
    AbsMax(3, group=2, grid="narrow_step", rounding="any"),
    AbsMax(2, group=2, grid="clipped"),
    AbsMax(3, grid="clipped", rounding="half_up"),
    AbsMax(2, group=2),
    AbsMax(3),
    MinMax(2, zero="none"),
    ApplyMask(),
]
# Stored steps, which are rounded: what holds of an exact one need not hold, and the largest weight may be no value.
STORED: list[Technique] = [
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/4"),
    AbsMax(2, group=2, scales="power_of_two"),
    AbsMax(2, scales="float16"),
    AbsMax(3, scales="power_of_two", rounding="any"),
    AbsMax(3, group=2, grid="full_range", scales="bfloat16"),
    AbsMax(2, grid="signed", scales="power_of_two"),
    AbsMax(2, group=2),
    AbsMax(3),
    MinMax(2, scales="power_of_two"),
    MinMax(2, zero="none", scales="float16"),
    ApplyMask(),
]
# Scores of the whole layer, of which rules know nothing, and several selections in one technique.
BY_LAYER: list[Technique] = [
    RIA("1/2", power=0),
    RIA("1/4", power=0, per="row"),
    RIA("1/2", power=0, pattern="1:2"),
    RIA("1/2", power=0, ties="any"),
    GradualMagnitude("1/2", 2),
    Magnitude("1/2"),
    Magnitude("1/4", per="row"),
    Magnitude("1/2", pattern="1:2"),
    AbsMax(2),
    AbsMax(3, group=2),
]
CUTTING: list[Technique] = [
    PruneRows("1/2"),
    PruneColumns("1/2", score="l2"),
    Magnitude("1/2", pattern="1:2"),
    AbsMax(2),
    MinMax(2),
    MinMax(2, zero="none"),
    TruncatedSVD(rank=1, residual=True),
    ApplyMask(),
]


def every_layer(columns: int, rows: int = 1, largest: int = 0) -> Candidates:
    """Every layer of this shape of whole numbers up to LARGEST (6 for four weights), where midpoints occur."""
    largest = largest or (LARGEST if rows * columns < 4 else 6)
    values = np.arange(-largest, largest + 1, dtype=float)
    grid = np.array(list(itertools.product(values, repeat=rows * columns)))
    return Candidates(grid.reshape(-1, rows, columns), None)


def counterexample(claim: Claim, columns: int, rows: int = 1, largest: int = 0) -> bool:
    """Whether some small layer contradicts the claim, for some of a few resolutions of its free choices.

    Where nothing is left free, also in exact numbers: floats may go either way at a midpoint that is none in floats.
    """
    candidates = every_layer(columns, rows, largest)
    for seed in range(3):
        layer = candidates.layer(np.random.default_rng(seed))
        found = fails(claim, [sequence.trace(layer) for sequence in claim.sequences], tolerance=1e-9)
        if not bool(found.values.any() if isinstance(found, Batch) else found):
            continue
        if not claim.is_deterministic or not isinstance(found, Batch):
            return True
        failing = candidates.weights[np.broadcast_to(found.values, (len(candidates.weights),))]
        if any(contradicts(claim, weight) for weight in failing):
            return True
    return False


def contradicts(claim: Claim, weight: Any) -> bool:
    """Whether a layer of whole numbers contradicts a claim that leaves nothing free, in exact numbers."""
    exact = np.array([[Fraction(int(x)) for x in row] for row in weight], dtype=object)
    runs = [sequence.trace(LayerState.dense(exact)) for sequence in claim.sequences]
    return bool(fails(claim, runs))


@st.composite
def claims(draw: st.DrawFn, techniques: list[Technique] = TECHNIQUES) -> Claim:
    sequences = st.lists(st.sampled_from(techniques), min_size=1, max_size=3).map(lambda ts: Sequence(tuple(ts)))
    left, right = draw(sequences), draw(sequences)
    kind = draw(st.sampled_from(["dominates", "dominates", "equal", "same state", "keeps", "orthogonal"]))
    if kind == "orthogonal":
        slack = draw(st.sampled_from(["0", "1/4", "1/2"]))
        loss = "weight_l1" if slack != "0" else draw(st.sampled_from(WEIGHT_LOSSES[:2]))
        return orthogonal(left, right, loss, slack=slack)
    if kind == "dominates":
        return dominates(left, right, loss=draw(st.sampled_from(WEIGHT_LOSSES)))
    if kind == "same state":
        return same_state(left, right)
    return equal(left, right) if kind == "equal" else keeps(left, draw(st.sampled_from(["mask", "grid"])))


@pytest.mark.slow
@drawn(claims(), st.sampled_from([2, 3]), kept=15, of=50)
def test_nothing_false_is_proved(claim: Claim, columns: int) -> None:
    """Without the search stage, so that proofs are on their own."""
    verdict = prove(claim, (1, columns), timeout=2, stages=("rule", "bounded"), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, columns), verdict
    if verdict.refuted:
        assert verdict.witness is not None


def check_any_shape(claim: Claim) -> None:
    """A proof for any shape by rules alone has to hold for every 1 x 4 layer."""
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, 4), verdict


@pytest.mark.slow
@drawn(claims(GROUPED), kept=40, of=150)
def test_nothing_false_is_proved_for_any_shape(claim: Claim) -> None:
    """Rules alone: a proof for any shape has to hold for every 1 x 4 layer."""
    check_any_shape(claim)


@pytest.mark.slow
@drawn(claims(GRIDDED), kept=40, of=200)
def test_nothing_false_is_proved_of_the_grids_in_use(claim: Claim) -> None:
    check_any_shape(claim)


@pytest.mark.slow
@drawn(claims(STORED), kept=40, of=200)
def test_nothing_false_is_proved_of_stored_steps(claim: Claim) -> None:
    check_any_shape(claim)


@pytest.mark.slow
@drawn(claims(STORED), kept=8, of=50)
def test_nothing_false_is_proved_of_stored_steps_at_a_shape(claim: Claim) -> None:
    """By formulas, in which a stored step is any number within bounds."""
    verdict = prove(claim, (1, 2), timeout=2, stages=("rule", "bounded"), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, 2), verdict


@pytest.mark.slow
@drawn(claims(DETERMINISTIC), kept=40, of=200)
def test_nothing_false_is_proved_of_dense_scores(claim: Claim) -> None:
    check_any_shape(claim)


@pytest.mark.slow
@drawn(st.lists(st.sampled_from(MASKED), min_size=2, max_size=5), st.sampled_from(["mask", "grid"]), kept=40, of=150)
def test_no_broken_invariant_is_proved(techniques: list[Technique], invariant: str) -> None:
    claim = keeps(Sequence(tuple(techniques)), invariant)
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, 2, rows=2), verdict


@pytest.mark.slow
@drawn(st.lists(st.sampled_from(FORMATS), min_size=1, max_size=4), st.sampled_from(SCHEMES), kept=40, of=300)
def test_no_format_that_is_missed_is_proved(techniques: list[Technique], scheme: str) -> None:
    """By rules alone, against every layer of three shapes that the claim speaks of."""
    claim = fits(Sequence(tuple(techniques)), scheme)
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    for rows, columns in ((1, 4), (2, 2), (1, 3)):
        if claim.fits((rows, columns)):
            assert not (verdict.proved and counterexample(claim, columns, rows)), verdict


@pytest.mark.slow
@drawn(
    st.lists(st.sampled_from(FORMATS[:10]), min_size=1, max_size=2),
    st.sampled_from(SCHEMES),
    st.booleans(),
    kept=12,
    of=40,
)
def test_no_format_that_is_missed_is_proved_at_one_shape(techniques: list[Technique], scheme: str, wide: bool) -> None:
    claim, shape = fits(Sequence(tuple(techniques)), scheme), (1, 4) if wide else (2, 2)
    if claim.fits(shape):
        verdict = prove(claim, shape, timeout=4, stages=("bounded",), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, shape[1], shape[0])), verdict


def test_what_reductions_may_not_do_to_schemes() -> None:
    """Sorted weights put two large ones into one pair and two small ones into another: no pattern survives that."""
    half = Magnitude("1/2")
    for claim, shape in ((fits(half, "1:2"), (1, 4)), (fits(half, "50%/row"), (2, 2)), (fits(half, "2:4"), (2, 4))):
        verdict = prove(claim, shape, timeout=20, stages=("bounded",), second=None, explain=False)
        assert verdict.refuted, verdict
    assert prove(fits(half, "50%"), (2, 3), timeout=20, stages=("bounded",), second=None, explain=False).proved
    assert prove(fits(half, "2:4"), (1, 4), timeout=20, stages=("bounded",), second=None, explain=False).proved


@dataclass(frozen=True)
class Promising(TruncatedSVD):
    """Leaves nothing of a layer but what a test says, and declares more."""

    promised: Declared = field(default_factory=Declared)

    def promises(self) -> Declared:
        return self.promised


def test_a_format_depends_on_contracts() -> None:
    """Each is named, and a technique whose format may vary proves nothing."""
    keeps_all = frozenset({"mask", "n:m", "grid", "rank"})
    trusted = Promising(1, residual=True, promised=Declared(keeps=keeps_all))
    verdict = prove(fits(AbsMax(2) >> trusted, "W2 +r1"), "any", stages=("rule",), second=None, explain=False)
    assert verdict.proved and sum(a.kind is Kind.CONTRACT for a in verdict.assumptions) == 2
    varying = Promising(1, residual=True, promised=Declared(keeps=keeps_all, format_varies=True))
    assert not prove(fits(AbsMax(2) >> varying, "W2 +r1"), "any", stages=("rule",), second=None, explain=False).proved
    silent = Promising(1, residual=True)
    assert not prove(fits(AbsMax(2) >> silent, "W2 +r1"), "any", stages=("rule",), second=None, explain=False).proved


@pytest.mark.slow
@pytest.mark.parametrize("middle", spread(((pair,) for pair in itertools.product(MASKED, repeat=2)), 9), ids=str)
def test_masks_restored_and_grids_after_every_pair(middle: tuple[Technique, ...]) -> None:
    """Every pair after pruning and before masking again, and every pair between a grid and its end."""
    for claim in (
        keeps(Sequence((MASKED[0], *middle, ApplyMask())), "mask"),
        keeps(Sequence((MASKED[0], *middle)), "mask"),
        keeps(Sequence((MASKED[4], *middle)), "grid"),
    ):
        verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, 2, rows=2)), verdict


@pytest.mark.slow
@drawn(claims(BY_LAYER), st.sampled_from([(2, 2), (1, 4)]), kept=8, of=25)
def test_nothing_false_is_proved_of_scores_of_the_whole_layer(claim: Claim, shape: tuple[int, int]) -> None:
    """For any shape by rules, and at one shape."""
    for scope, stage in (("any", "rule"), (shape, "bounded")):
        verdict = prove(claim, scope, timeout=4, stages=(stage,), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, shape[1], shape[0])), verdict


def test_a_score_of_the_whole_layer_splits_into_no_blocks() -> None:
    """In a single row the column sums are the magnitudes, and both prune alike; in two rows they do not."""
    claim = equal(RIA("1/2", pattern="1:2", power=0), Magnitude("1/2", pattern="1:2"))
    assert prove(claim, (1, 2), stages=("bounded",), second=None, explain=False).proved
    assert counterexample(claim, 2, rows=2)
    for stage in ("rule", "bounded"):
        assert not prove(claim, (2, 2), timeout=10, stages=(stage,), second=None, explain=False).proved
    block = prove(claim, ("block", 2), stages=("bounded",), second=None, explain=False)
    assert "every matrix" not in block.reach
    assert any(a.kind is Kind.INSIDE_BLOCK for a in block.assumptions)


def test_what_is_left_is_scored_anew() -> None:
    """Dropping some weights changes the sums of the others, and so their order: two selections do not come to one."""
    claim = equal(RIA("1/4", power=0) >> RIA("1/2", power=0), RIA("1/2", power=0))
    assert counterexample(claim, 2, rows=2)
    assert not prove(claim, "any", timeout=5, stages=("rule",), second=None, explain=False).proved


@pytest.mark.slow
@drawn(
    st.lists(st.sampled_from(CUTTING), min_size=2, max_size=4),
    st.sampled_from(["mask", "n:m", "shape"]),
    kept=40,
    of=150,
)
def test_no_broken_pattern_or_cut_is_proved(techniques: list[Technique], invariant: str) -> None:
    claim = keeps(Sequence(tuple(techniques)), invariant)
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    if verdict.proved:
        assert not counterexample(claim, 2, rows=2), verdict


@pytest.mark.slow
@pytest.mark.parametrize("pair", spread(((pair,) for pair in itertools.permutations(GROUPED, 2)), 19), ids=str)
def test_reversed_pairs_for_any_shape(pair: tuple[Technique, Technique]) -> None:
    first, second = pair
    for left, right in ((first >> second, second >> first), (first >> second, first >> second >> first)):
        claim = dominates(left, right, loss="weight_l2")
        verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, 4)), verdict


@pytest.mark.slow
@drawn(claims(CODED), kept=40, of=300)
def test_nothing_false_is_proved_of_codebooks(claim: Claim) -> None:
    check_any_shape(claim)


@pytest.mark.exhaustive
@pytest.mark.parametrize("pair", list(itertools.product(CODED[:4], CODED[4:17])))
@pytest.mark.parametrize("loss", WEIGHT_LOSSES)
def test_codebooks_and_selections_in_both_orders(pair: tuple[Technique, Technique], loss: str) -> None:
    first, second = pair
    claims = [dominates(first >> second, second >> first, loss), dominates(second >> first, first >> second, loss)]
    claims += [equal(second >> second, second), equal(first >> second, second >> first)]
    for claim in claims:
        verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, 4)), verdict


@pytest.mark.slow
@drawn(claims([t for t in CODED if t.fits((1, 3))]), st.sampled_from([2, 3]), kept=12, of=40)
def test_nothing_false_is_proved_of_codebooks_at_one_shape(claim: Claim, columns: int) -> None:
    if all(t.fits((1, columns)) for sequence in claim.sequences for t in sequence):
        verdict = prove(claim, (1, columns), timeout=2, stages=("rule", "bounded"), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, columns)), verdict


PAIRS = list(itertools.product(TECHNIQUES[:4], TECHNIQUES[4:9]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_both_directions_of_every_pair(pair: tuple[Technique, Technique]) -> None:
    """Where brute force sees a counterexample z3 must not prove, and where it sees none z3 must not refute."""
    for first, second in (pair, pair[::-1]):
        claim = dominates(first >> second, second >> first, loss="weight_l1")
        verdict = prove(claim, (1, 3), timeout=6, stages=("rule", "bounded"), second=None, explain=False)
        assert not (verdict.proved and counterexample(claim, 3)), verdict


def test_a_dense_score_keeps_the_largest_of_the_dense_weights_only() -> None:
    (selection,) = Magnitude("1/2", of="dense").steps()
    (quantize,) = AbsMax(4).steps()
    session = Session(default_prover().solver, time.monotonic() + 30)
    assert keeps_largest(selection, quantize, session, dense=True)
    assert not keeps_largest(selection, quantize, session)


GONE = Magnitude("1/2", of="dense", ties="all", pattern="1:2")
ALL = Magnitude("1/2", of="dense", ties="all")
FALSE_WHERE_A_GROUP_GOES = [
    dominates(AbsMax(2) >> GONE, GONE >> AbsMax(2)),  # the largest weight goes with its equal
    equal(GONE >> AbsMax(2, group=4), AbsMax(2, group=4) >> GONE),
    same_state(GONE >> AbsMax(2, group=2), AbsMax(2, group=2) >> GONE),  # nothing is left, and its scale is 0
    same_state(ALL >> AbsMax(2), AbsMax(2) >> ALL),
]


@pytest.mark.parametrize("claim", FALSE_WHERE_A_GROUP_GOES, ids=str)
def test_what_ties_that_empty_a_group_make_false_is_not_proved(claim: Claim) -> None:
    assert counterexample(claim, 4)
    assert not prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False).proved
    without_ties = replace(claim, given=conditions(["no_ties"]))
    assert (
        claim.kind != "equal"
        or prove(without_ties, "any", timeout=20, stages=("rule",), second=None, explain=False).proved
    )


def test_a_layer_of_the_brute_force_set_is_what_it_says() -> None:
    layer = every_layer(2).layer(np.random.default_rng(0))
    assert isinstance(layer, LayerState)
    assert len(layer.weight[0, 0].values) == (2 * LARGEST + 1) ** 2


# Techniques that change the inputs

ON_INPUTS: list[Technique] = [
    AbsMaxInputs(2),
    AbsMaxInputs(4),
    AbsMaxInputs(3, per="tensor"),
    AbsMaxInputs(2, rounding="any"),
    Magnitude("1/2"),
    Wanda("1/2"),
    AbsMax(3),
    LeastSquaresDistill(),
    TruncatedSVD(1, residual=True),
]


def fails_with_inputs(claim: Claim) -> bool:
    """Whether one of some hundred small layers with inputs, most of few and small whole numbers, contradicts it."""
    random = np.random.default_rng(0)
    for shape, tokens in itertools.product([(1, 2), (2, 2), (2, 4)], [1, 2, 5]):
        weights, inputs = (random.integers(-4, 5, (150, *size)) for size in (shape, (shape[1], tokens)))
        weights[:50] = weights[:50].clip(-1, 1)
        inputs[25:75] = inputs[25:75].clip(-1, 1)
        layer = Candidates(weights.astype(float), inputs.astype(float)).layer(random)
        found = fails(claim, [sequence.trace(layer) for sequence in claim.sequences], tolerance=1e-6)
        if bool(found.values.any() if isinstance(found, Batch) else found):
            return True
    return False


@st.composite
def claims_on_inputs(draw: st.DrawFn) -> Claim:
    """Two orders of some techniques, or a sequence and how it goes on: what rules may be tempted to prove."""
    drawn = draw(st.lists(st.sampled_from(ON_INPUTS), min_size=1, max_size=3))
    left = Sequence((*drawn, draw(st.sampled_from(ON_INPUTS[:4]))))
    left = Sequence(tuple(draw(st.permutations(left.techniques))))
    right = Sequence(tuple(draw(st.permutations(left.techniques))[draw(st.integers(0, 2)) :]))
    if draw(st.booleans()):
        right = Sequence(left.techniques[: draw(st.integers(0, len(left)))])
    kind = draw(st.sampled_from(["dominates", "dominates", "equal", "same state", "keeps", "orthogonal", "fits"]))
    facts = draw(st.sampled_from([(), ("orthogonal_inputs",), ("diagonal_gram",), ("no_ties",)]))
    if kind == "fits":
        return fits(left, draw(st.sampled_from(["W3", "A2", "W3A4", "50%/row", "A4 +r1"])), given=facts)
    if kind == "orthogonal":
        return orthogonal(left, right, draw(st.sampled_from(["weight_l1", "output_l2"])), given=facts)
    if kind == "dominates":
        return dominates(left, right, draw(st.sampled_from(["weight_l2", "output_l2", "output_l2"])), given=facts)
    if kind == "same state":
        return same_state(left, right, given=facts)
    return equal(left, right, given=facts) if kind == "equal" else keeps(left, draw(st.sampled_from(["mask", "grid"])))


@pytest.mark.slow
@drawn(claims_on_inputs(), kept=60, of=400)
def test_nothing_false_is_proved_where_inputs_change(claim: Claim) -> None:
    verdict = prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False)
    if verdict.proved:
        assert not fails_with_inputs(claim), verdict


X, D = AbsMaxInputs(4), LeastSquaresDistill()
L, W, P = TruncatedSVD(1, residual=True), Wanda("1/2"), Magnitude("1/2")
FALSE_WHERE_INPUTS_CHANGE = [
    equal(X >> D, X),  # distillation is a no-op only on the dense inputs
    equal(X >> W, W >> X),  # Wanda looks at them
    equal(P >> X >> D, P >> D >> X),  # and so does distillation
    equal(X >> AbsMaxInputs(2), AbsMaxInputs(2) >> X),
    equal(P >> X, P),  # inputs are a part of the state
    dominates(P >> X >> L, P >> X, loss="output_l2"),  # it mends the weight, not the outputs
    dominates(P >> X, X >> D >> P, loss="output_l2"),
    dominates(X >> W, W >> X, loss="weight_l2"),  # not about weights alone
    dominates(AbsMax(7) >> X, AbsMax(4) >> X, loss="output_l2", given=["diagonal_gram"]),
    dominates(P >> X >> AbsMax(4), AbsMax(4) >> P >> X, loss="output_l2", given=["orthogonal_inputs"]),
    orthogonal(P, AbsMax(4) >> X, "output_l2", given=["orthogonal_inputs"]),
]


@pytest.mark.parametrize("claim", FALSE_WHERE_INPUTS_CHANGE, ids=str)
@pytest.mark.parametrize("scope", ["any", "1x2"])
def test_what_changed_inputs_make_false_is_not_proved(claim: Claim, scope: str) -> None:
    assert not prove(claim, scope, timeout=6, stages=("rule", "bounded"), second=None, explain=False).proved
    if scope == "any":
        assert prove(claim, scope, timeout=20, stages=("search",)).refuted

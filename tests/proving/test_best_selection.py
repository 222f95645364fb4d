"""Best selections against sequences with as many zeros: what is proved of them, and what must not be."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compcomp.checking.directory import check_directory
from compcomp.errors import InputError
from compcomp.language.claim import Claim, dominates
from compcomp.language.parameters import ANY
from compcomp.language.refusal import Refusal
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Status
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.proving.candidates import Candidates
from compcomp.proving.meaning import fails
from compcomp.proving.proof import Proof
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules.best_selection import best_selection, best_selection_at
from compcomp.proving.rules.optimum import enough
from compcomp.techniques import (
    FP4,
    RIA,
    AbsMax,
    ApplyMask,
    GradualMagnitude,
    JointPruneQuantize,
    LearnedMask,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Abs, Batch, Equal, If

P, N, W = "Magnitude(sparsity=1/2)", "Magnitude(sparsity=1/2, pattern='2:4')", "Wanda(sparsity=1/2)"
Q, UP, D = "AbsMax(bits=4)", "AbsMax(bits=4, rounding='half_up')", "LeastSquaresDistill()"
L = "TruncatedSVD(rank=1, residual=True)"
RULE = "rule best selection"

PROVED = [
    (f"{P} dominates {N}", "weight_l2", "any"),
    (f"{P} dominates {N} >> {D}", "weight_l1", "any"),
    (f"{P} dominates {N} >> {Q} >> {D}", "weight_l3", "any"),
    (f"{P} >> {L} dominates {N} >> {Q}", "weight_l2", "any"),
    ("Magnitude(sparsity=1/3) dominates Magnitude(sparsity=3/4, pattern='1:4')", "weight_l4", "any"),
    ("Magnitude(sparsity=1/2, per='row') dominates SparseGPT(sparsity=1/2, pattern='2:4')", "weight_l2", "any"),
    (f"GradualMagnitude(sparsity=1/2) dominates Wanda(sparsity=1/2, pattern='2:4') >> {D}", "weight_l2", "any"),
    (
        "Magnitude(sparsity=Any) dominates Magnitude(sparsity=Any, of='dense') >> LeastSquaresDistill()",
        "weight_l2",
        "any",
    ),
    (f"Wanda(sparsity=1/2) dominates {N} >> {D} given diagonal_gram", "output_l2", "any"),
    (f"Magnitude(sparsity=1/2, ties='all') dominates {N} >> {D} given no_ties", "weight_l2", "any"),
    # Values on the same grid as well.
    (f"{P} >> {Q} dominates {N} >> {Q}", "weight_l2", "any"),
    (f"{P} >> {UP} dominates AbsMax(bits=4, rounding='any') >> {N}", "weight_l1", "any"),
    (f"{P} >> {Q} dominates {N} >> AbsMax(bits=2)", "weight_l2", "any"),
    (f"{P} >> {Q} >> {L} dominates {Q} >> {N}", "weight_l2", "any"),
    (f"{P} >> AbsMax(bits=Any) dominates {N} >> AbsMax(bits=Any)", "weight_l2", "any"),
    (f"{P} >> FP4(group=None) dominates {N} >> FP4(group=None, rounding='half_up')", "weight_l2", "any"),
    (f"{P} >> {Q} dominates JointPruneQuantize(sparsity=1/2, bits=4)", "weight_l2", "any"),
    # Counted at one shape: rows of four lose as many as the tensor.
    (f"{P} dominates {W}", "weight_l2", "2x4"),
    (f"{P} >> {Q} dominates {Q} >> {W}", "weight_l1", "3x4"),
    ("Magnitude(sparsity=2/3) dominates Wanda(sparsity=2/3)", "weight_l2", "2x3"),
]

REFUTED = [
    (f"{N} dominates {P}", "weight_l2", "any"),
    (f"{P} dominates {W}", "weight_l2", "any"),  # half of every row of 3 is a third of the layer
    (f"{P} dominates {W}", "weight_l2", "2x3"),
    (f"{N} dominates {W}", "weight_l2", "any"),
    ("Magnitude(sparsity=1/2, ties='all') dominates Magnitude(sparsity=1/2)", "weight_l2", "any"),
    (f"{P} dominates {N}", "output_l2", "any"),
    (f"{P} dominates {N} >> {L}", "weight_l2", "any"),
    (f"{P} >> {Q} dominates {N}", "weight_l2", "any"),
    (f"{P} >> {Q} dominates {N} >> AbsMax(bits=5)", "weight_l2", "any"),
    (f"{P} >> {Q} dominates AbsMax(bits=4, group=2) >> {N}", "weight_l2", "any"),
    (f"{P} >> NF4(group=None) dominates NF4(group=None) >> {N}", "weight_l1", "any"),
    # DESIGN.md, section 2: with ties "all" the midpoints decide.
    (
        "Magnitude(sparsity=1/3, ties='all') >> AbsMax(bits=4, rounding='half_up') dominates"
        " AbsMax(bits=4, rounding='half_up') >> Magnitude(sparsity=1/3, ties='all')",
        "weight_l1",
        "any",
    ),
]


@pytest.mark.parametrize(("text", "loss", "scope"), PROVED)
def test_what_is_proved(text: str, loss: str, scope: str) -> None:
    verdict = prove(parse_claim(text, loss), scope, second=None)
    assert verdict.proved and verdict.reason == RULE, verdict
    assert verdict.reach == ("any shape" if scope == "any" else verdict.scope.describe())


@pytest.mark.parametrize(("text", "loss", "scope"), REFUTED)
def test_what_is_refuted(text: str, loss: str, scope: str) -> None:
    verdict = prove(parse_claim(text, loss), scope, search_seconds=5, second=None)
    assert verdict.refuted and verdict.witness is not None, verdict


@pytest.mark.parametrize(("text", "loss", "scope"), [PROVED[0], PROVED[11], PROVED[-3]])
def test_certificates(text: str, loss: str, scope: str, tmp_path: Path) -> None:
    verdict = prove(parse_claim(text, loss), scope, certify=True)
    assert str(verdict.grade) == "certified", verdict.notes
    verdict.save(tmp_path / "proof")
    assert check_directory(tmp_path / "proof").outcome == "valid"


def test_a_proof_at_one_shape_serves_no_other() -> None:
    claim = parse_claim(f"{P} dominates {W}", "weight_l2")
    assert prove(claim, "2x4").proved
    assert prove(claim, "2x3").refuted
    assert prove(claim, "any").refuted


@dataclass(frozen=True)
class Refill(Technique):
    """Set every weight that is zero back to the dense one, whatever the mask; the low-rank term stays."""

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"factors"}))

    def encode(self, layer: LayerState) -> LayerState:
        weight = layer.weight.copy()
        for index in np.ndindex(*weight.shape):
            weight[index] = If(Equal(weight[index], 0), layer.reference[index], weight[index])
        return replace(layer, weight=weight)


@pytest.mark.parametrize("share", ["Any", "1/2"])
@pytest.mark.parametrize(
    "later", [[Refill()], [Refill(), AbsMax(4)], [MinMax(4, zero="none")], [Magnitude("1/4"), Refill()]], ids=str
)
def test_zeros_that_a_later_technique_refills_do_not_count(share: str, later: list[Technique]) -> None:
    """Of an open share as of a number: what was dropped need not be zero at the end."""
    first = Magnitude(ANY if share == "Any" else share)
    claim = dominates(first, Sequence((first, *later)))
    for rule in (best_selection, best_selection_at((2, 4))):
        found = rule(claim, default_prover().session(time.monotonic() + 20))
        assert isinstance(found, Refusal) and "zeros" in found.reason
    for scope in ("any", "2x4"):
        verdict = prove(claim, scope, stages=("rule", "search"), second=None, explain=False)
        assert verdict.status in (Status.REFUTED, Status.UNKNOWN)
    filled = dominates(first, Sequence((first, Refill())))
    assert prove(filled, "any", search_seconds=5, second=None).refuted
    stays = dominates(first, Sequence((first, AbsMax(4))))
    assert prove(stays, "any", second=None).proved  # zeros that stay do


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 4), (2, 6), (3, 3), (5, 8)])
def test_counts_of_zeros(shape: tuple[int, int]) -> None:
    """``enough`` against the least number of zeros in every group, counted index by index."""
    cuts = [Partition.tensor(), Partition.rows(), Partition.blocks(2), Partition.blocks(3), Partition.blocks(4)]
    fit = [cut for cut in cuts if cut.size is None or shape[1] % cut.size == 0]
    shares = [Fraction(k, n) for n in range(1, 6) for k in range(n)]
    for inner, outer, share, wanted in itertools.product(fit, fit, shares, shares):
        least = []
        for group in outer.groups(shape):
            inside = [g for g in inner.groups(shape) if set(g) <= set(group)]
            least.append(sum(int(len(g) * share) for g in inside) >= int(len(group) * wanted))
        at, everywhere = (enough(inner, share, outer, wanted, where) for where in (shape, None))
        assert not (everywhere and not at)
        assert not at or all(least), (inner, outer, share, wanted)
        assert at or not (all(least) and inner.refines(outer))


# ------------------------------------------------------------------------------------------- attack


TENSOR = Partition.tensor()


@dataclass(frozen=True)
class Scored(Technique):
    """A selection by a score of its own."""

    score: Callable[[Element], Any]
    share: Fraction = Fraction(1, 2)
    partition: Partition = TENSOR
    ties: str = "first"

    def steps(self) -> tuple[Selection]:
        return (Selection(self.score, self.partition, self.share, self.ties),)


SCORES = (
    lambda element: -Abs(element.weight),
    lambda element: element.weight,
    lambda element: element.weight - element.reference,
    lambda element: element.weight * element.weight,
    lambda element: 0 * element.weight,
)
SHARES = ("0", "1/4", "1/3", "1/2", "3/4")


def pruners() -> list[Technique]:
    found: list[Technique] = []
    for share in SHARES:
        for per, ties, of in itertools.product(("tensor", "row"), ("first", "all", "any"), ("current", "dense")):
            found.append(Magnitude(share, per=per, ties=ties, of=of))
    found += [Magnitude("1/2", pattern="1:2", ties=ties) for ties in ("first", "all", "any")]
    found += [Magnitude("1/2", pattern="2:4"), Magnitude("1/4", pattern="3:4"), Magnitude("3/4", pattern="1:4")]
    found += [GradualMagnitude("1/2", 2), GradualMagnitude("3/4", 3, ties="all"), GradualMagnitude("1/2", ties="any")]
    cuts = (Partition.tensor(), Partition.rows(), Partition.blocks(2))
    found += [Scored(score, Fraction(1, 2), cut) for score in SCORES for cut in cuts]
    found += [RIA("1/2", power=0), RIA("1/2", power=0, pattern="1:2"), LearnedMask("1/2"), LearnedMask("1/2", "1:2")]
    return found


PRUNERS = pruners()
MAPS: list[Technique] = [
    *(AbsMax(bits, group, rounding) for bits in (2, 3) for group in (None, 2) for rounding in ("half_even", "half_up")),
    AbsMax(3, rounding="any"),
    AbsMax(2, per="channel"),
    AbsMax(5),
    FP4(group=None, rounding="half_up"),
    MinMax(2),
]
OTHERS: list[Technique] = [
    ApplyMask(),
    TruncatedSVD(1, residual=True),
    TruncatedSVD(1),
    JointPruneQuantize("1/2", 2),
    JointPruneQuantize("1/2", 3, ratios="1, 1/2"),
]
LOSSES = ("weight_l1", "weight_l2", "weight_l3", "weight_l4")
LARGEST = {(1, 2): 12, (1, 3): 8, (1, 4): 5, (2, 2): 5, (2, 3): 2, (3, 2): 2, (2, 4): 1}


def drawn(draw: random.Random) -> Claim:
    """A claim of the rule's family, or near it."""
    left: list[Technique] = [draw.choice(PRUNERS)]
    if draw.random() < 0.5:
        left.append(draw.choice(MAPS))
    if draw.random() < 0.15:
        left.append(draw.choice((TruncatedSVD(1, residual=True), Magnitude("1/4"))))
    every = [*PRUNERS, *MAPS * 4, *OTHERS * 2]
    right = [draw.choice(every) for _ in range(draw.randint(1, 3))]
    if len(left) > 1 and draw.random() < 0.7:
        right[draw.randrange(len(right))] = left[1] if draw.random() < 0.6 else draw.choice(MAPS)
    return dominates(Sequence(tuple(left)), Sequence(tuple(right)), draw.choice(LOSSES))


def layers(shape: tuple[int, int], most: int = 20000) -> Iterator[Candidates]:
    """Every layer of this shape of whole numbers up to LARGEST, in batches, with one token for each feature."""
    values = np.arange(-LARGEST[shape], LARGEST[shape] + 1, dtype=float)
    rows = itertools.product(values, repeat=shape[0] * shape[1])
    while chunk := list(itertools.islice(rows, most)):
        weights = np.array(chunk).reshape(-1, *shape)
        yield Candidates(weights, np.broadcast_to(np.eye(shape[1]), (len(weights), shape[1], shape[1])))


def contradicted(claim: Claim, shape: tuple[int, int]) -> bool:
    """Whether a layer of this shape contradicts the claim, for some of a few resolutions of its free choices."""
    for candidates, seed in itertools.product(layers(shape), range(1 if claim.is_deterministic else 3)):
        dense = candidates.layer(np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            found = fails(claim, [sequence.trace(dense) for sequence in claim.sequences], tolerance=1e-9)
        if bool(found.values.any() if isinstance(found, Batch) else found):
            return True
    return False


def attack(draw: random.Random, count: int, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """How many of so many drawn claims are proved for any shape, and at one; each is tried on all small layers."""
    everywhere = at_shape = 0
    for _ in range(count):
        claim = drawn(draw)
        try:
            proof = best_selection(claim, default_prover().session(time.monotonic() + 20))
        except InputError:
            continue
        fitting = [shape for shape in shapes if claim.fits(shape)]
        if isinstance(proof, Proof):
            everywhere += 1
            for shape in fitting:
                assert not contradicted(claim, shape), (str(claim), claim.loss, shape)
            continue
        for shape in fitting:
            if isinstance(best_selection_at(shape)(claim, default_prover().session(time.monotonic() + 20)), Proof):
                at_shape += 1
                assert not contradicted(claim, shape), (str(claim), claim.loss, shape)
    return everywhere, at_shape


@pytest.mark.slow
def test_nothing_false_is_proved() -> None:
    everywhere, at_shape = attack(random.Random(0), 400, [(1, 4), (2, 2), (2, 3)])
    assert everywhere > 10 and at_shape > 3


def test_claims_that_a_wrong_rule_would_prove_are_contradicted() -> None:
    """The attack can find something: each of these lacks one premise of the rule."""
    half, rows = Magnitude("1/2"), Magnitude("1/2", per="row")
    for left, right, shape in (
        (Scored(lambda element: -Abs(element.weight)), half, (1, 4)),  # another score
        (half, Magnitude("1/4"), (1, 4)),  # fewer zeros
        (half, rows, (2, 3)),  # fewer zeros, as rows round down
        (rows, half, (2, 2)),  # zeros elsewhere
        (Magnitude("1/2", ties="all"), half, (1, 4)),  # more zeros
        (half >> AbsMax(2), half, (1, 4)),  # no grid
        (half >> AbsMax(2, group=2), AbsMax(2, group=2) >> half, (1, 4)),  # contexts of their own
        (half >> AbsMax(3), half >> AbsMax(5), (1, 4)),  # another grid
        (half, half >> TruncatedSVD(1, residual=True), (2, 2)),  # a low-rank term
    ):
        claim = dominates(left, right)
        assert not isinstance(best_selection(claim, default_prover().session(time.monotonic() + 20)), Proof)
        assert not isinstance(best_selection_at(shape)(claim, default_prover().session(time.monotonic() + 20)), Proof)
        assert contradicted(claim, shape)


@pytest.mark.parametrize("share", ["1/4", "1/2"])
@pytest.mark.parametrize("pattern", [None, "1:2"])
def test_outputs_under_a_diagonal_gram_matrix(share: str, pattern: str | None) -> None:
    """Wanda is the best mask for outputs of orthogonal inputs: every 1 x 4 layer up to 2, with norms of 0, 1 and 2."""
    left = Wanda(share if pattern is None else "1/2", pattern=pattern or "unstructured")
    others = [t for t in (*PRUNERS[::7], *MAPS) if t.fits((1, 4))]
    values = np.array(list(itertools.product(range(-2, 3), repeat=4)), dtype=float)
    norms = np.array(list(itertools.product((0, 1, 2), repeat=4)), dtype=float)
    weights = np.repeat(values, len(norms), axis=0).reshape(-1, 1, 4)
    inputs = np.tile(norms, (len(values), 1))[:, :, None] * np.eye(4)
    dense = Candidates(weights, inputs).layer(np.random.default_rng(0))
    proved = 0
    for right in (Sequence((a, b)) for a, b in itertools.product(others, [*others[:6], LeastSquaresDistill()])):
        claim = dominates(left, right, "output_l2", given="diagonal_gram")
        if not isinstance(best_selection(claim, default_prover().session(time.monotonic() + 20)), Proof):
            continue
        proved += 1
        if LeastSquaresDistill() in right.techniques:
            continue
        found = fails(claim, [sequence.trace(dense) for sequence in claim.sequences], tolerance=1e-9)
        assert not found.values.any(), str(claim)
    assert proved

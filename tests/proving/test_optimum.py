"""Joint steps against sequences: what dominates is proved, and what leaves the set of the joint step is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import strategies as st

from compcomp.language.assumption import Kind
from compcomp.language.claim import dominates
from compcomp.language.loss import LOSSES
from compcomp.language.parameters import ANY
from compcomp.language.refusal import Refusal
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.layers.partition import Partition
from compcomp.proving.proof import Proof
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules.optimum import joint_optimum
from compcomp.proving.session import Session
from compcomp.techniques import (
    AbsMax,
    JointPruneQuantize,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Abs
from tests.amount import drawn, spread
from tests.helpers import layer
from tests.proving.test_soundness import counterexample


def joint(share: Any = "1/2", bits: Any = 2, **others: Any) -> JointPruneQuantize:
    return JointPruneQuantize(share, bits, **others)


def prune(share: Any = "1/2", **others: Any) -> Magnitude:
    return Magnitude(share, **others)


@dataclass(frozen=True)
class Scored(Technique):
    """A selection by a score of its own over the tensor."""

    score: Callable[[Element], Any]
    share: Fraction = Fraction(1, 4)

    def steps(self) -> tuple[Selection]:
        return (Selection(self.score, Partition.tensor(), self.share, "first"),)


LARGEST_FIRST = Scored(lambda element: -Abs(element.weight))
LARGEST_EIGHTH = Scored(LARGEST_FIRST.score, Fraction(1, 8))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (joint(bits=4, group=8), prune() >> AbsMax(4, group=8)),
        (joint(bits=4, group=8), AbsMax(4, group=8) >> prune()),
        (joint(bits=4, group=8), prune("3/4") >> AbsMax(4, group=8)),
        (joint(bits=4, group=8), prune(pattern="2:4") >> AbsMax(4, group=8)),
        (joint(bits=4), prune("1/4") >> AbsMax(3) >> prune() >> AbsMax(4)),
        (joint(bits=4), prune(ties="all") >> AbsMax(4)),
        (joint(bits=4), prune(ties="any") >> AbsMax(4, rounding="any")),
        (joint(bits=4), prune(of="dense") >> AbsMax(4)),
        (joint(bits=4, per="row"), AbsMax(4) >> Wanda("1/2")),
        (joint(bits=4), prune() >> AbsMax(2)),  # 0 and the largest are values of every grid
        (joint(bits=4, pattern="2:4", ratios="1, 3/4"), prune(pattern="2:4") >> AbsMax(4)),
        (joint(0, 4), AbsMax(4)),
        (joint(0, 4), AbsMax(4) >> prune("1/4")),
        (joint(ANY, ANY), prune(ANY) >> AbsMax(ANY)),
        (joint(ANY, ANY, group=16), AbsMax(ANY, group=16) >> prune(ANY)),
        (joint(ties="any", rounding="any"), prune() >> AbsMax(2)),
        (joint(pattern="1:2", ratios="1, 3/4, 1/2"), joint(pattern="1:2", ratios="1, 1/2")),
        (joint("1/4"), joint("1/2")),
        (joint("1/2"), joint("1/4") >> prune()),
        (LeastSquaresDistill() >> joint(), TruncatedSVD(1, residual=True) >> prune() >> AbsMax(2)),
        (joint() >> TruncatedSVD(1, residual=True), prune() >> AbsMax(2)),
        (joint(bits=4, grid="full_range"), prune() >> AbsMax(4, grid="full_range")),
        (joint(bits=4, grid="clipped"), AbsMax(4, grid="clipped") >> prune()),
        (joint(ANY, ANY, grid="narrow_step"), prune(ANY) >> AbsMax(ANY, grid="narrow_step")),
    ],
    ids=str,
)
def test_the_joint_step_dominates(left: Any, right: Any) -> None:
    verdict = prove(dominates(left, right), "any", stages=("rule",), second=None, explain=False)
    assert verdict.proved and verdict.reason == "rule optimum"
    assert any(a.kind is Kind.CONTRACT for a in verdict.assumptions)


FALSE = [
    (joint(), prune() >> AbsMax(2, group=2)),  # finer scales
    (joint("1/4", 3, group=2), prune("1/4") >> AbsMax(3)),  # other scales
    (joint(), prune() >> AbsMax(3)),  # more levels
    (joint(), prune("1/4") >> AbsMax(2)),  # fewer zeros
    (joint(), AbsMax(2)),
    (joint(), prune()),  # no grid at all
    (joint(pattern="1:2"), prune() >> AbsMax(2)),  # zeros elsewhere
    (joint(pattern="1:2", ratios="1/2"), prune(pattern="1:2") >> AbsMax(2)),  # not the scale of the sequence
    (joint(0, pattern="2:2"), joint(0, pattern="2:2", ratios="1, 3/4")),
    (joint(), joint("1/4")),
    (joint(), prune() >> MinMax(2)),
    (joint(), prune() >> AbsMax(2) >> LeastSquaresDistill()),
    (joint(), prune() >> AbsMax(2) >> TruncatedSVD(1, residual=True)),
    (joint() >> prune("3/4"), prune() >> AbsMax(2)),  # it goes on, and loses more
    (joint(bits=3), prune() >> AbsMax(3, grid="full_range")),  # another grid, and a level more
    (joint(bits=3, grid="full_range"), prune() >> AbsMax(3)),
    (joint(0, 3, grid="clipped"), AbsMax(3, grid="full_range")),
    (AbsMax(2) >> joint(), prune() >> AbsMax(3)),  # not the best for the dense weight
]


@pytest.mark.parametrize(("left", "right"), FALSE, ids=str)
def test_what_leaves_the_set_is_not_proved(left: Any, right: Any) -> None:
    claim = dominates(left, right)
    assert not prove(claim, "any", timeout=6, stages=("rule",), second=None, explain=False).proved
    if not claim.needs_inputs:
        assert counterexample(claim, 4)


@pytest.mark.parametrize("loss", ["weight_l1", "weight_l3", "output_l2"])
def test_another_loss_is_not_proved(loss: str) -> None:
    claim = dominates(joint(), prune() >> AbsMax(2), loss=loss)
    assert isinstance(joint_optimum(claim, Session(default_prover().solver, time.monotonic() + 10)), Refusal)


def test_a_selection_that_drops_the_largest_changes_the_scale() -> None:
    """Of (17, 10, ..., 10) the sequence drops 17 and is exact on the others; the joint step has to round to 17."""
    left, right = joint("1/8"), LARGEST_EIGHTH >> AbsMax(2)
    weights = layer([[17, *[10] * 7]])
    losses = [LOSSES["weight_l2"].of(as_sequence(s).encode(weights)) for s in (left, right)]
    assert losses[1] < losses[0]
    assert not prove(dominates(left, right), "any", timeout=6, stages=("rule",), second=None, explain=False).proved
    wanda = dominates(joint(per="row"), Wanda("1/2") >> AbsMax(2))
    assert not prove(wanda, "any", timeout=6, stages=("rule",), second=None, explain=False).proved


def test_ties_that_empty_a_block_change_the_scale() -> None:
    """In blocks of 2 of a tensor, the equal ones go as a whole, and with them the largest weight."""
    right = prune(pattern="1:2", ties="all") >> AbsMax(2)
    assert not prove(dominates(joint(), right), "any", timeout=6, stages=("rule",), second=None, explain=False).proved
    inside = prune(pattern="1:2", ties="all") >> AbsMax(2, group=2)  # such a block is all 0, whatever its scale
    assert prove(
        dominates(joint(group=2), inside), "any", timeout=6, stages=("rule",), second=None, explain=False
    ).proved


KINDS = [(grid, group) for grid in ("full_range", "clipped") for group in (None, 2)]
ON_GRIDS = [joint("1/2", 2, grid=grid, group=group) for grid, group in KINDS]
QUANTIZED = [AbsMax(2, group, grid=grid) for grid, group in KINDS]
JOINT = [
    joint(share, bits, **options)
    for share, bits in product(("1/4", "1/2"), (2, 3))
    for options in ({}, {"group": 2}, {"pattern": "1:2", "ratios": "1, 1/2"}, {"per": "row", "ties": "any"})
    if options.get("pattern") != "1:2" or share == "1/2"
]
STEPS: list[Technique] = [
    *(prune(share, ties=ties) for share, ties in product(("1/4", "1/2", "3/4"), ("first", "all"))),
    *(prune(pattern="1:2"), prune(pattern="1:2", ties="all"), prune(of="dense"), LARGEST_FIRST),
    *(AbsMax(2), AbsMax(3), AbsMax(3, rounding="any"), AbsMax(2, group=2), AbsMax(3, group=2), MinMax(2)),
]


@pytest.mark.slow
@drawn(st.sampled_from(JOINT), st.lists(st.sampled_from([*STEPS, *JOINT]), min_size=1, max_size=4), kept=60, of=400)
def test_nothing_false_is_proved(left: Technique, right: list[Technique]) -> None:
    claim = dominates(left, Sequence(tuple(right)))
    if isinstance(joint_optimum(claim, Session(default_prover().solver, time.monotonic() + 10)), Proof):
        assert not counterexample(claim, 4), claim


@pytest.mark.slow
@drawn(
    st.sampled_from([*ON_GRIDS, joint(), joint("1/4", 2, group=2)]),
    st.lists(st.sampled_from([*QUANTIZED, *ON_GRIDS, AbsMax(2), prune(), prune("3/4")]), min_size=1, max_size=3),
    kept=30,
    of=200,
)
def test_nothing_false_is_proved_of_the_grids_in_use(left: Technique, right: list[Technique]) -> None:
    claim = dominates(left, Sequence(tuple(right)))
    if isinstance(joint_optimum(claim, Session(default_prover().solver, time.monotonic() + 10)), Proof):
        assert not counterexample(claim, 4), claim


@pytest.mark.parametrize("right", spread(((pair,) for pair in product(STEPS, repeat=2)), 64))
def test_every_pair_of_steps(right: tuple[Technique, Technique]) -> None:
    """Against two joint steps: a proof only where no 1 x 4 layer refutes it."""
    for left in (joint("1/4", 3), joint(group=2)):
        claim = dominates(left, Sequence(right))
        if isinstance(joint_optimum(claim, Session(default_prover().solver, time.monotonic() + 10)), Proof):
            assert not counterexample(claim, 4)

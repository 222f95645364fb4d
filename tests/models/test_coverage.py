"""Conditions on tensors: never true where exact arithmetic says otherwise, and what a proof promises is measured."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compcomp.language.claim import Claim, dominates, equal, keeps, orthogonal
from compcomp.language.conditions import CONDITIONS, Box, Condition, conditions, moments
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Kernel, Sequence, Technique
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.models.bench import ModelBench
from compcomp.models.coverage import CHECKS, Groups, checked, coverage, units
from compcomp.models.follow import Factor, follow
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, MinMax, Wanda
from compcomp.terms import Abs, Equal, If, Max, Term
from tests.amount import spread
from tests.models.fakes import Tiny, tokens

P, Q, W = Magnitude("1/2", pattern="2:4"), AbsMax(bits=3, group=4), Wanda("1/2")
STEPS: list[Technique] = [
    P,
    Q,
    W,
    Magnitude("1/2", per="row", ties="all"),
    Magnitude("1/4", per="row", ties="any"),
    Magnitude("1/2", of="dense", per="row"),
    Magnitude("1/2"),
    Wanda("1/2", pattern="2:4", ties="all"),
    AbsMax(bits=2, group=2),
    AbsMax(bits=3, group=8, rounding="half_away"),
    AbsMax(bits=4, rounding="half_up"),
    AbsMax(bits=5, group=4, rounding="any"),
    MinMax(bits=2, group=4),
    MinMax(bits=3, group=8, zero="none"),
]
NAMES = [name for name in CONDITIONS if name != "box"]


def exactly(tensor: Tensor) -> Any:
    found = np.empty(tuple(tensor.shape), dtype=object)
    for index, value in np.ndenumerate(tensor.double().numpy()):
        found[index] = Fraction(float(value))
    return found


def drawn(chance: random.Random, shape: tuple[int, int] = (2, 8)) -> LayerState:
    """A layer of few or of many different numbers, with a Gram matrix that is sometimes diagonal."""
    source = torch.Generator().manual_seed(chance.randrange(2**31))
    kind = chance.randrange(4)
    weight = torch.randn(shape, generator=source)
    if kind == 0:
        weight = torch.randint(-3, 4, shape, generator=source).float()
    if kind == 1:  # multiples of 1/10, which are not floats
        weight = torch.randint(-9, 10, shape, generator=source) / 10
    if kind == 2:
        weight *= 10.0 ** float(torch.randint(-3, 3, (1,), generator=source))
    inputs = torch.randint(-2, 3, (shape[1], 12), generator=source).double()
    gram = inputs @ inputs.T
    if chance.random() < 0.6:
        gram = torch.diag(gram.diagonal())
    if chance.random() < 0.3:
        gram = torch.eye(shape[1], dtype=torch.float64) * chance.choice([1, 3, 0])
    dtype = chance.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    return LayerState.dense(weight.to(dtype), gram=gram)


def exact_run(sequence: Sequence, layer: LayerState) -> list[LayerState]:
    gram: Any = layer.gram
    return sequence.trace(LayerState.dense(exactly(layer.weight), gram=exactly(gram)))


def claim_of(chance: random.Random, given: str) -> Claim:
    length = chance.choice([1, 2, 2, 2, 3])
    left, right = (Sequence(tuple(chance.choices(STEPS, k=length))) for _ in range(2))
    return dominates(left, right, loss="weight_l2", given=given)


@pytest.mark.parametrize("part", spread(range(4), 1))
@pytest.mark.parametrize("name", NAMES)
def test_never_true_where_exact_arithmetic_says_otherwise(name: str, part: int) -> None:
    chance, found = random.Random(f"{name} {part}"), {True: 0, False: 0, "missed": 0}
    for _ in range(150):
        claim, layer = claim_of(chance, name), drawn(chance)
        condition = claim.given[0]
        runs = [follow(sequence, "l", layer) for sequence in claim.sequences]
        holds = all(bool(groups.holds.all()) for groups in checked(claim, runs)[condition])
        exact = bool(condition.holds(claim, [exact_run(s, layer) for s in claim.sequences]))
        assert exact or not holds, (str(claim), layer.weight, layer.gram)
        found[holds] += 1
        found["missed"] += exact and not holds
    assert found[True] > 3 and found[False] > 3, found
    assert found["missed"] < 0.3 * 150, found


def exact_ties(claim: Claim, layer: LayerState) -> list[list[bool]]:
    """For every selection of every sequence, for each group, whether it is free of ties."""
    found = []
    for k, sequence in enumerate(claim.sequences):
        for moment in moments(claim, exact_run(sequence, layer), k):
            if isinstance(moment.step, Selection):
                groups = []
                for scores in moment.step.scores(moment.before):
                    ranked, count = sorted(scores), moment.step.count(len(scores))
                    groups.append(count == 0 or bool(ranked[count - 1] < ranked[count]))
                found.append(groups)
    return found


def test_ties_are_found_group_by_group() -> None:
    chance, agreed, all_groups = random.Random(0), 0, 0
    for _ in range(120):
        claim, layer = claim_of(chance, "no_ties"), drawn(chance, (3, 8))
        runs = [follow(sequence, "l", layer) for sequence in claim.sequences]
        ours = checked(claim, runs)[claim.given[0]]
        for groups, exact in zip(ours, exact_ties(claim, layer), strict=True):
            for mine, theirs in zip(groups.holds.tolist(), exact, strict=True):
                assert theirs or not mine
                agreed += mine == theirs
                all_groups += 1
    assert agreed > 0.7 * all_groups


def test_a_followed_run_is_the_exact_one_up_to_its_error() -> None:
    """Where a unit is followed, the exact weight is zero where the float is, and else within the relative error."""
    chance, followed = random.Random(1), 0
    for _ in range(150):
        claim, layer = claim_of(chance, "no_ties"), drawn(chance)
        for sequence in claim.sequences:
            run = follow(sequence, "l", layer)
            count = layer.weight.numel() // units(claim).group_size((2, 8))
            exact = exact_run(sequence, layer)[-1].weight.reshape(count, -1)
            floats = exactly(run.last.weight).reshape(count, -1)
            for unit in torch.nonzero(run.known(count))[:, 0].tolist():
                followed += 1
                for a, b in zip(exact[unit], floats[unit], strict=True):
                    assert abs(a - b) <= Fraction(run.error) * abs(a), (str(sequence), layer.weight)
    assert followed > 110


@pytest.mark.parametrize(
    ("steps", "loss", "given", "unit"),
    [
        ((P, Q), "weight_l2", "no_ties", Partition.blocks(4)),
        ((P, AbsMax(bits=3, group=6)), "weight_l2", "no_ties", Partition.blocks(12)),
        ((P, Q), "output_l2", "no_ties", Partition.rows()),
        ((W, Q), "weight_l2", "no_ties", Partition.rows()),
        ((Magnitude("1/2"), Q), "weight_l2", "no_ties", Partition.tensor()),
        ((P, AbsMax(bits=3)), "weight_l2", "no_ties", Partition.tensor()),
        ((P, Q), "weight_l2", "box(radius=1, around=((1, 2, 3, 4), (1, 2, 3, 4)))", Partition.tensor()),
    ],
)
def test_units(steps: tuple[Technique, ...], loss: str, given: str, unit: Partition) -> None:
    a, b = steps
    assert units(dominates(a >> b, b >> a, loss=loss, given=given)) == unit
    assert units(equal(a >> LeastSquaresDistill(), a)) == Partition.tensor(), "what it reaches is not known"


def test_coverage_counts_the_weights_of_units_and_splits_the_losses() -> None:
    weight = torch.tensor([[6.0, 1.0, 2.0, 4.0], [6.0, 3.0, 3.0, 3.0], [3.0, 6.0, 0.0, 2.0]])
    claim = dominates(P >> Q, Q >> P, loss="weight_l2", given="no_ties")
    (found,) = coverage([claim], "l", LayerState.dense(weight))
    # Levels at 3 bits: (3, 0 or 1, 1, 2), (3, 2, 2, 2) ties, (2, 3, 0, 1).
    assert (found.weights, found.covered, found.conditions) == (12, 8, {"no_ties": 8})
    assert found.groups == {"no_ties": (6, 4)}  # two selections of three groups; the kept 6 of row 0 is in one of each
    assert found.contradicted == 0 and found.left is not None and found.right is not None
    whole = {}
    for sequence in claim.sequences:
        after = sequence.kernel(LayerState.dense(weight)).weight
        whole[str(sequence)] = (weight - after).square().sum(dim=1).tolist()
    for part, sequence in ((found.left, claim.left), (found.right, claim.right)):
        lost = whole[str(sequence)]
        assert part == pytest.approx((lost[0] + lost[2], lost[1]))


def test_output_losses_are_split_by_rows() -> None:
    source = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(64, 8, generator=source), torch.randn(8, 20, generator=source).double()
    layer = LayerState.dense(weight, gram=inputs @ inputs.T)
    many = AbsMax(bits=6, group=4)
    claims = [dominates(a, b, loss="output_l2", given="no_ties") for a, b in ((P >> many, many >> P), (many >> P, P))]
    one, other = coverage(claims, "l", layer)
    assert 0 < one.covered < 64 * 8 and one.covered % 8 == 0 and one.contradicted == 0
    assert one.left is not None and one.right is not None and one.left[0] == pytest.approx(one.right[0])
    state = claims[0].left.kernel(layer)
    assert sum(one.left) == pytest.approx(float((((state.weight - weight).double() @ inputs) ** 2).sum()))
    assert other.right is not None and other.weights == 512


def test_a_proof_that_is_false_is_contradicted() -> None:
    """A claim that no prover would prove: on covered units its left side loses more, far beyond float errors."""
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    for loss in ("weight_l1", "weight_l2", "weight_l4", "output_l2"):
        layer = LayerState.dense(weight, gram=torch.eye(4, dtype=torch.float64))
        false = dominates(AbsMax(bits=2, group=4) >> P, P >> AbsMax(bits=8, group=4), loss=loss, given="no_ties")
        (found,) = coverage([false], "l", layer)
        assert found.contradicted > 15
    (found,) = coverage([equal(P, AbsMax(bits=8, group=4), given="no_ties")], "l", LayerState.dense(weight))
    assert found.contradicted == found.covered / 4 > 0
    for claim in (keeps(P >> Q, "mask", given="no_ties"), orthogonal(P, Q, given="no_ties")):
        (found,) = coverage([claim], "l", LayerState.dense(weight))
        assert found.left is None and found.contradicted == 0 and found.covered > 0


def test_proved_claims_are_never_contradicted() -> None:
    chance = random.Random(5)
    proved = [
        *(dominates(P >> Q, Q >> P, loss=loss, given="no_ties") for loss in ("weight_l1", "weight_l2", "output_l2")),
        dominates(Q >> P, P >> Q, loss="output_l2", given="no_ties"),
        equal(P >> Q, Q >> P, given="no_ties"),
    ]
    covered = 0
    for _ in range(150):
        for found in coverage(proved, "l", drawn(chance, (4, 8))):
            assert found.contradicted == 0
            covered += found.covered
    assert covered > 1000


# ------------------------------------------------------------------------------------------------ floats


def test_scores_that_differ_by_less_than_their_rounding_are_ties() -> None:
    norms = torch.tensor([1.0, 1 + 2**-52, 5.0, 7.0], dtype=torch.float64)
    close = LayerState.dense(torch.ones(1, 4), gram=torch.diag(norms))
    claim = keeps(Wanda("1/4"), "mask", given="no_ties")
    assert not bool(checked(claim, [follow(claim.left, "l", close)])[claim.given[0]][0].holds)
    apart = replace(close, gram=torch.diag(norms + torch.tensor([0, 1e-9, 0, 0])))
    assert bool(checked(claim, [follow(claim.left, "l", apart)])[claim.given[0]][0].holds)


def test_values_of_different_scales_that_differ_as_floats_are_ties() -> None:
    """2/3 of 0.3 and 1 times 0.2 in float32: whether they are equal is not for floats to say."""
    weight = torch.tensor([[0.3, 0.2, 0.2, 0.0]])
    near, far = AbsMax(bits=3, group=2), Magnitude("1/2", per="row")
    claim = keeps(near >> far, "mask", given="no_ties")
    run = follow(claim.left, "l", LayerState.dense(weight))
    assert not bool(checked(claim, [run])[claim.given[0]][0].holds)


def test_steps_too_small_for_a_relative_error_are_not_followed() -> None:
    tiny = LayerState.dense(torch.tensor([[1e-44, 3e-45, 1e-40, 1e-39]]))
    assert not bool(follow(Sequence((Q,)), "l", tiny).known(1))
    assert bool(follow(Sequence((Q,)), "l", LayerState.dense(torch.zeros(1, 4))).known(1))


@pytest.mark.parametrize(
    "score",
    [
        lambda e: If(Equal(e.weight, 0), 0, Abs(e.weight)),
        lambda e: Max([e.weight, -e.weight]),
        lambda e: e.weight - e.reference,
        lambda e: 1,
    ],
)
def test_a_score_that_is_no_product_holds_nowhere(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = replace(P.steps()[0], score=score)
    monkeypatch.setattr(Magnitude, "steps", lambda self: (strange,))
    claim = keeps(P, "mask", given="no_ties")
    run = follow(claim.left, "l", LayerState.dense(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    assert not bool(checked(claim, [run])[claim.given[0]][0].holds) and not bool(run.known(1))


def test_products_keep_an_eye_on_their_error() -> None:
    tensor = torch.tensor([1.5, -2.0])
    assert abs(Factor(tensor)).error == 0
    assert 0 < (Factor(tensor) * Factor(tensor)).error < 1e-15
    small = Factor(torch.tensor([1e-200], dtype=torch.float64))
    assert (small * small).error > 1
    element = Element(Factor(tensor), Factor(tensor), Factor(tensor))
    assert isinstance(W.steps()[0].score(element), Factor)


@dataclass(frozen=True)
class Careless(Magnitude):
    """Drops the largest weights, whatever its encoding says."""

    def kernel(self) -> Kernel:
        def kernel(technique: Any, layer: LayerState) -> LayerState:
            weight: Any = layer.weight
            return replace(layer, weight=weight.masked_fill(weight.abs() > weight.abs().median(), 0))

        return kernel


def test_a_kernel_that_does_something_else_is_not_followed() -> None:
    run = follow(Sequence((Careless("1/2"),)), "l", LayerState.dense(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    assert not bool(run.known(1))


def test_a_condition_without_a_check_holds_nowhere() -> None:
    @dataclass(frozen=True)
    class Unheard(Condition):
        name = "unheard"

        def holds(self, claim: Claim, runs: Any, tolerance: float = 0) -> Term:
            return True

    claim = replace(dominates(P >> Q, Q >> P), given=(Unheard(),))
    (found,) = coverage([claim], "l", LayerState.dense(torch.randn(4, 8)))
    assert found.covered == 0
    assert set(CHECKS) == set(CONDITIONS.values())


def test_boxes_are_checked_exactly() -> None:
    layer = LayerState.dense(torch.tensor([[0.1, 0.5]]))
    for radius, holds in ((Fraction(float(torch.tensor(0.1))) - Fraction(1, 10), True), (Fraction(1, 10**10), False)):
        given = conditions(Box(radius, ((Fraction(1, 10), Fraction(1, 2)),)))
        claim = dominates(AbsMax(3), AbsMax(2), given=given)
        runs = [follow(sequence, "l", layer) for sequence in claim.sequences]
        assert bool(checked(claim, runs)[given[0]][0].holds) is holds


def test_groups_and_units() -> None:
    groups = Groups(Partition.blocks(2), torch.tensor([True, True, True, False]))
    assert groups.over(2).tolist() == [True, False] and groups.over(1).tolist() == [False]
    assert groups.within(torch.tensor([False, True])).holds.tolist() == [False, False, True, False]
    assert Groups(Partition.tensor(), torch.tensor([True])).over(3).tolist() == [True] * 3


# ------------------------------------------------------------------------------------------------ a model


def test_a_bench_covers_every_layer() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    p, q = Magnitude("1/2", pattern="2:4"), AbsMax(bits=8, group=4)
    claims = [dominates(a, b, loss="output_l2", given="no_ties") for a, b in ((p >> q, q >> p), (q >> p, p >> q))]
    found = dict(bench.coverage(claims))
    assert list(found) == bench.layer_names()
    whole = bench.losses(bench.apply(p >> q, bench.start()))["output_l2"]
    assert sum(sum(one.left or ()) for one, _ in found.values()) == pytest.approx(whole)
    assert all(one.contradicted == 0 for both in found.values() for one in both)
    assert sum(one.covered for one, _ in found.values()) > 0
    assert list(ModelBench(Tiny(), device="cpu").coverage(claims)) == [], "nothing without the inputs it needs"

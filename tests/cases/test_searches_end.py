"""A search ends with an order or one line, whatever the techniques; so does a proof."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction as F
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.language.samples import VALUES
from compcomp.language.technique import Technique
from compcomp.ordering.screen import COLUMNS, small_shape
from compcomp.ordering.space import pairs_of
from compcomp.recipe import LIST, PAIRS, recipe_of
from compcomp.techniques import OBS, AbsMax, Hadamard, LeastSquaresDistill, LoRA, Magnitude, PruneColumns, PruneRows
from tests.amount import spread

EXTREMES: dict[str, tuple[Any, ...]] = {
    "sparsity": (F(0), F(1, 100), F(99, 100), F(1, 2)),
    "rank": (1, 2, 50),
    "bits": tuple(range(1, 9)),
    "group": (None, 2, 3, 64),
    "block": (None, 1, 2, 8),
    "iterations": (0, 1, 2),
}
P, Q, D = Magnitude(sparsity="1/2"), AbsMax(bits=4), LeastSquaresDistill()
INPUTS = [torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).double()]
LOSSES = ("weight_l1", "weight_l2", "weight_l3", "weight_l4", "output_l2")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def drawn(random_: random.Random) -> Technique:
    """Any technique for single layers, some parameters at values that nobody would choose."""
    kinds = [kind for kind in Technique.kernels if not kind.whole_model]
    while True:
        kind, given = random_.choice(kinds), {}
        known = {**VALUES, **kind.fixtures.values}
        for f in dataclasses.fields(kind):
            values = [*known.get(f.name, ()), *EXTREMES.get(f.name, ())]
            if f.init and values and (f.default is dataclasses.MISSING or random_.random() < 0.5):
                given[f.name] = random_.choice(values)
        try:
            return kind(**given)
        except (cc.InputError, TypeError):
            continue


@pytest.mark.parametrize("loss", spread(LOSSES, 2))
@pytest.mark.parametrize(
    "techniques",
    [
        [OBS(sparsity=0), AbsMax(bits=4, group=2)],
        [OBS(sparsity="1/100"), AbsMax(bits=4)],
        [PruneRows(sparsity="1/100"), PruneColumns(sparsity="3/4", ties="any")],
        [Hadamard(), AbsMax(bits=4)],
        [Hadamard(block=2), Magnitude(sparsity="1/2")],
        [LoRA(rank=1, iterations=1), Hadamard(block=8)],
        [Magnitude(sparsity=0), PruneRows(sparsity=0)],
    ],
    ids=str,
)
def test_techniques_that_ended_in_nothing(techniques: list[Technique], loss: str) -> None:
    assert len(cc.optimize_order(techniques, model=model(), calibration=INPUTS, loss=loss, device="cpu").order) == 2


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("seed", spread(range(8), 2))
def test_any_set_of_techniques(seed: int, given: bool) -> None:
    random_ = random.Random(seed)
    techniques = [drawn(random_) for _ in range(random_.randint(2, 4))]
    more: dict[str, Any] = {"model": model(), "calibration": INPUTS, "device": "cpu"} if given else {}
    try:
        plan = cc.optimize_order(techniques, loss=random_.choice(LOSSES), **more)
    except cc.InputError as error:
        assert "\n" not in str(error)
    else:
        assert sorted(map(str, plan.order)) == sorted(map(str, techniques))


@pytest.mark.slow
@pytest.mark.parametrize("seed", spread(range(30), 4))
def test_any_claim(seed: int) -> None:
    random_ = random.Random(seed)
    left, right = (cc.Sequence(tuple(drawn(random_) for _ in range(random_.randint(1, 3)))) for _ in range(2))
    claims: list[Callable[[], Any]] = [
        lambda: cc.equal(left, right),
        lambda: cc.equal(left, cc.Sequence()),
        lambda: cc.dominates(left, right, loss=random_.choice(LOSSES)),
        lambda: cc.keeps(left, random_.choice(("mask", "n:m", "grid", "rank", "shape"))),
        lambda: cc.fits(left, random_.choice(("W4", "W3 2:4", "50%", "r2", "W4A8"))),
    ]
    start = time.process_time()
    try:
        verdict = cc.prove(random_.choice(claims)(), random_.choice(("any", "2x4", "1x2", "4x8", "block:4")), timeout=4)
    except cc.InputError as error:
        assert "\n" not in str(error)
    else:
        assert str(verdict.status) in ("PROVED", "REFUTED", "UNKNOWN", "VACUOUS", "DISAGREE")
    assert time.process_time() - start < 60


@pytest.mark.parametrize(("block", "scope"), spread(product([None, 2, 4, 8], ["any", "1x2", "2x8", "block:8"]), 5))
def test_rotations_in_claims_of_equality(block: int | None, scope: str) -> None:
    """Where a root is not rational, floats find no proof and no refutation. The basis is a field of the state."""
    rotation = Hadamard(block=block)
    for other in (cc.Sequence(), cc.Sequence((Q,)), rotation >> Q):
        try:
            verdict = cc.prove(cc.same_state(rotation, other), scope, timeout=3, explain=False)
        except cc.InputError:
            continue
        assert not verdict.proved
    with suppress(cc.InputError):
        assert not cc.prove(cc.equal(rotation >> rotation, cc.Sequence()), scope, timeout=3, explain=False).refuted


@pytest.mark.parametrize("sparsity", ["0", "1/100", "99/100"])
def test_the_layers_that_are_generated_stay_small(sparsity: str) -> None:
    start = time.monotonic()
    shape = small_shape([OBS(sparsity=sparsity), Q])
    assert shape is not None and shape[1] <= COLUMNS // 4 and time.monotonic() - start < 15


# ------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "before",
    [
        *((P, D), [P, D], [P, Q, D], [(P, Q, D)], [(P,)], [[]], {P: D}, {P, D}, P >> D, [P >> D], P),
        *("Magnitude, AbsMax", b"PD", 5, None, True, object(), [("Magnitude", "AbsMax")], [5], [None]),
        *([(P, 5)], [{P: D}], lambda: 0),
    ],
)
def test_before_is_pairs_of_techniques(before: Any) -> None:
    with pytest.raises(cc.InputError, match=r"^before: .*; allowed: pairs of techniques") as caught:
        cc.optimize_order([P, Q, D], before=before)
    assert "\n" not in str(caught.value)


def test_before_may_be_any_iterable_of_pairs() -> None:
    for before in ([(P, D)], ((P, D),), [[P, D]], iter([(P, D)]), {(P, D)}):
        assert pairs_of(before) == ((P, D),)
    order = cc.optimize_order([P, Q, D], before=iter([(D, P), (P, Q)])).order
    assert order == D >> P >> Q


@pytest.mark.parametrize("name", ["techniques", "loss", "executor", "store", "progress", "granularity", "size"])
@pytest.mark.parametrize("value", [5, [5], {"a": 1}, float("nan"), object(), b"x", int])
def test_arguments_of_other_types(name: str, value: Any) -> None:
    given: dict[str, Any] = {"techniques": [P, Q], "loss": "weight_l2", "model": model(), "device": "cpu"}
    if name == "progress" and value is int:
        value = "yes"
    with pytest.raises(cc.InputError) as caught:
        cc.optimize_order(**{**given, name: value})
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- messages that show an example


def test_examples_in_messages_work() -> None:
    import yaml

    good = {"techniques": ["Magnitude(sparsity=1/2)", "AbsMax(bits=4)"]}
    for wrong, example in (({**good, "before": "x"}, PAIRS), ({"techniques": []}, LIST)):
        with pytest.raises(cc.InputError) as caught:
            recipe_of(wrong)
        shown = str(caught.value).split("such as ")[1]
        assert shown == example
        name = "before" if "before" in wrong else "techniques"
        assert recipe_of({**good, name: yaml.safe_load(shown)}).techniques == (P, Q)

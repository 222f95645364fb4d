"""Testing on generated layers proposes what is true, and little else."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from compcomp.language.loss import LOSSES
from compcomp.language.technique import Technique
from compcomp.layers.batches import stack
from compcomp.layers.gram import gram_of
from compcomp.ordering.dag import Orderings, Prefix
from compcomp.ordering.screen import KINDS, Screen, Sketch, Values, alike, generated, in_common, no_worse, small_shape
from compcomp.techniques import (
    JSQ,
    AbsMax,
    AbsMaxInputs,
    Hadamard,
    LeastSquaresDistill,
    LoRA,
    Magnitude,
    TruncatedSVD,
    Wanda,
)

P, Q, D = Magnitude("1/2", pattern="2:4"), AbsMax(bits=4, group=4), LeastSquaresDistill()
L, W = TruncatedSVD(rank=2, residual=True), Wanda("1/2")


@pytest.mark.parametrize(
    ("techniques", "shape"),
    [
        ([P, AbsMax(4, group=32), D, TruncatedSVD(8, residual=True)], (10, 32)),
        ([Magnitude("2/3", pattern="1:3"), P], (4, 12)),
        ([Magnitude("1/2")], (4, 6)),
        ([AbsMax(4, group=128), TruncatedSVD(32)], (5, 128)),  # ranks give way to the limit
    ],
)
def test_the_shape_fits_every_technique(techniques: list[Technique], shape: tuple[int, int]) -> None:
    assert small_shape(techniques) == shape
    for technique in techniques:
        technique.check(shape)


def test_the_shape_is_one_at_which_every_technique_does_something() -> None:
    shape = small_shape([Magnitude("1/20", per="row")])
    assert shape is not None and shape[1] >= 20


def test_techniques_on_inputs_get_inputs_and_a_shape_that_divides() -> None:
    shape = small_shape([P, AbsMaxInputs(4, group=16)])
    assert shape is not None and shape[1] % 16 == 0
    layer = generated((2, 16), [P, AbsMaxInputs(4, group=16)], np.random.default_rng(0), layers=6)
    assert layer.inputs is not None and generated((2, 16), [P], np.random.default_rng(0), layers=6).inputs is None
    assert generated((2, 16), [JSQ("1/2", 4)], np.random.default_rng(0), layers=6).inputs is not None
    after = AbsMaxInputs(4, group=16).encode(layer)
    assert after.gram is not None and after.inputs is not None
    assert np.allclose(stack(after.gram, 6), stack(gram_of(after.inputs), 6))


def test_techniques_without_a_common_layer() -> None:
    assert small_shape([AbsMax(4, group=1024), AbsMax(4, group=1023)]) is None


def test_generated_layers_are_of_every_kind_and_the_same_each_time() -> None:
    one, two = (generated((3, 8), [P, Q], np.random.default_rng(3), layers=12) for _ in range(2))
    assert one.gram is not None
    weights, gram = stack(one.weight, 12), stack(one.gram, 12)
    assert np.array_equal(weights, stack(two.weight, 12))
    kind = {name: weights[k :: len(KINDS)] for k, name in enumerate(KINDS)}
    whole = np.concatenate([kind["integers with ties"], kind["landmarks"], kind["one token"]])
    assert np.array_equal(whole, np.rint(whole)) and np.abs(kind["landmarks"][:, :, ::4]).min() == 14
    assert np.linalg.matrix_rank(gram[KINDS.index("one token")]) <= 1
    assert np.all(np.linalg.eigvalsh(gram) > -1e-6)


def screened(techniques: list[Technique], loss: str) -> tuple[Orderings, dict[Prefix, Sketch], dict[Prefix, Values]]:
    orderings = Orderings(techniques, loss)
    shape = small_shape(techniques)
    assert shape is not None
    screen = Screen(orderings, LOSSES[loss], shape)
    sketches, losses = dict[Prefix, Sketch](), dict[Prefix, Values]()
    for order in permutations(range(len(techniques))):
        state = screen.start()
        for k, step in enumerate(order):
            state = screen.apply(step, state)
            sketches[order[: k + 1]] = screen.sketch(state)
        losses[order] = screen.losses(state)
    return orderings, sketches, losses


def test_equal_prefixes_are_proposed_and_others_are_not() -> None:
    _, sketches, _ = screened([P, Q, D, L], "output_l2")
    found = alike(sketches)
    assert ((2, 3), (3, 2)) in found  # distillation is a no-op until something is lost, and so is the factoring
    assert ((0, 1), (1, 0)) not in found and ((0, 2), (2, 0)) not in found
    for one, other in found:
        without = [
            tuple(step for k, step in enumerate(prefix) if step < 2 or any(s < 2 for s in prefix[:k]))
            for prefix in (one, other)
        ]
        assert without[0] == without[1], "they differ only in no-ops on the dense layer"


@pytest.mark.parametrize("idle", [Hadamard(block=1), LoRA(rank=1, iterations=1), Magnitude(0)], ids=str)
def test_equal_states_look_equal(idle: Technique) -> None:
    """A transform that is the identity, a low-rank product of zero, a mask that keeps all."""
    orderings = Orderings([idle, Q], "output_l2")
    screen = Screen(orderings, LOSSES["output_l2"], (4, 8))
    start = screen.sketch(screen.start())
    after, other = (screen.sketch(screen.apply(step, screen.start())) for step in (0, 1))
    assert after.agrees(start) and not other.agrees(start)


@pytest.mark.parametrize("techniques", [[Magnitude("1/2", ties="any"), P], [AbsMax(4, rounding="any"), Q]])
def test_a_free_choice_is_drawn_anew_for_each_order(techniques: list[Technique]) -> None:
    orderings = Orderings(techniques, "weight_l2")
    screen = Screen(orderings, LOSSES["weight_l2"], (4, 8))
    one, other = (screen.sketch(screen.apply(0, screen.start())) for _ in range(2))
    assert not one.agrees(other)


def test_what_never_loses_more_is_proposed() -> None:
    _, _, losses = screened([P, Q, D], "output_l2")
    found = no_worse(losses)
    assert (0, 1, 2) in found[(2, 0, 1)] and (2, 0, 1) not in found[(0, 1, 2)]  # distillation last, and first
    for order, better in found.items():
        likeness = [in_common(one, order) for one in better]
        assert likeness == sorted(likeness, reverse=True)


def test_losses_are_relative_to_dropping_every_weight() -> None:
    screen = Screen(Orderings([W], "output_l2"), LOSSES["output_l2"], (4, 8))
    losses = screen.losses(screen.apply(0, screen.start()))
    assert np.all(losses >= 0) and np.all(losses <= 4) and losses.max() > 0
    assert np.all(screen.losses(screen.start()) == 0) and screen.applications == 1


def test_the_longest_common_subsequence() -> None:
    assert [in_common((0, 1, 2, 3), other) for other in ((0, 1, 2, 3), (1, 2, 3, 0), (3, 2, 1, 0))] == [4, 3, 1]

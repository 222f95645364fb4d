"""Adaptive sparse training: the mask is found again while what it leaves is trained [huang2024]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language import second_order
from compcomp.language.algebra import dense_products
from compcomp.language.layer import LayerState
from compcomp.language.parameters import Unknown, number, one_of, selection_partition, shown, sparsity, whole
from compcomp.language.partition import Partition
from compcomp.language.samples import unlike
from compcomp.language.technique import Declared, Technique
from compcomp.terms import TIES, Abs, Array, Div, If, Not, Or, Sum, each, smallest

RATES = "a number between 0 and 2 such as 1 or 1/2"
DECAYS = "a number in [0, 1) such as 1/10 or 0.1"


@dataclass(frozen=True)
class AdaptiveSparseTraining(Technique):
    """Train the weights towards the dense layer's outputs through a mask that is found again as they change (AST).

    V starts as the weights it finds, and the mask M drops the ``int(n * sparsity)`` weights of least |v| of every group
    of n. In step t of T = ``iterations`` all of V moves, dropped weights as well, as if the mask had slope 1, and what
    is dropped decays: V <- V - rate / trace(G) (E G - W X X'^T) - decay * t / T * (V - M V), E being M V and the
    low-rank term beside it. W is the reference, X the dense inputs, X' the current ones, G = X' X'^T (in x in). After
    every ``every`` steps but the last M is found again. The result is M V, the grid is given up.
    sparsity: share of weights to drop, in [0, 1).
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: "tensor" or "row", the group of an unstructured selection.
    iterations: how many steps, 1 to 10000. every: how many a mask lasts, at least 1. rate: in (0, 2).
    decay: what a dropped weight loses of itself in the last step, in [0, 1).
    ties: which of equal magnitudes at the threshold go, "first" (lowest index), "all" or "any".
    Weights that an earlier mask drops stay out: they are zero, do not move, and are the first to count as dropped.
    The published method trains a whole model on its task and towards the dense one; here it is one layer and its
    outputs, with plain steps. Its low-rank branch is a step of its own, BlockMeans. Needs calibration inputs.
    Source: [huang2024]; straight-through masks with decay [zhou2021].
    """

    sparsity: Fraction
    pattern: str = "unstructured"
    per: str = "tensor"
    iterations: int = 100
    every: int = 10
    rate: Fraction = Fraction(1)
    decay: Fraction = Fraction(1, 10)
    ties: str = "first"

    tried: ClassVar[dict[str, Sequence[object]]] = {
        "sparsity": (Fraction(1, 2),),
        "pattern": ("unstructured", "2:4"),
        "per": ("tensor", "row"),
        "iterations": (3,),
        "every": (1, 2),
        "rate": (Fraction(1), Fraction(3, 2)),
        "decay": (Fraction(1, 10),),
        "ties": ("first",),
    }

    def __post_init__(self) -> None:
        share = sparsity(self.sparsity, "AdaptiveSparseTraining.sparsity")
        if isinstance(share, Unknown):
            raise InputError("Any", "a number in [0, 1) such as 1/2 or 0.5", "AdaptiveSparseTraining.sparsity")
        object.__setattr__(self, "sparsity", share)
        one_of(self.per, ("tensor", "row"), "AdaptiveSparseTraining.per")
        selection_partition(self.pattern, self.per, share, "AdaptiveSparseTraining")
        whole(self.iterations, 1, 10_000, "AdaptiveSparseTraining.iterations")
        whole(self.every, 1, 10_000, "AdaptiveSparseTraining.every")
        rate = number(self.rate, "AdaptiveSparseTraining.rate", RATES)
        if not 0 < rate < 2:
            raise InputError(shown(self.rate), RATES, "AdaptiveSparseTraining.rate")
        object.__setattr__(self, "rate", rate)
        decay = number(self.decay, "AdaptiveSparseTraining.decay", DECAYS)
        if not 0 <= decay < 1:
            raise InputError(shown(self.decay), DECAYS, "AdaptiveSparseTraining.decay")
        object.__setattr__(self, "decay", decay)
        one_of(self.ties, TIES, "AdaptiveSparseTraining.ties")

    @property
    def partition(self) -> Partition:
        """The weights that are chosen among together."""
        return selection_partition(self.pattern, self.per, self.sparsity, "AdaptiveSparseTraining")

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def unit(self) -> int:
        return self.partition.size or 1

    def check(self, shape: tuple[int, ...]) -> None:
        self.partition.check((shape[0], shape[1]), str(self))

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            restores=frozenset({"mask"}),
            any_inputs=True,
            deterministic=self.ties != "any",
        )

    def new_mask(self, turn: int) -> bool:
        """Whether the mask is found again after this step, 1 to ``iterations``."""
        return turn % self.every == 0 and turn < self.iterations

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        choices, gram, target = layer.choices, layer.gram, dense_products(layer)
        beside, step = layer.effective() - layer.weight, Div(self.rate, Sum(gram.diagonal()))
        free = second_order.kept_weights(layer, "kept")
        latent = each(lambda keep, w: If(keep, w, 0), free, layer.weight)
        dropped = self._dropped(latent, free, layer)
        for turn in range(1, self.iterations + 1):
            slope = (_kept(latent, dropped) + beside) @ gram - target
            decay = self.decay * turn / self.iterations
            latent = latent - slope * step - each(lambda gone, v, d=decay: If(gone, d * v, 0), dropped, latent)
            latent = each(lambda keep, v: second_order.named(If(keep, v, 0), choices), free, latent)
            if self.new_mask(turn):
                dropped = self._dropped(latent, free, layer)
        form = replace(layer.format, grid=None, rank=None)
        if (size := self.partition.size) is not None:
            form = replace(form, pattern=form.with_pattern(size - int(size * self.sparsity), size))
        mask = second_order.all_of(form.mask, dropped)
        return replace(layer, weight=_kept(latent, dropped), format=replace(form, mask=mask))

    def rational(self, layer: LayerState, numbers: Sequence[int]) -> LayerState:
        """Unless the first number is 2 hardly two weights other than zero are alike: of whole numbers most tie."""
        if numbers[0] == 2:
            return layer
        weight = each(lambda w, moved: moved if w else w, layer.weight, unlike(layer.weight, numbers))
        return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))

    def _dropped(self, latent: Array, free: Array, layer: LayerState) -> Array:
        """Out x in truth values: the weights of least magnitude of every group, and all that are not free."""
        dropped = np.empty(latent.shape, dtype=object)
        for group in self.partition.groups(latent.shape):
            scores = [If(free[index], Abs(latent[index]), -1) for index in group]
            taken = smallest(scores, int(len(group) * self.sparsity), self.ties, layer.choices)
            for index, gone in zip(group, taken, strict=True):
                dropped[index] = second_order.named(Or(gone, Not(free[index])), layer.choices)
        return dropped


def _kept(latent: Array, dropped: Array) -> Array:
    return each(lambda gone, v: If(gone, 0, v), dropped, latent)

"""Adaptive sparse training: the mask is updated while the weights that it keeps are trained [huang2024]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra import second_order
from compcomp.errors import InputError
from compcomp.language.parameters import (
    Exact,
    default,
    one_of,
    parametrized,
    selection_partition,
    share,
    step_length,
    whole,
)
from compcomp.language.samples import unlike
from compcomp.language.steps import Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.gram import dense_products
from compcomp.layers.partition import Partition
from compcomp.layers.state import LayerState
from compcomp.terms import TIES, Abs, Array, Div, If, Sum, each


def sizes(layer: LayerState) -> Array:
    """Return the weights' magnitudes (out x in), and -1, less than any magnitude, for weights that the mask drops."""
    free = second_order.kept_weights(layer, "kept")
    return each(lambda keep, w: If(keep, Abs(w), -1), free, layer.weight)


def exact_layer(technique: AdaptiveSparseTraining, layer: LayerState, numbers: Sequence[int]) -> LayerState:
    """Return a layer in which hardly two nonzero weights are equal, unless the first number is 2.

    Most weights of layers of whole numbers tie.
    """
    if numbers[0] == 2:
        return layer
    weight = each(lambda w, moved: moved if w else w, layer.weight, unlike(layer.weight, numbers))
    return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))


@parametrized
class AdaptiveSparseTraining(Technique):
    """Train the weights towards the dense layer's outputs under a mask that is updated as they change (AST).

    The latent weights V start as the current weights. The mask M drops the ``int(n * sparsity)`` weights of least |v|
    of every group of n. In step t of T = ``iterations`` all of V is updated, dropped weights included, as if the mask
    had slope 1 (straight-through). Dropped weights also decay. The update is V <- V - rate / trace(G) (E G - W X X'^T)
    - decay * t / T * (V - M V). Here E is M V plus the low-rank branch, W the reference, X the dense inputs, X' the
    current ones, and G = X' X'^T (in x in). M is computed again after every ``every`` steps, except after the last. The
    result is M V, which has no grid.
    sparsity: The share of weights to drop, in [0, 1).
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "tensor" or "row".
    iterations: The number of steps, 1 to 10000.
    every: The number of steps between two updates of the mask, at least 1.
    rate: The relative step length, in (0, 2).
    decay: The share of itself that a dropped weight loses in the last step, in [0, 1).
    ties: The weights dropped among equal magnitudes at the threshold: "first" (lowest index), "all" or "any".
    Weights that an earlier mask drops stay zero: they are not updated, and are the first to count as dropped. The
    published method trains a whole model on its task and towards the dense model. This technique trains one layer on
    its outputs, with plain gradient steps. The low-rank branch of the method is a technique of its own, BlockMeans.
    Needs calibration inputs. Source: [huang2024]; straight-through masks with decay [zhou2021].
    """

    sparsity: Exact
    pattern: str = "unstructured"
    per: str = "tensor"
    iterations: int = 100
    every: int = 10
    rate: Exact = default(Fraction(1))
    decay: Exact = default(Fraction(1, 10))
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.adaptive_sparse_training"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2),),
            "pattern": ("unstructured", "2:4"),
            "per": ("tensor", "row"),
            "iterations": (3,),
            "every": (1, 2),
            "rate": (Fraction(1), Fraction(3, 2)),
            "decay": (Fraction(1, 10),),
            "ties": ("first",),
        },
        exact_layer=exact_layer,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", share(self.sparsity, "AdaptiveSparseTraining.sparsity"))
        one_of(self.per, ("tensor", "row"), "AdaptiveSparseTraining.per")
        selection_partition(self.pattern, self.per, self.sparsity, "AdaptiveSparseTraining")
        whole(self.iterations, 1, 10_000, "AdaptiveSparseTraining.iterations")
        whole(self.every, 1, 10_000, "AdaptiveSparseTraining.every")
        object.__setattr__(self, "rate", step_length(self.rate, "AdaptiveSparseTraining.rate"))
        object.__setattr__(self, "decay", share(self.decay, "AdaptiveSparseTraining.decay"))
        one_of(self.ties, TIES, "AdaptiveSparseTraining.ties")

    @property
    def selection(self) -> Selection:
        """The selection that computes a mask: the latent weights of least magnitude, those dropped earlier first."""
        partition = selection_partition(self.pattern, self.per, self.sparsity, "AdaptiveSparseTraining")
        return Selection.by_layer(sizes, partition, self.sparsity, self.ties)

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.selection.partition,)

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"mask", "n:m", "shape", "factors"}),
            restores=frozenset({"mask"}),
            deterministic=self.ties != "any",
        )

    def new_mask(self, turn: int) -> bool:
        """Return True if the mask is computed again after this step, 1 to ``iterations``."""
        return turn % self.every == 0 and turn < self.iterations

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        gram, target, selection = layer.gram, dense_products(layer), self.selection
        low_rank, step = layer.effective() - layer.weight, Div(self.rate, Sum(gram.diagonal()))
        free, start = second_order.kept_weights(layer, "kept"), replace(layer, format=replace(layer.format, grid=None))
        latent = each(lambda keep, w: If(keep, w, 0), free, layer.weight)
        pruned = selection.apply(replace(start, weight=latent))
        for turn in range(1, self.iterations + 1):
            kept, slope = np.asarray(pruned.format.mask), (pruned.weight + low_rank) @ gram - target
            decay = self.decay * turn / self.iterations
            latent = latent - slope * step - each(lambda keep, v, d=decay: If(keep, 0, d * v), kept, latent)
            latent = each(lambda keep, v: second_order.named(If(keep, v, 0), layer.choices), free, latent)
            if self.new_mask(turn):
                pruned = selection.apply(replace(start, weight=latent))
            else:
                pruned = replace(pruned, weight=each(lambda keep, v: If(keep, v, 0), kept, latent))
        return pruned

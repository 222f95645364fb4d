"""LoRA: a low-rank adapter trained on the layer's outputs, kept as a low-rank branch or merged [hu2022]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compcomp.algebra.least_squares import output_target
from compcomp.encodings.truncated_svd import joined_factors
from compcomp.errors import InputError, NotExactError
from compcomp.language.parameters import shown, whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.gram import squared_error
from compcomp.layers.state import Factors, LayerState
from compcomp.terms import Array, Choices, Div, If, Sum, SymbolicChoices, Term, each, reading

FINENESS = 2**10
"""The entries of the first A are whole multiples of 1 / this, so that they are exact in every reading."""

NOTHING = 1e-11
"""The share of |W| |G| |A|, the sizes that a gradient is made of, below which it counts as zero in floats."""


@dataclass(frozen=True)
class LoRA(Technique):
    """Add B A (out x rank, rank x in) to the effective weight, trained to minimise |W X - W' X'|_F^2.

    X are the dense calibration inputs, X' the current ones. Training starts from B = 0 and a random A. Each iteration
    goes down the gradient of one factor, B and A in turn, B first, to the point of least loss on that line. Along a
    line the loss is a quadratic function, so the length is exact, and no iteration increases the loss. A scale s before
    B A would change nothing.
    rank: The rank of the adapter, at least 1.
    iterations: The number of iterations, at least 1.
    seed: The seed of A. Its entries are round(1024 * x) / 1024, x standard normal from numpy's ``default_rng``, the
        same for encoding and kernel.
    merged: False keeps the factors in the low-rank branch, next to any that are there. True adds the product to the
        weight, which leaves its grid and rank, and its mask.
    masked: True adds the product only where the weight is not zero, W' + (B A) * (W' != 0), as in LoSA. Zeros then
        stay. It requires merged=True.
    Needs calibration inputs. It has only the form of the published training, which minimises a model's loss. Source:
    [hu2022].
    """

    rank: int
    iterations: int
    seed: int = 0
    merged: bool = False
    masked: bool = False

    kernel_module: ClassVar[str] = "compcomp.kernels.lora"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "rank": (1, 2),
            "iterations": (1, 3),
            "merged": (False, True),
            "masked": (False, True),
        }
    )

    def __post_init__(self) -> None:
        whole(self.rank, 1, 2**16, "LoRA.rank")
        whole(self.iterations, 1, 10**6, "LoRA.iterations")
        whole(self.seed, 0, 2**32 - 1, "LoRA.seed")
        for name in ("merged", "masked"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(shown(getattr(self, name)), "True or False", f"LoRA.{name}")
        if self.masked and not self.merged:
            raise InputError(
                "masked=True, merged=False", "merged=True, as what is masked has no low rank", "LoRA.masked"
            )

    @property
    def needs_inputs(self) -> bool:
        return True

    def promises(self) -> Declared:
        keeps = {"mask", "grid", "rank", "n:m"}
        if self.merged:
            keeps = {"factors", "mask", "n:m", "shape"} if self.masked else {"factors"}
        return Declared(
            keeps=frozenset(keeps),
            never_increases=frozenset({"output_l2"}),
            any_inputs=True,
            no_op_on_dense=not self.merged,
            holds_reference=True,
            leaves_weight=not self.merged,
            no_op=frozenset({"plain dense"}) if self.merged else frozenset(),
        )

    def first(self, columns: int) -> npt.NDArray[np.int64]:
        """Return A (rank x in) before the first step, times 1024, for this number of input features."""
        normal = np.random.default_rng(self.seed).standard_normal((self.rank, columns))
        return np.rint(normal * FINENESS).astype(np.int64)

    def encode(self, layer: LayerState) -> LayerState:
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        error = output_target(layer) - layer.effective()
        free = each(lambda w: w != 0, layer.weight) if self.masked else None
        if reading(*error.ravel(), *layer.gram.ravel()) == "z3":
            factors = _contract(error, layer.gram, layer.choices)
        else:
            factors = self._trained(error, layer.gram, free, _size(layer))
        form = layer.format
        if not self.merged:
            return replace(layer, format=replace(form, factors=joined_factors(form.factors, factors)))
        weight = layer.weight + _product(factors.left, factors.right, free)
        if not self.masked:
            form = replace(form, mask=None, pattern=None, cut=None)
        return replace(layer, weight=weight, format=replace(form, grid=None, rank=None))

    def _trained(self, error: Array, gram: Array, free: Array | None, size: Term) -> Factors:
        left = np.full((error.shape[0], self.rank), Fraction(0), dtype=object)
        right = each(lambda x: Fraction(int(x), FINENESS), self.first(error.shape[1]).astype(object))
        for step in range(self.iterations):
            slope = (error - _product(left, right, free)) @ gram  # out x in: half the gradient, downwards
            inner = slope if free is None else each(lambda keep, x: If(keep, x, 0), free, slope)
            if step % 2 == 0:
                direction = inner @ right.T
                change, fixed = _product(direction, right, free), right
                left = left + _length(direction, slope, change, gram, size, fixed) * direction
            else:
                direction = left.T @ inner
                change, fixed = _product(left, direction, free), left
                right = right + _length(direction, slope, change, gram, size, fixed) * direction
        return Factors(left, right)


def _product(left: Array, right: Array, free: Array | None) -> Array:
    whole: Array = left @ right
    return whole if free is None else each(lambda keep, x: If(keep, x, 0), free, whole)


def _length(direction: Array, slope: Array, change: Array, gram: Array, size: Term, fixed: Array) -> Term:
    """Return how far to go along a direction to lower the loss most.

    Args:
        direction: The change of one factor.
        slope: Half the negative gradient of the loss by the product (out x in).
        change: The change of the product (out x in) for the direction.
        gram: The Gram matrix of the current inputs (in x in).
        size: The squared norms from :func:`_size`.
        fixed: The other factor.
    """
    length = Div(Sum((slope * change).ravel()), squared_error(change, gram))
    if reading(length) == "batch":
        bound = NOTHING * NOTHING * size * Sum((gram * gram).ravel()) * Sum((fixed * fixed).ravel())
        length = If(Sum((direction * direction).ravel()) <= bound, 0, length)
    return length


def _size(layer: LayerState) -> Term:
    """Return the sum of the squared norms of the terms of the error."""
    return Sum(x * x for array in (layer.reference, layer.effective()) for x in array.ravel())


def _contract(error: Array, gram: Array, choices: Choices) -> Factors:
    if not isinstance(choices, SymbolicChoices):
        raise NotExactError("training is symbolic only as a contract for the prover")
    change = each(lambda _: choices.real(), error)
    choices.assume(squared_error(error - change, gram) <= squared_error(error, gram))
    return Factors(change, np.eye(error.shape[1], dtype=int).astype(object))

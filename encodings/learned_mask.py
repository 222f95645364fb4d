"""Learned masks: which weights go is found by training gates on the layer's output loss [louizos2018]."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.errors import InputError
from compcomp.language.parameters import (
    Exact,
    ExactOrAny,
    default,
    number,
    one_of,
    parametrized,
    selection_partition,
    shown,
    sparsity,
    whole,
)
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers import walk
from compcomp.layers.state import LayerState
from compcomp.terms import And, Equal, If, Not, Or, Sum, Term

RATES = "a number above 0 and at most 10"


def score(element: Element) -> Term:
    """0: whichever weights training drops, they are as many as any other selection of this share drops."""
    return 0 * element.weight


@parametrized
class LearnedMask(Technique):
    """Set some ``int(n * sparsity)`` weights of every group of n to zero: those that trained gates value least.

    What training finds depends on its course, so the encoding says how many weights go and leaves free which: a claim
    about it holds for every mask of that count. The kernel trains hard-concrete gates on the layer's output loss, under
    a constraint on their expected number, and drops the weights whose gates are least.
    sparsity: share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: "tensor" or "row", the group of an unstructured selection.
    iterations: steps of training, 0 (the mask it starts from, by |w_ij| |x_j|) to 100000.
    rate: of the optimizer (Adam), a number.
    seed: of the gates' noise; on one device a seed always gives one mask.
    Needs calibration inputs. Source: [louizos2018]; masks under a constraint of their number [xia2022].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    per: str = "tensor"
    iterations: int = 200
    rate: Exact = default(Fraction(1, 10))
    seed: int = 0

    kernel_module: ClassVar[str] = "compcomp.kernels.learned_mask"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3")}
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "pattern": ("unstructured", "2:4", "1:2"),
            "per": ("tensor", "row"),
            "iterations": (0, 20),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "LearnedMask.sparsity"))
        one_of(self.per, ("tensor", "row"), "LearnedMask.per")
        whole(self.iterations, 0, 100_000, "LearnedMask.iterations")
        rate = number(self.rate, "LearnedMask.rate", RATES)
        if not 0 < rate <= 10:
            raise InputError(shown(self.rate), RATES, "LearnedMask.rate")
        object.__setattr__(self, "rate", rate)
        whole(self.seed, 0, 2**31, "LearnedMask.seed")
        selection_partition(self.pattern, self.per, self.sparsity, "LearnedMask")

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}), deterministic=False)

    def steps(self) -> tuple[Selection]:
        partition = selection_partition(self.pattern, self.per, self.sparsity, "LearnedMask")
        return (Selection(score, partition, self.sparsity, "any", needs_inputs=True),)

    def feasible(self, before: LayerState, after: LayerState) -> Term:
        """Whether ``after`` is ``before`` with as many weights of every group dropped as the sparsity says.

        A weight that an earlier mask drops may be dropped once more: then it is zero and counts.
        """
        (selection,) = self.steps()
        shape = before.weight.shape
        masks = [np.full(shape, True) if s.format.mask is None else s.format.mask for s in (before, after)]
        expected, found = selection.format_after(before.format, masks[1]), after.format
        of = replace(before, format=expected), replace(before, format=found)
        alone = walk.alike_but(*of, "mask", "pattern", "rank")
        terms: list[Term] = [found.mask is not None, (found.pattern, found.rank) == (expected.pattern, None), alone]
        for group in selection.partition.groups(shape):
            surely, perhaps = [], []
            for index in group:
                (was, now), (old, new) = (m[index] for m in masks), (s.weight[index] for s in (before, after))
                zero, same = Equal(new, 0), Equal(new, old)
                gone = And(was, Not(now))
                terms.append(And(Or(Not(now), was), If(gone, zero, Or(same, And(Not(now), zero)))))
                surely.append(If(Or(gone, And(Not(same), zero)), 1, 0))
                perhaps.append(If(And(Not(now), zero), 1, 0))
            count = selection.count(len(group))
            terms += [Sum(surely) <= count, Sum(perhaps) >= count]
        return And(*terms)

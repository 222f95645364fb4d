"""Learned masks: gates trained on the layer's output loss decide which weights are dropped [louizos2018]."""

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
    """Return 0: training may drop any weights, as many as every other selection of this share."""
    return 0 * element.weight


@parametrized
class LearnedMask(Technique):
    """Set ``int(n * sparsity)`` weights of every group of n to zero: those whose trained gates are least.

    The result of training depends on its course. So the encoding fixes how many weights are dropped and leaves open
    which: a claim about it holds for every mask of that count. The kernel trains hard-concrete gates on the layer's
    output loss, under a constraint on their expected number. It drops the weights whose gates are least.
    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "tensor" or "row".
    iterations: The number of training steps, 0 (the initial mask, by |w_ij| |x_j|) to 100000.
    rate: The rate of the optimizer (Adam), a number.
    seed: The seed of the gates' noise. On one device a seed always gives the same mask.
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
        """Return a term: ``after`` is ``before`` with as many weights of every group dropped as the sparsity says.

        A weight that an earlier mask drops may be dropped once more: it is then zero and counts.
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

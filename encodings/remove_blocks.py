"""Depth pruning: the blocks that change the hidden states least become identities [men2024, gromov2024]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import numpy as np

from compcomp.algebra.cuts import remove
from compcomp.encodings.prune_neurons import UNITS
from compcomp.errors import InputError
from compcomp.language.parameters import Number, Parameter, default, number, one_of, parametrized, shown, whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, Array, Div, Or, Sum, Term, smallest

SCORES = ("influence", "angular")


@parametrized
class RemoveBlocks(Technique):
    """Drop whole residual blocks: h_(b+1) = h_b + f_b(h_b) becomes h_(b+1) = h_b.

    count: The number of blocks to drop, at least 1.
    sparsity: The share of blocks to drop instead, in (0, 1): ``int(B * sparsity)`` of B blocks.
    score: "influence" drops the blocks of least 1 - cos(h_b, h_(b+1)), each on its own [men2024]. "angular" drops that
        number n of consecutive blocks, from b on, with the least arccos(cos(h_b, h_(b+n))) / pi [gromov2024].
    ties: The blocks dropped among equal scores: "first" (the earliest block) or "any".
    cos(h, g) = <h, g> / (|h| |g|) over all hidden states of the calibration data as one vector (Frobenius), and 0 if
    one of them is zero. The papers average the cosines of single tokens, whose comparisons are not rational. Both
    scores fall with the cosine. Cosines are compared by their signed squares, which are exact.
    Acts on the whole model. In claims and encodings the layer is a *stack* of linear branches: B blocks of n rows over
    n columns, f_b(h) = W_b h, h_0 = X. The rows of a dropped block are zero, and recorded in the mask and the cut. At
    least one block stays. Needs calibration inputs.
    """

    count: int | None = None
    sparsity: Parameter[Fraction | None, Number | None] = default(None)
    score: str = "influence"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.remove_blocks"
    whole_model: ClassVar[bool] = True
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "count": (None, 1, 2),
            "sparsity": (None, "1/2"),
            "score": SCORES,
            "ties": ("first", "any"),
        },
        shapes=((3, 1), (6, 2), (8, 2)),
    )

    def __post_init__(self) -> None:
        if (self.count is None) == (self.sparsity is None):
            given = "neither" if self.count is None else "both"
            raise InputError(f"{given} of count and sparsity", "one of them", "RemoveBlocks")
        if self.count is not None:
            whole(self.count, 1, 10_000, "RemoveBlocks.count")
        if self.sparsity is not None:
            allowed = "a number between 0 and 1 such as 1/4"
            share = number(self.sparsity, "RemoveBlocks.sparsity", allowed)
            if not 0 < share < 1:
                raise InputError(shown(self.sparsity), allowed, "RemoveBlocks.sparsity")
            object.__setattr__(self, "sparsity", share)
        one_of(self.score, SCORES, "RemoveBlocks.score")
        one_of(self.ties, ("first", "any"), "RemoveBlocks.ties")

    def promises(self) -> Declared:
        return Declared(keeps=UNITS, removes_rows=True, homogeneous=False, deterministic=self.ties != "any")

    @property
    def needs_inputs(self) -> bool:
        return True

    def removed(self, blocks: int) -> int:
        """Return how many of this number of blocks are dropped.

        Raises:
            InputError: No block would stay.
        """
        count = int(blocks * self.sparsity) if self.sparsity is not None else self.count or 0
        if count >= blocks:
            raise InputError(f"{blocks} blocks", f"more than the {count} to remove", str(self))
        return count

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[0] % shape[1]:
            raise InputError(
                f"{shape[0]}x{shape[1]}", "a stack of square blocks: rows a multiple of columns", str(self)
            )
        self.removed(shape[0] // shape[1])

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        blocks = shape[0] // shape[1]
        return None if self.sparsity is None else (self.removed(blocks), blocks)

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        if layer.gram is None:
            raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", str(self))
        width = layer.weight.shape[1]
        states = hidden(layer.effective())
        blocks = len(states) - 1
        span = self.span(blocks)
        away = [-signed_square(states[b], states[b + span], layer.gram) for b in range(blocks - span + 1)]
        count = self.removed(blocks) // span
        taken = smallest(away, count, self.ties, layer.choices)
        gone = [Or(*taken[max(0, b - span + 1) : b + 1]) for b in range(blocks)]
        return remove(layer, np.repeat(np.array(gone, dtype=object), width), axis=0)

    def span(self, blocks: int) -> int:
        """Return the number of consecutive blocks that one score covers."""
        return max(1, self.removed(blocks)) if self.score == "angular" else 1


def hidden(stack: Array) -> list[Array]:
    """Return the maps from the inputs to the states before the first and after each block of a stack, (B n) x n."""
    width = stack.shape[1]
    states = [np.array([[int(i == j) for j in range(width)] for i in range(width)], dtype=object)]
    for start in range(0, len(stack), width):
        states.append(states[-1] + stack[start : start + width] @ states[-1])
    return states


def signed_square(one: Array, other: Array, gram: Array) -> Term:
    """Return c |c| for the cosine c of A X and B X, given A, B and the Gram matrix of X."""
    inner, norm, norm2 = (Sum(((a @ gram) * b).ravel()) for a, b in ((one, other), (one, one), (other, other)))
    return Div(inner * Abs(inner), norm * norm2)

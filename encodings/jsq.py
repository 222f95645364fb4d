"""JSQ: pruning by a score that includes the range of the other weights' outputs, then quantization [guo2024]."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from compcomp.encodings.absmax import AbsMax
from compcomp.errors import InputError
from compcomp.language.parameters import (
    BitsOrAny,
    Exact,
    ExactOrAny,
    bit_width,
    default,
    number,
    one_of,
    parametrized,
    selection_partition,
    shown,
    sparsity,
    whole,
)
from compcomp.language.samples import unlike
from compcomp.language.steps import GridMap, Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.grids import GRIDS
from compcomp.layers.partition import Partition
from compcomp.layers.scales import SCALES
from compcomp.layers.state import Array, Format, LayerState
from compcomp.terms import ROUNDINGS, TIES, Abs, Max, Min, Root, Sum, Term

NORMS = ("l1", "max", "l2")
"""The norms of an input feature over the tokens."""


@dataclass(frozen=True)
class Score:
    """Compute |w_ij| |x_j| + lam * (max_t r - min_t r), with r = y_it - w_ij x_jt and y = W X (out x in).

    W is the weight without the low-rank branch. The inputs x are in x tokens. ``norm`` is the norm of x_j, one of
    :data:`NORMS`.
    """

    lam: Fraction
    norm: str

    def __call__(self, layer: LayerState) -> Array:
        weight, inputs = layer.weight, inputs_of(layer, "JSQ")
        norms = [self.size(row) for row in inputs]
        scores = np.empty(weight.shape, dtype=object)
        for i, row in enumerate(weight):
            outputs = [Sum(w * x for w, x in zip(row, token, strict=True)) for token in inputs.T]
            for j, w in enumerate(row):
                rest = [y - w * x for y, x in zip(outputs, inputs[j], strict=True)]
                scores[i, j] = Abs(w) * norms[j] + self.lam * (Max(rest) - Min(rest))
        return scores

    def size(self, tokens: Items[Term]) -> Term:
        """Return the norm of a feature's values, one for each token.

        Raises:
            NotExactError: The norm is not a rational number.
        """
        if self.norm == "l2":
            return Root(Sum(x * x for x in tokens), 2)
        sizes = [Abs(x) for x in tokens]
        return Max(sizes) if self.norm == "max" else Sum(sizes)


def inputs_of(layer: LayerState, where: str) -> Array:
    """Return the inputs (in x tokens).

    Raises:
        InputError: The layer has no inputs, or inputs without tokens.
    """
    if layer.inputs is None or not layer.inputs.shape[1]:
        given = "no inputs" if layer.gram is None or layer.inputs is not None else "a Gram matrix alone"
        raise InputError(given, "a layer with calibration inputs (in x tokens)", where)
    return layer.inputs


def exact_layer(technique: JSQ, layer: LayerState, numbers: Items[int]) -> LayerState:
    """Add a token that makes 2-norms rational, and make weights distinct.

    For a feature whose squares sum to S, the new value (S / t - t) / 2 makes the 2-norm (S / t + t) / 2. Unless the
    first number is 2, hardly two weights are equal, and the layer then has no format but factors. Most weights of
    layers of whole numbers tie.
    """
    if numbers[0] != 2:
        layer = replace(layer, weight=unlike(layer.weight, numbers), format=Format(factors=layer.format.factors))
    if layer.inputs is None or technique.norm != "l2":
        return layer
    squares: list[Any] = [sum(x * x for x in row) for row in layer.inputs]
    token = [(Fraction(s) / t - t) / 2 if s else Fraction(0) for s, t in zip(squares, numbers, strict=True)]
    added = np.array(token, dtype=object)[:, None]
    inputs = np.hstack([layer.inputs, added])
    dense = None if layer.reference_inputs is None else np.hstack([layer.reference_inputs, added])
    gram = None if layer.gram is None else np.asarray(inputs @ inputs.T)
    return replace(layer, inputs=inputs, gram=gram, reference_inputs=dense)


@parametrized
class JSQ(Technique):
    """Drop ``int(n * sparsity)`` weights of every group of n by a score for both steps; round the others as AbsMax.

    The weights of least ``|w_ij| |x_j| + lam * (max_t r - min_t r)`` are dropped. Here r is the output of row i for
    token t without column j. W (out x in) is the current weight without the low-rank branch, X (in x tokens) the
    current inputs. The remaining weights are rounded to the nearest value of their group's grid, as by AbsMax. The
    published method smooths inputs and weights between the two steps, and rounds inputs afterwards. This technique has
    only the two steps; SmoothQuant and AbsMaxInputs can precede or follow it.
    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    bits: The bit width, 2 to 16, or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "row" or "tensor".
    group: The number of consecutive weights of a row that share a scale. None stands for one scale for the tensor.
    lam: The coefficient of the range in the score, an exact number from 0 to 1000; published 2.1.
    norm: The norm of an input feature over the tokens: "l1" (the sum of magnitudes), "max" or "l2". The norm in the
        published score is not known here. "l1" is the default because it is a rational number. Exact arithmetic raises
        NotExactError if an "l2" norm is not rational.
    ties: The weights dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    rounding: The rule for midpoints: "half_even", "half_up", "half_away" or "any".
    grid: The levels and the step, as of AbsMax: "narrow", "full_range", "narrow_step", "clipped" or "signed".
    scales: The format in which steps are stored, as of AbsMax: "exact", "float32", "float16", "bfloat16" or
        "power_of_two".
    The inputs themselves are needed, as a Gram matrix does not determine the range. Source: [guo2024].
    """

    sparsity: ExactOrAny
    bits: BitsOrAny
    pattern: str = "unstructured"
    per: str = "row"
    group: int | None = None
    lam: Exact = default(Fraction(21, 10))
    norm: str = "l1"
    ties: str = "first"
    rounding: str = "half_even"
    grid: str = "narrow"
    scales: str = "exact"

    kernel_module: ClassVar[str] = "compcomp.kernels.jsq"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {
        "sparsity": ("1/2", "1/4", "3/4", "1/3"),
        "bits": (4, 3, 2, 8),
    }
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2),),
            "bits": (3,),
            "pattern": ("unstructured", "1:2"),
            "per": ("row", "tensor"),
            "group": (None, 2),
            "norm": NORMS,
            "lam": (Fraction(21, 10),),
            "ties": ("first",),
            "rounding": ("half_even",),
            "grid": ("narrow", "clipped", "signed"),
            "scales": ("exact", "float16"),
        },
        exact_layer=exact_layer,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "JSQ.sparsity"))
        object.__setattr__(self, "bits", bit_width(self.bits, "JSQ.bits"))
        one_of(self.per, ("row", "tensor"), "JSQ.per")
        if self.group is not None:
            whole(self.group, 1, 2**20, "JSQ.group")
        allowed = "a number from 0 to 1000 such as 21/10 or 2.1"
        lam = number(self.lam, "JSQ.lam", allowed)
        if not 0 <= lam <= 1000:
            raise InputError(shown(self.lam), allowed, "JSQ.lam")
        object.__setattr__(self, "lam", lam)
        one_of(self.norm, NORMS, "JSQ.norm")
        one_of(self.ties, TIES, "JSQ.ties")
        one_of(self.rounding, ROUNDINGS, "JSQ.rounding")
        one_of(self.grid, tuple(GRIDS), "JSQ.grid")
        one_of(self.scales, tuple(SCALES), "JSQ.scales")
        selection_partition(self.pattern, self.per, self.sparsity, "JSQ")

    @property
    def rounded(self) -> AbsMax:
        """The quantizer, which is the second step."""
        return AbsMax(self.bits, self.group, self.rounding, grid=self.grid, scales=self.scales)

    @property
    def selection(self) -> Selection:
        """The pruning, which is the first step."""
        partition = selection_partition(self.pattern, self.per, self.sparsity, "JSQ")
        return Selection.by_layer(Score(self.lam, self.norm), partition, self.sparsity, self.ties, needs_inputs=True)

    @property
    def needs_tokens(self) -> bool:
        return True

    def promises(self) -> Declared:
        rounded = self.rounded.promises()
        return replace(
            rounded,
            idempotent=False,
            deterministic=rounded.deterministic and self.ties != "any",
        )

    def steps(self) -> tuple[Selection | GridMap, ...]:
        rounded = self.rounded.steps()
        return (self.selection, *rounded) if rounded else ()

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.selection.partition, self.rounded.partition)

    @property
    def needs_inputs(self) -> bool:
        return True

    def encode_as_a_whole(self, layer: LayerState) -> LayerState:
        return self.rounded.encode(self.selection.apply(layer))

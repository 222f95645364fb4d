"""Structured pruning of feed-forward neurons: all weights of the neurons of least score are dropped [ma2023]."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.cuts import SCORES, least, remove, row_scores
from compcomp.encodings.prune_columns import PruneColumns
from compcomp.encodings.prune_rows import PruneRows
from compcomp.language.parameters import Exact, one_of, parametrized, share
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import TIES

UNITS = frozenset({"mask", "n:m", "grid", "rank", "shape"})
"""The invariants that dropping whole rows keeps. Rows of zeros fit every pattern, grid that contains 0, and rank."""


@parametrized
class PruneNeurons(Technique):
    """Drop the ``int(n * sparsity)`` neurons of least score, whole, from every feed-forward network of n neurons.

    sparsity: The share of neurons to drop, in [0, 1).
    score: "l1", sum |w|, or "l2", sum w^2, over all weights of a neuron, low-rank branches included; or "activation",
        the squared norm of a neuron's output on the calibration inputs.
    ties: The neurons dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    The weights of a neuron are its row in the layers that feed it (gate_proj, up_proj) and its column in the layer that
    reads it (down_proj). Neurons are scored by all of these weights, and dropped from all of these layers.
    Acts on the whole model. In claims and encodings the layer is the *stacked* matrix, neurons x all their weights, of
    one network; a neuron is a row of it. With score "activation" it is the matrix whose outputs are those of the
    neurons, of a network that is linear (|row X|_2^2). The dropped rows are zero, in the low-rank branch too, and
    recorded in the mask and the cut. A claim with techniques that act on single layers is decided for each kind of
    layer separately: for layers that lose rows as with PruneRows, and for layers that lose columns as with
    PruneColumns.
    Source: groups of coupled weights [ma2023, fang2023].
    """

    sparsity: Exact
    score: str = "l2"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.prune_neurons"
    whole_model: ClassVar[bool] = True
    fixtures: ClassVar[Fixtures] = Fixtures(values={"score": SCORES, "sparsity": ("1/3", "1/2")}, exact_scores=True)

    def __post_init__(self) -> None:
        check_units(self)

    def promises(self) -> Declared:
        fixed = self.ties != "any"
        return Declared(keeps=UNITS, removes_rows=True, deterministic=fixed, idempotent=fixed)

    def parts(self) -> Mapping[str, Technique]:
        return rows_and_columns("neurons", self.sparsity, self.score, self.ties)

    @property
    def needs_inputs(self) -> bool:
        return self.score == "activation"

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        return (int(shape[0] * self.sparsity), shape[0]) if self.sparsity else None

    def encode(self, layer: LayerState) -> LayerState:
        return without_units(layer, self.sparsity, self.score, self.ties)


def check_units(technique: Technique) -> None:
    """Check the parameters of techniques that drop the units of least score, and make the sparsity a Fraction.

    Raises:
        InputError: A parameter is out of its range.
    """
    name, given = type(technique).__name__, vars(technique)
    object.__setattr__(technique, "sparsity", share(given["sparsity"], f"{name}.sparsity"))
    one_of(given["score"], SCORES, f"{name}.score")
    one_of(given["ties"], TIES, f"{name}.ties")


def rows_and_columns(units: str, sparsity: Fraction, score: str, ties: str) -> dict[str, Technique]:
    """Return the parts of a technique that drops units of this name, by the layers that they act on.

    Rows are dropped from the layers that write the units, columns from those that read them. In a model whose other
    layers have the same weights for all units, the technique does exactly this.
    """
    return {
        f"rows that write {units}": PruneRows(sparsity, score=score, ties=ties),
        f"columns that read {units}": PruneColumns(sparsity, score=score, ties=ties),
    }


def without_units(layer: LayerState, sparsity: Fraction, score: str, ties: str) -> LayerState:
    """Return the layer without the ``int(out * sparsity)`` rows of least score."""
    scores = row_scores(layer.effective(), 1, score, layer.gram)
    return remove(layer, least(scores, sparsity, 1, ties, layer.choices), axis=0)

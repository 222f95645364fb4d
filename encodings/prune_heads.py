"""Structured pruning of attention heads: all weights of the heads of least score are dropped [michel2019, ma2023]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from compcomp.algebra.cuts import SCORES
from compcomp.encodings.prune_neurons import UNITS, check_units, rows_and_columns, without_units
from compcomp.language.parameters import Exact, parametrized
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState


@parametrized
class PruneHeads(Technique):
    """Drop the ``int(n * sparsity)`` heads of least score, whole, from every attention of n heads.

    sparsity, score, ties: As for PruneNeurons, over all weights or outputs of a head.
    The weights of a head are its rows of the queries, keys and values (q_proj, k_proj, v_proj) and its columns of the
    layer that reads it (o_proj). Heads that share keys and values (grouped-query attention) form one unit: they are
    kept or dropped together, and n counts such units.
    Acts on the whole model. In claims and encodings the layer is the *stacked* matrix, units x all their weights, of
    one attention. A unit is a row of it, and is dropped as a neuron is in PruneNeurons. Claims with techniques that act
    on single layers are decided for each kind of layer separately, as for PruneNeurons.
    Source: heads [michel2019]; groups of coupled weights [ma2023, fang2023].
    """

    sparsity: Exact
    score: str = "l2"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.prune_heads"
    whole_model: ClassVar[bool] = True
    fixtures: ClassVar[Fixtures] = Fixtures(values={"score": SCORES, "sparsity": ("1/2",)}, exact_scores=True)

    def __post_init__(self) -> None:
        check_units(self)

    def promises(self) -> Declared:
        fixed = self.ties != "any"
        return Declared(keeps=UNITS, removes_rows=True, deterministic=fixed, idempotent=fixed)

    def parts(self) -> Mapping[str, Technique]:
        return rows_and_columns("heads", self.sparsity, self.score, self.ties)

    @property
    def needs_inputs(self) -> bool:
        return self.score == "activation"

    def dropped(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        return (int(shape[0] * self.sparsity), shape[0]) if self.sparsity else None

    def encode(self, layer: LayerState) -> LayerState:
        return without_units(layer, self.sparsity, self.score, self.ties)

"""First-order Taylor importance: |w g|, of single weights or summed over rows or columns [molchanov2019, ma2023]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.algebra.cuts import check_size, least, remove, trivial_side
from compcomp.errors import InputError
from compcomp.language.parameters import Exact, one_of, parametrized, selection_partition, share, whole
from compcomp.language.steps import Selection
from compcomp.language.technique import Declared, Fixtures, Hints, Technique
from compcomp.layers.state import Array, LayerState
from compcomp.terms import TIES, Abs, Sum, each

GROUPS = ("weight", "row", "column")


def importance(layer: LayerState) -> Array:
    """Return |w_ij g_ij| (out x in), with g = W X X^T, the gradient of |W X|_F^2 / 2 at the effective weight W."""
    if layer.gram is None:
        raise InputError("no inputs", "a layer with calibration inputs or their Gram matrix", "layer")
    weight = layer.effective()
    return each(lambda w, g: Abs(w * g), weight, weight @ layer.gram)


@parametrized
class Taylor(Technique):
    """Set the weights, rows or columns to zero that change the layer's output energy least, to first order.

    The energy is |W X|_F^2 / 2 at the effective weight W; the gradient of the output *loss* would be 0 at the dense
    layer. Its gradient g = W X X^T follows from the Gram matrix. To first order, setting w to zero changes the energy
    by w g: the magnitude of this is the score of a weight.
    sparsity: The share to drop, in [0, 1), a number. It is a share of the weights of each group of an unstructured or
        N:M selection, or of the groups of rows or columns.
    group: The unit that is dropped: a "weight", or a "row" or "column" (or ``size`` consecutive ones), whose score is
        the sum of |w g|.
    size: The number of rows or columns that are dropped together, which divides out or in.
    pattern, per: The selection for group "weight", as in magnitude pruning.
    ties: The units dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    Needs calibration inputs. Source: [molchanov2019]; summed magnitudes over groups [ma2023].
    """

    sparsity: Exact
    group: str = "weight"
    size: int = 1
    pattern: str = "unstructured"
    per: str = "tensor"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.taylor"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2),),
            "group": GROUPS,
            "size": (1, 2),
            "pattern": ("unstructured", "2:4"),
            "per": ("tensor", "row"),
        },
        exact_scores=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", share(self.sparsity, "Taylor.sparsity"))
        one_of(self.group, GROUPS, "Taylor.group")
        whole(self.size, 1, 2**20, "Taylor.size")
        one_of(self.per, ("tensor", "row"), "Taylor.per")
        one_of(self.ties, TIES, "Taylor.ties")
        selection_partition(self.pattern, self.per, self.sparsity, "Taylor")
        if self.group == "weight" and self.size != 1:
            raise InputError(f"size={self.size} with group='weight'", "size=1", "Taylor")
        if self.group != "weight" and (self.pattern, self.per) != ("unstructured", "tensor"):
            given = f"pattern={self.pattern!r}, per={self.per!r} with group={self.group!r}"
            raise InputError(given, "pattern and per with group='weight' alone", "Taylor")

    def promises(self) -> Declared:
        kept = frozenset({"mask", "n:m", "grid", "shape"})
        single = self.group == "weight"
        return Declared(
            keeps=kept | ({"factors"} if single else {"rank"}),
            deterministic=self.ties != "any",
            removes_rows=self.group == "row",
            idempotent=self.group == "row" and self.ties != "any",
        )

    def hints(self) -> Hints:
        return Hints() if self.group == "weight" else Hints(trivial_side=trivial_side(self.sparsity, self.size))

    @property
    def needs_inputs(self) -> bool:
        return True

    @property
    def unit(self) -> int:
        return self.size if self.group == "column" else super().unit

    @property
    def row_unit(self) -> int:
        return self.size if self.group == "row" else 1

    def steps(self) -> tuple[Selection, ...]:
        if self.group != "weight":
            return ()
        partition = selection_partition(self.pattern, self.per, self.sparsity, "Taylor")
        return (Selection.by_layer(importance, partition, self.sparsity, self.ties, needs_inputs=True),)

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        if self.group != "weight":
            axis = GROUPS.index(self.group) - 1
            check_size(shape[axis], self.size, f"{self.group}s", str(self))

    def encode(self, layer: LayerState) -> LayerState:
        if self.group == "weight":
            return super().encode(layer)
        self.check(layer.weight.shape)
        scores, axis = importance(layer), GROUPS.index(self.group) - 1
        lines = scores if axis == 0 else scores.T
        sums = [Sum(lines[k : k + self.size].ravel()) for k in range(0, len(lines), self.size)]
        return remove(layer, least(sums, self.sparsity, self.size, self.ties, layer.choices), axis)

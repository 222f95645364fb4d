"""Magnitude pruning: the weights of least magnitude are set to zero [han2015]."""

from __future__ import annotations

from typing import ClassVar

from compcomp.language.parameters import ExactOrAny, one_of, parametrized, selection_partition, sparsity
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Declared, Technique
from compcomp.terms import TIES, Abs, Term

SOURCES = ("current", "dense")


def score(element: Element) -> Term:
    """Return |w|."""
    return Abs(element.weight)


def dense_score(element: Element) -> Term:
    """Return |w0|, where w0 is the weight in the dense layer."""
    return Abs(element.reference)


@parametrized
class Magnitude(Technique):
    """Set the ``int(n * sparsity)`` weights of least magnitude in every group of n to zero.

    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row.
    per: The group of an unstructured selection, "tensor" or "row".
    ties: The weights dropped among equal magnitudes at the threshold: "first" (lowest index), "all" or "any".
    of: The weights whose magnitudes are compared: "current", or "dense" for the same weights of the dense layer.
    Source: [han2015]; N:M [mishra2021].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    per: str = "tensor"
    ties: str = "first"
    of: str = "current"

    kernel_module: ClassVar[str] = "compcomp.kernels.magnitude"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3")}

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "Magnitude.sparsity"))
        one_of(self.per, ("tensor", "row"), "Magnitude.per")
        one_of(self.ties, TIES, "Magnitude.ties")
        one_of(self.of, SOURCES, "Magnitude.of")
        selection_partition(self.pattern, self.per, self.sparsity, "Magnitude")

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}), deterministic=self.ties != "any")

    def steps(self) -> tuple[Selection]:
        partition = selection_partition(self.pattern, self.per, self.sparsity, "Magnitude")
        return (Selection(dense_score if self.of == "dense" else score, partition, self.sparsity, self.ties),)

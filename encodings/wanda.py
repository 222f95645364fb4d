"""Wanda: prune by weight magnitude times input norm [sun2024]."""

from __future__ import annotations

from typing import ClassVar

from compcomp.language.parameters import ExactOrAny, one_of, parametrized, selection_partition, sparsity
from compcomp.language.steps import Element, Selection
from compcomp.language.technique import Declared, Technique
from compcomp.terms import TIES, Term


def score(element: Element) -> Term:
    """Return (|w| |x|_2)^2: the square orders weights as the score itself does, and needs no root."""
    return element.weight * element.weight * element.norm2


@parametrized
class Wanda(Technique):
    """Set the ``int(n * sparsity)`` weights of least |w_ij| |x_j|_2 in every group of an output row to zero.

    sparsity: The share of weights to drop, in [0, 1), or Any in claims.
    pattern: "unstructured" (the group is the row), or "n:m" to keep n of every m consecutive weights.
    ties: The weights dropped among equal scores at the threshold: "first" (lowest index), "all" or "any".
    Needs calibration inputs. Source: [sun2024].
    """

    sparsity: ExactOrAny
    pattern: str = "unstructured"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.wanda"
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"sparsity": ("1/2", "1/4", "3/4", "1/3")}

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", sparsity(self.sparsity, "Wanda.sparsity"))
        one_of(self.ties, TIES, "Wanda.ties")
        selection_partition(self.pattern, "row", self.sparsity, "Wanda")

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}), deterministic=self.ties != "any")

    def steps(self) -> tuple[Selection]:
        partition = selection_partition(self.pattern, "row", self.sparsity, "Wanda")
        return (Selection(score, partition, self.sparsity, self.ties, needs_inputs=True),)

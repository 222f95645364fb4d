"""Gradual magnitude pruning: a sparsity that grows in rounds [zhu2017]."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from compcomp.encodings.magnitude import Magnitude
from compcomp.language.parameters import Exact, one_of, parametrized, selection_partition, share, whole
from compcomp.language.steps import Selection
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.terms import TIES

SCHEDULES = ("cubic", "linear")


@parametrized
class GradualMagnitude(Technique):
    """Prune by magnitude in rounds t = 1 .. T to the sparsities s (1 - (1 - t / T)^3), or s t / T.

    The last round has sparsity s. Without training between the rounds the selections are nested, and the result is that
    of one round. :meth:`each_round` gives the rounds, for use with training in between.
    sparsity: s, the share of weights dropped in the end, in [0, 1), a number.
    rounds: T, 1 to 64.
    schedule: "cubic" (published) or "linear".
    pattern: "unstructured", or "n:m" to keep n of every m consecutive weights of a row in the end. A round drops m
        times its sparsity, rounded down.
    per: The group of an unstructured selection, "tensor" or "row".
    ties: The weights dropped among equal magnitudes at the threshold: "first" (lowest index), "all" or "any".
    Source: [zhu2017], with initial sparsity 0; score as [han2015].
    """

    sparsity: Exact
    rounds: int = 3
    schedule: str = "cubic"
    pattern: str = "unstructured"
    per: str = "tensor"
    ties: str = "first"

    kernel_module: ClassVar[str] = "compcomp.kernels.gradual_magnitude"
    fixtures: ClassVar[Fixtures] = Fixtures(
        values={
            "sparsity": (Fraction(1, 2), Fraction(7, 10)),
            "rounds": (3,),
            "schedule": SCHEDULES,
            "pattern": ("unstructured", "2:4"),
            "per": ("tensor", "row"),
        }
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", share(self.sparsity, "GradualMagnitude.sparsity"))
        whole(self.rounds, 1, 64, "GradualMagnitude.rounds")
        one_of(self.schedule, SCHEDULES, "GradualMagnitude.schedule")
        one_of(self.per, ("tensor", "row"), "GradualMagnitude.per")
        one_of(self.ties, TIES, "GradualMagnitude.ties")
        selection_partition(self.pattern, self.per, self.sparsity, "GradualMagnitude")

    @property
    def sparsities(self) -> tuple[Fraction, ...]:
        """The sparsity of each round."""
        power = 3 if self.schedule == "cubic" else 1
        left = (1 - Fraction(t, self.rounds) for t in range(1, self.rounds + 1))
        return tuple(self.sparsity * (1 - rest**power) for rest in left)

    def each_round(self) -> tuple[Technique, ...]:
        """Return the rounds as techniques of their own, in order: magnitude pruning to the sparsity of each.

        Under a pattern the rounds before the last are N:M as well: their sparsity keeps N weights of every M.
        """
        partition = selection_partition(self.pattern, self.per, self.sparsity, "GradualMagnitude")
        if partition.size is None:
            return tuple(Magnitude(s, per=self.per, ties=self.ties) for s in self.sparsities)
        size = partition.size
        counts = [int(size * s) for s in self.sparsities]
        return tuple(Magnitude(Fraction(k, size), pattern=f"{size - k}:{size}", ties=self.ties) for k in counts)

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask", "n:m", "shape", "grid", "factors"}), deterministic=self.ties != "any")

    def steps(self) -> tuple[Selection, ...]:
        return tuple(step for technique in self.each_round() for step in technique.steps())  # type: ignore[misc]

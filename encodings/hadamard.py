"""Hadamard rotation: mix the inputs by an orthogonal matrix of signs; the outputs do not change [ashkboos2024]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compcomp.errors import InputError
from compcomp.language.loss import LOSSES
from compcomp.language.parameters import shown, whole
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.basis import Rotation
from compcomp.layers.state import LayerState


@dataclass(frozen=True)
class Hadamard(Technique):
    """Rotate W' = W H^T / sqrt(n) on the inputs X' = H X / sqrt(n), H the Sylvester Hadamard matrix of side n.

    block: n, a power of two: every run of n consecutive input features is mixed. None stands for all features together;
        their number must be a power of two.
    The layer's outputs do not change; later techniques act on W' (out x in) and X' (in x tokens). There are no random
    signs. Masks, N:M patterns, grids and removed columns do not survive; rank and removed rows do. Two equal rotations
    cancel. Exact arithmetic raises NotExactError unless n is a power of four. Source: QuaRot [ashkboos2024], QuIP#
    [tseng2024].
    """

    block: int | None = None

    kernel_module: ClassVar[str] = "compcomp.kernels.hadamard"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"block": (None, 1, 4)})

    def __post_init__(self) -> None:
        if self.block is not None and not _power_of_two(whole(self.block, 1, 2**20, "Hadamard.block")):
            raise InputError(shown(self.block), "a power of two, or None", "Hadamard.block")

    def promises(self) -> Declared:
        return Declared(
            keeps=frozenset({"rank"}),
            zeros=frozenset({"rows"}),
            never_increases=frozenset(LOSSES),
            any_inputs=True,
            holds_reference=True,
            changes_basis=True,
            no_op=frozenset({"plain"}) if self.block == 1 else frozenset(),
            involution=True,
        )

    @property
    def unit(self) -> int:
        return self.block or 1

    def check(self, shape: tuple[int, ...]) -> None:
        columns, where = shape[1], f"{self} on a layer of shape {shape[0]}x{shape[1]} (out x in)"
        if columns % self.unit:
            raise InputError(f"{columns} features", f"features that divide into blocks of {self.unit}", where)
        if self.block is None and not _power_of_two(columns):
            raise InputError(f"{columns} features", "a power of two, or a block", where)

    def side(self, columns: int) -> int:
        """Return n for a layer with this number of input features."""
        return self.block or columns

    def encode(self, layer: LayerState) -> LayerState:
        self.check(layer.weight.shape)
        return layer.rebased(Rotation(self.side(layer.weight.shape[1])))


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0

"""Define a model as seen by techniques that act on all of its layers together.

This module does not import torch: tensors are ``Any`` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from compcomp.layers.state import LayerState


@dataclass(frozen=True)
class Outputs:
    """Hold the outputs of a model for one batch.

    Args:
        logits: (..., tokens, vocabulary), or any other output of the model.
        hidden: the input of the first block and the output of each block (batch x tokens x width). For a model without
            blocks, the output of each layer.
        real: truth values (batch x tokens), false at padding. None: there is no padding.
    """

    logits: Any
    hidden: tuple[Any, ...]
    real: Any = None


@dataclass(frozen=True)
class Part:
    """Describe the rows (out) or columns (in) of one layer that belong to the units of a group.

    Unit u has the consecutive rows or columns ``start + u * size`` to ``start + (u + 1) * size - 1``.

    Args:
        layer: the name of the layer.
        side: "out" for rows, "in" for columns.
        size: the number of rows or columns of each unit.
        start: the first row or column of unit 0.
    """

    layer: str
    side: str
    size: int = 1
    start: int = 0


@dataclass(frozen=True)
class Group:
    """Describe units that can only be removed from several layers at once, such as neurons of a feed-forward network.

    The last part is the columns that read the outputs of the units. A unit whose columns there are zero has no effect.

    Args:
        name: the name of the module that contains the layers.
        units: the number of units.
        parts: the rows and columns that belong to the units, in each layer.
    """

    name: str
    units: int
    parts: tuple[Part, ...]

    @property
    def reads(self) -> Part:
        """The columns that read the outputs of the units."""
        return self.parts[-1]


class WholeModel(Protocol):
    """Give access to a dense model, the states of its layers by name, and calibration batches.

    Kernels neither change the model nor write to a state's tensors.
    """

    @property
    def states(self) -> Mapping[str, LayerState]:
        """The states of the layers by name, as torch tensors on the device of each layer."""

    @property
    def batches(self) -> Sequence[Any]:
        """The calibration batches, on the device."""

    def forward(self, batch: Any, weights: Mapping[str, Any] | None = None) -> Outputs:
        """Return the outputs of the model for a batch, differentiable in the given weights.

        Args:
            batch: a calibration batch.
            weights: the weights (out x in) of layers by name. None: the dense model, which is the teacher.
        """

    def generated(self, seed: int) -> Sequence[Any]:
        """Return batches of continuations that the dense model samples from the beginnings of calibration sequences."""

    def neurons(self) -> Sequence[Group]:
        """Return the neurons of each feed-forward network; raise InputError if there is none."""

    def heads(self) -> Sequence[Group]:
        """Return the heads of each attention; raise InputError if there is none.

        Heads that share keys and values are one unit.
        """

    def blocks(self) -> Sequence[Sequence[str]]:
        """Return the names of the layers of each block, in order; raise InputError if there are no blocks."""

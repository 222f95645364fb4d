"""A model as techniques see it that act on all of its layers together. Knows no torch: tensors are ``Any`` here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from compcomp.layers.state import LayerState


@dataclass(frozen=True)
class Outputs:
    """What a model makes of one batch.

    ``logits``: (..., tokens, vocabulary), or whatever it puts out. ``hidden``: what goes into its first block and what
    comes out of each (batch x tokens x width); where it has no blocks what comes out of each layer. ``real``: truth
    values (batch x tokens), false at padding; None where nothing is.
    """

    logits: Any
    hidden: tuple[Any, ...]
    real: Any = None


@dataclass(frozen=True)
class Part:
    """The rows (out) or columns (in) of one layer that belong to the units of a group: ``size`` to each, in a row.

    Unit u has ``start + u * size`` to ``start + (u + 1) * size - 1``.
    """

    layer: str
    side: str
    size: int = 1
    start: int = 0


@dataclass(frozen=True)
class Group:
    """Units that can only be removed from several layers at once, such as the neurons of a feed-forward network.

    ``name``: of the module that holds the layers. ``parts``: what belongs to the units; ``reads``: the last part, the
    columns that read what the units put out. Where these are zero the units do nothing.
    """

    name: str
    units: int
    parts: tuple[Part, ...]

    @property
    def reads(self) -> Part:
        return self.parts[-1]


class WholeModel(Protocol):
    """A dense model, the states of its layers by name, and calibration batches.

    Kernels neither change the model nor write to a state's tensors.
    """

    @property
    def states(self) -> Mapping[str, LayerState]:
        """Torch tensors, on the device where each layer is."""

    @property
    def batches(self) -> Sequence[Any]:
        """Calibration batches, on the device."""

    def forward(self, batch: Any, weights: Mapping[str, Any] | None = None) -> Outputs:
        """What the model makes of a batch with these weights (out x in) in its layers, differentiable in them.

        None: the dense model, the teacher.
        """

    def generated(self, seed: int) -> Sequence[Any]:
        """Batches of what the dense model continues the beginnings of the calibration sequences with, by sampling."""

    def neurons(self) -> Sequence[Group]:
        """The neurons of each feed-forward network; InputError where none is found."""

    def heads(self) -> Sequence[Group]:
        """The heads of each attention, with all that share keys and values as one unit; InputError as before."""

    def blocks(self) -> Sequence[Sequence[str]]:
        """For each block, one after another, the names of its layers; InputError where there are no blocks."""

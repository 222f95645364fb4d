"""Add up Gram matrices call by call, and hold one matrix for layers that always see the same tensors."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK = 4096
"""Tokens multiplied at a time. It bounds the memory of the conversion to float64."""


PANEL = 192
"""The rows of a Gram matrix that are multiplied at a time."""


@dataclass(eq=False)
class _Slot:
    """One Gram matrix (in x in) and the layers it belongs to."""

    gram: Tensor
    layers: set[str]


@dataclass(eq=False)
class _Product:
    """The Gram matrix of one tensor of inputs, and the layers that have taken it so far."""

    source: weakref.ref[Tensor]
    version: int
    gram: Tensor
    layers: list[str] = field(default_factory=list)


class Grams:
    """The sum of x x^T over all inputs x of each layer.

    Query, key and value projections read one tensor object: its product is computed once. As long as layers agree in
    every batch, they hold one matrix together. A layer that differs once gets its own.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._open: list[_Product] = []

    def add(self, layer: str, inputs: Tensor, kept: Tensor | None = None) -> None:
        """Add the inputs (... x in) of one call. ``kept``: truth values (...), False for padding."""
        product = next((p for p in reversed(self._open) if _same(p, inputs) and layer not in p.layers), None)
        if product is None:
            rows = inputs.detach().reshape(-1, inputs.shape[-1]) if kept is None else inputs.detach()[kept]
            version = -1 if inputs.is_inference() else inputs._version
            product = _Product(weakref.ref(inputs), version, gram(rows))
            self._open.append(product)
        product.layers.append(layer)
        slot = self._slots.get(layer)
        if slot is not None and slot.layers == set(product.layers):
            slot.gram += product.gram
            self._open.remove(product)

    def end_batch(self) -> None:
        """Add the products that not all layers of one matrix have taken.

        Layers that differ get separate matrices here.
        """
        for product in self._open:
            takers = set(product.layers)
            fresh = takers - self._slots.keys()
            for slot in {id(s): s for s in (self._slots[name] for name in sorted(takers - fresh))}.values():
                part = slot.layers & takers
                if part == slot.layers:
                    slot.gram += product.gram
                else:
                    slot.layers -= part
                    self._assign(_Slot(slot.gram + product.gram, part))
            if fresh:
                self._assign(_Slot(product.gram, fresh))
        self._open.clear()

    def result(self) -> dict[str, Tensor]:
        """Return the exactly symmetric matrix (in x in, float64) of each layer that was called."""
        return {name: slot.gram for name, slot in self._slots.items()}

    def _assign(self, slot: _Slot) -> None:
        self._slots.update(dict.fromkeys(slot.layers, slot))


def gram(rows: Tensor) -> Tensor:
    """Return the symmetric Gram matrix (in x in) of inputs (tokens x in), on their device, added up in float64.

    In float32, a matrix of fewer tokens than features would get small eigenvalues that are pure rounding error, and a
    least-squares fit would follow them. Only the blocks of :data:`PANEL` rows on the diagonal and to the right of it
    are multiplied, up to two fifths less work than the whole matrix; the others are their mirror images.
    """
    width = rows.shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for chunk in rows.split(CHUNK):
        chunk = chunk.double()
        for start in range(0, width, PANEL):
            total[start : start + PANEL, start:].addmm_(chunk[:, start : start + PANEL].T, chunk[:, start:])
    for start in range(PANEL, width, PANEL):
        total[start : start + PANEL, :start] = total[:start, start : start + PANEL].T
    return total


def _same(product: _Product, inputs: Tensor) -> bool:
    """Return True for the same tensor, not written to since. Inference tensors do not record writes: False."""
    return product.source() is inputs and not inputs.is_inference() and product.version == inputs._version

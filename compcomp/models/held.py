"""Put other weights into a model for a while, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.layers.state import LayerState
from compcomp.models.devices import bring, choose
from compcomp.models.layers import Layer, evaluating, trains_itself
from compcomp.models.measure import effective_weight
from compcomp.models.modes import kept
from compcomp.models.snapshot import Snapshot

ModelState = dict[str, LayerState]
"""The state of each compressed layer by qualified name, with torch tensors. Never changed in place."""


class HeldModel:
    """A model, its layers by name, and the device on which it is measured (None: it stays where it is).

    ``present``: the state whose weights the model has between measurements. ``changing``: the layers whose weight may
    differ between train and eval mode.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], device: str | torch.device) -> None:
        self.model, self.layers = model, dict(layers)
        self.device = choose(model, device)
        self.present: ModelState = {}
        self._home = next(iter(self.layers.values())).parameter.device
        self.changing = _changing(model, self.layers.values())
        self._left: Snapshot | None = None
        self._rest: list[tuple[Layer, Tensor, Tensor]] = []

    def place(self) -> None:
        """Move the model to the device."""
        if self.device is not None:
            bring(self.model, self.device)

    def close(self) -> None:
        """Move the model back to the device it came from."""
        if self.device is not None and self.device != self._home:
            bring(self.model, self._home)
            self._left = None if self._left is None else self._taken()

    @contextmanager
    def holding(self, state: ModelState) -> Iterator[nn.Module]:
        """Yield the model, in eval mode, with this state's weights in it; see :meth:`unchanged`."""
        self.place()
        with self.unchanged():
            self._put(state, self.layers)
            yield self.model

    @contextmanager
    def unchanged(self, without: Iterable[Tensor] = ()) -> Iterator[None]:
        """Put the model into eval mode. Restore it afterwards, and random numbers and torch's settings too.

        ``without``: tensors that the caller restores.
        """
        self._left = self._taken(without)
        with kept():
            try:
                with evaluating(self.model):
                    yield
            finally:
                self._left.restore()
                self._put_rest()
                self._put(self.present, self.layers.keys() - self.changing)

    def write(self, state: ModelState) -> nn.Module:
        """Put this state's weights into the model for good, in its dtype, and return it.

        Raises InputError if a weight is beyond the range of that dtype; the model is then as it was.
        """
        self.place()
        for name, layer in state.items():
            check_range(name, effective_weight(layer), self.layers[name].parameter.dtype)
        with evaluating(self.model):  # modules that change their weights in eval mode undo that at the end
            self._put(state, self.layers)
        self.present = {**self.present, **state}
        self._left = self._taken()
        return self.model

    def finish(self, state: ModelState) -> None:
        """Write the weights of a state for good, after which the model is not held any more."""
        with evaluating(self.model):
            self._put(state, self.layers)
        self._left = None

    def changed(self) -> str | None:
        """Return the name of a parameter, buffer or module that others have changed since, or None."""
        if self._left is None:
            return None
        if (name := self._left.differs(self.model)) is not None:
            return name
        for layer, places, copy in self._rest:
            if not torch.equal(layer.parameter.detach()[places], copy.to(layer.parameter.device)):
                return layer.stored
        for name in self.present.keys() - self.changing:
            layer = self.layers[name]
            if not torch.equal(effective_weight(self.present[name]).to(layer.weight), layer.weight):
                return layer.stored
        return None

    def _taken(self, without: Iterable[Tensor] = ()) -> Snapshot:
        """Return a snapshot of the model, without the weights that ``present`` has."""
        known = [layer for name, layer in self.layers.items() if name not in self.changing]
        self._rest = list(_rest_of(known))
        return Snapshot(self.model, [*without, *(weight for layer in known for weight in layer.held())], self._left)

    def _put_rest(self) -> None:
        """Restore the parts of parameters that are in no layer, such as experts that are left alone."""
        with torch.no_grad():
            for layer, places, copy in self._rest:
                for parameter in layer.held():
                    if not torch.equal(parameter[places], copy.to(parameter.device)):
                        with torch.inference_mode(parameter.is_inference()):
                            parameter.detach()[places] = copy.to(parameter.device)

    def _put(self, state: ModelState, names: Collection[str]) -> None:
        """Write the weights of a state into the layers of these names."""
        with torch.no_grad():
            for name, layer in state.items():
                if name in names:
                    self.layers[name].set(effective_weight(layer))


def check_range(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    """Raise InputError if the dtype cannot hold a weight."""
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(dtype).max:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"a weight of magnitude {largest:.3g}", f"what fits into {kind}", f"layer {name}")


def _rest_of(layers: Iterable[Layer]) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yield a layer of each parameter that layers hold in part, the places that none holds, and a copy of them."""
    alone: dict[int, tuple[Layer, Tensor]] = {}
    for layer in layers:
        if layer.index is not None:
            fresh = torch.ones(len(layer.parameter), dtype=torch.bool, device=layer.parameter.device)
            _, left = alone.setdefault(id(layer.parameter), (layer, fresh))
            left[layer.index] = False
    for layer, left in alone.values():
        if bool(left.any()):
            yield layer, left, layer.parameter.detach()[left].clone()


def _changing(model: nn.Module, layers: Iterable[Layer]) -> set[str]:
    """Return the layers whose weight may differ between train and eval mode, as a module around them changes it."""
    inside = {part for module in model.modules() if trains_itself(module) for part in module.modules()}
    return {layer.name for layer in layers if not inside.isdisjoint(layer.modules)}

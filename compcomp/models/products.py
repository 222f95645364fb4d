"""Observe the inputs of weights that a module multiplies with inside its ``forward``.

Fused experts and attention do not call a module for each weight. Their ``forward`` runs here under a dispatch mode,
which sees every matrix product. A factor that lies in the memory of a layer's weight is that weight, and the other
factor holds its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compcomp.errors import InputError
from compcomp.models.changes import Changes
from compcomp.models.layers import Layer
from compcomp.models.memory import extent, is_plain

See = Callable[[str, Tensor], None]
"""Called with the name of a layer, and the inputs (tokens x in) that it is multiplied with."""

PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::mv": (0, 1),
    "aten::addmv": (1, 2),
    "aten::bmm": (0, 1),
    "aten::baddbmm": (1, 2),
}
"""The operations that multiply matrices, with the places of the two factors among their arguments."""

SPLIT = ("aten::linear", "aten::matmul", "aten::einsum")
"""Operations that consist of others, and arrive in one piece under inference mode."""

GROUPED = "aten::_grouped_mm"


@contextmanager
def watching(layers: Iterable[Layer], see: See, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
    """Pass on the inputs of layers that are multiplied inside the ``forward`` of a module (``Layer.inside``).

    Args:
        layers: The layers. Those whose modules are called with their inputs are left out.
        see: Called with each product's inputs.
        wanted: Returns False for a layer whose inputs are not needed at the time.
    """
    users: dict[nn.Module, list[Layer]] = {}
    for layer in layers:
        for module in layer.inside:
            users.setdefault(module, []).append(layer)

    def observed(own: Sequence[Layer], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        now = [layer for layer in own if wanted(layer.name)]
        if not now:
            return forward(*args, **kwargs)
        with _Products(now, see):
            return forward(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(_in_single_products(users))
        for module, own in users.items():
            stack.enter_context(forward_of(module, partial(observed, own)))
        yield


@contextmanager
def forward_of(module: nn.Module, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Let a module's forward be ``wrapper(forward, ...)`` for a while."""
    changes = Changes()
    changes.put(module, "forward", partial(wrapper, module.forward))
    try:
        yield
    finally:
        changes.undo()


@contextmanager
def _in_single_products(users: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules compute with products that can be seen: attention without its fused path, experts one by one."""
    users = list(users)
    fast = torch.backends.mha.get_fastpath_enabled()
    given: list[Any] = [getattr(module, "config", None) for module in users]
    configs = {id(config): config for config in given if hasattr(config, "_experts_implementation_internal")}
    before = [(config, config._experts_implementation_internal) for config in configs.values()]
    try:
        if any(isinstance(module, nn.MultiheadAttention) for module in users):
            torch.backends.mha.set_fastpath_enabled(False)
        for config, _ in before:
            config._experts_implementation_internal = "eager"
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config, kind in before:
            config._experts_implementation_internal = kind


class _Products(TorchDispatchMode):
    """While active, passes on the inputs of every product with the weight of one of some layers."""

    def __init__(self, layers: Sequence[Layer], see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see
        self._weights = [(layer, layer.weight, *extent(layer.weight)) for layer in layers]
        self._storages = {weight.untyped_storage().data_ptr() for _, weight, _, _ in self._weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; if it is a product, look at its factors first."""
        kwargs, name = kwargs or {}, func._schema.name
        if name in SPLIT:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        elif name in PRODUCTS:
            left, right = (args[place] for place in PRODUCTS[name])
            self._look(left, right)
        elif name == GROUPED:
            self._grouped(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
        return func(*args, **kwargs)

    def _look(self, left: Tensor, right: Tensor) -> None:
        """Look at the factors of a product (... x m x k) @ (... x k x n), or with a vector on the right."""
        right = right.unsqueeze(-1) if right.ndim < left.ndim else right
        if self._holds(right):
            self._batched(left, right)
        elif self._holds(left):
            self._batched(right.mT, left.mT)

    def _batched(self, inputs: Tensor, weight: Tensor) -> None:
        """Pass on inputs (... x tokens x k) of weights (... x k x n): one for all of a batch, or one for each."""
        if weight.ndim == 2:
            self._pass(inputs, weight)
        elif weight.stride(0) == 0 or len(weight) == 1:
            self._pass(inputs.reshape(-1, inputs.shape[-1]), weight[0])
        else:
            for own, part in zip(inputs, weight, strict=True):
                self._pass(own, part)

    def _grouped(self, inputs: Tensor, weight: Tensor, ends: Tensor | None) -> None:
        """Pass on inputs (tokens x k) that are sorted by the weight (groups x k x n) that they are for."""
        if not self._holds(weight):
            return
        if ends is None:
            self._batched(inputs, weight)
        elif inputs.ndim == 2 and weight.ndim == 3:
            starts = [0, *ends.tolist()]
            for start, end, part in zip(starts, starts[1:], weight, strict=False):
                if end > start:
                    self._pass(inputs[start:end], part)

    def _holds(self, factor: Tensor) -> bool:
        """Return True if a factor lies in memory that weights are in."""
        return is_plain(factor) and factor.untyped_storage().data_ptr() in self._storages

    def _pass(self, inputs: Tensor, factor: Tensor) -> None:
        """Pass on the inputs (tokens x k) of all weights in a factor (k x n).

        Raises InputError if the factor is the transpose of a weight, or a part of it.
        """
        begin, end = extent(factor)
        for layer, weight, start, stop in self._weights:
            if start < end and begin < stop:
                if not _is_in(weight, factor):
                    raise _misread(layer, turned=_is_in(weight.mT, factor))
                self._see(layer.name, inputs)


def _is_in(weight: Tensor, factor: Tensor) -> bool:
    """Return True if the rows of a weight (out x in) are columns of a factor (in x n), one after another."""
    (out, width), (high, along) = weight.shape, weight.stride()
    (depth, columns), (down, across) = factor.shape, factor.stride()
    if width != depth or (width > 1 and along != down) or (out > 1 and high != across):
        return False
    first, rest = divmod(weight.data_ptr() - factor.data_ptr(), weight.element_size() * (across or 1))
    return rest == 0 and 0 <= first <= columns - out


def _misread(layer: Layer, *, turned: bool) -> InputError:
    """Return the error for a weight that is used in another way than it is read. ``turned``: as its transpose."""
    given = f"a weight that the model multiplies with {'the other way round' if turned else 'in part'}"
    allowed = (
        "experts x out x in, or an attribute is_transposed of the module that says which" if turned else "all of it"
    )
    return InputError(given, f"{allowed}; or the layer in ignore", f"layer {layer.name}")

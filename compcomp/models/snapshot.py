"""Record a model, to restore it or to see whether it has changed."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.models.memory import is_plain, parts, place, same_bits, shape_of


class Snapshot:
    """Every module of a model, its contents, and the values of all tensors, as they are when this is made.

    :meth:`restore` restores parameters, buffers, submodules, hooks, modes and other attributes of each module. It also
    restores the attributes of configurations, and the memory, values, gradients and ``requires_grad`` of tensors.

    Args:
        model: The model.
        without: Tensors whose values are not copied, because the caller of ``restore`` has them. Copies are in main
            memory.
        known: An earlier snapshot. Its copies are used again if the values are still the same.
    """

    def __init__(self, model: nn.Module, without: Iterable[Tensor] = (), known: Snapshot | None = None) -> None:
        self._without = {id(tensor) for tensor in without}
        self._known = known
        self._tensors: dict[int, _Kept] = {}
        self._holders: dict[int, _Holder] = {}
        for module in model.modules():
            self._hold(module, deep=True)
        self.names = named(model)
        self.kinds = kinds(model)
        self._known = None

    def restore(self) -> None:
        """Restore everything. Values that have not changed are not written."""
        with torch.no_grad():
            for holder in self._holders.values():
                holder.restore()
            for kept in self._tensors.values():
                kept.restore()

    def differs(self, model: nn.Module) -> str | None:
        """Return the name of a parameter, buffer or module of the model that has changed, or None.

        Values, shapes, dtypes and classes are compared; modes, devices and gradients are not.
        """
        names = named(model)
        if other := sorted(names.keys() ^ self.names.keys()):
            return other[0]
        for name, tensor in names.items():
            if not self._tensors[id(self.names[name])].holds(tensor):
                return name
        now = kinds(model)
        return next((name or "model" for name, kind in self.kinds.items() if now.get(name) != kind), None)

    def _hold(self, value: Any, *, deep: bool = False) -> None:
        """Record a value: a tensor, or a module, list, dict ... with everything in it."""
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                known = None if self._known is None else self._known._tensors.get(id(value))
                self._tensors[id(value)] = _Kept(value, id(value) not in self._without, known)
            return
        if id(value) in self._holders or not (deep or _is_container(value) or _is_settings(value)):
            return
        holder = self._holders[id(value)] = _Holder(value)
        for item in holder.items():
            self._hold(item, deep=isinstance(item, nn.Module))


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under each of its names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def kinds(model: nn.Module) -> dict[str, type]:
    """Return the class of each module."""
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}


def _is_container(value: Any) -> bool:
    return type(value) in (list, dict, set, deque, OrderedDict, defaultdict)


def _is_settings(value: Any) -> bool:
    """Return True if a value is of a kind in which models keep their settings."""
    return hasattr(value, "__dict__") and type(value).__name__.endswith(("Config", "SimpleNamespace"))


class _Holder:
    """An object, or a container, and its contents."""

    def __init__(self, value: Any) -> None:
        self.value, self.kind = value, type(value)
        self.inside: Any = value if _is_container(value) else vars(value)
        self.before: Any = dict(self.inside) if isinstance(self.inside, dict) else list(self.inside)

    def items(self) -> Iterable[Any]:
        return list(self.before.values()) if isinstance(self.before, dict) else self.before

    def restore(self) -> None:
        if type(self.value) is not self.kind:
            object.__setattr__(self.value, "__class__", self.kind)
        now, before = self.inside, self.before
        if isinstance(before, dict):
            alike = list(now) == list(before) and all(now[key] is item for key, item in before.items())
        else:
            alike = len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
        if not alike:
            now.clear()
            if isinstance(before, dict) or isinstance(now, set):
                now.update(before)
            else:
                now.extend(before)


class _Kept:
    """A tensor, the memory that it is a view of, and its values."""

    def __init__(self, tensor: Tensor, copied: bool, known: _Kept | None) -> None:
        self.tensor, self.leaf, self.needed = tensor, tensor.is_leaf, tensor.requires_grad
        self.shape, self.dtype = shape_of(tensor), tensor.dtype
        self.memory = tensor.detach() if is_plain(tensor) else None
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_kept: _Kept | None = (
            None if self.grad is None else _Kept(self.grad, True, known.grad_kept if known else None)
        )
        self.copies: list[Tensor] | None = None
        if copied:
            self.copies = known.copies if known is not None and known.holds(tensor) else None
            if self.copies is None:
                self.copies = [part.cpu() if part.device.type != "cpu" else part.clone() for part in parts(tensor)]

    def holds(self, tensor: Tensor) -> bool:
        """Return True if a tensor has these values, or if no values are kept."""
        if shape_of(tensor) != self.shape or tensor.dtype != self.dtype:
            return False
        return self.copies is None or _same(self.copies, tensor)

    def restore(self) -> None:
        if self.shape is None:  # not initialised
            return
        with torch.inference_mode(self.tensor.is_inference()):
            if self.memory is not None and (not is_plain(self.tensor) or _memory(self.tensor) != _memory(self.memory)):
                self.tensor.data = self.memory
            if self.copies is not None and not _same(self.copies, self.tensor):
                for part, copy in zip(parts(self.tensor), self.copies, strict=True):
                    part.copy_(copy)
            if self.leaf and self.tensor.requires_grad != self.needed:
                self.tensor.requires_grad_(self.needed)
        if self.grad_kept is not None:
            self.grad_kept.restore()
        if self.leaf and self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad


def _memory(tensor: Tensor) -> object:
    return place(tensor) if tensor.numel() else (tensor.dtype, tensor.shape, tensor.device)


def _same(copies: list[Tensor], tensor: Tensor) -> bool:
    found = list(parts(tensor))
    return len(found) == len(copies) and all(same_bits(a, b) for a, b in zip(found, copies, strict=True))

"""A model as it is now, to bring it back or to see whether it has changed."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.models.memory import is_plain, parts, place, same_bits, shape_of


class Snapshot:
    """Every module of a model, what it holds, and the values of all tensors, as they are now.

    ``without``: tensors of which no values are copied, as whoever restores has them. Copies are in main memory.
    ``known``: an earlier snapshot, whose copies serve again where values are still the same.

    :meth:`restore` brings back parameters, buffers, submodules, hooks, modes and other attributes of each module, the
    attributes of configurations, and the memory, values, gradients and ``requires_grad`` of tensors.
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
        """Bring everything back; values that are what they were are not written."""
        with torch.no_grad():
            for holder in self._holders.values():
                holder.restore()
            for kept in self._tensors.values():
                kept.restore()

    def differs(self, model: nn.Module) -> str | None:
        """The name of a parameter, buffer or module of the model that is not what it was, or None.

        Values count, shapes, dtypes and classes; not modes, devices or gradients.
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
        """Remember a value: a tensor, or a module, list, dict ... with all that is in it."""
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
    """Every parameter and buffer under each of its names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def kinds(model: nn.Module) -> dict[str, type]:
    """The class of each module."""
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False)}


def _is_container(value: Any) -> bool:
    return type(value) in (list, dict, set, deque, OrderedDict, defaultdict)


def _is_settings(value: Any) -> bool:
    """Whether a value is what models keep their settings in."""
    return hasattr(value, "__dict__") and type(value).__name__.endswith(("Config", "SimpleNamespace"))


class _Holder:
    """An object, or a container, and what is in it."""

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
        """Whether a tensor has these values; true where none are kept."""
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

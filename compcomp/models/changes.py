"""Change a model's modules in ways that can be undone. Undoing restores the very objects that were there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compcomp.models.layers import Layer


class Changes:
    """The changes made to a model, to be undone in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._undo)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, whether it exists or not."""
        own = name in vars(owner) or (isinstance(owner, nn.Module) and name in owner._parameters)
        before = getattr(owner, name) if own else None
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before) if own else delattr(owner, name))

    def keep(self, modules: nn.ModuleList, alive: list[bool]) -> None:
        """Keep only these modules in the list, and number them anew. The list stays the same object."""
        before = modules._modules
        stay = [module for module, lives in zip(before.values(), alive, strict=True) if lives]
        modules._modules = {str(place): module for place, module in enumerate(stay)}
        self._undo.append(lambda: setattr(modules, "_modules", before))

    def shrink(self, layer: Layer, side: str, kept: Tensor) -> None:
        """Keep only these rows (side "out") or columns (side "in") of a layer, and these entries of its bias."""
        module: Any = layer.modules[0]
        which = kept.to(module.weight.device)
        axis = (0 if side == "out" else 1) if not layer.transposed else (1 if side == "out" else 0)
        self._shrink(module, "weight", which, axis)
        if side == "out" and getattr(module, "bias", None) is not None:
            self._shrink(module, "bias", which, 0)
        own = {"out": "nf", "in": "nx"} if layer.transposed else {"out": "out_features", "in": "in_features"}
        if hasattr(module, own[side]):
            self.put(module, own[side], int(which.sum()))

    def _shrink(self, module: nn.Module, name: str, which: Tensor, axis: int) -> None:
        whole: Any = getattr(module, name)
        part = whole.detach()[which] if axis == 0 else whole.detach()[:, which]
        self.put(module, name, nn.Parameter(part.contiguous().clone(), requires_grad=whole.requires_grad))

    def add(self, later: Changes) -> None:
        """Take over the changes that were made after these."""
        self._undo += later._undo

    def undo(self) -> None:
        """Undo all changes."""
        while self._undo:
            self._undo.pop()()

"""See through modules that others put around or into a model: compilers, data parallelism, adapters.

None is a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from compcomp.errors import InputError

AROUND = {
    "OptimizedModule": ("torch.", "_orig_mod"),
    "DataParallel": ("torch.nn.parallel.", "module"),
    "DistributedDataParallel": ("torch.nn.parallel.", "module"),
}
"""Modules that compute what the one inside them computes. By class: the package of the class, and the name inside."""


def _inside(module: nn.Module) -> nn.Module | None:
    for kind in type(module).__mro__:
        home, name = AROUND.get(kind.__name__, ("", ""))
        if home and kind.__module__.startswith(home):
            return module._modules.get(name)
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and data parallelism. Hooks on those wrappers may not run."""
    inner: Any = model
    while isinstance(inner, nn.Module) and (found := _inside(inner)) is not None:
        inner = found
    if not isinstance(inner, nn.Module):
        raise InputError(f"a {type(model).__name__}", "a torch.nn.Module", "model")
    return inner


def core(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the transformers model in a module, with its name there, if the module holds no other tensor.

    Otherwise return "" and the module itself. A module around a model is saved as this inner model, so that the model's
    own class loads it.
    """
    inner = unwrap(model)
    if any(map(_is_of_peft, inner.modules())):
        return "", inner
    for name, module in inner.named_modules():
        if is_from_transformers(module, "PreTrainedModel"):
            own = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
            whole = all(id(tensor) in own for tensor in [*inner.parameters(), *inner.buffers()])
            return (name, module) if whole else ("", inner)
    return "", inner


def is_from_transformers(module: nn.Module, name: str) -> bool:
    """Return True if the module is of this class of transformers, which need not be installed."""
    classes = type(module).__mro__
    return any(c.__name__ == name and c.__module__.startswith("transformers.") for c in classes)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Remove ``torch.compile`` and data parallelism around the model and its parts for the duration of the block.

    Names are then those of the parts themselves, and hooks run.
    """
    inner = unwrap(model)
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    compiled: list[tuple[nn.Module, object]] = []
    try:
        for module in list(inner.modules()):
            if (call := getattr(module, "_compiled_call_impl", None)) is not None:
                compiled.append((module, call))
                module._compiled_call_impl = None
            for name, child in module._modules.items():
                if child is not None and _inside(child) is not None:
                    replaced.append((module, name, child))
        for module, name, child in replaced:
            module._modules[name] = unwrap(child)
        yield inner
    finally:
        for module, name, child in replaced:
            module._modules[name] = child
        for module, call in compiled:
            module._compiled_call_impl = call  # type: ignore[assignment]


def named_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module under each of its names, without compilers, data parallelism and the parts of adapters.

    Adapters are those of peft, which need not be installed. Of a peft module, only the layer and the model inside
    belong to the model.
    """
    yield from _named(unwrap(model), "", False)


def _named(module: nn.Module, prefix: str, adapter: bool) -> Iterator[tuple[str, nn.Module]]:
    if not adapter:
        yield prefix, module
    foreign = _is_of_peft(module)
    for name, child in module._modules.items():
        if child is not None:
            own = adapter or (foreign and name not in _AROUND_BY_PEFT)
            yield from _named(unwrap(child), f"{prefix}.{name}" if prefix else name, own)


_AROUND_BY_PEFT = ("base_layer", "base_model", "model", "original_module")


def _is_of_peft(module: nn.Module) -> bool:
    return any(kind.__module__.split(".")[0] == "peft" for kind in type(module).__mro__)


def adapted(model: nn.Module) -> dict[nn.Module, str]:
    """Return the modules that have an adapter at work, not merged into them, with the names of the adapters."""
    found: dict[nn.Module, str] = {}
    for module in unwrap(model).modules():
        if not _is_of_peft(module):
            continue
        inner = [module._modules.get(name) for name in ("base_layer", "original_module")]
        names = _at_work(module)
        for child in inner:
            if child is not None and names:
                found.update(dict.fromkeys(child.modules(), ", ".join(names)))
    return found


def _at_work(module: nn.Module) -> list[str]:
    """Return the adapters that act next to a layer of peft, or that its next call takes out of it."""
    off, merged = bool(getattr(module, "disable_adapters", False)), bool(getattr(module, "merged", False))
    if off or merged:
        return list(map(str, getattr(module, "merged_adapters", ()))) if off and merged else []
    active = getattr(module, "active_adapters", ())
    active = [active] if isinstance(active, str) else list(active)
    holding: list[Any] = [child for child in module._modules.values() if hasattr(child, "keys")]
    known = {key for child in holding for key in child.keys()}  # noqa: SIM118
    return [name for name in active if name in known]

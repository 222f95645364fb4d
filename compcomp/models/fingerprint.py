"""Compute a text for everything that a model's results depend on: its values, its settings and its code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.models.memory import bits, parts, shape_of

PLACES = {"_name_or_path", "name_or_path", "_commit_hash", "_original_object_hash"}
"""Settings that say where a model comes from, and a hash of generation settings that each process has anew."""
OWN = {"_parameters", "_buffers", "_modules", "training"}
"""Attributes of a module that are read separately, or that do not count: the model is measured in eval mode."""


def model_fingerprint(model: nn.Module, more: Iterable[Any] = ()) -> str:
    """Return a text that is the same for two models only if they compute the same, as far as is known without a run.

    It covers all parameters and buffers (also those that are not saved), the other contents of modules (rates, shapes,
    functions, configurations), and hooks. It also covers the classes of modules, the source of classes outside of
    installed packages, and the versions of the packages.

    Args:
        model: The model.
        more: Further values that count, such as calibration batches.
    """
    found = hashlib.blake2b(digest_size=16)
    for piece in _model_pieces(model, more):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


def _model_pieces(model: nn.Module, more: Iterable[Any]) -> Iterator[bytes | memoryview]:
    seen, kinds = _Seen(), dict[type, None]()
    for name, module in model.named_modules(remove_duplicate=False):
        kinds.update(dict.fromkeys(type(module).__mro__))
        yield f"module {name} {type(module).__module__}.{type(module).__qualname__} {seen.place(module)}".encode()
        if not seen.add(module):
            continue
        for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for own, tensor in tensors.items():
                yield f"{kind} {own} {seen.place(tensor)}".encode()
                yield from _pieces(tensor, seen)
        for own in sorted(vars(module).keys() - OWN):
            yield own.encode()
            value = vars(module)[own]
            hooks = isinstance(value, dict) and "_hooks" in own  # their keys count up in a process
            yield from _pieces(list(value.values()) if hooks else value, seen)
    for used in kinds:
        yield from _code_of(used)
    yield from _pieces(list(more), seen)
    yield from _pieces([torch.__version__, sys.version, *_settings()], seen)


def _settings() -> list[str]:
    return [str(torch.get_default_dtype()), torch.get_float32_matmul_precision()]


def _pieces(value: Any, seen: _Seen) -> Iterator[bytes | memoryview]:
    """Yield the bytes that distinguish a value from others, independent of its place in memory."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{kind} {value!r}".encode()
        return
    if isinstance(value, nn.Module):  # modules of the model are read by name
        yield kind.encode()
        return
    if isinstance(value, torch.dtype | torch.device | torch.Size | torch.layout | range | slice):
        yield f"{kind} {value}".encode()
        return
    if isinstance(value, ModuleType):
        yield value.__name__.encode()
        return
    if not seen.add(value):
        yield f"again {seen.place(value)}".encode()
        return
    yield kind.encode()
    if isinstance(value, Tensor):
        yield f"{value.dtype} {shape_of(value)} {value.layout} {value.device}".encode()
        for part in parts(value):
            yield f"{part.dtype} {tuple(part.shape)}".encode()
            entries: Any = bits(part.cpu()).numpy()
            yield memoryview(entries).cast("B") if part.numel() else b""
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif isinstance(value, FunctionType):
        yield from _function_pieces(value, seen)
    elif isinstance(value, MethodType):
        yield from _pieces(value.__func__, seen)
        yield from _pieces(value.__self__, seen)
    elif isinstance(value, partial):
        yield from _pieces([value.func, value.args, value.keywords], seen)
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for key, item in value.items():
            if key not in PLACES:
                yield from _pieces(key, seen)
                yield from _pieces(item, seen)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for item in value:
            yield from _pieces(item, seen)
    elif isinstance(value, set | frozenset):
        yield "\n".join(sorted(map(repr, value))).encode()
    elif isinstance(getattr(value, "__dict__", None), dict):
        yield from _pieces({str(key): item for key, item in sorted(vars(value).items(), key=lambda x: str(x[0]))}, seen)
    elif hasattr(value, "__qualname__"):  # built in
        yield f"{getattr(value, '__module__', '')}.{value.__qualname__}".encode()
    else:
        try:
            reduced = value.__reduce_ex__(2)  # the parts that it would be made from again
        except Exception:  # only its class can be distinguished
            yield b"?"
            return
        if not isinstance(reduced, str):
            reduced = [*reduced[:3], *(list(items) for items in reduced[3:5] if items is not None)]
        yield from _pieces(reduced, seen)


def _function_pieces(function: FunctionType, seen: _Seen) -> Iterator[bytes | memoryview]:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    yield from _bytecode(function.__code__)
    yield from _pieces([function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        try:
            yield from _pieces(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            yield b"empty"


def _bytecode(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr([code.co_names, code.co_varnames, code.co_freevars]).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        elif not isinstance(constant, frozenset):
            yield repr(constant).encode()


def _code_of(kind: type) -> Iterator[bytes | memoryview]:
    """Yield the version of the installed package of a class, or the source of a class outside of packages."""
    package = kind.__module__.partition(".")[0]
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if package in ("builtins", "torch"):
        return
    try:
        yield f"{package} {importlib.metadata.version(package)}".encode()
        if "site-packages" in str(getattr(sys.modules.get(package), "__file__", "")):
            return
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        yield inspect.getsource(kind).encode()
    except (OSError, TypeError):  # defined interactively: the code of its methods
        for name, member in sorted(vars(kind).items()):
            if isinstance(member, FunctionType):
                yield name.encode()
                yield from _function_pieces(member, _Seen())


class _Seen:
    """Objects by identity, in the order of their first use.

    They are kept alive so that no other object gets their address.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, Any]] = {}

    def add(self, value: Any) -> bool:
        """Return True if the object is new."""
        new = id(value) not in self._places
        if new:
            self._places[id(value)] = len(self._places), value
        return new

    def place(self, value: Any) -> int | None:
        return self._places.get(id(value), (None, None))[0]

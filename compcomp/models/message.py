"""Turn objects into messages to other processes whose tensors go by path: they are written to safetensors files.

The message itself is what executors send: the bytes that pickle makes of classes, functions and settings. It is never
written to a file. Files hold stretches of memory as bytes, so tensors that share memory share it on the other side too.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compcomp.models.memory import is_plain

SHARD = 2**30
"""Bytes of tensors from which on another file is begun. One file is in memory twice while it is written."""


def pack(value: Any, path: Path) -> bytes:
    """Return a message that :func:`unpack` reads in another process which has the same files.

    Args:
        value: Any object that can be pickled. Functions and classes that no file defines are sent whole.
        path: The beginning of the names of the files that receive the tensors.

    Raises:
        Exception: The value holds something that no other process can have, or a file cannot be written.
    """
    memory, message = _Writing(path), io.BytesIO()
    _Pickler(message, memory).dump(value)
    memory.write()
    return message.getvalue()


def unpack(message: bytes, device: torch.device) -> Any:
    """Return the object in a message of :func:`pack`, with tensors in memory of their own.

    Args:
        message: The message.
        device: The device for tensors that the sender did not have on its CPU.
    """
    with _Reading.of(device):
        return pickle.loads(message)


class _Writing:
    """The stretches of memory that a message refers to, each with its place: a file and a name in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.files: list[dict[str, torch.UntypedStorage]] = [{}]
        self.places: dict[int, tuple[str, str]] = {}

    def place(self, tensor: Tensor) -> tuple[str, str]:
        """Return the file and the name of the memory of a tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.places:
            if self.size and self.size + storage.nbytes() > SHARD:
                self.files.append({})
                self.size = 0
            name = str(len(self.files[-1]))
            self.files[-1][name] = storage
            self.size += storage.nbytes()
            self.places[storage._cdata] = self._file(len(self.files) - 1), name
        return self.places[storage._cdata]

    def write(self) -> None:
        """Write the files."""
        for number, storages in enumerate(self.files):
            if storages:
                save_file({name: _bytes(storage).cpu() for name, storage in storages.items()}, self._file(number))

    def _file(self, number: int) -> str:
        return f"{self.path}-{number}.safetensors"


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickle everything but the contents of plain tensors."""

    def __init__(self, message: io.BytesIO, memory: _Writing) -> None:
        super().__init__(message)
        self._memory = memory

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_plain(value) or value.is_conj() or value.is_neg():
            return super().reducer_override(value)
        path, name = self._memory.place(value)
        layout = value.device.type == "cpu", value.dtype, tuple(value.shape), value.stride(), value.storage_offset()
        needed, kind = value.requires_grad, isinstance(value, nn.Parameter)
        return _tensor, (path, name, *layout, needed, kind), vars(value) or None, None, None, _set_attributes


class _Reading:
    """The files of a message that is being read, and the memory that was read from them."""

    current: ContextVar[_Reading] = ContextVar("current")

    def __init__(self, device: torch.device, stack: ExitStack) -> None:
        self.device, self.stack = device, stack
        self.files: dict[str, Any] = {}
        self.found: dict[tuple[str, str], torch.UntypedStorage] = {}

    @classmethod
    @contextmanager
    def of(cls, device: torch.device) -> Iterator[None]:
        """Make tensors that are read meanwhile share their memory."""
        with ExitStack() as stack:
            token = cls.current.set(cls(device, stack))
            try:
                yield
            finally:
                cls.current.reset(token)

    def storage(self, path: str, name: str, cpu: bool) -> torch.UntypedStorage:
        """Return the memory of this name, copied to where any dtype may begin."""
        if (path, name) not in self.found:
            if path not in self.files:
                self.files[path] = self.stack.enter_context(safe_open(path, "pt"))
            device = torch.device("cpu") if cpu else self.device
            self.found[path, name] = self.files[path].get_tensor(name).to(device, copy=True).untyped_storage()
        return self.found[path, name]


def _tensor(
    path: str,
    name: str,
    cpu: bool,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    needed: bool,
    parameter: bool,
) -> Tensor:
    storage = _Reading.current.get().storage(path, name, cpu)
    found = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)
    return nn.Parameter(found, requires_grad=needed) if parameter else found.requires_grad_(needed)


def _set_attributes(tensor: Tensor, attributes: dict[str, Any]) -> None:
    tensor.__dict__.update(attributes)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """Return the bytes of a stretch of memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

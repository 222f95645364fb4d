"""Open the bench of a model in other processes: the model, its calibration and ``evaluate``, with tensors by path."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compcomp.errors import InputError
from compcomp.models.claimed import claimed
from compcomp.models.held import ModelState
from compcomp.models.message import pack, unpack
from compcomp.models.modes import Process, kept
from compcomp.models.states import with_given

FORGET = 5.0
"""Seconds after which a process looks again whether the files of its bench are still there."""


@dataclass(frozen=True)
class Contents:
    """Hold all that a bench is made from. Objects that several of these refer to stay one object.

    Attributes:
        kind: The class, :class:`compcomp.models.bench.ModelBench`, which this module does not import.
        arguments: Arguments of the class.
        dense: The dense state, with what the layers have seen.
        evaluation: The user's modes, and the names of the metrics that ``evaluate`` has given before.
        process: Random states and settings of the sending process, under which every model is evaluated.
    """

    kind: Any
    arguments: dict[str, Any]
    dense: ModelState
    evaluation: tuple[Any, tuple[str, ...]]
    process: Process


class Sent:
    """Open a bench like the given one in any process that has the same files. It can be pickled.

    A process opens one bench at a time and keeps it until its files are gone. A lock keeps its threads apart, because
    a bench changes its model and settings of the process.

    Args:
        bench: The bench, whose dense state is known. In this process it is used itself.
        contents: Its contents.
        directory: Receives the tensors. All processes have to see it under this path.

    Raises:
        InputError: Something cannot be sent.
    """

    def __init__(self, bench: Any, contents: Contents, directory: Path) -> None:
        self.bench = bench
        self.name, self.directory = uuid.uuid4().hex, str(directory)
        self.device = bench.device
        try:
            self.message = pack(contents, directory / "bench")
        except Exception as error:
            raise InputError(
                _culprit(contents, directory, error), "what other processes can have", "executor"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "bench": None}

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield the bench, under the random states and settings of the process that made it."""
        if self.bench is not None:
            yield self.bench
            return
        with _LOCK, kept():
            if _open.name != self.name:
                _open.close()
                _open.bench, _open.process = self._made()
                _open.name = self.name
                threading.Thread(target=_forget, args=(self.name, self.directory), daemon=True).start()
            assert _open.bench is not None and _open.process is not None
            _open.process.set(_open.bench.device)
            yield _open.bench

    def _made(self) -> tuple[Any, Process]:
        own = claimed(self.device)
        contents: Contents = unpack(self.message, own)
        bench = contents.kind(**contents.arguments, device=own)
        bench.resume(contents.dense, *contents.evaluation)
        return bench, contents.process


@dataclass
class _Open:
    """The bench that is open in this process."""

    name: str = ""
    bench: Any = None
    process: Process | None = None

    def close(self) -> None:
        self.name, self.bench, self.process = "", None, None


_open, _LOCK = _Open(), threading.RLock()


def _forget(name: str, directory: str) -> None:
    """Close a bench once its files are gone, as they are at the end of a search."""
    while os.path.isdir(directory):
        time.sleep(FORGET)
    with _LOCK:
        if _open.name == name:
            _open.close()


def _culprit(contents: Contents, directory: Path, error: Exception) -> str:
    """Return which part of the contents cannot be sent, and why."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    for part in ("evaluate", "model", "calibration"):
        try:
            pack(contents.arguments.get(part), directory / part)
        except Exception:
            return f"{part} cannot be sent ({reason})"
    return f"the bench cannot be sent ({reason})"


def pack_state(state: ModelState, path: Path) -> bytes:
    """Return a message with a state, without what its layers are given. Its tensors are in files from this path on."""
    nothing: dict[str, Any] = dict.fromkeys(("reference", "gram", "inputs", "reference_inputs", "magnitudes"))
    return pack({name: replace(layer, **nothing) for name, layer in state.items()}, path)


def unpack_state(message: bytes, dense: ModelState, device: torch.device) -> ModelState:
    """Return the state in a message of :func:`pack_state`, with what the layers of the dense state are given."""
    found: ModelState = unpack(message, device)
    return {name: with_given(layer, dense[name]) for name, layer in found.items()}

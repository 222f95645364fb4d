"""Set and restore torch's modes around a call: gradients, inference, autocast, random numbers and similar settings."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Modes:
    """The modes of torch in this thread. ``autocast``: for each kind of device, if it is on, and its dtype."""

    inference: bool = False
    grad: bool = True
    autocast: tuple[tuple[str, bool, torch.dtype | None], ...] = (("cpu", False, None), ("cuda", False, None))

    @classmethod
    def now(cls) -> Modes:
        """Return the modes that are set now."""
        found = []
        for kind in ("cpu", "cuda"):
            on = torch.is_autocast_enabled(kind)
            found.append((kind, on, torch.get_autocast_dtype(kind) if on else None))
        return cls(torch.is_inference_mode_enabled(), torch.is_grad_enabled(), tuple(found))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Set these modes, and restore the earlier ones afterwards, whatever is set in between."""
        grad = torch.is_grad_enabled()
        torch.clear_autocast_cache()  # an outer autocast's cache holds earlier weights
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, on, dtype in self.autocast:
                if on or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=on))
            try:
                yield
            finally:
                torch.clear_autocast_cache()
        torch.set_grad_enabled(grad)


PLAIN = Modes()
"""The modes of the library's own work, wherever it is called."""


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, run under :data:`PLAIN` modes even inside ``inference_mode`` or ``autocast``."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with PLAIN.on():
            return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Devices:
    """The devices that torch takes in this thread where none is given.

    Attributes:
        default: That of new tensors, as ``torch.set_default_device`` and ``with torch.device(...)`` set it.
        current: The number of the current CUDA device, None while CUDA is not in use.
    """

    default: torch.device
    current: int | None

    @classmethod
    def now(cls) -> Devices:
        """Return the devices of this thread."""
        return cls(torch.get_default_device(), torch.cuda.current_device() if _cuda() else None)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Take these devices, in a thread that has taken none."""
        with ExitStack() as stack:
            if self.current is not None:
                stack.enter_context(torch.cuda.device(self.current))
            if self.default.type != "cpu":
                stack.enter_context(self.default)
            yield


@dataclass(frozen=True)
class Process:
    """The random states and settings of a process, for another one. The number of threads is each one's own.

    Attributes:
        random: The states of torch on the CPU, of Python, of numpy, and of torch on the model's CUDA device.
        settings: The values of :data:`_SETTINGS`.
    """

    random: tuple[Any, Any, Any, Any]
    settings: tuple[Any, ...]

    @classmethod
    def now(cls, device: torch.device) -> Process:
        """Return those of this process.

        Args:
            device: The device of the model.
        """
        numpy: Any = sys.modules.get("numpy")
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None, on_device
        return cls(states, tuple(read() for read, _ in _SETTINGS))

    def set(self, device: torch.device) -> None:
        """Take these in this process, whose model is on this device."""
        state, own, arrays, on_device = self.random
        torch.set_rng_state(state)
        random.setstate(own)
        if arrays is not None:
            import numpy

            numpy.random.set_state(arrays)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        for (read, write), value in zip(_SETTINGS, self.settings, strict=True):
            if write is not torch.set_num_threads and read() != value:
                write(value)


@contextmanager
def random_kept() -> Iterator[None]:
    """Restore random states at the end: torch's on every device, numpy's and Python's own."""
    numpy: Any = sys.modules.get("numpy")
    states = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
        *([(numpy.random.set_state, numpy.random.get_state())] if numpy else []),
        *([(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())] if _cuda() else []),
    ]
    try:
        yield
    finally:
        for write, state in states:
            write(state)


@contextmanager
def kept() -> Iterator[None]:
    """Restore random states and settings of the process at the end: torch's, numpy's and Python's own."""
    settings = [(read, write, read()) for read, write in _SETTINGS]
    try:
        with random_kept():
            yield
    finally:
        for read, write, value in settings:
            if read() != value:
                write(value)


def _cuda() -> bool:
    """Return True if CUDA is in use."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(value: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = value


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (_cudnn, _set_cudnn),
)

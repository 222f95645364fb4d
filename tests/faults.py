"""Let the changes of files under a folder fail from the k-th on, or end the process at the k-th."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch

from compcomp.models import backup, save, stream

GROWING = ("open", "os.mkdir", "os.link", "half a file", "shutil.copyfile")
"""The changes that a full disk does not allow."""
CHANGING = (*GROWING, "os.rename", "os.remove", "os.rmdir", "os.chmod", "exchange", "exchanged", "whole file")
"""All changes, by the names that Python's audit events have for them, and those that it has no event for."""

_now: list[Moments] = []


class Moments:
    """Counts the changes of files under a folder, and acts on each: ``act`` gets its number and its name."""

    def __init__(self, folder: Path, act: Callable[[int, str], None]) -> None:
        self.folder, self.act = str(folder), act
        self.names: list[str] = []

    def meet(self, name: str) -> None:
        self.names.append(name)
        self.act(len(self.names) - 1, name)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if not _now or event not in CHANGING:
        return
    if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
        return
    places = [os.fspath(arg) for arg in args if isinstance(arg, str | os.PathLike)]
    if any(str(place).startswith(_now[-1].folder) for place in places):
        now = _now[-1]
        now.meet("done.json" if event == "os.rename" and str(places[-1]).endswith("done.json") else event)


sys.addaudithook(_heard)


@contextmanager
def changing(folder: Path, act: Callable[[int, str], None]) -> Iterator[Moments]:
    """Let ``act`` be called at each change of files under a folder. Tensors are written in two halves."""
    moments = Moments(folder, act)
    plain, exchange = safetensors.torch.save_file, save._exchange

    def halves(tensors: Any, path: Any, *args: Any, **more: Any) -> None:
        plain(tensors, path, *args, **more)
        if str(path).startswith(moments.folder):
            whole = Path(path).read_bytes()
            _now.clear()
            Path(path).write_bytes(whole[: len(whole) // 2])
            _now.append(moments)
            moments.meet("half a file")
            _now.clear()
            Path(path).write_bytes(whole)
            _now.append(moments)
            moments.meet("whole file")

    def exchanging(one: Path, other: Path) -> None:
        moments.meet("exchange")
        exchange(one, other)
        moments.meet("exchanged")

    modules: list[Any] = [stream, backup, save]
    for module in modules:
        module.save_file = halves
    save._exchange = exchanging
    _now.append(moments)
    try:
        yield moments
    finally:
        _now.clear()
        for module in modules:
            module.save_file = plain
        save._exchange = exchange


def full_from(first: int) -> Callable[[int, str], None]:
    """A disk that is full from this moment on."""

    def act(number: int, name: str) -> None:
        if number >= first and name in GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return act


def killed_at(moment: int) -> Callable[[int, str], None]:
    """The end of the process at this moment."""

    def act(number: int, name: str) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def in_a_process(run: Callable[[], None]) -> int:
    """Run a function in a copy of this process, and return how that ended, as ``os.waitstatus_to_exitcode`` says.

    This process must have no other threads.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def without_exchange() -> Iterator[None]:
    """Let the system have no way to exchange two folders in one step."""
    plain, ctypes.CDLL = ctypes.CDLL, None  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        ctypes.CDLL = plain  # type: ignore[misc]

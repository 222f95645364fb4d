"""Give each worker process of a machine a CUDA device of its own, as far as they go round."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

import torch

_held: dict[int, IO[str]] = {}
"""The devices that this process has claimed, each with its locked file."""


def claimed(like: torch.device) -> torch.device:
    """Return the device for this process: a CUDA device that no other process has claimed if ``like`` is one.

    A process keeps its device until it ends. If all are claimed, or there is only one, the current one is shared. For
    other devices the result is ``like``.
    """
    if like.type != "cuda":
        return like
    number = claim(torch.cuda.device_count(), Path(tempfile.gettempdir()))
    return torch.device("cuda", torch.cuda.current_device() if number is None else number)


def claim(count: int, directory: Path) -> int | None:
    """Return the number of a device, below ``count``, that only this process has. None if there is none to be had.

    The system unlocks a file when its process ends, however it ends.

    Args:
        count: The number of devices.
        directory: A directory of this machine, where each device has a file.
    """
    if _held:
        return next(iter(_held))
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    for number in range(count):
        name = visible.split(",")[number].strip() if visible else str(number)
        try:
            file = open(directory / f"compcomp-{os.getuid()}-cuda-{name}.lock", "a")  # noqa: SIM115
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _held[number] = file
        return number
    return None

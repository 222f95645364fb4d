"""Read the text of the embedded model: Python source from the running interpreter's own standard library.

Every Python installation has this text, so nothing is downloaded and nothing is shipped. It differs a little from one
Python version to the next; results are comparable within one version. Which files are held out depends only on their
names, so a file held out of the shipped model's training is held out in every version.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT_ONE_IN = 20
LEAST_BYTES = 1_000_000
EXCLUDED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "encodings",  # character tables: generated, and nearly all alike
        "pydoc_data",  # one generated file of prose
    }
)


def source_files() -> list[Path]:
    """List the standard library's ``*.py`` files, sorted by relative path, without its tests.

    Raises ValueError if the interpreter ships no (or hardly any) library source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        # Pruned on the way down: site-packages may hold a hundred times as many files as the library.
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        # _sysconfigdata_* records how and where the interpreter was built.
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        found += [Path(folder, name).relative_to(root) for name in names]
    found.sort(key=lambda relative: relative.as_posix())
    size = sum((root / relative).stat().st_size for relative in found)
    if size < LEAST_BYTES:
        raise ValueError(
            f"the embedded model's text is the standard library's source, and {root} holds only "
            f"{len(found)} *.py files ({size} bytes; at least {LEAST_BYTES} are needed)"
        )
    return [root / relative for relative in found]


def _join(paths: list[Path]) -> bytes:
    # Line ends are those of the source repository, so that the text is the same on every platform.
    return b"".join(path.read_bytes().replace(b"\r\n", b"\n") for path in paths)


def _is_held_out(path: Path) -> bool:
    name = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
    return zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=1)
def training_bytes() -> bytes:
    """Return the training text: every source file that is not held out, one after another (about 9 MB).

    Raises ValueError if the interpreter ships no library source.
    """
    return _join([path for path in source_files() if not _is_held_out(path)])


@lru_cache(maxsize=1)
def held_out_bytes() -> bytes:
    """Return the held-out text: one source file in 20, one after another (about 0.5 MB).

    Raises ValueError if the interpreter ships no library source.
    """
    return _join([path for path in source_files() if _is_held_out(path)])


def windows(data: bytes, length: int = 256, count: int | None = None, seed: int | None = 0) -> Tensor:
    """Cut ``count`` windows of ``length`` bytes out of ``data``. Equal arguments give equal windows.

    Args:
        data: The text.
        length: Bytes in a window.
        count: The number of windows. None cuts the whole text into adjacent windows and leaves out the remainder at its
            end.
        seed: With a seed, windows start at random places. With None, they are spread evenly from the first byte to the
            last.

    Returns:
        int64 of shape (count, length) with values 0 to 255.

    Raises:
        ValueError: ``length`` or ``count`` is below 1, or ``data`` is shorter than one window.
    """
    import torch

    if length < 1 or length > len(data):
        raise ValueError(f"length must be between 1 and the text's {len(data)} bytes, got {length}")
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1 (or None for the whole text), got {count}")
    room = len(data) - length
    if count is None:
        starts = torch.arange(len(data) // length, device="cpu") * length
    elif seed is None:
        starts = torch.arange(count, device="cpu") * room // max(count - 1, 1)
    else:
        starts = torch.randint(room + 1, (count,), generator=torch.Generator().manual_seed(seed), device="cpu")
    # frombuffer warns about memory it may not write to, and bytes are such memory.
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return text[starts[:, None] + torch.arange(length, device="cpu")].long()

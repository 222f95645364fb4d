"""Read tensors of safetensors files by rows, without loading a file, and name what is wrong with a damaged one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compcomp.errors import InputError
from compcomp.formats.numbers import SIZES, Array, decoded

WHERE = "inspect"
FORMATS = "safetensors, GGUF, or a folder that holds them"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that are pickles: loading them can run code, so they are never opened."""
LONGEST_HEADER = 100_000_000
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """Locate one tensor in a file.

    Args:
        path: the file.
        dtype: its name in safetensors, such as ``BF16``.
        shape: its sizes.
        start: the position of its first byte in the file.
        nbytes: its bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def array(self) -> Array:
        """Return all numbers in the tensor's shape."""
        return decoded(self.raw(), self.dtype).reshape(self.shape)

    def rows(self, first: int, last: int) -> Array:
        """Return the rows ``first`` to ``last - 1`` of the tensor, seen as a matrix of its last axis."""
        width = self.shape[-1] if self.shape else 1
        size = self.nbytes // max(1, math.prod(self.shape[:-1]))
        return decoded(self.raw(first * size, last * size), self.dtype).reshape(last - first, width)

    def raw(self, first: int = 0, last: int | None = None) -> bytes:
        """Return bytes ``first`` to ``last - 1`` of the tensor; by default all."""
        count = (self.nbytes if last is None else last) - first
        with self.path.open("rb") as file:
            file.seek(self.start + first)
            found = file.read(count)
        if len(found) < count:
            raise InputError(f"{str(self.path)!r}, which ends within a tensor", "a complete file", WHERE)
        return found


Tensors = Mapping[str, Tensor]


def header_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file by name.

    Raises:
        InputError: The file is not safetensors, is damaged, or was cut off.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            head = start + file.read(64)
            _check_start(path, head, size, length)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise InputError(f"{str(path)!r} ({error.strerror})", "a file that can be read", WHERE) from None
    try:
        header = json.loads(text)
        found = {
            name: Tensor(path, str(about["dtype"]), tuple(map(int, about["shape"])), *_span(about, 8 + length))
            for name, about in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{str(path)!r}, whose header cannot be read", "a safetensors file", WHERE) from None
    for name, tensor in found.items():
        expected = math.prod(tensor.shape) * SIZES.get(tensor.dtype, 0)
        if min(tensor.shape, default=0) < 0 or tensor.start < 8 + length or tensor.nbytes < 0:
            raise InputError(f"{str(path)!r}, whose tensor {name!r} has no place in it", "a safetensors file", WHERE)
        if tensor.dtype in SIZES and expected != tensor.nbytes:
            held = f"{tensor.nbytes} bytes for {list(tensor.shape)} of {tensor.dtype}"
            raise InputError(f"{str(path)!r}, whose tensor {name!r} has {held}", f"{expected} bytes", WHERE)
    end = max((tensor.start + tensor.nbytes for tensor in found.values()), default=8 + length)
    if end > size:
        raise InputError(f"{str(path)!r}, which was cut off: {size} of {end} bytes are there", "a complete file", WHERE)
    return found


def _span(about: Mapping[str, Any], base: int) -> tuple[int, int]:
    first, last = map(int, about["data_offsets"])
    return base + first, last - first


def _check_start(path: Path, head: bytes, size: int, length: int) -> None:
    """Raise InputError if a file does not begin as safetensors does, with what it is if that is known."""
    signs = {
        b"GGUF": "GGUF under another name",
        b"PK\x03\x04": "a zip archive, such as torch.save writes (a pickle, which is never opened)",
        b"\x80": "a pickle, which is never opened",
        b"version https://git-lfs": "the pointer that Git LFS leaves in place of a file",
        b"<": "a page of HTML or XML",
    }
    if head[8:9] != b"{":  # the header is JSON
        for sign, kind in signs.items():
            if head.startswith(sign):
                raise InputError(f"{str(path)!r}, which is {kind}", FORMATS, WHERE)
        raise InputError(f"{str(path)!r}, which is not safetensors", FORMATS, WHERE)
    if length > LONGEST_HEADER or 8 + length > size:
        raise InputError(
            f"{str(path)!r}, which was cut off: its header alone has {length} bytes", "a complete file", WHERE
        )


def of_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Return the tensors of several files by name; raise InputError if two files hold one name."""
    found: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in header_of(path).items():
            if name in found:
                both = f"{found[name].path.name} and {path.name}"
                raise InputError(f"two tensors named {name!r}, in {both}", "one tensor of each name", WHERE)
            found[name] = tensor
    return found


def of_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model's folder by name, of all shards; {} if it has no safetensors.

    Raises:
        InputError: A shard is missing, or a file is damaged.
    """
    index = folder / INDEX
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise InputError(f"{str(index)!r} without a weight_map", "names of tensors and their files", WHERE)
        named = sorted(set(places.values()))
        _check_shards(folder, named, INDEX)
        found = of_files(folder / name for name in named)
        for name, place in places.items():
            if name not in found or found[name].path.name != place:
                raise InputError(f"{INDEX}, which names {name!r} in {place}", "tensors that are there", WHERE)
        return found
    if (folder / "model.safetensors").is_file():
        return header_of(folder / "model.safetensors")
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("components"))
    for path in paths:
        if part := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", path.name):
            shards = [f"{part[1]}-{number:05d}-of-{part[3]}.safetensors" for number in range(1, int(part[3]) + 1)]
            _check_shards(folder, shards, path.name)
    return of_files(paths)


def _check_shards(folder: Path, names: Iterable[str], source: str) -> None:
    for name in names:
        if Path(name).name != name:  # an index may not point out of its folder
            raise InputError(f"{source}, which names {name!r}", "files of the same folder", WHERE)
        if not (folder / name).is_file():
            raise InputError(f"{str(folder)!r} without {name}, which {source} asks for", "all shards", WHERE)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; raise InputError if it has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} ({str(error)[:80]})", "a JSON file", WHERE) from None
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r}, which holds no object", "a JSON object", WHERE)
    return found


def needed(tensors: Tensors, prefix: str, *names: str) -> list[Tensor]:
    """Return the tensors of a layer by the last parts of their names; raise InputError for the first one missing."""
    for name in names:
        if f"{prefix}.{name}" not in tensors:
            raise InputError(f"{prefix!r} without its tensor {name!r}", f"all of {', '.join(names)}", WHERE)
    return [tensors[f"{prefix}.{name}"] for name in names]

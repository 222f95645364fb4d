"""Open a checkpoint: find out what a file or folder holds, by its content, and list its layers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compcomp.errors import InputError
from compcomp.formats import awq, bitsandbytes, compressed_tensors, dense, gguf, gptq, own, peft
from compcomp.formats.stored import Contents, Layer, total
from compcomp.formats.tensors import FORMATS, INDEX, PICKLES, WHERE, Tensor, header_of, of_folder, read_json

METHODS = {
    "compressed-tensors": compressed_tensors.FORMAT,
    "gptq": gptq.FORMAT,
    "awq": awq.FORMAT,
    "bitsandbytes": bitsandbytes.FORMAT,
}
"""The formats that ``quant_method`` of a configuration names."""


def opened(path: Path) -> Contents:
    """Return the layers of a checkpoint. Only headers are read.

    Nothing in it is executed: pickles are refused without being opened.

    Raises:
        InputError: There is nothing to read, or a file is damaged, of another format, or not what its name says.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise InputError(f"{str(path)!r}, which is not there", FORMATS, WHERE)
    return _of_file(path)


def _of_folder(folder: Path) -> Contents:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if peft.CONFIG in names and INDEX not in names and "model.safetensors" not in names:
        return peft.contents(folder)
    if INDEX in names or any(name.endswith(".safetensors") for name in names):
        tensors = of_folder(folder)
        if tensors:
            found = _of_tensors(tensors, _config(folder))
            if own.ABOUT in names:
                found.layers, differing = own.described(folder, found.layers)
                found.problems += differing
                found.format = f"compcomp, {found.format}"
            return _checked(found, folder)
    files = [name for name in names if name.endswith(".gguf")]
    if len(files) == 1:
        return _of_file(folder / files[0])
    if files:
        raise InputError(f"{str(folder)!r} with {len(files)} GGUF files", "the path of one of them", WHERE)
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        given = f"{str(folder)!r}, whose weights are pickles ({pickles[0]}), which can run code and are never opened"
        raise InputError(given, FORMATS, WHERE)
    raise InputError(f"{str(folder)!r}, which holds no weights", FORMATS, WHERE)


def _of_file(path: Path) -> Contents:
    if path.suffix in PICKLES:
        raise InputError(f"{str(path)!r}, a pickle, which can run code and is never opened", FORMATS, WHERE)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{str(path)!r} ({error.strerror})", "a file that can be read", WHERE) from None
    if magic == gguf.MAGIC and path.suffix != ".safetensors":
        return _checked(gguf.contents(path), path)
    if path.suffix == ".gguf":
        raise InputError(f"{str(path)!r}, which does not begin with GGUF", "a GGUF file", WHERE)
    if path.name == peft.WEIGHTS and (path.parent / peft.CONFIG).is_file():
        return peft.contents(path.parent)
    if path.suffix == ".json":
        raise InputError(f"{str(path)!r}, which holds no weights", FORMATS, WHERE)
    return _checked(_of_tensors(header_of(path), _config(path.parent)), path)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    found = read_json(path) if path.is_file() else {}
    text = found.get("text_config")
    return {**text, **found} if isinstance(text, dict) else found


def _of_tensors(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Contents:
    """Return the layers by what the names and shapes of tensors say; what is left is not a matrix."""
    layers: list[Layer] = []
    try:
        for module in (compressed_tensors, gptq, awq, bitsandbytes, dense):
            layers += module.take(tensors, config)
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"tensors that do not fit together ({str(error)[:100]})", "a whole layer", WHERE) from None
    layers.sort(key=lambda layer: _in_order(layer.name))
    packed = {layer.format for layer in layers if layer.format != "dense"}
    found = Contents(", ".join(sorted(packed)) or "dense", layers, total(tensors.values()), config=config)
    found.problems += _against(config, packed)
    return found


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbered layers by their numbers."""
    parts = name.split(".")
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _against(config: Mapping[str, Any], packed: set[str]) -> list[str]:
    """Return where the configuration's method is not what the tensors are stored in."""
    method = str(compressed_tensors.quantization(config).get("quant_method", ""))
    there = {name.split()[0] for name in packed}
    as_floats = compressed_tensors.quantization(config).get("format") == "dense"
    if method in METHODS and METHODS[method] not in there and not as_floats:
        stored = ", ".join(sorted(there)) or "plain floats"
        return [f"config.json claims {method}, and the weights are stored as {stored}"]
    if there and not method:
        return [f"config.json does not say that weights are stored as {', '.join(sorted(there))}"]
    return []


def _checked(found: Contents, path: Path) -> Contents:
    if not found.layers:
        raise InputError(f"{str(path)!r}, which holds no matrices", "a model's weights", WHERE)
    return found

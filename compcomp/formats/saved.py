"""Read a folder that compcomp saved as what is to be written in another format."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from compcomp.errors import InputError
from compcomp.formats.numbers import is_float
from compcomp.formats.own import ABOUT
from compcomp.formats.tensors import Tensor, of_files, of_folder, read_json
from compcomp.formats.writing import SavedLayer, SavedModel, Structure

WHERE = "export"
ALLOWED = "a folder that plan.save or compcomp apply wrote"


def saved_model(folder: Path, modules: Mapping[str, str], tied: Mapping[str, str]) -> SavedModel:
    """Return what a folder holds. Only headers, scales and offsets are read.

    Args:
        folder: the folder.
        modules: as in :class:`SavedModel`.
        tied: the same.

    Raises:
        InputError: The folder is not one that compcomp saved, or its files do not fit together.
    """
    about, components = compressed_in(folder)
    tensors = of_folder(folder)
    layers: dict[str, SavedLayer] = {}
    for name, entry in about["layers"].items():
        parts = {part: tensor for (owner, part), tensor in components.items() if owner == name}
        weight = tensors.pop(f"{name}.weight", None)
        if weight is None:
            given = f"layer {name!r}, whose weight is a part of another tensor"
            raise InputError(given, "layers with a weight of their own", WHERE)
        if not parts or not isinstance(entry, dict):
            raise InputError(f"{str(folder)!r} without the components of layer {name!r}", ALLOWED, WHERE)
        structure = structure_of(name, entry, parts, modules.get(name, "?"))
        if structure.shape not in (weight.shape, weight.shape[::-1]) or not is_float(weight.dtype):
            given = f"layer {name!r} of shape {structure.shape}, whose weight is {weight.shape} in {weight.dtype}"
            raise InputError(given, ALLOWED, WHERE)
        layers[name] = SavedLayer(name, structure, parts, weight)
    return SavedModel(folder, read_json(folder / "config.json"), layers, tensors, modules, tied, about)


def compressed_in(folder: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Tensor]]:
    """Return compcomp.json of a folder, and its components by layer and part.

    Raises:
        InputError: The folder is not one that compcomp saved.
    """
    if not (folder / ABOUT).is_file():
        raise InputError(f"{str(folder)!r} without {ABOUT}", ALLOWED, WHERE)
    about = read_json(folder / ABOUT)
    if "exported" in about:
        raise InputError(f"{str(folder)!r}, which was exported as {about['exported']}", ALLOWED, WHERE)
    if not isinstance(about.get("layers"), dict) or not about["layers"]:
        raise InputError(f"{str(folder / ABOUT)!r} without compressed layers", ALLOWED, WHERE)
    if not (folder / "config.json").is_file():
        given = f"{str(folder)!r} without config.json, so that no runtime knows the model"
        raise InputError(given, "a folder with a model of transformers", WHERE)
    found = of_files(sorted(folder.glob("components*.safetensors")))
    split = {name: name.rpartition(".") for name in found}
    return about, {(layer, part): found[name] for name, (layer, _, part) in split.items()}


def structure_of(name: str, entry: Mapping[str, Any], parts: Mapping[str, Tensor], module: str) -> Structure:
    """Return the structure of a layer, from its entry in compcomp.json and its parts."""
    try:
        rows, columns = (int(side) for side in entry["shape"])
        _check_parts(parts, (rows, columns))
        int(entry["bits"])
        rank, branch = entry.get("rank"), int(entry.get("factor_rank") or 0)
        patterns = tuple((int(n), int(m)) for n, _, m in (text.partition(":") for text in entry.get("pattern") or ()))
        basis = tuple(map(str, entry.get("basis") or ()))
        plain: dict[str, Any] = {"rank": rank, "branch": branch, "patterns": patterns, "basis": basis}
        plain |= {"shape": (rows, columns), "masked": "mask" in parts, "module": module}
        if "levels" not in parts:
            return Structure(**plain)
        codes = entry.get("codes")
        plain |= {"highest": int(entry["levels"]), "lowest": int(entry.get("lowest") or 0)}
        plain["codes"] = None if codes is None else tuple(map(Fraction, codes))
        scales = parts["scales"].array().astype(np.float64).reshape(-1)
        plain |= {"group": group_of(len(scales), rows, columns), "signed_steps": bool((scales < 0).any())}
        plain["powers_of_two"] = bool(np.isin(np.frexp(scales)[0], (0, 0.5)).all())
        if "offsets" in parts:
            offsets = parts["offsets"].array().astype(np.float64).reshape(-1)
            plain["offsets"] = "zero point" if _whole(offsets, scales, plain["highest"]) else "minimum"
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{ABOUT}, whose entry of {name!r} cannot be read ({error})", ALLOWED, WHERE) from None
    return Structure(**plain)


def _check_parts(parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    """Raise ValueError if parts do not have the shapes that they have in a layer of this shape."""
    for name in ("levels", "mask"):
        if name in parts and tuple(parts[name].shape) != shape:
            raise ValueError(f"{name} of shape {tuple(parts[name].shape)}, not {shape}")
    if "levels" in parts:
        scales = tuple(parts["scales"].shape)
        if len(scales) != 1 or not scales[0] or shape[0] * shape[1] % scales[0]:
            raise ValueError(f"scales of shape {scales} for {shape[0]} x {shape[1]} levels")
        if "offsets" in parts and tuple(parts["offsets"].shape) != scales:
            raise ValueError(f"{parts['offsets'].shape[0]} offsets for {scales[0]} scales")


def group_of(scales: int, rows: int, columns: int) -> int | None:
    """Return ``Structure.group`` for this number of scales, which belong to runs of equal length."""
    if scales == rows:
        return columns
    if scales == 1:
        return 0
    size = rows * columns // scales
    return size if 1 < size < columns and columns % size == 0 else None


def _whole(offsets: Any, scales: Any, highest: int) -> bool:
    """Return True if all offsets are whole numbers of steps, from 0 to ``highest`` below zero, up to float32."""
    steps = np.where(scales == 0, 1.0, scales)
    zeros = np.rint(-offsets / steps)
    near = np.abs(offsets + zeros * steps) <= 2.0**-22 * np.abs(offsets)
    return bool((near & (zeros >= 0) & (zeros <= highest) | ((scales == 0) & (offsets == 0))).all())

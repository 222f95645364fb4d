"""Write what compcomp saved in the formats that runtimes read.

A format is a :class:`Writer`, one file a format. It says why a layer does not fit it, from the :class:`Structure` of
the layer alone, and writes the files of a model.

:class:`TensorWriter` writes sharded safetensors with a ``quantization_config``. A format of that kind only says which
tensors it has for a layer.
"""

from __future__ import annotations

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compcomp.formats.numbers import SIZES, Array, decoded, encoded, rounded_to
from compcomp.formats.tensors import INDEX, Tensor

SHARD = 5_000_000_000
"""The bytes from which on a new file of weights is begun."""


@dataclass(frozen=True)
class Structure:
    """Describe how the weight (out x in) of a layer is made up, without its numbers.

    Args:
        shape: (out, in).
        lowest: the least level; None without a grid.
        highest: the largest level; None without a grid.
        group: the consecutive weights of a row that share a step: all of a row (in), fewer, or 0 for one step for the
            whole matrix. None if steps are shared in any other way, or there is no grid.
        offsets: ``""``, ``"zero point"`` for an offset that is a whole number of steps below zero, or ``"minimum"`` for
            any other. Levels are then counted from the offset, and ``lowest`` is 0.
        signed_steps: True if a step may be negative.
        powers_of_two: True if every step is a power of two, or zero.
        codes: the values of a codebook, in units of the step; levels are then positions in it.
        masked: True if there is a mask. The weights that it drops are zero.
        patterns: N:M patterns of the mask as (n, m).
        rank: the rank that the weight itself is known to have, or None.
        branch: the rank of a low-rank term that is added to the weight, or 0.
        basis: the parts of a change of basis of the inputs; () if there is none.
        module: the class of the module that holds the weight: ``Linear``, ``Embedding``, ``Conv1D`` or another.
    """

    shape: tuple[int, int]
    lowest: int | None = None
    highest: int | None = None
    group: int | None = None
    offsets: str = ""
    signed_steps: bool = False
    powers_of_two: bool = False
    codes: tuple[Fraction, ...] | None = None
    masked: bool = False
    patterns: tuple[tuple[int, int], ...] = ()
    rank: int | None = None
    branch: int = 0
    basis: tuple[str, ...] = ()
    module: str = "Linear"

    @property
    def on_grid(self) -> bool:
        """True if the weights lie on a grid or in a codebook."""
        return self.highest is not None

    @property
    def bits(self) -> int:
        """The bits that distinguish the values of a group; 16 without a grid."""
        if self.highest is None or self.lowest is None:
            return 16
        return max(1, (self.highest - self.lowest).bit_length())


@dataclass(frozen=True)
class SavedLayer:
    """Locate one compressed layer in a folder that compcomp saved.

    Args:
        name: the name of its module, without ``.weight``.
        structure: what it is made of.
        parts: its parts as :func:`compcomp.models.components.pack` names them: ``levels`` (out x in), ``scales`` and
            ``offsets`` (one for each group, row after row), ``mask``, ``values``, ``left``, ``right`` ...
        weight: the dense weight, as it is stored in the module's layout and the model's dtype.
    """

    name: str
    structure: Structure
    parts: Mapping[str, Tensor]
    weight: Tensor

    def per_group(self, part: str) -> Array:
        """Return ``scales`` or ``offsets`` as float32, out x groups; 1 x 1 if there is one for the whole matrix."""
        found = self.parts[part].array().astype(np.float32)
        return found.reshape(1, 1) if self.structure.group == 0 else found.reshape(self.structure.shape[0], -1)

    def levels(self) -> Array:
        """Return the levels, out x in. Weights that a mask drops are level 0, or the zero point."""
        found = self.parts["levels"].array().reshape(self.structure.shape)
        if self.structure.offsets == "zero point" and "mask" in self.parts:
            zeros = self.spread(self.zero_points()).astype(found.dtype)
            found = np.where(self.parts["mask"].array().reshape(found.shape) != 0, found, zeros)
        return found

    def zero_points(self) -> Array:
        """Return the levels of zero, out x groups, of a grid whose offsets are whole numbers of steps below zero."""
        scales, offsets = self.per_group("scales").astype(np.float64), self.per_group("offsets").astype(np.float64)
        flat = scales == 0
        found: Array = np.where(flat, 0, np.rint(-offsets / np.where(flat, 1, scales))).astype(np.int32)
        return found

    def spread(self, numbers: Array) -> Array:
        """Return one number for each weight (out x in) from one for each group."""
        rows, columns = self.structure.shape
        return np.broadcast_to(np.repeat(numbers, columns // numbers.shape[1], axis=1), (rows, columns))

    def each(self, part: str) -> Array:
        """Return ``scales`` or ``offsets`` as float32 for each weight, out x in, whichever weights share them."""
        found, (rows, columns) = self.parts[part].array().astype(np.float32).reshape(-1), self.structure.shape
        return np.repeat(found, rows * columns // len(found)).reshape(rows, columns)

    def effective(self) -> Array:
        """Return the dense weight that was saved, out x in."""
        found = self.weight.array()
        return found.T if self.structure.module == "Conv1D" else found

    def base(self) -> Array:
        """Return the weight without its low-rank term, out x in, before it is rounded to the model's dtype.

        The inputs of the layer have to be in their own basis.
        """
        shape, parts = self.structure.shape, self.parts
        mask = parts["mask"].array().reshape(shape) != 0 if "mask" in parts else None
        if self.structure.rank == 0:
            return np.zeros(shape, np.float32)
        if "weight_left" in parts:  # whose product is the weight up to more rounding than the difference
            left, right = (factor.array().astype(np.float64) for factor in self.factors())
            return self.effective() - left @ right
        if "levels" in parts:
            found = _multiples(parts).reshape(shape)
            return np.where(mask, found, 0) if mask is not None and {"offsets", "codes"} & parts.keys() else found
        values = parts["values"].array()
        if values.ndim == 2:
            return values
        assert mask is not None
        found = np.zeros(shape, values.dtype)
        found[mask] = values
        return found

    def factors(self) -> tuple[Part, Part]:
        """Return the factors of the low-rank term, out x rank and rank x in.

        A factor on a grid is in the dtype of its steps.
        """
        return self._factor("left"), self._factor("right")

    def _factor(self, name: str) -> Part:
        if name in self.parts:
            return Part.copied(self.parts[name])
        own = {
            part.removeprefix(f"{name}_"): found for part, found in self.parts.items() if part.startswith(f"{name}_")
        }
        return Part.of(_multiples(own), own["scales"].dtype)


@dataclass
class SavedModel:
    """Hold what a folder that compcomp saved consists of. Tensors are read when they are asked for.

    Args:
        folder: the folder.
        config: its config.json.
        layers: the compressed layers by name, in the order of the model.
        others: every other tensor by the name it is stored under.
        modules: the class of each module of the model that has a ``weight`` of two axes, by its name. The output head
            is among them also where it shares the weight of the embedding.
        tied: by name, each module whose weight is that of another module, and the name of that one.
        about: what compcomp.json says.
    """

    folder: Path
    config: Mapping[str, Any]
    layers: Mapping[str, SavedLayer]
    others: Mapping[str, Tensor]
    modules: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Hold one tensor to write.

    Args:
        dtype: its name in safetensors, such as ``BF16``.
        shape: its sizes.
        raw: its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    raw: bytes

    def array(self) -> Array:
        """Return the numbers in the tensor's shape."""
        return decoded(self.raw, self.dtype).reshape(self.shape)

    @classmethod
    def of(cls, array: Array, dtype: str) -> Part:
        """Return the numbers of an array in a dtype, floats rounded to it (to nearest, midpoints to even)."""
        return cls(dtype, tuple(array.shape), encoded(array, dtype))

    @classmethod
    def copied(cls, tensor: Tensor) -> Part:
        """Return a tensor of a file as it is."""
        return cls(tensor.dtype, tensor.shape, tensor.raw())


def _multiples(parts: Mapping[str, Tensor]) -> Array:
    """Return levels (or the codes that they stand for) times steps, with offsets, in the shape of the levels."""
    levels, scales = parts["levels"].array(), parts["scales"].array().reshape(-1, 1)
    if "offsets" in parts:  # in the dtype of the scales, as in kernels: there zero is exact
        groups = levels.astype(scales.dtype).reshape(len(scales), -1) * scales + parts["offsets"].array().reshape(-1, 1)
    else:
        numbers = parts["codes"].array()[levels] if "codes" in parts else levels
        groups = numbers.astype(np.float64).reshape(len(scales), -1) * scales
    return groups.reshape(levels.shape)


def uncommon(layer: Structure) -> str | None:
    """Return what a layer has that no format of numbers with steps can hold, or None."""
    if layer.basis:
        return f"its inputs are in another basis ({', '.join(layer.basis)})"
    if layer.branch:
        return f"it has a low-rank term of rank {layer.branch}"
    if layer.offsets == "minimum":
        return "its offsets are no whole numbers of steps below zero, so there are no integer zero points"
    if layer.on_grid and layer.group is None:
        return "its steps are not shared by runs of weights of one row"
    return None


def shared_linear(model: SavedModel) -> str | None:
    """Return that two Linear layers share a compressed weight, which loaders do not expect of packed ones, or None."""
    for name, owner in model.tied.items():
        if owner in model.layers and model.modules.get(owner) == "Linear":
            return f"{owner} and {name} share a compressed weight, and it is read for one of them only"
    return None


class Writer(ABC):
    """Write a model in one format.

    Attributes:
        name: what ``--format`` calls it.
        needs: one line on what a layer has to be.
    """

    name: ClassVar[str]
    needs: ClassVar[str]

    @abstractmethod
    def misfit(self, layer: Structure) -> str | None:
        """Return why a layer of this structure cannot be written, as one line without the layer's name; None if it can.

        It is asked before anything is compressed, with the structure that a sequence ends in, and again for each layer
        that is written.
        """

    def check_installed(self) -> None:
        """Raise InputError if a package that writes the format is not installed."""
        return None

    def misfit_of_model(self, model: SavedModel) -> str | None:
        """Return why a model cannot be written although each of its layers can; None if it can."""
        return None

    @abstractmethod
    def write(self, model: SavedModel, folder: Path) -> None:
        """Write the weights, and all that differs from the saved folder, to an empty folder.

        Configuration, tokenizer, chat template and generation config have been copied into it before.
        """

    def step_dtype(self, layer: SavedLayer) -> str:
        """Return the dtype in which the steps of a layer are stored, such as ``BF16``."""
        return layer.weight.dtype

    def written_weight(self, layer: SavedLayer) -> Array | None:
        """Return the weight (out x in, float32) that a runtime computes from the file, before it rounds to a dtype.

        By default it is level times step, with the step in :meth:`step_dtype`. None: it is the saved weight itself.
        """
        step = rounded_to(layer.per_group("scales"), self.step_dtype(layer))
        levels, structure = layer.levels(), layer.structure
        if structure.codes is not None:
            codes = np.array([float(code) for code in structure.codes])
            return (codes[levels] * layer.spread(step)).astype(np.float32)
        if structure.offsets == "zero point":
            levels = levels.astype(np.int32) - layer.spread(layer.zero_points())
        return levels.astype(np.float32) * layer.spread(step)  # whole numbers are exact, so this rounds once


class TensorWriter(Writer):
    """Write safetensors, in shards, and a ``quantization_config`` in config.json."""

    @abstractmethod
    def tensors(self, layer: SavedLayer) -> dict[str, Part]:
        """Return the tensors of a layer by the names that follow the name of its module, such as ``weight_scale``."""

    @abstractmethod
    def settings(self, model: SavedModel) -> dict[str, Any]:
        """Return the ``quantization_config``; {} for none."""

    def shared(self, model: SavedModel) -> Iterable[tuple[str, Part]]:
        """Return further tensors by their full names, such as those of a module that shares a compressed weight."""
        return ()

    def write(self, model: SavedModel, folder: Path) -> None:
        write_shards(self._parts(model), folder)
        if settings := self.settings(model):
            path = folder / "config.json"
            config = {**json.loads(path.read_text(encoding="utf-8")), "quantization_config": settings}
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _parts(self, model: SavedModel) -> Iterable[tuple[str, Part]]:
        for name, layer in model.layers.items():
            for own, part in self.tensors(layer).items():
                yield f"{name}.{own}", part
        yield from self.shared(model)
        for name, tensor in model.others.items():
            yield name, Part.copied(tensor)


def write_shards(parts: Iterable[tuple[str, Part]], folder: Path) -> None:
    """Write tensors to ``model.safetensors``, or to several files with an index if they have more bytes than a shard.

    Memory holds one tensor at a time.
    """
    shards: list[_Shard] = []
    places: dict[str, int] = {}
    for name, part in parts:
        if not shards or (shards[-1].size and shards[-1].size + len(part.raw) > SHARD):
            if shards:
                shards[-1].finish()
            shards.append(_Shard(folder / f".shard-{len(shards)}"))
        shards[-1].add(name, part)
        places[name] = len(shards) - 1
    shards[-1].finish()
    count = len(shards)
    names = [
        f"model-{k + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for k in range(count)
    ]
    for shard, name in zip(shards, names, strict=True):
        shard.path.rename(folder / name)
    if count > 1:
        weights = {name: names[place] for name, place in sorted(places.items())}
        index = {"metadata": {"total_size": sum(shard.size for shard in shards)}, "weight_map": weights}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(parts: Iterable[tuple[str, Part]], path: Path) -> None:
    """Write tensors to one safetensors file."""
    shard = _Shard(path)
    for name, part in parts:
        shard.add(name, part)
    shard.finish()


class _Shard:
    """A safetensors file that grows. Wider dtypes come first, so that every tensor is aligned."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.kept: dict[int, list[tuple[str, Part]]] = {}

    def add(self, name: str, part: Part) -> None:
        """Append a tensor to the file of its width."""
        width = SIZES[part.dtype]
        with self._of(width).open("ab") as file:
            file.write(part.raw)
        self.size += len(part.raw)
        self.kept.setdefault(width, []).append((name, Part(part.dtype, part.shape, b"")))

    def finish(self) -> None:
        """Write the header, and the files of all widths after it."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for width in sorted(self.kept, reverse=True):
            for name, part in self.kept[width]:
                start, end = end, end + width * math.prod(part.shape)
                header[name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with self.path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for width in sorted(self.kept, reverse=True):
                with self._of(width).open("rb") as source:
                    shutil.copyfileobj(source, file)
                self._of(width).unlink()

    def _of(self, width: int) -> Path:
        return self.path.with_name(f"{self.path.name}-{width}")

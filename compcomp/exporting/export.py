"""Convert a folder that compcomp saved to a format that runtimes read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compcomp.errors import InputError
from compcomp.formats.numbers import half_ulp, rounded_to
from compcomp.formats.own import ABOUT
from compcomp.formats.saved import ALLOWED, compressed_in, saved_model
from compcomp.formats.writers import WRITERS, writer_named
from compcomp.formats.writing import SavedLayer, SavedModel, Writer
from compcomp.models.checkpoint import Checkpoint
from compcomp.models.save import check_apart, put_in_place
from compcomp.models.stream import is_kept
from compcomp.record import Record

WHERE = "export"


@dataclass(frozen=True, eq=False)
class Exported(Record):
    """Hold the result of :func:`export`.

    Args:
        directory: the folder that was written.
        format: its format.
        layers: the number of compressed layers.
        exact: the number of layers whose weights a runtime reads bit for bit as they were saved.
        step_error: the largest relative change of a step by the dtype in which the format stores it.
        weight_error: the largest change of a weight, as a share of the largest magnitude of its layer.
        layer_bytes: the bytes of the compressed layers.
        promised_bytes: the bytes of these layers by their compression rates, as compcomp.json has them.
        bytes: the bytes of all weights on disk.
        notes: lines for the user.
    """

    directory: str
    format: str
    layers: int
    exact: int
    step_error: float
    weight_error: float
    layer_bytes: int
    promised_bytes: int
    bytes: int
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [
            f"{self.directory}: {self.layers} layers as {self.format}, {self.bytes / 1e6:.1f} MB on disk",
            f"compressed layers: {self.layer_bytes / 1e6:.2f} MB; by their rates {self.promised_bytes / 1e6:.2f} MB",
            f"weights as they were saved, bit for bit, in {self.exact} of {self.layers} layers",
            *self.notes,
        ]
        return "\n".join(lines)


def export(directory: str | os.PathLike[str], out: str | os.PathLike[str], format: str) -> Exported:
    """Write the model in a folder that compcomp saved to another folder, in a format that runtimes read.

    Layers are read and written one after another. Configuration, tokenizer, chat template and generation config are
    copied. The content of ``out`` stays until the new files are complete.

    Args:
        directory: A folder that ``plan.save``, or ``compcomp apply``, wrote.
        out: The folder to write to, another one.
        format: "compressed-tensors", "gptq", "dense" or another of docs/exporting.md.

    Returns:
        The sizes, and how exactly the file holds what was saved.

    Raises:
        InputError: A folder cannot be used, or a layer does not fit the format. The message says which formats fit.
    """
    source, target, writer = Path(directory), Path(out), writer_named(format)
    if not source.is_dir():
        raise InputError(repr(str(directory))[:80], "a folder with a compressed model", WHERE)
    if target.exists() and not target.is_dir():
        raise InputError(f"{str(target)!r}, which is a file", "a directory, new or there", WHERE)
    check_apart(target, {"the compressed model": source}, WHERE)
    compressed_in(source)  # refuses other folders before the model is built
    model = saved_model(source, *modules_of(Checkpoint(source).model))
    check(writer, model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{str(target)!r} ({error.strerror})", "a writable directory", WHERE) from None
    try:
        return _written(writer, model, draft, target)
    except (OverflowError, IndexError) as error:
        raise InputError(f"{str(source)!r}, whose levels are not as it says ({error})", ALLOWED, WHERE) from None
    except OSError as error:
        given = f"{str(target)!r} ({error.strerror or error})"
        raise InputError(given, "a writable directory with room for the model", WHERE) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def modules_of(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Return ``modules`` and ``tied`` of :class:`compcomp.formats.writing.SavedModel`."""
    modules: dict[str, str] = {}
    tied: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2:
            base = next(k.__name__ for k in (nn.Linear, nn.Embedding, type(module)) if isinstance(module, k))
            modules[name] = base
            owner = owners.setdefault(id(weight), name)
            if owner != name:
                tied[name] = owner
    return modules, tied


def check(writer: Writer, model: SavedModel) -> None:
    """Raise InputError unless every layer fits the format, with the formats that fit."""
    reason = _misfit(writer, model)
    if reason is not None:
        others = {name: _misfit(other, model) for name, other in WRITERS.items() if other is not writer}
        fit = [name for name, misfit in others.items() if misfit is None]
        raise InputError(f"{writer.name}: {reason}", f"formats that fit: {', '.join(fit)}", WHERE)


def _misfit(writer: Writer, model: SavedModel) -> str | None:
    for name, layer in model.layers.items():
        if reason := writer.misfit(layer.structure):
            return f"layer {name} does not fit, as {reason}"
    return writer.misfit_of_model(model)


def _written(writer: Writer, model: SavedModel, draft: Path, target: Path) -> Exported:
    """Write a model to a new folder and put this in place."""
    exact, step_error, weight_error = 0, 0.0, 0.0
    for layer in model.layers.values():
        steps, weights = _errors(writer, layer)
        exact += weights == 0
        step_error, weight_error = max(step_error, steps), max(weight_error, weights)
    for path in filter(is_kept, model.folder.iterdir()):
        shutil.copyfile(path, draft / path.name)
    before = set(draft.rglob("*"))
    writer.write(model, draft)
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file() and path not in before)
    others = sum(tensor.nbytes for tensor in model.others.values())
    promised = sum(int(entry["bits"]) for entry in model.about["layers"].values())
    found = Exported(
        directory=str(target),
        format=writer.name,
        layers=len(model.layers),
        exact=exact,
        step_error=step_error,
        weight_error=weight_error,
        layer_bytes=size - others,
        promised_bytes=-(-promised // 8),
        bytes=size,
        notes=tuple(_notes(writer, model, step_error)),
    )
    about = {"exported": writer.name, **model.about, "export": {**found.to_json(), "directory": target.name}}
    (draft / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    put_in_place(draft, target)
    return found


def _errors(writer: Writer, layer: SavedLayer) -> tuple[float, float]:
    """Return the largest relative change of a step, and the largest change of a weight as a share of the largest one.

    Raises:
        InputError: A step becomes zero or infinite in the dtype of the format, or the parts of the layer do not give
            its weight.
    """
    written = writer.written_weight(layer)
    if written is None:
        return 0.0, 0.0
    error, dtype = _step_error(writer, layer), layer.weight.dtype
    saved = layer.effective()
    apart = np.abs(rounded_to(written, dtype) - saved)
    largest, size = float(np.abs(saved).max()), np.abs(saved)
    if "offsets" in layer.parts:  # level times step plus offset was rounded where the sum is small
        size = np.maximum(size, np.abs(layer.each("offsets")))
    if layer.structure.branch:  # and so was the weight under the low-rank term
        left, right = (np.abs(factor.array()) for factor in layer.factors())
        size = size + left @ right
    if (apart > 4 * error * size + 8 * half_ulp(size, dtype)).any():
        given = f"layer {layer.name}, whose components do not give its weight"
        raise InputError(given, "a folder as compcomp wrote it", WHERE)
    return error, float(apart.max()) / largest if largest else 0.0


def _step_error(writer: Writer, layer: SavedLayer) -> float:
    """Return the largest relative change of a step."""
    if "scales" not in layer.parts:
        return 0.0
    steps, dtype = layer.parts["scales"].array().astype(np.float64), writer.step_dtype(layer)
    changes = np.abs(rounded_to(steps, dtype).astype(np.float64) - steps)
    error = float((changes / np.where(steps == 0, 1, np.abs(steps))).max())
    if not error <= 2.0**-7:
        given = f"layer {layer.name}, with a step that {dtype} does not hold"
        raise InputError(given, "steps in the range of the format's dtype", WHERE)
    return error


def _notes(writer: Writer, model: SavedModel, step_error: float) -> list[str]:
    notes = []
    if step_error:
        dtypes = sorted({writer.step_dtype(layer) for layer in model.layers.values()})
        notes.append(f"steps were rounded to {', '.join(dtypes)}: by a share of {step_error:.2g} at most")
    if writer.name not in ("dense", "peft") and any(layer.structure.patterns for layer in model.layers.values()):
        notes.append("zeros of n:m patterns are stored as any other level, and take its bits")
    return notes

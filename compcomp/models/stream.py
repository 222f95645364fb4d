"""Compress a checkpoint on disk into another one, with one block of the model in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from compcomp.bench import Outside
from compcomp.errors import InputError
from compcomp.language.named import sources_of
from compcomp.language.size import dense_bits
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique, as_sequence
from compcomp.models.batches import prepared
from compcomp.models.blocks import find_blocks
from compcomp.models.calibration import Calibration, calibration_of
from compcomp.models.causal_lm import reason
from compcomp.models.checkpoint import INDEX, Checkpoint, index_of
from compcomp.models.components import pack
from compcomp.models.devices import choose
from compcomp.models.held import check_range
from compcomp.models.layers import Layer, check_order, check_weight, find_layers, readers_of
from compcomp.models.lockstep import Stage
from compcomp.models.measure import effective_weight
from compcomp.models.memory import trim
from compcomp.models.modes import kept, plainly
from compcomp.models.outside import note_of, outside
from compcomp.models.patterns import Patterns
from compcomp.models.save import ABOUT, bring_back, check_apart, layer_json, put_in_place
from compcomp.models.sequential import Inputs, OnBlock, compress_blocks
from compcomp.models.states import alike, applied_abreast, dense_state, digest_of, tensors_in

DONE = "done.json"
"""The file of an unfinished output that says what it is of, and which blocks it has."""


@dataclass(frozen=True)
class Compressed:
    """The result of :func:`compress_checkpoint`.

    Attributes:
        directory: The new checkpoint.
        rate: The compression rate of the compressed layers, against 16 bits a weight.
        model_rate: That of the whole model. Parameters that no technique acts on count 16 bits.
        bytes: The size of the weights on disk, compressed layers as dense tensors.
        outside: The parameters that no technique acts on.
        resumed: The number of blocks that an earlier run had compressed.
        notes: Lines for the user.
    """

    directory: Path
    rate: float
    model_rate: float
    bytes: int
    outside: Outside
    resumed: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "directory": str(self.directory),
            "compression_rate": self.rate,
            "model_compression_rate": self.model_rate,
            "bytes": self.bytes,
            "outside": self.outside.to_json(),
            "resumed": self.resumed,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        left = ", ".join(f"{name} ({size:,})" for name, size in self.outside.left.largest)
        lines = [
            f"{self.directory}: compression rate {self.rate:.1%} of the compressed layers, {self.model_rate:.1%} of "
            f"the model (1 - size / size at 16 bits a weight); {self.bytes / 1e9:.3g} GB of dense tensors on disk",
            f"left dense: {self.outside.share:.1%} of the parameters, the largest {left}" if left else "",
            f"{self.resumed} blocks were there from an earlier run" if self.resumed else "",
            *self.notes,
        ]
        return "\n".join(line for line in lines if line)


@plainly
def compress_checkpoint(
    order: Technique | Order,
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    calibration: Any = None,
    device: str | torch.device = "auto",
    targets: Patterns = None,
    ignore: Patterns = ("lm_head",),
    calibrate: str = "sequential",
    blocks: Patterns = None,
    on_block: OnBlock = lambda done, total, name: None,
) -> Compressed:
    """Apply an order to the causal language model in a directory, and write the compressed model to another.

    Each block is read, calibrated, compressed and written before the next one is read. Memory holds one block with its
    Gram matrices, the embeddings, and the calibration set's activations between two blocks. A run that ended early is
    continued by the same call: blocks that were written are not compressed again.

    Args:
        order: The techniques to apply.
        directory: A directory with ``config.json`` and safetensors, in one file or several.
        out: The directory to write to. Its content stays until the new model is complete.
        calibration: Batches for the model. Required if a technique looks at inputs.
        device: "auto", "cpu", "cuda" or "cuda:1".
        targets: Patterns of the layers to compress.
        ignore: Patterns of the layers to leave alone.
        calibrate: The inputs that layers are calibrated on, as in :func:`compcomp.compress.apply`. All steps share one
            pass over the blocks.
        blocks: Patterns of the names or classes of the blocks, as there.
        on_block: Shows progress.

    Raises:
        InputError: A file or an argument cannot be used, a layer cannot be compressed, or there is no room to write.
    """
    source, target = Path(directory), Path(out)
    if not source.is_dir():
        raise InputError(repr(str(directory))[:80], "a directory with a model", "apply")
    if target.exists() and not target.is_dir():
        raise InputError(f"{str(target)!r}, which is a file", "a directory, new or there", "apply")
    check_apart(target, {"the model": source}, "apply")
    if alone := [technique for technique in as_sequence(order) if technique.whole_model]:
        raise InputError(f"{alone[0]}, which acts on the whole model", "a model that is loaded", "apply")
    inputs = calibration_of(calibrate, "one", blocks=blocks)
    with kept():
        return _Stream(as_sequence(order), source, target, calibration, device, targets, ignore, inputs, on_block).run()


class _Stream:
    """One run of :func:`compress_checkpoint`."""

    def __init__(
        self,
        order: Order,
        source: Path,
        target: Path,
        calibration: Any,
        device: str | torch.device,
        targets: Patterns,
        ignore: Patterns,
        inputs: Calibration,
        on_block: OnBlock,
    ) -> None:
        self.order, self.source, self.target, self.inputs, self.on_block = order, source, target, inputs, on_block
        self.checkpoint = Checkpoint(source)
        self.model = self.checkpoint.model
        self.layers: dict[str, Layer] = {
            layer.name: layer for layer in find_layers(self.model, targets, ignore, loaded=False)
        }
        self.outside = outside(self.model, self.layers.values())
        self.notes = [*filter(None, [note_of(self.outside)]), *readers_of(self.layers.values())]
        check_order(order, self.layers.values(), calibrated=calibration is not None, notes=self.notes)
        looks = any(technique.needs_inputs for technique in order)
        self.batches = list(prepared(self.model, calibration)) if looks else []
        self.device = choose(self.model, "cpu" if device == "auto" and not torch.cuda.is_available() else device)
        self.stages = find_blocks(self.model, self.layers.values(), inputs.blocks, every=not looks)
        inside = {id(part) for stage in self.stages for part in stage.module.modules()}
        self.apart = [n for n, layer in self.layers.items() if not any(id(m) in inside for m in layer.modules)]
        held = {*self.apart, *(name for stage in self.stages for name in stage.layers)}
        if shared := [name for name in self.layers if name not in held]:
            given = f"layer {shared[0]}, which several blocks share"
            raise InputError(given, "a model that is loaded, or the layer in ignore", "apply")
        self.draft = target.parent / f".{target.name}.partial"
        self.resumed = 0

    def run(self) -> Compressed:
        """Compress block by block, and put the result in place."""
        self.done = self._begin()
        inside = {id(part) for stage in self.stages for part in stage.module.modules()}
        for name, module in self.model.named_modules():
            if id(module) not in inside and not any(True for _ in module.children()):
                self.checkpoint.load(module, name, self.device)
        self.model.tie_weights()  # type: ignore[operator]
        self._compress_apart()
        if self.batches:
            compress_blocks(
                self.model,
                self.layers,
                self.batches,
                self.stages,
                self._compress,
                undo=self._repeats,
                dense=self.inputs.dense,
                notes=self.notes,
                on_block=self.on_block,
                enter=self._enter,
                leave=self._leave,
            )
        else:
            for stage in self.stages:
                if not self._enter(stage):
                    self._compress(dict.fromkeys(stage.layers))
                self._leave(stage)
        return self._finish()

    # ---------------------------------------------------------------------------------------------- one block

    def _enter(self, stage: Stage) -> bool:
        """Load a block. Returns True if it is the compressed one of an earlier run."""
        self.present = stage
        self.states: dict[str, Tensor] = {}
        self.described: dict[str, Any] = {}
        if stage.name in self.done:
            try:
                self.checkpoint.load(stage.module, stage.name, self.device, self.draft / self._file(stage))
                self.resumed += 1
                return True
            except InputError:  # what was written has been damaged since
                del self.done[stage.name]
        self.checkpoint.load(stage.module, stage.name, self.device)
        for name in stage.layers:
            check_weight(self.layers[name])
        return False

    def _compress_apart(self) -> None:
        """Compress the embeddings, which are in no block, and write their components."""
        self.states, self.described = {}, {}
        for name in self.apart:
            check_weight(self.layers[name])
        self._compress_layers(dict.fromkeys(self.apart))
        self.about_apart = self.described
        if self.apart:
            with self._writing():
                file = self._file(None).replace("model", "components", 1)
                save_file(self.states, self.draft / file, metadata={"format": "pt"})

    def _compress(self, inputs: Inputs | Mapping[str, None]) -> None:
        """Compress the layers of the present block, and write the block."""
        self._compress_layers(inputs)
        self._write(self.present)

    def _compress_layers(self, inputs: Inputs | Mapping[str, None]) -> None:
        """Put the new weights of some layers into the model, and note what is to be written of them."""
        steps = list(self.order)
        seen = {name: (None, None) if given is None else given for name, given in inputs.items()}
        for names in alike(seen):
            dense = {name: dense_state(self.layers[name].weight, *seen[name]) for name in names}
            for name, state in applied_abreast(dict.fromkeys(names, steps), dense).items():
                layer, effective = self.layers[name], effective_weight(state)
                check_range(name, effective, layer.parameter.dtype)
                layer.set(effective)
                self.described[name] = layer_json(state, layer.shape)
                self.states |= {f"{name}.{part}": t.cpu() for part, t in pack(state, layer.parameter.dtype).items()}
            trim()

    def _leave(self, stage: Stage) -> None:
        """Drop a block from memory."""
        self.checkpoint.unload(stage.module, stage.name)

    def _repeats(self) -> None:
        raise InputError(
            f"a model that runs a block more than once ({self.present.name})", "a model that is loaded", "apply"
        )

    # ---------------------------------------------------------------------------------------------- the files

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failure to write into one line. The next run continues from what was written."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            given = f"{str(self.target)!r} ({getattr(error, 'strerror', None) or reason(error)})"
            raise InputError(given, "a writable directory with room for the model", "apply") from None

    def _file(self, stage: Stage | None) -> str:
        number = len(self.stages) if stage is None else self.stages.index(stage)
        return f"model-{number + 1:05d}-of-{len(self.stages) + 1:05d}.safetensors"

    def _files(self, stage: Stage) -> tuple[str, str]:
        """Return the names of a block's files: its tensors, and the components of its layers."""
        return (file := self._file(stage)), file.replace("model", "components", 1)

    def _begin(self) -> dict[str, Any]:
        """Return the blocks that an unfinished run of the same work has written, and remove one of other work."""
        texts = [list(tensors_in(batch)) for batch in self.batches]
        files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.source.iterdir() if p.is_file())
        about = [str(self.order), str(sources_of(self.order)), str(self.inputs), list(self.layers), str(files), texts]
        self.key = digest_of(about)
        with self._writing():
            bring_back(self.target)
        try:
            known = json.loads((self.draft / DONE).read_text(encoding="utf-8"))
            if known["key"] == self.key and sources_of(self.order) is not None:
                done = dict(known["blocks"])
                self._clear(
                    {DONE, *(file for stage in self.stages if stage.name in done for file in self._files(stage))}
                )
                return done
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(self.draft, ignore_errors=True)
        with self._writing():
            self.draft.mkdir(parents=True)
        return {}

    def _clear(self, kept: set[str]) -> None:
        """Remove everything but some files from the unfinished output: files half written, and those of the target."""
        for path in self.draft.iterdir():
            if path.name not in kept:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _write(self, stage: Stage) -> None:
        """Write a compressed block, and note that it is complete."""
        own = {name: tensor for _, _, name, tensor in self.checkpoint.tensors(stage.module, stage.name)}
        stored, (file, components) = self.checkpoint.stored(own), self._files(stage)
        with self._writing():
            save_file(self.states, self.draft / components, metadata={"format": "pt"})
            save_file(stored, self.draft / file, metadata={"format": "pt"})
            self.done[stage.name] = {"layers": self.described, "names": sorted(own), "stored": sorted(stored)}
            note = self.draft / f"{DONE}.new"
            note.write_text(json.dumps({"key": self.key, "blocks": self.done}), encoding="utf-8")
            os.replace(note, self.draft / DONE)

    def _finish(self) -> Compressed:
        """Write the rest of the model, put all in place, and return the result."""
        written = {name for block in self.done.values() for name in block["names"]}
        rest = {name: tensor for _, _, name, tensor in self.checkpoint.tensors(self.model, "") if name not in written}
        stored = self.checkpoint.stored(rest)
        weights = dict.fromkeys(stored, self._file(None))
        for stage in self.stages:
            weights |= dict.fromkeys(self.done[stage.name]["stored"], self._file(stage))
        blocks = {n: about for stage in self.stages for n, about in self.done[stage.name]["layers"].items()}
        layers = self.about_apart | blocks
        bits = sum(about["bits"] for about in layers.values())
        dense = sum(dense_bits(layer.shape) for layer in self.layers.values())
        rate = 1 - bits / dense
        about = {"order": str(self.order), "calibrate": self.inputs.calibrate, "layers": layers}
        about["compression_rate"] = rate
        with self._writing():
            save_file(stored, self.draft / self._file(None), metadata={"format": "pt"})
            size = sum((self.draft / file).stat().st_size for file in set(weights.values()))
            (self.draft / INDEX).write_text(index_of(weights, size), encoding="utf-8")
            for path in filter(is_kept, self.source.iterdir()):
                shutil.copyfile(path, self.draft / path.name)
            (self.draft / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            put_in_place(self.draft, self.target, without=DONE)
        whole = rate * (1 - self.outside.share)
        return Compressed(self.target, rate, whole, size, self.outside, self.resumed, tuple(self.notes))


def is_kept(path: Path) -> bool:
    """Return True for a file of a checkpoint that is not about its weights: configurations, tokenizers, templates."""
    weights = path.suffix in (".safetensors", ".bin", ".gguf", ".pt", ".pth") or path.name.endswith(".index.json")
    return path.is_file() and not weights and path.name not in (ABOUT, DONE)

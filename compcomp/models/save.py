"""Save a compressed model as ordinary files, and load it."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.size import dense_bits, layer_bits
from compcomp.layers.basis import Part, Scaling
from compcomp.layers.state import LayerState
from compcomp.models.components import pack
from compcomp.models.held import check_range
from compcomp.models.layers import Layer, layers_by_name
from compcomp.models.measure import effective_weight
from compcomp.models.memory import place
from compcomp.models.modes import plainly
from compcomp.models.names import under_own_names
from compcomp.models.size import compression_rate
from compcomp.models.wrappers import core, is_from_transformers, uncompiled

WEIGHTS, COMPONENTS, ABOUT = "model.safetensors", "components.safetensors", "compcomp.json"
ADAPTER = "adapter_config.json"
STALE = ("model*.safetensors*", "components*.safetensors")
"""The files of an earlier model in a directory that do not stay when another is written there."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Arguments of Linux' ``renameat2``, which Python does not offer."""


@plainly
def save(
    model: nn.Module,
    state: Mapping[str, LayerState],
    directory: str | os.PathLike[str],
    extra_json: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model with this state's weights to a directory, and return its path.

    ``model.safetensors`` has every weight in the model's dtype, pruned ones as zeros, so that the model's own class
    loads it (transformers: ``from_pretrained(directory)``, with the ``config.json`` next to it).
    ``components.safetensors`` has the parts of each compressed layer as ``LAYER.PART`` (see
    :func:`compcomp.models.components.pack`). ``compcomp.json`` has shapes, bits and ``extra_json``.

    Compilers and data parallelism around a model, or around parts of it, do not appear in names. If a module holds
    nothing but a transformers model, that model is saved, under its own names.

    The files are written next to the directory first, and moved into it when all are complete. Other files in it stay.
    The model keeps the weights that it has.

    Args:
        model: The model.
        state: The state of each compressed layer by name.
        directory: The directory to write to, new or existing.
        extra_json: Further entries of ``compcomp.json``. They have to be JSON, apart from infinite numbers and NaN,
            which are written as texts.

    Raises:
        InputError: The directory is a file, cannot be written, or is the one that the model was loaded from; or a
            weight of the state does not fit into the model's dtype.
    """
    target = Path(directory)
    with uncompiled(model):
        return _save(*core(model), model, state, target, extra_json)


def _save(
    prefix: str,
    inner: nn.Module,
    model: nn.Module,
    state: Mapping[str, LayerState],
    target: Path,
    extra_json: Mapping[str, Any] | None,
) -> Path:
    layers = {name.removeprefix(f"{prefix}."): layer for name, layer in _layers_of(model, state).items()}
    state = {name.removeprefix(f"{prefix}."): layer for name, layer in state.items()}
    check_apart(target, sources(inner), "save")
    if getattr(inner, "_hf_peft_config_loaded", False):  # transformers would save only the adapters
        raise InputError("a model with adapters in it", "a model whose adapters are merged and taken out", "save")
    about = _about(layers, state, extra_json or {})
    if target.exists() and not target.is_dir():
        raise InputError(f"{str(target)!r}, which is a file", "a directory, new or there", "save")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{str(target)!r} ({error.strerror})", "a writable directory", "save") from None
    try:
        with _holding(layers, state), torch.no_grad():
            _write_model(inner, draft)
        parts = {
            f"{name}.{part}": tensor
            for name, layer in state.items()
            for part, tensor in pack(layer, layers[name].parameter.dtype).items()
        }
        save_file(parts, draft / COMPONENTS, metadata={"format": "pt"})
        (draft / ABOUT).write_text(about, encoding="utf-8")
        put_in_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def put_in_place(draft: Path, target: Path, without: str | None = None) -> None:
    """Make a complete directory the one at ``target``, at once.

    The content of the earlier one stays, other than weights. A folder of the draft replaces the one of its name as a
    whole. At every moment there is the earlier directory or the new one.
    Where the system cannot exchange two directories, :func:`bring_back` undoes a first step that was also the last.

    Args:
        draft: The complete directory.
        target: The place for it.
        without: The name of a file in the draft that is removed as the last thing before that.
    """
    bring_back(target)
    target = Path(os.path.realpath(target))
    for path in (draft, *draft.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
    if not target.exists():
        _remove(draft, without)
        os.rename(draft, target)
        return
    shutil.copymode(target, draft)
    for path in target.iterdir():
        if path.name != without and not (draft / path.name).exists() and not _is_stale(path):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, draft / path.name, symlinks=True, copy_function=_linked)
            else:
                _linked(path, draft / path.name)
    _remove(draft, without)
    _exchange(draft, target)
    shutil.rmtree(draft, ignore_errors=True)


def _is_stale(path: Path) -> bool:
    """Return True for weights of an earlier model, and for a folder of adapters that compcomp wrote next to them."""
    ours = (path / ADAPTER).is_file() and (path / ABOUT).is_file()
    return ours or any(fnmatchcase(path.name, stale) for stale in STALE)


def bring_back(target: Path) -> None:
    """Put the directory that was at ``target`` back, if a process ended after it had moved it aside."""
    target = Path(os.path.realpath(target))
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, target)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.earlier"


def _remove(directory: Path, name: str | None) -> None:
    if name is not None:
        (directory / name).unlink()


def _linked(source: Any, to: Any, *, follow_symlinks: bool = True) -> None:
    """Let a file have a second name, or copy it where that cannot be."""
    try:
        os.link(source, to, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, to, follow_symlinks=follow_symlinks)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two directories: in one step where the system can (Linux), else in two."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
        if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
            return
    except (AttributeError, OSError, TypeError):
        pass
    aside = _aside(other)
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def load_weights(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Load ``model.safetensors`` of a saved model into a module of the same class and shape, and return it.

    Raises InputError if the file is missing, damaged, or does not fit the module.
    """
    path = _existing(directory, WEIGHTS)
    try:
        loaded = under_own_names(core(model)[1], path) or load_file(path)
    except (RuntimeError, SafetensorError) as error:
        given = f"{str(path)!r} ({str(error)[:200]})"
        raise InputError(given, "weights saved from such a model", "load") from None
    with uncompiled(model):
        own = core(model)[1].state_dict(keep_vars=True)
        there = {place(tensor) for name, tensor in own.items() if name in loaded}
        missing = [name for name, tensor in own.items() if name not in loaded and place(tensor) not in there]
        problems = [f"no {name}" for name in missing] + [f"{name}, which it has not" for name in loaded.keys() - own]
        problems += [
            f"{name} of shape {tuple(tensor.shape)}"
            for name, tensor in loaded.items()
            if name in own and own[name].shape != tensor.shape
        ]
        if problems:
            given = f"{str(path)!r} ({problems[0]})"
            raise InputError(given, "weights saved from such a model", "load")
        with torch.no_grad():
            for name, tensor in loaded.items():
                own[name].detach().copy_(tensor)
    return model


def sources(model: nn.Module) -> dict[str, Path]:
    """Return the directories that parts of the model say they were loaded from, if these still exist."""
    found = {}
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            path = getattr(holder, "__dict__", {}).get("name_or_path") or getattr(holder, "_name_or_path", None)
            if isinstance(path, str) and path and Path(path).is_dir():
                found["the directory that the model was loaded from"] = Path(path)
    return found


def check_apart(out: Path, inputs: Mapping[str, Path], where: str) -> None:
    """Raise InputError if the output folder is one of the inputs, lies in one, or holds one.

    Paths are compared by the files that they lead to: relative spellings, links and the case of letters do not matter.

    Args:
        out: The output folder.
        inputs: The inputs, by the name that a message gives them.
        where: The place that a message names.
    """
    for what, path in inputs.items():
        for inner, outer, how in ((path, out, "which holds"), (out, path, "which lies in")):
            place = Path(os.path.realpath(inner))
            if any(_is_same(candidate, outer) for candidate in (place, *place.parents)):
                same = _is_same(path, out)
                given = f"{str(out)!r}, {'which is' if same else how} {what} ({path})"
                raise InputError(given, "a folder apart from what is read", where)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def load_components(directory: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """Return the parts of each compressed layer by name; :func:`compcomp.models.components.unpack` adds them up."""
    layers: dict[str, dict[str, Tensor]] = {}
    shards = sorted(Path(directory).glob("components-*.safetensors"))
    for path in shards or [_existing(directory, COMPONENTS)]:
        for name, tensor in load_file(path).items():
            layer, part = name.rsplit(".", 1)
            layers.setdefault(layer, {})[part] = tensor
    return layers


def _existing(directory: str | os.PathLike[str], name: str) -> Path:
    path = Path(directory) / name
    if not path.is_file():
        raise InputError(f"{str(path)!r}, which is not there", "a directory with a saved model", "load")
    return path


def _layers_of(model: nn.Module, state: Mapping[str, LayerState]) -> dict[str, Layer]:
    found = layers_by_name(model, embeddings=True)
    for name, layer in state.items():
        if name not in found or found[name].shape != tuple(layer.weight.shape):
            raise InputError(f"a state with layer {name!r}", "the state of layers of this model", "save")
        check_range(name, effective_weight(layer), found[name].parameter.dtype)
    return {name: found[name] for name in state}


def _write_model(model: nn.Module, draft: Path) -> None:
    """Write the model's own files; if libraries do not accept its memory, write a copy of each of its tensors."""
    own = is_from_transformers(model, "PreTrainedModel")
    try:
        if own:
            model.save_pretrained(draft, max_shard_size="100TB")  # type: ignore[operator]
        else:
            save_model(model, str(draft / WEIGHTS), metadata={"format": "pt"})
    except (RuntimeError, ValueError, NotImplementedError) as error:
        try:
            apart = _apart(model)
            if own:
                model.save_pretrained(draft, state_dict=apart, max_shard_size="100TB")  # type: ignore[operator]
            else:
                save_file(apart, draft / WEIGHTS, metadata={"format": "pt"})
        except (RuntimeError, ValueError, NotImplementedError):
            given = f"a model whose tensors cannot be written ({' '.join(str(error).split())[:120]})"
            raise InputError(given, "a model of dense tensors", "save") from None


def _apart(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every tensor that a model saves.

    Tensors with several names are copied once, under the first name.
    """
    found: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in sorted(model.state_dict().items()):
        found.setdefault(place(tensor) if tensor.numel() else name, (name, tensor))
    return {name: tensor.detach().contiguous().clone() for name, tensor in found.values()}


@contextmanager
def _holding(layers: Mapping[str, Layer], state: Mapping[str, LayerState]) -> Iterator[None]:
    """Put the state's weights into the model, and restore the earlier ones afterwards, bitwise."""
    before: list[tuple[Layer, Tensor]] = []
    try:
        for name, layer in layers.items():
            weight = effective_weight(state[name]).to(layer.weight)
            if not torch.equal(weight, layer.weight):
                before.append((layer, layer.weight.clone()))
                layer.set(weight)
        yield
    finally:
        for layer, weight in before:
            layer.set(weight)


def _about(layers: Mapping[str, Layer], state: Mapping[str, LayerState], extra: Mapping[str, Any]) -> str:
    about = {name: layer_json(layer, layers[name].shape) for name, layer in state.items()}
    own: dict[str, Any] = {"layers": about}
    if state:
        own["compression_rate"] = compression_rate((s.format, layers[n].shape) for n, s in state.items())
    if taken := own.keys() & extra.keys():
        raise InputError(f"the key {min(taken)!r}", f"keys other than {', '.join(own)}", "save")
    try:
        return json.dumps({**_finite(extra), **own}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"extra data ({str(error)[:100]})", "what JSON can hold", "save") from None


def layer_json(state: LayerState, shape: tuple[int, int]) -> dict[str, Any]:
    """Return what ``compcomp.json`` says of a layer: its shape (out, in), its bits, and the structure of its weight."""
    form = state.format
    return {
        "shape": shape,
        "bits": layer_bits(form, shape),
        "dense_bits": dense_bits(shape),
        "kept": shape[0] * shape[1] if form.mask is None else int(form.mask.sum()),
        "levels": form.grid and form.grid.levels,
        "lowest": form.grid and form.grid.lowest,
        "codes": form.grid and form.grid.codes and [str(code) for code in form.grid.codes],
        "scales": form.grid and form.grid.scales,
        "offsets": form.grid and (0 if form.grid.offset is None else form.grid.scales),
        "factor_rank": form.factors and form.factors.rank,
        "factor_levels": form.factors
        and [grid and grid.levels for grid in (form.factors.left_grid, form.factors.right_grid)],
        "rank": form.rank,
        "pattern": [f"{n}:{m}" for n, m in form.pattern or ()],
        "basis": [] if form.transform is None else [_part(part) for part in form.transform.parts],
    }


def _part(part: Part) -> str:
    return "scales" if isinstance(part, Scaling) else f"Hadamard {part.block}"


def _finite(value: Any) -> Any:
    """Return the same data with infinite numbers and NaN as texts: JSON cannot express them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

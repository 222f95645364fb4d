"""Save a compressed model as ordinary files, and load it."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.basis import Part, Scaling
from compcomp.language.layer import LayerState
from compcomp.language.size import dense_bits, layer_bits
from compcomp.models.bench import check_range
from compcomp.models.components import pack
from compcomp.models.layers import Layer, is_from_transformers, layers_by_name, unwrap
from compcomp.models.measure import effective_weight
from compcomp.models.names import under_own_names
from compcomp.models.size import compression_rate

WEIGHTS, COMPONENTS, ABOUT = "model.safetensors", "components.safetensors", "compcomp.json"


def save(
    model: nn.Module,
    state: Mapping[str, LayerState],
    directory: str | os.PathLike[str],
    extra_json: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model with this state's weights to a directory, and return its path.

    ``model.safetensors``: every weight in the model's dtype, pruned ones as zeros, so that the model's own
    class loads it (transformers: ``from_pretrained(directory)``, with the ``config.json`` beside it).
    ``components.safetensors``: what each compressed layer is made of, ``LAYER.PART`` (see
    :func:`compcomp.models.components.pack`). ``compcomp.json``: shapes and bits, and ``extra_json``, which
    must be JSON but for infinite numbers and NaN, written as texts.

    The files are written beside the directory first and moved into it when all are complete; other files in
    it stay. The model keeps the weights that it has. InputError when the directory is a file or cannot be
    written, or when a weight of the state does not fit into the model's dtype.
    """
    model, target = unwrap(model), Path(directory)
    layers = _layers_of(model, state)
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
            _write_model(model, draft)
        parts = {
            f"{name}.{part}": tensor
            for name, layer in state.items()
            for part, tensor in pack(layer, layers[name].parameter.dtype).items()
        }
        save_file(parts, draft / COMPONENTS, metadata={"format": "pt"})
        (draft / ABOUT).write_text(about, encoding="utf-8")
        target.mkdir(exist_ok=True)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == ABOUT):  # the last one last
            path.chmod(0o666 & ~_umask())
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def load_weights(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Load ``model.safetensors`` of a saved model into a module of the same class and shape, and return it.

    InputError when the file is missing, damaged, or does not fit the module.
    """
    path = _existing(directory, WEIGHTS)
    try:
        renamed = under_own_names(unwrap(model), path)
        if renamed is None:
            load_model(unwrap(model), path)
        else:
            unwrap(model).load_state_dict(renamed)
    except (RuntimeError, SafetensorError) as error:
        given = f"{str(path)!r} ({str(error)[:200]})"
        raise InputError(given, "weights saved from such a model", "load") from None
    return model


def load_components(directory: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """The parts of each compressed layer by name; :func:`compcomp.models.components.unpack` adds them up."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(_existing(directory, COMPONENTS)).items():
        layer, part = name.rsplit(".", 1)
        layers.setdefault(layer, {})[part] = tensor
    return layers


def _existing(directory: str | os.PathLike[str], name: str) -> Path:
    path = Path(directory) / name
    if not path.is_file():
        raise InputError(f"{str(path)!r}, which is not there", "a directory with a saved model", "load")
    return path


def _layers_of(model: nn.Module, state: Mapping[str, LayerState]) -> dict[str, Layer]:
    found = layers_by_name(model)
    for name, layer in state.items():
        if name not in found or found[name].shape != tuple(layer.weight.shape):
            raise InputError(f"a state with layer {name!r}", "the state of layers of this model", "save")
        check_range(name, effective_weight(layer), found[name].parameter.dtype)
    return {name: found[name] for name in state}


def _write_model(model: nn.Module, draft: Path) -> None:
    if is_from_transformers(model, "PreTrainedModel"):
        model.save_pretrained(draft, max_shard_size="100TB")  # type: ignore[operator]
    else:
        save_model(model, str(draft / WEIGHTS), metadata={"format": "pt"})


@contextmanager
def _holding(layers: Mapping[str, Layer], state: Mapping[str, LayerState]) -> Iterator[None]:
    """The state's weights in the model, and afterwards those that were there, bitwise."""
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
    described = {}
    for name, layer in state.items():
        form, shape = layer.format, layers[name].shape
        described[name] = {
            "shape": shape,
            "bits": layer_bits(form, shape),
            "dense_bits": dense_bits(shape),
            "kept": shape[0] * shape[1] if form.mask is None else int(form.mask.sum()),
            "levels": form.grid and form.grid.levels,
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
    own: dict[str, Any] = {"layers": described}
    if state:
        own["compression_rate"] = compression_rate((s.format, layers[n].shape) for n, s in state.items())
    if taken := own.keys() & extra.keys():
        raise InputError(f"the key {min(taken)!r}", f"keys other than {', '.join(own)}", "save")
    try:
        return json.dumps({**_finite(extra), **own}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"extra data ({str(error)[:100]})", "what JSON can hold", "save") from None


def _part(part: Part) -> str:
    return "scales" if isinstance(part, Scaling) else f"Hadamard {part.block}"


def _finite(value: Any) -> Any:
    """The same data with infinite numbers and NaN as texts, which JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

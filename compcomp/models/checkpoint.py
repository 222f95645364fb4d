"""Read a transformers checkpoint module by module, and write one shard by shard: models larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compcomp.models.causal_lm import config_of, quiet, reason, refused
from compcomp.models.conversion import Conversion

META = torch.device("meta")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes of weights, by the names that safetensors has for them."""


class Checkpoint:
    """The weights in a directory, and the model that they belong to, whose parameters are not loaded.

    Tensors get the names, shapes and dtypes that ``from_pretrained`` gives them.

    Attributes:
        directory: The directory.
        model: The model, in eval mode. Its parameters are on the meta device; buffers that no file holds have values.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        self.directory = directory
        config = config_of(directory)
        stored = _stored_in(directory)
        if getattr(config, "dtype", None) is None:
            config.dtype = next((one.dtype for one in stored.values() if one.dtype is not None), None)
        with quiet(), no_init_weights(), _parameters_on_meta():
            try:
                self.model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
                self.model.tie_weights()
                self._dtypes = _dtypes_of(self.model)
                self._conversion = Conversion(self.model, stored)
            except Exception as error:  # whatever is wrong with the files, found by any library
                raise refused(directory, reason(error)) from None
        self._paths = {name: one.path for name, one in stored.items()}
        self._check(stored)

    def tensors(self, module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
        """Yield what a module holds and files store: its owner, its name there, its name in the model, and itself.

        A tensor with several names is yielded under the one that files use.
        """
        seen = set[int]()
        for path, owner in module.named_modules(prefix=prefix):
            for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
                own = f"{path}.{name}" if path else name
                if tensor is not None and own in self._conversion.parts and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield owner, name, own, tensor

    def load(
        self, module: nn.Module, prefix: str, device: torch.device | None = None, written: Path | None = None
    ) -> None:
        """Load a module's tensors onto a device.

        Args:
            module: The module.
            prefix: Its name in the model.
            device: The device; None for the CPU.
            written: A file that holds what :meth:`stored` returned for the module, to be read in place of the
                checkpoint.

        Raises:
            InputError: A file cannot be read. The message names it.
        """
        path = written
        with ExitStack() as stack:
            open_: dict[Path, Any] = {}

            def get(name: str) -> Tensor:
                nonlocal path
                path = written or self._paths[name]
                if path not in open_:
                    open_[path] = stack.enter_context(safe_open(path, "pt"))
                return open_[path].get_tensor(name)  # type: ignore[no-any-return]

            try:
                conversion = self._conversion
                if written is not None:
                    open_[written] = stack.enter_context(safe_open(written, "pt"))
                    conversion = Conversion(self.model, open_[written].keys())
                wanted = {own: (owner, name) for owner, name, own, _ in list(self.tensors(module, prefix))}
                for part in dict.fromkeys(conversion.parts[own] for own in wanted):
                    for own, tensor in conversion.read(part, get).items():
                        if own in wanted:
                            put(*wanted[own], _apart(tensor.to(device or "cpu", self._dtypes[own])))
            except (OSError, SafetensorError, RuntimeError, KeyError) as error:
                named = "" if path is None else f"{path.name}: "
                raise refused(self.directory, f"{named}{reason(error)}") from None

    def unload(self, module: nn.Module, prefix: str) -> None:
        """Drop a module's tensors from memory."""
        for owner, name, _, tensor in list(self.tensors(module, prefix)):
            put(owner, name, torch.empty_like(tensor, device=META))

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what files hold for some tensors of the model: by their names there, on the CPU, none in another."""
        found = self._conversion.written({name: tensor.detach().cpu() for name, tensor in tensors.items()})
        return {name: _apart(tensor.contiguous()) for name, tensor in found.items()}

    def _check(self, stored: Mapping[str, _Stored]) -> None:
        """Raise InputError unless the files hold each tensor of the model, in its shape, and can be written again."""
        own = dict(self.model.state_dict(keep_vars=True))
        parts = self._conversion.parts
        there = {id(tensor) for name, tensor in own.items() if name in parts}
        missing = [name for name, tensor in own.items() if name not in parts and id(tensor) not in there]
        if missing:
            lacks = f"its files lack {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            raise refused(self.directory, f"{lacks}; load the model and apply to it")
        shown: dict[str, Tensor] = {}
        for part in dict.fromkeys(parts.values()):
            for name, _ in part.sources:
                if own[part.targets[0]].is_floating_point() and stored[name].dtype is None:
                    given = f"{stored[name].path.name}: {name} is of {stored[name].kind}, which is no float dtype"
                    raise refused(self.directory, given)
            source = part.sources[0][0]
            try:
                found = self._conversion.read(part, lambda name: stored[name].on_meta())
            except Exception as error:  # whatever a rule finds wrong with its tensors
                more = f" and {len(part.sources) - 1} more" if len(part.sources) > 1 else ""
                given = f"{source}{more} cannot be read as {part.targets[0]}: {reason(error)}"
                raise refused(self.directory, given) from None
            for name in part.targets:
                shape = tuple(found[name].shape) if name in found else None
                if shape != tuple(own[name].shape):
                    which = name if name == source or len(part.sources) == 1 else f"{name} (from {source})"
                    given = f"{which} is {shape}, {tuple(own[name].shape)} by config.json"
                    raise refused(self.directory, f"{stored[source].path.name}: {given}")
                shown[name] = torch.empty_like(own[name], device=META)
        try:
            lost = shown.keys() - Conversion(self.model, self._conversion.written(shown)).parts.keys()
        except Exception as error:  # rules that have no way back
            raise refused(self.directory, f"{reason(error)}; load the model and apply to it") from None
        if lost:
            given = f"transformers does not read {min(lost)} under the name it writes; load the model and apply to it"
            raise refused(self.directory, given)


@dataclass(frozen=True)
class _Stored:
    """The description of a tensor in a file: its shape, the name of its dtype, and the dtype if it is one of floats."""

    path: Path
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype | None:
        return FLOATS.get(self.kind)

    def on_meta(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype or torch.int64, device=META)


def _dtypes_of(model: Any) -> dict[str, torch.dtype]:
    """Return the dtype that ``from_pretrained`` gives each tensor of a model."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(model.dtype)
    found = {name: tensor.dtype for name, tensor in model.state_dict(keep_vars=True).items()}
    if plan:
        patterns, by_group, _ = build_glob_alternation(list(plan))
        for name in found:
            if (match := patterns.search(name)) is not None:
                found[name] = plan[by_group[match.lastgroup]]
    return found


def _apart(tensor: Tensor) -> Tensor:
    """Return a tensor that holds its memory alone."""
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in place of a module's parameter or buffer, for every module that shares it under this owner."""
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[name] = tensor


def index_of(weights: Mapping[str, str], size: int) -> str:
    """Return the index file of sharded weights: the file of each tensor, and the bytes of all."""
    return json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}, indent=2) + "\n"


def _stored_in(directory: Path) -> dict[str, _Stored]:
    """Return what the files in a directory hold. Raises InputError, naming the file, if one cannot be read."""
    if (directory / WEIGHTS).is_file():
        named: dict[Path, set[str]] = {directory / WEIGHTS: set()}
    elif not (directory / INDEX).is_file():
        raise refused(directory, f"no {WEIGHTS} and no {INDEX}")
    else:
        named = {}
        try:
            weights = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            for name, file in weights.items():
                named.setdefault(directory / str(file), set()).add(str(name))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise refused(directory, f"{INDEX}: {reason(error)}") from None
    found: dict[str, _Stored] = {}
    for path, names in named.items():
        if not path.is_file():
            raise refused(directory, f"{path.name} is not there")
        try:
            with safe_open(path, "pt") as file:
                there = list(file.keys())
                if lost := names - set(there):
                    raise refused(directory, f"{path.name}: no {min(lost)}, which {INDEX} says is in it")
                for name in names or there:
                    part = file.get_slice(name)
                    found[name] = _Stored(path, tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise refused(directory, f"{path.name}: {reason(error)}") from None
    return found


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Make the parameters of modules that are built meanwhile tensors without memory. Buffers are as always."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device != META:
            parameter = nn.Parameter(parameter.detach().to(META), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]

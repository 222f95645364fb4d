"""Read a transformers checkpoint module by module, and write one shard by shard: models larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compcomp.models.causal_lm import config_of, quiet, reason, refused

META = torch.device("meta")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The weights in a directory, and the model that they belong to, whose parameters are not loaded.

    Attributes:
        directory: The directory.
        model: The model, in eval mode. Its parameters are on the meta device; buffers that no file holds have values.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        self.directory = directory
        config = config_of(directory)
        self._files = _files_of(directory)
        with quiet(), no_init_weights(), _parameters_on_meta():
            try:
                self.model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
                self.model.tie_weights()
            except Exception as error:  # whatever is wrong with the files, found by any library
                raise refused(directory, reason(error)) from None
        self._check_names()

    def tensors(self, module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
        """Yield what a module holds and files store: its owner, its name there, its name in the model, and itself.

        A tensor with several names is yielded under the one that files use.
        """
        seen = set[int]()
        for path, owner in module.named_modules(prefix=prefix):
            for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
                stored = f"{path}.{name}" if path else name
                if tensor is not None and stored in self._files and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield owner, name, stored, tensor

    def load(self, module: nn.Module, prefix: str, device: torch.device | None = None) -> None:
        """Load a module's tensors onto a device.

        Raises InputError, naming the file, if one cannot be read.
        """
        with ExitStack() as stack:
            open_: dict[Path, Any] = {}
            for owner, name, stored, _ in list(self.tensors(module, prefix)):
                path = self._files[stored]
                try:
                    if path not in open_:
                        open_[path] = stack.enter_context(safe_open(path, "pt"))
                    put(owner, name, open_[path].get_tensor(stored).to(device or "cpu", copy=True))
                except (OSError, SafetensorError, RuntimeError) as error:
                    raise refused(self.directory, f"{path.name}: {reason(error)}") from None

    def unload(self, module: nn.Module, prefix: str) -> None:
        """Drop a module's tensors from memory."""
        for owner, name, _, tensor in list(self.tensors(module, prefix)):
            put(owner, name, torch.empty_like(tensor, device=META))

    def _check_names(self) -> None:
        """Raise InputError unless the files hold each tensor of the model, in its shape."""
        own = dict(self.model.state_dict(keep_vars=True))
        there = {id(tensor) for name, tensor in own.items() if name in self._files}
        if missing := [name for name, tensor in own.items() if name not in self._files and id(tensor) not in there]:
            lacks = f"its files lack {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            raise refused(self.directory, f"{lacks}; load the model and apply to it")
        for path in dict.fromkeys(self._files.values()):
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        saved = tuple(file.get_slice(name).get_shape())
                        if name in own and saved != tuple(own[name].shape):
                            raise refused(self.directory, f"{name} is {saved}, {tuple(own[name].shape)} by config.json")
            except (OSError, SafetensorError, RuntimeError) as error:
                raise refused(self.directory, f"{path.name}: {reason(error)}") from None


def put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in place of a module's parameter or buffer, for every module that shares it under this owner."""
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[name] = tensor


def index_of(weights: Mapping[str, str], size: int) -> str:
    """Return the index file of sharded weights: the file of each tensor, and the bytes of all."""
    return json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}, indent=2) + "\n"


def _files_of(directory: Path) -> dict[str, Path]:
    """Return the file of each stored tensor."""
    if (directory / WEIGHTS).is_file():
        try:
            with safe_open(directory / WEIGHTS, "pt") as file:
                return dict.fromkeys(file.keys(), directory / WEIGHTS)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise refused(directory, f"{WEIGHTS}: {reason(error)}") from None
    if not (directory / INDEX).is_file():
        raise refused(directory, f"no {WEIGHTS} and no {INDEX}")
    try:
        weights = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
        found = {str(name): directory / str(file) for name, file in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise refused(directory, f"{INDEX}: {reason(error)}") from None
    if missing := [path for path in found.values() if not path.is_file()]:
        raise refused(directory, f"{missing[0].name} is not there")
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

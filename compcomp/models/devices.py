"""Choose the device that a model runs on, and move tensors there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.models.memory import extent, is_plain


def choose(model: nn.Module, given: str | torch.device) -> torch.device | None:
    """Return the device for "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N". Raises InputError for any other.

    The result None leaves the model where it is: for "auto" and a model that is spread over several devices.
    """
    spread = sorted({str(p.device) for p in model.parameters()})
    if given == "auto":
        if len(spread) > 1:
            return None
        given = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if not is_there(device):
        allowed = f"'auto', 'cpu', or one of the {torch.cuda.device_count()} CUDA devices as 'cuda:N'"
        raise InputError(repr(str(given)[:60]), allowed, "device")
    if len(spread) > 1:
        raise InputError(f"{str(given)!r} for a model on {', '.join(spread)}", "'auto'", "device")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def is_there(device: torch.device) -> bool:
    """Return True for the CPU, and for a CUDA device that this machine has."""
    return device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())


def bring(model: nn.Module, device: torch.device) -> None:
    """Move the model to a device, unless all of it that is loaded is there.

    Tensors that share memory still share it.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device not in (device, torch.device("meta")) for tensor in tensors):
        move_together(tensors, device)
        model.to(device)


def move_together(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Move, in place, those of the tensors that share memory with another, as views of one copy of that memory."""
    plain = [t for t in tensors if is_plain(t) and t.numel()]
    groups: list[list[Tensor]] = []
    reach: tuple[int, int] = 0, 0  # storage and end of the last group
    for tensor in sorted(plain, key=lambda t: (t.untyped_storage().data_ptr(), extent(t))):
        storage, (start, end) = tensor.untyped_storage().data_ptr(), extent(tensor)
        if groups and storage == reach[0] and start < reach[1]:
            groups[-1].append(tensor)
            reach = storage, max(end, reach[1])
        else:
            groups.append([tensor])
            reach = storage, end
    for group in groups:
        if len(group) > 1:
            storage_of, first = group[0].untyped_storage(), group[0].untyped_storage().data_ptr()
            begin = (min(extent(t)[0] for t in group) - first) // 16 * 16  # where any dtype may begin
            size = max(extent(t)[1] for t in group) - first - begin
            memory = torch.empty(0, dtype=torch.uint8, device=group[0].device).set_(storage_of, begin, (size,), (1,))
            moved = torch.empty(size, dtype=torch.uint8, device=device).copy_(memory).untyped_storage()
            for tensor in group:
                offset = (tensor.data_ptr() - first - begin) // tensor.element_size()
                view = torch.empty(0, dtype=tensor.dtype, device=device)
                with torch.inference_mode(tensor.is_inference()):
                    let_hold(tensor, view.set_(moved, offset, tensor.shape, tensor.stride()))


def let_hold(tensor: Tensor, data: Tensor) -> None:
    """Let a tensor be a view of the memory of another one, on any device."""
    tensor.data = data


def move(value: Any, device: torch.device) -> Any:
    """Return the value with every tensor on the device, also inside dicts, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(move(item, device) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [move(item, device) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: move(getattr(value, f.name), device) for f in fields(value)})
    return value

"""A device that is not the CPU, for machines without one.

Its tensors hold tensors of the CPU and compute on them, so results are those of the CPU, bit for bit. As on a GPU,
operations refuse tensors of different devices, and values reach numpy only through ``.cpu()``. For torch it is a
backend of its own, written in Python, that no library has code for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyDeviceGuard, _setup_privateuseone_for_python_backend

from compcomp.models import devices, memory

NAME = "unlike_cpu"
OTHER, CPU = torch.device("privateuseone", 0), torch.device("cpu")  # shown as NAME once it is registered

ACROSS = {"aten::copy_", "aten::_copy_from", "aten::_to_copy", "aten::_copy_from_and_resize"}
"""The operations that take tensors of different devices."""
TOGETHER = {"aten::cat", "aten::stack"}
"""The operations that take no numbers (tensors of no dimension) of the CPU either."""


class OtherTensor(Tensor):
    """A tensor on the device. ``held``: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OtherTensor:
        if held.layout is not torch.strided:
            raise NotImplementedError(f"a tensor of layout {held.layout} on the device {NAME}")
        make: Any = Tensor._make_wrapper_subclass
        made: OtherTensor = make(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=OTHER, requires_grad=False
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in METHODS:
                return METHODS[func](*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class OtherGenerator(torch.Generator):
    """A generator of random numbers on any device. That of the device yields the numbers of the CPU's."""

    def __new__(cls, device: Any = "cpu") -> OtherGenerator:
        there = torch.device(device).type == NAME
        made = super().__new__(cls, "cpu" if there else device)
        GENERATORS[made._cdata] = OTHER if there else CPU  # type: ignore[attr-defined]
        return made


GENERATORS: dict[int, torch.device] = {}
"""The device of each generator, by its address: torch passes on objects of its own."""


def refuse(func: Any, text: str) -> None:
    raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {text}")


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute an operation of which an argument, or the result, is on the device."""
    name, given = func._schema.name, pytree.tree_leaves((args, kwargs))
    held = {id(x.held): x for x in given if isinstance(x, OtherTensor)}
    plain = [x for x in given if isinstance(x, Tensor) and not isinstance(x, OtherTensor)]
    where = kwargs.get("device")
    there = bool(held) if where is None else torch.device(where).type == NAME
    if held and name not in ACROSS and (mixed := [x for x in plain if x.ndim or name in TOGETHER]):
        refuse(func, f"a tensor of shape {tuple(mixed[0].shape)} on {mixed[0].device}")
    if any(isinstance(x, torch.UntypedStorage) and getattr(x, "where", CPU) != OTHER for x in given):
        refuse(func, "memory on cpu")
    for generator in [x for x in given if isinstance(x, torch._C.Generator)]:
        if (found := GENERATORS.get(generator._cdata, CPU)) != (OTHER if there else CPU):  # type: ignore[attr-defined]
            refuse(func, f"a generator on {found}")

    def inside(x: Any) -> Any:
        if isinstance(x, OtherTensor):
            return x.held
        return CPU if isinstance(x, torch.device) and x.type == NAME else x

    own = {id(x): x for x in plain}

    def outside(x: Any) -> Any:
        if id(x) in held:
            return held[id(x)]
        return OtherTensor(x) if there and isinstance(x, Tensor) and id(x) not in own else x

    args, kwargs = pytree.tree_map(inside, (args, kwargs))
    if name == "aten::histc" and not args[0].is_floating_point():  # which GPUs can, and the CPU cannot
        result = func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    else:
        result = func(*args, **kwargs)
    if func._schema.is_mutable:
        for tensor in held.values():
            if tensor.shape != tensor.held.shape or tensor.stride() != tensor.held.stride():
                become(tensor, tensor.held)
    return pytree.tree_map(outside, result)


def become(tensor: Tensor, held: Tensor) -> None:
    """Let a tensor on the device hold other values, of any shape."""
    Tensor.data.__set__(tensor, OtherTensor(held))  # type: ignore[attr-defined]
    tensor.held = held  # type: ignore[attr-defined]


def let_hold(tensor: Tensor, data: Tensor) -> None:
    """Let a tensor be a view of other memory, as nn.Module does for tensors of types that are not torch's own."""
    if type(tensor) is type(data):
        tensor.data = data
    else:
        needed = tensor.requires_grad
        made = nn.Parameter(data, needed) if isinstance(tensor, nn.Parameter) else data.requires_grad_(needed)
        torch.utils.swap_tensors(tensor, made)


def _to_numpy(tensor: OtherTensor, *_: Any, **__: Any) -> Any:
    raise TypeError(f"can't convert {OTHER} device type tensor to numpy. Use Tensor.cpu() first.")


def _memory(tensor: OtherTensor) -> Any:
    memory: Any = tensor.held.untyped_storage()
    memory.where = OTHER
    return memory


def _set_data(tensor: Tensor, value: Tensor) -> None:
    if isinstance(tensor, OtherTensor) and isinstance(value, OtherTensor):
        become(tensor, value.held)
    else:
        Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]


def _deep_copy(tensor: OtherTensor, memo: dict[int, Any]) -> Any:
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if parameter else copied
    return memo[id(tensor)]


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Compute attention in one operation, as the CPU does where no gradient is needed."""
    if torch.is_grad_enabled():
        return F.scaled_dot_product_attention(*args, **kwargs)
    return computed(torch.ops.aten.scaled_dot_product_attention.default, args, kwargs)  # type: ignore[no-any-return]


METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.numpy: _to_numpy,
    Tensor.__array__: _to_numpy,
    Tensor.tolist: lambda tensor: tensor.held.tolist(),
    Tensor.__repr__: lambda tensor, **_: f"{tensor.held!r} on {OTHER}",
    Tensor.data_ptr: lambda tensor: tensor.held.data_ptr(),
    Tensor.untyped_storage: _memory,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.__deepcopy__: _deep_copy,
    F.scaled_dot_product_attention: _attention,
}
"""What torch does not compute by operations."""


class _Module:
    """The functions of ``torch.other``. Libraries that ask get the answer that no such device is there."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks(), _DummyDeviceGuard())
_EVERY = library.Library("_", "IMPL")
_EVERY.fallback(lambda func, *args, **kwargs: computed(func, args, kwargs), "PrivateUse1")
_COPIES = library.Library("aten", "IMPL")  # torch.tensor finds no fallback for them
_COPIES.impl("copy_", lambda *a, **more: computed(torch.ops.aten.copy_.default, a, more), "PrivateUse1")
# All this when the module is imported: devices that come after the first backward pass get no thread for it.


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Yield the device. Inside, compcomp takes it for one that is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", OtherGenerator)
        patch.setattr(devices, "is_there", lambda device: device.type in (NAME, "cpu"))
        patch.setattr(devices, "let_hold", let_hold)
        patch.setattr(memory, "KINDS", {*memory.KINDS, OtherTensor})
        yield OTHER

"""Find tensors of a model that share memory, and read tensors of any kind."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 2**28
"""Places of memory up to which two strided tensors are compared exactly.

Beyond, overlapping ranges count as shared memory.
"""


KINDS: set[type] = {Tensor, nn.Parameter}
"""The types of tensors that are views of memory, and nothing more."""


def trim() -> None:
    """Give freed memory back to the system, where the C library is glibc.

    Its allocator keeps large pieces once it has freed some, and between pieces of several sizes it loses more memory
    from block to block.
    """
    if _TRIM is not None:
        _TRIM(0)


def _found() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return None


_TRIM = _found()


def is_plain(tensor: Tensor) -> bool:
    """Return True if the tensor is a view of memory that can be read and written: dense, of no subclass, and loaded.

    The result is False for sparse, nested, mkldnn, quantized, meta and fake tensors, and for the subclasses that hold
    quantized, distributed or not yet initialised weights.
    """
    if not {type(tensor), type(tensor.data)} <= KINDS:
        return False
    return (
        tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and tensor.device.type != "meta"
    )


def kind_of(tensor: Tensor) -> str:
    """Describe the kind of a tensor for an error message."""
    kind, dtype = type(tensor).__name__, str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return f"nested tensor of {dtype}"
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.').removeprefix('_')} {kind} of {dtype}"
    return f"{kind} of {dtype}"


def place(tensor: Tensor) -> object:
    """Return a value that is equal for tensors that are the same view of memory: address, shape, strides and dtype."""
    if not is_plain(tensor) or tensor.numel() == 0:
        return id(tensor)
    strides = tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), strides, tensor.dtype


def stretch(tensor: Tensor) -> object:
    """Return a value that is equal for tensors that are the same whole stretch of memory, in any layout.

    For other tensors it is that of :func:`place`.
    """
    if not is_plain(tensor) or tensor.numel() == 0 or not _is_whole(tensor):
        return place(tensor)
    return tensor.device, extent(tensor), tensor.dtype


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first address that a plain tensor reads, and the one after the last."""
    size = tensor.element_size()
    steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (sum(steps) + 1) * size


def overlap(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors share memory.

    The answer is exact up to :data:`LARGEST` places; beyond, overlapping ranges count as shared.
    """
    if not (is_plain(one) and is_plain(other) and one.numel() and other.numel()) or one.device != other.device:
        return one is other
    (start, end), (begin, stop) = extent(one), extent(other)
    if end <= begin or stop <= start:
        return False
    if _is_whole(one) and _is_whole(other):
        return True
    marks = _Marks(one, other)
    if not marks.possible:
        return True
    marks.of(one).fill_(True)
    return bool(marks.of(other).any())


def overlaps_itself(tensor: Tensor) -> bool:
    """Return True if entries of a plain tensor share memory, as those of an expanded one do."""
    if tensor.numel() == 0 or _is_whole(tensor):
        return False
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return True
    marks = _Marks(tensor)
    if not marks.possible:
        return True
    marks.of(tensor).fill_(True)
    return int(marks.marks.sum()) * marks.unit != tensor.numel() * tensor.element_size()


class _Marks:
    """A truth value for every place of memory that some tensors reach, and a view of it for each of them."""

    def __init__(self, *tensors: Tensor) -> None:
        ends = [extent(tensor) for tensor in tensors]
        self.start = min(start for start, _ in ends)
        self.unit = gcd(*(t.element_size() for t in tensors), *(start - self.start for start, _ in ends))
        self.count = (max(end for _, end in ends) - self.start) // self.unit
        self.possible = self.count <= LARGEST
        self.marks = torch.zeros(self.count if self.possible else 0, dtype=torch.bool, device="cpu")

    def of(self, tensor: Tensor) -> Tensor:
        units = tensor.element_size() // self.unit
        shape = (*tensor.shape, units)
        strides = (*(stride * units for stride in tensor.stride()), 1)
        return self.marks.as_strided(shape, strides, (tensor.data_ptr() - self.start) // self.unit)


def _is_whole(tensor: Tensor) -> bool:
    """Return True if a tensor reads each place between its first and its last exactly once."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of: itself, or the parts of a sparse or wrapped one.

    Yields nothing for a tensor without values.
    """
    if tensor.device.type == "meta" or _is_fake(tensor) or _is_lazy(tensor):
        return
    with torch.no_grad():
        value = tensor.detach()
        if is_plain(tensor):
            yield value
        elif tensor.layout is torch.sparse_coo:
            yield from (value._indices(), value._values())
        elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            yield from (value.crow_indices(), value.col_indices(), value.values())
        elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            yield from (value.ccol_indices(), value.row_indices(), value.values())
        elif hasattr(type(value), "__tensor_flatten__"):
            wrapped: Any = value
            for name in wrapped.__tensor_flatten__()[0]:
                yield from parts(getattr(value, name))
        elif tensor.is_nested:
            yield from (part.contiguous() for part in value.unbind())
        elif tensor.is_quantized:
            yield value.int_repr()
            yield value.dequantize()
        elif tensor.is_mkldnn:
            yield value.to_dense()
        elif type(tensor.data) is not Tensor and tensor.layout is torch.strided:
            yield value.as_subclass(Tensor)


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the shape, or None for a parameter that is not initialised."""
    return None if _is_lazy(tensor) else tuple(tensor.shape)


def _is_fake(tensor: Tensor) -> bool:
    return any(kind.__name__ == "FakeTensor" for kind in type(tensor.data).__mro__ + type(tensor).__mro__)


def _is_lazy(tensor: Any) -> bool:
    return any(kind.__name__ == "UninitializedTensorMixin" for kind in type(tensor).__mro__)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return True if two plain tensors, on any devices, have the same shape and dtype, and are bitwise equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(bits(one).to(other.device), bits(other))


def bits(tensor: Tensor) -> Tensor:
    """Return the entries of a plain tensor in its order, as whole numbers."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().reshape(-1).view(width)

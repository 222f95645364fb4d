"""Apply kernels to the state of one layer, in torch tensors, and compute digests that distinguish states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from compcomp.errors import InputError
from compcomp.language.kernel_result import all_finite, wrong_result
from compcomp.language.technique import Technique, run_kernel
from compcomp.layers import walk
from compcomp.layers.state import LayerState, Magnitudes
from compcomp.models.measure import effective_weight
from compcomp.models.memory import bits


def applied(technique: Technique, name: str, layer: LayerState) -> LayerState:
    """Return the state after the technique's kernel has run on the layer of this name, on the layer's device.

    Reference, Gram matrix and inputs are the given ones. Tensors are contiguous and hold no negative zeros. States that
    are equal are therefore also equal for every further kernel, including LAPACK's signs and the code paths of BLAS.

    Raises:
        InputError: The technique does not fit, its result is not finite or has another shape, or its kernel wrote to
            its arguments. The message names the layer. Any other error of the kernel gets a note that says where.
    """
    versions, where = versions_of(layer), f"layer {name}: after {technique}"

    def kernel(technique: Technique, view: LayerState) -> LayerState:
        after = technique.kernel()(technique, view)
        check_result(view, after, where)
        return after

    try:
        after = run_kernel(technique, layer, kernel)
    except InputError as error:
        if error.where == where:
            raise
        raise InputError(error.given, error.allowed, f"layer {name}: {error.where}") from error
    except Exception as error:
        error.add_note(f"while {technique} ran on layer {name}")
        raise
    return checked(technique, name, layer, after, versions)


def dense_state(weight: Tensor, gram: Tensor | None, magnitudes: Magnitudes | None) -> LayerState:
    """Return the state of an uncompressed layer, with a copy of its weight (out x in) in the dtype to compute in."""
    own = weight.to(working(weight.dtype), copy=True).contiguous()
    return replace(LayerState.dense(own, gram=gram), magnitudes=magnitudes)


def applied_in_turn(steps: Iterable[Technique], name: str, layer: LayerState) -> LayerState:
    """Return the state after the kernels of some techniques, one after another, as :func:`applied` runs each."""
    after = layer
    for step in steps:
        after = with_given(applied(step, name, after), layer)
    return after


def alike(inputs: Mapping[str, tuple[Tensor | None, Magnitudes | None]]) -> Iterator[list[str]]:
    """Yield the names of layers in groups that share a Gram matrix. A layer without one is alone."""
    groups: dict[Any, list[str]] = {}
    for name, (gram, _) in inputs.items():
        groups.setdefault(name if gram is None else id(gram), []).append(name)
    yield from groups.values()


def applied_abreast(
    steps: Mapping[str, Sequence[Technique]], layers: Mapping[str, LayerState]
) -> dict[str, LayerState]:
    """Return the states of layers after their techniques, as :func:`applied_in_turn` applies them.

    The first technique of all layers comes before the second of any. So kernels can share what they compute from one
    Gram matrix, and only the latest of it has to be kept.
    """
    after = dict(layers)
    for number in range(max(len(steps[name]) for name in layers)):
        for name, layer in layers.items():
            if number < len(steps[name]):
                after[name] = with_given(applied(steps[name][number], name, after[name]), layer)
    return after


def with_given(after: LayerState, layer: LayerState) -> LayerState:
    """Return a state with everything that a layer is given (reference, inputs) taken from another."""
    given = {field.path.partition(".")[0]: None for field in walk.FIELDS if field.given}
    return replace(after, **{name: getattr(layer, name) for name in given} | {"reference_inputs": None})


def working(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in. It represents weights of the dtypes that models use exactly."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_result(before: LayerState, after: Any, where: str) -> None:
    """Raise InputError for a result that :func:`compcomp.language.kernel_result.wrong_result` finds wrong."""
    if wrong := wrong_result(before, after):
        raise InputError(*wrong, where)


def versions_of(layer: LayerState) -> list[tuple[int, int]]:
    """Return numbers for each tensor of a state that change when it is written to, even without torch's notice."""
    found: dict[int, tuple[int, int]] = {}
    for tensor in tensors(layer):
        if id(tensor) not in found:
            found[id(tensor)] = (-1 if tensor.is_inference() else tensor._version, _sum_of_bits(tensor))
    return list(found.values())


def _sum_of_bits(tensor: Tensor) -> int:
    entries = bits(tensor)
    if entries.numel() * entries.element_size() % 8 == 0 and entries.storage_offset() * entries.element_size() % 8 == 0:
        entries = entries.view(torch.int64)
    return int(entries.sum(dtype=torch.int64))


def checked(
    technique: Technique, name: str, layer: LayerState, after: LayerState, versions: list[tuple[int, int]]
) -> LayerState:
    """Return a kernel's result in plain tensors. Raises InputError for what no kernel may do, as :func:`applied` does.

    Args:
        technique: The technique that ran.
        name: The layer's name.
        layer: The state before.
        after: The kernel's result.
        versions: The result of :func:`versions_of` for ``layer`` before the kernel ran.
    """
    where = f"layer {name}: after {technique}"
    if versions_of(layer) != versions:
        raise InputError("a kernel that wrote to what it was given", "kernels that return new tensors", where)
    effective = effective_weight(after)
    if effective is not after.weight and not all_finite(effective):  # the weight alone was looked at before
        raise InputError("weights that are not finite", "finite weights", where)
    return replace(
        after,
        weight=_plain(after.weight),
        format=_plain(after.format),
        reference=layer.reference,
        gram=layer.gram,
        inputs=layer.inputs,
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a state or a part of one, in the order of the fields."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


def tensors_in(batch: Any) -> Iterator[Any]:
    """Yield the contents of a calibration batch: texts, numbers and tensors."""
    if isinstance(batch, Mapping):
        for key, item in batch.items():
            yield str(key)
            yield from tensors_in(item)
    elif isinstance(batch, tuple | list):
        for item in batch:
            yield from tensors_in(item)
    else:
        yield batch if isinstance(batch, Tensor | int | float) else str(batch)


def digest(layer: LayerState) -> str:
    """Return a text that is the same for two states of one layer only if weight and format are exactly equal."""
    return digest_of((layer.weight, layer.format))


def digest_of(value: Any) -> str:
    """Return a text that is the same for two values only if they, their shapes and dtypes are equal (0 equals -0).

    Values are made of dataclasses, tuples, lists, tensors, numbers and texts. Raises TypeError for anything else.
    """
    found = hashlib.blake2b(digest_size=16)
    for piece in _pieces(value):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield the bytes that distinguish a value from others."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        entries = value.detach().cpu().reshape(-1)
        entries = entries + 0.0 if entries.is_floating_point() else entries  # turns -0.0 into 0.0
        yield memoryview(entries.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
    elif is_dataclass(value):
        yield type(value).__qualname__.encode()
        for f in fields(value):
            yield from _pieces(getattr(value, f.name))
    elif isinstance(value, tuple | list):
        yield f"{type(value).__qualname__} {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif value is None or isinstance(value, bool | int | float | str | Fraction):
        shown = value + 0.0 if isinstance(value, float) else value
        yield f"{type(value).__qualname__} {shown!r}".encode()
    else:  # its repr may leave something out
        raise TypeError(f"a {type(value).__qualname__} in a layer's format")


def _has_negative_zero(value: Tensor) -> bool:
    """Return True if an entry is -0.0: read as a whole number, it is the least one that there is."""
    width = _WHOLE.get(value.element_size())
    if width is None or not value.numel():
        return False
    return int(value.detach().view(width).amin()) == torch.iinfo(width).min


_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _plain(value: Any) -> Any:
    """Return the value with contiguous tensors, except expanded views, and 0.0 for -0.0.

    Plain values are returned as is.
    """
    if isinstance(value, Tensor):
        value = value if 0 in value.stride() else value.contiguous()
        if value.is_floating_point() and _has_negative_zero(value):
            value = value + 0.0
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.init})
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value

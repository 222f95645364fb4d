"""Check the results of torch kernels: a layer's state in tensors that match the state that was given."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from compcomp.layers import walk
from compcomp.layers.state import Format, LayerState

ALLOWED = "a kernel has to give a LayerState of tensors, of the shape, dtype and device of the weight it was given"


def all_finite(tensor: Any) -> bool:
    """Return True if no entry of a tensor is infinite or nan.

    A sum with such an entry is not finite either. Only a sum that is not finite, as one of large numbers may be, needs
    the look at each entry, which takes ten times as long.
    """
    import torch

    return isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def wrong_result(before: LayerState, after: Any, *, finite: bool = True) -> tuple[str, str] | None:
    """Return descriptions of the error in a kernel's result and of what is allowed, or None if there is no error.

    Values are not checked, except for being finite.

    Args:
        before: the state that the kernel was given.
        after: the result of the kernel.
        finite: True if numbers that are not finite are errors.
    """
    wrong = _wrong_kind(before, after)
    if wrong is not None:
        return wrong, ALLOWED
    for name, kind, value, _ in _entries(after, tuple(before.weight.shape)) if finite else ():
        if kind != "truth" and not all_finite(value):
            plural = "weights" if name == "weight" else f"a {name} with numbers"
            return f"{plural} that are not finite", "finite weights" if name == "weight" else "finite numbers"
    return None


def _wrong_kind(before: LayerState, after: Any) -> str | None:
    """Return a description of an error in the types, dtypes, devices or shapes of a result, or None."""
    import torch

    if not isinstance(after, LayerState):
        return f"a kernel that gives {_shown(after)}"
    if not isinstance(after.format, Format):
        return f"a kernel that gives a LayerState whose format is {_shown(after.format)}"
    given = before.weight
    for name, kind, value, shape in _entries(after, tuple(given.shape)):
        if not isinstance(value, torch.Tensor):
            return f"a kernel that gives a LayerState whose {name} is {_shown(value)}"
        if value.layout is not torch.strided or value.is_quantized or value.device != given.device:
            return f"a kernel that gives a LayerState whose {name} is {value.layout} on {value.device}"
        if kind == "weight" and value.dtype != given.dtype:
            return f"a kernel that gives a weight of {_name(value.dtype)} for one of {_name(given.dtype)}"
        if kind == "truth" and value.dtype != torch.bool:
            return f"a kernel that gives a {name} of {_name(value.dtype)} and not of truth values"
        if kind == "number" and not value.dtype.is_floating_point:
            return f"a kernel that gives a {name} of {_name(value.dtype)} and not of floating point numbers"
        if shape is not None and tuple(value.shape) != shape:
            plural = "weights" if name == "weight" else f"a {name}"
            return f"{plural} of shape {tuple(value.shape)}, not {shape}"
    return None


def _entries(after: LayerState, shape: tuple[int, ...]) -> Iterator[tuple[str, str, Any, tuple[int, ...] | None]]:
    """Return the tensors that a state must hold: name, kind, value and shape of each."""
    sides = dict(zip(("out", "in"), shape, strict=True))
    for field in walk.FIELDS:
        if not field.is_array or not (field.in_format or field.path == "weight"):
            continue
        value = _found(after, field.path.split("."))
        if value is None and field.in_format:
            continue
        if field.name == "left factor":
            sides["rank"] = int(value.shape[-1]) if hasattr(value, "shape") and len(value.shape) else 0
        kind = "weight" if field.path == "weight" else "truth" if field.kind == "truths" else "number"
        yield field.name, kind, value, tuple(sides[side] for side in field.shape)


def _found(value: Any, path: list[str]) -> Any:
    """Return the value at the end of a path. Names that a value does not have are skipped."""
    for name in path:
        value = getattr(value, name, value)
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    kind = type(value)
    home = kind.__module__.partition(".")[0]
    return f"a {kind.__name__}" if home in ("builtins", "") else f"a {home}.{kind.__name__}"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

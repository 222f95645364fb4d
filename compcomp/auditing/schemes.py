"""Read the quantization arguments of compressed-tensors, and say which technique rounds weights that way.

Data from compressed-tensors as shipped with llm-compressor 0.14.0.1: ``quantization/quant_scheme.py`` (presets) and
``quantization/quant_args.py`` (strategies, defaults, refused values).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compcomp.auditing.steps import QUANTIZES, Step
from compcomp.language.technique import Technique
from compcomp.techniques import FP4, FP8, MX, AbsMax, AbsMaxInputs, FP8Inputs, MinMax

SOURCE = "compressed-tensors, quantization/quant_scheme.py and quant_args.py (with llm-compressor 0.14.0.1)"

ARGUMENTS = frozenset(
    {
        "num_bits",
        "type",
        "symmetric",
        "group_size",
        "strategy",
        "block_structure",
        "dynamic",
        "actorder",
        "scale_dtype",
        "zp_dtype",
        "observer",
        "observer_kwargs",
    }
)
SCHEME_KEYS = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
_GROUP = {"strategy": "group", "group_size": 128}
_MX = {"type": "float", "strategy": "group", "group_size": 32}
_NV = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def _presets() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {"UNQUANTIZED": {}}
    for bits, activations in [(2, (4, 8, 16)), (3, (4, 8, 16)), (4, (4, 8, 16)), (5, (8, 16)), (6, (8, 16))]:
        for inputs in activations:
            found[f"W{bits}A{inputs}"] = _scheme({"num_bits": bits, **_GROUP}, inputs)
    found |= {f"W7A{inputs}": _scheme({"num_bits": 7, **_GROUP}, inputs) for inputs in (8, 16)}
    found["W8A16"] = _scheme({"num_bits": 8, **_GROUP}, 16)
    found["W8A8"] = found["INT8"] = _scheme({"num_bits": 8, "strategy": "channel"}, 8)
    found["W4A16_ASYM"] = {"weights": {"num_bits": 4, "symmetric": False, **_GROUP}}
    found["W4AFP8"] = {"weights": {"num_bits": 4, **_GROUP}, "input_activations": {**_TOKEN, "type": "float"}}
    eight = {"num_bits": 8, "type": "float"}
    found["FP8"] = {
        "weights": {**eight, "strategy": "tensor"},
        "input_activations": {**eight, "strategy": "tensor"},
    }
    found["FP8_DYNAMIC"] = {
        "weights": {**eight, "strategy": "channel"},
        "input_activations": {**_TOKEN, "type": "float"},
    }
    found["FP8_BLOCK"] = {
        "weights": {**eight, "strategy": "block", "block_structure": [128, 128]},
        "input_activations": {**eight, "strategy": "group", "group_size": 128, "dynamic": True},
    }
    for name, weights in [("NVFP4", _NV), ("MXFP4", {"num_bits": 4, **_MX}), ("MXFP8", {"num_bits": 8, **_MX})]:
        found[f"{name}A16"] = {"weights": weights}
        found[name] = {"weights": weights, "input_activations": {**weights, "dynamic": True}}
    return found


def _scheme(weights: dict[str, Any], inputs: int) -> dict[str, dict[str, Any]]:
    if inputs == 16:
        return {"weights": weights}
    return {"weights": weights, "input_activations": {**_TOKEN, "num_bits": inputs}}


PRESETS = _presets()
"""The presets by name, in upper case: arguments of weights and input activations that are not defaults."""


@dataclass(frozen=True)
class Grid:
    """The grid of weights that quantization arguments describe.

    Args:
        bits: the bit width.
        kind: "int" or "float".
        symmetric: False for an integer zero point.
        group: the consecutive weights of a row that share a scale, None for other strategies.
        strategy: the tool's own name: tensor, channel, group, tensor_group or block.
        levels: the name of the symmetric grid in :data:`compcomp.layers.grids.GRIDS`. None if it is not known.
    """

    bits: int
    kind: str
    symmetric: bool
    group: int | None
    strategy: str
    levels: str | None = None

    def __str__(self) -> str:
        shared = f"groups of {self.group}" if self.group else {"channel": "each output row"}.get(self.strategy, "")
        zero = "" if self.kind == "float" else ", symmetric" if self.symmetric else ", integer zero point"
        number = "floating point" if self.kind == "float" else "integers"
        return f"{self.bits}-bit {number}, {shared or 'one ' + self.strategy}{zero}"

    def nearest(self) -> Technique:
        """Return the technique that rounds to the nearest value of a grid of this kind."""
        per = "channel" if self.strategy == "channel" else "tensor"
        if self.kind == "float":
            if self.bits == 8 and self.group == 32:
                return MX(format="mxfp8_e4m3")
            if self.bits == 8:
                return FP8(group=self.group, per="row" if per == "channel" else "tensor")
            return MX(format="mxfp4") if self.group == 32 else FP4(group=self.group)
        if self.symmetric:
            return AbsMax(bits=self.bits, group=self.group, per=per, grid=self.levels or "narrow")
        return MinMax(bits=self.bits, group=self.group, per=per)

    def differs(self) -> tuple[str, ...]:
        """Return how the tool's grid differs from that of :meth:`nearest`."""
        if self.kind == "float":
            return (
                "the tool also rounds the scales to their own format; whether zeros stay zero does not depend on it",
            )
        if self.symmetric and self.levels is None:
            return (
                f"which of the {self.bits}-bit symmetric grids the tool takes is not recorded; AbsMax here divides "
                f"max|w| by {2 ** (self.bits - 1) - 1}. 0 is a value of all, so whether zeros stay zero does not "
                "depend on it",
            )
        if self.symmetric:
            return ("the tool also rounds scales to the dtype of the weights; 0 stays on the grid",)
        return ("the tool also rounds scales to the dtype of the weights; its integer zero point keeps 0 on the grid",)


def to_nearest(grid: Grid) -> Step:
    """Return the step that rounds weights to the nearest value of a grid."""
    return Step(
        "",
        does=QUANTIZES,
        techniques=(grid.nearest(),),
        conventions=(str(grid), "round to nearest"),
        differs=grid.differs(),
    )


def grid_of(arguments: Mapping[str, Any]) -> tuple[Grid | None, list[str], list[str]]:
    """Return the grid of weight arguments, what the tool refuses about them, and what could not be read."""
    refused = [f"{key!r} is no quantization argument" for key in arguments if key not in ARGUMENTS]
    unknown: list[str] = []
    bits, kind = arguments.get("num_bits", 8), str(arguments.get("type", "int")).lower()
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        return None, refused, [f"num_bits: {str(bits)[:40]!r}"]
    if kind not in ("int", "float"):
        return None, [*refused, f"type {kind[:40]!r}"], unknown
    size, strategy = arguments.get("group_size"), arguments.get("strategy")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < -1):
        return None, [*refused, f"group_size {str(size)[:40]!r}"], unknown
    if strategy is None:
        strategy = "tensor" if size is None else "group" if size > 0 else "channel"
    strategy = str(strategy).lower()
    if strategy not in ("tensor", "channel", "group", "tensor_group", "block"):
        return None, [*refused, f"strategy {strategy[:40]!r} of weights"], unknown
    grouped = strategy in ("group", "tensor_group")
    if grouped and (size is None or size <= 0):
        refused.append(f"strategy {strategy!r} without a group_size")
        return None, refused, unknown
    if not grouped and size is not None and size > 0:
        refused.append(f"group_size {size} with strategy {strategy!r}")
    if strategy == "block":
        unknown.append(
            "blocks of rows and columns are no groups of a technique here; one scale for the tensor stands for them"
        )
    actorder = arguments.get("actorder")
    if actorder is True or str(actorder).lower() in ("group", "dynamic"):
        refused.append(f"actorder {str(actorder).lower()!r}, which was removed")
    symmetric = arguments.get("symmetric", True)
    if kind == "float" and bits not in (4, 8):
        return None, refused, [f"{bits}-bit floating point"]
    grid = Grid(bits, kind, bool(symmetric), size if grouped else None, strategy, "full_range" if symmetric else None)
    return grid, refused, unknown


def inputs_of(arguments: Mapping[str, Any] | None) -> tuple[Technique | None, str]:
    """Return the technique that rounds input activations this way, and a phrase about it."""
    if not arguments:
        return None, ""
    bits, kind = arguments.get("num_bits", 8), str(arguments.get("type", "int")).lower()
    per = "tensor" if arguments.get("strategy", "tensor") == "tensor" else "token"
    text = f"inputs: {bits}-bit {kind}, per {arguments.get('strategy', 'tensor')}"
    text += ", at inference" if arguments.get("dynamic") else ", scales from calibration"
    if kind == "int" and isinstance(bits, int) and 2 <= bits <= 16 and arguments.get("symmetric", True):
        return AbsMaxInputs(bits=bits, per=per), text
    if kind == "float" and bits == 8:
        return FP8Inputs(per=per), text
    return None, text + "; there is no technique for this here, and it does not change weights"

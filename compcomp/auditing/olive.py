"""Read Olive's JSON workflows: a mapping of passes, in the form of 0.7 and later or in the older one.

Data from microsoft/Olive, ``olive/passes/pytorch``, ``olive/passes/onnx`` and ``olive/common/quant`` (sources of 2024
to 2026): the names of passes, their parameters and defaults. Gptq and Rtn use Olive's own quantizer; GptqQuantizer and
GptqModel call other libraries. A pass takes the order of the mapping, or of ``pass_flows``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from compcomp.auditing.schemes import Grid, to_nearest
from compcomp.auditing.steps import LEAVES, PRUNES, QUANTIZES, SCALES, Problem, Step, ToolRecipe, Values, dropped_of
from compcomp.techniques import AWQ, FP4, GPTQ, NF4, Hadamard, LoftQ, LoRA, SparseGPT

TOOL, VERSION = "Olive", "0.13"
SOURCE = "microsoft/Olive, olive/passes"

CONVERTS = (
    "OnnxConversion",
    "ModelBuilder",
    "OnnxFloatToFloat16",
    "OnnxIODataTypeConverter",
    "OnnxPeepholeOptimizer",
    "OrtTransformersOptimization",
    "OrtSessionParamsTuning",
    "OptimumConversion",
    "CaptureSplitInfo",
    "SplitModel",
    "ExtractAdapters",
    "DynamicToFixedShape",
    "GraphSurgeries",
    "MatMulNBitsToQDQ",
    "OpenVINOConversion",
    "QNNConversion",
    "SelectiveMixedPrecision",
)
"""Passes that change the form of a model or note something about it, and leave the values of its weights."""


def is_recipe(data: Any) -> bool:
    """Return True if the data looks like a workflow of this tool."""
    return isinstance(data, dict) and isinstance(data.get("passes"), dict | list)


def read(data: Mapping[str, Any], version: str | None = None) -> list[ToolRecipe]:
    """Return each order of passes that the workflow names."""
    problems, notes = list[Problem](), list[str]()
    passes = _named(data["passes"], problems)
    flows = data.get("pass_flows")
    orders: list[tuple[str, list[str]]] = [("", list(passes))]
    if flows is not None:
        notes.append("pass_flows names the orders: the form of older versions")
        named = [flow for flow in flows if isinstance(flow, list)] if isinstance(flows, list) else []
        if not named:
            problems.append(Problem(f"{TOOL} refuses pass_flows that are no list of lists of names"))
        else:
            orders = [(" >> ".join(map(str, flow)) if len(named) > 1 else "", list(map(str, flow))) for flow in named]
        left = [name for name in passes if not any(name in order for _, order in orders)]
        if left:
            notes.append(f"no flow of pass_flows has {', '.join(left)}: not run")
    found = []
    for name, order in orders:
        missing = [
            Problem(f"{TOOL} refuses the pass {step!r}, which passes does not have")
            for step in order
            if step not in passes
        ]
        steps = tuple(_step(step, passes[step], problems) for step in order if step in passes)
        nothing = [] if steps else [Problem(f"{TOOL} runs no pass of this workflow: it does nothing")]
        found.append(ToolRecipe(TOOL, version or VERSION, steps, (*problems, *missing, *nothing), tuple(notes), name))
    return found


def _named(passes: Any, problems: list[Problem]) -> dict[str, Mapping[str, Any]]:
    """Return the passes by name. A list of alternatives stands for the first of them."""
    items = passes.items() if isinstance(passes, dict) else ((f"pass {k + 1}", item) for k, item in enumerate(passes))
    found: dict[str, Mapping[str, Any]] = {}
    for name, given in items:
        if isinstance(given, list) and given:
            if len(given) > 1:
                problems.append(
                    Problem(f"the pass {name!r} has {len(given)} alternatives; the first is audited", breaks=False)
                )
            given = given[0]
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            problems.append(Problem(f"{TOOL} refuses the pass {name!r}, which has no type"))
            continue
        found[str(name)] = given
    return found


def _step(name: str, given: Mapping[str, Any], problems: list[Problem]) -> Step:
    older = isinstance(given.get("config"), dict)
    values = Values(given["config"] if older else given)
    kind = given["type"]
    reader = _READERS.get(kind.lower())
    if reader is not None:
        step = reader(values)
    elif kind.lower() in {converts.lower() for converts in CONVERTS}:
        step = Step(kind, does=LEAVES, conventions=("changes the form of the model, not the values of its weights",))
    else:
        step = Step(kind, unknown=(f"the pass {kind} is not known here",))
    if kind.lower() == "gptq" and values.given.get("desc_act") is True and values.given.get("group_size", 128) != -1:
        problems.append(Problem(f"{TOOL} refuses desc_act of {kind} with groups; it goes with group_size -1"))
    form = ("parameters in 'config': the form of older versions",) if older else ()
    return replace(
        step,
        name=kind,
        place=name,
        conventions=(*step.conventions, *form),
        unknown=(*step.unknown, *values.unknown),
        source=SOURCE,
    )


def _sparsegpt(values: Values) -> Step:
    sparsity = values.given.get("sparsity")
    if (
        isinstance(sparsity, list)
        and len(sparsity) == 2
        and all(type(x) is int for x in sparsity)
        and 0 < sparsity[0] < sparsity[1] <= 64
    ):
        pattern = dropped_of(*sparsity)
        said = f"drops {sparsity[0]} of every {sparsity[1]} weights"
    else:
        pattern = {"sparsity": values.share("sparsity", Fraction(1, 2))}
        said = "unstructured, in blocks of columns"
    technique = SparseGPT(
        **pattern,
        block=values.whole("blocksize", 128),
        damping=values.share("percdamp", Fraction(1, 100)) or Fraction(1, 100),
    )
    return Step("", does=PRUNES, techniques=(technique,), conventions=(said, "zeros of earlier steps may be filled"))


def _grid(values: Values, *, symmetric: bool = False, group: int = 128) -> Grid:
    size = values.given.get("group_size", group)
    grouped = isinstance(size, int) and not isinstance(size, bool) and size > 0
    bits = values.whole("bits", 4, 2, 16) if not isinstance(values.given.get("bits"), str) else _bits(values)
    return Grid(
        bits,
        "int",
        values.truth("sym", symmetric),
        size if grouped else None,
        "group" if grouped else "channel",
    )


def _bits(values: Values) -> int:
    digits = "".join(c for c in str(values.given["bits"]) if c.isdigit())
    return int(digits) if digits in ("2", "3", "4", "8", "16") else 4


def _own(grid: Grid) -> Grid:
    """Return the grid as Olive's own quantizer has it."""
    return replace(grid, levels="full_range") if grid.symmetric else grid


def _own_differs(grid: Grid) -> tuple[str, ...]:
    """Return where the grid of Olive's own quantizer is not the one that it is read as."""
    if not grid.symmetric:
        return ("a midpoint goes to the even stored integer, which counts from the zero point", *grid.differs())
    most, half = 2**grid.bits - 1, 2 ** (grid.bits - 1) - 1
    clipped = (
        f"a group without negative weights has the step max|w| / {most}, and its weights above {half} steps are clipped"
    )
    return (clipped, *grid.differs())


def _gptq(values: Values, own: bool = False) -> Step:
    grid = _own(_grid(values)) if own else _grid(values)
    alone = own and values.given.get("group_size", 128) == -1
    ordered = bool(alone if values.given.get("desc_act") is None else values.given["desc_act"])
    technique = GPTQ(
        bits=grid.bits,
        group=grid.group,
        order="activation" if ordered else "left_to_right",
        static_groups=bool(values.given.get("static_groups", False)),
        damping=values.share("damp_percent", Fraction(1, 100)) or Fraction(1, 100),
        grid=grid.levels or "narrow",
    )
    differs = _own_differs(grid) if own else grid.differs()
    if own and grid.group is not None:
        differs = (*differs, "the scale of a group sees the updates of earlier blocks of 128 columns alone")
    if not grid.symmetric:
        differs = (
            "the tool's grid has an integer zero point, GPTQ here a symmetric one; both have 0 as a value, and columns "
            "compensate for each other's errors on either, which is what fills zeros",
        )
    return Step(
        "",
        does=QUANTIZES,
        techniques=(technique,),
        nearest=grid.nearest(),
        conventions=(str(grid), "zeros of earlier steps are not kept"),
        differs=differs,
    )


def _own_gptq(values: Values) -> Step:
    return _gptq(values, own=True)


def _rtn(values: Values) -> Step:
    size = values.given.get("group_size", 128)
    grid = _own(_grid(values))
    grid = replace(grid, strategy="tensor") if size == 0 and not isinstance(size, bool) else grid
    return replace(to_nearest(grid), differs=_own_differs(grid))


def _awq(values: Values) -> Step:
    size = values.whole("q_group_size" if "q_group_size" in values.given else "group_size", 128)
    bits = values.whole("w_bit" if "w_bit" in values.given else "bits", 4, 2, 16)
    symmetric = not values.truth("zero_point", default=True)
    grid = Grid(bits, "int", symmetric, size, "group", "narrow_step" if symmetric else None)
    return Step(
        "",
        does=QUANTIZES,
        techniques=(AWQ(bits=bits, group=size), grid.nearest()),
        conventions=("columns are scaled by their inputs, then rounded to nearest", str(grid)),
        differs=grid.differs(),
    )


def _bnb4(values: Values) -> Step:
    four = str(values.given.get("precision", values.given.get("quant_type", "nf4"))).lower()
    technique = FP4(group=64) if four == "fp4" else NF4(group=64)
    return Step("", does=QUANTIZES, techniques=(technique,), conventions=("groups of 64 weights share a scale",))


def _onnx_eight(values: Values) -> Step:
    grid = Grid(8, "int", True, None, "channel" if values.given.get("per_channel") else "tensor")
    return Step(
        "",
        does=QUANTIZES,
        techniques=(grid.nearest(),),
        conventions=("8-bit integers, round to nearest",),
        unknown=("whether the zero point is free depends on weight_type and on the runtime; symmetric is assumed",),
    )


def _onnx_four(values: Values) -> Step:
    grid = Grid(4, "int", bool(values.given.get("is_symmetric", True)), values.whole("block_size", 32), "group")
    return to_nearest(grid)


def _rotation(values: Values) -> Step:
    return Step(
        "",
        does=SCALES,
        techniques=(Hadamard(),),
        conventions=("weights are mixed by orthogonal matrices; zeros are not kept",),
        differs=("one rotation of inputs stands for those of the model",),
    )


def _lora(values: Values) -> Step:
    rank = values.whole("r" if "r" in values.given else "lora_r", 64)
    return Step(
        "", does=SCALES, techniques=(LoRA(rank=rank, iterations=1),), conventions=("an adapter next to the weights",)
    )


def _loftq(values: Values) -> Step:
    rank = values.whole("r" if "r" in values.given else "lora_r", 64)
    return Step(
        "", does=QUANTIZES, techniques=(LoftQ(bits=4, rank=rank),), conventions=("4-bit weights and an adapter",)
    )


_READERS = {
    "sparsegpt": _sparsegpt,
    "gptq": _own_gptq,
    "gptqquantizer": _gptq,
    "gptqmodel": _gptq,
    "rtn": _rtn,
    "autoawqquantizer": _awq,
    "awq": _awq,
    "onnxbnb4quantization": _bnb4,
    "onnxdynamicquantization": _onnx_eight,
    "onnxstaticquantization": _onnx_eight,
    "onnxquantization": _onnx_eight,
    "onnxmatmul4quantizer": _onnx_four,
    "onnxblockwisertnquantization": _onnx_four,
    "quarot": _rotation,
    "spinquant": _rotation,
    "lora": _lora,
    "loftq": _loftq,
}

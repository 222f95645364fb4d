"""Read orders of coremltools as its guide names them: functions of ``coremltools.optimize`` with their parameters.

Data from the guide "Combining compression types" and the reference of ``coremltools.optimize.coreml`` (8): a model
whose weights are compressed already is compressed further only with joint_compression.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from compcomp.auditing.named_calls import Reader, is_order, read_order
from compcomp.auditing.schemes import Grid
from compcomp.auditing.steps import LEAVES, PRUNES, QUANTIZES, Step, ToolRecipe, Values, dropped_of
from compcomp.language.technique import Technique
from compcomp.techniques import GPTQ, ApplyMask, Magnitude, SparseGPT

TOOL, VERSION = "coremltools", "8"
KEY = "coremltools"
SOURCE = "the guide of coremltools, Combining compression types"


def is_recipe(data: Any) -> bool:
    """Return True if the data is an order of this tool."""
    return is_order(data, KEY)


def read(data: Mapping[str, Any], version: str | None = None) -> list[ToolRecipe]:
    """Return the steps of the order."""
    return read_order(data, KEY, TOOL, version or VERSION, SOURCE, READERS)


def _pattern(values: Values) -> dict[str, Any]:
    """Return sparsity and pattern: n_m_ratio (n, m) drops n of every m weights."""
    ratio = values.given.get("n_m_ratio")
    if (
        isinstance(ratio, list)
        and len(ratio) == 2
        and all(type(x) is int for x in ratio)
        and 0 < ratio[0] < ratio[1] <= 64
    ):
        return dropped_of(*ratio)
    return {"sparsity": values.share("target_sparsity", Fraction(1, 2))}


def _prune(values: Values, before: tuple[Step, ...]) -> Step:
    return Step(
        "", does=PRUNES, techniques=(Magnitude(**_pattern(values)),), conventions=("the smallest weights go to 0",)
    )


def _quantize(values: Values, before: tuple[Step, ...]) -> Step:
    bits = 4 if str(values.given.get("dtype", "int8")).endswith("4") else 8
    granularity = str(values.given.get("granularity", "per_channel"))
    symmetric = str(values.given.get("mode", "linear_symmetric")) == "linear_symmetric"
    block = values.whole("block_size", 32) if granularity == "per_block" else None
    strategy = "group" if block else "tensor" if granularity == "per_tensor" else "channel"
    grid = Grid(bits, "int", symmetric, block, strategy)
    said = [str(grid), "round to nearest"]
    techniques: tuple[Technique, ...] = (grid.nearest(),)
    if pruned := any(step.does == PRUNES for step in before):
        if not values.truth("joint_compression", default=False):
            return Step(
                "",
                does=LEAVES,
                conventions=(
                    "without joint_compression=True the weights that are stored as sparse are left as they are, so "
                    "this step does nothing to pruned layers",
                ),
            )
        said.append("only the weights that are not 0 are quantized; the mask is stored with them")
        techniques = (*techniques, ApplyMask())
    differs = () if symmetric or pruned else grid.differs()
    return Step("", does=QUANTIZES, techniques=techniques, conventions=tuple(said), differs=differs)


def _palettize(values: Values, before: tuple[Step, ...]) -> Step:
    return Step(
        "",
        conventions=(f"a table of {2 ** values.whole('nbits', 4, 1, 8)} values for each tensor, by k-means",),
        unknown=("k-means tables are no technique here; whether 0 is one of the values depends on the weights",),
    )


def _layerwise(values: Values, before: tuple[Step, ...]) -> Step:
    if str(values.given.get("algorithm", "gptq")) == "sparse_gpt":
        return Step("", does=PRUNES, techniques=(SparseGPT(**_pattern(values)),))
    bits = values.whole("weight_dtype_bits", 4, 2, 16)
    return Step("", does=QUANTIZES, techniques=(GPTQ(bits=bits),), conventions=("zeros of earlier steps are not kept",))


READERS: dict[str, Reader] = {
    "prune_weights": _prune,
    "magnitudepruner": _prune,
    "linear_quantize_weights": _quantize,
    "posttrainingquantizer": _quantize,
    "palettize_weights": _palettize,
    "posttrainingpalettizer": _palettize,
    "layerwisecompressor": _layerwise,
}

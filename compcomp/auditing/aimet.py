"""Read orders of AIMET as its documentation names them: singular value decomposition, channel pruning, quantization.

Data from the documentation of AIMET 1.34, "model compression" and "quantization": which step does what.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from compcomp.auditing.named_calls import Reader, is_order, read_order
from compcomp.auditing.schemes import Grid, to_nearest
from compcomp.auditing.steps import LEAVES, PRUNES, Step, ToolRecipe, Values
from compcomp.techniques import PruneColumns

TOOL, VERSION = "AIMET", "1.34"
KEY = "aimet"
SOURCE = "the user guide of AIMET 1.34"


def is_recipe(data: Any) -> bool:
    """Return True if the data is an order of this tool."""
    return is_order(data, KEY)


def read(data: Mapping[str, Any], version: str | None = None) -> list[ToolRecipe]:
    """Return the steps of the order."""
    return read_order(data, KEY, TOOL, version or VERSION, SOURCE, READERS)


def _svd(values: Values, before: tuple[Step, ...]) -> Step:
    return Step(
        "",
        does=LEAVES,
        conventions=(
            "the layer becomes two layers, the factors of its weight",
            "later steps see each factor as a layer, so the product keeps its rank whatever they do",
        ),
        unknown=() if "rank" in values.given else ("the rank follows from a compression ratio for each layer",),
    )


def _channels(values: Values, before: tuple[Step, ...]) -> Step:
    share = 1 - values.share("comp_ratio", Fraction(1, 2))
    share = share if 0 < share < 1 else Fraction(1, 2)
    return Step(
        "",
        does=PRUNES,
        techniques=(PruneColumns(sparsity=share),),
        conventions=(
            "input channels are removed, and the others are fitted to the layer's outputs, which removes no more",
        ),
        differs=("channels are chosen by least magnitude here; which ones they are does not matter to what is kept",),
    )


def _quantsim(values: Values, before: tuple[Step, ...]) -> Step:
    bits = values.whole("default_param_bw", 8, 2, 16)
    symmetric = values.truth("symmetric", default=True)
    channel = values.truth("per_channel", default=False)
    grid = Grid(bits, "int", symmetric, None, "channel" if channel else "tensor")
    return to_nearest(grid)


def _unknown(text: str) -> Reader:
    return lambda values, before: Step("", unknown=(text,))


def _equalization(values: Values, before: tuple[Step, ...]) -> Step:
    return Step(
        "",
        does=LEAVES,
        conventions=("rows of a layer are scaled against columns of the next one: zeros stay zero",),
    )


READERS: dict[str, Reader] = {
    "weight_svd": _svd,
    "spatial_svd": _svd,
    "channel_pruning": _channels,
    "cross_layer_equalization": _equalization,
    "batch_norm_folding": _equalization,
    "adaround": _unknown("trained rounding is no technique here: a zero may round to the next step"),
    "seq_mse": _quantsim,
    "quantsim": _quantsim,
    "quantizationsimmodel": _quantsim,
}

"""Compare the torch kernel of a technique with its encoding, on Fractions and on batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from compcomp.errors import InputError
from compcomp.language.kernel_result import wrong_result
from compcomp.language.loss import LOSSES
from compcomp.language.steps import Selection, Step
from compcomp.language.technique import Kernel, Technique
from compcomp.layers import walk
from compcomp.layers.state import Format, LayerState
from compcomp.terms import Array
from compcomp.testing.properties import (
    empty_lines,
    equal_states,
    invariant_kept,
    mask_restored,
    new_format_holds,
    same_inputs,
    zeros_stay,
)
from compcomp.testing.readings import batches, float_array, floats, tensors, unbatched
from compcomp.testing.report import Coverage, failure
from compcomp.testing.strategies import scaled

MARGIN = 1e-6
"""The relative distance from a tie or a rounding midpoint below which floats may choose otherwise."""


SMALL = 2**12
"""The bound on integers for which sums of some hundred products of three are exact in floats."""


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights for which zeros are checked. Inputs and Gram matrices have at least float32."""


TOLERANCE = 1e-7
"""The tolerance relative to the largest magnitude of the layer."""


def compare(
    technique: Technique,
    kernel: Kernel,
    layer: LayerState,
    result: LayerState,
    device: str,
    coverage: Coverage,
) -> None:
    """Check that the kernel, and the encoding on batches, agree with the encoding on Fractions on one layer.

    Args:
        technique: the technique.
        kernel: its torch kernel.
        layer: the layer, in exact numbers.
        result: what the encoding makes of the layer.
        device: the torch device of the kernel.
        coverage: counts the layer as clear, at a tie or skipped.

    Raises:
        AssertionError: they do not agree.
    """
    _check_zeros(technique, kernel, layer, result, _dtype_of(layer), device)
    if technique.feasible(layer, result) is not None:
        _check_feasible(technique, kernel, layer, result, device)
        coverage.clear += 1
        return
    opposite = scaled(layer, Fraction(-1))
    other = technique.encode(opposite)
    clear = result.choices.margin > MARGIN
    exact_ties = _meets_ties(technique.steps())
    at_once = exact_ties or technique.promises().changes_inputs
    if technique.promises().optimum is not None:  # it compares the weights with the values of its grids
        at_once = _float_exact(result)
    if technique.fixtures.exact_scores and _small_integers(layer):
        exact_ties = at_once = True
    meets_ties = result.choices.margin == 0 and at_once
    if clear or meets_ties:
        before = tensors(layer, device)
        after = _run(technique, kernel, layer, before)
        _check_untouched(technique, layer, before)
        check_same(technique, "torch kernel", layer, result, floats(after))
        coverage.clear += clear
        coverage.at_ties += not clear
    else:
        coverage.skipped += 1
    if (clear and other.choices.margin > MARGIN) or (meets_ties and exact_ties and _float_exact(result, other)):
        pairs = [(layer, result), (opposite, other)]
        if _codes(layer) != _codes(opposite):  # codes that are not symmetric: a batch has one grid
            del pairs[1]
        both = technique.encode(batches([start for start, _ in pairs]))
        for index, (start, single) in enumerate(pairs):
            check_same(technique, "encoding on batches", start, single, unbatched(both, index))


def _codes(layer: LayerState) -> tuple[Fraction, ...] | None:
    return None if layer.format.grid is None else layer.format.grid.codes


def _check_feasible(technique: Technique, kernel: Kernel, layer: LayerState, result: LayerState, device: str) -> None:
    """Check that kernel and encoding return feasible states, the kernel always the same, with its inputs unchanged."""
    before = tensors(layer, device)
    start, found = floats(before), [floats(_run(technique, kernel, layer, before)) for _ in range(2)]
    _check_untouched(technique, layer, before)
    batch = unbatched(technique.encode(batches([layer, layer])), 0)
    named = (("torch kernel", start, found[0]), ("encoding", layer, result), ("encoding on batches", start, batch))
    for name, one, other in named:
        if not technique.feasible(one, other):
            raise failure(technique, f"what the {name} gives is not feasible", layer, (name, walk.shown(other.weight)))
        if not same_inputs(one, other) or not np.array_equal(one.reference, other.reference):
            raise failure(technique, f"the {name} changes the inputs or the reference", layer)
    if not equal_states(*found):
        shown = [(f"run {k}", walk.shown(state.weight)) for k, state in enumerate(found)]
        raise failure(technique, "two runs of the torch kernel differ", layer, *shown)


def _check_zeros(
    technique: Technique, kernel: Kernel, layer: LayerState, result: LayerState, dtype: torch.dtype, device: str
) -> None:
    """Check that weights are exactly 0 after the kernel where they must be: dropped, removed, or zeros that stay.


    Rows that were zero from the start are checked as well, if the encoding leaves nothing open and keeps them zero. A
    column of a least squares solution may be zero by chance, and is then only nearly zero in floats.
    """
    before = tensors(layer, device)
    form, gram = before.format, torch.promote_types(dtype, torch.float32)
    low = walk.map(lambda x: x.to(dtype) if x.is_floating_point() else x, before)
    low = replace(
        low,
        gram=_to(before.gram, gram),
        inputs=_to(before.inputs, gram),
        reference_inputs=_to(before.reference_inputs, gram),
    )
    try:
        after = _run(technique, kernel, layer, low, finite=False)
    except InputError:
        if dtype is torch.float64:
            raise
        return  # it has overflowed inside the kernel, as below
    if not all(bool(torch.isfinite(array).all()) for _, array in walk.leaves(after, "numbers")):
        return  # it has overflowed in this dtype; what is not finite in float64 is found there
    start, found = floats(low), floats(after)
    promised = technique.promises()
    broken: list[str] = [
        name for name in ("mask", "n:m", "shape") if name in promised.keeps and not invariant_kept(name, start, found)
    ]
    broken += ["restores the mask"] if "mask" in promised.restores and not mask_restored(start, found) else []
    broken += [f"zero {which} stay" for which in sorted(promised.zeros) if not zeros_stay(which, start, found)]
    broken += [] if new_format_holds(start, found) else ["what it drops or removes"]
    unique = technique.feasible(layer, result) is None and result.choices.margin > MARGIN
    if unique and form.transform is found.format.transform is None:
        always = np.all(layer.reference == 0, axis=1) & empty_lines(layer, 0) & empty_lines(result, 0)
        broken += ["zero rows"] if np.any(always & ~empty_lines(found, 0)) else []
    if broken:
        shown = [("encoding", walk.shown(result.weight)), ("torch kernel", walk.shown(found.weight))]
        raise failure(technique, f"not exactly zero after the kernel in {dtype}: {', '.join(broken)}", layer, *shown)


def _dtype_of(layer: LayerState) -> torch.dtype:
    """Return one of the dtypes, determined by the layer's numbers, so that a layer drawn again has the same one."""
    entries = (Fraction(x) for x in layer.weight.ravel())
    return DTYPES[sum(abs(x.numerator) + x.denominator for x in entries) % len(DTYPES)]


def _to(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _meets_ties(steps: Sequence[Step]) -> bool:
    """Return True if the ties and midpoints of these steps are exact in floats: no step follows rounded values."""
    selections = [step for step in steps if isinstance(step, Selection)]
    exact = all(step.of_layer is None for step in selections)
    return exact and (len(steps) == 1 or (bool(steps) and len(steps) == len(selections)))


def _small_integers(layer: LayerState) -> bool:
    """Return True if the numbers of a layer are integers, and floats hold the sums of their products."""
    entries = [Fraction(x) for _, array in walk.arrays(layer) for x in array.ravel()]
    return all(x.denominator == 1 and abs(x) < SMALL for x in entries)


def _float_exact(*states: LayerState) -> bool:
    """Return True if floats hold every entry without error, so that they have the same ties and midpoints."""
    entries = [x for s in states for x in s.weight.ravel()]
    for grid in (s.format.grid for s in states):
        entries += [] if grid is None else [*grid.step.ravel(), *([] if grid.offset is None else grid.offset.ravel())]
    return all(Fraction(float(x)) == x for x in entries)


def check_same(technique: Technique, what: str, layer: LayerState, expected: LayerState, found: LayerState) -> None:
    """Check that the float state ``found`` is the exact one, up to rounding."""
    size = _largest(layer.weight, layer.reference, expected.effective())
    reach = _largest(layer.inputs)

    def same(name: str, one: Array | None, other: Array | None, size: float = size) -> None:
        if (one is None) != (other is None):
            raise failure(technique, f"{name} of the {what}", layer, ("encoding", one), (what, other))
        if one is None or other is None:
            return
        apart = np.abs(float_array(one) - float_array(other)) if one.shape == other.shape else np.array(np.inf)
        if not np.all(apart <= TOLERANCE * size):
            shown = (("encoding", walk.shown(one)), (what, walk.shown(other)))
            raise failure(technique, f"the {name} of the {what} differs", layer, *shown)

    def alike(name: str, one: Any, other: Any) -> None:
        if one != other:
            raise failure(technique, f"the {name} of the {what} differs", layer, ("encoding", one), (what, other))

    reaches = {"inputs": reach, "reference_inputs": reach, "gram": max(reach * reach, _largest(layer.gram))}
    same("effective weight", expected.effective(), found.effective())
    for field in walk.FIELDS:
        if field.path == "reference" or field.path.startswith("magnitudes"):
            continue
        one, other = field.of(expected), field.of(found)
        alike(f"presence of the {field.name}", one is None, other is None)
        if one is None or other is None:
            continue
        if field.equal == "product":  # only the product is determined
            alike(f"shape of the {field.name}", one.shape, other.shape)
        elif field.kind == "truths":
            alike(field.name, one.astype(bool).tolist(), other.astype(bool).tolist())
        elif field.kind == "data":
            alike(field.name, one, other)
        elif field.kind == "basis":
            one, other = (transform.matrix(expected.weight.shape[1]) for transform in (one, other))
            same(field.name, one, other, _largest(one))
        else:  # in its basis, of any scale
            same(field.name, one, other, reaches.get(field.path, size + _largest(one)))
    for loss in LOSSES.values():
        if loss.needs_inputs and layer.gram is None:
            continue
        start, end, float_end = (float(loss.of(state)) for state in (layer, expected, found))
        nothing = float(loss.of(replace(layer, weight=layer.weight * 0, format=Format())))
        if loss.needs_inputs:  # the outputs' terms may cancel, their rounding does not
            nothing += float(abs(layer.reference).sum()) ** 2 * _largest(layer.gram)
        if abs(end - float_end) > 10 * TOLERANCE * (start + end + nothing):
            raise failure(
                technique, f"the {loss.name} of the {what} differs", layer, ("encoding", end), (what, float_end)
            )


def _largest(*arrays: Array | None) -> float:
    return max((abs(float(x)) for array in arrays if array is not None for x in array.ravel()), default=0.0)


def _run(
    technique: Technique, kernel: Kernel, layer: LayerState, before: LayerState, *, finite: bool = True
) -> LayerState:
    """Return the kernel's result for these tensors, which must be a state of tensors."""
    after = kernel(technique, before)
    if wrong := wrong_result(before, after, finite=finite):
        raise failure(technique, f"{wrong[0]} (allowed: {wrong[1]})", layer)
    return after


def _check_untouched(technique: Technique, layer: LayerState, tensors: LayerState) -> None:
    """Check that the kernel changed none of the tensors it was given."""
    untouched = floats(tensors)
    for field, array in walk.arrays(layer):
        if not np.array_equal(float_array(array), float_array(field.of(untouched))):
            raise failure(technique, f"the kernel changes the {field.name} it is given in place", layer)

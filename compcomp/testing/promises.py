"""Check the contracts of a technique on exact layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from compcomp.algebra.grids import off_grid
from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.language.steps import Optimum
from compcomp.language.technique import Technique, run
from compcomp.layers import walk
from compcomp.layers.state import INVARIANTS, Factors, Format, LayerState
from compcomp.terms import Array, Choices, RandomChoices, each
from compcomp.testing.properties import (
    equal_states,
    factors_fit,
    format_numbers,
    format_numbers_of_zero,
    invariant_kept,
    mask_restored,
    new_format_holds,
    on_grid,
    other_lines_alone,
    same_inputs,
    scales_features,
    weight_alone,
    within_rank,
    zeros_stay,
)
from compcomp.testing.report import failure
from compcomp.testing.strategies import scaled


def check_promises(technique: Technique, layer: LayerState, result: LayerState, seed: int, factor: Fraction) -> None:
    """Check that every contract of the technique holds on a layer, for every choice tried.

    Args:
        technique: the technique.
        layer: the layer, in exact numbers.
        result: what its encoding makes of the layer.
        seed: the seed of the choices and of further layers.
        factor: the number by which the layer is scaled, to check that the technique is homogeneous.

    Raises:
        AssertionError: a contract is broken.
    """
    result.require_exact()
    promised = technique.promises()
    makers: list[Callable[[], Choices]] = [Choices, lambda: RandomChoices(seed)]
    results = [result, technique.encode(replace(layer, choices=makers[1]()))]

    def broken(promise: str, *shown: tuple[str, Any]) -> AssertionError:
        return failure(technique, f"its promise {promise} is false", layer, *shown)

    if promised.deterministic and not equal_states(results[0], results[1]):
        shown = [(f"choice {k}", walk.shown(r.weight)) for k, r in enumerate(results)]
        raise broken("deterministic=True", *shown)
    if promised.deterministic:
        del makers[1], results[1]
    for make, result in zip(makers, results, strict=True):
        after = ("weight after", walk.shown(result.weight))
        if "mask" in promised.restores and not mask_restored(layer, result):
            raise broken("restores={'mask'}", after)
        for invariant in (*INVARIANTS, "factors"):
            if invariant in promised.keeps and not invariant_kept(invariant, layer, result):
                raise broken(f"keeps={{{invariant!r}}}", after)
        fits = within_rank(result) and new_format_holds(layer, result) and factors_fit(result)
        if not fits or (on_grid(layer) and not on_grid(result)):
            raise failure(technique, "the weight does not fit the format it sets", layer, after)
        for which in sorted(promised.zeros):
            if not zeros_stay(which, layer, result):
                raise broken(f"zeros={{{which!r}}}", after)
        for axis, name in enumerate(("removes_rows", "removes_columns")):
            if getattr(promised, name) and not other_lines_alone(layer, result, axis):
                raise broken(f"{name}=True", after)
        numbers = format_numbers(result.format), format_numbers_of_zero(technique, layer, make())
        if not promised.format_varies and numbers[1] not in (None, numbers[0]):
            raise broken("format_varies=False", ("format after", numbers[0]), ("of a zero weight", numbers[1]))
        bits = promised.input_bits
        if bits is not None and result.inputs is not None and any(off_grid(token, bits) for token in result.inputs.T):
            raise broken(f"input_bits={bits}", ("inputs after", walk.shown(result.inputs)))
        for name in promised.never_increases:
            if LOSSES[name].needs_inputs and layer.gram is None:
                continue
            if layer.reference_inputs is not None and not promised.any_inputs:
                continue
            losses = [LOSSES[name].of(state) for state in (layer, result)]
            if losses[1] > losses[0]:
                raise broken(f"never_increases={{{name!r}}}", ("before and after", losses), after)
        other = None if seed % 3 else technique.encode(replace(_with_other_factors(layer, seed), choices=make()))
        if other is not None and not promised.sees_factors and not equal_states(result, other):
            seen = ("effective weight after", walk.shown(result.effective()))
            raise broken("sees_factors=False", seen, ("with other factors", walk.shown(other.effective())))
        _check_inputs(technique, layer, result, make)
        _check_basis(technique, layer, result)
        at_reference = replace(layer, reference=layer.effective(), reference_inputs=None, choices=make())
        then = technique.encode(at_reference)
        if promised.no_op_on_dense and not equal_states(at_reference, then):
            raise broken("no_op_on_dense=True", ("weight after, at the reference", walk.shown(then.weight)))
        held = np.array_equal(then.effective(), at_reference.reference) and same_inputs(then, at_reference)
        if promised.holds_reference and not held:
            raise broken("holds_reference=True", ("effective weight after", walk.shown(then.effective())))
        if promised.optimum is not None and (better := _better(promised.optimum, layer.weight, result.weight, seed)):
            raise broken("optimum", ("what it leaves", better), after)
        if promised.leaves_weight and not weight_alone(layer, result):
            raise broken("leaves_weight=True", after)
        _check_no_ops(technique, layer, result, make if promised.deterministic else lambda: RandomChoices(seed + 1))
        if not promised.homogeneous:
            continue
        larger = technique.encode(replace(scaled(layer, factor), choices=make()))
        if not equal_states(scaled(result, factor), larger):
            raise broken("homogeneous=True", (f"weight after, times {factor}", walk.shown(larger.weight)), after)
    _check_steps(technique, layer, results[0])


def _check_steps(technique: Technique, layer: LayerState, result: LayerState) -> None:
    """Check that the steps of the technique, if it has any, do what its encoding does."""
    if not technique.steps():
        return
    after = replace(layer, choices=Choices())
    for step in technique.steps():
        after = step.apply(after)
    if not equal_states(after, result) or after.format.rank != result.format.rank:
        shown = (("steps", walk.shown(after.weight)), ("encoding", walk.shown(result.weight)))
        raise failure(technique, "its steps() are not what its encoding does", layer, *shown)


def _with_other_factors(layer: LayerState, seed: int) -> LayerState:
    """Return an equal layer with other factors, of a larger rank."""
    rows, columns = layer.weight.shape
    known = layer.format.factors
    more = np.array([[Fraction(int(x)) for x in np.random.default_rng(seed).integers(-3, 4, columns)]], dtype=object)
    left, right = np.full((rows, 1), Fraction(0), dtype=object), more
    if known is not None:
        left, right = np.hstack([2 * known.left, left]), np.vstack([known.right / 2, right])
    return replace(layer, format=replace(layer.format, factors=Factors(left, right)))


MOST = 200
"""The most masks of one group of which all are tried; otherwise as many random ones are. For ratios, a quarter."""


def _better(optimum: Optimum, weight: Array, left: Array, seed: int) -> str:
    """Return why ``left`` is not the optimum for ``weight`` (both out x in), or "" if it is."""
    shape = (weight.shape[0], weight.shape[1])
    part, grid = LOSSES[optimum.loss].element, optimum.grid
    assert part is not None
    levels = range(-grid.known_levels - grid.below, grid.known_levels + 1)
    selected, scaled_alike = optimum.partition.groups(shape), optimum.grid.partition.groups(shape)
    if any(sum(left[i] == 0 for i in group) < int(len(group) * optimum.share) for group in selected):  # type: ignore[operator]
        return "has too few zeros"
    contexts = [optimum.grid.context(weight[i] for i in group) for group in scaled_alike]
    for group, context in zip(scaled_alike, contexts, strict=True):
        steps = [ratio * context / grid.reach for ratio in optimum.ratios]
        if not any(all(left[i] in [k * step for k in levels] for i in group) for step in steps):
            return f"is on no grid in {group}"
    least = None
    random = np.random.default_rng(seed)
    choices: Iterable[Sequence[Fraction]] = product(optimum.ratios, repeat=len(contexts))
    if len(optimum.ratios) ** len(contexts) > MOST // 4:
        choices = [
            [optimum.ratios[k] for k in row] for row in random.integers(len(optimum.ratios), size=(50, len(contexts)))
        ]
    for ratios in choices:
        error = np.empty(shape, dtype=object)
        for group, context, ratio in zip(scaled_alike, contexts, ratios, strict=True):
            values = [k * ratio * context / grid.reach for k in levels]
            for i in group:
                error[i] = min(part(weight[i], value) for value in values)
        total = sum(_least_error(weight, error, group, optimum, seed) for group in selected)
        least = total if least is None else min(least, total)
    loss = sum(map(part, weight.ravel(), left.ravel()))
    return f"loses {loss}, where {least} is possible" if least is not None and loss > least else ""


def _least_error(weight: Array, error: Array, group: list[tuple[int, int]], optimum: Optimum, seed: int) -> Fraction:
    """Return the least loss of a group over the choices of weights to drop, or over some random ones of them."""
    part = LOSSES[optimum.loss].element
    assert part is not None
    count = int(len(group) * optimum.share)  # type: ignore[operator]
    random = np.random.default_rng(seed)
    drops: Iterable[Sequence[int]] = combinations(range(len(group)), count)
    if comb(len(group), count) > MOST:
        drops = [random.choice(len(group), count, replace=False).tolist() for _ in range(MOST)]
    kept, gone = [error[i] for i in group], [part(weight[i], 0) for i in group]
    return min(sum((gone[k] if k in drop else kept[k] for k in range(len(group))), Fraction(0)) for drop in drops)


def _check_no_ops(technique: Technique, layer: LayerState, result: LayerState, make: Callable[[], Choices]) -> None:
    """Check the contracts on changing nothing: for the technique's own result, and for layers of the declared kinds."""
    promised = technique.promises()

    def check(promise: str, before: LayerState, times: int = 1) -> None:
        after = before
        try:
            for _ in range(times):
                after = run(technique, replace(after, choices=make()))
        except NotExactError:
            return
        if not (equal_states(before, after) and invariant_kept("factors", before, after)):
            shown = [(name, walk.shown(state.weight)) for name, state in (("before", before), ("after", after))]
            raise failure(technique, f"its promise {promise} is false", before, *shown)

    plain = replace(layer, format=Format(factors=layer.format.factors))
    if promised.idempotent:
        check("idempotent=True", result)
    if promised.involution:
        check("involution=True", plain, times=2)
    starts = {
        "always": [layer],
        "on a grid": [] if layer.format.grid is None else [layer, replace(layer, weight=layer.weight * 2 + 1)],
        "plain": [plain],
        "masked": [_masked(layer)],
        "without factors": [replace(layer, format=replace(layer.format, factors=None))],
        "plain dense": [replace(plain, reference=plain.effective(), reference_inputs=None)],
    }
    for name in sorted(promised.no_op):
        for start in starts[name]:
            check(f"no_op={{{name!r}}}", start)


def _masked(layer: LayerState) -> LayerState:
    """Return the layer with zeros where its mask drops weights, and with no rank."""
    mask, form = layer.format.mask, replace(layer.format, rank=None)
    weight = layer.weight if mask is None else each(lambda w, keep: w if keep else w * 0, layer.weight, mask)
    return replace(layer, weight=weight, format=form)


def _check_inputs(technique: Technique, before: LayerState, after: LayerState, make: Callable[[], Choices]) -> None:
    """Check that the technique changes only the inputs, or none of them, and reads none without declaring it."""
    shown = ("inputs after", walk.shown(after.inputs))
    if not technique.promises().changes_inputs:
        if not same_inputs(before, after):
            raise failure(technique, "its promise changes_inputs=False is false", before, shown)
    else:
        inputs: Any = after.inputs
        dense: Any = before.inputs if before.reference_inputs is None else before.reference_inputs
        elsewhere = technique.encode(replace(before, weight=before.weight * 0, format=Format(), choices=make()))
        holds = (
            equal_states(before, replace(after, inputs=before.inputs, reference_inputs=before.reference_inputs))
            and np.array_equal(after.reference, before.reference)
            and after.format.rank == before.format.rank
            and same_inputs(after, replace(before, inputs=inputs, gram=inputs @ inputs.T, reference_inputs=dense))
            and same_inputs(after, elsewhere)
        )
        if not holds:
            raise failure(technique, "its promise changes_inputs=True is false", before, shown)
    if not technique.needs_inputs:
        blind = replace(before, gram=None, inputs=None, reference_inputs=None, choices=make())
        if not equal_states(replace(after, inputs=None, reference_inputs=None), technique.encode(blind)):
            raise failure(technique, "it looks at the inputs, and does not say that it needs them", before)


def _check_basis(technique: Technique, before: LayerState, after: LayerState) -> None:
    """Check that the technique changes only the basis of the inputs, or leaves it alone, as it declares."""
    promised, known = technique.promises().changes_basis, before.format.transform
    shown = ("weight after", after.weight)
    if promised:
        holds = np.array_equal(after.effective(), before.effective())
        holds = holds and (after.format.plain or not before.format.plain)
        holds = holds and np.array_equal(after.reference, before.reference)
    else:
        holds = after.format.transform is known
    if not holds:
        raise failure(technique, f"its promise changes_basis={promised} is false", before, shown)
    if technique.promises().scales_inputs and not (promised and scales_features(before, after)):
        raise failure(technique, "its promise scales_inputs=True is false", before, shown)

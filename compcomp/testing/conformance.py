"""One check for every technique: its kernel against its encoding, and its contracts in exact numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from itertools import combinations, product
from math import comb
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

from compcomp.algebra.grids import off_grid
from compcomp.algebra.low_rank import rank_exceeds
from compcomp.errors import InputError, NotExactError
from compcomp.language.kernel_result import wrong_result
from compcomp.language.loss import LOSSES
from compcomp.language.steps import Optimum, Selection, Step
from compcomp.language.technique import Kernel, Technique, run
from compcomp.layers import walk
from compcomp.layers.basis import Transform
from compcomp.layers.batches import batch_size, stack
from compcomp.layers.state import INVARIANTS, Cut, Factors, Format, Grid, LayerState
from compcomp.terms import Array, Batch, BatchChoices, Choices, RandomChoices, Term, each
from compcomp.testing.strategies import Shape, conventions, integers, layers, scaled

SHAPES: tuple[Shape, ...] = ((1, 4), (2, 4), (3, 4), (4, 2), (2, 3), (1, 8), (3, 6))
"""The shapes (out x in) to try, if the technique fits them."""

MARGIN = 1e-6
"""The relative distance from a tie or a rounding midpoint below which floats may choose otherwise."""

SMALL = 2**12
"""The bound on integers for which sums of some hundred products of three are exact in floats."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights for which zeros are checked. Inputs and Gram matrices have at least float32."""

TOLERANCE = 1e-7
"""The tolerance relative to the largest magnitude of the layer."""


SEED = 0x272EA1AB43FF13FE587908C80894327A0EA251719510635671C51B049CC45C8611984AFB4B501DC79434F8E4705BAA18
"""The seed of the layers: the same ones are drawn however the function that examines them changes."""


@dataclass
class Coverage:
    """Count the layers that were compared.

    clear: Layers away from every tie and midpoint.
    at_ties: Layers at a tie or midpoint that is exact in floats.
    promises: Layers on which contracts were checked.
    skipped: Layers on which floats may differ, or whose optimum is not rational.
    """

    clear: int = 0
    at_ties: int = 0
    promises: int = 0
    skipped: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def check_encoding(
    technique: Technique | type[Technique],
    shapes: Sequence[Shape] = SHAPES,
    max_examples: int = 40,
    device: str = "cpu",
    kernel: Kernel | None = None,
    minimise: bool = True,
) -> Coverage:
    """Check that kernel, encoding and contracts of the technique agree, and return what was covered.

    On exact layers drawn by Hypothesis, the encoding on Fractions is compared with the torch kernel in float64 on
    ``device`` and with the encoding on batches. Compared are weight, mask, grid, low-rank product, rank, inputs and
    every loss. Away from ties and midpoints they must agree.

    At a tie they must agree too if floats hit the tie exactly, and if the technique is a single step, only selects, or
    acts on inputs. This excludes scores of the whole layer that are quotients, which floats round. If the fixtures say
    ``exact_scores``, they must also agree at ties on layers of small integers. A technique with ``feasible`` leaves its
    result open: the kernel's result must then be feasible instead. Every declared contract must hold on the Fractions,
    for every choice tried.

    Args:
        technique: A technique, or a class, of which every technique that :func:`conventions` gives is checked. It need
            not be registered.
        shapes: (out, in) pairs. By default the shapes that the technique brings are added. Shapes that it does not fit
            are left out.
        max_examples: The number of layers to draw, always the same ones.
        device: The torch device of the kernel.
        kernel: A kernel that replaces the registered one.
        minimise: True looks for a simpler layer before failing, which takes a while.

    Raises:
        AssertionError: They do not agree, or a contract is broken.
        TypeError: The encoding holds floats, or asks for the truth value of a term.
        InputError: No shape fits.
    """
    if isinstance(technique, type):
        return _check_class(technique, shapes, max_examples, device, kernel, minimise)
    run = kernel or technique.kernel()
    shapes = (*shapes, *technique.fixtures.shapes) if shapes is SHAPES else shapes
    fitting = [shape for shape in shapes if technique.fits(shape)]
    if not fitting:
        raise InputError(", ".join(f"{m}x{n}" for m, n in shapes), "a shape that fits", f"{technique}")
    coverage = Coverage()

    @seed(SEED)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if minimise else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from(fitting))
        inputs = technique.needs_inputs or data.draw(st.booleans())
        whole = technique.needs_tokens or technique.needs_magnitudes
        layer = data.draw(layers(shape, inputs, gram_only=not whole))
        if layer.format.mask is not None and data.draw(st.booleans()):
            layer = _unmasked(layer, data.draw(integers(shape, 3)))
        if layer.format.pattern and data.draw(st.booleans()):
            layer = _other_mask(layer, layer.format.pattern[0][1])
        if (exact_layer := technique.fixtures.exact_layer) is not None:
            numbers = data.draw(st.lists(st.integers(1, 3), min_size=shape[1], max_size=shape[1]))
            layer = exact_layer(technique, layer, numbers)
        seed = data.draw(st.integers(0, 2**16))
        factor = data.draw(st.sampled_from((Fraction(3), Fraction(1, 2), Fraction(2, 7))))
        try:
            result = technique.encode(replace(layer, choices=Choices()))
            _check_promises(technique, layer, result, seed, factor)
            coverage.promises += 1
            _compare(technique, run, layer, result, device, coverage)
        except NotExactError:
            coverage.skipped += 1
            reject()

    examine()
    return coverage


def _check_class(kind: type[Technique], shapes: Sequence[Shape], *rest: Any) -> Coverage:
    """Check every convention of the class that fits some shape."""
    found = [technique for technique in conventions(kind) if any(map(technique.fits, (*shapes, *kind.fixtures.shapes)))]
    if not found:
        raise InputError(
            f"the fixtures of {kind.__name__}", "parameters that the class allows and some shape fits", "check_encoding"
        )
    return sum((check_encoding(technique, shapes, *rest) for technique in found), Coverage())


def _unmasked(layer: LayerState, change: Array) -> LayerState:
    """Return the layer with weights changed that its mask drops, as if an earlier step had broken the mask."""
    mask = np.full(layer.weight.shape, True) if layer.format.mask is None else layer.format.mask
    weight = each(lambda w, keep, x: w if keep else w + x, layer.weight, mask, change)
    return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))


def _other_mask(layer: LayerState, size: int) -> LayerState:
    """Return the layer with the weights of every ``size`` reversed: its N:M patterns hold, its mask may be broken."""
    rows, columns = layer.weight.shape
    weight = layer.weight.reshape(rows, columns // size, size)[:, :, ::-1].reshape(rows, columns)
    return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))


def _fail(technique: Technique, what: str, layer: LayerState, *results: tuple[str, Any]) -> AssertionError:
    lines = [f"{technique}: {what}", *(f"  {name}: {value}" for name, value in results)]
    lines += [f"  {line}" for line in walk.lines(layer)]
    return AssertionError("\n".join(lines))


# --------------------------------------------------------------------------------------------- comparison


def _compare(
    technique: Technique,
    kernel: Kernel,
    layer: LayerState,
    result: LayerState,
    device: str,
    coverage: Coverage,
) -> None:
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
        before = _tensors(layer, device)
        after = _run(technique, kernel, layer, before)
        _check_untouched(technique, layer, before)
        _check_same(technique, "torch kernel", layer, result, _floats(after))
        coverage.clear += clear
        coverage.at_ties += not clear
    else:
        coverage.skipped += 1
    if (clear and other.choices.margin > MARGIN) or (meets_ties and exact_ties and _float_exact(result, other)):
        pairs = [(layer, result), (opposite, other)]
        if _codes(layer) != _codes(opposite):  # codes that are not symmetric: a batch has one grid
            del pairs[1]
        both = technique.encode(_batches([start for start, _ in pairs]))
        for index, (start, single) in enumerate(pairs):
            _check_same(technique, "encoding on batches", start, single, _unbatched(both, index))


def _codes(layer: LayerState) -> tuple[Fraction, ...] | None:
    return None if layer.format.grid is None else layer.format.grid.codes


def _check_feasible(technique: Technique, kernel: Kernel, layer: LayerState, result: LayerState, device: str) -> None:
    """Check that kernel and encoding return feasible states, the kernel always the same, with its inputs unchanged."""
    before = _tensors(layer, device)
    start, found = _floats(before), [_floats(_run(technique, kernel, layer, before)) for _ in range(2)]
    _check_untouched(technique, layer, before)
    batch = _unbatched(technique.encode(_batches([layer, layer])), 0)
    named = (("torch kernel", start, found[0]), ("encoding", layer, result), ("encoding on batches", start, batch))
    for name, one, other in named:
        if not technique.feasible(one, other):
            raise _fail(technique, f"what the {name} gives is not feasible", layer, (name, walk.shown(other.weight)))
        if not _same_inputs(one, other) or not np.array_equal(one.reference, other.reference):
            raise _fail(technique, f"the {name} changes the inputs or the reference", layer)
    if not _equal(*found):
        shown = [(f"run {k}", walk.shown(state.weight)) for k, state in enumerate(found)]
        raise _fail(technique, "two runs of the torch kernel differ", layer, *shown)


def _check_zeros(
    technique: Technique, kernel: Kernel, layer: LayerState, result: LayerState, dtype: torch.dtype, device: str
) -> None:
    """Check that weights are exactly 0 after the kernel where they must be: dropped, removed, or zeros that stay.


    Rows that were zero from the start are checked as well, if the encoding leaves nothing open and keeps them zero. A
    column of a least squares solution may be zero by chance, and is then only nearly zero in floats.
    """
    before = _tensors(layer, device)
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
    start, found = _floats(low), _floats(after)
    promised = technique.promises()
    broken: list[str] = [
        name for name in ("mask", "n:m", "shape") if name in promised.keeps and not _kept(name, start, found)
    ]
    broken += ["restores the mask"] if "mask" in promised.restores and not _restored(start, found) else []
    broken += [f"zero {which} stay" for which in sorted(promised.zeros) if not _zeros_stay(which, start, found)]
    broken += [] if _set_up(start, found) else ["what it drops or removes"]
    told = technique.feasible(layer, result) is None and result.choices.margin > MARGIN
    if told and form.transform is found.format.transform is None:
        always = np.all(layer.reference == 0, axis=1) & _empty(layer, 0) & _empty(result, 0)
        broken += ["zero rows"] if np.any(always & ~_empty(found, 0)) else []
    if broken:
        shown = [("encoding", walk.shown(result.weight)), ("torch kernel", walk.shown(found.weight))]
        raise _fail(technique, f"not exactly zero after the kernel in {dtype}: {', '.join(broken)}", layer, *shown)


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


def _check_same(technique: Technique, what: str, layer: LayerState, expected: LayerState, found: LayerState) -> None:
    """Check that the float state ``found`` is the exact one, up to rounding."""
    size = _largest(layer.weight, layer.reference, expected.effective())
    reach = _largest(layer.inputs)

    def same(name: str, one: Array | None, other: Array | None, size: float = size) -> None:
        if (one is None) != (other is None):
            raise _fail(technique, f"{name} of the {what}", layer, ("encoding", one), (what, other))
        if one is None or other is None:
            return
        apart = np.abs(_float_array(one) - _float_array(other)) if one.shape == other.shape else np.array(np.inf)
        if not np.all(apart <= TOLERANCE * size):
            shown = (("encoding", walk.shown(one)), (what, walk.shown(other)))
            raise _fail(technique, f"the {name} of the {what} differs", layer, *shown)

    def alike(name: str, one: Any, other: Any) -> None:
        if one != other:
            raise _fail(technique, f"the {name} of the {what} differs", layer, ("encoding", one), (what, other))

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
            raise _fail(
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
        raise _fail(technique, f"{wrong[0]} (allowed: {wrong[1]})", layer)
    return after


def _check_untouched(technique: Technique, layer: LayerState, tensors: LayerState) -> None:
    """Check that the kernel changed none of the tensors it was given."""
    untouched = _floats(tensors)
    for field, array in walk.arrays(layer):
        if not np.array_equal(_float_array(array), _float_array(field.of(untouched))):
            raise _fail(technique, f"the kernel changes the {field.name} it is given in place", layer)


# ------------------------------------------------------------------------------------------------ promises


def _check_promises(technique: Technique, layer: LayerState, result: LayerState, seed: int, factor: Fraction) -> None:
    result.require_exact()
    promised = technique.promises()
    makers: list[Callable[[], Choices]] = [Choices, lambda: RandomChoices(seed)]
    results = [result, technique.encode(replace(layer, choices=makers[1]()))]

    def broken(promise: str, *shown: tuple[str, Any]) -> AssertionError:
        return _fail(technique, f"its promise {promise} is false", layer, *shown)

    if promised.deterministic and not _equal(results[0], results[1]):
        shown = [(f"choice {k}", walk.shown(r.weight)) for k, r in enumerate(results)]
        raise broken("deterministic=True", *shown)
    if promised.deterministic:
        del makers[1], results[1]
    for make, result in zip(makers, results, strict=True):
        after = ("weight after", walk.shown(result.weight))
        if "mask" in promised.restores and not _restored(layer, result):
            raise broken("restores={'mask'}", after)
        for invariant in (*INVARIANTS, "factors"):
            if invariant in promised.keeps and not _kept(invariant, layer, result):
                raise broken(f"keeps={{{invariant!r}}}", after)
        fits = _within_rank(result) and _set_up(layer, result) and _factors_fit(result)
        if not fits or (_on_grid(layer) and not _on_grid(result)):
            raise _fail(technique, "the weight does not fit the format it sets", layer, after)
        for which in sorted(promised.zeros):
            if not _zeros_stay(which, layer, result):
                raise broken(f"zeros={{{which!r}}}", after)
        for axis, name in enumerate(("removes_rows", "removes_columns")):
            if getattr(promised, name) and not _lines_alone(layer, result, axis):
                raise broken(f"{name}=True", after)
        numbers = _numbers(result.format), _numbers_elsewhere(technique, layer, make())
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
        if other is not None and not promised.sees_factors and not _equal(result, other):
            seen = ("effective weight after", walk.shown(result.effective()))
            raise broken("sees_factors=False", seen, ("with other factors", walk.shown(other.effective())))
        _check_inputs(technique, layer, result, make)
        _check_basis(technique, layer, result)
        at_reference = replace(layer, reference=layer.effective(), reference_inputs=None, choices=make())
        rested = technique.encode(at_reference)
        if promised.rests and not _equal(at_reference, rested):
            raise broken("rests=True", ("weight after, at the reference", walk.shown(rested.weight)))
        held = np.array_equal(rested.effective(), at_reference.reference) and _same_inputs(rested, at_reference)
        if promised.holds_reference and not held:
            raise broken("holds_reference=True", ("effective weight after", walk.shown(rested.effective())))
        if promised.optimum is not None and (better := _better(promised.optimum, layer.weight, result.weight, seed)):
            raise broken("optimum", ("what it leaves", better), after)
        if promised.leaves_weight and not _weight_left(layer, result):
            raise broken("leaves_weight=True", after)
        _check_no_ops(technique, layer, result, make if promised.deterministic else lambda: RandomChoices(seed + 1))
        if not promised.homogeneous:
            continue
        larger = technique.encode(replace(scaled(layer, factor), choices=make()))
        if not _equal(scaled(result, factor), larger):
            raise broken("homogeneous=True", (f"weight after, times {factor}", walk.shown(larger.weight)), after)
    _check_steps(technique, layer, results[0])


def _check_steps(technique: Technique, layer: LayerState, result: LayerState) -> None:
    """Check that the steps of the technique, if it has any, do what its encoding does."""
    if not technique.steps():
        return
    after = replace(layer, choices=Choices())
    for step in technique.steps():
        after = step.apply(after)
    if not _equal(after, result) or after.format.rank != result.format.rank:
        shown = (("steps", walk.shown(after.weight)), ("encoding", walk.shown(result.weight)))
        raise _fail(technique, "its steps() are not what its encoding does", layer, *shown)


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
    part, levels = LOSSES[optimum.loss].element, optimum.grid.known_levels
    assert part is not None
    selected, scaled_alike = optimum.partition.groups(shape), optimum.grid.partition.groups(shape)
    if any(sum(left[i] == 0 for i in group) < int(len(group) * optimum.share) for group in selected):  # type: ignore[operator]
        return "has too few zeros"
    contexts = [optimum.grid.context(weight[i] for i in group) for group in scaled_alike]
    for group, context in zip(scaled_alike, contexts, strict=True):
        steps = [ratio * context / levels for ratio in optimum.ratios]
        if not any(all(left[i] in [k * step for k in range(-levels, levels + 1)] for i in group) for step in steps):
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
            values = [k * ratio * context / levels for k in range(-levels, levels + 1)]
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
        if not (_equal(before, after) and _kept("factors", before, after)):
            shown = [(name, walk.shown(state.weight)) for name, state in (("before", before), ("after", after))]
            raise _fail(technique, f"its promise {promise} is false", before, *shown)

    plain = replace(layer, format=Format(factors=layer.format.factors))
    if promised.idempotent:
        check("idempotent=True", result)
    if promised.involution:
        check("involution=True", plain, times=2)
    starts = {
        "always": [layer],
        "on a grid": [] if layer.format.grid is None else [layer, replace(layer, weight=layer.weight * 2 + 1)],
        "masked": [_masked(layer)],
        "without factors": [replace(layer, format=replace(layer.format, factors=None))],
        "plain": [plain],
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
        if not _same_inputs(before, after):
            raise _fail(technique, "its promise changes_inputs=False is false", before, shown)
    else:
        inputs: Any = after.inputs
        dense: Any = before.inputs if before.reference_inputs is None else before.reference_inputs
        elsewhere = technique.encode(replace(before, weight=before.weight * 0, format=Format(), choices=make()))
        told = (
            _equal(before, replace(after, inputs=before.inputs, reference_inputs=before.reference_inputs))
            and np.array_equal(after.reference, before.reference)
            and after.format.rank == before.format.rank
            and _same_inputs(after, replace(before, inputs=inputs, gram=inputs @ inputs.T, reference_inputs=dense))
            and _same_inputs(after, elsewhere)
        )
        if not told:
            raise _fail(technique, "its promise changes_inputs=True is false", before, shown)
    if not technique.needs_inputs:
        blind = replace(before, gram=None, inputs=None, reference_inputs=None, choices=make())
        if not _equal(replace(after, inputs=None, reference_inputs=None), technique.encode(blind)):
            raise _fail(technique, "it looks at the inputs, and does not say that it needs them", before)


def _check_basis(technique: Technique, before: LayerState, after: LayerState) -> None:
    """Check that the technique changes only the basis of the inputs, or leaves it alone, as it declares."""
    promised, known = technique.promises().changes_basis, before.format.transform
    shown = ("weight after", after.weight)
    if promised:
        told = np.array_equal(after.effective(), before.effective())
        told = told and (after.format.plain or not before.format.plain)
        told = told and np.array_equal(after.reference, before.reference)
    else:
        told = after.format.transform is known
    if not told:
        raise _fail(technique, f"its promise changes_basis={promised} is false", before, shown)
    if technique.promises().scales_inputs and not (promised and _scaled(before, after)):
        raise _fail(technique, "its promise scales_inputs=True is false", before, shown)


def _scaled(before: LayerState, after: LayerState) -> bool:
    """Return True if every input feature is divided by a number > 0, and its weight column multiplied by it."""
    none = Transform(())
    known, changed = (state.format.transform or none for state in (before, after))
    change = changed.inputs(known.inputs_back(none.matrix(before.weight.shape[1])))
    diagonal = np.diagonal(change)
    alone = np.array_equal(change, np.diag(diagonal)) and all(x > 0 for x in diagonal)
    return alone and np.array_equal(after.weight * diagonal, before.weight)


def _same_inputs(one: LayerState, other: LayerState) -> bool:
    """Return True if inputs, Gram matrix and dense inputs are exactly the same."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("inputs", "gram", "reference_inputs")]
    return all(np.array_equal(a, b) for a, b in pairs)


def _equal(one: LayerState, other: LayerState) -> bool:
    """Return True if weight, mask, grid, low-rank product and inputs are exactly the same."""
    return all(
        a == b if field.kind == "data" else np.array_equal(a, b)
        for field, a, b in walk.compared(one, other, recorded=True)
    )


def _weight_left(before: LayerState, after: LayerState) -> bool:
    """Return True if weight, mask, grid and rank are exactly the same; the low-rank term may differ."""
    alone = (replace(state, format=replace(state.format, factors=None)) for state in (before, after))
    return before.format.rank == after.format.rank and _equal(*alone)


def _same_grid(one: LayerState, other: LayerState) -> bool:
    """Return True if both grids have the same values."""
    fields = [field for field in walk.FIELDS if field.path.startswith("format.grid.") and field.equal == "as it is"]
    pairs = [(field.of(one), field.of(other)) for field in fields]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def _kept(invariant: str, before: LayerState, after: LayerState) -> bool:
    old, new = before.format, after.format
    if invariant == "factors":
        if old.factors is None or new.factors is None:
            return new.factors is old.factors
        return all(np.array_equal(getattr(old.factors, side), getattr(new.factors, side)) for side in ("left", "right"))
    if old.get(invariant) is None:
        return True
    if new.get(invariant) is None:
        return False
    if old.mask is not None and new.mask is not None and invariant == "mask":
        if np.any(new.mask.astype(bool) & ~old.mask.astype(bool)):
            return False
        return not _fits_mask(before.weight, old.mask) or _fits_mask(after.weight, old.mask)
    if invariant == "grid":
        assert old.grid is not None and new.grid is not None
        if new.transform is not old.transform:  # the grid has changed along with the basis
            kinds = ((g.levels, g.zero, g.offset is None) for g in (old.grid, new.grid))
            return len(set(kinds)) == 1 and (_on_grid(after) or not _on_grid(before))
        return _same_grid(before, after) and _on_grid(after)
    if invariant == "n:m":
        known = {m: n for n, m in new.pattern or ()}
        return all(
            known.get(m, m) <= n and (_fits_pattern(after.weight, n, m) or not _fits_pattern(before.weight, n, m))
            for n, m in old.pattern or ()
        )
    if invariant == "shape":
        assert old.cut is not None and new.cut is not None
        fewer = not (np.any(new.cut.rows & ~_bools(old.cut.rows)) or np.any(new.cut.columns & ~_bools(old.cut.columns)))
        return fewer and (_fits_cut(after, old.cut) or not _fits_cut(before, old.cut))
    assert old.rank is not None
    return _within_rank(after) and not (_within_rank(before) and rank_exceeds(after.weight, old.rank))


def _bools(array: Array) -> Array:
    return array.astype(bool)


def _fits_pattern(weight: Array, kept: int, size: int) -> bool:
    return bool(np.all((weight != 0).reshape(len(weight), -1, size).sum(axis=2) <= kept))


def _numbers(form: Format) -> tuple[Any, ...]:
    """Return the numbers in a format, and which of its fields are set."""
    found: list[Any] = []
    for field in walk.FIELDS:
        value = field.of(SimpleNamespace(format=form))
        if not field.in_format or field.kind == "basis":
            continue
        found.append(value if field.kind == "data" else value is None)
    return (*found, form.factors and form.factors.rank)


def _numbers_elsewhere(technique: Technique, layer: LayerState, choices: Choices) -> tuple[Any, ...] | None:
    """Return the numbers of the format that a zero weight gets; None if the optimum is not rational there."""
    try:
        return _numbers(technique.encode(replace(layer, weight=layer.weight * 0, choices=choices)).format)
    except NotExactError:
        return None


def _fits_cut(layer: LayerState, cut: Cut) -> bool:
    factors = layer.format.factors
    left = (layer.weight != 0) | (False if factors is None else factors.left @ factors.right != 0)
    return not (np.any(left[~_bools(cut.rows)]) or np.any(left[:, ~_bools(cut.columns)]))


def _set_up(before: LayerState, after: LayerState) -> bool:
    """Return True if mask, patterns, and removed rows and columns that the technique set up hold in weight and mask."""
    old, new = before.format, after.format
    full = np.full(after.weight.shape, True)
    mask = full if new.mask is None else _bools(new.mask)
    was = full if old.mask is None else _bools(old.mask)
    fits = _fits_mask(after.weight, mask | ~was)
    for pattern in new.pattern or ():
        fits = fits and _fits_pattern(mask, *pattern)
        fits = fits and (pattern in (old.pattern or ()) or _fits_pattern(after.weight, *pattern))
    if new.cut is not None:
        rows, columns = _bools(new.cut.rows), _bools(new.cut.columns)
        fits = fits and not np.any(mask & ~np.outer(rows, columns))
        if old.cut is not None:
            rows, columns = rows | ~_bools(old.cut.rows), columns | ~_bools(old.cut.columns)
        fits = fits and _fits_cut(after, Cut(rows, columns))
    return fits


def _zeros_stay(which: str, before: LayerState, after: LayerState) -> bool:
    """Return True if zeros stay: single weights, or rows or columns of the weight and the low-rank term."""
    if which == "weights":
        return not np.any((after.weight != 0) & (before.weight == 0))
    empty = [_empty(state, ("rows", "columns").index(which)) for state in (before, after)]
    return not np.any(empty[0] & ~empty[1])


def _empty(layer: LayerState, axis: int) -> Array:
    """Return which rows (axis 0) or columns (axis 1) are zero in the weight and in the low-rank term."""
    factors = layer.format.factors
    parts = [layer.weight, *([] if factors is None else [factors.left @ factors.right])]
    empty: Array = np.all([np.all(part == 0, axis=1 - axis) for part in parts], axis=0)
    return empty


def _lines_alone(before: LayerState, after: LayerState, axis: int) -> bool:
    """Return True if the cut leaves the columns (axis 0; 1: rows) alone, and the mask adds only what is removed."""
    cut, mask = after.format.cut, after.format.mask
    if cut is None or mask is None:
        return False
    lines, others = (cut.rows, cut.columns)[:: 1 - 2 * axis]
    old = before.format.cut
    stay = True if old is None else _bools((old.columns, old.rows)[axis])
    was = True if before.format.mask is None else _bools(before.format.mask)
    drops = _bools(lines)[:, None] if axis == 0 else _bools(lines)[None]
    return bool(np.all(_bools(others) == stay) and np.all(_bools(mask) == (was & drops)))


def _fits_mask(weight: Array, mask: Array) -> bool:
    return not np.any(weight[~mask.astype(bool)] != 0)


def _restored(before: LayerState, after: LayerState) -> bool:
    old, new = before.format.mask, after.format.mask
    if old is None:
        return True
    return new is not None and not np.any(new.astype(bool) & ~old.astype(bool)) and _fits_mask(after.weight, old)


def _on_grid(layer: LayerState) -> bool:
    """Return True if every weight is a value of the grid. If the grid does not contain 0, only kept weights must be."""
    return _fits_grid(layer.weight, layer.format.grid, layer.format.mask)


def _factors_fit(layer: LayerState) -> bool:
    """Return True if every entry of a factor is a value of the factor's grid, if it has one."""
    factors = layer.format.factors
    if factors is None:
        return True
    return _fits_grid(factors.left, factors.left_grid, None) and _fits_grid(factors.right, factors.right_grid, None)


def _fits_grid(weight: Array, grid: Grid | None, mask: Array | None) -> bool:
    if grid is None:
        return True
    offset = weight * 0 if grid.offset is None else grid.offset
    lowest = -grid.levels if grid.offset is None else 0

    def fits(weight: Term, step: Term, least: Term) -> bool:
        if grid.codes is not None:
            return Fraction(weight) / step in grid.codes if step else weight == 0
        level = Fraction(weight - least) / step if step else Fraction(weight - least)
        return level.denominator == 1 and (lowest <= level <= grid.levels if step else level == 0)

    fitting = each(fits, weight, grid.step, offset).astype(bool)
    if mask is not None and not grid.zero:
        fitting |= ~mask.astype(bool) & (weight == 0)
    return bool(fitting.all())


def _within_rank(layer: LayerState) -> bool:
    return layer.format.rank is None or not rank_exceeds(layer.weight, layer.format.rank)


# ------------------------------------------------------------------------------------------------ readings


def _float_array(array: Array) -> Array:
    return np.array([float(x) for x in array.ravel()]).reshape(array.shape)


def _tensors(layer: LayerState, device: str) -> LayerState:
    """Return the exact layer as float64 tensors, with its mask as a bool tensor."""

    def tensor(array: Array) -> torch.Tensor:
        if all(isinstance(x, bool | np.bool_) for x in array.ravel()):
            return torch.tensor(array.astype(bool), device=device)
        return torch.tensor(_float_array(array), dtype=torch.float64, device=device)

    return walk.map(tensor, layer)


def _floats(layer: LayerState) -> LayerState:
    """Return tensors as object arrays of Python floats and bools."""
    return walk.map(lambda tensor: np.array(tensor.tolist(), dtype=object).reshape(tuple(tensor.shape)), layer)


class _FirstChoices(BatchChoices):
    """Make the choices of :class:`Choices`, for a batch."""

    def order(self, count: int) -> Any:
        return np.broadcast_to(np.arange(count)[:, None], (count, self.size))

    def flip(self) -> Term:
        return Batch(np.zeros(self.size, dtype=bool))

    def number(self, usual: Term) -> Term:
        return usual

    def grid_value(self, x: Term, step: Term, levels: int) -> Term:
        return Choices.grid_value(self, x, step, levels)


def _batches(states: Sequence[LayerState]) -> LayerState:
    """Return exact layers of one format as one layer of batches."""

    def batch(*terms: Term) -> Batch:
        return Batch([x if isinstance(x, bool | np.bool_) else float(x) for x in terms])

    choices = _FirstChoices(len(states), np.random.default_rng(0))
    return replace(walk.map(lambda *arrays: each(batch, *arrays), *states), choices=choices)


def _unbatched(layer: LayerState, index: int) -> LayerState:
    """Return one candidate of a layer of batches, as floats."""
    size = batch_size(layer.weight, layer.reference)
    return walk.map(lambda array: stack(array, size)[index], layer)

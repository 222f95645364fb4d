"""Choose which claims to ask, by running every order on generated layers.

A claim that fails on one layer is false, so hundreds of claims are never asked. A claim that holds on all layers is
only a candidate: nothing is merged or dropped for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import combinations
from math import ceil, lcm

import numpy as np
import numpy.typing as npt

from compcomp.bench import Shape
from compcomp.language.loss import Loss
from compcomp.language.technique import Technique, run
from compcomp.layers import walk
from compcomp.layers.basis import Transform
from compcomp.layers.batches import stack, unstack
from compcomp.layers.state import LayerState
from compcomp.ordering.dag import Orderings
from compcomp.ordering.space import Prefix
from compcomp.terms import Array, Batch, BatchChoices

Values = npt.NDArray[np.float64]

LAYERS = 48
"""Generated layers, each of one of :data:`KINDS`. There are fewer if each is large."""
KINDS = ("integers with ties", "landmarks", "gaussian", "correlated inputs", "zero groups", "one token")
ENTRIES = 640
"""The most weights of a generated layer, which suffice to find most false claims."""
COLUMNS = 1024
"""The most columns of a generated layer."""
QUICK = 0.3
"""Seconds of trying the techniques on one layer after which no wider ones are tried."""
NARROW, SLOW = 12, 1.0
"""Columns of layers on which techniques are timed, and the seconds that one may take on wider ones."""
AGREE = 1e-9
"""Relative difference up to which floats count as equal."""


def small_shape(techniques: Iterable[Technique], entries: int = ENTRIES) -> Shape | None:
    """Return a small shape (out, in) that all techniques fit and, if possible, change layers of.

    The shape has more rows and columns than the ranks, as far as the number of entries allows. Wider layers are tried
    until the smallest share of the techniques is at least one weight of a row, as long as trying is quick.

    Args:
        techniques: The techniques.
        entries: The most weights of the layer, if the techniques permit.

    Returns:
        The shape, None if no small layer fits all techniques.
    """
    techniques = list(techniques)
    unit = lcm(*(t.unit for t in techniques))
    side = max((t.hints().trivial_side for t in techniques), default=0) + 1
    narrowest, columns = (unit * ceil(least / unit) for least in (6, max(side, 6)))
    columns = narrowest if seconds_on(techniques, columns) > SLOW else columns
    rows = max(side + 1, 4)
    shares = [getattr(t, f.name) for t in techniques for f in fields(t)]
    enough = max((ceil(1 / x) for x in shares if isinstance(x, Fraction) and 0 < x < 1), default=1)
    first = None
    while columns <= COLUMNS:
        shape = (max(2, min(rows, entries // columns)), columns)
        if all(t.fits(shape) for t in techniques):
            first = first or shape
            if seconds_on(techniques, columns) > SLOW:
                return first
            start = time.monotonic()
            idle = [t for t in techniques if not _does_something(t, shape)]
            if not idle:
                return shape
            if columns >= max(enough, 2 * first[1]) or time.monotonic() - start > QUICK:
                return first
        columns += unit * ceil(columns / (2 * unit))
    fallback = (2, unit)
    return first or (fallback if unit <= COLUMNS and all(t.fits(fallback) for t in techniques) else None)


def seconds_on(techniques: Iterable[Technique], columns: int) -> float:
    """Estimate the seconds of the slowest technique on layers of so many columns, from its time on narrow ones."""
    longest = 0.0
    for technique in techniques:
        narrow = technique.unit * ceil(NARROW / technique.unit)
        if columns <= 2 * narrow or technique.steps() or not technique.fits((2, narrow)):
            continue
        layer = generated((2, narrow), [technique], np.random.default_rng(0), layers=1, kinds=("gaussian",))
        start = time.monotonic()
        run(technique, layer)
        longest = max(longest, (time.monotonic() - start) * (columns / narrow) ** 2.5)
    return longest


def _does_something(technique: Technique, shape: Shape) -> bool:
    """Return True if a technique changes a dense layer, or is not expected to, as it only corrects others."""
    promises = technique.promises()
    if promises.no_op_on_dense or promises.holds_reference or promises.restores or promises.changes_basis:
        return True
    layer = generated(shape, [technique], np.random.default_rng(0), layers=1, kinds=("gaussian",))
    after = run(technique, layer)
    if promises.changes_inputs:
        assert layer.inputs is not None and after.inputs is not None
        return bool(np.any(stack(after.inputs - layer.inputs, 1)))
    return bool(np.any(stack(after.effective() - layer.weight, 1)))


# ---------------------------------------------------------------------------------------------- layers


def generated(
    shape: Shape,
    techniques: Iterable[Technique],
    random: np.random.Generator,
    layers: int = LAYERS,
    kinds: tuple[str, ...] = KINDS,
) -> LayerState:
    """Generate dense layers of every kind with Gram matrices of inputs, as one layer of batches.

    The inputs themselves are present only if some technique reads them or their magnitudes.

    Args:
        shape: The shape (out, in) of each layer.
        techniques: The techniques that the layers should distinguish.
        random: Draws the layers.
        layers: The number of layers.
        kinds: The kinds of layers, repeated in turn.
    """
    techniques = list(techniques)
    marks = sorted({mark for t in techniques for mark in t.hints().landmarks if 0 < mark < 10**6}) or [6]
    sizes = [step.partition.size for t in techniques for step in t.steps()]
    block = min((size for size in sizes if size is not None and size > 1), default=shape[1])
    weights, inputs = np.zeros((layers, *shape)), np.zeros((layers, shape[1], shape[1] + 4))
    for k in range(layers):
        kind, mark = kinds[k % len(kinds)], marks[(k // len(kinds)) % len(marks)]
        weights[k] = _weight(kind, shape, block, mark, random)
        inputs[k] = _inputs(kind, inputs.shape[1:], random)
    gram = inputs @ inputs.transpose(0, 2, 1)
    needed = any(t.needs_tokens or t.needs_magnitudes for t in techniques)
    whole = unstack(inputs) if needed else None
    return LayerState.dense(unstack(weights), whole, unstack(gram), BatchChoices(layers, random))


def _weight(kind: str, shape: Shape, block: int, mark: int, random: np.random.Generator) -> Values:
    if kind in ("integers with ties", "one token"):
        return random.integers(-3, 4, size=shape).astype(float)
    if kind == "landmarks":  # the largest magnitude of every block is one where midpoints are whole numbers
        weight = random.integers(-mark, mark + 1, size=shape).astype(float)
        weight[:, ::block] = mark * random.choice([-1.0, 1.0], size=weight[:, ::block].shape)
        return weight
    weight = random.standard_normal(shape)
    if kind == "zero groups":
        weight[random.random(shape[0]) < 0.2] = 0
        weight[np.repeat(random.random((shape[0], ceil(shape[1] / block))) < 0.3, block, axis=1)[:, : shape[1]]] = 0
    if kind == "correlated inputs":
        weight[random.random(shape) < 0.03] *= 8
    return weight


def _inputs(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Values:
    features, tokens = shape
    if kind in ("integers with ties", "landmarks"):
        return random.integers(-2, 3, size=shape).astype(float)
    if kind == "one token":
        inputs = np.zeros(shape)
        inputs[:, 0] = random.integers(-2, 3, size=features)
        return inputs
    inputs = random.standard_normal(shape)
    if kind == "correlated inputs":
        few = max(1, features // 4)
        inputs = random.standard_normal((features, few)) @ random.standard_normal((few, tokens)) + 0.1 * inputs
        inputs[random.random(features) < 0.1] *= 10
    if kind == "zero groups":
        inputs[random.random(features) < 0.2] = 0
    return inputs


# ---------------------------------------------------------------------------------------------- screening


@dataclass(frozen=True)
class Sketch:
    """Hold a projection of a state.

    Equal states have equal ``format``, and equal ``values`` (layers x fields) up to rounding.
    """

    format: tuple[object, ...]
    values: Values

    def agrees(self, other: Sketch) -> bool:
        """Return True if two states may be equal on every layer."""
        return self.format == other.format and bool(
            np.all(np.abs(self.values - other.values) <= AGREE * (1 + np.abs(self.values)))
        )


class Screen:
    """Run techniques on generated layers. ``applications`` counts the runs."""

    def __init__(self, orderings: Orderings, loss: Loss, shape: Shape, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        layers = max(len(KINDS), min(LAYERS, LAYERS * ENTRIES // (shape[0] * shape[1]), LAYERS * 64 // shape[1]))
        self.shape, self.layers, self.applications = shape, layers, 0
        self._techniques, self._loss = orderings.techniques, loss
        self._dense = generated(shape, self._techniques, random, layers)
        tokens = self._dense.inputs.shape[1] if self._dense.inputs is not None else 0
        entries = max(shape[1] * max(*shape, tokens), sum(shape))  # of the largest field, or of a cut
        self._directions = np.random.default_rng(seed + 1).uniform(0.5, 1.5, size=entries)
        weights = np.abs(stack(self._dense.weight, layers)).max(axis=(1, 2))
        self._size = np.where(weights == 0, 1.0, weights)
        nothing = replace(self._dense, weight=self._dense.weight * 0)
        scale = self._values(loss.of(nothing))
        self._scale = np.where(scale == 0, 1.0, scale)

    def start(self) -> LayerState:
        """Return the generated layers, uncompressed."""
        return self._dense

    def apply(self, technique: int, state: LayerState) -> LayerState:
        """Return the state after one more technique."""
        self.applications += 1
        with np.errstate(all="ignore"):
            return run(self._techniques[technique], state)

    def losses(self, state: LayerState) -> Values:
        """Return the loss on each layer, relative to that of a layer of zeros."""
        return self._values(self._loss.of(state)) / self._scale

    def sketch(self, state: LayerState) -> Sketch:
        """Project every field of the state on one random direction, so that different fields hardly ever agree."""
        values, known = [self._projected(state.effective() - state.weight) / self._size], list[object]()
        for field in walk.FIELDS:
            if not field.equal or field.equal == "product":  # the difference above is the product
                continue
            value = field.of(state)
            if field.equal == "changed" and state.reference_inputs is None:
                value = None
            if field.equal == "full" and value is None:
                value = np.full(self.shape, True, dtype=object)
            if field.kind == "data":
                known.append(value)
                continue
            if field.kind == "basis":
                matrix = (Transform(()) if value is None else value).matrix(self.shape[1], float)
                values.append(self._projected(matrix))
                continue
            known.append(value is None)
            if value is not None:
                scale = self._size if field.kind == "numbers" and field.equal == "as it is" else 1
                values.append(self._projected(value) / scale)
        return Sketch(tuple(known), np.stack(values, axis=1))

    def _projected(self, field: Array) -> Values:
        entries = stack(field, self.layers).reshape(self.layers, -1)
        projected: Values = entries @ self._directions[: entries.shape[1]]
        return projected

    def _values(self, term: object) -> Values:
        values = term.values if isinstance(term, Batch) else float(term)  # type: ignore[arg-type]
        return np.broadcast_to(np.asarray(values, dtype=float), (self.layers,))


def alike(sketches: dict[Prefix, Sketch]) -> list[tuple[Prefix, Prefix]]:
    """Return pairs of prefixes whose states agree on every layer, the smaller prefix first."""
    groups: dict[object, list[Prefix]] = {}
    for prefix, sketch in sketches.items():
        groups.setdefault(sketch.format, []).append(prefix)
    return [
        (first, second)
        for group in groups.values()
        for first, second in combinations(sorted(group), 2)
        if sketches[first].agrees(sketches[second])
    ]


def no_worse(losses: dict[Prefix, Values]) -> dict[Prefix, list[Prefix]]:
    """Return for each complete order the orders of the same techniques that lose no more on any layer.

    Orders that share the longest subsequence with it come first, and of these the ones that lose less on average.
    """
    found: dict[Prefix, list[Prefix]] = {}
    orders = sorted(losses)
    table = np.stack([losses[order] for order in orders]) if orders else np.zeros((0, 1))
    mean = table.mean(axis=1)
    for k, order in enumerate(orders):
        below = np.all(table <= table[k] * (1 + AGREE) + AGREE * 1e-2, axis=1)
        better = [i for i in np.flatnonzero(below) if i != k and sorted(orders[i]) == sorted(order)]
        better.sort(key=lambda i: (-in_common(orders[i], order), mean[i], orders[i]))
        found[order] = [orders[i] for i in better]
    return found


def in_common(first: Prefix, second: Prefix) -> int:
    """Return the length of the longest common subsequence of two prefixes."""
    row = [0] * (len(second) + 1)
    for x in first:
        before = row[:]
        for j, y in enumerate(second):
            row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
    return row[-1]

"""Draw layers to try, in numpy batches: small integers, values on and next to rounding midpoints, ties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compcomp.language.claim import Claim, Scope
from compcomp.language.technique import Technique
from compcomp.layers.batches import unstack
from compcomp.layers.state import LayerState
from compcomp.terms import BatchChoices

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """A batch of layers with integer entries. ``weights``: size x out x in. ``inputs``: size x in x tokens, or None."""

    weights: Values
    inputs: Values | None

    def layer(self, random: np.random.Generator, *, gram: bool = True) -> LayerState:
        """Return all of them as one dense layer of batches. ``gram``: some technique looks at the whole Gram matrix."""
        inputs = None if self.inputs is None else unstack(self.inputs)
        choices = BatchChoices(len(self.weights), random)
        weight = unstack(self.weights)
        if gram:
            return LayerState.dense(weight, inputs, choices=choices)
        return LayerState(weight, weight, inputs=inputs, choices=choices)


def looks_at_gram(claim: Claim) -> bool:
    """Return True if a technique or condition of the claim needs more of the inputs than the norms of the features."""
    techniques = (t for s in claim.sequences for t in s)
    looking = (
        t.needs_inputs
        and not t.promises().changes_inputs
        and (not t.steps() or any(getattr(step, "of_layer", None) for step in t.steps()))
        for t in techniques
    )
    return any(c.needs_inputs for c in claim.given) or any(looking)


def shapes_to_try(claim: Claim, scope: Scope) -> list[tuple[int, int]]:
    """Return the shapes (out, in) to search for a counterexample: the scope's own, or small ones that fit."""
    if scope.shape is not None:
        return [scope.shape]
    techniques = [t for sequence in claim.sequences for t in sequence]
    unit = claim.unit
    if unit > 256:
        return []
    side = max([t.hints().trivial_side for t in techniques], default=0) + 1
    columns = [unit * k for k in (1, 2, 3, 4) if unit * k >= side and unit * k <= max(4, 2 * unit)]
    if not columns:
        columns = [unit * -(-side // unit)]
    tall = sorted({claim.row_unit * k for k in (1, 2, -(-side // claim.row_unit))})
    shapes = [(rows, c) for rows in tall for c in columns if rows >= min(side, 2) or side == 1]
    if not any(all(t.fits(shape) for t in techniques) for shape in shapes):  # such as rows in proportion to columns
        more = ((rows, unit * k) for k in range(1, 5) for rows in range(1, 4 * unit * k + 1) if unit * k <= 16)
        shapes = [shape for shape in more if all(t.fits(shape) for t in techniques)][:3]
    return sorted(set(shapes), key=lambda s: s[0] * s[1])


def rounds(
    techniques: Iterable[Technique],
    shape: tuple[int, int],
    needs_inputs: bool,
    random: np.random.Generator,
    size: int,
) -> Iterator[Candidates]:
    """Yield ever larger integers: single digits first, then the techniques' landmarks and their multiples.

    Args:
        techniques: their hints give landmarks and ranks.
        shape: (out, in) of each layer.
        needs_inputs: draw inputs too.
        random: the source of the draws.
        size: layers a batch.
    """
    techniques = list(techniques)
    landmarks = sorted({mark for t in techniques for mark in t.hints().landmarks if mark < 10**6})
    rank = max((t.hints().trivial_side for t in techniques), default=0)
    largest = [3, 9, *landmarks, 2, 5, *(2 * mark for mark in landmarks), 20, *(3 * mark for mark in landmarks), 99]
    for turn in range(10**6):
        top = largest[turn % len(largest)]
        weights = random.integers(-top, top + 1, size=(size, *shape)).astype(float)
        flat = weights.reshape(size, -1)
        if top in landmarks:  # the largest magnitude exactly at the landmark
            flat[np.arange(size), random.integers(flat.shape[1], size=size)] = top
        flat[: size // 4] = np.abs(flat[: size // 4])
        sparse = random.random(flat[: size // 3].shape) < 0.4
        flat[-len(sparse) :][sparse] = 0
        if rank:  # of a rank that a truncation leaves alone, so that what comes after it finds rationals
            low = size // 4
            factors = (random.integers(-2, 3, size=(low, *side)) for side in ((shape[0], rank), (rank, shape[1])))
            weights[low : 2 * low] = np.matmul(*factors)
        active = _few_columns(random, size, shape[1])
        weights *= active[:, None, :]
        inputs = None
        if needs_inputs:
            tokens = (1, 2, min(shape[1], 4))[turn % 3]
            reach = (1, 2, 4, 9)[turn % 4]
            inputs = random.integers(-reach, reach + 1, size=(size, shape[1], tokens)).astype(float)
            inputs *= _few_columns(random, size, shape[1])[..., None]
        yield Candidates(weights, inputs)


def _few_columns(random: np.random.Generator, size: int, columns: int) -> Values:
    """Return which columns of wide layers may be non-zero: few neighbouring ones in two candidates of three."""
    active = np.ones((size, columns))
    if columns > 6:
        start, width = random.integers(columns, size=size), random.integers(2, 7, size=size)
        inside = (np.arange(columns) - start[:, None]) % columns < width[:, None]
        active[: 2 * size // 3] = inside[: 2 * size // 3]
    return active

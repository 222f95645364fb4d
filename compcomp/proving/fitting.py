"""Move candidates to satisfy a claim's conditions, and find one exact layer on which they all hold."""

from __future__ import annotations

import time
from fractions import Fraction
from math import ceil

import numpy as np

from compcomp.errors import NotExactError
from compcomp.language.claim import Claim, Fits, Scope
from compcomp.language.conditions import Box
from compcomp.language.steps import Selection
from compcomp.proving.candidates import Candidates, looks_at_gram, rounds, shapes_to_try
from compcomp.proving.meaning import conditions_hold
from compcomp.proving.replay import Suspect, exact_runs
from compcomp.proving.special import reflections
from compcomp.terms import Array, Batch

SIZE = 500
TRIES = 40
WIDEST = 1024
STEPS = 8
"""The number of equal steps from the centre of a box to each side at which it is searched."""


def fitted(claim: Claim, candidates: Candidates, random: np.random.Generator) -> Candidates:
    """Return the candidates, moved into the boxes of the claim's conditions, with inputs that these require."""
    weights, inputs = candidates.weights, candidates.inputs
    for condition in claim.given:
        if isinstance(condition, Box) and weights.shape[1:] == condition.shape:
            centre = np.array([[float(x) for x in row] for row in condition.around])
            steps = random.integers(-STEPS, STEPS + 1, size=weights.shape)
            steps[: len(steps) // 4] = np.sign(steps[: len(steps) // 4]) * STEPS  # its corners
            weights = centre + steps * (float(condition.radius) / STEPS)
    if isinstance(claim, Fits) and claim.sees_tokens and inputs is not None:  # integers of too many bits
        inputs = inputs * 2**claim.scheme.inputs + random.integers(0, 2, size=inputs.shape)
    facts = frozenset[str]().union(*(condition.assumes for condition in claim.given))  # of the dense inputs
    if inputs is not None and "diagonal Gram" in facts:
        size, columns, _ = inputs.shape
        lengths = np.abs(inputs[:, :, 0])
        if "equal norms" in facts:
            lengths = np.broadcast_to(1 + lengths[:, :1], (size, columns))
        rows = reflections(size, columns, random) if claim.changes_inputs else np.eye(columns)
        inputs = lengths[:, :, None] * rows
    return Candidates(weights, inputs)


def exact_values(claim: Claim, weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Array:
    """Return floats as the fractions that were meant. Those of a box are no dyadic numbers."""
    boxed = any(isinstance(condition, Box) for condition in claim.given)

    def exact(x: float) -> Fraction:
        return Fraction(x).limit_denominator(10**6) if boxed else Fraction(x)

    return np.array([[exact(float(x)) for x in row] for row in weights], dtype=object)


def example(claim: Claim, scope: Scope, until: float) -> Suspect | None:
    """Return a layer in the scope, not all zero, on which every condition of the claim holds in exact arithmetic.

    In scope "any" every selection drops something on it. None means that none was found.

    Args:
        claim: the claim with its conditions.
        scope: the layers to search.
        until: when to stop, on the clock of ``time.monotonic``. Some layers are tried in any case.
    """
    random = np.random.default_rng(0)
    techniques = [t for sequence in claim.sequences for t in sequence]
    sources = []
    for shape in _shapes(claim, scope):
        sources.append(rounds(techniques, shape, claim.needs_inputs, random, SIZE))
    for turn in range(TRIES * len(sources)):
        if turn and time.monotonic() > until:
            break
        candidates = fitted(claim, next(sources[turn % len(sources)]), random)
        layer = candidates.layer(random, gram=looks_at_gram(claim))
        held = conditions_hold(claim, [s.trace(layer) for s in claim.sequences], tolerance=1e-9)
        values = held.values if isinstance(held, Batch) else np.full(SIZE, bool(held))
        hits = np.flatnonzero(np.broadcast_to(values, (SIZE,)) & candidates.weights.any(axis=(1, 2)))
        for k in hits[:8]:
            inputs = None if candidates.inputs is None else exact_values(claim, candidates.inputs[k])
            seed = None if claim.is_deterministic else 0
            suspect = Suspect(exact_values(claim, candidates.weights[k]), inputs, seed)
            try:
                if conditions_hold(claim, exact_runs(claim, suspect)):
                    return suspect
            except NotExactError:
                continue
    return None


def _shapes(claim: Claim, scope: Scope) -> list[tuple[int, int]]:
    """Return the shapes to search. In scope "any", every selection drops something at each."""
    selections = [s for q in claim.sequences for t in q for s in t.steps() if isinstance(s, Selection)]
    shapes = shapes_to_try(claim, scope)
    if scope.kind == "any":
        unit = claim.unit
        least = max([2, *(ceil(1 / s.share) for s in selections if isinstance(s.share, Fraction) and s.share)])
        shapes = [*(s for s in shapes if s[0] * s[1] > 1), (1, unit * ceil(least / unit))]
    found = []
    for shape in dict.fromkeys(shapes):
        if not claim.fits(shape):
            continue
        drops = all(s.share == 0 or s.count(s.partition.group_size(shape)) > 0 for s in selections)
        if (drops or scope.kind != "any") and shape[0] * shape[1] <= WIDEST:
            found.append(shape)
    return found

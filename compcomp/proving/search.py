"""Refute by search: many concrete layers at once, the best made exact, replayed and minimised."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.verdict import Witness
from compcomp.proving.candidates import Candidates, looks_at_gram, rounds, shapes_to_try
from compcomp.proving.meaning import fails
from compcomp.proving.replay import Suspect, confirmed, deterministic, minimised, torch_agrees, witness_of
from compcomp.terms import Array, Batch

SIZE, WORK = 2000, 100_000
"""Candidates of one round at the most, and roughly the numbers to compute for all of them."""
TRIES = 24
"""Suspects of one round that are replayed exactly."""


@dataclass(frozen=True)
class Found:
    """A confirmed witness; ``agrees`` is False when only exact arithmetic refutes (a float gap)."""

    witness: Witness
    agrees: bool


def search(claim: Claim, scope: Scope, seconds: float, seed: int = 0) -> Found | None:
    """Look for a layer in the scope on which the claim fails. None means nothing was found, never a proof."""
    random = np.random.default_rng(seed)
    shapes = []
    for shape in shapes_to_try(claim, scope):
        try:
            for sequence in claim.sequences:
                sequence.check(shape)
        except InputError:
            if scope.kind != "any":
                raise
            continue
        shapes.append(shape)
    techniques = [t for s in claim.sequences for t in s]
    sources = [rounds(techniques, shape, claim.needs_inputs, random, _size(claim, shape)) for shape in shapes]
    until, gap, turn = time.monotonic() + seconds, None, 0
    while sources and (turn < len(sources) or time.monotonic() < until):
        found = _round(claim, next(sources[turn % len(sources)]), random)
        if found is not None and found.agrees:
            return found
        gap, turn = gap or found, turn + 1
    return gap


def _size(claim: Claim, shape: tuple[int, int]) -> int:
    """How many candidates of this shape to try at once."""
    rows, columns = shape
    work = rows * columns**3 if looks_at_gram(claim) else rows * columns  # least squares costs more
    return max(50, min(SIZE, WORK // work))


def _round(claim: Claim, candidates: Candidates, random: np.random.Generator) -> Found | None:
    gap = None
    for suspect in _suspects(claim, candidates, random):
        if not confirmed(claim, suspect):
            continue
        if not torch_agrees(claim, suspect):
            gap = gap or Found(witness_of(claim, suspect), False)
            continue
        return Found(witness_of(claim, minimised(claim, suspect, seconds=0.3)), True)
    return gap


def _suspects(claim: Claim, candidates: Candidates, random: np.random.Generator) -> list[Suspect]:
    """The candidates that fail in floats, those of few and small entries first, as exact layers."""
    layer = candidates.layer(random, gram=looks_at_gram(claim))
    failing = fails(claim, [s.trace(layer) for s in claim.sequences], tolerance=1e-9)
    values = failing.values if isinstance(failing, Batch) else np.full(len(candidates.weights), bool(failing))
    hits = np.flatnonzero(np.broadcast_to(values, (len(candidates.weights),)))
    cost = np.abs(candidates.weights[hits]).sum(axis=(1, 2))
    if candidates.inputs is not None:
        cost = cost + np.abs(candidates.inputs[hits]).sum(axis=(1, 2))
    hits = hits[np.argsort(cost, kind="stable")][:TRIES]
    seeds: list[int | None] = [None] if deterministic(claim) else [2 * k for k in range(12)]
    return [
        Suspect(
            _exact(candidates.weights[k]),
            None if candidates.inputs is None else _exact(candidates.inputs[k]),
            seed,
        )
        for k in hits
        for seed in seeds
    ]


def _exact(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Array:
    return np.array([[Fraction(float(x)) for x in row] for row in values], dtype=object)

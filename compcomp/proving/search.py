"""Refute by search: evaluate many concrete layers at once, and make the best exact, replay and minimise them."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass

import numpy as np

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.verdict import Witness
from compcomp.proving.candidates import Candidates, looks_at_gram, rounds, shapes_to_try
from compcomp.proving.fitting import exact_values, fitted
from compcomp.proving.meaning import fails
from compcomp.proving.replay import Suspect, confirmed, minimised, torch_agrees, witness_of
from compcomp.proving.special import special, special_shapes
from compcomp.terms import Batch

SIZE, WORK = 2000, 100_000
"""The most candidates in one round, and roughly the most numbers to compute for all of them."""
TRIES = 24
"""The most suspects of one round that are replayed exactly."""
ROUNDS = 6
"""Rounds that are always run for each shape, so that every size of integers has its turn."""
ALIKE = 16
"""Shapes of up to this many weights get equally many rounds. Larger shapes cost more and get fewer."""


@dataclass(frozen=True)
class Found:
    """A confirmed witness. ``agrees`` is False if only exact arithmetic refutes (a float gap)."""

    witness: Witness
    agrees: bool


class Clock:
    """Measure the processor time of a search, without the second or two that torch takes to load, and its deadline.

    A busy machine searches for longer, so that it finds what an idle one finds.
    """

    def __init__(self, seconds: float, until: float) -> None:
        self._seconds, self._until, self._start = seconds, until, time.thread_time()

    def runs(self, early: bool) -> bool:
        """Return True while the search may go on. ``early`` rounds may take four times as long."""
        spent = time.thread_time() - self._start
        return time.monotonic() < self._until and spent < self._seconds * (4 if early else 1)

    def load_torch(self) -> None:
        """Load torch for a replay, without counting the time."""
        start = time.thread_time()
        importlib.import_module("torch")
        self._start += time.thread_time() - start


def search(
    claim: Claim,
    scope: Scope,
    seconds: float,
    until: float = float("inf"),
    seed: int = 0,
    rounds_each: int = ROUNDS,
    further: bool = False,
) -> Found | None:
    """Search for a layer in the scope on which the claim fails. None means nothing was found, never a proof.

    Args:
        claim: the claim to refute.
        scope: the layers to search.
        seconds: how long to search. The first rounds may take four times as long.
        until: the deadline in any case, on the clock of ``time.monotonic``.
        seed: seeds the random layers.
        rounds_each: rounds that are always run for each shape.
        further: search other shapes, and layers that random small integers rarely produce (:mod:`.special`).

    Raises:
        InputError: the claim's techniques do not fit the scope's shape.
    """
    random = np.random.default_rng(seed)
    shapes = []
    for shape in (special_shapes if further else shapes_to_try)(claim, scope):
        try:
            claim.check(shape)
        except InputError:
            if scope.kind != "any":
                raise
            continue
        shapes.append(shape)
    techniques, gram = [t for s in claim.sequences for t in s], looks_at_gram(claim)
    draw = special if further else rounds
    sources = [draw(techniques, shape, claim.needs_inputs, random, _size(shape, gram)) for shape in shapes]
    costs = [max(rows * columns, ALIKE) for rows, columns in shapes]
    spent = list(costs)
    clock, gap, turn = Clock(seconds, until), None, 0
    while sources and clock.runs(turn < rounds_each * len(sources)):
        place = spent.index(min(spent))
        spent[place] += costs[place]
        candidates = next(sources[place])
        if claim.given or claim.sees_tokens:
            candidates = fitted(claim, candidates, random)
        found = _round(claim, candidates, random, clock, gram)
        if found is not None and found.agrees:
            return found
        gap, turn = gap or found, turn + 1
    return gap


def _size(shape: tuple[int, int], gram: bool) -> int:
    """Return how many candidates of this shape to try at once."""
    rows, columns = shape
    work = rows * columns**3 if gram else rows * columns  # least squares costs more
    return max(50, min(SIZE, WORK // work))


def _round(claim: Claim, candidates: Candidates, random: np.random.Generator, clock: Clock, gram: bool) -> Found | None:
    gap = None
    for suspect in _suspects(claim, candidates, random, gram):
        if not clock.runs(early=True):  # long numbers take long to replay
            break
        if not confirmed(claim, suspect):
            continue
        clock.load_torch()
        if not torch_agrees(claim, suspect):
            gap = gap or Found(witness_of(claim, suspect), False)
            continue
        return Found(witness_of(claim, minimised(claim, suspect, seconds=0.3)), True)
    return gap


def _suspects(claim: Claim, candidates: Candidates, random: np.random.Generator, gram: bool) -> list[Suspect]:
    """Return the candidates that fail in floats as exact layers, those with few and small entries first."""
    layer = candidates.layer(random, gram=gram)
    failing = fails(claim, [s.trace(layer) for s in claim.sequences], tolerance=1e-9)
    values = failing.values if isinstance(failing, Batch) else np.full(len(candidates.weights), bool(failing))
    hits = np.flatnonzero(np.broadcast_to(values, (len(candidates.weights),)))
    if not len(hits):
        return []
    cost = np.abs(candidates.weights[hits]).sum(axis=(1, 2))
    if candidates.inputs is not None:
        cost = cost + np.abs(candidates.inputs[hits]).sum(axis=(1, 2))
    order = np.argsort(cost, kind="stable")[:TRIES]
    if len(order) < len(hits):  # small ones, and some by chance: those at ties and midpoints may be float gaps
        order = np.concatenate([order[: TRIES // 2], random.permutation(len(hits))[: TRIES // 2]])
    hits = hits[order]
    seeds: list[int | None] = [None] if claim.is_deterministic else [2 * k for k in range(12)]
    return [
        Suspect(
            exact_values(claim, candidates.weights[k]),
            None if candidates.inputs is None else exact_values(claim, candidates.inputs[k]),
            seed,
        )
        for k in hits
        for seed in seeds
    ]

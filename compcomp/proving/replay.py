"""Replay a layer exactly and in torch, and make a witness small. Only a layer that passes both replays refutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from compcomp.algebra.exact import require_short
from compcomp.errors import NotExactError
from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence, Technique, run_kernel
from compcomp.language.technique import run as applied
from compcomp.language.verdict import Matrix, Trace, Witness
from compcomp.layers import walk
from compcomp.layers.state import LayerState
from compcomp.proving.meaning import Run, fails
from compcomp.terms import Array, Choices, RandomChoices, each

FLOAT_TOLERANCE = 1e-9
LOSS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Suspect:
    """An exact layer that may refute a claim. ``seed``: of the free choices, None if nothing is free."""

    weight: Array
    inputs: Array | None
    seed: int | None = None


def exact_runs(claim: Claim, suspect: Suspect) -> list[Run]:
    """Run every sequence of the claim on the layer, in rationals.

    Raises:
        NotExactError: a number is not rational or too long.
        TypeError: a technique returns a float.
    """

    def start(offset: int) -> LayerState:
        choices = Choices() if suspect.seed is None else RandomChoices(suspect.seed + offset)
        return LayerState.dense(suspect.weight, suspect.inputs, choices=choices)

    runs: list[Run] = []
    for k, sequence in enumerate(claim.sequences):
        states = [start(k)]
        for technique in sequence:
            states.append(applied(technique, states[-1]))
            require_short(states[-1].weight.ravel())
        runs.append(states)
    for ended in runs:
        ended[-1].require_exact()
    return runs


def confirmed(claim: Claim, suspect: Suspect) -> bool:
    """Return True if the claim fails on this layer, decided in exact arithmetic."""
    try:
        return bool(fails(claim, exact_runs(claim, suspect)))
    except NotExactError:
        return False


def torch_runs(claim: Claim, suspect: Suspect) -> list[Run]:
    """Run every sequence through the torch kernels, in float64 on the CPU. Returns states of floats."""
    import torch

    def tensor(values: Array) -> Any:
        return torch.tensor([[float(x) for x in row] for row in values], dtype=torch.float64, device="cpu")

    runs: list[Run] = []
    for sequence in claim.sequences:
        inputs = None if suspect.inputs is None else tensor(suspect.inputs)
        state = LayerState.dense(tensor(suspect.weight), inputs)
        states = [state]
        for technique in sequence:
            state = run_kernel(technique, state)
            states.append(state)
        runs.append([_as_floats(s) for s in states])
    return runs


def _as_floats(state: LayerState) -> LayerState:
    return walk.map(lambda tensor: np.array(tensor.tolist(), dtype=object), state)


def without_kernel(claim: Claim) -> list[Technique]:
    """Return the techniques that have no torch kernel."""
    return [t for t in dict.fromkeys(t for s in claim.sequences for t in s) if not t.has_kernel]


def torch_agrees(claim: Claim, suspect: Suspect) -> bool:
    """Return True if the claim fails in torch float64 too, with the same losses as in exact arithmetic.

    The kernels may choose otherwise if techniques leave a choice free, and a technique may have none. In both cases the
    exact replay alone counts, and the result is True.
    """
    if not claim.is_deterministic or without_kernel(claim):
        return True
    floats = torch_runs(claim, suspect)
    if not fails(claim, floats, FLOAT_TOLERANCE):
        return False
    if claim.loss is None:
        return True
    exact = [float(claim.loss.of(run[-1])) for run in exact_runs(claim, suspect)]
    measured = [float(claim.loss.of(run[-1])) for run in floats]
    return all(abs(a - b) <= LOSS_TOLERANCE * (1 + abs(a)) for a, b in zip(exact, measured, strict=True))


def witness_of(claim: Claim, suspect: Suspect) -> Witness:
    """Return the full witness: every step in exact numbers, and the losses also from the torch kernels."""
    runs = exact_runs(claim, suspect)
    losses: list[float | None] = [None] * len(runs)
    if claim.loss is not None and not without_kernel(claim):
        losses = [float(claim.loss.of(run[-1])) for run in torch_runs(claim, suspect)]
    traces = []
    for sequence, run, torch_loss in zip(claim.sequences, runs, losses, strict=True):
        loss = claim.loss
        traces.append(
            Trace(
                sequence=str(sequence),
                steps=tuple(zip(_names(sequence), (_matrix(s.weight) for s in run), strict=True)),
                loss=None if loss is None else Fraction(loss.of(run[-1])),
                torch_loss=torch_loss,
                inputs=_changed_inputs(run),
            )
        )
    inputs = None if suspect.inputs is None else _matrix(suspect.inputs)
    return Witness(_matrix(suspect.weight), inputs, suspect.seed, tuple(traces), claim.reason(runs))


def _changed_inputs(run: Run) -> tuple[Matrix | None, ...]:
    """Return the inputs after each step that has changed them, () if none has."""
    found: list[Matrix | None] = [None]
    for before, after in pairwise(run):
        was, now = (state.inputs for state in (before, after))
        changed = was is not None and now is not None and not np.array_equal(was, now)
        found.append(_matrix(now) if changed and now is not None else None)
    return tuple(found) if any(found) else ()


def _names(sequence: Sequence) -> list[str]:
    return ["dense", *map(str, sequence)]


def _matrix(values: Array) -> Matrix:
    return tuple(tuple(Fraction(x) for x in row) for row in values)


def minimised(claim: Claim, suspect: Suspect, seconds: float) -> Suspect:
    """Return a smaller suspect that both replays confirm: fewer tokens, more zeros, smaller integers.

    The search takes at most ``seconds``.
    """
    until = time.monotonic() + seconds
    better = True
    while better:
        better = False
        for smaller in _smaller(suspect):
            if time.monotonic() > until:
                return suspect
            if confirmed(claim, smaller) and torch_agrees(claim, smaller):
                suspect, better = smaller, True
                break
    return suspect


def _smaller(suspect: Suspect) -> Iterator[Suspect]:
    """Yield simpler layers to try, the largest change first: fewer tokens, zeroed stretches, then single entries."""
    if suspect.inputs is not None:
        tokens = suspect.inputs.shape[1]
        for token in range(tokens if tokens > 1 else 0):
            yield replace(suspect, inputs=np.delete(suspect.inputs, token, axis=1))
    yield from (replace(suspect, weight=values) for values in _simpler(suspect.weight))
    if suspect.inputs is not None:
        yield from (replace(suspect, inputs=values) for values in _simpler(suspect.inputs))


def _simpler(values: Array) -> Iterator[Array]:
    yield from _zeroed_stretches(values)
    if any(x < 0 for x in values.ravel()):
        yield each(abs, values)
    for index in np.ndindex(*values.shape):
        for value in _smaller_values(values.item(index)):
            changed = values.copy()
            changed[index] = value
            yield changed


def _zeroed_stretches(values: Array) -> Iterator[Array]:
    """Yield copies with a half, a quarter, ... of the non-zero entries set to zero."""
    alive = [k for k, x in enumerate(values.ravel()) if x]
    size = len(alive) // 2
    while size >= 2:
        for start in range(0, len(alive), size):
            changed = values.copy()
            changed.ravel()[alive[start : start + size]] = Fraction(0)
            yield changed
        size //= 2


def _smaller_values(x: Fraction) -> list[Fraction]:
    """Return simpler values than x, simplest first."""
    towards = [Fraction(0), Fraction(int(x / 2)), x - (1 if x > 0 else -1), -x if x < 0 else x]
    if x.denominator > 1:
        return [v for v in (Fraction(0), Fraction(round(x))) if v != x]
    return [v for v in dict.fromkeys(towards) if abs(v) < abs(x) or (v == -x and x < 0)]

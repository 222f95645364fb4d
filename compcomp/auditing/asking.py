"""Decide what an audit asks, at the parameters of the recipe and, to refute, at small ones too."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import lcm
from typing import Any

import numpy as np

from compcomp.language.claim import Claim, keeps
from compcomp.language.samples import sets_up
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Status, Verdict
from compcomp.proving.meaning import fails
from compcomp.proving.prove import default_prover
from compcomp.proving.replay import Suspect, torch_runs, without_kernel

SMALL = 8
"""Parameters up to this size are left as they are: small layers fit them."""
MARGIN = 1e-3
"""The least difference from 0, or from a value of the grid, that counts on a layer in floats."""
WIDEST = 1024
"""Columns of the widest layer that is tried at the parameters of the recipe."""


@dataclass(frozen=True)
class Answer:
    """The status of a claim at the recipe's parameters, and its evidence.

    Args:
        claim: what was asked.
        status: PROVED and REFUTED are about the recipe's parameters.
        verdict: the evidence. If ``note`` is set, it is about smaller groups.
        note: how a counterexample at small parameters was checked at the recipe's own.
    """

    claim: Claim
    status: Status
    verdict: Verdict
    note: str = ""


class Asker:
    """Ask claims, each once.

    Args:
        timeout: seconds for each question.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.asked: dict[str, Answer] = {}

    def proved(self, claim: Claim) -> Answer:
        """Ask the rules alone: the answer is PROVED, VACUOUS or UNKNOWN."""
        key = f"rule {claim} {claim.loss}"
        if key not in self.asked:
            verdict = default_prover().prove(claim, "any", timeout=self.timeout, stages=("rule",), explain=False)
            self.asked[key] = Answer(claim, verdict.status, verdict)
        return self.asked[key]

    def answer(self, claim: Claim) -> Answer:
        """Ask the rules, and search for a counterexample if they do not prove the claim."""
        key = f"{claim} {claim.loss}"
        if key not in self.asked:
            found = self.proved(claim)
            self.asked[key] = self._searched(claim, found) if found.status is Status.UNKNOWN else found
        return self.asked[key]

    def _searched(self, claim: Claim, found: Answer) -> Answer:
        small = _small_claim(claim)
        seconds = min(1.0, self.timeout / 4)
        verdict = default_prover().prove(
            small, "any", timeout=self.timeout, stages=("search",), search_seconds=seconds, explain=False
        )
        if verdict.status is not Status.REFUTED:
            return found
        if small == claim:
            return Answer(claim, Status.REFUTED, verdict)
        shape = _fails_at_full_size(claim)
        if shape is None:
            note = f"{small} is refuted, but no layer was found that refutes it at the recipe's own parameters"
            return replace(found, note=note)
        note = (
            f"the layer is exact, for {small}. At the recipe's own parameters, a layer of {shape[0]} x {shape[1]} "
            "integers breaks it too, in torch float64"
        )
        return Answer(claim, Status.REFUTED, verdict, note)


def small(technique: Technique) -> Technique:
    """Return the technique with small groups and blocks, so that small layers fit it and show what it does."""
    known = {f.name for f in fields(technique) if f.init}
    changed: dict[str, object] = {}
    group = getattr(technique, "group", None)
    if "group" in known and isinstance(group, int) and group > SMALL:
        changed["group"] = None if _allows_none(technique) else 4
    block = getattr(technique, "block", None)
    if (
        "block" in known
        and isinstance(block, int)
        and block > SMALL
        and getattr(technique, "pattern", None) == "unstructured"
    ):
        changed["block"] = 2
    if "rank" in known and getattr(technique, "rank", 1) > 1:
        changed["rank"] = 1
    return replace(technique, **changed) if changed else technique


def _allows_none(technique: Technique) -> bool:
    try:
        replace(technique, group=None)
    except (ValueError, TypeError):
        return False
    return True


def _small_claim(claim: Claim) -> Claim:
    changed: dict[str, Any] = {
        name: Sequence(tuple(map(small, getattr(claim, name))))
        for name in ("left", "right")
        if isinstance(getattr(claim, name, None), Sequence)
    }
    return replace(claim, **changed)


def invariants_of(technique: Technique) -> frozenset[str]:
    """Return what a technique sets up on a dense layer: mask, n:m, grid, rank or shape."""
    return sets_up(small(technique))


def _fails_at_full_size(claim: Claim) -> tuple[int, int] | None:
    """Return the shape of a layer of integers on which the torch kernels break the claim by a clear margin."""
    if without_kernel(claim):
        return None
    blocks = [getattr(t, "block", None) for s in claim.sequences for t in s]
    columns = lcm(claim.unit, *(block for block in blocks if isinstance(block, int)))
    while columns < 16 or any(isinstance(b, int) and columns < 2 * b for b in blocks):
        columns *= 2
    shape = 8 * claim.row_unit, columns
    if columns > WIDEST or not claim.fits(shape):
        return None
    random = np.random.default_rng(0)
    for _ in range(3):
        weight = random.integers(-99, 100, shape).astype(float).astype(object)
        inputs = random.integers(-9, 10, (columns, columns)).astype(float).astype(object)
        if bool(fails(claim, torch_runs(claim, Suspect(weight, inputs)), MARGIN)):
            return shape
    return None


def keeps_claim(techniques: tuple[Technique, ...], invariant: str) -> Claim:
    """Return the claim that an invariant holds at the end of some techniques."""
    return keeps(Sequence(techniques), invariant)

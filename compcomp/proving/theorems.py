"""What rules have proved for every shape: a claim at one shape is an instance, if its techniques fit that."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from weakref import WeakKeyDictionary, ref

from compcomp.language.claim import Claim
from compcomp.language.identity import Unidentified, identity
from compcomp.language.technique import Technique
from compcomp.language.verdict import Grade, Verdict
from compcomp.proving.functions import of_step
from compcomp.proving.solver import Solver

# The claim's text would not do as a key: what a technique does may change while its text stays. The key holds all that
# rules read of a claim without conditions that dominates, equals or is orthogonal: the sequences, and of each technique
# its steps and promises as they are now. Claims that something is kept or fits are left out, as their rules look at a
# layer of the scope, and so are those with conditions, which have to be shown to be satisfiable at every shape.

MOST = 4000
"""Theorems that are kept for one solver."""

_theorems: WeakKeyDictionary[Solver, dict[Hashable, Verdict]] = WeakKeyDictionary()


def known_theorem(claim: Claim, solver: Solver, second: Solver | None) -> Verdict | None:
    """The proof for any shape of this very claim, if the same two solvers have answered for it."""
    known = _theorems.get(solver)
    try:
        return None if known is None else known.get(_key(claim, second))
    except (TypeError, Unidentified):  # something in the key has no identity, or no weak reference: nothing was kept
        return None


def keep_theorem(verdict: Verdict, solver: Solver, second: Solver | None) -> None:
    """Keep a proof, if another try would make nothing better of it."""
    checked = verdict.grade in (Grade.TWO_SOLVERS, Grade.NO_SOLVER) or second is None
    claim = verdict.claim
    if not (verdict.proved and verdict.stage == "rule" and checked) or claim.given or claim.reads_layers:
        return
    known = _theorems.setdefault(solver, {})
    if len(known) >= MOST:
        known.clear()
    with suppress(TypeError, Unidentified):
        known[_key(claim, second)] = verdict


def _key(claim: Claim, second: Solver | None) -> Hashable:
    every = [t for sequence in claim.sequences for t in sequence]
    sides = tuple(map(len, claim.sequences))
    return claim.terms, claim.given, sides, tuple(map(_technique, every)), None if second is None else ref(second)


def _technique(technique: Technique) -> Hashable:
    """What rules read of it."""
    promises, steps = technique.promises(), technique.steps()
    told = steps and type(technique).needs_inputs is Technique.needs_inputs  # by the steps themselves
    sees = None if told else technique.needs_inputs
    joint = () if promises.optimum is None else of_step(promises.optimum.grid)
    return identity(technique), identity(promises), sees, joint, *map(of_step, steps)

"""Cache proofs for every shape. A claim at one shape is an instance if its techniques fit that shape."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from weakref import ref

from compcomp.language.claim import Claim
from compcomp.language.identity import Unidentified, identity
from compcomp.language.technique import Technique
from compcomp.language.verdict import Grade, Verdict
from compcomp.proving.functions import of_step
from compcomp.proving.solver import Solver

# The claim's text does not suffice as a key, because what a technique does may change while its text stays. The key
# holds all that rules read of a claim without conditions that dominates, equals or is orthogonal: the sequences, and
# for each technique its steps and promises as they are now. Claims of kind keeps or fits are left out because their
# rules look at a layer of the scope. Claims with conditions are left out because these have to be shown to be
# satisfiable at every shape.

MOST = 4000
"""The largest number of theorems that are cached."""


class Theorems:
    """Cache the proofs for any shape found with one solver, by claim and second solver."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Verdict] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, claim: Claim, second: Solver | None) -> Verdict | None:
        """Return the cached proof of this claim, None if it was not checked by the same second solver."""
        try:
            return self._known.get(_key(claim, second)) if self._known else None
        except (TypeError, Unidentified):  # something in the key has no identity or no weak reference: nothing was kept
            return None

    def keep(self, verdict: Verdict, second: Solver | None) -> None:
        """Cache a proof whose grade cannot improve.

        It cannot if two solvers agreed, if no solver was needed, or if there is no second solver.
        """
        checked = verdict.grade in (Grade.TWO_SOLVERS, Grade.NO_SOLVER) or second is None
        claim = verdict.claim
        everywhere = verdict.stage == "rule" and verdict.reach == "any shape"
        if not (verdict.proved and everywhere and checked) or claim.given or claim.reads_layers:
            return
        if len(self._known) >= MOST:
            self._known.clear()
        with suppress(TypeError, Unidentified):
            self._known[_key(claim, second)] = verdict

    def clear(self) -> None:
        """Clear the cache."""
        self._known.clear()


def _key(claim: Claim, second: Solver | None) -> Hashable:
    every = [t for sequence in claim.sequences for t in sequence]
    sides = tuple(map(len, claim.sequences))
    return claim.terms, claim.given, sides, tuple(map(_technique, every)), None if second is None else ref(second)


def _technique(technique: Technique) -> Hashable:
    """Return all that rules read of a technique, as a key."""
    promises, steps = technique.promises(), technique.steps()
    by_steps = steps and type(technique).needs_inputs is Technique.needs_inputs  # then the steps decide it
    sees = None if by_steps else technique.needs_inputs
    joint = () if promises.optimum is None else of_step(promises.optimum.grid)
    return identity(technique), identity(promises), sees, joint, *map(of_step, steps)

"""``find_condition``: find the named conditions under which a claim that is false in general becomes true."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.conditions import TEMPLATES as TEMPLATES
from compcomp.language.conditions import Condition, conditions, follow
from compcomp.language.verdict import Verdict
from compcomp.proving.prove import Prover, default_prover
from compcomp.proving.solver import Solver

LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Finding:
    """The result of a search for conditions.

    Args:
        claim: the claim as it was given.
        scope: the layers it is about.
        given: the fewest conditions to add that were found to prove it. It is () if the claim is proved without any,
            None if none of those tried proves it.
        verdict: the proof under these conditions, or the claim's own verdict.
        also: proofs under other sets of as many conditions, none of which implies another.
        tried: every verdict, in order.
        complete: False if there was no time to try all.
    """

    claim: Claim
    scope: Scope
    given: tuple[Condition, ...] | None
    verdict: Verdict
    also: tuple[Verdict, ...]
    tried: tuple[Verdict, ...]
    complete: bool

    @property
    def found(self) -> bool:
        """True if the claim is proved, with or without conditions."""
        return self.given is not None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not, for each set of conditions that does not prove the claim."""
        return tuple(
            f"{_given(v.claim, self.claim)}: {v.status}" + (f" ({v.reason or v.cause})" if v.reason or v.cause else "")
            for v in self.tried
            if not v.proved
        )

    def __bool__(self) -> bool:
        raise TypeError("a finding is not a truth value: ask finding.found")

    def __str__(self) -> str:
        if self.given == ():
            return str(self.verdict)
        if self.given is None:
            rest = "" if self.complete else " (not all were tried in the time)"
            return f"no condition found for {self.claim}{rest}; " + "; ".join(self.reasons)
        others = "; also " + "; or ".join(_given(v.claim, self.claim) for v in self.also) if self.also else ""
        return f"{self.verdict}{others}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return {
            "claim": str(self.claim),
            "loss": self.claim.loss.name if self.claim.loss else None,
            "scope": str(self.scope),
            "found": self.found,
            "given": None if self.given is None else list(map(str, self.given)),
            "also": [_given(v.claim, self.claim) for v in self.also],
            "reasons": list(self.reasons),
            "complete": self.complete,
            "verdict": self.verdict.to_json(),
        }


def find_condition(
    claim: Claim,
    templates: Iterable[Condition | str] | None = None,
    scope: Any = "any",
    *,
    timeout: float = 60.0,
    solver: Solver | None = None,
    prover: Prover | None = None,
    ask: Callable[[Claim, Scope], Verdict] | None = None,
) -> Finding:
    """Find the fewest conditions under which the claim is proved: none, then one, then two.

    The claim's own conditions stay.

    Args:
        claim: the claim to prove.
        templates: conditions or their names, the weaker ones first. None is :data:`TEMPLATES`.
        scope: as for ``prove``.
        timeout: seconds for the whole call.
        solver: a solver to use instead of z3 in worker processes, for this call alone.
        prover: decides the claims. If both are None, the default prover does.
        ask: decides a claim at a scope in place of the prover, with its own time limit.

    Raises:
        InputError: an argument is invalid.
    """
    if not isinstance(claim, Claim):
        raise InputError(repr(claim)[:80], "a claim from dominates, equal or keeps", "find_condition")
    if isinstance(timeout, bool) or not 0 < timeout <= 10**6:
        raise InputError(f"timeout={timeout!r}"[:80], "seconds, more than 0", "find_condition")
    if prover is None:
        prover = default_prover() if solver is None else Prover(solver, default_prover().second)
    until, where = time.monotonic() + timeout, Scope.of(scope)
    family = TEMPLATES if templates is None else conditions(tuple(templates))
    known = set(claim.given)
    usable = [c for c in family if c not in known and c.concerns(claim)]
    pairs = [pair for pair in combinations(usable, 2) if not pair[0].implies(pair[1]) and not pair[1].implies(pair[0])]
    rounds: list[list[tuple[Condition, ...]]] = [[()], [(c,) for c in usable], list(pairs)]
    tried: list[Verdict] = []
    left = sum(map(len, rounds))
    for sets in rounds:
        proofs: list[tuple[tuple[Condition, ...], Verdict]] = []
        for added in sets:
            seconds = min(until - time.monotonic(), max(LEAST_SECONDS, 2 * (until - time.monotonic()) / max(left, 1)))
            left -= 1
            if seconds <= 0:
                return _finding(claim, where, proofs, tried, complete=False)
            if any(follow(weaker, added) for weaker, _ in proofs):
                continue
            with_added = replace(claim, given=(*claim.given, *added))
            if ask is None:
                verdict = prover.prove(with_added, where, timeout=seconds)
            else:
                verdict = ask(with_added, where)
            tried.append(verdict)
            if verdict.proved:
                proofs.append((added, verdict))
        if proofs:
            return _finding(claim, where, proofs, tried, complete=True)
    return _finding(claim, where, [], tried, complete=True)


def _finding(
    claim: Claim,
    scope: Scope,
    proofs: list[tuple[tuple[Condition, ...], Verdict]],
    tried: list[Verdict],
    *,
    complete: bool,
) -> Finding:
    if not proofs:
        return Finding(claim, scope, None, tried[0], (), tuple(tried), complete)
    (given, verdict), *others = proofs
    return Finding(claim, scope, given, verdict, tuple(v for _, v in others), tuple(tried), complete)


def _given(claim: Claim, base: Claim) -> str:
    return ", ".join(str(c) for c in claim.given if c not in base.given) or "no condition"

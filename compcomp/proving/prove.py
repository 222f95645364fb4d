"""Decide claims. A :class:`Prover` owns all caches, and ``prove`` uses the default prover of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import z3

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.refusal import Reached, Refusal, RuleAnswer
from compcomp.language.verdict import Grade, Query, Status, Verdict
from compcomp.proving import context
from compcomp.proving.bounded import Outcome, bounded
from compcomp.proving.crosscheck import SECONDS, cross_check
from compcomp.proving.parts import of_parts
from compcomp.proving.premises import fits_some_layer, needed, unmet, within
from compcomp.proving.proof import Proof
from compcomp.proving.replay import (
    Suspect,
    confirmed,
    minimised,
    torch_agrees,
    without_kernel,
    witness_of,
)
from compcomp.proving.sample import formats_along
from compcomp.proving.search import ROUNDS, Found, search
from compcomp.proving.session import Lemmas, Session
from compcomp.proving.solver import Solver, close, default_solver, second_solver
from compcomp.proving.strict import strict
from compcomp.proving.theorems import Theorems
from compcomp.proving.why import answers, asked_of_rules, cause_of, explained
from compcomp.version import __version__

STAGES = ("search", "rule", "bounded")
"""Refute by search, prove by a rule for any shape, reduce and solve at the scope's shape."""

LOOKS = ((0.01, 2), (0.025, ROUNDS))
"""Seconds and rounds of the first short searches in each instance of a claim, before any longer search."""

RESERVED, RESERVE = 0.25, 10.0
"""The time that rules leave for a search after them: this share of what there is, and at most so many times the seconds
of a search."""

FURTHER = 0.3
"""Share of the search time that is added for special layers if nothing was found."""

CERTIFY_SECONDS = 60.0
"""Seconds for the certificates of one proof if the caller sets no other budget."""


class Prover:
    """Decide claims and cache what was found: answers of solvers, lemmas, theorems and certificates.

    Provers share nothing. Each has its own solver processes, which ``close`` ends, and its own z3 context, so that
    provers in several threads do not wait for each other. One prover decides one claim at a time, because z3 allows one
    thread in a context. A prover is a context manager.

    Args:
        solver: a solver to use instead of z3 in worker processes. The caller closes it.
        second: the solver that checks each proof again. "auto" is cvc5 if it is installed, None skips the check. The
            caller closes a solver that is passed here.
    """

    def __init__(self, solver: Solver | None = None, second: Solver | Literal["auto"] | None = "auto") -> None:
        own_second = second_solver() if second == "auto" else None
        self.solver: Solver = default_solver() if solver is None else solver
        self.second: Solver | None = own_second if second == "auto" else second
        self.lemmas: Lemmas = {}
        self.theorems = Theorems()
        self.certificates: dict[tuple[str, str], dict[str, Any]] = {}
        self.closed = False
        self._own = [own_second, *([self.solver] if solver is None else [])]
        self._context = context.ready(z3.Context())
        self._one_at_a_time = threading.RLock()

    def prove(
        self,
        claim: Claim,
        scope: Any = "any",
        *,
        timeout: float = 60.0,
        stages: tuple[str, ...] = STAGES,
        search_seconds: float = 0.4,
        second: Solver | Literal["auto"] | None = "auto",
        second_seconds: float = SECONDS,
        certify: bool = False,
        explain: bool = True,
    ) -> Verdict:
        """Prove or refute a claim for every layer in a scope, as :func:`prove` does.

        Args:
            claim: see :func:`prove`, as for all other arguments.
            second: "auto" is the prover's own second solver, None skips its check.

        Raises:
            InputError: claim and scope do not fit each other, an argument is invalid, or the prover was closed.
        """
        _check(claim, timeout, "prove")
        if unknown := [s for s in stages if s not in STAGES]:
            raise InputError(f"stages {unknown}", ", ".join(STAGES), "prove")
        with self._one_at_a_time, strict(), context.inside(self._context):
            if self.closed:
                raise InputError("a prover that was closed", "an open one", "prove")
            where, until = within(claim, Scope.of(scope)), time.monotonic() + timeout
            checker = self.second if second == "auto" else second

            def decide(claim: Claim, stages: tuple[str, ...] = tuple(s for s in stages if s != "bounded")) -> Verdict:
                attempt = _Attempt(self, claim, where, until)
                attempt.second, attempt.second_seconds, attempt.explain = checker, second_seconds, explain
                return attempt.run(stages, search_seconds)

            verdict = of_parts(claim, where, decide) if claim.parts() else decide(claim, stages)
        return self.certify(verdict, timeout) if certify else verdict

    def why(self, claim: Claim, scope: Any = "any", *, timeout: float = 60.0) -> tuple[RuleAnswer, ...]:
        """Ask every rule about a claim, as :func:`why` does."""
        _check(claim, timeout, "why")
        with self._one_at_a_time, strict(), context.inside(self._context):
            if self.closed:
                raise InputError("a prover that was closed", "an open one", "why")
            return answers(claim, self.session, time.monotonic() + timeout, within(claim, Scope.of(scope)))

    def session(self, until: float) -> Session:
        """Begin the queries of one proof. ``until``: their deadline, on the clock of ``time.monotonic``."""
        return Session(self.solver, until, self.lemmas)

    def certify(self, verdict: Verdict, timeout: float = CERTIFY_SECONDS) -> Verdict:
        """Return a proved verdict with certificates that need no solver (docs/certificates.md).

        A verdict that is not PROVED is returned unchanged.

        Args:
            verdict: the verdict to certify.
            timeout: seconds for all certificates together. The notes name the queries that have none at the end.
        """
        from compcomp.proving.certificate.certify import certified

        return certified(verdict, time.monotonic() + timeout, self.certificates)

    def close(self) -> None:
        """Clear all caches and end the solver processes, once no proof is running.

        Solvers that were passed to the prover stay open.
        """
        with self._one_at_a_time:
            self.closed = True
            self.lemmas.clear()
            self.theorems.clear()
            self.certificates.clear()
            for solver in self._own:
                close(solver)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


_default: Prover | None = None
"""The default prover, the only state that this package keeps between calls."""
_making = threading.Lock()


def default_prover() -> Prover:
    """Return the prover that ``prove`` uses. It is made on first use, and made anew after it was closed."""
    global _default
    with _making:
        if _default is None or _default.closed:
            _default = Prover()
        return _default


def prove(
    claim: Claim,
    scope: Any = "any",
    *,
    timeout: float = 60.0,
    stages: tuple[str, ...] = STAGES,
    search_seconds: float = 0.4,
    solver: Solver | None = None,
    second: Solver | Literal["auto"] | None = "auto",
    second_seconds: float = SECONDS,
    certify: bool = False,
    explain: bool = True,
) -> Verdict:
    """Prove or refute a claim for every layer in a scope.

    PROVED and REFUTED are returned only if a stage has shown them. A deadline, an error or a missing solver gives
    UNKNOWN with its cause.

    Args:
        claim: from ``dominates``, ``equal``, ``keeps``, ``fits`` or ``orthogonal``.
        scope: "any", "2x4" or (2, 4) (out x in), "block:32" or ("block", 32).
        timeout: seconds for the whole call.
        stages: the members of :data:`STAGES` to run, in that order.
        search_seconds: seconds for the search for a counterexample, out of ``timeout``.
        solver: a solver to use instead of z3 in worker processes. Nothing is cached then, as it would be in a
            :class:`Prover`.
        second: the solver that checks a proof again. "auto" is cvc5 if it is installed, None skips the check.
        second_seconds: seconds for that check, out of ``timeout``.
        certify: search at once for certificates that need no solver, for at most another ``timeout``
            (docs/certificates.md). Otherwise ``Verdict.save`` searches for them.
        explain: for a claim that stays unknown, search for values on which the lemma of the nearest rule fails, and for
            changes to try. This takes about a second of ``timeout``. ``Verdict.tried`` has the reasons of all rules in
            any case.

    Raises:
        InputError: claim and scope do not fit each other, or an argument is invalid.
    """
    prover = default_prover()
    if solver is not None:
        prover = Prover(solver, prover.second if second == "auto" else second)
    return prover.prove(
        claim,
        scope,
        timeout=timeout,
        stages=stages,
        search_seconds=search_seconds,
        second=second,
        second_seconds=second_seconds,
        certify=certify,
        explain=explain,
    )


def certify(verdict: Verdict, timeout: float = CERTIFY_SECONDS) -> Verdict:
    """Return a proved verdict with certificates from the default prover, unless a search for them was made before."""
    from compcomp.proving.certificate.certify import MISSING

    looked = any(note.startswith(MISSING) for note in verdict.notes)
    return verdict if looked else default_prover().certify(verdict, timeout)


def why(
    claim: Claim, scope: Any = "any", *, timeout: float = 60.0, solver: Solver | None = None
) -> tuple[RuleAnswer, ...]:
    """Ask every rule about a claim, and return what each needs and what is missing.

    Args:
        claim: as for :func:`prove`. No counterexample is searched for, and no formula is written for one shape.
        scope: as for :func:`prove`. One shape adds the rules for layers of that shape; all others hold for every shape.
        timeout: seconds for the whole call.
        solver: a solver to use instead of z3 in a worker process. Only the lemmas that a rule reaches are sent to it.

    Returns:
        The answer of each rule: first the rules that prove the claim, then those that miss least.

    Raises:
        InputError: ``claim`` is no claim, ``timeout`` is no number of seconds, or ``scope`` does not fit the claim.
    """
    prover = default_prover() if solver is None else Prover(solver, None)
    return prover.why(claim, scope, timeout=timeout)


def _check(claim: object, timeout: object, where: str) -> None:
    if not isinstance(claim, Claim):
        raise InputError(repr(claim)[:80], "a claim from dominates, equal or keeps", where)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 10**6:
        raise InputError(f"timeout={timeout!r}"[:80], "seconds, more than 0", where)


class _Attempt:
    """Take one claim through the stages, until a time on the clock of ``time.monotonic``."""

    def __init__(self, prover: Prover, claim: Claim, scope: Scope, until: float) -> None:
        self.prover, self.claim, self.scope, self.until = prover, claim, scope, until
        self.start = time.monotonic()
        self.queries: list[Query] = []
        self.refusals: tuple[Refusal, ...] = ()
        self.explain = True
        self.second: Solver | None = None
        self.second_seconds, self.second_version = SECONDS, ""

    def run(self, stages: tuple[str, ...], search_seconds: float) -> Verdict:
        gap = None
        instances = self.claim.instances()
        if not any(map(fits_some_layer, instances)):
            return self.verdict(Status.VACUOUS, cause="no layer fits all of its techniques", stage="rule")
        if self.scope.shape is not None:
            instances[0].check(self.scope.shape)
        if empty := self.claim.says_nothing(lambda: formats_along(self.claim, self.scope)):
            return self.verdict(Status.VACUOUS, cause=empty, stage="rule")
        if "rule" in stages and (known := self.prover.theorems.get(self.claim, self.second)) is not None:
            return replace(known, claim=self.claim, scope=self.scope, work={**known.work, "seconds": self._seconds()})
        reserved = min(RESERVED * (self.until - self.start), RESERVE * search_seconds) if "search" in stages else 0.0
        proof, self.refusals = self._rule(self.claim, self.until - reserved) if "rule" in stages else (None, ())
        if proof is not None:
            verdict = self._proved(proof, "rule")
            self.prover.theorems.keep(verdict, self.second)
            return verdict
        for found in self._searched(instances, search_seconds) if "search" in stages else []:
            if found is not None and found.agrees:
                return self._refuted(found, "search")
            gap = gap or found
        if "bounded" in stages and len(instances) == 1:
            outcome = bounded(self.claim, self.scope, self.prover.session(self.until))
            return self._after_bounded(outcome, gap)
        return self._unknown("", gap)

    def _searched(self, instances: Sequence[Claim], seconds: float) -> Iterator[Found | None]:
        """Yield the search result of each instance.

        If there are many instances, each gets short searches first, because a counterexample to any one of them refutes
        the claim. Every pass draws other layers.
        """
        passes = [*(LOOKS if len(instances) > 1 else ()), (seconds, ROUNDS)]
        for seed, (most, rounds_each) in zip(reversed(range(len(passes))), passes, strict=True):
            for instance in instances:
                yield search(instance, self.scope, min(most, seconds), self.until, seed, rounds_each)
        for instance in instances:
            most = FURTHER * seconds / len(instances)
            yield search(instance, self.scope, most, self.until, rounds_each=1, further=True)

    def _rule(self, claim: Claim, until: float) -> tuple[Proof | None, tuple[Refusal, ...]]:
        """Ask the rules in turn. Return the first proof, and the refusals before it, the most telling first."""
        return asked_of_rules(claim, self.prover.session, until, self.scope)

    def _after_bounded(self, outcome: Outcome, gap: Found | None) -> Verdict:
        self.queries += outcome.queries
        if outcome.proof is not None:
            return self._proved(outcome.proof, "bounded")
        if outcome.vacuous:
            return self.verdict(Status.VACUOUS, cause=outcome.cause, stage="bounded")
        if outcome.suspect is not None:
            suspect = Suspect(*outcome.suspect, seed=None if self.claim.is_deterministic else 0)
            if suspect.weight.shape == self.scope.shape and confirmed(self.claim, suspect):
                if torch_agrees(self.claim, suspect):
                    witness = witness_of(self.claim, minimised(self.claim, suspect, 0.5))
                    return self._refuted(Found(witness, True), "bounded")
                gap = gap or Found(witness_of(self.claim, suspect), False)
        return self._unknown(outcome.cause, gap)

    def _proved(self, proof: Proof, stage: str) -> Verdict:
        if problem := unmet(self.claim, self.scope, self.prover.session(self.until)):
            status, cause = problem
            if status is not Status.UNKNOWN:
                return self.verdict(status, cause=cause, stage=stage)
            missing = Refusal(cause, proof.rule, Reached.LEMMA)
            return self.verdict(status, cause=str(missing), stage=stage, tried=(missing, *self.refusals))
        until = min(self.until, time.monotonic() + self.second_seconds)
        check = cross_check(proof.queries, self.second, until)
        self.queries, self.second_version = list(check.queries), check.solver
        if check.conflict:
            return self.verdict(Status.DISAGREE, cause=check.conflict, stage=stage)
        return self.verdict(
            Status.PROVED,
            reach=proof.reach,
            assumptions=(
                *proof.assumptions,
                *(condition.assumption for condition in self.claim.given),
                *self.claim.of_techniques,
            ),
            local_rewrite=proof.local_rewrite,
            needed=self._needed(stage),
            grade=check.grade,
            notes=(check.note,) if check.note else (),
            stage=stage,
            reason=f"rule {proof.rule}" if stage == "rule" else "reduced and solved",
        )

    def _needed(self, stage: str) -> tuple[str, ...] | None:
        """Return the conditions that the deciding stage needs, found by asking it again without each.

        Returns None if the claim has no conditions.
        """
        if not self.claim.given:
            return None
        most = 1.0 + 2 * (time.monotonic() - self.start)

        def proves(claim: Claim) -> bool:
            if stage == "rule":
                return self._rule(claim, self.until)[0] is not None
            until = min(self.until, time.monotonic() + most)
            return bounded(claim, self.scope, self.prover.session(until)).proof is not None

        return tuple(map(str, needed(self.claim, proves)))

    def _refuted(self, found: Found, stage: str) -> Verdict:
        return self.verdict(
            Status.REFUTED,
            witness=found.witness,
            stage=stage,
            reason=found.witness.reason,
            grade=Grade.NO_SOLVER,
            notes=tuple(f"{t} has no torch kernel: exact replay alone refutes" for t in without_kernel(self.claim)),
        )

    def _unknown(self, cause: str, gap: Found | None) -> Verdict:
        """Return UNKNOWN, with why the last stage gave up and what the nearest rule misses."""
        tried = self.refusals
        if self.explain:
            tried = explained(self.claim, self.scope, tried, self.prover.session, self.until)
        float_gap = "float gap: fails in exact arithmetic but not in torch float64"
        causes = [f"{float_gap} ({gap.witness.reason})"] if gap else []
        causes += [text for text in (cause, cause_of(tried)) if text]
        cause = "; ".join(causes) or "no counterexample found, and no rule was asked"
        return self.verdict(Status.UNKNOWN, cause=cause, witness=gap.witness if gap else None, tried=tried)

    def _seconds(self) -> float:
        return round(time.monotonic() - self.start, 3)

    def verdict(self, status: Status, **fields: Any) -> Verdict:
        return Verdict(
            claim=self.claim,
            scope=self.scope,
            status=status,
            queries=tuple(self.queries),
            work={
                "rlimit": float(sum(q.rlimit for q in self.queries)),
                "seconds": self._seconds(),
            },
            versions={
                "compcomp": __version__,
                "solver": next((q.solver for q in self.queries if q.solver), ""),
                "second solver": self.second_version,
            },
            **{"reach": self.scope.describe(), **fields},
        )

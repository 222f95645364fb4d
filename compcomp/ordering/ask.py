"""Ask claims of the prover: each once, unless it follows from known verdicts, on an executor if there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from compcomp.language.claim import Claim, Scope
from compcomp.language.named import find_registered, registrations
from compcomp.language.text import claim_from_json
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.jobs import submitted
from compcomp.ordering.reuse import family, follows, said
from compcomp.ordering.store import Store, verdict_from_json, verdict_to_json

if TYPE_CHECKING:
    from compcomp.proving.prove import Prover

Options = dict[str, Any]
"""How hard to try: ``timeout`` (seconds) and ``stages`` of the prover."""
Decide = Callable[[Claim, Scope, Options], Verdict]
"""A function that decides a claim, as a prover does."""
Key = tuple[Hashable, str]
"""A claim and its scope."""
LOG = logging.getLogger("compcomp")
FAILED = "the prover failed"
"""The beginning of the cause of a verdict that is about a failure of the prover, not about the claim."""


def decide(claim: Claim, scope: Scope, options: Options, prover: Prover | None = None) -> Verdict:
    """Return the verdict of a prover. It does not look for explanations of an unknown verdict.

    Args:
        claim: The claim.
        scope: The layers to cover.
        options: How hard to try.
        prover: The prover, None for the one that this process shares.
    """
    from compcomp.proving.prove import default_prover

    return (prover or default_prover()).prove(claim, scope, **{"explain": False, **options})


def decided_by(prover: Prover | Decide | None) -> Decide:
    """Return the function that decides claims: the prover's method, or the given function.

    A prover stays in its process, with all its solvers. If None is given, the workers of a process executor decide
    claims by the provers of their processes. If a prover is given, this process decides them.
    """
    if prover is None:
        return decide
    return prover if callable(prover) else partial(decide, prover=prover)


@dataclass(frozen=True)
class ClaimJob:
    """Decide one claim at a scope. ``register`` says where its techniques are defined, for other processes."""

    claim: Claim
    scope: Scope
    options: Options
    register: list[list[str]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data: claim and scope as texts."""
        return {
            **self.claim.to_json(),
            "scope": str(self.scope),
            "options": self.options,
            "register": self.register,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`. Raise OtherFiles if this process has other files of a technique."""
        find_registered(data["register"])
        return cls(claim_from_json(data), Scope.of(data["scope"]), data["options"], data["register"])


def decide_job(data: dict[str, Any], prover: Decide) -> dict[str, Any]:
    """Decide a :class:`ClaimJob`, given as plain data, in a worker. Return the verdict as plain data."""
    job = ClaimJob.from_json(data)
    return verdict_to_json(_decided(prover, job.claim, job.scope, job.options))


def job_of(claim: Claim, scope: Scope, options: Options) -> ClaimJob | None:
    """Return the claim as a job, None if a technique has no name by which another process could find it."""
    register = registrations(t for sequence in claim.sequences for t in sequence)
    return None if register is None else ClaimJob(claim, scope, options, register)


def _decided(prover: Decide, claim: Claim, scope: Scope, options: Options) -> Verdict:
    """Return the prover's verdict, UNKNOWN if it raises an exception."""
    try:
        return prover(claim, scope, options)
    except Exception as error:
        cause = f"{FAILED}: {type(error).__name__}: {error}"
        return Verdict(claim, scope, Status.UNKNOWN, reach=scope.describe(), cause=" ".join(cause.split())[:300])


class Asker:
    """Ask claims and keep every verdict. An executor changes where a claim is decided, not how.

    Args:
        prover: Decides claims. None is the prover that this process shares.
        executor: Decides claims in other processes if the prover permits.
        store: Keeps verdicts between runs.

    Attributes:
        asked: How many claims were passed to the prover.
        reused: How many claims were answered by the store, or by a law from other verdicts
            (:mod:`compcomp.ordering.reuse`).
    """

    def __init__(
        self, prover: Prover | Decide | None = None, *, executor: Executor | None = None, store: Store | None = None
    ) -> None:
        self.prover, self.executor, self.store = decided_by(prover), executor, store
        self.asked = self.reused = 0
        self._known: dict[Key, Verdict] = {}
        self._families: dict[str, list[Verdict]] = {}

    @property
    def verdicts(self) -> list[Verdict]:
        """Every verdict so far."""
        return list(self._known.values())

    def ask(
        self,
        claims: Iterable[Claim],
        scope: Scope,
        options: Options | None = None,
        answered: Callable[[Verdict], None] = lambda _: None,
    ) -> list[Verdict]:
        """Return the verdicts, in the order of the claims.

        Args:
            claims: The claims. Equal ones are asked once.
            scope: The layers that the verdicts should cover.
            options: How hard to try.
            answered: Called with each new verdict as it comes.
        """
        options, wanted = options or {}, list(claims)
        fresh: dict[Key, Claim] = {}
        for claim in wanted:
            key = _key(claim, scope)
            if key in self._known or key in fresh:
                continue
            found = self.recall(claim, scope, options)
            if found is None:
                fresh[key] = claim
            else:
                self.reused += 1
                self._known[key] = found
                answered(found)
        pending: list[tuple[Claim, Future[dict[str, Any]] | None]] = [
            (claim, self._submit(claim, scope, options)) for claim in fresh.values()
        ]
        try:
            for claim, future in pending:
                verdict = self._result(claim, scope, options, future)
                self.asked += 1
                self._known[_key(claim, scope)] = verdict
                LOG.debug("%s", verdict)
                self.learn(verdict, options)
                answered(verdict)
        except BaseException:
            for _, future in pending:
                if future is not None:
                    future.cancel()
            raise
        return [self._known[_key(claim, scope)] for claim in wanted]

    def recall(self, claim: Claim, scope: Scope, options: Options | None = None) -> Verdict | None:
        """Return the verdict on a claim if it is known without asking, else None.

        The sources are tried in this order: this run's verdict on the claim; a decided verdict of the store on it;
        other verdicts that imply one. Last comes an unknown of the store that was asked no less hard.

        Args:
            claim: The claim.
            scope: The layers to cover.
            options: How hard the claim would be tried.
        """
        known = self._known.get(_key(claim, scope))
        if known is not None:
            return known
        kept = None if self.store is None else self.store.get(claim, scope, options or {})
        if kept is not None and kept.status is not Status.UNKNOWN:
            self._remember(kept)
            return kept
        for source in self._related(claim):
            found = follows(source, claim, scope)
            if found is not None:
                if self.store is not None:
                    self.store.put(found, derived=True)
                return found
        return kept

    def learn(self, verdict: Verdict, options: Options | None = None) -> None:
        """Keep a verdict of the prover, for claims that follow from it and for later runs.

        Args:
            verdict: The verdict.
            options: How hard the claim was tried.
        """
        self._remember(verdict)
        if self.store is not None and not verdict.cause.startswith(FAILED):
            self.store.put(verdict, options or {})

    def _remember(self, verdict: Verdict) -> None:
        if verdict.proved or verdict.refuted:
            self._families.setdefault(family(verdict.claim), []).append(verdict)

    def _related(self, claim: Claim) -> Iterator[Verdict]:
        """Yield verdicts from which the claim may follow."""
        yield from self._families.get(family(claim), ())
        if self.store is not None:
            yield from self.store.related(claim)

    def _submit(self, claim: Claim, scope: Scope, options: Options) -> Future[dict[str, Any]] | None:
        job = job_of(claim, scope, options) if self.executor is not None else None
        if self.executor is None or job is None:
            return None
        return submitted(self.executor, decide_job, job.to_json(), self.prover)

    def _result(self, claim: Claim, scope: Scope, options: Options, future: Future[dict[str, Any]] | None) -> Verdict:
        """Return the verdict of the worker. If it was lost, decide the claim in this process."""
        if future is not None:
            try:
                return verdict_from_json(future.result(), claim)
            except Exception:
                pass
        return _decided(self.prover, claim, scope, options)


def _key(claim: Claim, scope: Scope) -> Key:
    return said(claim), str(scope)

"""Run jobs on an executor: a few at a time, each again if its worker was lost, results in order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from compcomp.language.named import OtherFiles


class Job(Protocol):
    """A piece of work that can be sent to another process as plain data."""

    @property
    def portable(self) -> bool:
        """True if another process can do the job: it finds the techniques by their texts."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain data."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read the result of :meth:`to_json`. Raise OtherFiles if this process has other files of a technique."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")

AHEAD = 8
"""The fewest jobs that are passed to an executor before the first of them is done, unless a caller says otherwise."""
TRIES = 2
"""How often an executor may lose a job before this process runs it itself."""


@contextmanager
def pool(executor: Executor | None, *, wanted: bool) -> Iterator[Executor | None]:
    """Yield the executor, or a pool with a process for every core if there is none.

    The processes do not run the caller's main module again, and each computes with one thread.

    Args:
        executor: The executor, or None.
        wanted: False makes no pool. Neither does a single core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if executor is not None or not wanted or cores < 2:
        yield executor
        return
    from loky import ProcessPoolExecutor

    env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    workers = ProcessPoolExecutor(cores, initializer=_large_jobs, env=env)
    try:
        yield workers
    finally:
        workers.shutdown(wait=True, kill_workers=True)


def _large_jobs() -> None:
    """Keep loky from replacing workers that have grown by 300 MB, since a job may keep more states than that."""
    from loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def workers_of(executor: Executor) -> int:
    """Return how many jobs the executor does at once, :data:`AHEAD` if it does not say."""
    client = getattr(executor, "_client", None)  # of dask.distributed
    try:
        count = len(client.ncores()) if client is not None else getattr(executor, "_max_workers", AHEAD)
    except Exception:  # the client is closed
        return AHEAD
    return max(1, count) if isinstance(count, int) else AHEAD


def run(
    function: Callable[[J], R], jobs: Iterable[J], executor: Executor | None = None, ahead: int | None = None
) -> Iterator[tuple[J, R]]:
    """Yield each job and its result, in the order of the jobs. Jobs are made no sooner than they are needed.

    A job that is not ``portable`` runs in this process. A worker that dies raises nothing: the job is submitted again,
    and after several losses it runs in this process. Results thus do not depend on workers.

    Args:
        function: Does a job.
        jobs: The jobs.
        executor: Where jobs are done, None for this process.
        ahead: How many jobs are passed to the executor before the first of them is done. None: as many as keep its
            workers busy.

    Raises:
        Exception: The exception of a job.
    """
    if executor is None:
        for job in jobs:
            yield job, function(job)
        return
    waiting: deque[tuple[J, Future[_Reply[R]] | None]] = deque()
    source, ahead = iter(jobs), max(AHEAD, 2 * workers_of(executor)) if ahead is None else ahead
    try:
        while True:
            while len(waiting) < ahead and (following := next(source, None)) is not None:
                waiting.append((following, _submit(executor, function, following)))
            if not waiting:
                return
            job, future = waiting.popleft()
            yield job, _result(executor, function, job, future)
    finally:
        for _, future in waiting:
            if future is not None:
                future.cancel()


@dataclass(frozen=True)
class _Reply(Generic[R]):
    """Hold the result of a job in a worker, or the exception that it raised."""

    result: R | None = None
    error: Exception | None = None


def _submit(executor: Executor, function: Callable[[J], R], job: J) -> Future[_Reply[R]] | None:
    return submitted(executor, _guarded, function, type(job), job.to_json()) if job.portable else None


def submitted(executor: Executor, function: Callable[..., R], *arguments: Any) -> Future[R] | None:
    """Return the future of a call, None if the executor takes none: it is closed, or broken by a worker that died."""
    try:
        return executor.submit(function, *arguments)
    except Exception:  # each executor has errors of its own for this
        return None


def _guarded(function: Callable[[J], R], kind: type[J], data: dict[str, Any]) -> _Reply[R]:
    """Run a job in a worker. An exception of the job is part of the reply, unlike the loss of a worker."""
    try:
        return _Reply(function(kind.from_json(data)))
    except OtherFiles:
        raise  # as if the worker were lost
    except Exception as error:
        return _Reply(error=error)


def _result(executor: Executor, function: Callable[[J], R], job: J, future: Future[_Reply[R]] | None) -> R:
    for _ in range(TRIES):
        if future is None:
            break
        try:
            reply = future.result()
        except Exception:  # the worker is gone, or could not be reached
            future = _submit(executor, function, job)
            continue
        if reply.error is not None:
            raise reply.error
        return reply.result  # type: ignore[return-value]
    return function(job)

"""Running jobs on an executor: a few at a time, each again where its worker was lost, results in order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from compcomp.language.named import OtherFiles

Job = dict[str, Any]
"""Plain data, as is what a job returns."""

AHEAD = 8
"""Jobs that are handed to an executor before the first of them is done."""
TRIES = 2
"""How often an executor may lose a job before this process runs it itself."""


@contextmanager
def pool(executor: Executor | None, *, wanted: bool) -> Iterator[Executor | None]:
    """The executor; where there is none and one is ``wanted``, a process for every core for a while.

    The processes do not run the caller's main module again, and each computes with one thread.
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
    """Let a worker be: loky replaces one that has grown by 300 MB, but a job may keep more states than that."""
    from loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def run(
    function: Callable[[Job], Job], jobs: Iterable[tuple[str, Job]], executor: Executor | None = None
) -> Iterator[tuple[str, Job]]:
    """Each job's name and result, in the order of the jobs, which are made no sooner than they are needed.

    A job that says of itself that it is not ``portable`` holds what no other process would find: it runs here.

    What a job raises is raised here. A worker that dies is no such thing: the job is handed over again, and in the end
    run in this process, so that results do not depend on workers.
    """
    if executor is None:
        for name, job in jobs:
            yield name, function(job)
        return
    waiting: deque[tuple[str, Job, Future[Job] | None]] = deque()
    source = iter(jobs)
    try:
        while True:
            while len(waiting) < AHEAD and (following := next(source, None)) is not None:
                waiting.append((*following, _submit(executor, function, following[1])))
            if not waiting:
                return
            name, job, future = waiting.popleft()
            yield name, _result(executor, function, job, future)
    finally:
        for _, _, future in waiting:
            if future is not None:
                future.cancel()


def _submit(executor: Executor, function: Callable[[Job], Job], job: Job) -> Future[Job] | None:
    if not job.get("portable", True):
        return None
    try:
        return executor.submit(guarded, function, job)
    except RuntimeError:  # shut down, or broken by a worker that died
        return None


def guarded(function: Callable[[Job], Job], job: Job) -> Job:
    """The job's result, or what it raised, told apart from a worker that was lost."""
    try:
        return {"result": function(job)}
    except OtherFiles:
        raise  # as if the worker were lost
    except Exception as error:
        return {"error": error}


def _result(executor: Executor, function: Callable[[Job], Job], job: Job, future: Future[Job] | None) -> Job:
    for _ in range(TRIES):
        if future is None:
            break
        try:
            reply = future.result()
        except Exception:  # the worker is gone, or could not be reached
            future = _submit(executor, function, job)
            continue
        if "error" in reply:
            raise reply["error"]
        result: Job = reply["result"]
        return result
    return function(job)

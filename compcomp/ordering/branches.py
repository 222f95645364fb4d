"""Measure orders on the workers of an executor: a job applies what is left of one order and measures the model.

States that several orders begin with are made once; their tensors are in files, from which the jobs of these orders
start. Results of jobs are what a store keeps, too. The search goes through them in the order in which it would have
measured, so nothing depends on which worker did what, or when.
"""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from compcomp.bench import Bench, Registrations, SentBench, Sums
from compcomp.errors import InputError
from compcomp.language.named import find_registered, registrations
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.ordering.dag import Orderings
from compcomp.ordering.jobs import TRIES, run, workers_of
from compcomp.ordering.measure import Measured, Tree, measure
from compcomp.ordering.measurement import Measurement
from compcomp.ordering.parts import Kept, Parts, Race
from compcomp.ordering.progress import OnProgress
from compcomp.ordering.space import Prefix

LOG = logging.getLogger("compcomp")
R = TypeVar("R")
OWN = uuid.uuid4().hex
"""A name of this process. A fork of it has the same name, but another number."""


@dataclass(frozen=True)
class Racing:
    """Hold the race as a job knows it: its settings, and digest, compression rate and sums of states to beat."""

    confidence: float | None
    candidates: int
    rivals: Sequence[tuple[str, float, Sums]]


@dataclass(frozen=True)
class BranchJob:
    """Apply techniques to a state of the model, and measure the result or keep it for other jobs.

    Attributes:
        order: The order that the job belongs to.
        steps: The techniques to apply.
        register: The places where they are defined.
        start: The bench's message with the state to start from, None for the uncompressed model.
        whole: True applies ``order`` as a whole, for states that depend on what follows.
        keep: The beginning of the names of the files for the state's tensors. Empty if no other job needs it.
        measured: True measures the state.
        known: The digests of states that need not be measured again.
        racing: The race, if the metrics are means over parts.
    """

    order: tuple[Technique, ...]
    steps: tuple[Technique, ...]
    register: Registrations | None
    start: bytes | None = None
    whole: bool = False
    keep: str = ""
    measured: bool = True
    known: tuple[str, ...] = ()
    racing: Racing | None = None

    @property
    def portable(self) -> bool:
        """Return True if another process can do the job."""
        return self.register is not None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, and the message as bytes."""
        return {**vars(self), "order": list(map(str, self.order)), "steps": list(map(str, self.steps))}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the job. Raises OtherFiles if this process has other files of a technique."""
        find_registered(data["register"])
        read = {name: tuple(parse_sequence(text).techniques[0] for text in data[name]) for name in ("order", "steps")}
        return cls(**{**data, **read})


@dataclass(frozen=True)
class BranchResult:
    """The result of a :class:`BranchJob`.

    Attributes:
        digests: The digest after each step; after the last alone if the order was applied as a whole.
        row: The measurement of the state, None if it was known or not wanted.
        stretches: The sums of each stretch of parts that the state was measured on.
        message: The bench's message with the state, None if it was not kept.
        notes: The notes of the bench so far.
    """

    digests: tuple[str, ...]
    row: dict[str, Any] | None = None
    stretches: list[Sums] = field(default_factory=list)
    message: bytes | None = None
    notes: tuple[str, ...] = ()


class Branch:
    """Do jobs in any process, on a bench that opens there."""

    def __init__(self, sent: SentBench) -> None:
        self.sent = sent

    def open(self) -> None:
        """Open the bench. Raises an exception if this process cannot."""
        with self.sent.opened():
            pass

    def __call__(self, job: BranchJob) -> BranchResult:
        """Do a job."""
        with self.sent.opened() as bench:
            return replace(_done(job, bench), notes=tuple(bench.notes))


def _done(job: BranchJob, bench: Bench) -> BranchResult:
    state = bench.start() if job.start is None else bench.unpack(job.start)
    digests = list[str]()
    if job.whole:
        state = bench.apply_all(Order(job.order))
        digests.append(bench.digest(state))
    for step in () if job.whole else job.steps:
        state = bench.apply(step, state)
        digests.append(bench.digest(state))
    found = BranchResult(tuple(digests), message=bench.pack(state, Path(job.keep)) if job.keep else None)
    last = digests[-1] if digests else bench.digest(state)
    if not job.measured or last in job.known:
        return found
    row = measure(Order(job.order), bench, state, evaluated=job.racing is None)
    stretches = list[Sums]()
    if job.racing is not None:
        parts = Parts(bench, Kept())
        race = Race(parts, job.racing.confidence, job.racing.candidates)
        race.meet(job.racing.rivals)
        race.enter(last, row.rate, lambda: state)
        stretches = parts.stretches(last)
    return replace(found, row=row.to_json(), stretches=stretches)


class _Unknown(Exception):
    """Raised where a state would have to be computed."""


class Branched(Measured):
    """Measure orders on an executor. Results are those of :class:`compcomp.ordering.measure.Measured`.

    Args:
        branch: Does a job.
        executor: Where jobs are done.
        directory: A directory that all workers see, for states.
        notes: A list that receives the notes of benches in workers.
        others: The arguments of ``Measured``.
    """

    def __init__(self, *others: Any, branch: Branch, executor: Executor, directory: Path, notes: list[str]) -> None:
        super().__init__(*others)
        self.branch, self.executor, self.directory, self.notes = branch, executor, directory, notes
        self.register = registrations(self.orderings.techniques)
        self._whole: dict[Prefix, str] = {}
        self._placed: dict[tuple[str, Prefix], bytes | None] = {}

    def _measure(self, orders: Sequence[Prefix]) -> None:
        self.apart = self.bench.layers_apart(self.orderings.techniques)
        self._dense = self.bench.digest(self.bench.start())
        sequence = self._depth_first(orders) if self.apart else list(orders)
        waiting = [order for order in sequence if not self._is_known(order)]
        starts = self._place(waiting) if self.apart else {}
        sent, seen = list[Prefix](), set[Any]()
        for order in waiting:
            key = starts[order] if self.apart else order
            sent += [order] if key not in seen else []
            seen.add(key)
        ahead = None if self.race is None else workers_of(self.executor)
        jobs = (self._job(order, starts.get(order)) for order in sent)
        results = run(self.branch, jobs, self.executor, ahead)
        done = set(sent)
        for order in sequence:
            if order in done:
                self._take(order, starts.get(order), next(results)[1])
            if self._try(order):
                continue
            (only,) = run(self.branch, [self._job(order, starts.get(order))], self.executor)  # as the race wants more
            self._take(order, starts.get(order), only[1])
            if not self._try(order):
                given, digest = self.orderings.order(order), self._digest(order)
                assert digest is not None
                self._ended(order, digest, cache(lambda given=given: self._applied_whole(given)))

    # ------------------------------------------------------------------------------------ jobs

    def _place(self, orders: Sequence[Prefix]) -> dict[Prefix, _Start]:
        """Make the states that several orders begin with, each once. Return where each order starts from."""
        tree = Tree.of(self.orderings, orders)
        ends, children = set(tree.ends), tree.children()
        shared = [node > 0 and len(following) + (node in ends) > 1 for node, following in enumerate(children)]
        # for each node: the last shared one before it, the steps from there, and how many shared ones are before it
        left: list[tuple[int, Prefix]] = [(0, ())] * len(shared)
        depth = [0] * len(shared)
        for node in range(1, len(shared)):
            parent = tree.parents[node]
            before, steps = (parent, ()) if shared[parent] else left[parent]
            left[node] = before, (*steps, tree.steps[node])
            depth[node] = depth[parent] + shared[parent]
        made = {0: _Start(self._dense, None, ())}
        example = {node: order for order, end in zip(orders, tree.ends, strict=True) for node in _up(tree, end)}
        for level in range(max(depth) + 1):
            nodes = [node for node in range(1, len(shared)) if shared[node] and depth[node] == level]
            starts = {node: replace(made[left[node][0]], steps=left[node][1]) for node in nodes}
            fresh = {start.key: node for node, start in reversed(starts.items())}
            jobs = (
                replace(self._job(example[node], starts[node]), measured=False, keep=str(self.directory / f"{node}"))
                for node in fresh.values()
            )
            found = dict[Any, _Start]()
            for (key, node), (_, result) in zip(fresh.items(), run(self.branch, jobs, self.executor), strict=True):
                last = self._take(example[node], starts[node], result)
                found[key] = _Start(last, result.message, ())
            made |= {node: found[starts[node].key] for node in nodes}
        return {
            order: made[end] if shared[end] else replace(made[left[end][0]], steps=left[end][1])
            for order, end in zip(orders, tree.ends, strict=True)
        }

    def _job(self, order: Prefix, start: _Start | None) -> BranchJob:
        """Return the job that measures an order."""
        techniques = self.orderings.techniques
        race, racing = self.race, None
        if race is not None:
            racing = Racing(race.confidence if race.racing else None, race.candidates, race.rivals())
        return BranchJob(
            order=tuple(self.orderings.order(order)),
            steps=() if start is None else tuple(techniques[step] for step in start.steps),
            register=self.register,
            start=None if start is None else start.message,
            whole=start is None,
            known=tuple(digest for digest in self._rows if race is None or digest in race.runs),
            racing=racing,
        )

    def _take(self, order: Prefix, start: _Start | None, result: BranchResult) -> str:
        """Keep a result. Return the digest of its state."""
        if start is None:
            last = self._whole[order] = result.digests[-1]
            self.kept.put(f"order {self.orderings.order(order)}", {"digest": last})
            self.applications += len(self.orderings.order(order))
        else:
            last = start.digest
            for step, after in zip(start.steps, result.digests, strict=True):
                if self._step(last, step) is None:
                    self._note_step(last, step, after)
                last = after
            self.applications += len(start.steps)
        if result.row is not None and self._row(last, order) is None:
            self._rows[last] = Measurement.from_json(result.row, self.orderings.order(order))
            self.kept.put(self._name(last), result.row)
        if self.race is not None:
            self.race.parts.know(last, result.stretches)
        self.notes += [note for note in result.notes if note not in self.notes]
        return last

    # ------------------------------------------------------------------------------------ what is known

    def _digest(self, order: Prefix) -> str | None:
        """Return the digest of the state that an order leads to, None if it is not known."""
        if not self.apart:
            kept = None if order in self._whole else self.kept.get(f"order {self.orderings.order(order)}")
            return self._whole.get(order) if kept is None else str(kept["digest"])
        digest: str | None = self._dense
        for step in self.orderings.path(order):
            digest = None if digest is None else self._step(digest, step)
        return digest

    def _is_known(self, order: Prefix) -> bool:
        """Return True if an order's measurement is known, or the beginning of it in a race."""
        digest = self._digest(order)
        if digest is None or self._row(digest, order) is None:
            return False
        return self.race is None or self.race.parts.begun(digest)

    def _try(self, order: Prefix) -> bool:
        """Enter an order with what is known of it. Return False if that is not enough."""

        def state() -> Any:
            raise _Unknown

        digest = self._digest(order)
        if digest is None or self._row(digest, order) is None:
            return False
        try:
            self._ended(order, digest, state)
        except _Unknown:
            return False
        return True

    def _depth_first(self, orders: Sequence[Prefix]) -> list[Prefix]:
        """Return the orders as ``Measured`` comes to them."""
        tree = Tree.of(self.orderings, orders)
        ending: dict[int, list[Prefix]] = {}
        for order, end in zip(orders, tree.ends, strict=True):
            ending.setdefault(end, []).append(order)
        found, stack, children = list[Prefix](), [0], tree.children()
        while stack:
            node = stack.pop()
            found += ending.get(node, ())
            stack += reversed(children[node])
        return found


@dataclass(frozen=True)
class _Start:
    """Where a job starts: the digest of a state, the message with it, and the techniques left, by position."""

    digest: str
    message: bytes | None
    steps: Prefix

    @property
    def key(self) -> tuple[str, Prefix]:
        """The part that the job's result depends on."""
        return self.digest, self.steps


def _up(tree: Tree, node: int) -> Iterator[int]:
    """Yield a node and those before it."""
    while node > 0:
        yield node
        node = tree.parents[node]


# ---------------------------------------------------------------------------------------------- whether it can be done


@contextmanager
def measuring(
    orderings: Orderings,
    bench: Bench,
    on_progress: OnProgress,
    kept: Kept,
    race: Race | None,
    *,
    executor: Executor | None,
    notes: list[str],
) -> Iterator[Measured]:
    """Yield what measures orders: on the executor, if its workers are other processes that can open the bench.

    Tensors for the workers are in a directory next to the store, or without one in the temporary directory, until the
    end.

    Args:
        orderings: The orderings.
        bench: The bench.
        on_progress: Called with the number of orders that are measured.
        kept: Keeps results.
        race: The race, if the metrics are means over parts.
        executor: The executor, or None.
        notes: A list that receives the reason why the executor is not used.
    """
    with ExitStack() as stack:
        branch = directory = None
        if executor is not None:
            try:
                branch, directory = _branch(orderings, bench, executor, kept, stack)
            except Exception as error:
                reason = error.given if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                notes.append(f"whole models were measured without the executor: {' '.join(reason.split())[:300]}")
                LOG.warning(notes[-1])
        if executor is None or branch is None or directory is None:
            yield Measured(orderings, bench, on_progress, kept, race)
            return
        yield Branched(
            *(orderings, bench, on_progress, kept, race),
            branch=branch,
            executor=executor,
            directory=directory,
            notes=bench.notes,
        )


def _branch(
    orderings: Orderings, bench: Bench, executor: Executor, kept: Kept, stack: ExitStack
) -> tuple[Branch | None, Path | None]:
    """Return what does jobs, and the directory of its states; None if workers are threads of this process.

    Raises an exception if workers cannot do jobs.
    """
    if registrations(orderings.techniques) is None:
        raise InputError("a technique that is not known elsewhere by its text", "techniques of a module", "executor")
    if _asked(executor, _process) == _process():
        return None, None  # threads would wait for each other: a bench changes settings of its process
    directory = Path(
        stack.enter_context(
            tempfile.TemporaryDirectory(prefix="compcomp-", dir=kept.directory, ignore_cleanup_errors=True)
        )
    )
    branch = Branch(bench.sent(directory))
    _asked(executor, branch.open)
    return branch, directory


def _process() -> tuple[str, int]:
    """Return a value that no other process has."""
    return OWN, os.getpid()


def _asked(executor: Executor, function: Callable[[], R]) -> R:
    """Return what a function gives in a worker. It is asked again if the worker is lost."""
    for _ in range(TRIES):
        try:
            return executor.submit(function).result()
        except Exception as error:
            LOG.debug("the executor: %s: %s", type(error).__name__, error)
    return executor.submit(function).result()

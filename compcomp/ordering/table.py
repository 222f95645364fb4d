"""Decide for each ordered pair of techniques and each invariant if the second keeps what the first set up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Self

from compcomp.language.claim import Scope, keeps
from compcomp.language.named import find_registered, registrations
from compcomp.language.samples import representatives, sets_up
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.language.verdict import Matrix, Verdict, Witness
from compcomp.layers.state import INVARIANTS as INVARIANTS
from compcomp.layers.state import Format
from compcomp.ordering.jobs import pool, run
from compcomp.proving.prove import prove
from compcomp.proving.sample import formats_along

NOTHING = "-"
"""The status of a cell whose first technique does not set up the invariant."""
TIMEOUT = 20.0
"""Seconds that one cell may take."""
SEARCH_SECONDS = 1.0
"""Seconds that the search for a counterexample of one cell takes if it finds none."""
WIDE = 8
"""Layers with more columns than this are shown by their nonzero weights."""


@dataclass(frozen=True)
class Cell:
    """Hold the verdict on ``first >> second keeps invariant`` for any shape.

    Attributes:
        first: The first technique as text.
        second: The second technique as text.
        invariant: The invariant.
        status: The status of the verdict. :data:`NOTHING` if there is no claim.
        new: True if ``second`` replaces the grid or rank of ``first`` by its own. The claim is then about that one.
        detail: The assumptions of a proof, a counterexample on one line, or the cause of an unknown.
        grade: The grade of a proof.
        seconds: The seconds that the verdict took.
    """

    first: str
    second: str
    invariant: str
    status: str
    new: bool = False
    detail: tuple[str, ...] = ()
    grade: str = ""
    seconds: float = 0.0

    @property
    def claim(self) -> str:
        """The claim as text."""
        return f"{self.first} >> {self.second} keeps {self.invariant}"


@dataclass(frozen=True)
class Table:
    """Hold the cells of every ordered pair of ``techniques``, by first, second and invariant."""

    techniques: tuple[str, ...]
    cells: dict[tuple[str, str, str], Cell]

    def of(self, first: str, second: str, invariant: str) -> Cell:
        """Return one cell."""
        return self.cells.get((first, second, invariant), Cell(first, second, invariant, NOTHING))

    def firsts(self, invariant: str) -> list[str]:
        """Return the techniques that set up the invariant."""
        found = {first for first, _, name in self.cells if name == invariant}
        return [technique for technique in self.techniques if technique in found]

    def counts(self) -> dict[str, int]:
        """Return how many cells have each status, without those that have no claim."""
        counted: dict[str, int] = {}
        for cell in self.cells.values():
            counted[cell.status] = counted.get(cell.status, 0) + 1
        return dict(sorted(counted.items()))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it. Pairs that are not listed have no claim."""
        cells = [{"claim": cell.claim, **asdict(cell)} for cell in self.cells.values()]
        return {"techniques": list(self.techniques), "counts": self.counts(), "cells": cells}


def keeps_table(
    techniques: Iterable[Technique] | None = None,
    *,
    invariants: Sequence[str] = tuple(INVARIANTS),
    executor: Executor | None = None,
    timeout: float = TIMEOUT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Prove or refute, for every ordered pair, that the second technique keeps what the first sets up.

    Args:
        techniques: The techniques. The default is the representatives of every registered class.
        invariants: The invariants.
        executor: Where cells are decided. None is a pool with a process for every core.
        timeout: Seconds for each cell.
        progress: Called with the numbers of cells that are done and to do.
    """
    chosen = list(techniques) if techniques is not None else registered()
    names = {str(technique): technique for technique in chosen}
    jobs = list(_jobs(list(names.values()), invariants, timeout))
    cells = {}
    progress(0, len(jobs))
    with pool(executor, wanted=len(jobs) > 16) as workers:
        for done, (_, cell) in enumerate(run(decide, jobs, workers), start=1):
            cells[cell.first, cell.second, cell.invariant] = cell
            progress(done, len(jobs))
    return Table(tuple(names), cells)


def registered() -> list[Technique]:
    """Return the representatives of every registered class, in the order of the registry."""
    return [technique for kind in Technique.known().values() for technique in representatives(kind)]


@dataclass(frozen=True)
class CellJob:
    """Decide one cell.

    ``register`` says where the techniques are defined. It is None if no other process could find them.
    """

    first: Technique
    second: Technique
    invariant: str
    timeout: float
    register: list[list[str]] | None = None

    @property
    def portable(self) -> bool:
        """True if another process can run the job."""
        return self.register is not None

    def to_json(self) -> dict[str, Any]:
        """Return plain data: techniques as texts."""
        return {
            "first": str(self.first),
            "second": str(self.second),
            "invariant": self.invariant,
            "timeout": self.timeout,
            "register": self.register,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read the result of :meth:`to_json` for a portable job."""
        find_registered(data["register"])
        first, second = (parse_sequence(data[name]).techniques[0] for name in ("first", "second"))
        return cls(first, second, data["invariant"], data["timeout"], data["register"])


def _jobs(techniques: Sequence[Technique], invariants: Sequence[str], timeout: float) -> Iterator[CellJob]:
    for first in techniques:
        set_up = sets_up(first)
        for invariant in invariants:
            for second in techniques if invariant in set_up else ():
                yield CellJob(first, second, invariant, timeout, registrations([first, second]))


def decide(job: CellJob) -> Cell:
    """Decide one cell."""
    claim = keeps(job.first >> job.second, job.invariant)
    verdict = prove(claim, "any", timeout=job.timeout, search_seconds=SEARCH_SECONDS)
    return Cell(
        first=str(job.first),
        second=str(job.second),
        invariant=job.invariant,
        status=str(verdict.status),
        new=_is_new(job.invariant, formats_along(claim, Scope("any")), job.second),
        detail=_detail(verdict),
        grade=str(verdict.grade or ""),
        seconds=float(verdict.work.get("seconds", 0)),
    )


def _is_new(invariant: str, formats: Sequence[Format] | None, second: Technique) -> bool:
    """Return True if the claim is about a grid or rank that the second technique sets up in place of the first's."""
    if formats is None or invariant in second.promises().keeps:
        return False
    before, after = formats[-2:]
    if invariant == "rank":
        return after.rank not in (None, before.rank)
    return invariant == "grid" and after.grid is not None and after.grid is not before.grid


def _detail(verdict: Verdict) -> tuple[str, ...]:
    if verdict.proved:
        return tuple(map(str, verdict.assumptions))
    if verdict.refuted and verdict.witness is not None:
        return (witness_line(verdict.witness),)
    return (" ".join(verdict.cause.split()),)


def witness_line(witness: Witness) -> str:
    """Return the dense weight, the inputs, and the weight after each step, on one line."""
    steps = witness.traces[0].steps
    parts = [f"W = {matrix_line(witness.weight)}"]
    if witness.inputs is not None:
        parts.append(f"X = {matrix_line(witness.inputs)}")
    after = [f"{name}: {matrix_line(weight)}" for name, weight in steps[1:]]
    return "; ".join([*parts, *after])


def matrix_line(matrix: Matrix) -> str:
    """Return a matrix on one line.

    It is ``(1, 2)`` for one row, ``(1, 2; 3, 4)`` for two. A wide matrix is shown by its nonzero entries.
    """
    if len(matrix) <= WIDE and all(len(row) <= WIDE for row in matrix):
        return "(" + "; ".join(", ".join(map(_entry, row)) for row in matrix) + ")"
    entries = [f"[{i}, {j}] {_entry(x)}" for i, row in enumerate(matrix) for j, x in enumerate(row) if x]
    return f"{len(matrix)} x {len(matrix[0])} with " + (", ".join(entries) or "zeros alone")


def _entry(x: Fraction) -> str:
    return str(x) if len(str(x)) <= 13 else f"{float(x):.6g}..."

"""Ask a solver process, with a resource limit and a hard deadline. Anything but a clear answer is "unknown"."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

RLIMIT = 400_000_000
"""z3's resource units for one query. The same query uses the same number on every machine."""
FIRST_RLIMIT = 2_000_000
"""Resource units for the first attempt, with the simple solver: some tenths of a second."""

KEEP_MEMORY = {"MALLOC_TOP_PAD_": str(2**26)}
"""An environment variable of glibc by which a worker keeps 64 MiB of freed memory.

Otherwise, once a query has used much memory, each new z3 context gets 16 MiB from the system and gives it back,
which takes 8 ms instead of 0.5 ms.
"""


@dataclass(frozen=True)
class Answer:
    """The answer of a solver.

    Args:
        answer: "sat", "unsat" or "unknown".
        cause: why it is unknown.
        rlimit: resource units used.
        seconds: time used.
        model: values as exact text, as a hint that nothing relies on.
        solver: its name and version.
    """

    answer: str
    cause: str = ""
    rlimit: int = 0
    seconds: float = 0.0
    model: dict[str, str] = field(default_factory=dict)
    solver: str = ""


class Solver(Protocol):
    """Anything that answers an SMT-LIB script within a number of seconds."""

    def ask(self, smtlib: str, seconds: float, /) -> Answer: ...


class SolverProcess:
    """A solver in a worker process that is reused, killed at the deadline, and started again when it is gone.

    The process ends with this object at the latest.

    Args:
        command: another program in place of the worker, for tests.
        request: fields sent along with every script.
    """

    name = "solver"
    worker = ""

    def __init__(self, command: list[str] | None = None, **request: Any) -> None:
        self._command = command or [sys.executable, "-m", self.worker]
        self._request, self._lock = request, threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.version = ""
        weakref.finalize(self, _end, self._running)

    @property
    def _process(self) -> subprocess.Popen[str] | None:
        return self._running[-1] if self._running else None

    def ask(self, smtlib: str, seconds: float) -> Answer:
        """Check the script within ``seconds``."""
        start = time.monotonic()
        with self._lock:
            try:
                reply = self._exchange(smtlib, start + seconds)
            except (OSError, ValueError) as error:
                self.close()
                reply = {"answer": "unknown", "cause": f"solver process failed: {error}"}
        outcome = reply.get("answer")
        if outcome not in ("sat", "unsat"):
            outcome = "unknown"
        model = reply.get("model")
        return Answer(
            answer=outcome,
            cause=str(reply.get("cause", "")),
            rlimit=reply["rlimit"] if isinstance(reply.get("rlimit"), int) else 0,
            seconds=time.monotonic() - start,
            model=model if isinstance(model, dict) else {},
            solver=f"{self.name} {self.version}".strip(),
        )

    def _exchange(self, smtlib: str, until: float) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
            hello = self._read(max(until, time.monotonic() + 20))
            if "ready" not in hello:
                self.close()
                return {
                    "answer": "unknown",
                    "cause": hello.get("cause") or "the solver process did not start",
                }
            self.version = str(hello["ready"])
        assert process.stdin is not None
        milliseconds = int(1000 * max(0.0, until - time.monotonic()))
        request = {"smtlib": smtlib, "milliseconds": milliseconds, **self._request}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = self._read(until)
        if reply.get("fatal"):
            self.close()
        return reply

    def _start(self) -> subprocess.Popen[str]:
        self.close()
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH")) if p)
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**KEEP_MEMORY, **os.environ, "PYTHONPATH": path},
        )
        self._running.append(process)
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, self._lines), daemon=True).start()
        return process

    def _read(self, until: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return {"answer": "unknown", "cause": "deadline", "fatal": True}
        if line is None:
            return {"answer": "unknown", "cause": "the solver process ended", "fatal": True}
        reply = json.loads(line)
        if not isinstance(reply, dict):
            raise ValueError("reply is no object")
        return reply

    def close(self) -> None:
        """End the process. The next query starts another."""
        _end(self._running)


class Z3Process(SolverProcess):
    """z3, with its simple solver or its full one."""

    name, worker = "z3", "compcomp.proving.worker"

    def __init__(self, command: list[str] | None = None, *, simple: bool = True, rlimit: int = RLIMIT) -> None:
        super().__init__(command, rlimit=rlimit, solver="simple" if simple else "default")


class Cvc5Process(SolverProcess):
    """cvc5, which shares no code with z3."""

    name, worker = "cvc5", "compcomp.proving.cvc5_worker"

    def __init__(self, command: list[str] | None = None, *, rlimit: int = RLIMIT) -> None:
        super().__init__(command, rlimit=rlimit)


def _end(running: list[subprocess.Popen[str]]) -> None:
    while running:
        try:
            process = running.pop()
        except IndexError:  # another thread ends it
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # an unsent request may still be in the buffer
                    pipe.close()


def _pump(stream: Any, lines: queue.Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed while reading
        pass
    lines.put(None)


class Portfolio:
    """Ask several solvers in turn, until one gives a clear answer within the deadline."""

    def __init__(self, *solvers: Solver) -> None:
        self.solvers = solvers

    def ask(self, smtlib: str, seconds: float) -> Answer:
        answer, until = Answer("unknown", cause="no solver"), time.monotonic() + seconds
        for turn, solver in enumerate(self.solvers):
            left = until - time.monotonic()
            if left <= 0:
                break
            answer = solver.ask(smtlib, left / (len(self.solvers) - turn))
            if answer.answer != "unknown":
                break
        return answer

    def close(self) -> None:
        """End the processes of all solvers."""
        for solver in self.solvers:
            close(solver)


class Remembering:
    """Ask a solver each script once. Clear answers are cached by the script's text, unknowns are not.

    Args:
        solver: answers a script that is new.
        most: the largest number of cached answers.
        patient: ask a script without an answer again each time. False asks it again only with more time than before.
    """

    def __init__(self, solver: Solver, most: int = 4000, *, patient: bool = True) -> None:
        self.solver, self.most, self.patient = solver, most, patient
        self._known: dict[str, Answer] = {}
        self._open: dict[str, tuple[float, Answer]] = {}

    def ask(self, smtlib: str, seconds: float) -> Answer:
        known = self._known.get(smtlib)
        given, unknown = self._open.get(smtlib, (0.0, None))
        if unknown is not None and seconds <= given:
            return unknown
        if known is None:
            known = self.solver.ask(smtlib, seconds)
            if known.answer != "unknown":
                if len(self._known) >= self.most:
                    self._known.clear()
                self._known[smtlib] = known
            elif not self.patient:
                self._open[smtlib] = (seconds, known)
        return known

    def close(self) -> None:
        """Clear the cache and end the solver's processes."""
        self._known.clear()
        self._open.clear()
        close(self.solver)


def close(solver: Solver | None) -> None:
    """End a solver's processes, if it has any."""
    end = getattr(solver, "close", None)
    if end is not None:
        end()


def default_solver() -> Remembering:
    """Make a solver: z3's simple one first, then its full one, each in its own process."""
    return Remembering(Portfolio(Z3Process(rlimit=FIRST_RLIMIT), Z3Process(simple=False)))


def second_solver() -> Remembering | None:
    """Make a solver that shares no code with the first: cvc5 in a process. Returns None if it is not installed."""
    return None if importlib.util.find_spec("cvc5") is None else Remembering(Cvc5Process(), patient=False)

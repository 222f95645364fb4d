"""Ask a solver process, with a resource limit and a hard deadline. Anything but its clear word is unknown."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

RLIMIT = 400_000_000
"""z3's resource units for one query; the same query uses the same number on every machine."""
FIRST_RLIMIT = 2_000_000
"""For the first attempt, with the simple solver: some tenths of a second."""

KEEP_MEMORY = {"MALLOC_TOP_PAD_": str(2**26)}
"""glibc: a worker holds on to 64 MiB that it has freed. Otherwise, once a query has used much, each new z3 context gets
16 MiB from the system and gives it back: 8 ms, of 0.5."""


@dataclass(frozen=True)
class Answer:
    """What a solver said. ``answer``: "sat", "unsat" or "unknown". ``model``: values as exact text, a hint."""

    answer: str
    cause: str = ""
    rlimit: int = 0
    seconds: float = 0.0
    model: dict[str, str] = field(default_factory=dict)
    solver: str = ""


class Solver(Protocol):
    """Whatever answers SMT-LIB scripts."""

    def ask(self, smtlib: str, deadline: float) -> Answer: ...


class SolverProcess:
    """A solver in a worker process that is reused, killed at the deadline, and started again when it is gone.

    ``command`` lets a test put another program in a worker's place. ``request``: sent along with every script.
    """

    name = "solver"
    worker = ""

    def __init__(self, command: list[str] | None = None, **request: Any) -> None:
        self._command = command or [sys.executable, "-m", self.worker]
        self._request, self._lock = request, threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.version = ""
        atexit.register(self.close)

    def ask(self, smtlib: str, deadline: float) -> Answer:
        """Check the script before the deadline (seconds from now)."""
        start = time.monotonic()
        with self._lock:
            try:
                reply = self._exchange(smtlib, start + deadline)
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
        if self._process is None or self._process.poll() is not None:
            self._start()
            hello = self._read(max(until, time.monotonic() + 20))
            if "ready" not in hello:
                self.close()
                return {
                    "answer": "unknown",
                    "cause": hello.get("cause") or "the solver process did not start",
                }
            self.version = str(hello["ready"])
        assert self._process is not None and self._process.stdin is not None
        milliseconds = int(1000 * max(0.0, until - time.monotonic()))
        request = {"smtlib": smtlib, "milliseconds": milliseconds, **self._request}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._read(until)
        if reply.get("fatal"):
            self.close()
        return reply

    def _start(self) -> None:
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH")) if p)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**KEEP_MEMORY, **os.environ, "PYTHONPATH": path},
        )
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True).start()

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
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # an unsent request may still be in the buffer
                        pipe.close()


class Z3Process(SolverProcess):
    """z3, its simple solver or its full one."""

    name, worker = "z3", "compcomp.proving.worker"

    def __init__(self, command: list[str] | None = None, *, simple: bool = True, rlimit: int = RLIMIT) -> None:
        super().__init__(command, rlimit=rlimit, solver="simple" if simple else "default")


class Cvc5Process(SolverProcess):
    """cvc5, which shares no code with z3."""

    name, worker = "cvc5", "compcomp.proving.cvc5_worker"

    def __init__(self, command: list[str] | None = None, *, rlimit: int = RLIMIT) -> None:
        super().__init__(command, rlimit=rlimit)


def _pump(stream: Any, lines: queue.Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed while reading
        pass
    lines.put(None)


class Portfolio:
    """Several solvers in turn, until one gives a clear answer within the deadline."""

    def __init__(self, *solvers: Solver) -> None:
        self.solvers = solvers

    def ask(self, smtlib: str, deadline: float) -> Answer:
        answer, start = Answer("unknown", cause="no solver"), time.monotonic()
        for turn, solver in enumerate(self.solvers):
            left = deadline - (time.monotonic() - start)
            if left <= 0:
                break
            answer = solver.ask(smtlib, left / (len(self.solvers) - turn))
            if answer.answer != "unknown":
                break
        return answer


class Remembering:
    """Asks a solver each script once: clear answers are kept by the script's text, unknowns are not.

    patient=False: a script that had no answer is asked again only with more time than before.
    """

    def __init__(self, solver: Solver, most: int = 4000, *, patient: bool = True) -> None:
        self.solver, self.most, self.patient = solver, most, patient
        self._known: dict[str, Answer] = {}
        self._open: dict[str, tuple[float, Answer]] = {}

    def ask(self, smtlib: str, deadline: float) -> Answer:
        known = self._known.get(smtlib)
        given, unknown = self._open.get(smtlib, (0.0, None))
        if unknown is not None and deadline <= given:
            return unknown
        if known is None:
            known = self.solver.ask(smtlib, deadline)
            if known.answer != "unknown":
                if len(self._known) >= self.most:
                    self._known.clear()
                self._known[smtlib] = known
            elif not self.patient:
                self._open[smtlib] = (deadline, known)
        return known


_default: Remembering | None = None


def default_solver() -> Solver:
    """z3's simple solver first, then its full one, in processes that this process reuses."""
    global _default
    if _default is None:
        _default = Remembering(Portfolio(Z3Process(rlimit=FIRST_RLIMIT), Z3Process(simple=False)))
    return _default


_second: Remembering | None = None


def second_solver() -> Solver | None:
    """cvc5 in a process that this process reuses; None where it is not installed."""
    global _second
    if _second is None and importlib.util.find_spec("cvc5") is not None:
        _second = Remembering(Cvc5Process(), patient=False)
    return _second

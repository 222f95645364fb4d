"""Report the progress of a search, and time its phases."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compcomp.errors import InputError

LOG = logging.getLogger("compcomp")

Notify = Callable[[dict[str, Any]], None]
"""Called with each event, a dict of ``phase``, ``done``, ``total``, ``text``, ``remaining`` (:class:`Progress`)."""
OnProgress = Callable[[int, int, str], None]
"""Called with the amounts done and to do, and a text."""

PHASES = {
    "screen": "trying orders",
    "prove": "proving",
    "calibrate": "calibrating",
    "explore": "exploring layers",
    "apply": "applying",
    "evaluate": "evaluating",
    "measure": "measuring",
}
"""The phases of a search, and what people call them."""
LOGGED = ("calibrate", "explore", "measure")
"""The phases of which each run is logged as INFO. Those that run once for each order or claim are DEBUG."""


def check_progress(progress: Any) -> None:
    """Raise InputError unless an argument ``progress`` can be used."""
    if not isinstance(progress, bool) and not callable(progress):
        raise InputError(repr(progress)[:60], "True, False or a function of an event", "progress")


def silent(done: int, total: int, text: str) -> None:
    """Report nothing."""


@dataclass
class _Run:
    """One run of a phase that has not reached its end: when it began, and its last event."""

    start: float
    done: int
    total: int | None


class Progress:
    """Report the progress of one search. Each phase may run several times, and phases may run inside others.

    The events of a run begin with ``done`` 0. They never go back, and the last one has ``done`` equal to ``total``,
    unless an exception ends the run. ``total`` is None as long as it is not known. ``remaining`` is the estimated
    number of seconds until the end of this run of the phase, None if nothing is known of it.

    Args:
        notify: Called with each event.

    Attributes:
        seconds: Wall time by phase.
    """

    def __init__(self, notify: Notify = lambda event: None) -> None:
        self.notify = notify
        self.seconds = {"screen": 0.0, "prove": 0.0, "measure": 0.0}
        self._runs: dict[str, _Run] = {}

    def report(self, phase: str, done: int, total: int | None, text: str) -> None:
        """Report how much of a phase is done. A run whose first event has more than 0 done gets one with 0 before."""
        run = self._runs.get(phase)
        if run is None or (done == 0 and run.done > 0):
            run = self._runs[phase] = _Run(time.monotonic(), 0, total)
            if done:
                self._notify(phase, 0, total, text, None)
        run.total = total = total if total is None else max(total, done)
        run.done = done = max(done, run.done) if total is None else min(max(done, run.done), total)
        spent = time.monotonic() - run.start
        remaining = None if not done or total is None else spent / done * (total - done)
        self._notify(phase, done, total, text, remaining)
        if done == total:
            del self._runs[phase]
            level = logging.INFO if phase in LOGGED else logging.DEBUG
            LOG.log(level, "%s: %d of %d in %.3g s (%s)", PHASES.get(phase, phase), done, total, spent, text)

    def end(self, phase: str, text: str = "") -> None:
        """Report the end of a phase's run, if it has not ended, with all that it has done."""
        run = self._runs.get(phase)
        if run is not None:
            self.report(phase, run.done, run.done, text)

    def of(self, phase: str) -> OnProgress:
        """Return a function that reports one phase."""
        return lambda done, total, text: self.report(phase, done, total, text)

    def _notify(self, phase: str, done: int, total: int | None, text: str, remaining: float | None) -> None:
        self.notify({"phase": phase, "done": done, "total": total, "text": text, "remaining": remaining})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes to the seconds of a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - start

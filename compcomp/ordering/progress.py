"""Report the progress of a search, and time its phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Notify = Callable[[dict[str, Any]], None]
"""Called with each event of a search: ``phase`` ("screen", "prove" or "measure"), ``done``, ``total``, ``text``."""
OnProgress = Callable[[int, int, str], None]
"""Called with the amounts done and to do, and a text."""


def silent(done: int, total: int, text: str) -> None:
    """Report nothing."""


class Progress:
    """Report the progress of one search. ``seconds``: wall time by phase."""

    def __init__(self, notify: Notify) -> None:
        self.notify = notify
        self.seconds = {"screen": 0.0, "prove": 0.0, "measure": 0.0}

    def screening(self, done: int, total: int, text: str) -> None:
        """Report how many techniques were applied to generated layers."""
        self._report("screen", done, total, text)

    def proving(self, done: int, total: int, text: str) -> None:
        """Report how many claims were decided."""
        self._report("prove", done, total, text)

    def measuring(self, done: int, total: int, text: str) -> None:
        """Report how many measurements were made."""
        self._report("measure", done, total, text)

    def _report(self, phase: str, done: int, total: int, text: str) -> None:
        self.notify({"phase": phase, "done": min(done, total), "total": total, "text": text})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes to the seconds of a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - start

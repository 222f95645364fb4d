"""Progress bars on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from compcomp.ordering.progress import PHASES, Notify, Progress

if TYPE_CHECKING:
    import rich.progress

PATIENCE = 2.0
"""Seconds before progress bars appear."""


@contextmanager
def shown(progress: bool | Notify) -> Iterator[Progress]:
    """Yield what reports progress: by bars if True is given, else to the given function, or to nobody."""
    if progress is True:
        with Bars() as bars:
            yield Progress(bars.event)
    else:
        yield Progress(progress) if callable(progress) else Progress()


class Bars:
    """Progress bars on standard error, one for each phase.

    They appear once a search has taken :data:`PATIENCE` seconds.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._progress: rich.progress.Progress | None = None
        self._bars: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def event(self, event: dict[str, Any]) -> None:
        """Show one event of a search."""
        if self._progress is None:
            if time.monotonic() - self._start < PATIENCE:
                return
            self._progress = _new_progress()
            self._progress.start()
        phase, text = event["phase"], str(event["text"])
        if phase not in self._bars:
            self._bars[phase] = self._progress.add_task(PHASES.get(phase, phase), total=None, text="")
        elif event["done"] == 0:
            self._progress.reset(self._bars[phase])
        self._progress.update(
            self._bars[phase],
            total=event["total"],
            completed=event["done"],
            text=text if len(text) <= 48 else "..." + text[-45:],
        )


def _new_progress() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )

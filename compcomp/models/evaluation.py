"""Call the user's ``evaluate``, under the user's modes of torch, and check that it gives the same metrics each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from compcomp.bench import Watch, unwatched
from compcomp.errors import InputError
from compcomp.models.metrics import is_log, metric_direction, parts_of, read_metrics, read_parts, reading
from compcomp.models.modes import Modes


class Evaluation:
    """The user's ``evaluate``, or None. It runs under the modes of torch at the time when this object was made.

    ``notes`` receives lines that a report should show, such as a metric that was not finite. ``watch`` is called with
    the phase "evaluate": after each call, or after some parts. ``names``: the metrics of earlier calls.
    """

    def __init__(self, evaluate: Callable[..., Any] | None, notes: list[str], watch: Watch = unwatched) -> None:
        if evaluate is not None and not callable(evaluate):
            raise InputError(f"a {type(evaluate).__name__}", "a function of the model", "evaluate")
        self.evaluate, self.notes = evaluate, notes
        self.watch = watch
        self.modes = Modes.now()
        self.names = tuple[str, ...]()

    @property
    def key(self) -> str | None:
        """A text that changes whenever the values may change; None if the user's function has no such attribute."""
        key = getattr(self.evaluate, "key", None) if self.evaluate is not None else ""
        return key if isinstance(key, str) else None

    @property
    def parts(self) -> int:
        """The number of independent parts that metrics are means over (see :mod:`compcomp.models.metrics`)."""
        return parts_of(self.evaluate)

    def is_log(self, metric: str) -> bool:
        """Return True if a metric is exp of a mean over parts."""
        return is_log(metric, self.evaluate)

    def lower_is_better(self, metric: str) -> bool:
        """Return True if smaller values are better (see :func:`compcomp.models.metrics.metric_direction`)."""
        self._note(reading(metric, self.evaluate))
        return metric_direction(metric, self.evaluate) == "lower"

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model. Raises InputError if their names are not those of earlier calls."""
        assert self.evaluate is not None
        self.watch("evaluate", 0, 1, "models")
        with self.modes.on():
            metrics = read_metrics(self.evaluate(model), self.evaluate)
        self.watch("evaluate", 1, 1, "models")
        self._check_names(metrics)
        for name, value in metrics.items():
            self._note_unless_finite(name, value)
        return metrics

    def sums(self, model: nn.Module, parts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
        """Return for each metric the sum and count of each of these parts. Raises InputError like :meth:`metrics`."""
        assert self.evaluate is not None
        found: dict[str, list[tuple[float, float]]] = {}
        self.watch("evaluate", 0, len(parts), "parts")
        for start in range(0, len(parts), self.at_once(len(parts))):
            some = list(parts[start : start + self.at_once(len(parts))])
            with self.modes.on():
                sums = read_parts(self.evaluate(model, parts=some), len(some))
            self._check_names(sums)
            for name, pairs in sums.items():
                found.setdefault(name, []).extend(pairs)
            self.watch("evaluate", start + len(some), len(parts), "parts")
        for name, pairs in found.items():
            for part, _ in pairs:
                self._note_unless_finite(name, part)
        return found

    def at_once(self, count: int) -> int:
        """Return how many parts to pass at once: those that the function runs together, if it says so, else all."""
        size = getattr(self.evaluate, "batch_size", None)
        return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < count else count

    def _check_names(self, metrics: Mapping[str, Any]) -> None:
        """Raise InputError unless these are the metrics of earlier calls."""
        names = self.names = self.names or tuple(metrics)
        if missing := [name for name in names if name not in metrics]:
            raise InputError(
                f"no {missing[0]!r} among {', '.join(metrics)}", f"{', '.join(names)} each time", "evaluate"
            )
        if more := [name for name in metrics if name not in names]:
            raise InputError(f"{more[0]!r}, which it did not give before", f"{', '.join(names)} each time", "evaluate")

    def _note_unless_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            self._note(f"evaluate: {name} was {value}")

    def _note(self, note: str) -> None:
        if note and note not in self.notes:
            self.notes.append(note)

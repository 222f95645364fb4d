"""Run a model on several batches in lockstep: no batch enters a module before all have arrived there.

Each batch is an ordinary call of the model, in a thread of its own. It pauses where it enters one of some modules,
called stages. The stage itself runs in the thread that leads, so that one thread alone needs much memory. The model
keeps what it passes from one stage to the next, so nothing has to be known of its architecture.
"""

from __future__ import annotations

import contextvars
import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from compcomp.models.changes import Changes
from compcomp.models.modes import Devices, Modes, random_kept


@dataclass(eq=False)
class Stage:
    """A module that all batches enter together.

    Attributes:
        name: The name of the module in the model.
        module: The module.
        layers: The names of the layers inside that are compressed when all batches have run the stage.
    """

    name: str
    module: nn.Module
    layers: tuple[str, ...] = ()


class Repeated(Exception):
    """A batch enters a stage that all batches have left. The stage is the argument."""


class _Stopped(BaseException):
    """Ends a run that is not needed any more. Code that catches Exception lets it pass."""


@dataclass(eq=False)
class Run:
    """One batch's call of the model.

    Attributes:
        call: Calls the model.
        entered: The stage before which the run waits, with the arguments. None while it does not wait.
        result: The result of the stage.
        error: The exception that the stage, or the call, has raised.
    """

    call: Callable[[], object]
    entered: _Entered | None = None
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    stopped: bool = False
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    resumed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread | None = None


@dataclass(eq=False)
class _Entered:
    """A stage that a run has entered: its function and arguments, and the modes and context in which it is called."""

    stage: Stage
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modes: Modes
    context: contextvars.Context

    def call(self, *, apart: bool) -> Any:
        """Run the stage. ``apart``: on copies of its arguments, and of the random numbers."""
        if not apart:
            return self._called(self.args, self.kwargs)
        with random_kept():
            self._called(*_apart((self.args, self.kwargs)))
        return None

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.modes == Modes.now():
            return self.context.run(self.forward, *args, **kwargs)
        with self.modes.on():
            return self.context.run(self.forward, *args, **kwargs)


_HERE: contextvars.ContextVar[Run | None] = contextvars.ContextVar("run", default=None)


def current_run() -> Run | None:
    """Return the run whose thread this is, or None."""
    return _HERE.get()


class Lockstep:
    """Runs of a model that enter each stage together. Use it as a context: at its end all runs have stopped.

    Args:
        stages: The stages, in the order of the model.
        calls: For each batch, a function that calls the model.
    """

    def __init__(self, stages: Sequence[Stage], calls: Sequence[Callable[[], object]]) -> None:
        self._stages = list(stages)
        self._runs = [Run(call) for call in calls]
        self._left: set[int] = set()
        self._changes = Changes()
        self._final = True
        self._devices = Devices.now()

    def __enter__(self) -> Self:
        for stage in self._stages:
            self._changes.put(stage.module, "forward", self._forward(stage, stage.module.forward))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            if run.thread is not None and not run.done:
                run.stopped = True
                run.resumed.release()
        for run in self._runs:
            if run.thread is not None:
                run.thread.join()
        self._changes.undo()

    def stages(self) -> Iterator[Stage]:
        """Yield each stage once all runs wait before it, in the order of the model.

        The caller then runs it (:meth:`run`) and lets the runs leave it (:meth:`leave`).
        """
        for run in self._runs:
            self._start(run)
        place = {id(stage): number for number, stage in enumerate(self._stages)}
        while waiting := [run.entered.stage for run in self._runs if run.entered is not None]:
            yield min(waiting, key=lambda stage: place[id(stage)])

    def run(self, stage: Stage, *, final: bool) -> Iterator[None]:
        """Run a stage for every batch that waits before it. Yields after each batch.

        Args:
            stage: The stage.
            final: True to pass on the results. False to run the stage again when the batches leave it.
        """
        self._final = final
        for run in self._at(stage):
            run.result = self._called(run, apart=not final)
            yield

    def inputs(self, stage: Stage) -> list[Any]:
        """Return the first argument of every batch that waits before a stage."""
        calls = [run.entered for run in self._at(stage) if run.entered is not None]
        return [next(iter((*call.args, *call.kwargs.values())), None) for call in calls]

    def skip(self) -> None:
        """Run a stage no more than once: when the batches leave it."""
        self._final = False

    def leave(self, stage: Stage) -> Iterator[None]:
        """Let the batches go on to the next stage, with results of the weights that the stage has now.

        Yields after each batch.
        """
        self._left.add(id(stage))
        for run in self._at(stage):
            if not self._final:
                run.result = self._called(run, apart=False)
            self._resume(run)
            yield

    def _called(self, run: Run, *, apart: bool) -> Any:
        assert run.entered is not None
        try:
            return run.entered.call(apart=apart)
        except Exception as error:  # raised again where the model called the stage
            run.error = error
            self._resume(run)
            raise

    def _at(self, stage: Stage) -> list[Run]:
        return [run for run in self._runs if run.entered is not None and run.entered.stage is stage]

    def _start(self, run: Run) -> None:
        run.thread = threading.Thread(target=contextvars.copy_context().run, args=(self._body, run), daemon=True)
        run.thread.start()
        self._wait(run)

    def _resume(self, run: Run) -> None:
        run.entered = None
        run.resumed.release()
        self._wait(run)

    @staticmethod
    def _wait(run: Run) -> None:
        run.waiting.acquire()
        if run.error is not None:
            raise run.error

    def _body(self, run: Run) -> None:
        _HERE.set(run)
        try:
            with torch.no_grad(), self._devices.on():
                run.call()
        except _Stopped:
            pass
        except BaseException as error:  # passed on to the thread that leads
            run.error = error
        finally:
            run.entered, run.done = None, True
            run.waiting.release()

    def _forward(self, stage: Stage, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that a stage's module runs in place of its own."""

        def stepped(*args: Any, **kwargs: Any) -> Any:
            run = current_run()
            if run is None or run.thread is not threading.current_thread():  # a stage inside another
                return forward(*args, **kwargs)
            if id(stage) in self._left:
                raise Repeated(stage)
            run.entered = _Entered(stage, forward, args, kwargs, Modes.now(), contextvars.copy_context())
            del args, kwargs
            run.waiting.release()
            run.resumed.acquire()
            if run.stopped:
                raise _Stopped
            if run.error is not None:
                raise run.error
            result, run.result = run.result, None
            return result

        return stepped


def _apart(value: Any) -> Any:
    """Return arguments that a module may write to: tensors and caches are copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _apart(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_apart, value))
    return copy.deepcopy(value) if type(value).__name__.endswith("Cache") else value

"""Find the best order of some techniques, by proof and by measurement: the library's main function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from compcomp.compress import Patterns, read_patterns
from compcomp.compress import apply as apply
from compcomp.errors import InputError
from compcomp.language.loss import loss_named
from compcomp.language.parameters import whole
from compcomp.language.technique import Sequence, Technique
from compcomp.models.calibration import Calibration, calibration_of
from compcomp.ordering.on_model import EVALUATED
from compcomp.ordering.parts import CONFIDENCE
from compcomp.ordering.plan import PlanData
from compcomp.ordering.progress import Notify
from compcomp.ordering.search import LARGEST, search
from compcomp.ordering.space import Slot, Space, pairs_of
from compcomp.ordering.store import Store
from compcomp.plan import Plan, Setting

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from torch import nn

    from compcomp.models.bench import ModelBench
    from compcomp.proving.prove import Prover

PATIENCE = 2.0
"""Seconds before progress bars appear."""


def optimize_order(
    techniques: Iterable[Technique | Slot],
    *,
    before: Iterable[tuple[Technique, Technique]] = (),
    loss: str = "output_l2",
    model: nn.Module | None = None,
    calibration: Any = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    device: Any = "auto",
    executor: Executor | None = None,
    store: str | Path | Store | None = None,
    progress: bool | Notify = False,
    evaluations: int = EVALUATED,
    granularity: str = "model",
    size: float | None = None,
    confidence: float | None = CONFIDENCE,
    targets: Patterns = None,
    ignore: Patterns = ("lm_head",),
    prover: Prover | None = None,
    calibrate: str = "sequential",
    passes: str = "one",
    inside: str = "together",
    blocks: Patterns = None,
) -> Plan:
    """Find the best order in which to apply 1 to 8 techniques. One that is listed twice is applied twice.

    The search merges orders that are proved equal and drops orders that are proved to lose no less than another. It
    measures the rest: on ``model`` if there is one, else on generated layers. If one of the techniques acts on the
    whole model, no claims are decided, and every order is measured on the model.

    Args:
        techniques: The techniques to order. An entry ``one_of(A, B)`` is filled by one of its alternatives. An entry
            ``optional(A)`` may stay empty.
        before: Pairs (A, B) of techniques. A comes before B in every order.
        loss: The layer loss that orders are compared under: "weight_l1" to "weight_l4", or "output_l2".
        model: A torch module with layers (:func:`compcomp.models.layers.find_layers`). It is afterwards as it was,
            whatever ``evaluate`` does to it. ``plan.apply`` and ``plan.save`` accept it as long as it stays unchanged.
        calibration: Batches for the model. Required if the loss or a technique looks at inputs.
        evaluate: A function ``model -> number`` or dict of numbers, the first of which ranks the orders. Higher is
            better unless the metric's name (perplexity, loss ...) or the attribute ``evaluate.higher_is_better`` says
            otherwise.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".
        executor: Any ``concurrent.futures.Executor``, in which claims are decided and layers explored. It does not
            change the results. None works in this process; if many orders are explored on a CPU, it works in one
            process for each core.
        store: A file that keeps verdicts and measurements from one run to the next. A run that ended early continues
            from there. Values of ``evaluate`` are kept only if it has an attribute ``key``. This is a text that has to
            change whenever the values may change.
        progress: True for bars on standard error, or a function that is called with each event (a dict).
        evaluations: The largest number of orders that ``evaluate`` measures. If more are left, those of least loss are
            measured.
        granularity: "model" for one order for all layers. "layer" for an order for each layer, if that pays.
        size: The compression rate that the order has to reach, such as 0.8. None: if rates differ, the plan takes the
            best order among those of the largest rate. ``plan.pareto`` has the best order of each size.
        confidence: Used if ``evaluate`` has ``parts`` (docs/measuring.md). It is the confidence of the reported
            intervals, and the confidence that no order stopped early is the best one. None or 1: every order is
            measured on all parts.
        targets: Patterns of the names or classes of the layers to compress, or of modules around them. A text after
            "re:" is a regular expression (docs/recipes.md).
        ignore: Patterns of the layers to leave alone, written like ``targets``.
        prover: The ``cc.Prover`` that decides claims. None: the one that this process shares.
        calibrate: The inputs on which the models that ``evaluate`` measures, and those that the plan compresses, are
            calibrated: "sequential", "block" or "dense" (docs/calibration.md). Losses of layers are at the inputs of
            the dense model in any case.
        passes: "one" if all steps of an order share one pass over the blocks, "own" if each makes a pass of its own.
        inside: "together" if the layers of a block are calibrated at once, "in turn" if each sees the outputs of the
            compressed layers before it.
        blocks: Patterns of the names or classes of the blocks, as in :func:`compcomp.compress.apply`.

    Returns:
        The plan: the order, how it was found, and methods to apply, save and report it.

    Raises:
        InputError: An argument cannot be used.
    """
    targets, ignore = read_patterns(targets, ignore)
    inputs = calibration_of(calibrate, passes, inside, blocks)
    chosen, pairs = _techniques(techniques), pairs_of(before)
    known = Space(chosen, pairs).techniques
    whole(evaluations, 1, 10**6, "evaluations")
    size, confidence = _share(size, "size", model is not None), _share(confidence, "confidence")
    loss = loss_named(loss).name
    _check_model_arguments(known, loss, model, calibration, evaluate)
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise InputError(f"a {type(executor).__name__}", "a concurrent.futures.Executor", "executor")
    if store is not None and not isinstance(store, str | Path | Store):
        raise InputError(repr(store)[:60], "the path of a file, or a Store", "store")
    if not isinstance(progress, bool) and not callable(progress):
        raise InputError(repr(progress)[:60], "True, False or a function of an event", "progress")
    with ExitStack() as stack:
        bench: ModelBench | None = None
        if model is not None:
            from compcomp.models.bench import ModelBench
            from compcomp.models.measure import MEASURED
            from compcomp.models.modes import PLAIN, kept

            usable = [name for name in MEASURED if calibration is not None or not loss_named(name).needs_inputs]
            names = dict.fromkeys([*usable, loss])
            bench = ModelBench(
                model,
                calibration,
                evaluate,
                device,
                targets,
                ignore,
                loss_names=names,
                keep_batches=_couples(known),
                inputs=inputs,
            )
            stack.enter_context(kept())
            stack.enter_context(PLAIN.on())
            stack.enter_context(bench)
            bench.check(Sequence(known))
        if store is not None and not isinstance(store, Store):
            store = Store(store)
            stack.callback(store.close)
        notify: Notify = progress if callable(progress) else lambda event: None
        if progress is True:
            notify = stack.enter_context(Bars()).event
        found = search(
            chosen,
            loss,
            bench,
            before=pairs,
            evaluations=evaluations,
            granularity=granularity,
            size=size,
            confidence=None if confidence == 1 else confidence,
            prover=prover,
            executor=executor,
            store=store,
            notify=notify,
        )
    if bench is not None:
        notes = [*found.notes, *bench.notes, *_suspicious(found), *_inputs_of(known, inputs, found)]
        found = replace(found, notes=notes, outside=bench.outside)
    return Plan.of(found, Setting(bench, calibration, device, targets, ignore, inputs))


def _inputs_of(techniques: Iterable[Technique], inputs: Calibration, plan: PlanData) -> list[str]:
    """Return a line on the inputs that the plan's numbers speak of, if these depend on how layers are calibrated."""
    if inputs.dense or not any(technique.needs_inputs for technique in techniques):
        return []
    measured = "" if plan.metric is None else f"{plan.metric} is of models calibrated on {inputs.described}; "
    return [
        f"{measured}losses of layers, and what is proved of these inputs, are at the inputs of the dense model; "
        "proofs for any inputs hold at both"
    ]


def _couples(techniques: Iterable[Technique]) -> bool:
    """Return True if one of the techniques acts on the whole model."""
    return any(technique.whole_model for technique in techniques)


def _share(given: Any, where: str, usable: bool = True) -> float | None:
    """Read a number from 0 to 1, or None."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise InputError(repr(given)[:60], "a number from 0 to 1, or None", where)
    if not usable:
        raise InputError(f"{where} without a model", "both, or neither", where)
    return float(given)


def _techniques(given: Any) -> tuple[Technique | Slot, ...]:
    allowed = f"a list of 1 to {LARGEST} techniques such as [P, Q] (parse_sequence reads text)"
    if isinstance(given, str | Technique | Slot | Sequence) or not isinstance(given, Iterable):
        raise InputError(repr(given)[:80], allowed, "techniques")
    found = []
    for technique in given:
        if not isinstance(technique, Technique | Slot):
            raise InputError(repr(technique)[:80], allowed, "techniques")
        found.append(technique)
        if len(found) > LARGEST:
            raise InputError(f"more than {LARGEST} techniques", allowed, "techniques")
    if not found:
        raise InputError("an empty list", allowed, "techniques")
    return tuple(found)


def _check_model_arguments(
    techniques: Iterable[Technique], loss: str, model: Any, calibration: Any, evaluate: Any
) -> None:
    if model is None:
        for name, given in (("calibration", calibration), ("evaluate", evaluate)):
            if given is not None:
                raise InputError(f"{name} without a model", "both, or neither", name)
        return
    if calibration is None:
        needing = [str(t) for t in techniques if t.needs_inputs and not t.promises().changes_inputs]
        if loss_named(loss).needs_inputs:
            needing.insert(0, f"loss {loss}")
        if needing:
            raise InputError("no calibration", f"calibration batches, which {needing[0]} needs", "calibration")


BEATEN = 0.1
"""Share of the uncompressed model's metric. A compressed model that is better by more gets a note."""


def _suspicious(plan: PlanData) -> list[str]:
    """Return a note if compressed models are better than the uncompressed one by more than :data:`BEATEN`."""
    metric, dense = plan.metric, plan.dense.get(plan.metric or "")
    if metric is None or dense is None or not math.isfinite(dense):
        return []
    values = [one.metrics[metric] for one in plan.measurements if metric in one.metrics]
    sign = -1 if plan.lower else 1
    better = [value for value in values if sign * (value - dense) > BEATEN * abs(dense)]
    if not better:
        return []
    way = "lower" if plan.lower else "higher"
    return [
        f"{len(better)} of {len(values)} orders beat the uncompressed model's {metric} of {dense:.4g} by more than "
        f"{BEATEN:.0%}, where {way} is taken for better: see that this is so (evaluate.higher_is_better says it) "
        "and that evaluate measures the model it is given"
    ]


class Bars:
    """Progress bars on standard error, one for each phase.

    They appear once a search has taken :data:`PATIENCE` seconds.
    """

    NAMES = {"screen": "trying orders", "prove": "proving", "measure": "measuring"}  # noqa: RUF012

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}

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
            self._bars[phase] = self._progress.add_task(self.NAMES.get(phase, phase), text="")
        self._progress.update(
            self._bars[phase],
            total=event["total"],
            completed=event["done"],
            text=text if len(text) <= 48 else "..." + text[-45:],
        )


def _new_progress() -> Progress:
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

"""The main job: find the best order of some techniques, by proof and by measurement, and apply it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from compcomp.errors import InputError
from compcomp.language.loss import loss_named
from compcomp.language.parameters import whole
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.ordering.parts import CONFIDENCE
from compcomp.ordering.plan import Plan
from compcomp.ordering.search import EVALUATED, LARGEST, Notify, search
from compcomp.ordering.space import Slot, Space, pairs_of
from compcomp.ordering.store import Store

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from torch import nn

    from compcomp.models.bench import ModelBench
    from compcomp.proving.prove import Prover

Patterns = str | Iterable[str] | None

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
) -> Plan:
    """Find the order in which to apply 1 to 8 techniques; one that is listed twice is applied twice.

    With a technique that acts on the whole model no claims are asked, and every order is measured on the model.

    Orders that are proved equal are merged, orders that are proved to lose no less than another are
    dropped, and what is left is measured: on ``model`` where there is one, else on generated layers.

    techniques: in place of one, ``one_of(A, B)`` is filled by one of several, and ``optional(A)`` may stay empty.
    before: pairs (A, B) of techniques of which A comes before B in every order.
    loss: the layer loss that orders are compared under: "weight_l1" to "weight_l4", or "output_l2".
    model: a torch module with Linear layers (or transformers' Conv1D). It is as it was afterwards, whatever
    ``evaluate`` does to it; ``plan.apply`` and ``plan.save`` take it as long as it stays so.
    calibration: batches for the model; needed where the loss or a technique looks at inputs.
    evaluate: ``model -> number`` or a dict of numbers, the first of which ranks the orders. Higher is better
    unless its name (perplexity, loss ...) or its attribute ``higher_is_better`` says otherwise.
    device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
    executor: where claims are decided and layers explored, any ``concurrent.futures.Executor``; results are the same
    without. None: in this process, and where many orders are explored on a CPU in a process for every core.
    store: a file in which verdicts and measurements are kept from one run to the next. A run that was ended at any
    point goes on from there. Values of ``evaluate`` are kept only where it has an attribute ``key``, a text that is
    another whenever its values may be.
    granularity: "model" for one order for all layers, "layer" for an order for each layer where that pays.
    evaluations: orders that are put to ``evaluate`` at most: where more stay, those of least loss.
    size: the compression rate that the order has to reach, such as 0.8. None: where sizes differ, the order is the best
    of those of the largest rate; ``plan.pareto`` has the best of each size.
    confidence: where ``evaluate`` has ``parts`` (docs/measuring.md), that of its intervals, and that the best order is
    not among those stopped early. None or 1: every order is measured on all parts.
    progress: True for bars on standard error, or a function that is told each event, a dict.
    targets, ignore: patterns of the names or classes of the layers to compress, and to leave alone: also of modules
    that they lie in, or regular expressions after "re:" (docs/recipes.md).
    prover: who decides claims, a ``cc.Prover``. None: the one that this process shares.

    Raises InputError when something given cannot be used.
    """
    targets, ignore = _patterns(targets, ignore)
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
        plan = search(
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
    _make_applicable(plan, bench, calibration, device, targets, ignore)
    return plan


def apply(
    sequence: Technique | Sequence,
    model: nn.Module,
    calibration: Any = None,
    device: Any = "auto",
    targets: Patterns = None,
    ignore: Patterns = ("lm_head",),
) -> nn.Module:
    """Apply a sequence to a model, without a search, and return the same module with its new weights.

    calibration: batches for the model; needed where a technique looks at inputs. The rest is as for
    :func:`optimize_order`. What a plan would note is warned of. Raises InputError when something given cannot be used;
    the model is then as it was.
    """
    sequence = as_sequence(sequence)
    targets, ignore = _patterns(targets, ignore)
    from compcomp.models.bench import ModelBench
    from compcomp.models.modes import PLAIN, kept

    needed = calibration if sequence.needs_inputs else None
    couples = _couples(sequence)
    with (
        kept(),
        PLAIN.on(),
        ModelBench(model, needed, None, device, targets, ignore, loss_names=(), keep_batches=couples) as bench,
    ):
        bench.check(sequence)
        written = bench.write(bench.apply(sequence, bench.start()))
    for note in bench.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return written


def _patterns(targets: Patterns, ignore: Patterns) -> tuple[Patterns, Patterns]:
    """Both as tuples, which can be read more than once."""
    from compcomp.models.patterns import patterns_of

    return None if targets is None else patterns_of(targets, "targets"), patterns_of(ignore, "ignore")


def _couples(techniques: Iterable[Technique]) -> bool:
    """Whether one of them acts on the whole model."""
    return any(technique.whole_model for technique in techniques)


def _share(given: Any, where: str, usable: bool = True) -> float | None:
    """A number from 0 to 1, or None."""
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


def _make_applicable(
    plan: Plan,
    bench: ModelBench | None,
    calibration: Any,
    device: Any,
    targets: Patterns,
    ignore: Patterns,
) -> None:
    """Let the plan compress models, its own one with the calibration that was collected."""
    from compcomp.models.bench import ModelBench

    def check(where: str) -> None:
        """Raise InputError unless the model is as the search left it, or as this plan has written it."""
        assert bench is not None
        if (name := bench.changed()) is not None:
            raise InputError(
                f"a model whose weights have changed since the plan was made ({name})",
                "the model as it was; compcomp.apply(plan.order, model, calibration) compresses what it is now",
                where,
            )

    def compress(model: nn.Module, batches: Any) -> nn.Module:
        if bench is None or not _is_same_model(model, bench.model) or batches is not None:
            given = calibration if batches is None else batches
            if not plan.layer_orders:
                return apply(plan.order, model, given, device, targets, ignore)
            with ModelBench(model, given, None, device, targets, ignore, loss_names=()) as other:
                return other.write(_planned(plan, other))
        check("Plan.apply")
        with bench:
            bench.write(_planned(plan, bench))
        return model

    def write_model(folder: Path) -> None:
        assert bench is not None
        from compcomp.models.save import save

        check("Plan.save")
        with bench:
            about = {"order": str(plan.order), "optimality": plan.optimality, "layer_orders": plan.layer_orders}
            save(bench.model, _planned(plan, bench), folder, about)

    plan.compress = compress
    if bench is not None:
        plan.write_model = write_model
        plan.notes += [*bench.notes, *_suspicious(plan)]
        plan.outside = bench.outside


def _is_same_model(one: Any, other: Any) -> bool:
    """Whether two models are one, whatever compilers and data parallelism put around it."""
    from torch import nn

    from compcomp.models.wrappers import unwrap

    return one is other or (isinstance(one, nn.Module) and unwrap(one) is unwrap(other))


BEATEN = 0.1
"""Share of a metric of the uncompressed model by which it takes a remark to be beaten."""


def _suspicious(plan: Plan) -> list[str]:
    """What to say where compressed models are better than the uncompressed one by much."""
    metric, dense = plan.metric, plan.dense.get(plan.metric or "")
    if metric is None or dense is None or not math.isfinite(dense):
        return []
    values = [one["metrics"][metric] for one in plan.measurements if metric in one["metrics"]]
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


def _planned(plan: Plan, bench: ModelBench) -> Any:
    """The state that the plan leads to."""
    if not plan.layer_orders:
        return bench.apply(plan.order, bench.start())
    own = {name: plan.orderings.read(text) for name, text in plan.layer_orders.items()}
    return bench.apply_each({name: own.get(name, plan.order) for name in bench.layer_names()} | own)


class Bars:
    """Progress bars on standard error, one a phase, as soon as anything takes more than :data:`PATIENCE`."""

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

"""Find the best order of some techniques, by proof and by measurement: the library's main function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from compcomp.compress import Patterns, read_patterns
from compcomp.compress import apply as apply
from compcomp.errors import InputError, Interrupted
from compcomp.language.loss import loss_named
from compcomp.language.parameters import whole
from compcomp.language.technique import Sequence, Technique
from compcomp.models.calibration import Calibration, calibration_of
from compcomp.ordering.estimate import Estimate
from compcomp.ordering.on_model import EVALUATED
from compcomp.ordering.parts import CONFIDENCE
from compcomp.ordering.plan import INTERRUPTED, PlanData
from compcomp.ordering.progress import Notify, Progress, check_progress
from compcomp.ordering.search import LARGEST, preview, search
from compcomp.ordering.space import Slot, Space, pairs_of
from compcomp.ordering.store import Store
from compcomp.plan import Plan, Setting
from compcomp.reporting.bars import shown

if TYPE_CHECKING:
    from torch import nn

    from compcomp.models.bench import ModelBench
    from compcomp.proving.prove import Prover


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
        executor: Any ``concurrent.futures.Executor``, in which claims are decided, layers explored and, if its workers
            are other processes, whole models measured (docs/ordering.md). It does not change the results. None works in
            this process; if many orders are explored on a CPU, it works in one process for each core.
        store: A file that keeps verdicts and measurements from one run to the next. A run that ended early continues
            from there. Values of ``evaluate`` are kept only if it has an attribute ``key``. This is a text that has to
            change whenever the values may change.
        progress: True for bars on standard error, or a function that is called with each event (docs/measuring.md).
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
        Interrupted: The user has pressed Ctrl-C. The exception has the plan of what was measured until then.
    """
    return _Arguments(**locals()).optimize()


P = ParamSpec("P")


def _as_for(given: Callable[P, Plan]) -> Callable[[Callable[..., Estimate]], Callable[P, Estimate]]:
    """Return a decorator that gives a function the arguments of another one."""
    return lambda function: function


@_as_for(optimize_order)
def estimate(*given: Any, **named: Any) -> Estimate:
    """Estimate what a search would do: orders, applications, evaluations, minutes and memory.

    Claims are decided as in the search, for at most a minute. One calibration batch, each technique on one layer of
    each shape, and one part of ``evaluate`` are run and timed; an ``evaluate`` without parts is run once. Everything
    else is left out. The model is afterwards as it was.

    The arguments are those of :func:`optimize_order`. A store keeps the decided claims for the search. A generator of
    batches is used up: give a list or a DataLoader.

    Returns:
        The estimate, whose text is a table. Counts are upper bounds; minutes and memory are rough.

    Raises:
        InputError: An argument cannot be used.
    """
    bound = inspect.signature(optimize_order).bind(*given, **named)
    bound.apply_defaults()
    return _Arguments(**bound.arguments).estimate()


@dataclass
class _Arguments:
    """The arguments of :func:`optimize_order`, checked."""

    techniques: Any
    before: Any
    loss: str
    model: Any
    calibration: Any
    evaluate: Any
    device: Any
    executor: Executor | None
    store: Any
    progress: Any
    evaluations: int
    granularity: str
    size: float | None
    confidence: float | None
    targets: Patterns
    ignore: Patterns
    prover: Prover | None
    calibrate: str
    passes: str
    inside: str
    blocks: Patterns

    def __post_init__(self) -> None:
        self.targets, self.ignore = read_patterns(self.targets, self.ignore)
        self.inputs = calibration_of(self.calibrate, self.passes, self.inside, self.blocks)
        self.techniques, self.before = _techniques(self.techniques), pairs_of(self.before)
        self.known = Space(self.techniques, self.before).techniques
        whole(self.evaluations, 1, 10**6, "evaluations")
        self.size = _share(self.size, "size", self.model is not None)
        self.confidence = _share(self.confidence, "confidence")
        self.confidence = None if self.confidence == 1 else self.confidence
        self.loss = loss_named(self.loss).name
        _check_model_arguments(self.known, self.loss, self.model, self.calibration, self.evaluate)
        executor = self.executor
        if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
            raise InputError(f"a {type(executor).__name__}", "a concurrent.futures.Executor", "executor")
        if self.store is not None and not isinstance(self.store, str | Path | Store):
            raise InputError(repr(self.store)[:60], "the path of a file, or a Store", "store")
        check_progress(self.progress)

    def optimize(self) -> Plan:
        """Search, and return the plan."""
        with ExitStack() as stack:
            progress = stack.enter_context(shown(self.progress))
            bench = self.bench(stack, progress)
            try:
                found = search(**self.searched(bench, stack), progress=progress)
            except KeyboardInterrupt as stop:
                raise Interrupted() from stop
        if bench is not None:
            notes = [*found.notes, *bench.notes, *_suspicious(found)]
            about = _inputs_of(self.known, self.inputs, found)
            found = replace(found, notes=notes, outside=bench.outside, inputs=about)
        setting = Setting(bench, self.calibration, self.device, self.targets, self.ignore, self.inputs)
        plan = Plan.of(found, setting)
        if plan.optimality == INTERRUPTED:
            raise Interrupted(plan)
        return plan

    def estimate(self) -> Estimate:
        """Return what the search would do."""
        with ExitStack() as stack:
            progress = stack.enter_context(shown(self.progress))
            bench = self.bench(stack, progress)
            arguments = self.searched(bench, stack)
            del arguments["executor"]
            return preview(**arguments, progress=progress, evaluated=self.evaluate is not None)

    def bench(self, stack: ExitStack, progress: Progress) -> ModelBench | None:
        """Return the bench of the model, until the stack is closed. None without a model."""
        if self.model is None:
            return None
        from compcomp.models.bench import ModelBench
        from compcomp.models.measure import MEASURED
        from compcomp.models.modes import PLAIN, kept

        coupled, calibration = any(technique.whole_model for technique in self.known), self.calibration
        if not (coupled or loss_named(self.loss).needs_inputs or any(t.needs_inputs for t in self.known)):
            calibration = None  # its Gram matrices would cost more than all else, for a loss that decides nothing
        usable = [name for name in MEASURED if calibration is not None or not loss_named(name).needs_inputs]
        bench = ModelBench(
            self.model,
            calibration,
            self.evaluate,
            self.device,
            self.targets,
            self.ignore,
            loss_names=dict.fromkeys([*usable, self.loss]),
            keep_batches=coupled,
            inputs=self.inputs,
            watch=progress.report,
        )
        stack.enter_context(kept())
        stack.enter_context(PLAIN.on())
        stack.enter_context(bench)
        bench.check(Sequence(self.known))
        bench.check_loss(self.loss)
        return bench

    def searched(self, bench: ModelBench | None, stack: ExitStack) -> dict[str, Any]:
        """Return the arguments of a search. The store is open until the stack is closed."""
        store = self.store
        if store is not None and not isinstance(store, Store):
            store = Store(store)
            stack.callback(store.close)
        return {
            "techniques": self.techniques,
            "loss": self.loss,
            "bench": bench,
            "before": self.before,
            "evaluations": self.evaluations,
            "granularity": self.granularity,
            "size": self.size,
            "confidence": self.confidence,
            "prover": self.prover,
            "executor": self.executor,
            "store": store,
        }


def _inputs_of(techniques: Iterable[Technique], inputs: Calibration, plan: PlanData) -> str:
    """Return a line on the inputs that the plan's numbers speak of, if these depend on how layers are calibrated."""
    if inputs.dense or not any(technique.needs_inputs for technique in techniques):
        return ""
    measured = "" if plan.metric is None else f"{plan.metric} is of models calibrated on {inputs.described}; "
    return (
        f"{measured}losses of layers, and what is proved of these inputs, are at the inputs of the dense model; "
        "proofs for any inputs hold at both"
    )


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

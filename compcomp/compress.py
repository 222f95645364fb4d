"""Compressing a model by an order of techniques, or by a plan."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.ordering.plan import PlanData

if TYPE_CHECKING:
    from torch import nn

    from compcomp.models.bench import ModelBench
    from compcomp.models.held import ModelState

Patterns = str | Iterable[str] | None


def apply(
    sequence: Technique | Sequence,
    model: nn.Module,
    calibration: Any = None,
    device: Any = "auto",
    targets: Patterns = None,
    ignore: Patterns = ("lm_head",),
) -> nn.Module:
    """Apply a sequence to a model, without a search, and return the same module with its new weights.

    calibration: batches for the model; needed where a technique looks at inputs. The other arguments are those of
    :func:`compcomp.optimize.optimize_order`. Notes of a plan are warnings here. Raises InputError when something given
    cannot be used; the model is then as it was.
    """
    sequence = as_sequence(sequence)
    targets, ignore = read_patterns(targets, ignore)
    from compcomp.models.bench import ModelBench
    from compcomp.models.modes import PLAIN, kept

    needed = calibration if sequence.needs_inputs else None
    couples = any(technique.whole_model for technique in sequence)
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


def apply_plan(
    plan: PlanData, model: nn.Module, calibration: Any, device: Any, targets: Patterns, ignore: Patterns
) -> nn.Module:
    """Apply a plan's order, or its orders for single layers, to a model, and return the same module."""
    if not plan.own_orders:
        return apply(plan.order, model, calibration, device, targets, ignore)
    from compcomp.models.bench import ModelBench

    with ModelBench(model, calibration, None, device, targets, ignore, loss_names=()) as bench:
        return bench.write(planned(plan, bench))


def planned(plan: PlanData, bench: ModelBench) -> ModelState:
    """Return the state of a bench's model that the plan leads to."""
    if not plan.own_orders:
        return bench.apply(plan.order, bench.start())
    return bench.apply_each(dict.fromkeys(bench.layer_names(), plan.order) | plan.own_orders)


def read_patterns(targets: Patterns, ignore: Patterns) -> tuple[Patterns, Patterns]:
    """Return both as tuples, which can be read more than once."""
    from compcomp.models.patterns import patterns_of

    return None if targets is None else patterns_of(targets, "targets"), patterns_of(ignore, "ignore")

"""Compressing a model by an order of techniques, or by a plan."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.calibration import Calibration, calibration_of
from compcomp.ordering.progress import Notify, check_progress
from compcomp.reporting.bars import shown

if TYPE_CHECKING:
    from torch import nn

    from compcomp.models.bench import ModelBench
    from compcomp.models.held import ModelState
    from compcomp.ordering.plan import PlanData

LOG = logging.getLogger("compcomp")
Patterns = str | Iterable[str] | None


def apply(
    sequence: Technique | Sequence,
    model: nn.Module,
    calibration: Any = None,
    device: Any = "auto",
    targets: Patterns = None,
    ignore: Patterns = ("lm_head",),
    calibrate: str = "sequential",
    passes: str = "one",
    inside: str = "together",
    blocks: Patterns = None,
    progress: bool | Notify = False,
) -> nn.Module:
    """Apply a sequence to a model, without a search, and return the same module with its new weights.

    The blocks of the model are compressed one after another. Apart from the model, memory holds one block's Gram
    matrices and the calibration set's activations between two blocks. The earlier weights are kept on disk until the
    end, in the temporary directory. Notes of a plan are warnings here.

    Args:
        sequence: The techniques to apply.
        model: A torch module, changed in place.
        calibration: Batches for the model. Required if a technique looks at inputs.
        device: As in :func:`compcomp.optimize.optimize_order`, like ``targets`` and ``ignore``.
        targets: Patterns of the layers to compress.
        ignore: Patterns of the layers to leave alone.
        calibrate: The inputs that a layer is calibrated on: "sequential", "block" or "dense" (docs/calibration.md).
        passes: "one" if all steps share one pass over the blocks, "own" if each step makes a pass of its own.
        inside: "together" if the layers of a block are calibrated at once, "in turn" if each sees the outputs of the
            compressed layers before it.
        blocks: Patterns of the names or classes of the blocks. None finds the blocks of a transformers model, and takes
            any other model as one block.
        progress: True for bars on standard error, or a function that is called with each event (docs/measuring.md).

    Raises:
        InputError: An argument cannot be used. The model is then as it was.
    """
    sequence = as_sequence(sequence)
    targets, ignore = read_patterns(targets, ignore)
    inputs = calibration_of(calibrate, passes, inside, blocks)
    check_progress(progress)
    from compcomp.models.bench import ModelBench
    from compcomp.models.modes import PLAIN, kept

    needed = calibration if sequence.needs_inputs else None
    how: dict[str, Any] = {"loss_names": (), "keep_batches": True, "inputs": inputs}
    start = time.monotonic()
    with (
        kept(),
        PLAIN.on(),
        shown(progress) as reported,
        ModelBench(model, needed, None, device, targets, ignore, watch=reported.report, **how) as bench,
    ):
        written = bench.compress(sequence)
    LOG.info("applied %s to %d layers in %.3g s", sequence, len(bench.layers), time.monotonic() - start)
    for note in bench.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return written


def apply_plan(
    plan: PlanData,
    model: nn.Module,
    calibration: Any,
    device: Any,
    targets: Patterns,
    ignore: Patterns,
    inputs: Calibration,
) -> nn.Module:
    """Apply a plan's order, or its orders for single layers, to a model, and return the same module."""
    if not plan.own_orders:
        how = inputs.calibrate, inputs.sharing, inputs.inside, inputs.blocks
        return apply(plan.order, model, calibration, device, targets, ignore, *how)
    from compcomp.models.bench import ModelBench

    with ModelBench(model, calibration, None, device, targets, ignore, loss_names=(), inputs=inputs) as bench:
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

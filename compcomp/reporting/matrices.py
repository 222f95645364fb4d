"""Which part of a witness to show, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from compcomp.language.verdict import Matrix, Trace, Witness

WIDE = 8
"""Layers with more rows or columns than this show only those that hold something."""
MOST = 32
"""Rows or columns that are shown at all."""
LONGEST, LONGEST_LOSS = 13, 40
"""Characters a fraction may take before its decimal value stands for it: a weight, and a loss."""


@dataclass(frozen=True)
class Window:
    """The rows and columns of a witness that are shown; every other weight is 0 at every step.

    ``rows`` and ``columns``: their indices, from 0. ``labelled``: whether some are left out, so that
    indices have to be shown. ``left_out``: what is left out, in words.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    labelled: bool
    left_out: str


def window(witness: Witness) -> Window:
    """What to show of this witness: all of a small layer, else what is not 0 at some step.

    Where steps change the inputs also every feature with inputs, as it may share a scale with others.
    """
    states = [witness.weight, *(weight for trace in witness.traces for _, weight in trace.steps)]
    height = len(witness.weight)
    width = len(witness.weight[0]) if height else 0
    rows = [i for i in range(height) if height <= WIDE or any(any(w[i]) for w in states)]
    moving = witness.inputs if witness.inputs and any(trace.inputs for trace in witness.traces) else ()
    columns = [
        j
        for j in range(width)
        if width <= WIDE or any(row[j] for w in states for row in w) or (moving and any(moving[j]))
    ]
    rows, columns = rows or [0][:height], columns or [0][:width]
    hidden = len(rows) > MOST or len(columns) > MOST
    labelled = len(rows) < height or len(columns) < width or hidden
    parts = []
    for what, shown, there in (("row", rows, height), ("column", columns, width)):
        if len(shown) > MOST:
            parts.append(f"the first {MOST} of the {len(shown)} {what}s with weights other than 0")
        elif len(shown) < there:
            parts.append(f"{len(shown)} of {there} {what}s; the weights of the others are 0 throughout")
    left_out = "Shown: " + ", and ".join(parts) + "." if parts else ""
    return Window(tuple(rows[:MOST]), tuple(columns[:MOST]), labelled, left_out)


def entry(value: Fraction, longest: int = LONGEST) -> str:
    """A number exactly, or its decimal value where that is too long to read."""
    text = str(value)
    return text if len(text) <= longest else f"≈{decimal(value, 6)}"


def decimal(value: Fraction, digits: int = 9) -> str:
    """The nearest float."""
    try:
        return f"{float(value):.{digits}g}"
    except OverflowError:
        return "beyond floats"


def rounded(witness: Witness) -> bool:
    """Whether some number is too long to be shown exactly."""
    matrices = [witness.weight, *([witness.inputs] if witness.inputs else [])]
    matrices += [weight for trace in witness.traces for _, weight in trace.steps]
    matrices += [inputs for trace in witness.traces for _, inputs in trace.changed_inputs()]
    losses = [trace.loss for trace in witness.traces if trace.loss is not None]
    return any(len(str(x)) > LONGEST for matrix in matrices for row in matrix for x in row) or any(
        len(str(x)) > LONGEST_LOSS for x in losses
    )


def changed(trace: Trace, step: int, row: int, column: int) -> bool:
    """Whether this weight is another one after the step than before it."""
    if step == 0:
        return False
    after: Matrix = trace.steps[step][1]
    return after[row][column] != trace.steps[step - 1][1][row][column]


def size(matrix: Matrix) -> str:
    """Such as "2 x 4"."""
    return f"{len(matrix)} x {len(matrix[0]) if matrix else 0}"

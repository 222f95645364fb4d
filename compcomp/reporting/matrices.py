"""Choose which part of a witness to show, and write its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from compcomp.language.verdict import Matrix, Trace, Witness

WIDE = 8
"""In layers with more rows or columns than this, only nonzero ones are shown."""
MOST = 32
"""The most rows or columns that are shown."""
LONGEST, LONGEST_LOSS = 13, 40
"""The most characters of a fraction that is shown exactly: of a weight, and of a loss."""


@dataclass(frozen=True)
class Window:
    """Hold the rows and columns of a witness that are shown. Every other weight is 0 at every step.

    Attributes:
        rows: The indices of the rows, from 0.
        columns: The indices of the columns, from 0.
        labelled: True if some are left out, so that indices have to be shown.
        left_out: A sentence that says which are left out, empty if none are.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    labelled: bool
    left_out: str


def window(witness: Witness) -> Window:
    """Return the part of the witness to show: all of a small layer, else the rows and columns with nonzero weights.

    If steps change the inputs, every feature with inputs is shown too, as it may share a scale with others.
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
    """Return a number exactly, or its decimal value if the exact one is longer than ``longest`` characters."""
    text = str(value)
    return text if len(text) <= longest else f"≈{decimal(value, 6)}"


def decimal(value: Fraction, digits: int = 9) -> str:
    """Return the nearest float as text."""
    try:
        return f"{float(value):.{digits}g}"
    except OverflowError:
        return "beyond floats"


def rounded(witness: Witness) -> bool:
    """Return True if some number is too long to be shown exactly."""
    matrices = [witness.weight, *([witness.inputs] if witness.inputs else [])]
    matrices += [weight for trace in witness.traces for _, weight in trace.steps]
    matrices += [inputs for trace in witness.traces for _, inputs in trace.changed_inputs()]
    losses = [trace.loss for trace in witness.traces if trace.loss is not None]
    return any(len(str(x)) > LONGEST for matrix in matrices for row in matrix for x in row) or any(
        len(str(x)) > LONGEST_LOSS for x in losses
    )


def changed(trace: Trace, step: int, row: int, column: int) -> bool:
    """Return True if the step changed this weight."""
    if step == 0:
        return False
    after: Matrix = trace.steps[step][1]
    return after[row][column] != trace.steps[step - 1][1][row][column]


def size(matrix: Matrix) -> str:
    """Return the size of a matrix as text, such as "2 x 4"."""
    return f"{len(matrix)} x {len(matrix[0]) if matrix else 0}"

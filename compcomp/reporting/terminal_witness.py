"""Show a counterexample step by step in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compcomp.language.verdict import Matrix, Trace, Witness
from compcomp.reporting import matrices

ENTRIES = 24
"""Weights of a wide layer that are listed."""


def witness_view(witness: Witness, refutes: bool) -> RenderableType:
    """Return a view of a witness: the weights after each step, the inputs that a step changes, and the losses.

    Args:
        witness: The witness.
        refutes: True for a counterexample, False for a suspect that floats do not confirm.
    """
    window = matrices.window(witness)
    what = "Counterexample" if refutes else "Suspect, not confirmed in floats"
    head = Text(what, style="bold").append(f": a layer of {matrices.size(witness.weight)} (out x in)", "not bold")
    if witness.seed is not None:
        head.append(f", free choices from seed {witness.seed}", "not bold")
    parts: list[RenderableType] = [head]
    if window.left_out:
        parts.append(Text(window.left_out, style="dim"))
    if witness.inputs is not None:
        parts.append(Padding(_inputs("inputs", witness.inputs, window), (1, 0, 0, 0)))
    entries = len(window.rows) * len(window.columns)
    by_entry = window.labelled or len(window.columns) > matrices.WIDE
    for trace in witness.traces:
        parts.append(Padding(Text(trace.sequence, style="bold"), (1, 0, 0, 0)))
        view = _entries(trace, window) if by_entry else _steps(trace, window, witness)
        parts.append(Padding(view, (0, 0, 0, 2)))
        if by_entry and entries > ENTRIES:
            parts.append(Text(f"  and {entries - ENTRIES} more weights", style="dim"))
        for name, inputs in trace.changed_inputs():
            parts.append(Padding(_inputs(f"inputs after {name}", inputs, window), (0, 0, 0, 2)))
    if any(trace.loss is not None for trace in witness.traces):
        parts.append(Padding(_losses(witness), (1, 0, 0, 0)))
    if matrices.rounded(witness):
        parts.append(Text("≈ stands for a fraction too long to show; the witness holds it exactly.", style="dim"))
    parts.append(Padding(Text(f"So {witness.reason}."), (1, 0, 0, 0)))
    return Group(*parts)


def numbers(table: Table, count: int) -> None:
    """Add columns of numbers."""
    for _ in range(count):
        table.add_column(justify="right", no_wrap=True)


def _inputs(what: str, inputs: Matrix, window: matrices.Window) -> RenderableType:
    tokens = len(inputs[0]) if inputs else 0
    shown = min(tokens, matrices.WIDE)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    numbers(table, shown)
    for i in window.columns:
        table.add_row(Text(f"feature {i}"), *(Text(matrices.entry(x)) for x in inputs[i][:shown]))
    more = "; the features of the columns shown" if len(window.columns) < len(inputs) else ""
    more += f"; the first {shown} tokens" if shown < tokens else ""
    head = Text(what).append(f" (in x tokens, {matrices.size(inputs)}{more})", "dim")
    return Group(head, Padding(table, (0, 0, 0, 2)))


def _steps(trace: Trace, window: matrices.Window, witness: Witness) -> RenderableType:
    """Return the whole weight after each step, aligned over all steps and sequences. Changed weights are bold."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", overflow="fold")
    for j in window.columns:
        values = (row[j] for t in witness.traces for _, weight in t.steps for row in weight)
        table.add_column(justify="right", no_wrap=True, min_width=max(len(matrices.entry(x)) for x in values))
    for k, (name, weight) in enumerate(trace.steps):
        for i in window.rows:
            cells = [
                Text(
                    matrices.entry(weight[i][j]),
                    style="bold cyan" if matrices.changed(trace, k, i, j) else "",
                )
                for j in window.columns
            ]
            table.add_row(Text("" if i else _after(name)), *cells)
        if k + 1 < len(trace.steps) and len(window.rows) > 1:
            table.add_row()
    return table


def _entries(trace: Trace, window: matrices.Window) -> RenderableType:
    """Return a table with one line for each weight, and one column for each step."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for _ in trace.steps:
        table.add_column(justify="right", overflow="fold")
    table.add_row(Text("row, column"), *(Text(_after(name), style="dim") for name, _ in trace.steps))
    for i, j in [(i, j) for i in window.rows for j in window.columns][:ENTRIES]:
        cells = [
            Text(matrices.entry(weight[i][j]), style="bold cyan" if matrices.changed(trace, k, i, j) else "")
            for k, (_, weight) in enumerate(trace.steps)
        ]
        table.add_row(Text(f"{i}, {j}"), *cells)
    return table


def _after(name: str) -> str:
    return name if name == "dense" else f"after {name}"


def _losses(witness: Witness) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    numbers(table, 3)
    table.add_row(*(Text(t, style="dim") for t in ("loss of", "exact", "as float", "torch float64")))
    for trace in witness.traces:
        exact = "" if trace.loss is None else matrices.entry(trace.loss, matrices.LONGEST_LOSS)
        decimal = "" if trace.loss is None else matrices.decimal(trace.loss)
        torch = "" if trace.torch_loss is None else f"{trace.torch_loss:.9g}"
        table.add_row(Text(trace.sequence), Text(exact, style="bold"), Text(decimal), Text(torch))
    return table

"""Write verdicts in HTML: rows that open to show all details, a counterexample step by step."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from html import escape

from compcomp.language.verdict import Matrix, Status, Trace, Verdict, Witness
from compcomp.reporting import matrices, summary

AT_ONCE = 40
"""Rows of a list that are open. The others are behind a click."""
AT_ALL = 1000
"""The most rows of a list that are written."""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text. ``kind`` is its class in the style sheet."""
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


def code(text: str) -> str:
    """Return plain text as code."""
    return f"<code>{escape(text)}</code>"


def folded(rows: list[str], before: str, after: str, what: str) -> str:
    """Return a list whose tail is behind a click, and whose far end is only counted.

    Args:
        rows: The items as HTML.
        before: HTML before each part of the list.
        after: HTML after each part of the list.
        what: The name of the items, in the plural.
    """
    shown, more, left = rows[:AT_ONCE], rows[AT_ONCE:AT_ALL], rows[AT_ALL:]
    text = before + "".join(shown) + after
    if more:
        text += f"<details><summary>{len(more):,} more {what}</summary>{before}{''.join(more)}{after}</details>"
    return text + (paragraph(f"{len(left):,} more {what} are not listed.", "soft") if left else "")


def verdict_list(verdicts: Iterable[Verdict]) -> str:
    """Return a list with one row for each claim, decided claims first.

    Each row opens to show its witness, assumptions and queries.
    """
    shown = summary.numbered(verdicts)
    if not shown.verdicts:
        return paragraph("No claims were decided.")
    head = "".join(
        f'<span class="{kind}">{name}</span>'
        for name, kind in (
            ("status", ""),
            ("claim", ""),
            ("loss", "small"),
            ("reach", "small"),
            ("decided by", "small"),
            ("assumptions", "small"),
        )
    )
    text = paragraph(
        summary.tally(shown.verdicts) + ". Open a row for its witness, assumptions and solver queries.",
        "soft",
    )
    text += f'<div class="verdicts"><div class="row head">{head}</div>'
    text += folded([_verdict(v, shown) for v in shown.verdicts], "", "", "claims") + "</div>"
    if shown.assumptions:
        items = "".join(f"<li>{escape(str(a))}</li>" for a in shown.assumptions)
        text += f'<h3>Assumptions</h3><ol class="notes">{items}</ol>'
    return text


def _verdict(verdict: Verdict, shown: summary.Numbered) -> str:
    claim = verdict.claim
    numbers = ", ".join(map(str, shown.numbers(verdict)))
    cells = (
        f'<span class="status {verdict.status}">{verdict.status}</span>',
        f"<span>{_claim(verdict)}</span>",
        f'<span class="small">{escape(claim.loss.name if claim.loss else "")}</span>',
        f'<span class="small">{escape(verdict.reach or verdict.scope.describe())}</span>',
        f'<span class="small">{escape(summary.decided_by(verdict))}</span>',
        f'<span class="small">{numbers or ("none" if verdict.proved else "")}</span>',
    )
    row = f'<summary class="row">{"".join(cells)}</summary>'
    return f'<details class="verdict">{row}<div class="inside">{_inside(verdict)}</div></details>\n'


def _claim(verdict: Verdict) -> str:
    claim = verdict.claim
    given = ", ".join(map(str, claim.given))
    after = f'<br><span class="verb">given</span> {escape(given)}' if given else ""
    verb = f'<span class="verb">{escape(claim.verb)}</span>'
    if len(claim.sides) == 1:
        return f"{code(str(claim.left))} {verb} {escape(claim.object)}{after}"
    return f"{code(str(claim.left))}<br>{verb} {code(claim.object)}{after}"


def _inside(verdict: Verdict) -> str:
    loss = verdict.claim.loss
    facts = [
        ("loss", f"{loss.name} = {loss.formula}" if loss else ""),
        ("asked for", verdict.scope.describe()),
        ("grade", "" if verdict.refuted else summary.graded(verdict)),
        ("stage", verdict.stage),
        ("cause", verdict.cause),
        ("needs", "" if verdict.needed is None else ", ".join(verdict.needed) or "none of its conditions"),
        ("work", summary.worked(verdict)),
    ]
    rows = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in facts if v)
    text = f'<table class="plain">{rows}</table>'
    if others := summary.missed(verdict):
        items = "".join(f"<li>{escape(str(refusal))}</li>" for refusal in others)
        text += f"<h4>Why other rules do not prove it</h4><ul>{items}</ul>"
    if verdict.assumptions:
        items = "".join(f"<li>{escape(str(a))}</li>" for a in verdict.assumptions)
        text += f"<h4>Assumptions</h4><ul>{items}</ul>"
    if verdict.witness is not None:
        text += _witness(verdict.witness, verdict.status)
    if verdict.queries:
        head = "<tr><th>SMT-LIB query</th><th>needs</th><th>answer</th><th>solver</th><th>resource count</th></tr>"
        rows = "".join(
            f"<tr><td>{escape(q.name)}</td><td>{escape(q.expected)}</td><td>{escape(q.answer)}</td>"
            f'<td>{escape(q.solver)}</td><td class="n">{q.rlimit:,}</td></tr>'
            for q in verdict.queries
        )
        text += f'<h4>Solver queries</h4><div class="scroll"><table class="plain">{head}{rows}</table></div>'
    return text


def _witness(witness: Witness, status: Status) -> str:
    window = matrices.window(witness)
    what = "Counterexample" if status is Status.REFUTED else "Suspect, not confirmed in floats"
    seed = "" if witness.seed is None else f", free choices from seed {witness.seed}"
    text = f"<h4>{what}</h4>" + paragraph(
        f"A layer of {matrices.size(witness.weight)} (out x in){seed}. {window.left_out}"
    )
    if witness.inputs is not None:
        text += f'<div class="trace">{_inputs("inputs (in x tokens)", witness.inputs, window)}</div>'
    for trace in witness.traces:
        changed = "".join(_inputs(f"inputs after {name}", inputs, window) for name, inputs in trace.changed_inputs())
        text += f'<p>{code(trace.sequence)}</p><div class="trace">{_steps(trace, window)}{changed}</div>'
    if any(trace.loss is not None for trace in witness.traces):
        text += _losses(witness)
    if matrices.rounded(witness):
        text += paragraph("≈ stands for a fraction too long to show; the witness holds it exactly.", "soft")
    return text + paragraph(f"So {witness.reason}.")


def _inputs(caption: str, inputs: Matrix, window: matrices.Window) -> str:
    tokens = range(min(len(inputs[0]), matrices.MOST) if inputs else 0)
    cells = [[(inputs[i][t], False) for t in tokens] for i in window.columns]
    table = _matrix(cells, window.columns if window.labelled else (), ())
    return f"<figure><figcaption>{escape(caption)}</figcaption>{table}</figure>"


def _steps(trace: Trace, window: matrices.Window) -> str:
    figures = []
    for k, (name, weight) in enumerate(trace.steps):
        cells = [[(weight[i][j], matrices.changed(trace, k, i, j)) for j in window.columns] for i in window.rows]
        rows, columns = (window.rows, window.columns) if window.labelled else ((), ())
        caption = escape(name if k == 0 else f"after {name}")
        figures.append(f"<figure><figcaption>{caption}</figcaption>{_matrix(cells, rows, columns)}</figure>")
    return "".join(figures)


def _matrix(cells: list[list[tuple[Fraction, bool]]], rows: tuple[int, ...], columns: tuple[int, ...]) -> str:
    head = "".join(f"<th>{j}</th>" for j in columns)
    lines = [f"<tr>{'<th></th>' if rows else ''}{head}</tr>"] if columns else []
    for k, line in enumerate(cells):
        index = f"<th>{rows[k]}</th>" if rows else ""
        entries = "".join(
            f"<td{' class=changed' if changed else ''}>{escape(matrices.entry(x))}</td>" for x, changed in line
        )
        lines.append(f"<tr>{index}{entries}</tr>")
    return f'<table class="matrix">{"".join(lines)}</table>'


def _losses(witness: Witness) -> str:
    rows = ""
    for trace in witness.traces:
        exact = "" if trace.loss is None else matrices.entry(trace.loss, matrices.LONGEST_LOSS)
        decimal = "" if trace.loss is None else matrices.decimal(trace.loss)
        torch = "" if trace.torch_loss is None else f"{trace.torch_loss:.9g}"
        cells = "".join(f'<td class="n">{escape(x)}</td>' for x in (exact, decimal, torch))
        rows += f"<tr><td>{code(trace.sequence)}</td>{cells}</tr>"
    titles = "".join(f'<th class="n">{name}</th>' for name in ("exact", "as float", "torch float64"))
    return f'<div class="scroll"><table class="plain"><tr><th>loss of</th>{titles}</tr>{rows}</table></div>'

"""Show an audit in a terminal and as a page."""

from __future__ import annotations

from html import escape

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from compcomp.auditing.audit import Audit
from compcomp.language.verdict import Status, Verdict
from compcomp.reporting.html_verdicts import paragraph, verdict_list
from compcomp.reporting.terminal_witness import witness_view

COLOURS = {"PROVED": "green", "KEPT": "green", "REFUTED": "red", "BROKEN": "red"}


def view(audit: Audit) -> RenderableType:
    """Return the audit as text, with the small layer of the first refuted promise of each step."""
    *lines, last = str(audit).split("\n")
    parts: list[RenderableType] = [_coloured(line) for line in lines]
    for verdict in _shown(audit):
        assert verdict.witness is not None
        parts.append(Padding(witness_view(verdict.witness, refutes=True), (1, 0, 0, 2)))
    return Group(*parts, Text(), _coloured(last))


def _coloured(line: str) -> Text:
    status = line.split(":", 1)[0].strip()
    return Text(line, style=COLOURS.get(status, ""))


def _shown(audit: Audit) -> list[Verdict]:
    """Return for each step the counterexample of what a reader sees best: n:m before the mask before others."""
    rank = {"n:m": 0, "mask": 1}
    found: dict[tuple[int, int], tuple[int, Verdict]] = {}
    for number, order in enumerate(audit.orders):
        for promise in order.promises:
            if promise.status != Status.REFUTED or promise.answer is None or promise.answer.verdict.witness is None:
                continue
            key, place = (number, promise.step), rank.get(promise.invariant, 2)
            if key not in found or place < found[key][0]:
                found[key] = place, promise.answer.verdict
    return [verdict for _, verdict in found.values()]


def page(audit: Audit) -> str:
    """Return a page that needs nothing from outside: the report, and each claim with its evidence."""
    verdicts: dict[str, Verdict] = {}
    for order in audit.orders:
        answers = [p.answer for p in order.promises] + [r.answer for r in order.relations]
        answers += [answer for change in order.changes for answer in change.answers]
        verdicts |= {f"{a.verdict.claim} {a.verdict.claim.loss}": a.verdict for a in answers if a is not None}
    style = "body{font:15px/1.5 sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}pre{white-space:pre-wrap}"
    style += ".row{display:flex;gap:1rem}table{border-collapse:collapse}td{padding:0 .5rem;text-align:right}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Audit of {escape(audit.file)}</title><style>{style}</style></head><body>"
        f"<h1>Audit of {escape(audit.file)}</h1>{paragraph(audit.verdict)}"
        f"<pre>{escape(str(audit))}</pre><h2>Claims</h2>{verdict_list(verdicts.values())}</body></html>\n"
    )

"""Show plans and verdicts in a terminal, through rich. Piped output has the same layout without colours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from compcomp.language.refusal import RuleAnswer
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.plan import NOT_ACCURACY
from compcomp.reporting import summary
from compcomp.reporting.terminal_witness import numbers, witness_view

if TYPE_CHECKING:
    from compcomp.ordering.plan import PlanData

COLOURS = {
    Status.PROVED: "green",
    Status.REFUTED: "red",
    Status.UNKNOWN: "yellow",
    Status.VACUOUS: "magenta",
    Status.DISAGREE: "bold magenta",
}
WIDE = 118
"""The width from which on a table of verdicts has a column for each fact."""
RANKED = 24
"""Measured orders that are listed. The HTML report lists all."""
REASONS, ORDERS = 4, 6
"""Reasons for excluding orders that are listed, and orders for each of them."""


class _Portable:
    """Show the content in characters that the output can write, as not every pipe takes UTF-8."""

    TRANSLATION = str.maketrans(dict(zip("█▉▊▋▌▍▎▏▐▕─━│×≈•→", "#####   # --|x~*>", strict=True)))

    def __init__(self, held: RenderableType) -> None:
        self.held = held

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in Segment.split_lines(console.render(self.held, options)):
            if not console.is_terminal:
                while line and not line[-1].text.rstrip():
                    line.pop()
                if line:
                    line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
            for text, style, control in line:
                if options.ascii_only and not control:
                    text = text.translate(self.TRANSLATION)
                    text = text.encode(options.encoding, "replace").decode(options.encoding)
                yield Segment(text, style, control)
            yield Segment.line()


OTHER_RULES = 4
"""Rules of an unknown claim whose reasons are shown, in addition to the nearest one."""


# ------------------------------------------------------------------------------------------- one verdict


def verdict_view(verdict: Verdict) -> RenderableType:
    """Return a view of one verdict, with its witness step by step."""
    claim = verdict.claim
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")

    def fact(name: str, value: str) -> None:
        if value:
            facts.add_row(Text(name), Text(value))

    if claim.loss is not None:
        fact("loss", f"{claim.loss.name} = {claim.loss.formula}")
    asked = verdict.scope.describe()
    fact("asked for", asked)
    if verdict.reach and verdict.reach != asked:
        fact("holds for" if verdict.proved else "reaches", verdict.reach)
    if verdict.status not in (Status.UNKNOWN, Status.DISAGREE):
        stage = f" ({verdict.stage})" if verdict.stage and verdict.stage not in summary.decided_by(verdict) else ""
        replayed = ", replayed in exact arithmetic and in torch" if verdict.refuted and verdict.witness else ""
        fact("decided by", summary.decided_by(verdict) + stage + replayed)
    if verdict.status is not Status.VACUOUS:
        fact("cause", verdict.cause)
    for k, refusal in enumerate(summary.missed(verdict)[:OTHER_RULES]):
        fact("" if k else "other rules", str(refusal))
    if not verdict.refuted:
        fact("grade", summary.graded(verdict))
    for k, assumption in enumerate(verdict.assumptions):
        facts.add_row(Text("" if k else "assuming"), Text(f"• {assumption}"))
    if verdict.needed is not None:
        fact("needs", ", ".join(verdict.needed) or "none of its conditions")
    for note in verdict.notes:
        fact("note", note)
    fact("work", summary.worked(verdict))
    parts: list[RenderableType] = [_heading(verdict), Padding(facts, (1, 0, 0, 2))]
    if verdict.witness is not None:
        parts.append(Padding(witness_view(verdict.witness, verdict.refuted), (1, 0, 0, 2)))
    return _Portable(Group(*parts))


def answers_view(answers: Iterable[RuleAnswer]) -> RenderableType:
    """Return a view of the needs of each rule for a claim, and of what is missing."""
    parts: list[RenderableType] = []
    asked = list(answers)
    other = dict.fromkeys(a.rule for a in asked if a.refusal is not None and a.refusal.about_other_claims)
    for answer in (a for a in asked if a.rule not in other):
        about = f" for {answer.part}" if answer.part else ""
        parts.append(Text(f"{answer.rule}{about}", style="bold"))
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for name, value in answer.lines:
            rows.add_row(Text(name), Text(value))
        parts.append(Padding(rows, (0, 0, 1, 2)))
    if other:
        parts.append(Text(f"About other kinds of claims: {', '.join(other)}.", style="dim"))
    return _Portable(Group(*parts))


def _heading(verdict: Verdict) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    row.add_column(no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(_status(verdict.status), _claim(verdict))
    return row


def _status(status: Status) -> Text:
    return Text(str(status), style=f"bold {COLOURS[status]}")


def _claim(verdict: Verdict, bold: bool = True) -> Text:
    """Return the claim on two lines, one for each side."""
    claim = verdict.claim
    style = "bold" if bold else ""
    text = Text(str(claim.left), style=style)
    text.append(f"\n{claim.verb} ", "not bold cyan")
    text.append(claim.object, "not bold" if len(claim.sides) == 1 else style)
    if claim.given:
        text.append("\ngiven ", "not bold cyan").append(", ".join(map(str, claim.given)), "not bold")
    return text


# -------------------------------------------------------------------------------------- many verdicts


def verdict_table(verdicts: Iterable[Verdict], limit: int = 40) -> RenderableType:
    """Return a table of verdicts, one row for each claim, decided claims first.

    Args:
        verdicts: The verdicts.
        limit: The most rows. The other verdicts are counted by status.
    """
    return _Portable(_VerdictTable(summary.numbered(verdicts), limit))


class _VerdictTable:
    """Show a column for each fact if there is room, else one line of facts under the claim."""

    def __init__(self, shown: summary.Numbered, limit: int) -> None:
        self.verdicts, self.rest = shown.verdicts[:limit], shown.verdicts[limit:]
        self.shown = summary.numbered(self.verdicts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.verdicts:
            yield Text("No claims.", style="dim")
            return
        yield self._wide() if options.max_width >= WIDE else self._narrow()
        if self.rest:
            yield Text(f"and {len(self.rest):,} more: {summary.tally(self.rest)}", style="dim")
        if self.shown.assumptions:
            yield Text("Assumptions", style="dim")
            notes = Table.grid(padding=(0, 1))
            notes.add_column(justify="right", no_wrap=True, style="dim")
            notes.add_column(overflow="fold")
            for k, assumption in enumerate(self.shown.assumptions, 1):
                notes.add_row(Text(f" [{k}]"), Text(str(assumption)))
            yield notes

    def _numbers(self, verdict: Verdict) -> str:
        numbers = self.shown.numbers(verdict)
        return f"{len(numbers)} [{', '.join(map(str, numbers))}]" if numbers else "none" if verdict.proved else ""

    def _wide(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("status", no_wrap=True)
        table.add_column("claim", ratio=1, overflow="fold")
        table.add_column("loss", no_wrap=True)
        table.add_column("reach", overflow="fold", max_width=16)
        table.add_column("decided by", overflow="fold", max_width=26)
        table.add_column("assumptions", no_wrap=True)
        for v in self.verdicts:
            table.add_row(
                _status(v.status),
                _claim(v, bold=False),
                Text(v.claim.loss.name if v.claim.loss else ""),
                Text(v.reach or v.scope.describe()),
                Text(summary.decided_by(v)),
                Text(self._numbers(v)),
            )
        return table

    def _narrow(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for v in self.verdicts:
            facts = [v.claim.loss.name if v.claim.loss else "", v.reach or v.scope.describe()]
            numbers = self._numbers(v)
            facts += [summary.decided_by(v), f"assumptions: {numbers}" if numbers else ""]
            claim = _claim(v, bold=False)
            table.add_row(_status(v.status), claim.append("\n" + "; ".join(filter(None, facts)), "dim"))
        return table


# ------------------------------------------------------------------------------------------------ plans


def plan_view(plan: PlanData) -> RenderableType:
    """Return a view of a plan: the best order, how it is known to be best, and the outcome of every other order."""
    names = summary.named(plan)
    ranked = summary.ranking(plan, names)
    parts: list[RenderableType] = [_best(plan)]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row(Text("orders"), Text(summary.counted(plan)))
    facts.add_row(Text("applied"), Text(summary.applied(plan)))
    facts.add_row(Text("claims"), Text(summary.tally(plan.verdicts)))
    if plan.compression_rate is not None:
        facts.add_row(Text("compressed"), Text(f"{plan.compression_rate:.1%} smaller{plan.of_model}"))
    if "total" in plan.seconds:
        facts.add_row(Text("took"), Text(f"{plan.seconds['total']:.3g} s"))
    for note in plan.remarks:
        facts.add_row(Text("note"), Text(note))
    parts.append(Padding(facts, (1, 0, 0, 2)))
    if ranked.rows:
        parts += [Padding(_compared(ranked), (1, 0, 0, 2)), _rule("Ranking"), _Ranked(ranked, plan, names)]
    parts += _under_conditions(plan, names)
    if summary.sizes_differ(plan):
        parts += [_rule("Metric and size" if plan.metric else "Loss and size"), _front(plan, names)]
    parts += _accounts(plan, names)
    parts.append(Padding(Text(NOT_ACCURACY, style="bold"), (1, 0, 0, 0)))
    return _Portable(Group(*parts))


def _rule(title: str) -> RenderableType:
    return Padding(Rule(Text(title, style="bold"), align="left", style="dim"), (1, 0, 0, 0))


def _best(plan: PlanData) -> RenderableType:
    steps = Table.grid(padding=(0, 1))
    steps.add_column(justify="right", style="dim", no_wrap=True)
    steps.add_column(overflow="fold")
    for k, technique in enumerate(plan.order, 1):
        steps.add_row(Text(f"{k}."), Text(str(technique), style="bold"))
    colour = "green" if plan.optimality == "proved" else "yellow"
    return Group(
        Text("Best order", style="bold"),
        Padding(steps, (0, 0, 0, 2)),
        Text(summary.headline(plan), style=f"bold {colour}"),
    )


def _compared(ranked: summary.Ranking) -> RenderableType:
    """Return the values of the dense model, the best order and the worst, side by side."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    numbers(table, 2)
    dense = ranked.dense is not None
    table.add_row(Text(""), Text(ranked.what, style="dim"), Text("against dense" if dense else "", style="dim"))
    if dense:
        table.add_row(Text("dense model"), Text(summary.number(ranked.dense)), Text(""))
    for name, row in (("best order", ranked.rows[0]), ("worst order", ranked.worst or ranked.rows[-1])):
        style = "bold" if name == "best order" else ""
        table.add_row(Text(name), Text(row.shown, style), Text(summary.ratio(row.times_dense)))
    return table


class _Ranked:
    """Show the measured orders with their bars, which take the room that the names leave."""

    def __init__(self, ranked: summary.Ranking, plan: PlanData, names: summary.Names) -> None:
        self.ranked, self.plan, self.names = ranked, plan, names

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self.ranked.rows[:RANKED]
        where = "the model" if self.plan.measured_on == "model" else "generated layers, not on a model"
        yield Text(f"{self.ranked.caption}. Measured on {where}.", style="dim")
        names = {row.order: row.short for row in shown}
        if max(map(len, names.values())) + 32 > options.max_width:
            yield Text(f"Names: {self.names.legend()}.", style="dim")
            names = {row.order: self.names.initialled(row.order) for row in shown}
        bounds = {row.order: summary.spread(row.interval) for row in shown}
        if longest := max(map(len, bounds.values())):
            stopped = any(row.parts is not None for row in shown)
            estimates = "; ≈ is an estimate, of an order whose measurement was stopped early" if stopped else ""
            yield Text(f"Next to each value is its interval{estimates}.", style="dim")
        width = max(10, min(40, options.max_width - max(map(len, names.values())) - 26 - longest))
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, style="dim")
        if longest:
            table.add_column(no_wrap=True, style="dim")
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for row in shown:
            table.add_row(
                Text(str(row.place)),
                Text(row.shown, style="bold" if row.place == 1 else ""),
                Text(summary.ratio(row.times_dense)),
                *([Text(bounds[row.order])] if longest else []),
                self._bar(row, width),
                Text(names[row.order], style="bold" if row.place == 1 else ""),
            )
        yield Padding(table, (0, 0, 0, 2))
        if more := len(self.ranked.rows) - len(shown):
            last = self.ranked.rows[-1]
            yield Text(f"  and {more} more; the last is {summary.number(last.value)}, {last.short}", style="dim")

    def _bar(self, row: summary.Row, width: int) -> RenderableType:
        if row.bar is None:
            return Text("no number", style="dim")
        if row.bar[0] == row.bar[1]:
            return Text("")
        return Bar(1.0, *row.bar, width=width, color="green" if row.place == 1 else "blue")


def _under_conditions(plan: PlanData, names: summary.Names) -> list[RenderableType]:
    """Return the pairs that are proved under conditions, with their outcome on the model."""
    rows = summary.under_conditions(plan, names)
    if not rows:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("claim", ratio=2, overflow="fold")
    table.add_column("given", overflow="fold")
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("outcome", ratio=2, overflow="fold")
    for row in rows:
        claim = Text(row.left).append("\ndominates ", "cyan").append(row.right)
        given = Text(row.given).append(f"\n{row.groups} of the groups", "dim")
        table.add_row(claim, given, Text(row.holds_on), Text(row.outcome, style="green" if row.good else ""))
    said = Text(summary.UNDER_CONDITIONS_SAY, style="dim")
    return [_rule("Under conditions"), said, Padding(table, (1, 0, 0, 2))]


def _front(plan: PlanData, names: summary.Names) -> RenderableType:
    """Return the orders of the Pareto front, the smallest model first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in plan.pareto:
        style = "bold" if one is plan.best else ""
        rate = f"{one.rate:.1%} smaller"
        table.add_row(Text(rate, style), Text(plan.value(one), style), Text(names(one.text), style))
    head = Text("No other order is as good in both.", style="dim")
    return Group(head, Padding(table, (0, 0, 0, 2)))


def _accounts(plan: PlanData, names: summary.Names) -> list[RenderableType]:
    """Return the outcome of the orders that were not measured, by reason."""
    groups = summary.grouped(plan, names)
    if not groups:
        return []
    parts: list[RenderableType] = [_rule("What proofs excluded")]
    for kind in ("merged", "dropped"):
        found = [g for g in groups if g.kind == kind]
        if not found:
            continue
        count = summary.orders_of(sum(len(g.outcomes) for g in found))
        head = Text(f"{kind}: {count}", style="bold").append(f", {summary.OUTCOMES_MEAN[kind]}", "not bold")
        parts.append(head)
        for group in found[:REASONS]:
            parts.append(Padding(_group(group, names), (0, 0, 0, 2)))
        if len(found) > REASONS:
            rest = sum(len(g.outcomes) for g in found[REASONS:])
            parts.append(Text(f"  and {summary.orders_of(rest)} in {len(found) - REASONS} more groups", "dim"))
    return parts


def _group(group: summary.Group, names: summary.Names) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    title = Text(group.reason, style="cyan").append(f": {summary.orders_of(len(group.outcomes))}", "default")
    table.add_row(Text("•", style="dim"), title)
    for one in group.outcomes[:ORDERS]:
        other = f"\n  {summary.STANDS_FOR[group.kind]} {names(str(one.by))}"
        table.add_row(Text(""), Text(names(str(one.order))).append(other, "dim"))
    if len(group.outcomes) > ORDERS:
        table.add_row(Text(""), Text(f"and {summary.orders_of(len(group.outcomes) - ORDERS)} more", style="dim"))
    return table

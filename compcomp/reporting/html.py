"""Write a plan as one self-contained HTML file: style and pictures inside, no scripts, no network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from compcomp.errors import InputError
from compcomp.ordering.plan import NOT_ACCURACY
from compcomp.reporting import summary
from compcomp.reporting.drawing import drawable, orderings_svg
from compcomp.reporting.front import front_svg
from compcomp.reporting.html_verdicts import code, folded, paragraph, verdict_list

if TYPE_CHECKING:
    from compcomp.ordering.plan import PlanData

BOUNDS = {"interval": ("interval", summary.spread), "behind": ("behind the best", summary.behind)}
"""Columns for orders that were measured part by part: a heading, and the function that writes the bounds."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(plan: PlanData, path: str | Path) -> None:
    """Write the plan as a page to this path. Its folder is created.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(page(plan).encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{str(path)!r} ({error.strerror})", "a file to write to", "write_report") from None


def page(plan: PlanData) -> str:
    """Return the page as text."""
    names = summary.named(plan)
    ranked = summary.ranking(plan, names)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = escape(names(str(plan.order)))
    body = "".join(
        (
            _head(plan, names, ranked),
            _section("The orderings", _drawn(plan, names, ranked)),
            _section("Measured orders", _ranking(plan, ranked)),
            _front(plan, names) if summary.sizes_differ(plan) else "",
            _section("Verdicts", verdict_list(plan.verdicts)),
            _section("Under conditions", _under_conditions(plan, names)) if plan.conditional else "",
            _section("What proofs excluded", _accounts(plan, names)),
            _foot(plan),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>\n<style>\n{style}</style></head>\n<body><main>\n{body}</main></body></html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{inside}</section>\n"


# ----------------------------------------------------------------------------------------------- the plan


def _head(plan: PlanData, names: summary.Names, ranked: summary.Ranking) -> str:
    kind = "standing proved" if plan.optimality == "proved" else "standing"
    done, full = plan.applications["done"], plan.applications["full_tree"]
    tiles = [*_compared(ranked), ("techniques applied", f"{done:,}", f"of {full:,} times")]
    if plan.compression_rate is not None:
        tiles.append(("compression", f"{plan.compression_rate:.1%}", "smaller" + plan.of_model))
    boxes = "".join(
        f'<div class="tile"><div class="soft">{escape(name)}</div><div class="figure">{escape(figure)}'
        f"<small>{escape(unit)}</small></div></div>"
        for name, figure, unit in tiles
    )
    return (
        f'<header><p class="over">The order in which to apply {len(plan.order)} compression techniques</p>\n'
        f"<h1>{escape(names(str(plan.order)).replace(' >> ', ' → '))}</h1>\n{paragraph(summary.headline(plan), kind)}"
        f'<div class="copy code">{escape(str(plan.order))}</div>\n'
        f'<div class="tiles">{boxes}</div>\n{paragraph(summary.counted(plan) + ".")}'
        f"{paragraph(summary.applied(plan) + '.', 'soft')}"
        f"{''.join(paragraph(note, 'soft') for note in plan.remarks)}{paragraph(NOT_ACCURACY, 'caution')}</header>\n"
    )


def _compared(ranked: summary.Ranking) -> list[tuple[str, str, str]]:
    """Return tiles for the dense model, the best order and the worst, side by side."""
    if not ranked.rows:
        return []
    tiles = []
    if ranked.dense is not None:
        tiles.append(("dense model", summary.number(ranked.dense), ranked.what))
    for name, row in (("best order", ranked.rows[0]), ("worst order", ranked.worst or ranked.rows[-1])):
        times = summary.ratio(row.times_dense)
        tiles.append((name, row.shown, f"{times} dense" if times else ranked.what))
    return tiles


def _drawn(plan: PlanData, names: summary.Names, ranked: summary.Ranking) -> str:
    if drawable(plan):
        legend = (
            "Each column applies one more technique. The thick path is the best order. The stronger the colour "
            "of a leaf, the better it measured; dashed ones are dropped by proof. Violet edges lead to a prefix "
            "that is proved to leave every layer in the same state; such prefixes are one node."
        )
    else:
        legend = (
            "There are too many orders to draw them all: this is the best one. Below each step stands how many "
            "classes of equal prefixes of that length there are."
        )
    return f'{paragraph(legend, "soft")}<div class="scroll">{orderings_svg(plan, names, ranked)}</div>\n'


def _ranking(plan: PlanData, ranked: summary.Ranking) -> str:
    if not ranked.rows:
        return paragraph("No order was measured.")
    where = "the model" if plan.measured_on == "model" else "generated layers, not on a model"
    bars = "distance" if ranked.dense is not None else ""
    head = f'<tr><th class="n">place</th><th>order</th><th>{bars}</th><th class="n">{escape(ranked.what)}</th>'
    head += '<th class="n">against dense</th>' if ranked.dense is not None else ""
    columns = [name for name in ("interval", "behind") if any(getattr(row, name) for row in ranked.rows)]
    head += "".join(f'<th class="n">{BOUNDS[name][0]}</th>' for name in columns)
    head += '<th class="n">compression</th></tr>' if any(row.rate is not None for row in ranked.rows) else "</tr>"
    notes = {one.text: one.note for one in plan.measurements if one.note}
    rows = [_row(row, ranked, columns, notes.get(row.order, "")) for row in ranked.rows]
    caption = f"{ranked.caption}. Measured on {where}."
    line = " The dashed line is the dense model." if ranked.dense is not None else ""
    if notes:
        line += " ≈ is an estimate: the order was stopped early, since it was surely worse; its title says by how much."
    if "behind" in columns:
        line += " Behind the best: the interval of the difference on the same parts, in the mean of the metric."
    before = f'<div class="scroll"><table class="ranking{" bounds" if columns else ""}"><thead>{head}</thead><tbody>'
    return paragraph(caption + line, "soft") + folded(rows, before, "</tbody></table></div>", "orders")


def _row(row: summary.Row, ranked: summary.Ranking, columns: list[str], note: str) -> str:
    length, titled = " long" if len(row.short) > 90 else "", f' title="{escape(note)}"' if note else ""
    cells = [
        f'<td class="n soft">{row.place}</td>',
        f'<td class="order{length}" title="{escape(row.order)}">{escape(row.short)}</td>',
        f'<td class="bar">{_bar(row, ranked)}</td>',
        f'<td class="n"><span{titled}>{escape(row.shown)}</span></td>',
    ]
    if ranked.dense is not None:
        cells.append(f'<td class="n">{escape(summary.ratio(row.times_dense))}</td>')
    cells += [f'<td class="n soft">{escape(BOUNDS[name][1](getattr(row, name)))}</td>' for name in columns]
    if row.rate is not None:
        cells.append(f'<td class="n soft">{row.rate:.1%}</td>')
    return f"<tr{' class=chosen' if row.place == 1 else ''}>{''.join(cells)}</tr>\n"


def _bar(row: summary.Row, ranked: summary.Ranking) -> str:
    if row.bar is None:
        return '<span class="soft">no number</span>'
    start, end = row.bar
    line = f'<line x1="{ranked.axis:.4f}" x2="{ranked.axis:.4f}" y1="0" y2="1"/>' if ranked.dense is not None else ""
    whisker = ""
    if row.whisker is not None:
        low, high = row.whisker
        ends = "".join(f"M{x:.4f} .34V.66" for x in (low, high))
        whisker = f'<path class="whisker" d="M{low:.4f} .5H{high:.4f}{ends}"/>'
    return (
        '<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect x="{start:.4f}" y=".18" width="{max(end - start, 0.002):.4f}" height=".64"/>{whisker}{line}</svg>'
    )


def _under_conditions(plan: PlanData, names: summary.Names) -> str:
    head = '<tr><th>claim</th><th>conditions</th><th class="n">weights on which they hold</th><th>outcome</th></tr>'
    rows = "".join(
        f'<tr><td>{code(row.left)}<br><span class="verb">dominates</span> {code(row.right)}</td>'
        f'<td>{escape(row.given)}<br><span class="soft">{escape(row.groups)} of the groups</span></td>'
        f'<td class="n">{escape(row.holds_on)}</td><td>{escape(row.outcome)}</td></tr>\n'
        for row in summary.under_conditions(plan, names)
    )
    table = f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{rows}</tbody></table></div>\n'
    return paragraph(summary.UNDER_CONDITIONS_SAY, "soft") + table


def _front(plan: PlanData, names: summary.Names) -> str:
    what = plan.metric or plan.loss
    said = (
        f"Each point is a measured order: {what} against the compression rate. No other order is as good in both as "
        "those on the line; the large one is the order to take."
    )
    rows = "".join(
        f"<tr{' class=chosen' if one is plan.best else ''}>"
        f'<td class="n">{one.rate:.1%}</td><td class="n">{escape(plan.value(one))}</td>'
        f'<td class="order">{escape(names(one.text))}</td></tr>\n'
        for one in plan.pareto
    )
    table = f'<div class="scroll"><table class="front"><tbody>{rows}</tbody></table></div>'
    picture = f'<div class="scroll">{front_svg(plan, names)}</div>'
    return _section(f"{what} and size", paragraph(said, "soft") + picture + table)


def _accounts(plan: PlanData, names: summary.Names) -> str:
    groups = summary.grouped(plan, names)
    if not groups:
        many = plan.orders["merged"] + plan.orders["dropped"]
        return paragraph(f"{summary.orders_of(many)}, too many to list." if many else "No proof excluded an order.")
    text = ""
    for kind in ("merged", "dropped"):
        found = [g for g in groups if g.kind == kind]
        if found:
            count = summary.orders_of(sum(len(g.outcomes) for g in found))
            text += f"<h3>{kind.capitalize()}: {count}</h3>"
            text += paragraph(f"{summary.OUTCOMES_MEAN[kind].capitalize()}.", "soft")
            text += folded([_group(g, names) for g in found], "", "", "groups")
    return text


def _group(group: summary.Group, names: summary.Names) -> str:
    verb = f' <span class="soft">{summary.STANDS_FOR[group.kind]}</span> '
    items = [f"<li>{code(names(str(one.order)))}{verb}{code(names(str(one.by)))}</li>\n" for one in group.outcomes]
    title = f"{summary.orders_of(len(group.outcomes))}: {escape(group.reason)}"
    return f"<details><summary>{title}</summary>{folded(items, '<ul class=orders>', '</ul>', 'orders')}</details>\n"


def _foot(plan: PlanData) -> str:
    versions = dict.fromkeys(f"{name} {value}" for v in plan.verdicts for name, value in v.versions.items() if value)
    times = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in plan.seconds.items())
    compared = paragraph(f"Orders were compared by {plan.loss}. {times}.")
    return f"<footer>{compared}{paragraph(', '.join(versions))}</footer>\n"

"""Draw metric (or loss) against size as SVG: a point for each measured order, and their Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from compcomp.reporting import summary

if TYPE_CHECKING:
    from compcomp.ordering.plan import PlanData

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 860, 360, 74, 24, 18, 46
TICKS = 5


def front_svg(plan: PlanData, names: summary.Names) -> str:
    """Return the picture as an ``<svg>`` element. It takes its colours from the page's style sheet."""
    ranked = summary.ranking(plan, names)
    rows = [row for row in ranked.rows if row.rate is not None and math.isfinite(row.value)]
    bounds = [end for row in rows for end in (row.interval or ()) if math.isfinite(end)]
    values, rates = [row.value for row in rows] + bounds, [row.rate for row in rows if row.rate is not None]
    log = min(values) > 0 and max(values) / min(values) > summary.LOG_FROM

    def scaled(value: float) -> float:
        return math.log(value) if log else value

    low, high = scaled(min(values)), scaled(max(values))
    spread, wide = (high - low) or 1.0, (max(rates) - min(rates)) or 1.0

    def x(rate: float) -> float:
        return LEFT + 14 + (rate - min(rates)) / wide * (WIDTH - LEFT - RIGHT - 28)

    def y(value: float) -> float:
        return HEIGHT - BELOW - 10 - (scaled(value) - low) / spread * (HEIGHT - TOP - BELOW - 20)

    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BELOW}H{WIDTH - RIGHT}"/>']
    for k in range(TICKS):
        at, rate = low + spread * k / (TICKS - 1), min(rates) + wide * k / (TICKS - 1)
        value = math.exp(at) if log else at
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{summary.number(value)}</text>')
        parts.append(f'<text x="{x(rate):.1f}" y="{HEIGHT - BELOW + 18}" text-anchor="middle">{rate:.0%}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    scale = ", log scale" if log else ""
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">compression rate</text>')
    parts.append(f'<text x="{LEFT + 6}" y="{TOP + 2}">{escape(ranked.what)}{scale}</text>')
    front = {one.text for one in plan.pareto}
    on = sorted((row.rate or 0.0, row.value) for row in rows if row.order in front)
    steps = [f"V{y(value):.1f}H{x(rate):.1f}" for rate, value in on[1:]]  # the least cost of a larger rate
    parts.append(f'<path class="line" d="M{x(on[0][0]):.1f} {y(on[0][1]):.1f}{"".join(steps)}"/>')
    for row in sorted(rows, key=lambda row: row.order in front):
        parts.append(_point(row, x(row.rate or 0.0), y, row.order in front, row.order == plan.best.text))
    said = f"{len(rows)} measured orders, {len(on)} of them on the front. The table below names these."
    return (
        f'<svg class="front" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="front-title front-desc">'
        f'<title id="front-title">{escape(ranked.what)} against compression rate</title>'
        f'<desc id="front-desc">{said}</desc>{"".join(parts)}</svg>'
    )


def _point(row: summary.Row, x: float, y: Callable[[float], float], on: bool, best: bool) -> str:
    title = f"{row.short}\n{row.shown}, {row.rate or 0.0:.1%} smaller"
    whisker = ""
    if on and row.interval is not None and all(map(math.isfinite, row.interval)):
        whisker = f'<path class="whisker" d="M{x:.1f} {y(row.interval[0]):.1f}V{y(row.interval[1]):.1f}"/>'
    return (
        f"<g{' class=on' if on else ''}><title>{escape(title)}</title>{whisker}"
        f'<circle cx="{x:.1f}" cy="{y(row.value):.1f}" r="{7 if best else 4.5 if on else 3.5}"/></g>'
    )

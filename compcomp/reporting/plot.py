"""Draw the ranking as a picture, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compcomp.errors import InputError
from compcomp.reporting import summary

if TYPE_CHECKING:
    from compcomp.ordering.plan import PlanData

MOST = 40
"""The most orders that are drawn, the best ones."""


def save_ranking_png(plan: PlanData, path: str | Path) -> None:
    """Draw the measured orders against the dense model, best on top, into an image file.

    Raises:
        InputError: Matplotlib is missing, nothing was measured, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("no matplotlib", 'pip install "compcomp[plot]"', "save_ranking_png") from None
    ranked = summary.ranking(plan, summary.named(plan))
    rows = [row for row in ranked.rows if row.bar is not None][:MOST]
    if not rows:
        raise InputError("a plan without measured numbers", "a plan with measurements", "save_ranking_png")
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = [row.bar for row in rows if row.bar is not None]
    axes.barh(
        range(len(rows)),
        [end - start for start, end in bars],
        left=[start for start, _ in bars],
        color=["#0a58b5" if row.place == 1 else "#86aee0" for row in rows],
        height=0.66,
    )
    for k, (row, (_, end)) in enumerate(zip(rows, bars, strict=True)):
        if row.whisker is not None:
            axes.plot(row.whisker, (k, k), color="#1b1f24", linewidth=0.8, marker="|", markersize=5)
            end = max(end, row.whisker[1])
        text = f" {row.shown}  {summary.ratio(row.times_dense)}".rstrip()
        axes.text(end, k, text, va="center", fontsize=8)
    if ranked.dense is not None:
        axes.axvline(ranked.axis, color="#1b1f24", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [_plain(f"{row.place}. {row.short}") for row in rows], fontsize=8)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_xlim(-0.02, 1.18)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    figure.suptitle(_plain(ranked.caption), fontsize=9, x=0.01, ha="left")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} ({error})", "an image file to write to", "save_ranking_png") from None


def _plain(text: str) -> str:
    """Return the text with its dollar signs escaped: to matplotlib they enclose mathematics."""
    return text.replace("$", r"\$")

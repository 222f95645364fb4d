"""Show what a checkpoint holds: a table of its layers in a terminal, and a picture of a layer's broken groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from compcomp.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from compcomp.inspecting.inspect import Inspection
    from compcomp.inspecting.measure import Measured

MOST = 30
"""The most layers that are shown one by one. Of more, those alike are shown as one row."""
PROBLEMS = 10
"""The most problems, and layers that do not meet what is expected, that are shown."""
SIDE = 400
"""The most squares of a picture in each direction."""


def inspection_table(found: Inspection) -> Table:
    """Return the table of layers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    numbers = ("zeros", "of n:m", "broken", "rank", "dead", "bits")
    for column in ("layer", "out x in", "stored as", *numbers[:3], "grid", *numbers[3:]):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for rows in _alike(found.layers):
        table.add_row(*_row(rows))
    return table


def inspection_lines(found: Inspection) -> list[str]:
    """Return what does not agree, one line each, and the verdict as the last line."""
    lines = [f"! {problem}" for problem in found.problems[:PROBLEMS]]
    lines += [f"x {name}: {'; '.join(missing)}" for name, missing in list(found.failures.items())[:PROBLEMS]]
    for what, count in (("claims", len(found.problems)), ("layers", len(found.failures))):
        if count > PROBLEMS:
            lines.append(f"  and {count - PROBLEMS} more {what} (all with --json)")
    return [*lines, f"{found.path} ({found.format}): {found.verdict}"]


def _alike(layers: Iterable[Measured]) -> list[list[Measured]]:
    """Return layers that differ only in the numbers of their names together, unless there are few."""
    given = list(layers)
    if len(given) <= MOST:
        return [[layer] for layer in given]
    found: dict[tuple[str, ...], list[Measured]] = {}
    for layer in given:
        kind = "" if layer.grid is None else f"{layer.grid.kind} {layer.grid.bits} {layer.grid.group}"
        key = _numberless(layer.name), str(layer.shape), layer.format, kind, str(layer.pattern)
        found.setdefault(key, []).append(layer)
    return list(found.values())


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _row(layers: list[Measured]) -> list[str]:
    first, count = layers[0], len(layers)
    name = first.name if count == 1 else f"{_numberless(first.name)} ({count})"
    shape = "{} x {}".format(*first.shape)
    stored = first.format if first.dtype is None or first.format != "dense" else f"dense {first.dtype}"
    nbytes, weights = sum(layer.nbytes for layer in layers), count * first.shape[0] * first.shape[1]
    bits = f"{8 * nbytes / max(1, weights):.2f}"
    if first.sparsity is None:
        return [name, shape, stored, "not read", "", "", _grid(layers), "", "", bits]
    zeros = sum(layer.sparsity or 0 for layer in layers) / count
    pattern, broken = "", ""
    if first.pattern is not None:
        pattern, broken = "{}:{}".format(*first.pattern), f"{sum(layer.broken for layer in layers)}"
    dead = sum(layer.dead_rows or 0 for layer in layers), sum(layer.dead_columns or 0 for layer in layers)
    lost = "" if not any(dead) else f"{dead[0]}r {dead[1]}c"
    return [name, shape, stored, f"{zeros:.1%}", pattern, broken, _grid(layers), _rank(layers), lost, bits]


def _grid(layers: list[Measured]) -> str:
    grid = layers[0].grid
    if grid is None:
        return ""
    text = f"W{grid.bits}" + (f"g{grid.group}" if grid.group else "") + f" {grid.kind}"
    off = sum(layer.grid.off for layer in layers if layer.grid is not None)
    if not grid.stored:
        exact = all(layer.grid.exact for layer in layers if layer.grid is not None)
        text += ", exact" if exact else f", rounded to {grid.rounding or 'its dtype'}"
    return text + (f", {off} groups off" if off else "")


def _rank(layers: list[Measured]) -> str:
    if layers[0].branch_rank:
        return "+" + _span({layer.branch_rank for layer in layers})
    ranks = {layer.rank for layer in layers if layer.low_rank and layer.rank is not None}
    return _span(ranks) if ranks else ""


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)}-{max(values)}"


def save_broken_png(found: Inspection, path: str | Path, layer: str | None = None) -> str:
    """Draw where the broken groups of one layer are, into an image file, and return the layer's name.

    Each square is the share of broken groups in some rows and groups of the layer.

    Args:
        found: the inspection.
        path: the image to write.
        layer: the name of the layer; by default the one with the most broken groups.

    Raises:
        InputError: Matplotlib is missing, no layer has a pattern, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("no matplotlib", 'pip install "compcomp[plot]"', "--plot") from None
    import numpy as np

    from compcomp.formats.checkpoint import opened
    from compcomp.inspecting.measure import broken_groups

    patterned = [each for each in found.layers if each.pattern is not None]
    chosen = [each for each in patterned if layer in (None, each.name)]
    if not chosen:
        raise InputError(
            "no layer with a pattern such as 2:4" if layer is None else repr(layer), "one that has", "--plot"
        )
    worst = max(chosen, key=lambda each: each.broken)
    assert worst.pattern is not None
    rows, groups = worst.shape[0], worst.shape[1] // worst.pattern[1]
    by_row, by_group = -(-rows // SIDE), -(-groups // SIDE)
    counts = np.zeros((-(-rows // by_row), -(-groups // by_group)))
    sizes = np.zeros_like(counts)
    stored = next(each for each in opened(Path(found.path)).layers if each.name == worst.name)
    columns = np.arange(groups) // by_group
    for start, over in broken_groups(stored, worst.pattern):
        at = ((start + np.arange(len(over))) // by_row)[:, None], columns[None]
        np.add.at(counts, at, over)
        np.add.at(sizes, at, 1)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(
        counts / sizes, aspect="auto", cmap="magma_r", vmin=0, extent=(0, groups, rows, 0), interpolation="nearest"
    )
    figure.colorbar(shown, label="share of broken groups")
    axes.set_xlabel(f"group of {worst.pattern[1]} columns")
    axes.set_ylabel("row")
    name = "{}:{}".format(*worst.pattern)
    axes.set_title(
        f"{worst.name}: {worst.broken} of {worst.groups} groups are not {name}".replace("$", r"\$"), fontsize=10
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} ({error})", "an image file to write to", "--plot") from None
    return worst.name

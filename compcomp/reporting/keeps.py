"""Show which techniques destroy which invariants: in the terminal, as Markdown, as one HTML page, as a picture."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compcomp.errors import InputError
from compcomp.layers.state import INVARIANTS
from compcomp.ordering.table import NOTHING, Cell, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

MEANING = {
    "mask": "every weight that the first technique dropped is zero at the end",
    "n:m": "at most n of every m consecutive weights of a row are not zero at the end",
    "grid": "every weight is a value of the grid at the end",
    "rank": "the weight has at most the rank of the truncation at the end",
    "shape": "removed rows and columns are zero at the end, in the weight and in the low-rank term",
}
TITLE = "Invariants that a later technique keeps or destroys"
NEW = (
    "the second technique sets up a grid or rank of its own, in place of the first's, and the claim speaks of this one"
)
LOOKS = {
    "PROVED": ("✓", "#2e8b57", "green"),
    "PROVED*": ("✓*", "#a9d8bc", "green"),
    "REFUTED": ("✗", "#c0392b", "red"),
    "UNKNOWN": ("?", "#d9d9d9", "yellow"),
    NOTHING: ("", "#ffffff", "dim"),
}
"""Sign, colour in pages and pictures, and colour in the terminal, by the text of a cell."""


def says(cell: Cell) -> str:
    """Return PROVED, REFUTED, UNKNOWN (for any other verdict) or "-". PROVED has a star where :data:`NEW` holds."""
    if cell.status in (NOTHING, "REFUTED"):
        return cell.status
    return ("PROVED*" if cell.new else "PROVED") if cell.status == "PROVED" else "UNKNOWN"


def labels(techniques: tuple[str, ...]) -> dict[str, str]:
    """Return short names: the class for its first technique, plus the parameters that differ for the others."""
    first: dict[str, str] = {}
    found = {}
    for text in techniques:
        kind, _, given = text.partition("(")
        usual = first.setdefault(kind, given).rstrip(")").split(", ")
        other = [p for p in given.rstrip(")").split(", ") if p not in usual]
        found[text] = f"{kind}({', '.join(other)})" if other else kind
    return found if len(set(found.values())) == len(found) else {text: text for text in techniques}


def _invariants(table: Table) -> list[str]:
    return [invariant for invariant in INVARIANTS if table.firsts(invariant)]


def counted(table: Table) -> str:
    """Return the number of cells of each status, as text."""
    total = len(table.cells)
    return f"{total} claims: " + (", ".join(f"{n} {status}" for status, n in table.counts().items()) or "none")


# ---------------------------------------------------------------------------------------- terminal


def terminal_view(table: Table) -> RenderableType:
    """Return a matrix for each invariant, with a row for each second technique, followed by every counterexample."""
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    parts: list[RenderableType] = []
    short = labels(table.techniques)
    for invariant in _invariants(table):
        firsts = table.firsts(invariant)
        grid = Grid(title=Text(f"keeps {invariant}: {MEANING[invariant]}"), title_justify="left")
        grid.add_column("then", no_wrap=True)
        for number in range(1, len(firsts) + 1):
            grid.add_column(str(number), justify="center")
        for second in table.techniques:
            cells = [says(table.of(first, second, invariant)) for first in firsts]
            grid.add_row(short[second], *(Text(LOOKS[status][0], style=LOOKS[status][2]) for status in cells))
        named = "  ".join(f"{k} {short[first]}" for k, first in enumerate(firsts, start=1))
        parts += [grid, Text(f"first: {named}\n")]
    refuted = [cell for cell in table.cells.values() if cell.status == "REFUTED"]
    parts += [Text(f"{cell.claim}: {cell.detail[0] if cell.detail else ''}", style="red") for cell in refuted]
    parts.append(Text(f"\n✓ proved for any shape (* {NEW})  ✗ refuted by a layer  ? unknown\n{counted(table)}"))
    return Group(*parts)


# ---------------------------------------------------------------------------------------- Markdown


def markdown(table: Table, picture: str | None = None) -> str:
    """Return the page: a matrix for each invariant, and below it every counterexample and the assumptions of proofs.

    Args:
        table: The table.
        picture: The path of a picture to show, None for none.
    """
    short = labels(table.techniques)
    lines = [
        f"# {TITLE}",
        "",
        "For each ordered pair of techniques, and each invariant that the first one sets up: does the second keep it?",
        "The claim is `first >> second keeps invariant`, for every layer of every shape.",
        "Written by `compcomp keeps`; do not edit.",
        "",
        "- PROVED: by the rule [kept](proofs/kept.md), under the assumptions listed below each matrix.",
        f"- PROVED*: proved, where {NEW}.",
        "- REFUTED: on a layer that is shown below, in exact arithmetic and in torch.",
        "- UNKNOWN: neither; the reason is below.",
        "",
        f"{counted(table)}.",
        "",
    ]
    if picture is not None:
        lines += [f"![Each pair of techniques, and whether the second keeps what the first set up]({picture})", ""]
    lines += ["| name | technique |", "|---|---|"]
    lines += [f"| {_cell(short[text])} | {_cell(_code(text))} |" for text in table.techniques]
    for invariant in _invariants(table):
        lines += ["", f"## {invariant}", "", f"Kept: {MEANING[invariant]}.", "", *_matrix(table, invariant, short)]
        cells = [table.of(a, b, invariant) for a in table.firsts(invariant) for b in table.techniques]
        lines += _section("Counterexamples", [_line(cell) for cell in cells if cell.status == "REFUTED"])
        lines += _section("Assumptions of the proofs", _assumptions(cells, short))
        other = [cell for cell in cells if cell.status not in ("PROVED", "REFUTED", NOTHING)]
        lines += _section("Not decided", [f"{cell.status}: {_line(cell)}" for cell in other])
    return "\n".join(lines) + "\n"


def _matrix(table: Table, invariant: str, short: dict[str, str]) -> list[str]:
    firsts = table.firsts(invariant)
    rows = [
        [short[second], *(says(table.of(first, second, invariant)) for first in firsts)] for second in table.techniques
    ]
    head = ["then", *(short[first] for first in firsts)]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def _section(title: str, items: list[str]) -> list[str]:
    return ["", f"### {title}", "", *(f"- {item}" for item in items)] if items else []


def _line(cell: Cell) -> str:
    return f"{_code(f'{cell.first} >> {cell.second}')}: {'; '.join(cell.detail)}"


def _assumptions(cells: list[Cell], short: dict[str, str]) -> list[str]:
    """Return each assumption once, with the pairs whose proofs depend on it. Those that all proofs share come first."""
    proved = [cell for cell in cells if cell.status == "PROVED"]
    used: dict[str, list[Cell]] = {}
    for cell in proved:
        for text in cell.detail:
            used.setdefault(text, []).append(cell)
    shared = [text for text, found in used.items() if len(found) == len(proved)]
    alone = [cell for cell in proved if set(cell.detail) <= set(shared)]
    lines = [f"all of them: {'; '.join(shared)}"] if shared else []
    lines += [f"nothing else: {_pairs(alone, short)}"] if alone else []
    return lines + [f"{text}: {_pairs(found, short)}" for text, found in used.items() if text not in shared]


def _pairs(cells: list[Cell], short: dict[str, str]) -> str:
    """Return pairs as text, such as "B, C after A".

    Seconds that follow the same firsts are grouped, or firsts before the same seconds, whichever is shorter.
    """
    ways = []
    for one, other in (("first", "second"), ("second", "first")):
        partners: dict[str, list[str]] = {}
        for cell in cells:
            partners.setdefault(getattr(cell, one), []).append(short[getattr(cell, other)])
        alike: dict[tuple[str, ...], list[str]] = {}
        for name, others in partners.items():
            alike.setdefault(tuple(others), []).append(short[name])
        pairs = [(keys, others) if one == "second" else (others, keys) for others, keys in alike.items()]
        ways.append("; ".join(f"{', '.join(seconds)} after {', '.join(firsts)}" for seconds, firsts in pairs))
    return min(ways, key=len)


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# -------------------------------------------------------------------------------------------- HTML

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #1b1f24; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #d0d7de; padding: 2px 6px; font-weight: normal; text-align: left; }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); vertical-align: bottom; }
td { text-align: center; min-width: 1.6em; }
.dark { color: #ffffff; }
"""


def html(table: Table) -> str:
    """Return one self-contained page. Each cell shows its claim and details on hovering."""
    short, parts = labels(table.techniques), list[str]()
    for invariant in _invariants(table):
        firsts = table.firsts(invariant)
        head = "".join(f'<th title="{escape(first)}">{escape(short[first])}</th>' for first in firsts)
        rows = "".join(
            f'<tr><th title="{escape(second)}">{escape(short[second])}</th>'
            + "".join(_html_cell(table.of(first, second, invariant)) for first in firsts)
            + "</tr>\n"
            for second in table.techniques
        )
        parts.append(
            f"<h2>{escape(invariant)}</h2>\n<p>Kept: {escape(MEANING[invariant])}. Columns: the first technique; rows: "
            f"the second.</p>\n<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{rows}</tbody></table>\n"
        )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    legend = f"✓ proved for any shape (* {NEW}), ✗ refuted by a layer, ? unknown. {counted(table)}."
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{TITLE}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{TITLE}</h1>\n<p>{escape(legend)}</p>\n"
        f"{''.join(parts)}</body></html>\n"
    )


def _html_cell(cell: Cell) -> str:
    sign, colour, _ = LOOKS[status := says(cell)]
    title = escape("\n".join([f"{cell.claim}: {cell.status}", *cell.detail]))
    dark = ' class="dark"' if status in ("PROVED", "REFUTED") else ""
    return f'<td{dark} style="background:{colour}" title="{title}">{sign}</td>'


# ----------------------------------------------------------------------------------------- picture


def save_picture(table: Table, path: str | Path) -> None:
    """Draw the matrices side by side, second techniques as rows, into an image file.

    Raises:
        InputError: Matplotlib is missing, there is nothing to draw, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("no matplotlib", 'pip install "compcomp[plot]"', "keeps") from None
    names, short = _invariants(table), labels(table.techniques)
    if not names:
        raise InputError("a table without claims", "techniques that set up something", "keeps")
    widths, height = [len(table.firsts(name)) for name in names], len(table.techniques)
    longest = max(map(len, short.values()))
    size = (0.08 * longest + 0.27 * sum(widths) + 0.35 * len(names), 0.075 * longest + 0.26 * height + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True, gridspec_kw={"width_ratios": widths})[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, table, name, short)
    figure.supxlabel(
        "proved (dark green; pale: of the second's own grid or rank), refuted (red), unknown (grey)", fontsize=8
    )
    figure.supylabel("second technique", fontsize=9)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None} if str(path).endswith(".png") else None)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} ({error})", "an image file to write to", "keeps") from None


def _panel(axes: Any, table: Table, invariant: str, short: dict[str, str]) -> None:
    from matplotlib.patches import Rectangle

    firsts, seconds = table.firsts(invariant), table.techniques
    for x, first in enumerate(firsts):
        for y, second in enumerate(seconds):
            sign, colour, _ = LOOKS[status := says(table.of(first, second, invariant))]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            ink = "white" if status in ("PROVED", "REFUTED") else "#1b1f24"
            axes.text(x, y, sign.rstrip("*"), ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlim(-0.5, len(firsts) - 0.5)
    axes.set_ylim(len(seconds) - 0.5, -0.5)
    axes.set_xticks(range(len(firsts)), [short[first] for first in firsts], rotation=90, fontsize=7)
    axes.set_yticks(range(len(seconds)), [short[second] for second in seconds], fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_title(invariant, fontsize=9)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


# ------------------------------------------------------------------------------------------- files


def write(table: Table, paths: list[Path]) -> None:
    """Write the table to each path, by its suffix: .md, .html, or a picture. A page shows the first picture.

    Raises:
        InputError: A suffix is not known, or a file cannot be written.
    """
    check_paths(paths)
    pictures = [path for path in paths if path.suffix in (".png", ".svg")]
    for path in paths:
        if path in pictures:
            save_picture(table, path)
            continue
        picture = next((p.name for p in pictures if p.parent == path.parent), None)
        text = html(table) if path.suffix == ".html" else markdown(table, picture)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{str(path)!r} ({error.strerror})", "a file to write to", "keeps") from None


def check_paths(paths: list[Path]) -> None:
    """Raise InputError unless the suffix of every path is one that can be written."""
    for path in paths:
        if path.suffix not in (".md", ".html", ".png", ".svg"):
            raise InputError(repr(str(path)), "a file ending in .md, .html, .png or .svg", "--out")

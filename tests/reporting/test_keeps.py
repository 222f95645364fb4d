"""The table of what destroys what, as people see it, and the page of it that is committed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.cli import app
from compcomp.errors import InputError
from compcomp.ordering.table import Cell, Table, keeps_table, registered
from compcomp.reporting import keeps
from compcomp.techniques import AbsMax, Magnitude, MinMax

PAGE = Path(__file__).parents[2] / "docs" / "keeps.md"
P, Q, O = "Magnitude(sparsity=1/2)", "AbsMax(bits=4)", "MinMax(bits=4, zero='none')"


def cell(first: str, second: str, invariant: str, status: str, *detail: str, new: bool = False) -> Cell:
    return Cell(first, second, invariant, status, new, detail)


CELLS = [
    cell(P, P, "mask", "PROVED", "exact"),
    cell(P, Q, "mask", "PROVED", "exact"),
    cell(P, O, "mask", "REFUTED", "W = (-1, 0, 1) <&|"),
    cell(Q, P, "grid", "PROVED", "exact"),
    cell(Q, Q, "grid", "PROVED", "exact", new=True),
    cell(Q, O, "grid", "UNKNOWN", "no time"),
]
TABLE = Table((P, Q, O), {(c.first, c.second, c.invariant): c for c in CELLS})


def test_markdown() -> None:
    page = keeps.markdown(TABLE, "keeps.png")
    assert "6 claims: 4 PROVED, 1 REFUTED, 1 UNKNOWN." in page
    assert "| then | Magnitude |" in page
    assert "| MinMax | REFUTED |" in page
    assert "| AbsMax | PROVED* |" in page
    assert f"- `{P} >> {O}`: W = (-1, 0, 1)" in page
    assert f"- UNKNOWN: `{Q} >> {O}`: no time" in page
    assert "- all of them: exact" in page
    assert "- nothing else: Magnitude, AbsMax after Magnitude" in page
    assert "![" in page and "](keeps.png)" in page
    assert "## rank" not in page


def test_names_are_short_and_distinct() -> None:
    texts = (P, "Magnitude(sparsity=1/2, pattern='2:4')", Q, "AbsMax(bits=8)")
    assert list(keeps.labels(texts).values()) == ["Magnitude", "Magnitude(pattern='2:4')", "AbsMax", "AbsMax(bits=8)"]
    same = ("T(a=1, b=2)", "T(b=2, a=1)", "U()")
    assert len(set(keeps.labels(same).values())) == 3


def test_html_says_what_is_behind_each_cell() -> None:
    page = keeps.html(TABLE)
    assert "W = (-1, 0, 1) &lt;&amp;|" in page
    assert "<script" not in page
    assert page.count("<td") == 2 + 3 * 2  # a corner and three rows for each of two matrices


def test_terminal() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(keeps.terminal_view(TABLE))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "keeps mask:" in text
    assert text.count("✗") == 2  # the cell and the legend
    assert "✓*" in text


def test_an_invariant_is_no_markup() -> None:
    one = Table(("A()",), {("A()", "A()", "n:m"): cell("A()", "A()", "n:m", "PROVED", "exact")})
    console = Console(file=io.StringIO(), width=120)
    console.print(keeps.terminal_view(one))
    assert "keeps n:m:" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    keeps.write(TABLE, [tmp_path / f"a.{suffix}", tmp_path / "a.md", tmp_path / "b" / "a.html"])
    assert (tmp_path / f"a.{suffix}").stat().st_size > 2000
    assert f"](a.{suffix})" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "b" / "a.html").exists()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.md, \.html"):
        keeps.check_paths([tmp_path / "a.txt"])
    with pytest.raises(InputError, match="a table without claims"):
        keeps.save_picture(Table((P,), {}), tmp_path / "a.png")


def test_the_command(tmp_path: Path) -> None:
    page = tmp_path / "keeps.md"
    done = CliRunner().invoke(app, ["keeps", P, Q, O, "--invariant", "mask", "--out", str(page), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert {(c["second"], c["status"]) for c in data["cells"]} == {(P, "PROVED"), (Q, "PROVED"), (O, "REFUTED")}
    assert page.read_text().startswith("# Invariants that a later technique keeps or destroys")


@pytest.mark.parametrize("given", [["Nothing()"], [P, "--invariant", "colour"], [P, "--out", "x.txt"]])
def test_wrong_use(given: list[str]) -> None:
    assert isinstance(CliRunner().invoke(app, ["keeps", *given]).exception, InputError)


# The page that is committed


def committed() -> dict[tuple[str, str, str], str]:
    """What each cell of the committed page says, by the short names of its techniques, and its invariant."""
    found, invariant, firsts = {}, "", list[str]()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            invariant = line.removeprefix("## ")
        row = [part.strip() for part in line.strip("|").split("|")]
        if invariant and line.startswith("| then |"):
            firsts = row[1:]
        elif invariant and line.startswith("| ") and "---" not in line:
            found |= {(first, row[0], invariant): status for first, status in zip(firsts, row[1:], strict=True)}
    return found


def test_the_committed_page_lists_the_registered_techniques() -> None:
    """Otherwise: compcomp keeps --out docs/keeps.md --out docs/keeps.png"""
    listed = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [str(technique) for technique in registered()]
    assert PAGE.with_suffix(".png").exists()


def test_a_part_of_the_committed_page_is_current() -> None:
    chosen = [Magnitude("1/2"), AbsMax(4), MinMax(4), MinMax(4, zero="none")]
    assert says(keeps_table(chosen)).items() <= committed().items()


@pytest.mark.exhaustive
def test_the_committed_page_is_current() -> None:
    """But for cells that are undecided here or there, as that may depend on how fast the machine is."""
    here, there = says(keeps_table()), committed()
    assert here.keys() == there.keys()
    assert not {k: (here[k], there[k]) for k in here if here[k] != there[k] and "UNKNOWN" not in (here[k], there[k])}


def says(table: Table) -> dict[tuple[str, str, str], str]:
    short = keeps.labels(tuple(map(str, registered())))
    return {
        (short[first], short[second], invariant): keeps.says(table.of(first, second, invariant))
        for invariant in keeps.MEANING
        for first in table.firsts(invariant)
        for second in table.techniques
    }

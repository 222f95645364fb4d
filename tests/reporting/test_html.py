"""The page: well formed, complete, escaped, and in need of nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compcomp.errors import InputError
from compcomp.language.claim import dominates
from compcomp.language.verdict import Query, Status
from compcomp.ordering.plan import NOT_ACCURACY
from compcomp.plan import Plan
from compcomp.reporting import write_report
from compcomp.reporting.html import page
from compcomp.techniques import AbsMax
from tests.reporting.samples import (
    FIVE,
    P,
    Q,
    conditional_plan,
    orderings,
    parts_plan,
    plan,
    proved_plan,
    verdict,
    verdicts,
)

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(HTMLParser):
    """Checks that elements nest, and keeps what is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(one: Plan) -> Reader:
    return Reader(page(one))


PLANS: dict[str, Callable[[], Plan]] = {
    "in parts": parts_plan,
    "four": plan,
    "five": lambda: plan(FIVE),
    "six": lambda: plan([*FIVE, AbsMax(bits=3)], found=orderings([*FIVE, AbsMax(bits=3)], drop=False)),
    "proved": proved_plan,
    "one": lambda: plan([P], found=orderings([P], merge=False, drop=False)),
    "no metric": lambda: plan(FIVE[:3], metric=None, measured_on="generated layers"),
    "not numbers": lambda: plan(FIVE[:3], values=[2.9, 3.2, 1e5, math.inf, math.nan]),
    "no numbers": lambda: plan(FIVE[:3], values=[math.nan] * 5),
    "no dense": lambda: plan(FIVE[:3], dense=math.nan),
    "nothing measured": lambda: plan(FIVE[:3], measurements=[], verdicts=[], compression_rate=None, dense=None),
}


@pytest.mark.parametrize("name", PLANS)
def test_pages_are_well_formed_and_self_contained(name: str) -> None:
    one = PLANS[name]()
    found = read(one)
    orders = {value for tag, attribute, value in found.attributes if (tag, attribute) == ("td", "title")}
    assert orders == {row["order"] for row in one.measurements}
    assert NOT_ACCURACY in found.text and str(one.order) in found.text
    assert not [a for a in found.attributes if a[1] in ("src", "href") or a[1].startswith("on")]
    assert "<script" not in page(one) and "url(" not in page(one)
    identifiers = [value for _, attribute, value in found.attributes if attribute == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_verdicts_open_to_everything() -> None:
    found = read(plan())
    for one in verdicts():
        assert str(one.claim.left) in found.text
        assert all(str(assumption) in found.text for assumption in one.assumptions)
        assert one.cause in found.text
    for part in ("after AbsMax(bits=4, group=128)", "-18/7", "9/49", "0.183673469", "zero stays zero"):
        assert part in found.text
    assert "inputs after AbsMax(bits=4, group=128)" in found.text and "-3/7" in found.text
    assert "Shown: 13 of 64 columns" in found.text


def test_everything_is_escaped() -> None:
    nasty = "<b>&\"'</b><script>alert(1)</script>"
    queries = (Query(nasty, "", "unsat", nasty, nasty),)
    one = verdict(dominates(P, Q), Status.PROVED, assumptions=(nasty,), cause=nasty, reason=nasty, queries=queries)
    made = plan(metric=nasty, verdicts=[one], notes=[nasty])
    text = page(made)
    assert "<script" not in text and "<b>" not in text
    assert Reader(text).text.count("alert(1)") > 6


def test_the_drawing_holds_every_class_once_and_highlights_the_best() -> None:
    one = plan()
    text = page(one)
    assert len(re.findall(r'<g class="node', text)) == len(one.graph)
    assert len(re.findall(r'<path class="edge', text)) == one.graph.number_of_edges()
    assert len(re.findall(r'<path class="edge on', text)) == len(one.order)
    assert len(re.findall(r'<path class="edge merge', text)) == 1
    assert len(re.findall(r'<g class="node r\d', text)) == one.orders["measured"]
    found = read(one)
    assert [value for _, name, value in found.attributes if name == "aria-labelledby"] == ["dag-title dag-desc"]


def test_the_best_order_may_pass_through_a_merge() -> None:
    one = plan()
    merged = next(row["order"] for row in one.measurements if row["order"].startswith(f"{P} >> {Q}"))
    swapped = [Q, P, *(t for t in FIVE[2:4] if str(t) in merged)]
    one = replace(one, order=one.orderings.order(one.orderings.prefix(swapped) or ()))
    assert len(re.findall(r'<path class="edge on', page(one))) == 4


def test_many_orders_are_summarised() -> None:
    six = [*FIVE, AbsMax(bits=3)]
    text = page(plan(six, found=orderings(six, drop=False)))
    assert "too many orders to draw" in text and "of 6 classes" in text
    assert len(re.findall(r'<g class="node', text)) == 7


def test_files_are_written(tmp_path: Path) -> None:
    one = plan(metric="bad \ud800 surrogate")
    write_report(one, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    plan().report(tmp_path / "report.html")
    with pytest.raises(InputError, match="write_report"):
        write_report(one, tmp_path)


def test_what_is_proved_under_conditions_has_a_table() -> None:
    assert "CONTRADICTION on A <b> & B" in read(conditional_plan(contradicted=("A <b> & B",))).text
    text = read(conditional_plan()).text
    assert "Under conditions" in text and "99.7 %" in text
    assert "proved on 99.7 % of the weights, measured on the rest (output_l2 0.25 against 0.5)" in text
    assert "Under conditions" not in read(plan()).text


def test_intervals_and_the_front_are_shown() -> None:
    one = parts_plan()
    reader, text = read(one), page(one)
    assert text.count('class="whisker"') >= len(one.measurements) and "behind the best" in reader.text
    assert "≈ " in reader.text and "worse than &lt;it&gt; by 0.1 to 0.2" in text
    picture = text[text.index('<svg class="front"') :]
    picture = picture[: picture.index("</svg>")]
    assert picture.count("<circle") == len(one.measurements) and picture.count("class=on") == 2
    for tag, name, value in reader.attributes:
        if tag == "circle" and name in ("cx", "cy"):
            assert 0 <= float(value) <= 860
    assert 'class="front"' not in page(plan()) and "whisker" not in page(plan()).partition("</style>")[2]


def test_a_ramp_has_five_colours_where_the_best_is_not_first() -> None:
    one = plan(values=[5.0, 4.0, 6.0, 3.0], lower=True)
    assert set(re.findall(r'class="node r(-?[0-9]+)', page(one))) <= set("01234")

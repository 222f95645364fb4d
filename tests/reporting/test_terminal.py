"""What the terminal shows, at several widths and to outputs of several kinds."""

from __future__ import annotations

import io
import math
from fractions import Fraction as F
from typing import Any

import pytest
from rich.console import Console

from compcomp.language.claim import dominates
from compcomp.language.verdict import Status, Trace, Witness
from compcomp.ordering.plan import NOT_ACCURACY
from compcomp.reporting.terminal import plan_view, verdict_table, verdict_view
from tests.reporting import samples
from tests.reporting.samples import FIVE, P, Q, orderings, plan, proved, proved_plan, verdict, verdicts, wide_witness


def shown(view: Any, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(view)
    return output.getvalue()


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 100, 140])
@pytest.mark.parametrize("number", range(len(verdicts())))
def test_every_verdict_is_shown_whole(number: int, width: int) -> None:
    one = verdicts()[number]
    text = shown(verdict_view(one), width)
    assert max(map(len, text.splitlines())) <= width
    assert unwrapped(text).startswith(str(one.status))
    joined = text.replace("\n", "").replace(" ", "")
    for part in (*map(str, one.claim.sides), one.cause):
        assert part.replace(" ", "") in joined
    assert all(str(a).replace(" ", "") in joined for a in one.assumptions)


def test_piped_output_has_no_colour_codes_and_no_trailing_blanks() -> None:
    for view in (verdict_view(verdicts()[2]), verdict_table(verdicts()), plan_view(plan())):
        text = shown(view)
        assert "\x1b" not in text
        assert all(line == line.rstrip() for line in text.splitlines())


def test_a_terminal_gets_colours() -> None:
    output = io.StringIO()
    Console(file=output, width=100, force_terminal=True, color_system="standard").print(verdict_view(verdicts()[0]))
    assert "\x1b[1;32mPROVED" in output.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_outputs_that_are_not_unicode_get_what_they_can_write(encoding: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, width=80)
    for view in (plan_view(plan(metric="perplexité")), verdict_view(verdicts()[3]), verdict_table(verdicts())):
        console.print(view)
    file.flush()
    assert "####" in raw.getvalue().decode(encoding)


def test_a_witness_shows_each_step_and_both_losses() -> None:
    lines = shown(verdict_view(verdicts()[2])).splitlines()
    start = next(k for k, line in enumerate(lines) if "after AbsMax" in line)
    assert lines[start].split()[-2:] == ["18/7", "9"]
    assert lines[start + 1].split() == ["0", "-18/7"]
    assert "9/49  0.183673469    0.183673469" in "\n".join(lines)
    columns = {line.rindex("18/7") for line in lines if line.endswith(("18/7      9", "-18/7"))}
    assert len(columns) == 2  # aligned in two columns through all steps


def test_inputs_that_a_step_changes_are_shown_after_it() -> None:
    dense, now = ((F(2), F(1)),), ((F(7),), (F(2, 7),))
    trace = Trace("a >> b", (("dense", dense), ("a", dense), ("b", dense)), F(3), 3.0, (None, now, None))
    witness = Witness(dense, ((F(7),), (F(0),)), None, (trace,), "it fails")
    lines = shown(verdict_view(verdict(dominates(P, Q), Status.REFUTED, witness=witness))).splitlines()
    start = next(k for k, line in enumerate(lines) if "inputs after a (in x tokens, 2 x 1)" in line)
    assert [line.split()[-1] for line in lines[start + 1 : start + 3]] == ["7", "2/7"]
    assert not any("inputs after b" in line for line in lines)


def test_a_wide_witness_shows_only_what_is_not_zero() -> None:
    text = shown(verdict_view(verdicts()[3]))
    assert "Shown: 13 of 64 columns; the weights of the others are 0 throughout." in unwrapped(text)
    assert "0, 13" in text and "0, 14" not in text
    assert "feature 13" in text and "feature 14" not in text


def test_a_witness_of_any_size_fits() -> None:
    full = wide_witness(64, 64)
    everywhere = tuple(tuple(F(1 + i, 1 + j) for j in range(200)) for i in range(40))
    large = Witness(everywhere, None, None, (Trace("a", (("dense", everywhere),), F(10) ** 400, math.inf),), "it fails")
    zero = ((F(0),) * 20,)
    empty = Witness(zero, None, None, (Trace("a", (("dense", zero), ("b", zero)), None, None),), "it fails")
    for witness in (full, large, empty):
        one = verdict(dominates(P, Q), Status.REFUTED, witness=witness)
        for width in (60, 100):
            text = shown(verdict_view(one), width)
            assert (len(text.splitlines()) < 150 and "So it fails" in text) or witness is full


def test_markup_in_texts_is_not_read_as_markup() -> None:
    one = verdict(dominates(P, Q), Status.UNKNOWN, cause="[bold]no[/bold] [red] answer [/]")
    assert "[bold]no[/bold] [red] answer [/]" in shown(verdict_view(one))
    assert "[bold]no[/bold] [red] answer [/]" in shown(verdict_table([one]))


@pytest.mark.parametrize("width", [80, 130])
def test_the_table_numbers_each_distinct_assumption_once(width: int) -> None:
    text = shown(verdict_table(verdicts()), width)
    assert text.count(str(samples.EXACT)) == text.count(str(samples.CONTRACT)) == 1
    assert "2 [1, 2]" in text
    assert "[1] exact arithmetic" in unwrapped(text)


def test_the_table_counts_what_it_leaves_out() -> None:
    many = [verdict(dominates(P, Q), Status.UNKNOWN, cause="no rule")] * 50 + [proved(dominates(Q, P))]
    text = shown(verdict_table(many, limit=10))
    assert "and 41 more: 41 UNKNOWN" in text and text.startswith("PROVED")
    assert "No claims." in shown(verdict_table([]))


def test_a_plan_says_what_it_found() -> None:
    text = unwrapped(shown(plan_view(plan())))
    assert "Best measured of the 18 orders that no proof excludes." in text
    assert "24 orders = 2 merged + 4 dropped + 18 measured" in text
    assert "23 of the 64 technique applications" in text
    assert "dense model 3.104 best order 3.166 1.02× worst order 4.718 1.52×" in text
    assert "perplexity, lower is better" in text and "Measured on the model." in text
    assert "merged: 2 orders" in text and "dropped: 4 orders" in text
    assert text.endswith(NOT_ACCURACY)


def test_a_proved_plan_says_under_what() -> None:
    text = unwrapped(shown(plan_view(proved_plan())))
    assert "Proved optimal under (output_l2" in text


@pytest.mark.parametrize("width", [80, 100])
def test_long_rankings_are_cut_and_fit(width: int) -> None:
    text = shown(plan_view(plan(FIVE)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "and 69 more; the last is 4.718" in unwrapped(text)
    assert ("LSD LeastSquaresDistill" in unwrapped(text)) == (width == 80)


def test_numbers_that_are_none() -> None:
    values = [2.9, 3.2, 1e5, math.inf, math.nan]
    text = unwrapped(shown(plan_view(plan(FIVE[:3], values=values))))
    assert "log scale" in text and "0.93×" in text and "100,000" in text
    assert "inf" in text and "nan no number" in text
    shown(plan_view(plan([P], found=orderings([P], merge=False, drop=False))))
    shown(plan_view(plan(FIVE[:3], values=[math.nan] * 5)))
    shown(plan_view(plan(FIVE[:3], dense=math.nan)))
    shown(plan_view(plan(FIVE[:3], dense=0.0, values=[0.0, 0.0, -1.0, 2.0, 3.0])))


def test_plans_without_a_metric_or_without_measurements() -> None:
    text = unwrapped(shown(plan_view(plan(FIVE[:3], metric=None, measured_on="generated layers"))))
    assert "output_l2" in text and "dense model" not in text
    assert "generated layers, not on a model" in text
    bare = plan(FIVE[:3], measurements=[], verdicts=[], compression_rate=None, dense=None)
    assert "Ranking" not in shown(plan_view(bare))


def test_two_of_a_kind_are_distinguished() -> None:
    twins = [P, type(Q)(bits=4), type(Q)(bits=3)]
    text = shown(plan_view(plan(twins, found=orderings(twins, merge=False, drop=False))))
    assert "AbsMax(bits=3) >> AbsMax(bits=4) >> Magnitude" in text


def test_what_is_proved_under_conditions_is_reported_with_its_share() -> None:
    text = " ".join(shown(plan_view(samples.conditional_plan()), 160).split())
    for part in ("Under conditions", "no_ties", "99.7 %", "99.9 % of the groups", "output_l2 0.25 against 0.5"):
        assert part in text
    contradicted = " ".join(
        shown(plan_view(samples.conditional_plan(contradicted=("last",), holds=False)), 160).split()
    )
    assert "CONTRADICTION on last" in contradicted
    assert "Under conditions" not in shown(plan_view(plan()), 160)


def test_intervals_estimates_and_the_front_are_shown() -> None:
    one = samples.parts_plan()
    text = shown(plan_view(one), 140)
    assert "≈ " in text and "Next to each value is its interval" in text and "Metric and size" in text
    assert "80.0% smaller" in text and "60.0% smaller" in text and "No other order is as good in both" in text
    assert "Metric and size" not in shown(plan_view(plan())) and "interval" not in shown(plan_view(plan()))

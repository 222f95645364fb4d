"""Every rule says why it does not apply, and an unknown verdict names the nearest miss and what to try."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import compcomp as cc
import compcomp.techniques
from benchmarks.campaign import claims as random_claims
from compcomp.checking.directory import check_directory
from compcomp.cli import app
from compcomp.errors import InputError
from compcomp.language.claim import KINDS, Claim, Scope
from compcomp.language.query import Query
from compcomp.language.refusal import Reached, Refusal
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Status, Verdict
from compcomp.ordering.ask import decide
from compcomp.ordering.store import verdict_from_json, verdict_to_json
from compcomp.proving import why
from compcomp.proving.proof import Proof
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules import RULES
from compcomp.proving.session import Session
from compcomp.proving.solver import Answer
from tests.amount import spread
from tests.claims import CLAIMS

ALL_TIES = (
    "Magnitude(sparsity=1/2, ties='all') >> AbsMax(bits=4) dominates "
    "AbsMax(bits=4) >> Magnitude(sparsity=1/2, ties='all')"
)
OF_EACH_KIND = [
    "Magnitude(sparsity=1/2) >> AbsMax(bits=4) dominates AbsMax(bits=4) >> Magnitude(sparsity=1/2)",
    "GPTQ(bits=4) >> Magnitude(sparsity=1/2) dominates Magnitude(sparsity=1/2) >> GPTQ(bits=4)",
    "AbsMaxInputs(bits=4) >> AbsMax(bits=4) dominates AbsMax(bits=4)",
    "SmoothQuant() >> AbsMax(bits=4) dominates AbsMax(bits=4)",
    "AbsMax(bits=8) >> AbsMax(bits=4) equals AbsMax(bits=4)",
    "MinMax(bits=4) >> MinMax(bits=4) equals MinMax(bits=4)",
    "MinMax(bits=4) >> MinMax(bits=4) same state as MinMax(bits=4)",
    "Magnitude(sparsity=1/2) >> GPTQ(bits=4) keeps mask",
    "AbsMax(bits=4) >> TruncatedSVD(rank=1) keeps grid",
    "TruncatedSVD(rank=1) >> AbsMax(bits=4) keeps rank",
    "Magnitude(sparsity=1/2) >> AbsMax(bits=4) fits W4 2:4",
    "GPTQ(bits=4) fits W3",
    "AbsMax(bits=4) is orthogonal to Magnitude(sparsity=1/2)",
    "GPTQ(bits=4) is orthogonal to Magnitude(sparsity=1/2)",
]


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what is tried for an unknown claim more seconds than a busy machine needs."""
    monkeypatch.setattr(why, "ADVICE_SECONDS", 100.0)
    monkeypatch.setattr(why, "VALUE_SECONDS", 100.0)


class Counted:
    """Ask another solver, and count."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, smtlib: str, deadline: float) -> Answer:
        self.asked += 1
        return default_prover().solver.ask(smtlib, deadline)


def by_rules(claim: Claim, **options: Any) -> Verdict:
    """Decide by rules alone, so that no search hides that they do not prove the claim."""
    return prove(claim, stages=("rule",), second=None, **options)


def names_a_rule(verdict: Verdict) -> bool:
    """Whether an unknown verdict has reasons of rules, and its cause begins with one of them."""
    return bool(verdict.tried) and str(verdict.tried[0]) in verdict.cause and verdict.cause.startswith("rule ")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name} {rule.prove.__name__}")
@pytest.mark.parametrize("text", OF_EACH_KIND)
def test_a_rule_returns_a_proof_or_a_refusal(rule: Any, text: str) -> None:
    claim = parse_claim(text)
    found = rule(claim, Session(default_prover().solver, time.monotonic() + 20))
    assert isinstance(found, Proof | Refusal)
    if isinstance(found, Refusal):
        assert found.rule and found.reason and "\n" not in str(found)
        assert found.about_other_claims == (not isinstance(claim, rule.claims))


def test_the_claims_of_these_tests_are_of_each_kind() -> None:
    assert {type(parse_claim(text)) for text in OF_EACH_KIND} == {
        kind for kind in KINDS.values() if any(kind in rule.claims for rule in RULES)
    }
    assert {kind for rule in RULES for kind in rule.claims} <= set(KINDS.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name} {rule.prove.__name__}")
def test_a_rule_says_what_it_needs_and_has_a_page(rule: Any) -> None:
    assert rule.needs and "\n" not in rule.needs
    pages = Path(__file__).resolve().parents[2] / "docs" / "proofs"
    assert (pages / f"{rule.name.replace(' ', '_')}.md").is_file()
    last = {each.name: each.needs for each in RULES}[rule.name]
    assert f"| {rule.name} | {last} |" in (pages / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), spread(CLAIMS, 90))
def test_what_rules_do_not_decide_names_one_of_them(text: str, loss: str, scope: str, expected: str) -> None:
    verdict = by_rules(parse_claim(text, loss), explain=False)
    if verdict.status is Status.UNKNOWN:
        assert names_a_rule(verdict), verdict
        assert expected != "PROVED" or scope != "any"
    else:
        assert not verdict.tried


@cache
def campaign() -> list[Claim]:
    return random_claims(40, seed=15)


@pytest.mark.parametrize("number", spread(range(40), 20))
def test_random_claims_that_stay_unknown_name_a_rule(number: int) -> None:
    claim = campaign()[number]
    verdict = by_rules(claim, explain=False, timeout=20)
    assert verdict.status is not Status.UNKNOWN or names_a_rule(verdict), verdict


def test_the_most_telling_reason_comes_first() -> None:
    claim = parse_claim("AbsMax(bits=4) >> Magnitude(sparsity=1/2) dominates Magnitude(sparsity=1/2) >> AbsMax(bits=4)")
    tried = by_rules(claim).tried
    assert tried[0].rule == "exchange" and tried[0].reached is Reached.LEMMA
    assert [refusal.reached for refusal in tried] == sorted((r.reached for r in tried), reverse=True)
    assert len({refusal.rule for refusal in tried}) == len(tried)
    assert tried[-1].about_other_claims


def test_a_lemma_that_fails_comes_with_its_question_and_values() -> None:
    claim = parse_claim("AbsMax(bits=4) >> Magnitude(sparsity=1/2) dominates Magnitude(sparsity=1/2) >> AbsMax(bits=4)")
    refusal = by_rules(claim).tried[0]
    assert refusal.lemma is not None and (refusal.lemma.expected, refusal.lemma.answer) == ("unsat", "sat")
    values = {name: Fraction(value) for name, value in refusal.values}
    assert {"a", "b", "scale"} <= set(values)
    assert max(abs(values["a"]), abs(values["b"])) <= values["scale"] == 1  # what the formula says of a map's context
    fixed = "".join(
        f"(assert (= w_{x} (/ {abs(v.numerator)} {v.denominator})))"
        for x, v in values.items()
        if x in ("a", "b") and v >= 0
    )
    again = refusal.lemma.smtlib.replace("(check-sat)", f"{fixed}(check-sat)")
    assert default_prover().solver.ask(again, 10).answer == "sat"


def test_a_condition_that_is_advised_proves_the_claim() -> None:
    verdict = by_rules(parse_claim(ALL_TIES))
    assert verdict.status is Status.UNKNOWN and "given no_ties" in verdict.cause
    assert any(advice.startswith("given no_ties") for advice in verdict.tried[0].advice)
    assert by_rules(parse_claim(f"{ALL_TIES} given no_ties")).proved


def test_a_convention_that_is_advised_proves_the_claim() -> None:
    advice = by_rules(parse_claim(ALL_TIES)).tried[0].advice
    assert any(text.startswith("ties='first' (proved by") for text in advice)
    assert by_rules(parse_claim(ALL_TIES.replace("'all'", "'first'"))).proved


def test_a_scope_that_is_advised_fits_the_claim_and_is_smaller() -> None:
    claim = parse_claim(ALL_TIES)
    advice = [text for text in by_rules(claim).tried[0].advice if text.startswith("--scope ")]
    shape = Scope.of(advice[0].removeprefix("--scope ")).shape
    assert shape is not None and claim.fits(shape)
    assert not [a for a in by_rules(parse_claim(OF_EACH_KIND[1])).tried[0].advice if a.startswith("--scope")]


def test_advice_costs_no_question_where_none_is_wanted() -> None:
    claim, few, many = parse_claim(ALL_TIES), Counted(), Counted()
    plain = by_rules(claim, solver=few, explain=False)
    by_rules(claim, solver=many)
    assert few.asked < many.asked
    assert not any(refusal.values for refusal in plain.tried)
    assert all("proved by" not in text for refusal in plain.tried for text in refusal.advice)
    searched = decide(claim, Scope.of("any"), {"stages": ("rule",)})
    assert searched.cause == plain.cause


def test_a_form_that_no_rule_is_about_is_refused_without_a_solver() -> None:
    class Silent:
        def ask(self, smtlib: str, deadline: float) -> Answer:
            raise AssertionError(smtlib)

    answers = cc.why(parse_claim(OF_EACH_KIND[1]), solver=Silent())
    assert {answer.rule for answer in answers} == {rule.name for rule in RULES}
    assert all(answer.refusal is not None and answer.needs for answer in answers)
    assert any("GPTQ(bits=4) is not made of selections and maps" in str(answer) for answer in answers)


def test_why_lists_rules_that_prove_the_claim_first() -> None:
    answers = cc.why(parse_claim(OF_EACH_KIND[0]))
    assert answers[0].rule == "exchange"
    proving = [answer.refusal is None for answer in answers]
    assert proving == sorted(proving, reverse=True) and 0 < sum(proving) < len(answers)
    with pytest.raises(InputError):
        cc.why("A dominates B")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        cc.why(parse_claim(OF_EACH_KIND[0]), timeout=0)


def test_rules_for_one_shape_are_among_those_that_were_tried() -> None:
    """The zeros that Wanda leaves in rows of three are too few, and as many as needed in rows of four."""
    claim, name = parse_claim("Magnitude(sparsity=1/2) dominates Wanda(sparsity=1/2)"), "best selection at one shape"
    assert name not in {answer.rule for answer in cc.why(claim)}
    first = cc.why(claim, "2x4")[0]
    assert first.rule == name and first.refusal is None and "2 x 4" in str(first)
    missing = next(answer for answer in cc.why(claim, "2x3") if answer.rule == name)
    assert missing.refusal is not None and "zeros" in missing.refusal.reason
    for scope, asked in (("any", False), ("2x3", True)):
        tried = {refusal.rule for refusal in by_rules(claim, scope=scope, explain=False).tried}
        assert (name in tried) == asked and {rule.name for rule in RULES} <= tried
    with pytest.raises(InputError):
        cc.why(parse_claim("Magnitude(sparsity=1/2, pattern='2:4') dominates identity"), "2x3")


def test_why_of_a_claim_about_units_asks_for_each_kind_of_layer() -> None:
    answers = cc.why(parse_claim("PruneNeurons(sparsity=1/2) >> AbsMax(bits=4) keeps shape"))
    assert len({answer.part for answer in answers}) > 1


def test_why_in_a_shell() -> None:
    run = CliRunner().invoke(app, ["prove", "--why", ALL_TIES, "--json"])
    assert run.exit_code == 3, run.output
    data = json.loads(run.stdout)
    assert {row["rule"] for row in data["rules"]} == {rule.name for rule in RULES}
    assert "ties" in data["rules"][0]["refusal"]["reason"]
    shown = CliRunner().invoke(app, ["prove", "--why", OF_EACH_KIND[0]])
    assert shown.exit_code == 0 and "needs" in shown.output and "About other kinds of claims" in shown.output
    assert CliRunner().invoke(app, ["prove", "--why", ALL_TIES, "--save", "x"]).exit_code != 0


REFUSALS: list[Callable[[], Refusal]] = [
    lambda: Refusal("a reason", "exchange"),
    lambda: Refusal("a reason", "kept", Reached.FACT, advice=("given no_ties",)),
    lambda: Refusal(
        "a reason",
        "exchange",
        Reached.LEMMA,
        Query("pair", "(check-sat)", "unsat", "sat", "z3", 7),
        (("a", "1"), ("b", "-13/14")),
        ((Fraction(1), Fraction(-13, 14)),),
    ),
]


@pytest.mark.parametrize("make", REFUSALS)
def test_refusals_are_read_back_from_json(make: Callable[[], Refusal]) -> None:
    data = json.loads(json.dumps(make().to_json()))
    assert Refusal.from_json(data) == make()
    with pytest.raises(InputError):
        Refusal.from_json({**data, "reached": "somewhere"})


def test_saved_and_stored_verdicts_keep_the_reasons(tmp_path: Path) -> None:
    verdict = by_rules(parse_claim(ALL_TIES))
    saved = verdict.save(tmp_path / "verdict")
    assert json.loads((saved / "claim.json").read_text())["tried"] == [r.to_json() for r in verdict.tried]
    assert not check_directory(saved, solvers=False).problems
    again = verdict_from_json(json.loads(json.dumps(verdict_to_json(verdict))), verdict.claim)
    assert again.tried == verdict.tried

"""A new kind of claim is one class and one rule: text, data, search, replay and reports need no other change."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

import compcomp.techniques  # noqa: F401
from compcomp.errors import InputError
from compcomp.language.claim import KINDS, Claim, Equals, SameState, equal, same_state
from compcomp.language.conditions import Condition, Run
from compcomp.language.refusal import Refusal
from compcomp.language.steps import Selection
from compcomp.language.text import claim_from_json, parse_claim
from compcomp.ordering.reuse import family, follows
from compcomp.ordering.store import Store, verdict_from_json, verdict_to_json
from compcomp.proving.proof import EXACT, Proof, rule
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, confirmed
from compcomp.proving.session import Session
from compcomp.techniques import AbsMax, Magnitude
from compcomp.terms import Abs, Or, Term

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shrinks() -> Iterator[type[Claim]]:
    """``A shrinks weights``: at the end no weight is larger in magnitude than that of the dense layer."""
    before = dict(KINDS)

    @dataclass(frozen=True)
    class Shrinks(Claim):
        kind: ClassVar[str] = "shrinks"
        verb: ClassVar[str] = "shrinks"
        example: ClassVar[str] = "weights"

        @property
        def object(self) -> str:
            return "weights"

        @classmethod
        def read(
            cls, left: Any, after: str, *, loss: str, given: tuple[Condition, ...], sequence: Callable[[str], Any]
        ) -> Claim:
            if after.strip() != "weights":
                raise InputError(repr(after), "weights", "claim")
            return cls(left, given=given)

        def contradicted(self, runs: Items[Run], tolerance: float = 0) -> Term:
            dense, end = runs[0][0].weight.ravel(), runs[0][-1].effective().ravel()
            return Or(*(Abs(x) > Abs(w) * (1 + tolerance) + tolerance for w, x in zip(dense, end, strict=True)))

        def reason(self, runs: Items[Run]) -> str:
            return "a weight has grown"

    yield Shrinks
    KINDS.clear()
    KINDS.update(before)


def selections_shrink(claim: Claim, session: Session) -> Proof | Refusal:
    """A selection leaves a weight or makes it zero."""
    if not all(t.steps() and all(isinstance(step, Selection) for step in t.steps()) for t in claim.left):
        return Refusal("not all steps are selections")
    return Proof("shrinks", "any shape", (EXACT,))


def test_a_new_kind_is_one_class_and_one_rule(
    shrinks: type[Claim], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import compcomp.proving.why as module

    added = rule("shrinks", shrinks, needs="selections alone")(selections_shrink)
    monkeypatch.setattr(module, "RULES", (*module.RULES, added))
    true, false = parse_claim("Magnitude(sparsity=1/2) shrinks weights"), parse_claim("AbsMax(bits=2)  shrinks weights")
    assert type(true) is shrinks and str(true) == "Magnitude(sparsity=1/2) shrinks weights"
    assert claim_from_json(json.loads(json.dumps(true.to_json()))) == true
    with pytest.raises(InputError, match="'A shrinks weights'"):
        parse_claim("no claim")
    assert str(parse_claim(f"{true} given no_ties")) == f"{true} given no_ties"

    proof = prove(true, second=None)
    assert proof.proved and proof.reason == "rule shrinks"

    refuted = prove(false)
    assert refuted.refuted and refuted.witness is not None and refuted.reason == "a weight has grown"
    import numpy as np

    weight = np.array([list(row) for row in refuted.witness.weight], dtype=object)
    assert confirmed(false, Suspect(weight, None)) and not confirmed(true, Suspect(weight, None))
    assert prove(true, "2x2", stages=("bounded",), second=None).proved, "a formula at one shape needs no rule"

    for verdict in (proof, refuted):
        assert verdict_from_json(json.loads(json.dumps(verdict_to_json(verdict)))) == verdict
        assert str(verdict.claim) in str(verdict) and "shrinks" in verdict.to_latex()
    store = Store(tmp_path / "store.db")
    store.put(refuted)
    assert store.get(false, refuted.scope) == refuted
    assert follows(refuted, true, refuted.scope) is None and family(true) != family(equal(Magnitude("1/2"), AbsMax(2)))


def test_new_kinds_show_in_a_terminal_and_in_html(shrinks: type[Claim]) -> None:
    from compcomp.reporting.html_verdicts import verdict_list
    from compcomp.reporting.terminal import verdict_view

    verdict = prove(parse_claim("AbsMax(bits=2) shrinks weights"), stages=("search",))
    assert '<span class="verb">shrinks</span> weights' in verdict_list([verdict])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(verdict_view(verdict))
    assert "shrinks weights" in console.export_text()


def test_no_two_kinds_share_a_verb(shrinks: type[Claim]) -> None:
    with pytest.raises(InputError, match="shrinks"):

        class Other(Claim):
            kind: ClassVar[str] = "other"
            verb: ClassVar[str] = "shrinks"

    with pytest.raises(InputError, match="small letters"):

        class Silent(Claim):
            verb: ClassVar[str] = ""


def test_both_equalities_are_read_and_written() -> None:
    p, q = Magnitude("1/2"), AbsMax(4)
    for claim, kind in ((equal(p >> q >> p, p >> q), Equals), (same_state(p, q), SameState)):
        assert type(parse_claim(str(claim))) is kind and parse_claim(str(claim)) == claim
        assert claim_from_json(claim.to_json()) == claim
    with pytest.raises(ValueError, match="another claim"):
        claim_from_json(equal(p, q).to_json(), same_state(p, q))


def test_nothing_is_decided_by_the_name_of_a_kind() -> None:
    """But by the class. Rules say which kinds they are about; the checker names a kind that it does not replay."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "compcomp").rglob("*.py"))
        if path.parent.name != "rules"
        for line in path.read_text(encoding="utf-8").splitlines()
        if "claim.kind" in line and "is not replayed here" not in line
    ]
    assert not found

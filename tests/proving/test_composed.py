"""Rule (composed): what it proves holds of every layer of a small set, and what it must refuse it refuses."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from compcomp.checking.contracts import derived
from compcomp.checking.directory import check_directory
from compcomp.language.claim import Dominates, Orthogonal, orthogonal
from compcomp.language.refusal import Refusal
from compcomp.language.technique import Sequence, Technique
from compcomp.language.text import parse_claim
from compcomp.proving.proof import Proof, rule
from compcomp.proving.prove import default_prover, prove
from compcomp.proving.rules import composed
from compcomp.proving.rules.composed import composed_by
from compcomp.proving.session import Session
from compcomp.techniques import AbsMax, ApplyMask, Magnitude, MinMax, PruneColumns, PruneRows, TruncatedSVD, Wanda
from tests.claims import CLAIMS
from tests.proving.test_soundness import counterexample

P, Q, N = Magnitude("1/2"), AbsMax(4), Magnitude("1/2", pattern="2:4")
L = TruncatedSVD(rank=1, residual=True)
IDENTITY = Sequence(())

TECHNIQUES: list[Technique] = [
    Magnitude("1/2"),
    Magnitude("1/4"),
    Magnitude("1/2", pattern="1:2"),
    Magnitude("1/2", pattern="1:2", of="dense", ties="all"),
    Magnitude("1/4", ties="any"),
    AbsMax(2),
    AbsMax(3, rounding="any"),
    AbsMax(3, group=2),
    MinMax(2),
    MinMax(2, zero="none"),
    PruneRows("1/2"),
    PruneColumns("1/2", score="l2"),
    ApplyMask(),
    L,
]


def session() -> Session:
    return default_prover().session(time.monotonic() + 20)


def drawn(count: int) -> list[Orthogonal]:
    """Pairs of sequences of up to two techniques, of which the second often repeats a part of the first."""
    draw, found = random.Random(7), list[Orthogonal]()
    while len(found) < count:
        left = [draw.choice(TECHNIQUES) for _ in range(draw.choice((1, 2, 2)))]
        right = draw.choice((left, left[:1], left[1:], left[::-1], [draw.choice(TECHNIQUES)]))
        loss = draw.choice(("weight_l1", "weight_l2"))
        found.append(orthogonal(Sequence(tuple(left)), Sequence(tuple(right)), loss))
    return found


@pytest.mark.parametrize("part", range(4))
def test_whatever_is_proved_holds_of_every_small_layer(part: int) -> None:
    proved = [claim for claim in drawn(160)[part::4] if isinstance(composed(claim, session()), Proof)]
    assert len(proved) >= 10
    for claim in proved:
        for rows, columns in ((1, 4), (2, 2)):
            if claim.fits((rows, columns)):
                assert not counterexample(claim, columns, rows, largest=3), claim


@pytest.mark.parametrize(
    "text",
    [text for text, _, _, expected in CLAIMS if "is orthogonal to" in text and expected == "REFUTED"],
)
def test_refuted_claims_are_not_proved(text: str) -> None:
    loss, scope = next((loss, scope) for row, loss, scope, expected in CLAIMS if row == text and expected == "REFUTED")
    assert isinstance(composed(parse_claim(text, loss), session()), Refusal), scope


@pytest.mark.parametrize("given", [P, Q, L, PruneRows("1/2"), P >> Q], ids=str)
def test_what_follows_a_sequence_of_nothing_or_is_followed_by_it(given: Technique) -> None:
    for claim in (orthogonal(given, IDENTITY), orthogonal(IDENTITY, given)):
        verdict = prove(claim, second=None)
        assert verdict.proved and verdict.reason in ("rule composed", "rule orthogonal") and not verdict.local_rewrite


def test_free_choices_may_differ_from_run_to_run() -> None:
    """One run may drop a larger weight of equal score, so that even doing nothing after it adds an error."""
    claim = orthogonal(Wanda("1/2", ties="any"), IDENTITY, "weight_l2")
    assert isinstance(composed(claim, session()), Refusal)
    assert prove(claim, search_seconds=5, second=None).refuted


def test_a_dominance_the_other_way_round_proves_nothing() -> None:
    asked: list[str] = []

    @rule("backwards", Dominates, needs="that one part dominates the composition")
    def backwards(claim: Dominates, session: Session) -> Proof | Refusal:
        asked.append(str(claim))
        both = str(P >> Q)
        return Proof("backwards", "any shape", ()) if str(claim.right) == both else Refusal("the other way round")

    claim = orthogonal(P, Q, "weight_l1")
    found = composed_by((backwards,), frozenset())(claim, session())
    assert isinstance(found, Refusal) and "no more than" in found.reason
    assert asked == [f"{P >> Q} dominates {P}", f"{P >> Q} dominates {Q}"]


def test_each_dominance_keeps_the_conditions_and_the_loss() -> None:
    asked: list[Dominates] = []

    @rule("recorded", Dominates, needs="nothing")
    def recorded(claim: Dominates, session: Session) -> Proof | Refusal:
        asked.append(claim)
        return Refusal("recorded")

    claim = orthogonal(P, Q, "output_l2", given=["no_ties"])
    composed_by((recorded,), frozenset())(claim, session())
    assert len(asked) == 2 and all((one.given, one.loss) == (claim.given, claim.loss) for one in asked)


def test_a_rule_that_does_not_hold_in_another_basis_is_not_asked() -> None:
    @rule("credulous", Dominates, needs="nothing")
    def credulous(claim: Dominates, session: Session) -> Proof | Refusal:
        return Proof("credulous", "any shape", ())

    claim = parse_claim("Hadamard() >> Magnitude(sparsity=1/2) is orthogonal to AbsMax(bits=4)", "weight_l1")
    found = composed_by((credulous,), frozenset())(claim, session())
    assert isinstance(found, Refusal) and "basis" in found.reason
    assert isinstance(composed_by((credulous,), frozenset({credulous}))(claim, session()), Proof)


@pytest.mark.parametrize("text", ["{P} is orthogonal to {L}", "{R} is orthogonal to {R}", "{N} is orthogonal to {N}"])
def test_proofs_are_checked_from_their_files(text: str, tmp_path: Path) -> None:
    """Those that need no query are derived from promises, by code that shares nothing with the prover."""
    claim = parse_claim(text.format(P=P, L=L, N=N, R=PruneRows("1/2")), "weight_l2")
    verdict = prove(claim, certify=True)
    assert verdict.proved and verdict.reason == "rule composed"
    assert str(verdict.grade) == ("certified" if verdict.queries else "no solver needed"), verdict.notes
    verdict.save(tmp_path / "proof")
    assert check_directory(tmp_path / "proof").outcome == "valid"
    assert derived(claim) == (not verdict.queries)

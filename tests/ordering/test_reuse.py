"""Each law answers what it may, and nothing else: each has a claim that a wrong law would cover."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import pytest

from compcomp.language.assumption import contract
from compcomp.language.claim import Claim, Scope, dominates, equal, fits, keeps, orthogonal, same_state
from compcomp.language.conditions import conditions
from compcomp.language.parameters import ANY
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.verdict import Grade, Status, Verdict
from compcomp.ordering import reuse
from compcomp.ordering.reuse import canonical, family, follows
from compcomp.ordering.store import key_of
from compcomp.proving.premises import within
from compcomp.proving.proof import EXACT
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, confirmed
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, Wanda
from tests.helpers import matrix
from tests.ordering.fakes import verdict

PROVED, REFUTED = Status.PROVED, Status.REFUTED
P, Q, D = Magnitude("1/2"), AbsMax(bits=4), LeastSquaresDistill()
ANYP, ANYQ = Magnitude(ANY), AbsMax(ANY)
ANYWHERE = Scope.of("any")


def proof(claim: Claim, scope: str = "any", **more: Any) -> Verdict:
    """A proof, as if the prover had found it."""
    return verdict(claim, PROVED, scope, **{"grade": Grade.TWO_SOLVERS, "assumptions": ("exact",), **more})


def covered(source: Verdict, claim: Claim, scope: str = "any") -> bool:
    found = follows(source, claim, Scope.of(scope))
    if found is None:
        return False
    assert (found.claim, found.status) == (claim, source.status)
    assert found.scope == within(claim, Scope.of(scope))
    assert set(source.assumptions) <= set(found.assumptions)
    assert found.notes[-1].startswith(f"follows from a verdict on {source.claim}")
    assert all(condition.assumption in found.assumptions for condition in claim.given if found.proved)
    return True


# ---------------------------------------------------------------------------------------------- scopes


def test_a_proof_for_any_shape_covers_the_shapes_that_techniques_fit() -> None:
    claim = dominates(Magnitude("1/2", pattern="2:4") >> Q, Q >> Magnitude("1/2", pattern="2:4"))
    assert all(covered(proof(claim), claim, scope) for scope in ("any", "1x4", "3x8", "block:4"))
    assert not covered(proof(claim), claim, "3x6")
    rule = replace(proof(claim, "1x4"), reach="any shape")  # a rule says more than was asked
    assert covered(rule, claim, "any") and covered(rule, claim, "2x8")
    assert follows(rule, claim, Scope.of("2x8")).reach == "any shape"  # type: ignore[union-attr]


def test_a_proof_at_one_shape_covers_that_shape() -> None:
    claim = dominates(P >> Q, Q >> P)
    small = proof(claim, "1x4")
    assert covered(small, claim, "1x4")
    assert not any(covered(small, claim, scope) for scope in ("any", "1x2", "1x8", "2x4", "block:4"))
    odd = replace(proof(claim), reach="shape 1 x 4")
    assert not covered(odd, claim, "1x8")


def test_a_proof_of_a_block_covers_layers_of_such_blocks() -> None:
    blocks = dominates(AbsMax(4, group=4), AbsMax(3, group=2))
    assert covered(proof(blocks, "block:4", assumptions=()), blocks, "3x8")
    assert not any(covered(proof(blocks, "block:4", assumptions=()), blocks, s) for s in ("any", "3x6", "block:2"))
    assert not covered(proof(blocks, "block:4", assumptions=("no ties",)), blocks, "3x8")
    more = replace(blocks, given=conditions("scale_unchanged"))
    assert covered(proof(blocks, "block:4", assumptions=()), more, "1x8")
    assert not covered(proof(more, "block:4", assumptions=()), more, "1x8")
    whole = dominates(AbsMax(4), AbsMax(3))
    assert not covered(proof(whole, "block:4", assumptions=()), whole, "1x8")
    outputs = dominates(AbsMax(4, group=4), AbsMax(3, group=2), loss="output_l2")
    assert not covered(proof(outputs, "block:4", assumptions=()), outputs, "1x8")


@pytest.fixture(scope="module")
def outputs() -> Verdict:
    """Refuted, by a layer of 2 x 2."""
    found = prove(dominates(P >> Q, Q >> P, loss="output_l2"), "2x2", stages=("search",), search_seconds=2)
    assert found.refuted
    return found


def test_a_witness_refutes_its_shape_and_any(outputs: Verdict) -> None:
    claim = outputs.claim
    assert covered(outputs, claim, "any") and covered(outputs, claim, "2x2")
    assert not any(covered(outputs, claim, scope) for scope in ("1x4", "2x4", "block:2", "1x2"))
    found = follows(outputs, claim, ANYWHERE)
    assert found is not None and found.witness == outputs.witness and found.reach == "any shape"


def test_a_witness_counts_only_where_it_refutes(outputs: Verdict) -> None:
    assert outputs.witness is not None
    harmless = replace(outputs.witness, weight=((Fraction(0),) * 2,) * 2)
    assert not covered(replace(outputs, witness=harmless), outputs.claim)
    assert not covered(replace(outputs, witness=None), outputs.claim)
    assert not covered(outputs, dominates(P >> Q, Q >> P, loss="weight_l2"))
    assert not covered(outputs, dominates(Q >> P, P >> Q, loss="output_l2"))


@pytest.mark.parametrize("status", [Status.UNKNOWN, Status.VACUOUS, Status.DISAGREE])
def test_other_verdicts_cover_nothing(status: Status) -> None:
    claim = equal(ANYP >> ANYQ, ANYQ >> ANYP)
    source = verdict(claim, status)
    for asked in (claim, equal(P >> Q, Q >> P), dominates(ANYP >> ANYQ, ANYQ >> ANYP)):
        assert follows(source, asked, ANYWHERE) is None and follows(source, asked, Scope.of("1x2")) is None


# ---------------------------------------------------------------------------------------------- parameters


def test_a_proof_for_any_parameter_covers_each_value() -> None:
    source = proof(dominates(ANYP >> ANYQ, ANYQ >> ANYP, loss="weight_l1"))
    for one, other in ((P, Q), (Magnitude("2/7"), AbsMax(11)), (ANYP, Q), (P, ANYQ)):
        assert covered(source, dominates(one >> other, other >> one, loss="weight_l1"))
    assert covered(source, dominates(P >> Q, Q >> P, loss="weight_l1"), "3x5")
    assert not covered(source, dominates(P >> Q, Q >> P, loss="weight_l2"))


@pytest.mark.parametrize(
    "claim",
    [
        dominates(Magnitude("1/4") >> Q, Q >> Magnitude("3/4"), loss="weight_l1"),  # two sparsities
        dominates(ANYP >> Q, Q >> P, loss="weight_l1"),  # any, and one that is not any
        dominates(P >> Q, AbsMax(3) >> P, loss="weight_l1"),  # two bit widths
        dominates(Magnitude("1/2", pattern="2:4") >> Q, Q >> Magnitude("1/2", pattern="2:4"), loss="weight_l1"),
        dominates(Magnitude("1/2", ties="any") >> Q, Q >> Magnitude("1/2", ties="any"), loss="weight_l1"),
        dominates(Wanda("1/2") >> Q, Q >> Wanda("1/2"), loss="weight_l1"),
        dominates(Q >> P, P >> Q, loss="weight_l1"),
        dominates(P >> Q >> D, Q >> P >> D, loss="weight_l1"),
        orthogonal(P, Q),
    ],
)
def test_a_proof_for_any_parameter_covers_nothing_else(claim: Claim) -> None:
    assert not covered(proof(dominates(ANYP >> ANYQ, ANYQ >> ANYP, loss="weight_l1")), claim)


def test_a_proof_for_one_value_covers_no_other() -> None:
    source = proof(dominates(P >> Q, Q >> P, loss="weight_l1"))
    for one, other in ((ANYP, ANYQ), (ANYP, Q), (Magnitude("1/4"), Q), (P, AbsMax(3))):
        assert not covered(source, dominates(one >> other, other >> one, loss="weight_l1"))


@dataclass(frozen=True)
class Scaled(Technique):
    """Its examples name a parameter that decides how weights are grouped."""

    size: Any
    examples: ClassVar[dict[str, tuple[object, ...]]] = {"size": (2, 4)}

    def steps(self) -> tuple[Any, ...]:
        return AbsMax(4, group=2 if self.size is ANY else self.size).steps()


def test_blocks_are_those_of_the_claim_that_is_asked() -> None:
    source = proof(dominates(Scaled(ANY), Scaled(ANY)), "block:4", assumptions=())
    assert covered(source, dominates(Scaled(4), Scaled(4)), "1x8")
    assert not covered(source, dominates(Scaled(8), Scaled(8)), "1x8")


def test_an_instance_refutes_the_claim_about_all(outputs: Verdict) -> None:
    assert covered(outputs, dominates(ANYP >> ANYQ, ANYQ >> ANYP, loss="output_l2"))
    assert covered(outputs, dominates(ANYP >> Q, Q >> ANYP, loss="output_l2"), "2x2")
    assert not covered(outputs, dominates(Magnitude("1/4") >> Q, Q >> Magnitude("1/4"), loss="output_l2"))
    third = prove(dominates(P >> AbsMax(5), AbsMax(5) >> P, loss="output_l2"), "2x2", stages=("search",))
    assert third.refuted and 5 not in AbsMax.examples["bits"]
    assert covered(third, dominates(P >> ANYQ, ANYQ >> P, loss="output_l2"))


def test_a_refutation_of_the_claim_about_all_refutes_the_instance_it_found() -> None:
    claim = dominates(ANYP >> ANYQ, ANYQ >> ANYP, loss="output_l2")
    source = prove(claim, stages=("search",), search_seconds=2)
    assert source.refuted and source.witness is not None
    chosen = next(c for c in claim.instances() if str(c.left) == source.witness.traces[0].sequence)
    assert covered(source, chosen)
    assert not covered(source, next(c for c in claim.instances() if c != chosen))


# ---------------------------------------------------------------------------------------------- conditions

WITH = dominates(P >> Q, Q >> P, given="scale_unchanged")


def test_a_proof_under_fewer_conditions_covers_more() -> None:
    source = proof(WITH, needed=("scale_unchanged",))
    more = dominates(P >> Q, Q >> P, given="no_ties, scale_unchanged")
    assert covered(source, more) and covered(source, more, "1x4")
    assert follows(source, more, ANYWHERE).needed == ("scale_unchanged",)  # type: ignore[union-attr]
    assert covered(proof(dominates(P >> Q, Q >> P)), more)
    assert follows(proof(dominates(P >> Q, Q >> P)), more, ANYWHERE).needed == ()  # type: ignore[union-attr]
    assert not covered(source, dominates(P >> Q, Q >> P))
    assert not covered(source, dominates(P >> Q, Q >> P, given="no_ties"))
    assert not covered(proof(more), WITH)


def test_what_a_condition_says_among_others() -> None:
    weak, strong = (dominates(P >> Q, Q >> P, "output_l2", given=g) for g in ("diagonal_gram", "orthogonal_inputs"))
    assert covered(proof(weak, needed=("diagonal_gram",)), strong)
    assert follows(proof(weak), strong, ANYWHERE).needed == ("orthogonal_inputs",)  # type: ignore[union-attr]
    assert not covered(proof(strong), weak)


def test_premises_that_cannot_hold_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a layer of one weight of two, ties at the threshold are not avoided where both are pinned to one value."""
    monkeypatch.setattr(reuse, "SECONDS", 0.2)
    claim = dominates(P >> Q, Q >> P)
    pinned = "no_ties, box(radius=0, around=((1, 1),))"
    assert not covered(proof(claim), replace(claim, given=conditions(pinned)))
    assert covered(proof(claim), replace(claim, given=conditions("no_ties, box(radius=0, around=((1, 2),))")))
    honest = prove(replace(claim, given=conditions(pinned)), second=None)
    assert honest.status is Status.VACUOUS


def test_a_witness_that_meets_all_conditions_refutes_with_fewer() -> None:
    W = Wanda("1/2")
    claim = dominates(W >> Q, Q >> W, given="no_ties")
    source = prove(claim, "1x4", stages=("search",), search_seconds=2)
    assert source.refuted
    assert covered(source, dominates(W >> Q, Q >> W), "any")
    assert not covered(source, replace(claim, given=conditions("no_ties, scale_unchanged")))
    bare = prove(equal(P >> Q, Q >> P), "1x2", stages=("search",), search_seconds=2)
    assert bare.refuted and not covered(bare, equal(P >> Q, Q >> P, given="no_ties"))


# ------------------------------------------------------------------------------------------------- schemes


def test_a_scheme_is_fitted_where_it_was_proved_and_for_no_other() -> None:
    N, G = Magnitude("1/2", pattern="2:4"), AbsMax(bits=4, group=4)
    source = proof(fits(N >> G, "W4 2:4"))
    assert covered(source, fits(N >> G, "W4 2:4"), "3x8") and covered(source, fits(N >> G, "2:4 W4"))
    assert not covered(source, fits(N >> G, "W4 2:4"), "1x6")
    for scheme in ("W3 2:4", "W4", "W4 1:4", "W4 2:4 +r1", "W4 2:4 1%"):
        assert not covered(source, fits(N >> G, scheme)), "no law says so yet"
    assert not covered(source, keeps(N >> G, "mask")) and not covered(source, fits(N >> Q, "W4 2:4"))
    assert covered(proof(fits(ANYP >> Q, "W4")), fits(P >> Q, "W4"), "2x2")
    exact = {"assumptions": (EXACT,)}
    assert covered(proof(fits(N >> G, "W4 2:4"), "block:8", **exact), fits(N >> G, "W4 2:4"), "3x16")
    # A third of 5 weights is 1, of 10 it is 3: what blocks have does not add up.
    assert not covered(proof(fits(N >> G, "1/3"), "block:8", **exact), fits(N >> G, "1/3"), "3x16")


# ---------------------------------------------------------------------------------------------- equalities


def test_an_equality_holds_either_way_and_for_every_loss() -> None:
    source = proof(equal(P >> Q, Q >> P))
    assert covered(source, equal(Q >> P, P >> Q))
    for loss in ("weight_l1", "output_l2"):
        assert covered(source, dominates(P >> Q, Q >> P, loss)) and covered(source, dominates(Q >> P, P >> Q, loss))
    assert covered(proof(equal(ANYP >> Q, Q >> ANYP)), dominates(Q >> P, P >> Q), "3x3")
    assert not covered(source, keeps(P >> Q, "mask")) and not covered(source, orthogonal(P >> Q, Q >> P))


def test_one_state_says_that_sequences_are_equal_and_not_the_reverse() -> None:
    source = proof(same_state(P >> Q, Q >> P))
    assert covered(source, equal(P >> Q, Q >> P)) and covered(source, equal(Q >> P, P >> Q))
    assert covered(source, same_state(Q >> P, P >> Q)) and covered(source, dominates(Q >> P, P >> Q, "output_l2"))
    assert not covered(proof(equal(P >> Q, Q >> P)), same_state(P >> Q, Q >> P))
    claim = equal(P >> Q >> P, P >> Q)
    state = prove(same_state(*claim.sides), stages=("search",), search_seconds=2)
    assert state.refuted and state.reason.endswith("they differ in mask")
    assert not covered(state, claim) and prove(claim, second=None).proved


def test_a_refuted_equality_refutes_one_state() -> None:
    source = prove(equal(P >> Q, Q >> P), "1x2", stages=("search",), search_seconds=2)
    found = follows(source, same_state(Q >> P, P >> Q), ANYWHERE)
    assert source.refuted and found is not None and found.refuted
    assert found.reason.startswith("the two sequences give different states: they differ in weight")


def test_an_equality_under_conditions_says_no_more_of_losses() -> None:
    source = proof(equal(P >> Q, Q >> P, given="no_ties"))
    assert covered(source, dominates(Q >> P, P >> Q, given="no_ties"))
    assert not covered(source, dominates(Q >> P, P >> Q))


def test_a_dominance_is_neither_an_equality_nor_the_reverse() -> None:
    source = proof(dominates(P >> Q, Q >> P))
    assert not covered(source, equal(P >> Q, Q >> P)) and not covered(source, dominates(Q >> P, P >> Q))


def test_a_refuted_equality_is_shown_the_way_it_is_asked() -> None:
    source = prove(equal(P >> Q, Q >> P), "1x2", stages=("search",), search_seconds=2)
    asked = equal(Q >> P, P >> Q)
    assert source.refuted and covered(source, asked)
    found = follows(source, asked, ANYWHERE)
    assert found is not None and found.witness is not None
    assert [t.sequence for t in found.witness.traces] == [str(Q >> P), str(P >> Q)]
    assert not covered(source, dominates(P >> Q, Q >> P)) or prove(dominates(P >> Q, Q >> P)).refuted


def test_a_refuted_dominance_refutes_the_equality(outputs: Verdict) -> None:
    for asked in (equal(P >> Q, Q >> P), equal(Q >> P, P >> Q), equal(ANYQ >> P, P >> ANYQ)):
        found = follows(outputs, asked, ANYWHERE)
        assert found is not None and found.refuted and found.witness is not None
        assert found.witness.traces[0].loss is None and found.reason.endswith("effective weights")
        assert found.witness.traces[0].sequence.startswith("AbsMax" if asked.left.techniques[0] != P else "Magn")


# ---------------------------------------------------------------------------------------------- boxes


def boxed(radius: str, around: str, left: Technique | Sequence = P >> Q, right: Technique | Sequence = Q >> P) -> Claim:
    return dominates(left, right, given=f"box(radius={radius}, around={around})")


@dataclass(frozen=True)
class Clipped(Technique):
    """A technique that does not scale along."""

    declared: ClassVar[Declared] = Declared(homogeneous=False)


def test_a_box_inside_another_and_a_box_scaled() -> None:
    source = proof(boxed("1", "((4, 2),)"), "1x2")
    assert covered(source, boxed("1/2", "((4, 2),)")) and covered(source, boxed("1/2", "((9/2, 2),)"), "1x2")
    assert covered(source, boxed("3", "((12, 6),)")) and covered(source, boxed("1/8", "((1/2, 1/4),)"))
    assert not any(covered(source, boxed(*box)) for box in (("2", "((4, 2),)"), ("1", "((9/2, 1),)")))
    assert not covered(source, boxed("1", "((-4, -2),)")) and not covered(source, boxed("3", "((12, 5),)"))
    assert not covered(source, dominates(P >> Q, Q >> P), "1x2")
    scaled = follows(source, boxed("3", "((12, 6),)"), ANYWHERE)
    assert scaled is not None and contract(P, "scales along with the layer") in scaled.assumptions


def test_a_box_is_not_scaled_for_what_does_not_scale() -> None:
    source = proof(boxed("1", "((4, 2),)", Clipped(), P), "1x2")
    assert not covered(source, boxed("3", "((12, 6),)", Clipped(), P))
    assert key_of(source.claim, ANYWHERE) != key_of(boxed("3", "((12, 6),)", Clipped(), P), ANYWHERE)
    claim = replace(boxed("1", "((4, 2),)"), given=(*boxed("1", "((4, 2),)").given, *conditions("scale_unchanged")))
    larger = replace(claim, given=(*boxed("3", "((12, 6),)").given, *conditions("scale_unchanged")))
    assert not covered(proof(claim, "1x2"), larger)


def test_the_witness_of_a_scaled_box_is_scaled() -> None:
    source = prove(equal(P >> Q, Q >> P, given="box(radius=1, around=((3, 3),))"), second=None)
    asked = equal(P >> Q, Q >> P, given="box(radius=2, around=((6, 6),))")
    assert source.refuted and covered(source, asked)
    found = follows(source, asked, ANYWHERE)
    assert found is not None and found.witness is not None
    assert confirmed(asked, Suspect(matrix(found.witness.weight), None))


# ---------------------------------------------------------------------------------------------- one form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (equal(P >> Q, Q >> P), equal(Q >> P, P >> Q)),
        (dominates(Magnitude(0.5), Q), dominates(Magnitude("2/4", per="tensor"), Q)),
        (dominates(P, Q, given="no_ties, scale_unchanged"), dominates(P, Q, given=["scale_unchanged", "no_ties"])),
        (replace(dominates(P, Q), given=conditions("no_ties") * 2), dominates(P, Q, given="no_ties")),
        (
            dominates(P, Q, "output_l2", given="orthogonal_inputs, diagonal_gram"),
            dominates(P, Q, "output_l2", given="orthogonal_inputs"),
        ),
        (boxed("1", "((4, 2),)"), boxed("0.25", "((1, 1/2),)")),
    ],
)
def test_claims_that_say_the_same_have_one_key(one: Claim, other: Claim) -> None:
    assert key_of(one, ANYWHERE) == key_of(other, ANYWHERE) is not None
    assert canonical(canonical(one)) == canonical(one) and family(one) == family(other)
    assert covered(proof(one, str(within(one, ANYWHERE))), other)


def test_claims_that_differ_have_different_keys() -> None:
    free = Magnitude("1/2", ties="any")
    claims = [
        dominates(P, Q),
        dominates(Q, P),
        dominates(P, Q, "weight_l1"),
        equal(P, Q),
        equal(free, Q),
        equal(Q, free),  # the seed of a witness belongs to a side
        dominates(P, Q, given="no_ties"),
        dominates(P, ANYQ),
        orthogonal(P, Q),
        orthogonal(P, Q, slack="1/2"),
        boxed("1", "((4, 2),)"),
        boxed("1", "((-4, -2),)"),
    ]
    assert len({key_of(claim, ANYWHERE) for claim in claims}) == len(claims)


# ---------------------------------------------------------------------------------------------- against the prover

GIVEN = ["", "", "no_ties", "scale_unchanged", "no_ties, scale_unchanged", "largest_kept"]
BOXES = ["1, around=((3, 2),)", "2, around=((6, 4),)", "1/2, around=((3, 2),)", "0, around=((1, 1),)"]


def drawn(chance: random.Random, kind: type[Magnitude | Wanda], ties: str) -> tuple[Claim, Scope]:
    """A claim of a small family, in which many follow from others, true and false ones."""
    share, bits = chance.choice([ANY, "1/2"]), chance.choice([ANY, 2, 2])
    p, q = kind(share, ties=ties if chance.random() < 0.9 else "all"), AbsMax(bits)
    sides = chance.choice([(p >> q, q >> p), (q >> p, p >> q), (p >> p, p), (p, p >> p), (p >> q >> q, p >> q)])
    boxed = chance.random() < 0.25
    chosen = f"box(radius={chance.choice(BOXES)})" if boxed else chance.choice(GIVEN)
    given = [c for c in conditions(chosen or ()) if c.concerns(dominates(*sides))]
    if chance.random() < 0.4:
        claim = equal(*sides, given=given)
    else:
        claim = dominates(*sides, loss=chance.choice(["weight_l1", "weight_l2", "output_l2"]), given=given)
    scopes = ["any", "1x2"] if boxed else ["any", "any", "1x2", "1x3", "2x2", "block:2"]
    return claim, Scope.of(chance.choice(scopes))


@pytest.mark.parametrize(
    ("seed", "kind", "ties"),
    [(0, Magnitude, "first"), (1, Wanda, "first"), (2, Magnitude, "any"), (3, Magnitude, "all")],
)
def test_no_law_contradicts_the_prover(seed: int, kind: Any, ties: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair out of claims drawn at random, each asked honestly: what is covered is never decided otherwise."""
    monkeypatch.setattr(reuse, "SECONDS", 0.1)
    chance = random.Random(seed)
    honest = []
    for claim, scope in (drawn(chance, kind, ties) for _ in range(50)):
        stages = ("rule", "search")
        honest.append(prove(claim, scope, stages=stages, search_seconds=0.03, second=None, timeout=10, explain=False))
    seen: Counter[tuple[Status, Status]] = Counter()
    for source in honest:
        for other in honest:
            found = follows(source, other.claim, other.scope)
            if found is None:
                continue
            assert family(source.claim) == family(other.claim)
            assert {found.status, other.status} not in ({PROVED, REFUTED}, {PROVED, Status.VACUOUS}), (
                f"{source}\nsays {found}\nbut {other}"
            )
            if source is not other:
                seen[found.status, other.status] += 1
    assert seen[PROVED, PROVED] + seen[REFUTED, REFUTED] > 20 and seen[REFUTED, REFUTED] > 1, seen

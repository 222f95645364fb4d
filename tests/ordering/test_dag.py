"""The laws: only proofs that cover the layers merge or drop, and every order is accounted for once."""

from __future__ import annotations

import json
import random
from itertools import combinations, permutations

import networkx as nx
import pytest

from compcomp.language.assumption import contract
from compcomp.language.claim import Claim, dominates, same_state
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Status
from compcomp.ordering.covers import covers
from compcomp.ordering.dag import Orderings
from compcomp.ordering.space import Prefix, optional
from compcomp.proving.proof import EXACT
from compcomp.techniques import AbsMax, DistillFactors, LeastSquaresDistill, LoRA, Magnitude
from tests.ordering.fakes import verdict

A, B, C, D = (AbsMax(bits=bits) for bits in (2, 3, 4, 5))
UNPROVED = [status for status in Status if status is not Status.PROVED]


def same(orderings: Orderings, one: Prefix, other: Prefix, status: Status = Status.PROVED) -> bool:
    return orderings.merge(verdict(same_state(orderings.order(one), orderings.order(other)), status))


def worse(orderings: Orderings, one: Prefix, other: Prefix, status: Status = Status.PROVED) -> bool:
    claim = dominates(orderings.order(one), orderings.order(other), loss=orderings.loss)
    return orderings.drop(verdict(claim, status))


def test_without_proofs_every_order_stays() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    assert orderings.counted() == {"total": 6, "merged": 0, "dropped": 0, "measured": 6}
    assert list(orderings.staying()) == list(permutations(range(3)))
    assert orderings.full_tree == 3 + 6 + 6


def test_the_full_tree_of_eight() -> None:
    orderings = Orderings([AbsMax(bits=bits) for bits in range(2, 10)], "weight_l2")
    assert (orderings.total, orderings.full_tree) == (40_320, 109_600)


@pytest.mark.parametrize("given", [[A, A], [A, A, B], [A, A, B, B], [A, A, A, B]])
def test_a_technique_listed_twice_gives_each_order_once(given: list[AbsMax]) -> None:
    orderings = Orderings(given, "weight_l2")
    texts = {str(Sequence(order)) for order in permutations(given)}
    prefixes = {order[:k] for order in permutations(given) for k in range(1, len(given) + 1)}
    assert {orderings.text(order) for order in orderings.orders()} == texts
    assert (orderings.total, orderings.full_tree) == (len(texts), len(prefixes))
    assert orderings.counted()["measured"] == len(texts)


@pytest.mark.parametrize("status", UNPROVED)
def test_only_a_proof_merges_or_drops(status: Status) -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    assert not same(orderings, (0, 1), (1, 0), status)
    assert not worse(orderings, (0, 1, 2), (1, 0, 2), status)
    assert orderings.counted()["measured"] == 6


def test_a_merged_prefix_takes_its_continuations_with_it() -> None:
    orderings = Orderings([A, B, C, D], "weight_l2")
    assert same(orderings, (1, 0), (0, 1))
    assert orderings.counted() == {"total": 24, "merged": 2, "dropped": 0, "measured": 22}
    assert orderings.representative((1, 0, 3, 2)) == (0, 1, 3, 2)
    (one,) = orderings.outcomes([(1, 0, 3, 2)])
    assert (one.kind, one.by) == ("merged", orderings.order((0, 1, 3, 2)))
    assert "same state as" in one.because


def test_what_may_not_merge() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    assert not orderings.merge(verdict(same_state(A >> D, D >> A), Status.PROVED))  # D is not of this search
    assert not orderings.merge(verdict(dominates(A >> B, B >> A), Status.PROVED))
    assert not orderings.merge(verdict(same_state(A >> B, B >> A), Status.PROVED, assumptions=("the layer is square",)))
    assert orderings.counted()["measured"] == 6


def test_equal_states_with_other_techniques_left_are_no_one_order() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    assert same(orderings, (0, 1), (0, 2)) and same(orderings, (1,), (1, 0))
    assert orderings.normal_form((0, 2))[0] == (0, 1) and orderings.normal_form((1, 0))[0] == (1,)
    assert orderings.representative((0, 2)) == (0, 2), "what is left differs"
    assert orderings.representative((1, 0)) == (1, 0)
    assert {orderings.text(p) for p in orderings.staying()} == {orderings.text(p) for p in orderings.orders()}


def test_from_every_state_a_proof_serves_inside_an_order_else_only_at_its_start() -> None:
    anywhere, dense = (Orderings([A, B, C], "weight_l2") for _ in range(2))
    claim = same_state(A >> B, B >> A)
    assert anywhere.merge(verdict(claim, Status.PROVED, local_rewrite=True)) and dense.merge(
        verdict(claim, Status.PROVED)
    )
    assert anywhere.representative((2, 1, 0)) == (2, 0, 1) and dense.representative((2, 1, 0)) == (2, 1, 0)
    assert (anywhere.counted()["merged"], dense.counted()["merged"]) == (3 - 1, 1)
    (one,) = anywhere.outcomes([(2, 1, 0)])
    assert one.kind == "merged" and [str(p.claim) for p in one.proofs] == [str(claim)]


def with_no_op(given: list[Technique], step: int, local_rewrite: bool = True) -> Orderings:
    """Orderings in which one technique changes nothing at first, and never loses anything at the end."""
    orderings = Orderings(given, "weight_l2")
    technique = orderings.techniques[step]
    assert orderings.merge(verdict(same_state(technique, Sequence()), Status.PROVED))
    for last in orderings.techniques:
        claim = dominates(last >> technique, last, loss="weight_l2")
        assert orderings.improves_last(verdict(claim, Status.PROVED, local_rewrite=local_rewrite)) == local_rewrite
    return orderings


def test_what_changes_nothing_at_first_comes_last() -> None:
    orderings = with_no_op([A, B, C], 2)
    assert orderings.counted() == {"total": 6, "merged": 0, "dropped": 2, "measured": 4}
    (one,) = orderings.outcomes([(2, 1, 0)])
    assert (one.kind, one.by) == ("dropped", orderings.order((1, 0, 2)))
    assert [str(p.claim) for p in one.proofs] == [f"{C} same state as identity", f"{A >> C} dominates {A}"]
    assert orderings.node((2, 1)) is None


def test_a_proof_from_the_dense_layer_alone_defers_nothing() -> None:
    orderings = with_no_op([A, B, C], 2, local_rewrite=False)
    assert orderings.counted()["dropped"] == 0 and orderings.representative((2, 1, 0)) == (2, 1, 0)


@pytest.mark.parametrize("seer", [None, DistillFactors()])
def test_what_leaves_factors_is_not_left_out_before_what_sees_them(seer: Technique | None) -> None:
    """Equal states agree in the product of their factors; that DistillFactors makes of them the same, nobody says."""
    for no_op in (LoRA(rank=1, iterations=1), LeastSquaresDistill()):
        orderings = Orderings([A, no_op, seer or B], "output_l2")
        left_out = orderings.merge(verdict(same_state(no_op, Sequence()), Status.PROVED))
        assert left_out is (seer is None or no_op == LeastSquaresDistill())
        anywhere = verdict(same_state(A >> no_op, no_op >> A), Status.PROVED, local_rewrite=True)
        assert orderings.merge(anywhere), "a proof from every state leaves the very same factors"


def test_nothing_is_deferred_to_a_place_it_may_not_take() -> None:
    orderings = Orderings([A, B, C], "weight_l2", before=[(C, B)])
    orderings.merge(verdict(same_state(C, Sequence()), Status.PROVED))
    for last in (A, B, C):
        orderings.improves_last(verdict(dominates(last >> C, last), Status.PROVED, local_rewrite=True))
    assert orderings.total == 3 and orderings.counted()["dropped"] == 0


def test_an_order_of_nothing_but_no_ops_stays() -> None:
    orderings = with_no_op([C, optional(A)], 0)
    assert {orderings.text(p) for p in orderings.staying()} >= {str(C)}
    assert orderings.counted()["total"] == 3


def test_what_is_the_same_on_a_model_is_merged_there_and_said_so() -> None:
    orderings = Orderings([A, B], "weight_l2")
    orderings.same_on_model({(0, 1): "x", (1, 0): "x"})
    assert orderings.counted() == {"total": 2, "merged": 1, "dropped": 0, "measured": 1}
    (one,) = orderings.outcomes([(1, 0)])
    assert one.kind == "merged" and one.proofs == () and "this model" in one.because


def test_an_order_that_is_known_to_lose_more_is_dropped() -> None:
    orderings = Orderings([A, B], "weight_l2")
    orderings.exceeds((1, 0), (0, 1), "its loss on half the layers is more")
    assert orderings.counted() == {"total": 2, "merged": 0, "dropped": 1, "measured": 1}
    (one,) = orderings.outcomes([(1, 0)])
    assert (one.kind, one.by, one.because) == (
        "dropped",
        orderings.order((0, 1)),
        "its loss on half the layers is more",
    )


def test_what_may_not_drop() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    assert not worse(orderings, (0, 1), (1, 0))  # a prefix: what follows might turn it round
    claim = dominates(A >> B >> C, B >> A >> C, loss="weight_l1")
    assert not orderings.drop(verdict(claim, Status.PROVED))
    assert not orderings.drop(verdict(same_state(A >> B >> C, B >> A >> C), Status.PROVED))


def test_of_orders_that_dominate_each_other_one_stays() -> None:
    orderings = Orderings([A, B], "weight_l2")
    assert worse(orderings, (0, 1), (1, 0)) and worse(orderings, (1, 0), (0, 1))
    assert orderings.counted() == {"total": 2, "merged": 0, "dropped": 1, "measured": 1}
    assert list(orderings.staying()) == [(0, 1)]


def test_a_chain_of_proofs_drops_and_is_reported() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    worse(orderings, (1, 0, 2), (2, 1, 0))
    worse(orderings, (0, 1, 2), (1, 0, 2))
    assert set(orderings.dropped()) == {(1, 0, 2), (2, 1, 0)}
    assert orderings.dominated((0, 1, 2), (2, 1, 0)) and not orderings.dominated((2, 1, 0), (0, 1, 2))
    (one,) = orderings.outcomes([(2, 1, 0)])
    assert (one.kind, one.by, len(one.proofs)) == ("dropped", orderings.order((0, 1, 2)), 2)


def test_dominance_drops_a_whole_class_and_may_name_any_member() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    same(orderings, (0, 1), (1, 0))
    assert worse(orderings, (2, 0, 1), (1, 0, 2))
    assert orderings.counted() == {"total": 6, "merged": 0, "dropped": 2, "measured": 4}


SMALL = verdict(dominates(A >> B, B >> A), Status.PROVED, "2x4")
BLOCK = verdict(dominates(AbsMax(4, group=4) >> AbsMax(3, group=2), AbsMax(3, group=2)), Status.PROVED, "block:4")


def test_a_proof_covers_the_layers_it_speaks_of() -> None:
    anywhere = verdict(dominates(A >> B, B >> A), Status.PROVED)
    assert covers(anywhere, None) and covers(anywhere, [(3, 5)])
    assert covers(SMALL, [(2, 4), (2, 4)])
    assert not covers(SMALL, None) and not covers(SMALL, [(2, 4), (4, 4)]) and not covers(SMALL, [])
    assert covers(BLOCK, [(7, 16)]) and not covers(BLOCK, [(7, 18)]) and not covers(BLOCK, None)


@pytest.mark.parametrize(
    "claim",
    [
        dominates(AbsMax(4, group=4), AbsMax(3, group=4), loss="output_l2"),  # blocks of a row share outputs
        dominates(AbsMax(4), AbsMax(3)),  # a scale for the whole tensor
        dominates(LeastSquaresDistill(), AbsMax(3, group=4)),
        dominates(Magnitude("1/2", per="row"), AbsMax(3, group=4)),
        dominates(AbsMax(4, group=8), AbsMax(3, group=4)),
    ],
)
def test_a_block_says_nothing_of_a_layer_that_is_more_than_its_blocks(claim: Claim) -> None:
    assert not covers(verdict(claim, Status.PROVED, "block:4"), [(2, 8)])


def test_an_assumption_must_be_known_to_hold() -> None:
    claim = same_state(A >> B, B >> A)
    harmless = verdict(claim, Status.PROVED, assumptions=(EXACT, contract("T", "never increases weight_l2")))
    strict = verdict(claim, Status.PROVED, assumptions=(EXACT, "no ties at the threshold"))
    assert covers(harmless, None) and not covers(strict, None)
    assert covers(strict, None, held=strict.assumptions[1:])
    assert not covers(strict, None, held=harmless.assumptions)
    assert not Orderings([A, B], "weight_l2").merge(strict)


def commuting(order: Prefix, pairs: set[frozenset[int]]) -> Prefix:
    """The first order that swaps of neighbours in ``pairs`` lead to."""
    seen, todo = {order}, [order]
    while todo:
        one = todo.pop()
        for k in range(len(one) - 1):
            swapped = (*one[:k], one[k + 1], one[k], *one[k + 2 :])
            if frozenset(one[k : k + 2]) in pairs and swapped not in seen:
                seen.add(swapped)
                todo.append(swapped)
    return min(seen)


@pytest.mark.parametrize("seed", range(25))
def test_merging_finds_the_classes_of_commuting_techniques(seed: int) -> None:
    """Against brute force: techniques of which random pairs commute, asked level by level, in random order."""
    chance = random.Random(seed)
    given = chance.choices([A, B, C, D], k=chance.randint(2, 5))
    orderings = Orderings(given, "weight_l2")
    every = list(combinations(range(len(orderings.techniques)), 2))
    pairs = {frozenset(pair) for pair in every if chance.random() < 0.5}
    for level in range(2, len(given) + 1):
        prefixes = [node.prefix for node in orderings.nodes.values() if len(node.prefix) == level]
        questions = list(combinations(prefixes, 2))
        chance.shuffle(questions)
        for one, other in questions:
            if commuting(one, pairs) == commuting(other, pairs):
                assert same(orderings, one, other)
    classes: dict[Prefix, int] = {}
    for order in orderings.orders():
        key = commuting(order, pairs)
        classes[key] = classes.get(key, 0) + 1
        assert orderings.representative(order) == key
    assert orderings.sizes() == classes

    leaves = list(orderings.leaves())
    for _ in range(chance.randint(0, 4)):
        worse(orderings, chance.choice(leaves), chance.choice(leaves))
    counted = orderings.counted()
    assert counted["total"] == counted["merged"] + counted["dropped"] + counted["measured"] == orderings.total
    kinds = [one.kind for one in orderings.outcomes()]
    assert [kinds.count(kind) for kind in ("merged", "dropped", "measured")] == list(counted.values())[1:]
    staying = set(orderings.staying())
    assert staying and all(orderings.prefix(one.by.techniques) in staying for one in orderings.outcomes())


def test_the_graph_is_plain_data_and_a_dag() -> None:
    orderings = Orderings([A, B, C], "weight_l2")
    same(orderings, (0, 1), (1, 0))
    worse(orderings, (0, 1, 2), (2, 1, 0))
    graph = orderings.graph()
    assert nx.is_directed_acyclic_graph(graph)
    assert json.loads(json.dumps(nx.node_link_data(graph, edges="edges")))
    assert graph.nodes["identity"] == {"level": 0, "orders": 1}
    assert graph.nodes[orderings.text((0, 1))]["orders"] == 2
    assert graph.nodes[orderings.text((2, 1, 0))]["fate"] == "dropped"
    merged = graph.edges[orderings.text((1,)), orderings.text((0, 1))]
    assert merged["merged"] and merged["technique"] == str(A) and "same state as" in merged["because"]
    assert sum(graph.nodes[n]["orders"] for n in graph if graph.nodes[n]["level"] == 3) == 6

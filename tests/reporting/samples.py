"""Plans and verdicts to draw: made by hand, so that they cover what a search only sometimes finds."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction as F
from itertools import permutations
from typing import Any

from compcomp.language.assumption import Assumption, Kind, assumption, contract
from compcomp.language.claim import Claim, Scope, dominates, equal, fits, keeps, same_state
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Grade, Query, Status, Trace, Verdict, Witness
from compcomp.ordering.conditional import ConditionalEntry, Lost
from compcomp.ordering.dag import Orderings
from compcomp.ordering.measurement import Measurement
from compcomp.plan import Plan
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD, Wanda

EXACT = assumption(Kind.EXACT)
CONTRACT = contract(LeastSquaresDistill(), "never increases output_l2")

P, Q = Magnitude(sparsity=F(1, 2), pattern="2:4"), AbsMax(bits=4, group=128)
D, L, W = LeastSquaresDistill(), TruncatedSVD(rank=8, residual=True), Wanda(sparsity=F(1, 2))
FIVE: list[Technique] = [P, Q, D, L, W]


def verdict(claim: Claim, status: Status, scope: str = "any", **fields: Any) -> Verdict:
    work = {"rlimit": 7149908.0, "seconds": 0.21}
    return Verdict(claim, Scope.of(scope), status, **{"reach": Scope.of(scope).describe(), "work": work, **fields})


def proved(claim: Claim, *assumptions: Assumption, rule: str = "element by element") -> Verdict:
    queries = (Query("zero stays zero", "(check-sat)", "unsat", "unsat", "z3 5.4.0", 269),)
    return verdict(
        claim,
        Status.PROVED,
        assumptions=(EXACT, *assumptions),
        grade=Grade.ONE_SOLVER,
        stage="rule",
        reason=f"rule {rule}",
        queries=queries,
    )


def small_witness() -> Witness:
    dense = ((F(3), F(9)), (F(0), F(-2)))
    rounded, pruned = ((F(18, 7), F(9)), (F(0), F(-18, 7))), ((F(3), F(9)), (F(0), F(0)))
    first = ((F(0), F(9)), (F(0), F(-18, 7)))
    moved = ((F(1), F(-3, 7)), (F(0), F(3)))
    last = ((F(18, 7), F(9)), (F(0), F(0)))
    return Witness(
        dense,
        ((F(1), F(-1, 2)), (F(0), F(3))),
        None,
        (
            Trace(str(Q >> P), (("dense", dense), (str(Q), rounded), (str(P), first)), F(9), 9.0, (None, moved, None)),
            Trace(
                str(P >> Q),
                (("dense", dense), (str(P), pruned), (str(Q), last)),
                F(9, 49),
                0.18367346938775495,
            ),
        ),
        f"{Q >> P} loses 9, {P >> Q} only 9/49",
    )


def wide_witness(columns: int = 64, filled: int = 11) -> Witness:
    def row(scale: F) -> tuple[tuple[F, ...], ...]:
        return (tuple(F(j % 5 - 7) * scale if j % (columns // filled) == 3 else F(0) for j in range(columns)),)

    dense, after = row(F(1)), row(F(123456789, 987654321))
    inputs = tuple((F(j), F(1)) for j in range(columns))
    steps = (("dense", dense), (str(W), after), (str(Q), row(F(6, 7))))
    traces = (
        Trace(str(W >> Q), steps, F(123456789123456789, 9876543210987), 12500.0),
        Trace(str(Q >> W), steps, F(1, 3), 1 / 3),
    )
    return Witness(dense, inputs, 5, traces, "the first loses more")


def verdicts() -> list[Verdict]:
    """One of every status and kind."""
    return [
        proved(dominates(P >> Q, Q >> P, loss="weight_l2")),
        proved(dominates(P >> D, D >> P, loss="output_l2"), CONTRACT, rule="last step"),
        verdict(
            dominates(Q >> P, P >> Q, loss="output_l2"),
            Status.REFUTED,
            "2x2",
            witness=small_witness(),
            stage="search",
            reason=small_witness().reason,
        ),
        verdict(
            dominates(W >> Q, Q >> W, loss="output_l2"),
            Status.REFUTED,
            "1x64",
            witness=wide_witness(),
            stage="search",
            reason="the first loses more",
        ),
        verdict(equal(P >> Q, Q >> P), Status.UNKNOWN, "block:32", cause="the deadline passed: <60 s> & no answer"),
        verdict(
            dominates(L >> Q, Q >> L, loss="weight_l1"),
            Status.UNKNOWN,
            "2x2",
            cause="float gap: fails in exact arithmetic but not in torch float64",
            witness=small_witness(),
        ),
        verdict(keeps(P, "grid"), Status.VACUOUS, cause="no step establishes a grid", stage="rule"),
        proved(keeps(P >> Q, "mask"), rule="kept"),
        proved(fits(P >> Q, "W4 50%"), rule="fits"),
        verdict(equal(Sequence(), D), Status.DISAGREE, "1x1", cause="z3 says unsat, cvc5 says sat"),
    ]


def orderings(techniques: list[Technique], merge: bool = True, drop: bool = True) -> Orderings:
    """Every order of the techniques, some merged and some dropped."""
    found = Orderings(techniques, "output_l2", [(8, 8)], held=(EXACT, CONTRACT))
    if merge and len(techniques) > 1:
        assert found.merge(proved(same_state(techniques[1] >> techniques[0], techniques[0] >> techniques[1])))
    if drop:
        orders = [Sequence(order) for order in permutations(techniques)]
        for k, order in enumerate(orders):
            if order.techniques[-1] == techniques[-1] and k:
                assert found.drop(proved(dominates(orders[0], order, loss="output_l2"), CONTRACT, rule="last step"))
    return found


def plan(
    techniques: list[Technique] | None = None,
    *,
    metric: str | None = "perplexity",
    values: list[float] | None = None,
    dense: float | None = 3.104,
    found: Orderings | None = None,
    **fields: Any,
) -> Plan:
    """A plan whose measured orders have these values, best first; made up where none are given."""
    techniques = FIVE[:4] if techniques is None else techniques
    found = orderings(techniques) if found is None else found
    leaves = list(found.staying())
    pick = random.Random(0)
    pick.shuffle(leaves)
    last = max(1, len(leaves) - 1)
    values = values or [(dense or 3.104) * (1.02 + 0.5 * (k / last) ** 2) for k in range(len(leaves))]
    measurements = [
        Measurement(
            found.order(leaf),
            {} if metric is None else {metric: value, "tokens": 4096.0},
            {"output_l2": value / 7 if math.isfinite(value) else value, "weight_l2": 0.5},
            0.71,
        )
        for leaf, value in zip(leaves, values, strict=False)
    ]
    return Plan(
        **{
            "order": found.order(leaves[0]),
            "optimality": "proved" if len(leaves) == 1 else "measured",
            "left": len(leaves),
            "orders": found.counted(),
            "verdicts": verdicts(),
            "claims": {"asked": 9, "reused": 0, "proved": 3, "refuted": 2, "undecided": 4},
            "measurements": measurements,
            "dense": {} if metric is None or dense is None else {metric: dense},
            "best": measurements[0],
            "worst": measurements[-1],
            "compression_rate": 0.71,
            "loss": "output_l2",
            "metric": metric,
            "measured_on": "model",
            "applications": {"done": min(23, found.full_tree), "full_tree": found.full_tree},
            "seconds": {"screen": 0.4, "prove": 2.1, "measure": 9.8, "total": 12.3},
            "orderings": found,
            **fields,
        }
    )


def conditional_plan(**fields: Any) -> Plan:
    """A plan of a pair that is proved under a condition."""
    entry = ConditionalEntry(
        dominates(P >> Q, Q >> P, loss="output_l2", given="no_ties"),
        coverage=0.9968,
        layers={"first": 0.999, "last": 0.99},
        conditions={"no_ties": 0.9968},
        groups={"no_ties": 0.9999999},
        left_loss=Lost(3.0, 0.25),
        right_loss=Lost(3.0, 0.5),
        holds=True,
        in_every_layer=True,
    )
    entry = replace(entry, **fields)
    return plan([P, Q], found=orderings([P, Q], merge=False, drop=False), conditional=[entry])


def parts_plan() -> Plan:
    """Orders of different sizes, measured part by part: some were stopped."""
    made = plan()
    sizes = (0.8, 0.8, 0.8, 0.6, 0.6, 0.4)
    rows = []
    for k, one in enumerate(made.measurements):
        value = one.metrics["perplexity"]
        one = replace(one, compression_rate=sizes[k % len(sizes)], parts=32)
        one = replace(one, intervals={"perplexity": (value * 0.9, value * 1.1)})
        if k:
            one = replace(one, behind=(0.012 * k, 0.03 * k))
        if k % 3 == 2:
            one = replace(one, parts=8, note="stopped after 8 of 32 parts: worse than <it> by 0.1 to 0.2 at 99 %")
        rows.append(one)
    return replace(
        made,
        measurements=rows,
        best=rows[0],
        worst=rows[-1],
        pareto=[rows[0], rows[3]],
        lower=True,
        among="of the largest compression rate (80.0%)",
    )


def proved_plan() -> Plan:
    """A plan whose order is the only one that proofs leave."""
    found = orderings([P, D], merge=False, drop=False)
    assert found.drop(proved(dominates(P >> D, D >> P, loss="output_l2"), CONTRACT))
    return plan([P, D], found=found)

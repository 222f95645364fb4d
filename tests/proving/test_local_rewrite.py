"""What is proved from every state holds from states that other techniques lead to, not from the dense one alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest

from compcomp.errors import NotExactError
from compcomp.language.claim import Claim, dominates, same_state
from compcomp.language.technique import Sequence, Technique
from compcomp.language.verdict import Status
from compcomp.layers import walk
from compcomp.layers.batches import stack
from compcomp.layers.state import LayerState
from compcomp.ordering.screen import generated
from compcomp.proving.meaning import differences
from compcomp.proving.proof import DENSE_INPUTS
from compcomp.proving.prove import prove
from compcomp.techniques import (
    AbsMax,
    AbsMaxInputs,
    ApplyMask,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    TruncatedSVD,
    Wanda,
)
from compcomp.terms import Array, Choices, each
from tests.amount import marked

FAMILY: list[Technique] = [
    Magnitude("1/4"),
    Magnitude("1/2"),
    Magnitude("1/2", ties="all"),
    Magnitude("1/2", of="dense"),
    Wanda("1/2"),
    Wanda("1/4"),
    AbsMax(4),
    AbsMax(7),
    AbsMax(4, group=2),
    MinMax(3),
    ApplyMask(),
    TruncatedSVD(1, residual=True),
    TruncatedSVD(1),
    LeastSquaresDistill(),
    AbsMaxInputs(4),
]
SHAPE, LAYERS = (3, 4), 24


@cache
def states() -> list[tuple[Sequence, LayerState]]:
    """Layers of every kind after no, one or two techniques of the family, the dense ones first."""
    dense = generated(SHAPE, FAMILY, np.random.default_rng(0), layers=LAYERS)
    found = [(Sequence(), dense)]
    for prefix in [(t,) for t in FAMILY] + list(permutations([FAMILY[k] for k in (0, 4, 6, 11, 13)], 2)):
        with np.errstate(all="ignore"):
            found.append((Sequence(prefix), Sequence(prefix).encode(dense)))
    return found


def mistaken(claim: Claim, state: LayerState, tolerance: float = 1e-7) -> bool:
    """Whether the claim fails from this state, on some layer: in floats, and in exact numbers where there are some.

    Floats alone may go either way at a midpoint that is none in floats.
    """
    with np.errstate(all="ignore"):
        left, right = (sequence.encode(state) for sequence in claim.sequences)
    if claim.kind == "same state":
        terms = differences(left, right, tolerance)
    else:
        assert claim.loss is not None
        one, other = claim.loss.of(left), claim.loss.of(right)
        terms = [one > other * (1 + tolerance) + tolerance]
    failing = [np.broadcast_to(getattr(term, "values", term), (LAYERS,)) for term in terms]
    places = np.nonzero(np.any(failing, axis=0))[0] if failing else []
    return any(_exactly(claim, state, int(place)) for place in places)


def _exactly(claim: Claim, state: LayerState, place: int) -> bool:
    """Whether it fails on one layer of the state, taken for exact numbers; True where that cannot be decided."""

    def exact(array: Array) -> Array:
        truths = all(np.asarray(getattr(x, "values", x)).dtype == bool for x in array.ravel())
        return each(bool if truths else Fraction, stack(array, LAYERS)[place].astype(object))

    layer = replace(walk.map(exact, state), choices=Choices())
    try:
        left, right = (sequence.encode(layer) for sequence in claim.sequences)
    except NotExactError:
        return True
    if not claim.is_deterministic:
        return True
    if claim.kind == "same state":
        return any(map(bool, differences(left, right)))
    assert claim.loss is not None
    return bool(claim.loss.of(left) > claim.loss.of(right))


def claims() -> list[Claim]:
    pairs = list(product(FAMILY, repeat=2))
    found = [same_state(a >> b, side) for a, b in pairs for side in (a, b, b >> a) if str(a >> b) != str(side)]
    passed = [t for t in FAMILY if t.promises().leaves_weight or t.promises().changes_inputs]
    found += [same_state(a >> x >> b, other) for a, b in pairs for x in passed for other in (a >> x, b >> x, x >> b)]
    found += [dominates(a >> b, a, loss=loss) for a, b in pairs for loss in ("output_l2", "weight_l2")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", marked(range(5), {2}))
def test_proofs_from_every_state(part: int) -> None:
    proved = refuted_elsewhere = 0
    for claim in claims()[part::5]:
        verdict = prove(claim, "any", stages=("rule",), second=None, explain=False)
        if verdict.status is not Status.PROVED:
            assert not verdict.local_rewrite
            continue
        for prefix, state in states() if verdict.local_rewrite else states()[:1]:
            if DENSE_INPUTS in verdict.assumptions and prefix.changes_inputs:
                refuted_elsewhere += mistaken(claim, state)
                continue
            assert not mistaken(claim, state), f"{claim} after {prefix}: {verdict.reason}"
        proved += verdict.local_rewrite
    assert proved > 12
    assert refuted_elsewhere or part != 2, "the assumption about inputs is needed"


def test_a_no_op_on_the_dense_layer_is_no_proof_from_every_state() -> None:
    verdict = prove(same_state(LeastSquaresDistill(), Sequence()), "any", stages=("rule",), second=None, explain=False)
    assert verdict.proved and not verdict.local_rewrite
    assert any(mistaken(verdict.claim, state) for _, state in states())


def test_a_larger_selection_is_not_absorbed_past_a_low_rank_term() -> None:
    few, many, branch = Magnitude("1/4"), Magnitude("1/2"), TruncatedSVD(1, residual=True)
    assert prove(
        same_state(many >> branch >> few, many >> branch), "any", stages=("rule",), second=None, explain=False
    ).local_rewrite
    for other in (few >> branch, many >> branch, branch >> many):
        wrong = same_state(few >> branch >> many, other)
        assert not prove(wrong, "any", stages=("rule",), second=None, explain=False).proved
        assert any(mistaken(wrong, state) for _, state in states())

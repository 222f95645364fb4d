"""What is left out of sequences because it changes nothing there: proofs against layers, and what is no proof."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest

from compcomp.language.claim import Claim, dominates, same_state
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.text import parse_claim, parse_sequence
from compcomp.layers.state import LayerState
from compcomp.ordering.screen import generated
from compcomp.proving.meaning import fails
from compcomp.proving.prove import prove
from compcomp.terms import Choices
from tests.proving.test_local_rewrite import mistaken

SHAPE, LAYERS = (4, 4), 24
# Whatever changes the basis does so exactly in floats, and no two maps round twice what they round once: of a midpoint
# that is none in floats nothing is said here (test_rounding_twice.py).
TEXTS = (
    "AWQ(alphas=(0,), group=2)",
    "Hadamard(block=1)",
    "Hadamard()",
    "Hadamard(block=4)",
    "PruneRows(sparsity=1/2)",
    "PruneColumns(sparsity=1/2, ties='all')",
    "Taylor(sparsity=1/2, group='row')",
    "Taylor(sparsity=1/2, group='column')",
    "DistillLogits(iterations=1)",
    "LoRA(rank=1, iterations=1, merged=True)",
    "GradientDistill(iterations=1)",
    "ApplyMask()",
    "AbsMaxInputs(bits=3)",
    "AbsMax(bits=3)",
    "AbsMax(bits=4)",
    "MinMax(bits=3, zero='none')",
    "Magnitude(sparsity=1/2)",
    "GPTQ(bits=3)",
    "LeastSquaresDistill()",
    "TruncatedSVD(rank=1, residual=True)",
    "SmoothQuant(scales='power_of_two')",
    "LoSparse(rank=1, sparsity=1/2)",
)
FAMILY = [parse_sequence(text).techniques[0] for text in TEXTS]


def proofs(claim: Claim) -> tuple[bool, bool]:
    verdict = prove(claim, "any", stages=("rule",), second=None, explain=False)
    return verdict.proved, verdict.local_rewrite


@pytest.fixture(scope="module")
def states() -> list[LayerState]:
    """Layers of every kind, the dense ones first, and after one or two techniques of the family."""
    dense = generated(SHAPE, FAMILY, np.random.default_rng(0), layers=LAYERS)
    found = [dense]
    prefixes = [(t,) for t in FAMILY] + list(permutations([FAMILY[k] for k in (2, 4, 9, 13, 16)], 2))
    for prefix in prefixes:
        with np.errstate(all="ignore"):
            found.append(Sequence(prefix).encode(dense))
    return found


def claims() -> list[Claim]:
    """A continued sequence against what is left when one, two or all of its techniques are left out."""
    random = np.random.default_rng(1)
    found = [
        same_state(a >> b, side) for a, b in product(FAMILY, repeat=2) for side in (Sequence((a,)), Sequence((b,)))
    ]
    for _ in range(160):
        picked = [FAMILY[k] for k in random.integers(len(FAMILY), size=random.integers(1, 4))]
        again = random.integers(len(picked))
        picked[again : again + 1] = [picked[again]] * (2 if random.random() < 0.7 else 1)
        gone = set(random.integers(len(picked), size=random.integers(1, 3)).tolist())
        left = Sequence(tuple(picked))
        rest = Sequence(tuple(t for k, t in enumerate(picked) if k not in gone))
        found.append(same_state(left, rest) if random.random() < 0.7 else dominates(rest, left, loss="output_l2"))
    return found


def test_proofs_on_layers(states: list[LayerState]) -> None:
    proved = everywhere = 0
    for claim in claims():
        holds, anywhere = proofs(claim)
        proved += holds
        everywhere += anywhere
        for state in states if anywhere else states[:1] if holds else []:
            assert not mistaken(claim, state), f"{claim}"
    assert proved > 60 and everywhere > 30, (proved, everywhere)


PROVED = (
    "GPTQ(bits=3) >> DistillHidden(iterations=2) equals GPTQ(bits=3)",
    "AbsMax(bits=4) >> Magnitude(sparsity=1/2) >> DistillLogits(iterations=1) equals "
    "AbsMax(bits=4) >> Magnitude(sparsity=1/2)",
    "MinMax(bits=3, zero='none') >> Magnitude(sparsity=1/2) >> DistillLogits(iterations=1) dominates "
    "MinMax(bits=3, zero='none') >> Magnitude(sparsity=1/2)",
    "Hadamard(block=4) >> LoRA(rank=1, iterations=1, merged=True) >> AbsMax(bits=4) equals "
    "Hadamard(block=4) >> AbsMax(bits=4)",
    "Hadamard() >> Hadamard() >> Hadamard() equals Hadamard()",
    "AbsMaxInputs(bits=4) >> Hadamard() >> Hadamard() equals AbsMaxInputs(bits=4)",
    "AbsMaxInputs(bits=4) >> Hadamard(block=1) >> Wanda(sparsity=1/2) equals "
    "AbsMaxInputs(bits=4) >> Wanda(sparsity=1/2)",
    "PruneRows(sparsity=1/2) >> AWQ(alphas=(0,)) >> PruneRows(sparsity=1/2) equals PruneRows(sparsity=1/2)",
    "PruneRows(sparsity=1/2) >> AbsMaxInputs(bits=4) >> PruneRows(sparsity=1/2) equals "
    "PruneRows(sparsity=1/2) >> AbsMaxInputs(bits=4)",
    # All that the mask drops is zero, or there is no mask, and no low-rank term either.
    "SparseGPT(sparsity=1/2, block=2) >> ApplyMask() equals ApplyMask() >> SparseGPT(sparsity=1/2, block=2)",
    "GPTQ(bits=3) >> ApplyMask() same state as GPTQ(bits=3)",
    "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> ApplyMask() >> AbsMax(bits=3) >> ApplyMask() same state "
    "as Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> ApplyMask() >> AbsMax(bits=3)",
    "AbsMax(bits=3) >> Hadamard() >> Magnitude(sparsity=1/2) >> ApplyMask() equals "
    "AbsMax(bits=3) >> Hadamard() >> Magnitude(sparsity=1/2)",
    "Magnitude(sparsity=1/2) >> GPTQ(bits=3, mask='kept') >> DistillFactors() same state as "
    "Magnitude(sparsity=1/2) >> GPTQ(bits=3, mask='kept')",
    # Nothing of its own result.
    "RIA(sparsity=1/2) >> RIA(sparsity=1/2) same state as RIA(sparsity=1/2)",
    "ClippedAbsMax(bits=3) >> ClippedAbsMax(bits=3) same state as ClippedAbsMax(bits=3)",
    "TruncatedSVD(rank=1) >> TruncatedSVD(rank=1) same state as TruncatedSVD(rank=1)",
    "JointPruneQuantize(sparsity=1/2, bits=3, pattern='1:2') >> JointPruneQuantize(sparsity=1/2, bits=3, pattern='1:2')"
    " same state as JointPruneQuantize(sparsity=1/2, bits=3, pattern='1:2')",
    "AbsMax(bits=9) >> AbsMax(bits=5) >> AbsMax(bits=3) equals AbsMax(bits=3)",
    "AbsMax(bits=3) >> AbsMax(bits=5) >> AbsMax(bits=3) equals AbsMax(bits=3)",
)
NOT_PROVED = (
    # The format is not plain any more: the transform is nothing, and the mask is gone.
    "Magnitude(sparsity=1/2) >> Hadamard(block=1) >> ApplyMask() same state as Magnitude(sparsity=1/2) >> ApplyMask()",
    "Magnitude(sparsity=1/2) >> Hadamard() >> Hadamard() same state as Magnitude(sparsity=1/2)",
    "AbsMax(bits=4) >> Hadamard() >> Hadamard() >> DistillLogits(iterations=1) equals AbsMax(bits=4)",
    "Hadamard() >> Hadamard(block=4) same state as identity",
    "Hadamard() >> SmoothQuant() >> Hadamard() same state as SmoothQuant()",
    # There is no grid, or not any more.
    "LoSparse(rank=1, sparsity=1/2) >> DistillLogits(iterations=1) equals LoSparse(rank=1, sparsity=1/2)",
    "AbsMax(bits=4) >> GradientDistill(iterations=1) >> DistillLogits(iterations=1) equals "
    "AbsMax(bits=4) >> GradientDistill(iterations=1)",
    "AbsMax(bits=4) >> TruncatedSVD(rank=1) >> DistillLogits(iterations=1) equals "
    "AbsMax(bits=4) >> TruncatedSVD(rank=1)",
    # A zero of the mask is another number again, or it is not known.
    "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> ApplyMask() equals "
    "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none')",
    "Magnitude(sparsity=1/2) >> GPTQ(bits=3) >> ApplyMask() equals Magnitude(sparsity=1/2) >> GPTQ(bits=3)",
    "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> Magnitude(sparsity=1/4) >> ApplyMask() equals "
    "Magnitude(sparsity=1/2) >> MinMax(bits=3, zero='none') >> Magnitude(sparsity=1/4)",
    # There is a low-rank term.
    "AbsMax(bits=3) >> TruncatedSVD(rank=1, residual=True) >> DistillFactors() equals "
    "AbsMax(bits=3) >> TruncatedSVD(rank=1, residual=True)",
    # Its own result may find another grid, or tie otherwise.
    "JointPruneQuantize(sparsity=1/2, bits=3, group=2) >> JointPruneQuantize(sparsity=1/2, bits=3, group=2) equals "
    "JointPruneQuantize(sparsity=1/2, bits=3, group=2)",
    "RIA(sparsity=1/2, ties='any') >> RIA(sparsity=1/2, ties='any') equals RIA(sparsity=1/2, ties='any')",
    "TruncatedSVD(rank=1, residual=True) >> AbsMax(bits=3) >> TruncatedSVD(rank=1, residual=True) >> "
    "TruncatedSVD(rank=1, residual=True) equals AbsMax(bits=3) >> TruncatedSVD(rank=1, residual=True)",
    # What stands between changes what it looks at.
    "PruneRows(sparsity=1/2) >> AbsMax(bits=2) >> PruneRows(sparsity=1/2) equals "
    "PruneRows(sparsity=1/2) >> AbsMax(bits=2)",
    "Taylor(sparsity=1/2, group='row') >> AbsMaxInputs(bits=2) >> Taylor(sparsity=1/2, group='row') equals "
    "Taylor(sparsity=1/2, group='row') >> AbsMaxInputs(bits=2)",
    "PruneRows(sparsity=1/4) >> PruneRows(sparsity=1/2) equals PruneRows(sparsity=1/4)",
    # The layer is not the dense one any more.
    "AbsMax(bits=4) >> LoRA(rank=1, iterations=1, merged=True) equals AbsMax(bits=4)",
    "AbsMaxInputs(bits=4) >> LoRA(rank=1, iterations=1, merged=True) equals AbsMaxInputs(bits=4)",
    "AWQ(alphas=(0, 1/2)) >> AbsMax(bits=4) equals AbsMax(bits=4)",
    "LoSparse(rank=1, sparsity=1/2) >> LoSparse(rank=1, sparsity=1/2) equals LoSparse(rank=1, sparsity=1/2)",
)


@pytest.mark.parametrize("text", PROVED)
def test_proved(text: str) -> None:
    assert proofs(parse_claim(text, "output_l2"))[0]


@pytest.mark.parametrize("text", NOT_PROVED)
def test_not_proved(text: str) -> None:
    assert not proofs(parse_claim(text))[0]


def test_losparse_twice_is_not_once() -> None:
    """A layer with a rational decomposition at both uses: what is kept of the rest is not orthogonal to the term."""
    twice = parse_sequence("LoSparse(rank=1, sparsity=1/2) >> LoSparse(rank=1, sparsity=1/2)")
    weight = np.array([[Fraction(294), Fraction(-220)], [Fraction(280), Fraction(231)]], dtype=object)
    _, once, again = (state.effective().tolist() for state in twice.trace(LayerState.dense(weight, choices=Choices())))
    assert once == [[294, 0], [280, 231]]
    assert again == [[294, 0], [Fraction(222264, 697), Fraction(101871, 697)]]


@dataclass(frozen=True)
class Once(Technique):
    """Halve the weight, and say something false of it."""

    lie: Declared = field(default_factory=Declared)

    def promises(self) -> Declared:
        return self.lie

    def encode(self, layer: LayerState) -> LayerState:
        return LayerState(layer.weight / 2, layer.reference, layer.gram, layer.inputs, layer.format, layer.choices)


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        (Declared(idempotent=True), "T >> T equals T"),
        (Declared(involution=True, changes_basis=True), "T >> T equals identity"),
        *((Declared(no_op=frozenset({name})), "T equals identity") for name in ("always", "plain", "plain dense")),
        (Declared(no_op=frozenset({"on a grid"})), "Q >> T equals Q"),
    ],
)
def test_each_contract_is_named(lie: Declared, text: str) -> None:
    """A proof depends on the contract, and says so: with a false one it would be a false theorem."""
    names = {"T": Once(lie), "Q": parse_sequence("AbsMax(bits=4)").techniques[0]}
    left, right = (
        Sequence(tuple(names[name] for name in side.split(" >> ") if name in names)) for side in text.split(" equals ")
    )
    verdict = prove(same_state(left, right), "any", stages=("rule",), second=None, explain=False)
    assert verdict.proved and verdict.reason == "rule no op"
    assert [a for a in verdict.assumptions if a.technique == str(names["T"])]
    truth = same_state(Sequence((Once(),)), Sequence())
    assert not prove(truth, "any", stages=("rule",), second=None, explain=False).proved


AGAIN = [
    *("RIA(sparsity=1/2, power=0)", "RIA(sparsity=1/2, ties='all')", "RIA(sparsity=1/2, pattern='2:4')"),
    *("ClippedAbsMax(bits=3)", "ClippedAbsMax(bits=3, ratios=2, rounding='half_up')", "TruncatedSVD(rank=1)"),
    *("JointPruneQuantize(sparsity=1/2, bits=3)", "JointPruneQuantize(sparsity=1/2, bits=2, ratios='1/2, 1')"),
]


@pytest.mark.parametrize("text", AGAIN)
def test_a_second_use_changes_nothing_of_any_layer(text: str, states: list[LayerState]) -> None:
    technique = parse_sequence(text)
    claim = same_state(technique >> technique, technique)
    assert proofs(claim)[0]
    for state in states[::4]:
        assert not mistaken(claim, state), text
    for row in product((-2, -1, 0, 1, 3), repeat=4):
        weight = np.array([row], dtype=object) + Fraction(0)
        layer = LayerState.dense(weight, np.array([[1], [0], [2], [1]], dtype=object) + Fraction(0))
        assert not bool(fails(claim, [side.trace(layer) for side in claim.sides])), row


def test_a_mask_is_looked_at_where_it_stands(states: list[LayerState]) -> None:
    """Every sequence of up to three techniques before a mask is applied, or factors are distilled: proofs hold."""
    before = [FAMILY[k] for k in (2, 4, 9, 13, 15, 16, 17, 19)]
    proved = 0
    for count in (1, 2):
        for techniques in product(before, repeat=count):
            for last in ("ApplyMask()", "DistillFactors()"):
                side = Sequence(techniques)
                claim = same_state(side >> parse_sequence(last), side)
                if proofs(claim)[0]:
                    proved += 1
                    assert not mistaken(claim, states[0]), claim
    assert proved > 60

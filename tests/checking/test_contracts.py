"""What follows from promises alone, without the prover: every promise that an argument needs is needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import compcomp.techniques  # noqa: F401
from compcomp.checking.contracts import derived
from compcomp.language.claim import Claim
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.language.text import parse_claim, parse_sequence
from compcomp.proving.candidates import Candidates
from compcomp.proving.meaning import fails
from tests.claims import CLAIMS, D, L, N, P, Q, S, X

O, A, T = "MinMax(bits=4, zero='none')", "ApplyMask()", "QuantizationAwareTraining(bits=4)"
C = "PruneColumns(sparsity=1/2)"

FREE = [
    (f"{N} >> {X} >> {Q} equals {X} >> {N} >> {Q}", "weight_l2"),
    (f"{P} >> FP8Inputs() >> FP8() equals FP8Inputs() >> {P} >> FP8()", "weight_l2"),
    (f"{D} >> {X} equals {X}", "weight_l2"),
    (f"{X} >> {P} >> {D} dominates {P} >> {X}", "output_l2"),
    (f"{X} >> {Q} >> {L} dominates {X} >> {Q}", "weight_l2"),
    (f"{N} >> {O} >> {A} fits 2:4", "weight_l2"),
    (f"{P} fits 50%", "weight_l2"),
    (f"{S} fits r1", "weight_l2"),
    (f"{P} >> {O} >> {A} keeps mask", "weight_l2"),
    (f"{N} >> {O} >> {T} keeps mask", "weight_l2"),
    (f"{N} >> {O} >> {N} keeps n:m", "weight_l2"),
    (f"{S} >> {Q} >> {S} keeps rank", "weight_l2"),
    (f"PruneHeads(sparsity=1/2) >> GPTQ(bits=4, mask='kept') keeps shape", "weight_l2"),  # noqa: F541
    (f"PruneHeads(sparsity=1/2) >> {S} keeps shape", "weight_l2"),
    (f"{C} >> LoftQ(rank=1, bits=3) keeps shape", "weight_l2"),
    (f"{T} >> {P} keeps grid", "weight_l2"),
]
"""Claims of the table that no solver is asked for, by the rules inputs, rest, last step, fits and kept."""


@dataclass(frozen=True)
class Promising(Technique):
    """Another technique with other promises, and perhaps other steps, for the checker to read."""

    of: Technique
    said: Declared = field(default_factory=Declared)
    no_steps: bool = False

    def promises(self) -> Declared:
        return self.said

    def steps(self) -> Any:
        return () if self.no_steps else self.of.steps()

    def encode(self, layer: Any) -> Any:
        return self.of.encode(layer)

    def check(self, shape: tuple[int, ...]) -> None:
        self.of.check(shape)

    def parts(self) -> Any:
        return self.of.parts()

    @property
    def needs_inputs(self) -> bool:
        return self.of.needs_inputs

    @property
    def unit(self) -> int:
        return self.of.unit

    @property
    def row_unit(self) -> int:
        return self.of.row_unit


def with_technique(claim: Claim, side: str, place: int, technique: Technique) -> Claim:
    sequence = list(getattr(claim, side))
    sequence[place] = technique
    return replace(claim, **{side: Sequence(tuple(sequence))})


@pytest.mark.parametrize(("text", "loss"), FREE)
def test_it_follows_from_promises(text: str, loss: str) -> None:
    assert any(row[:2] == (text, loss) and row[3] == "PROVED" for row in CLAIMS), "a row of the table"
    assert derived(parse_claim(text, loss))


NEEDED = [
    (*FREE[2], "left", 0, {"no_op_on_dense": False}),
    (*FREE[3], "left", 2, {"never_increases": frozenset()}),
    (*FREE[3], "left", 2, {"any_inputs": False}),
    (*FREE[4], "left", 2, {"never_increases": frozenset({"output_l2"})}),
    (*FREE[5], "left", 2, {"restores": frozenset()}),
    (*FREE[5], "left", 2, {"format_varies": True}),
    (*FREE[6], "left", 0, {"format_varies": True}),
    (*FREE[7], "left", 0, {"format_varies": True}),
    (*FREE[8], "left", 2, {"restores": frozenset()}),
    (*FREE[9], "left", 2, {"restores": frozenset()}),
    (*FREE[14], "left", 0, {"removes_columns": False}),
    (*FREE[14], "left", 0, {"removes_rows": True}),
    (*FREE[14], "left", 1, {"zeros": frozenset({"rows"})}),
    (*FREE[15], "left", 0, {"format_varies": True}),
]


@pytest.mark.parametrize(("text", "loss", "side", "place", "change"), NEEDED)
def test_no_promise_may_be_missing(text: str, loss: str, side: str, place: int, change: dict[str, Any]) -> None:
    claim = parse_claim(text, loss)
    technique = list(getattr(claim, side))[place]
    honest = with_technique(claim, side, place, Promising(technique, technique.promises()))
    assert derived(honest), "the same promises give the claim"
    weaker = Promising(technique, replace(technique.promises(), **change))
    assert not derived(with_technique(claim, side, place, weaker))


G, M = "GradientDistill(iterations=2)", "LoRA(rank=1, iterations=1, merged=True)"
OPEN, R = "DistillLogits(iterations=2)", "PruneRows(sparsity=1/2)"
IDLE = [
    (f"{Q} >> {OPEN} same state as {Q}", OPEN, {"no_op": frozenset({"plain"})}),
    (f"{P} >> AWQ(alphas=(0,)) >> {Q} equals {P} >> {Q}", "AWQ(alphas=(0,))", {"no_op": frozenset({"plain dense"})}),
    (f"{X} >> Hadamard(block=1) >> {Q} equals {X} >> {Q}", "Hadamard(block=1)", {"no_op": frozenset({"plain dense"})}),
    (f"Hadamard() >> {M} >> Hadamard() >> {Q} equals {Q}", M, {"no_op": frozenset({"on a grid"})}),
    (f"Hadamard() >> {M} >> Hadamard() >> {Q} equals {Q}", "Hadamard()", {"involution": False}),
    (f"Hadamard() >> {M} >> {Q} equals Hadamard() >> {Q}", "Hadamard()", {"holds_reference": False}),
    (f"{R} >> {R} >> {Q} same state as {R} >> {Q}", R, {"idempotent": False}),
    (f"GPTQ(bits=4) >> {OPEN} equals GPTQ(bits=4)", OPEN, {"no_op": frozenset({"plain"})}),
    (f"GPTQ(bits=4) >> {OPEN} equals GPTQ(bits=4)", "GPTQ(bits=4)", {"format_varies": True}),
    (f"{Q} >> Hadamard() equals {Q}", "Hadamard()", {"changes_basis": False}),
]
"""Claims that follow from what changes nothing where it stands, and a promise without which they do not."""


def everywhere(claim: Claim, technique: Technique, promises: Declared) -> Claim:
    """The claim with other promises of one technique, wherever it stands."""
    new = Promising(technique, promises)
    sides = (Sequence(tuple(new if t == technique else t for t in s)) for s in (claim.left, claim.right))
    return replace(claim, **dict(zip(("left", "right"), sides, strict=True)))


@pytest.mark.parametrize(("text", "name", "change"), IDLE)
def test_what_changes_nothing_is_left_out(text: str, name: str, change: dict[str, Any]) -> None:
    claim = parse_claim(text)
    technique = parse_sequence(name).techniques[0]
    assert derived(claim) and derived(everywhere(claim, technique, technique.promises()))
    assert not derived(everywhere(claim, technique, replace(technique.promises(), **change)))


@pytest.mark.parametrize(
    "text",
    [
        f"{OPEN} >> {Q} equals {Q}",
        f"{Q} >> {G} >> {OPEN} equals {Q} >> {G}",
        f"{P} >> {OPEN} equals {P}",
        f"{Q} >> {M} equals {Q}",
        f"{X} >> {M} equals {X}",
        f"{P} >> Hadamard(block=1) same state as {P}",
        f"{P} >> Hadamard() >> Hadamard() same state as {P}",
        f"{R} >> {Q} >> {R} same state as {R} >> {Q}",
        f"PruneRows(sparsity=1/4) >> {R} same state as {R}",
        f"{P} >> {S} >> {OPEN} equals {P} >> {S}",
        f"{Q} >> {S} >> {OPEN} equals {Q} >> {S}",  # what the factoring leaves is on no grid
        f"SparseGPT(sparsity=1/2) >> {OPEN} equals SparseGPT(sparsity=1/2)",
        f"{Q} >> Hadamard() same state as {Q}",
        f"Hadamard() >> {Q} equals {Q}",
        f"{Q} >> Hadamard() >> {P} equals {Q} >> {P}",
    ],
)
def test_what_changes_something_is_not(text: str) -> None:
    assert not derived(parse_claim(text))


def test_a_technique_that_looks_at_inputs_is_not_passed() -> None:
    """Wanda scores by the inputs, so it does something else after they have been changed."""
    W = "Wanda(sparsity=1/2)"
    for text, loss in (
        (f"{W} >> {X} equals {X} >> {W}", "weight_l2"),
        (f"{X} >> {W} dominates {W}", "weight_l2"),
        (f"{X} >> FP8Inputs() equals FP8Inputs() >> {X}", "weight_l2"),
        (f"{X} >> {P} dominates {P}", "output_l2"),
        (f"{X} >> {D} equals {X}", "weight_l2"),
        (f"{X} equals identity", "weight_l2"),
    ):
        assert not derived(parse_claim(text, loss)), text
    assert derived(parse_claim(f"{X} >> {P} dominates {P}", "weight_l1"))
    assert derived(parse_claim(f"{W} >> {X} dominates {W}", "weight_l1"))


FALSE = [
    f"{P} >> {O} keeps mask",
    f"{P} >> {O} >> {A} >> {O} keeps mask",
    f"{S} >> {P} >> {A} >> {S} keeps mask",
    f"{N} >> {S} >> {A} fits 2:4",
    f"{P} >> {O} fits 50%",
    f"{P} fits 3/4",
    f"{P} fits 50%/row",
    f"{P} fits 2:4",
    f"{N} fits 1:4",
    f"{N} >> {O} >> Magnitude(sparsity=1/4, pattern='3:4') keeps n:m",
    f"{N} >> {S} fits 2:4",
    f"{S} >> {Q} fits r1",
    f"{S} >> {Q} keeps rank",
    f"{S} >> {Q} >> TruncatedSVD(rank=2) fits r1",
    f"{L} fits r1",
    f"{P} >> {S} keeps mask",
    f"{T} >> {D} >> {O} >> {P} keeps grid",
    f"{O} >> {P} keeps grid",
    f"{C} >> {P} >> {S} keeps mask",
    f"PruneRows(sparsity=1/2) >> GPTQ(bits=4, mask='kept') >> {D} >> {O} keeps shape",
]
"""Claims that are false, or true by another argument alone: one promise or place away from those that follow."""


@pytest.mark.parametrize("text", FALSE)
def test_nothing_else_follows(text: str) -> None:
    assert not derived(parse_claim(text))


def test_what_follows_is_true_of_layers() -> None:
    """Short sequences drawn from many techniques: nothing that follows from promises fails on a layer."""
    import itertools

    import numpy as np

    random = np.random.default_rng(5)
    used = [N, P, "Magnitude(sparsity=1/2, per='row')", Q, O, A, S, L, D, C, "PruneRows(sparsity=1/2)", X]
    said = ["keeps mask", "keeps n:m", "keeps rank", "keeps shape", "keeps grid", "fits 2:4", "fits 50%", "fits r1"]
    follows = 0
    for techniques in itertools.product(used, repeat=3):
        chosen = [f"{' >> '.join(techniques)} {said[random.integers(len(said))]}"]
        for text in chosen:
            claim = parse_claim(text)
            if not derived(claim):
                continue
            weights = random.integers(-9, 10, (20, 4, 4)).astype(float)
            inputs = random.integers(-9, 10, (20, 4, 5)).astype(float)
            layer = Candidates(weights, inputs).layer(random)
            runs = [sequence.trace(layer) for sequence in claim.sequences]
            formats = [state.format for state in runs[0]]
            if text.split()[-2] == "keeps" and all(form.get(claim.invariant) is None for form in formats):
                continue
            failing = fails(claim, runs, 1e-7)
            assert not np.any(getattr(failing, "values", failing)), text
            follows += 1
    assert follows > 100

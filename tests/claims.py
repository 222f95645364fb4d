"""The test table: claims with the verdict each must get. Run by search, by rules and by z3.

A row: claim, loss, scope, expected status. Conventions that decide a verdict are in the claim's text.
"""

from __future__ import annotations

P, Q, W = "Magnitude(sparsity=1/2)", "AbsMax(bits=4)", "Wanda(sparsity=1/2)"
D, L, S = "LeastSquaresDistill()", "TruncatedSVD(rank=1, residual=True)", "TruncatedSVD(rank=1)"
N = "Magnitude(sparsity=1/2, pattern='2:4')"
PQ = f"{P} >> {Q} dominates {Q} >> {P}"
THIRD = "Magnitude(sparsity=1/3, ties='all')"


def _reversed(first: str, second: str) -> str:
    return f"{first} >> {second} dominates {second} >> {first}"


def _third(rounding: str, ties: str = "all") -> str:
    prune = f"Magnitude(sparsity=1/3, ties='{ties}')"
    quantize = f"AbsMax(bits=4, rounding='{rounding}')"
    return f"{prune} >> {quantize} dominates {quantize} >> {prune}"


def _twice(technique: str) -> str:
    return f"{technique} >> {technique} equals {technique}"


_PROVED = ("weight_l2", "any", "PROVED")
_REFUTED = ("weight_l2", "any", "REFUTED")
X = "AbsMaxInputs(bits=4)"
G, OPEN = "GradientDistill(iterations=2)", "DistillLogits(iterations=2)"
ANY_P, ANY_Q = "Magnitude(sparsity=Any)", "AbsMax(bits=Any)"
A1, Q2, F = "LoRA(rank=1, iterations=1)", "AbsMax(bits=2)", "DistillFactors()"
T = "QuantizationAwareTraining(bits=4)"
M, O, A = "MinMax(bits=4)", "MinMax(bits=4, zero='none')", "ApplyMask()"
U, H = "PruneNeurons(sparsity=1/2)", "PruneHeads(sparsity=1/2)"
UP4 = "AbsMax(bits=4, rounding='half_up')"
Q3, UP, MERGED = "AbsMax(bits=3)", "AbsMax(bits=2, rounding='half_up')", "LoRA(rank=1, iterations=1, merged=True)"
DENSE, HALF = "Magnitude(sparsity=Any, of='dense')", "Magnitude(sparsity=1/2, of='dense')"

CLAIMS: list[tuple[str, str, str, str]] = [
    # Equal states agree in the product of their factors, and DistillFactors sees more: no no-op is left out before it.
    (f"{A1} >> {Q2} equals {Q2}", "weight_l2", "any", "PROVED"),
    (f"{A1} >> {Q2} >> {F} equals {Q2} >> {F}", "weight_l2", "any", "REFUTED"),
    (f"BlockMeans(rank=1) >> {Q2} >> {F} equals {Q2} >> {F}", "weight_l2", "any", "REFUTED"),
    (f"{Q2} >> {F} dominates {A1} >> {Q2} >> {F}", "output_l2", "any", "REFUTED"),
    (f"{Q2} >> {F} >> {A1} dominates {A1} >> {Q2} >> {F}", "output_l2", "any", "REFUTED"),
    (f"{D} >> {Q2} >> {F} equals {Q2} >> {F}", "weight_l2", "any", "PROVED"),
    # Every bit width and every sparsity at once.
    (_reversed(ANY_P, ANY_Q), "weight_l1", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l2", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l3", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l4", "any", "PROVED"),
    (_reversed(N, ANY_Q), "weight_l4", "any", "PROVED"),
    # Whether pruning first is better depends on the grid: for every bit width and sparsity, or not at all.
    *(
        (_reversed(ANY_P, f"AbsMax(bits=Any, rounding='{rounding}', grid='{grid}')"), loss, "any", "PROVED")
        for grid in ("full_range", "narrow_step")
        for rounding in ("half_even", "any")
        for loss in ("weight_l1", "weight_l2")
    ),
    (_reversed(N, "AbsMax(bits=4, group=32, grid='full_range', rounding='half_away')"), *_PROVED),
    (_reversed(P, "AbsMax(bits=4, grid='full_range')"), "weight_l2", "1x4", "PROVED"),
    (_reversed(P, "AbsMax(bits=4, grid='clipped')"), "weight_l1", "any", "REFUTED"),
    (_reversed(ANY_P, "AbsMax(bits=Any, grid='clipped', rounding='any')"), *_REFUTED),
    # A second use finds another largest weight, except where the largest one is a value.
    (_twice("AbsMax(bits=4, grid='narrow_step')"), *_PROVED),
    (_twice("AbsMax(bits=4, grid='full_range')"), *_REFUTED),
    (_twice("AbsMax(bits=4, grid='clipped')"), *_REFUTED),
    ("AbsMax(bits=4, grid='narrow_step') same state as AbsMax(bits=4)", *_REFUTED),
    ("AbsMax(bits=4, grid='full_range') keeps grid", *_PROVED),
    ("Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=4, grid='clipped') fits W4 2:4", *_PROVED),
    (_reversed(ANY_Q, ANY_P), "weight_l2", "any", "REFUTED"),
    (_reversed(ANY_P, ANY_Q), "output_l2", "any", "REFUTED"),
    ("Magnitude(sparsity=Any, per='row') dominates Wanda(sparsity=Any)", "weight_l2", "any", "PROVED"),
    (f"{ANY_P} >> {D} >> {ANY_Q} keeps mask", "weight_l2", "any", "PROVED"),
    # Idempotence and absorption.
    (f"{ANY_P} >> {ANY_P} equals {ANY_P}", "weight_l2", "any", "PROVED"),
    (f"{ANY_Q} >> {ANY_Q} equals {ANY_Q}", "weight_l2", "any", "PROVED"),
    (f"Magnitude(sparsity=1/4) >> {P} equals {P}", "weight_l2", "any", "PROVED"),
    (f"{W} >> Wanda(sparsity=1/4) equals {W}", "weight_l2", "any", "PROVED"),
    (f"{W} >> {P} equals {P}", "weight_l2", "any", "REFUTED"),
    ("AbsMax(bits=8) >> AbsMax(bits=4) equals AbsMax(bits=4)", "weight_l2", "any", "REFUTED"),
    # Rounding twice is rounding once where every midpoint of the second grid is one of the first, and goes its way.
    ("AbsMax(bits=5) >> AbsMax(bits=3) equals AbsMax(bits=3)", "weight_l2", "any", "PROVED"),
    (
        "AbsMax(bits=13, group=4) >> AbsMax(bits=4, group=4) equals AbsMax(bits=4, group=4)",
        "weight_l2",
        "any",
        "PROVED",
    ),
    (f"AbsMax(bits=9) >> AbsMax(bits=5) >> {Q3} equals {Q3}", "weight_l2", "any", "PROVED"),
    ("AbsMax(bits=5) >> AbsMax(bits=3, per='channel') equals AbsMax(bits=3, per='channel')", *_REFUTED),
    (f"AbsMax(bits=4) >> {Q3} equals {Q3}", *_REFUTED),
    (f"AbsMax(bits=5, rounding='half_up') >> {Q3} equals {Q3}", *_REFUTED),
    (f"AbsMax(bits=3, rounding='half_up') >> {UP} equals {UP}", "weight_l2", "any", "PROVED"),
    (f"{Q3} >> {Q2} equals {Q2}", *_REFUTED),
    (_twice("MinMax(bits=4, rounding='half_up')"), "weight_l2", "any", "PROVED"),
    (_twice("MinMax(bits=Any, rounding='half_away', group=4)"), "weight_l2", "any", "PROVED"),
    (_twice(O), "weight_l2", "any", "PROVED"),
    (_twice(M), *_REFUTED),  # both ends of the range are midpoints, and only one goes outwards
    # What changes nothing where it stands.
    (f"{Q} >> {OPEN} equals {Q}", "weight_l2", "any", "PROVED"),
    (f"GPTQ(bits=4) >> {OPEN} dominates GPTQ(bits=4)", "output_l2", "any", "PROVED"),
    (f"{OPEN} >> {Q} equals {Q}", *_REFUTED),
    (f"{Q} >> {G} >> {OPEN} equals {Q} >> {G}", *_REFUTED),
    (_twice("PruneRows(sparsity=1/2)"), "weight_l2", "any", "PROVED"),
    (_twice("PruneRows(sparsity=1/2, ties='any')"), *_REFUTED),
    (_twice("Taylor(sparsity=1/2, group='row')"), "weight_l2", "any", "PROVED"),
    (_twice("Taylor(sparsity=1/2, group='column')"), *_REFUTED),
    (_twice(X), "weight_l2", "any", "PROVED"),
    (f"{MERGED} >> {Q} equals {Q}", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {MERGED} equals {Q}", *_REFUTED),
    (f"{P} >> AWQ(alphas=(0,)) >> {Q} equals {P} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"Hadamard(block=1) >> {Q} equals {Q}", "weight_l2", "any", "PROVED"),
    (f"Hadamard(block=4) >> {Q} equals {Q}", *_REFUTED),
    (f"Hadamard() >> Hadamard() >> {Q} equals {Q}", "weight_l2", "any", "PROVED"),
    # All of it in every recorded field.
    (_twice("PruneRows(sparsity=1/2)").replace("equals", "same state as"), *_PROVED),
    (f"AbsMax(bits=5) >> {Q3} same state as {Q3}", *_PROVED),
    (f"{Q} >> {OPEN} same state as {Q}", *_PROVED),
    (f"Hadamard() >> Hadamard() >> {Q} same state as {Q}", *_PROVED),
    (f"{P} >> Hadamard(block=1) same state as {P}", *_REFUTED),  # a rotation forgets the mask
    (f"{Q} >> {MERGED} same state as {Q}", *_REFUTED),
    # Equal weights and inputs, other records: a last selection that finds enough zeros, a last change of basis.
    (f"{P} >> {Q} >> {P} equals {P} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {Q} >> {P} same state as {P} >> {Q}", "weight_l2", "any", "REFUTED"),
    (f"{N} >> Magnitude(sparsity=1/2, per='row') equals {N}", "weight_l2", "any", "PROVED"),
    (f"{N} >> Magnitude(sparsity=1/2, per='row') same state as {N}", "weight_l2", "any", "REFUTED"),
    (f"{ANY_P} >> {ANY_Q} >> {ANY_P} equals {ANY_P} >> {ANY_Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {Q} dominates {P} >> {Q} >> {P}", "output_l2", "any", "PROVED"),
    (f"{P} >> {W} equals {P}", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> {P} equals {Q}", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> Hadamard() equals {Q}", "weight_l2", "any", "PROVED"),
    (f"{Q} >> Hadamard() same state as {Q}", "weight_l2", "any", "REFUTED"),
    (f"{ANY_Q} >> {ANY_Q} same state as {ANY_Q}", "weight_l2", "any", "PROVED"),
    (f"{D} >> {P} >> {Q} same state as {P} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {Q} same state as {Q} >> {P}", "weight_l2", "1x4", "REFUTED"),
    # Harma et al., theorems 3.5 (and for Wanda), 3.6, 3.7 with an explicit bound, 3.9.
    (f"{ANY_P} is orthogonal to {ANY_Q}", "weight_l1", "any", "PROVED"),
    (f"{N} is orthogonal to AbsMax(bits=Any, group=32)", "weight_l2", "any", "PROVED"),
    (f"{W} is orthogonal to AbsMax(bits=3)", "weight_l1", "1x4", "REFUTED"),
    (f"AbsMax(bits=2) is orthogonal to {N}", "weight_l1", "1x4", "REFUTED"),
    (f"{ANY_Q} is orthogonal to {ANY_P} within 1/2", "weight_l1", "any", "PROVED"),
    (f"AbsMax(bits=2) is orthogonal to {P} within 2/5", "weight_l1", "any", "REFUTED"),
    (f"{P} is orthogonal to {Q}", "output_l2", "any", "REFUTED"),
    (f"{N} is orthogonal to {Q} >> {X}", "output_l2", "1x4", "REFUTED"),
    (f"{N} is orthogonal to {Q} >> {X}", "output_l2", "any", "REFUTED"),
    (f"{N} is orthogonal to {X}", "output_l2", "1x4", "REFUTED"),
    (f"{P} is orthogonal to AbsMax(bits=2) >> AbsMaxInputs(bits=2, per='tensor')", "output_l2", "any", "REFUTED"),
    (f"{N} is orthogonal to AbsMax(bits=8) >> AbsMaxInputs(bits=8, group=2)", "output_l2", "any", "REFUTED"),
    (f"{N} is orthogonal to {ANY_Q} >> AbsMaxInputs(bits=Any)", "output_l2", "any", "REFUTED"),
    (f"{N} is orthogonal to {ANY_Q} >> AbsMaxInputs(bits=Any)", "weight_l1", "any", "PROVED"),
    # Orthogonal because the composition loses no more than one of both alone.
    (f"{N} is orthogonal to {N}", "weight_l2", "any", "PROVED"),
    (f"{ANY_Q} is orthogonal to {ANY_Q}", "weight_l1", "any", "PROVED"),
    (f"{Q} is orthogonal to {L}", "weight_l2", "any", "PROVED"),
    (f"{D} >> {N} is orthogonal to {D}", "output_l2", "any", "PROVED"),
    (f"Hadamard() >> {W} is orthogonal to {W} >> Hadamard()", "weight_l1", "any", "PROVED"),
    (f"PruneRows(sparsity=1/2) is orthogonal to PruneRows(sparsity=1/2)", "weight_l1", "any", "PROVED"),  # noqa: F541
    (f"{Q} is orthogonal to AbsMax(bits=3)", "weight_l1", "any", "REFUTED"),
    # What leaves the dense layer alone loses nothing.
    (f"{L} dominates JointPruneQuantize(sparsity=1/2, bits=4)", "weight_l1", "any", "PROVED"),
    (f"Hadamard() >> {F} dominates {P}", "output_l2", "any", "PROVED"),
    (f"BlockMeans(rank=1) >> {D} equals Hadamard()", "weight_l2", "any", "PROVED"),
    (f"Hadamard() >> {F} is orthogonal to {F}", "weight_l2", "any", "PROVED"),
    (f"Hadamard() >> {X} equals Hadamard()", "weight_l2", "any", "REFUTED"),
    # A mask that is kept, no low-rank term, its own result: nothing is left to do.
    ("SparseGPT(sparsity=1/2) >> ApplyMask() equals ApplyMask() >> SparseGPT(sparsity=1/2)", *_PROVED),
    (f"{P} >> {Q} >> ApplyMask() same state as {P} >> {Q}", *_PROVED),
    (f"{P} >> {O} >> ApplyMask() equals {P} >> {O}", *_REFUTED),
    (f"{Q} >> {F} same state as {Q}", *_PROVED),
    (f"{Q} >> {L} >> {F} equals {Q} >> {L}", *_REFUTED),
    (_twice("RIA(sparsity=1/2)"), *_PROVED),
    (_twice("ClippedAbsMax(bits=3)"), *_PROVED),
    (_twice("JointPruneQuantize(sparsity=1/2, bits=4, pattern='1:2')"), *_PROVED),
    (_twice(S), *_PROVED),
    ("MX(group=2) >> Wanda(sparsity=1/2) fits 50%", *_PROVED),
    (f"{W} fits 50%", *_REFUTED),
    # Quantized inputs: what does not look at them commutes with quantizing them; distillation fits the dense outputs.
    (f"{N} >> {X} >> {Q} equals {X} >> {N} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {X} >> {Q} dominates {Q} >> {X} >> {P}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {X} >> {Q} dominates {Q} >> {X} >> {P}", "output_l2", "any", "REFUTED"),
    (f"{W} >> {X} equals {X} >> {W}", "weight_l2", "any", "REFUTED"),
    (f"{X} equals AbsMaxInputs(bits=8)", "weight_l2", "any", "REFUTED"),
    (f"{D} >> {X} equals {X}", "weight_l2", "any", "PROVED"),
    (f"{X} >> {D} equals {X}", "weight_l2", "any", "REFUTED"),
    (f"{X} >> {P} >> {D} dominates {P} >> {X}", "output_l2", "any", "PROVED"),
    (f"{X} >> {Q} >> {L} dominates {X} >> {Q}", "output_l2", "any", "REFUTED"),
    (f"{X} >> {Q} >> {L} dominates {X} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {X} >> {D} >> {Q} keeps mask", "weight_l2", "any", "PROVED"),
    (PQ, "weight_l1", "1x4", "PROVED"),
    (PQ, "weight_l1", "2x2", "PROVED"),
    (PQ, "weight_l1", "block:4", "PROVED"),
    (PQ, "weight_l2", "1x4", "PROVED"),
    (PQ, "weight_l2", "2x2", "PROVED"),
    (PQ, "weight_l2", "block:4", "PROVED"),
    (PQ, "weight_l1", "any", "PROVED"),
    (PQ, "weight_l2", "any", "PROVED"),
    (_reversed(N, "AbsMax(bits=4, group=32)"), "weight_l2", "block:32", "PROVED"),
    (_reversed(N, "AbsMax(bits=8)"), "weight_l1", "any", "PROVED"),
    (_reversed(P, "AbsMax(bits=8, rounding='half_away')"), "weight_l2", "1x4", "PROVED"),
    # One scale for several groups of a selection is shared; several scales for one group are not comparable.
    (_reversed(P, "AbsMax(bits=4, group=2)"), "weight_l1", "1x4", "REFUTED"),
    (f"{P} >> {Q} dominates {P} >> {Q} >> {P}", "weight_l2", "any", "PROVED"),
    ("AbsMax(bits=5) dominates AbsMax(bits=3)", "weight_l2", "any", "PROVED"),
    ("AbsMax(bits=7) dominates AbsMax(bits=4)", "weight_l1", "any", "PROVED"),
    ("AbsMax(bits=8) dominates AbsMax(bits=4)", "weight_l2", "any", "REFUTED"),
    (f"Magnitude(sparsity=1/2, per='row') dominates {W}", "weight_l1", "any", "PROVED"),
    (f"Magnitude(sparsity=1/3) dominates {P}", "weight_l2", "any", "PROVED"),
    (f"{P} dominates Magnitude(sparsity=1/3)", "weight_l2", "any", "REFUTED"),
    (PQ, "output_l2", "1x4", "REFUTED"),
    (PQ, "output_l2", "2x2", "REFUTED"),
    (PQ, "output_l2", "any", "REFUTED"),
    (f"{Q} >> {P} dominates {P} >> {Q}", "weight_l1", "1x4", "REFUTED"),
    (f"{Q} >> {P} dominates {P} >> {Q}", "weight_l2", "2x2", "REFUTED"),
    (f"{W} >> {Q} dominates {Q} >> {W}", "weight_l1", "1x4", "REFUTED"),
    (f"{W} >> {Q} dominates {Q} >> {W}", "output_l2", "2x2", "REFUTED"),
    # The paper's ties (all go) with different midpoints: DESIGN.md, section 2.
    (_third("half_away"), "weight_l1", "1x3", "PROVED"),
    (_third("half_up"), "weight_l1", "1x3", "REFUTED"),
    (_third("half_up", "first"), "weight_l1", "1x3", "PROVED"),
    (f"{P} dominates {W}", "weight_l2", "1x4", "PROVED"),
    (f"{W} dominates {P}", "weight_l2", "1x4", "REFUTED"),
    (f"{P} >> {P} equals {P}", "weight_l2", "1x4", "PROVED"),
    (f"{Q} >> {Q} equals {Q}", "weight_l2", "1x3", "PROVED"),
    (f"{P} >> {Q} equals {Q} >> {P}", "weight_l2", "1x4", "REFUTED"),
    # Where distillation goes.
    (f"{P} >> {D} dominates {D} >> {P}", "output_l2", "any", "PROVED"),
    (f"{D} >> {P} dominates {P} >> {D}", "output_l2", "any", "REFUTED"),
    (f"{Q} >> {D} dominates {Q}", "output_l2", "any", "PROVED"),
    (f"{D} >> {P} >> {Q} equals {P} >> {Q}", "output_l2", "any", "PROVED"),
    (f"{P} >> {D} equals {D} >> {P}", "output_l2", "any", "REFUTED"),
    (f"{P} >> {D} dominates {P}", "weight_l2", "any", "REFUTED"),
    # A low-rank correction last.
    (f"{Q} >> {L} dominates {L} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {L} dominates {L} >> {Q}", "output_l2", "any", "PROVED"),
    (f"{L} >> {D} equals {D} >> {L}", "output_l2", "any", "PROVED"),
    (f"{L} >> {P} dominates {P} >> {L}", "weight_l2", "any", "REFUTED"),
    # What survives.
    (f"{P} >> {Q} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> {D} >> {Q} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> {S} keeps mask", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> {P} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {D} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {S} keeps grid", "weight_l2", "any", "REFUTED"),
    (f"{S} >> {Q} keeps rank", "weight_l2", "any", "REFUTED"),
    (f"{S} keeps rank", "weight_l2", "any", "PROVED"),
    (f"{Q} keeps mask", "weight_l2", "any", "VACUOUS"),
    # The format at the end is the one that was promised.
    (f"{N} >> {Q} fits W4 2:4 50%", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {N} fits W4 2:4", "weight_l2", "any", "PROVED"),
    (f"{N} >> {D} >> {Q} >> {X} fits W4A4 2:4 50%/row", "weight_l2", "any", "PROVED"),
    (f"{N} >> {Q} >> {L} fits W4 2:4 +r1", "weight_l2", "any", "PROVED"),
    (f"{N} >> {Q} >> {L} fits W4 2:4", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {Q} fits W3 2:4", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {M} fits W4 2:4", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} fits W4 2:4", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {O} >> {A} fits 2:4", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} >> {A} fits W4", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {S} fits 2:4", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {Q} fits 2:4", "weight_l2", "any", "REFUTED"),
    (f"{P} fits 2:4", "weight_l2", "1x4", "PROVED"),
    (f"{P} fits 50%", "weight_l2", "any", "PROVED"),
    (f"{P} fits 50%/row", "weight_l2", "any", "REFUTED"),
    (f"{W} fits 50%", "weight_l2", "any", "REFUTED"),  # int(n / 2) of every row of odd n are fewer
    (f"{ANY_P} >> {Q} fits W4", "weight_l2", "any", "PROVED"),
    (f"{N} >> {ANY_Q} fits 2:4", "weight_l2", "any", "PROVED"),
    (f"{N} >> {ANY_Q} fits W4 2:4", "weight_l2", "any", "REFUTED"),
    (f"{Q} fits W4A8", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> AbsMaxInputs(bits=8) fits W4A8", "weight_l2", "any", "PROVED"),
    (f"{Q} >> AbsMaxInputs(bits=8, group=2) fits W4A8", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> AbsMaxInputs(bits=9) fits W4A8", "weight_l2", "any", "REFUTED"),
    (f"{S} fits r1", "weight_l2", "any", "PROVED"),
    (f"{S} >> {Q} fits W4 r1", "weight_l2", "any", "REFUTED"),
    # An asymmetric grid without an exact zero breaks a mask unless it is applied again.
    (f"{P} >> {M} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{ANY_P} >> MinMax(bits=Any, rounding='any') keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> {O} keeps mask", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {O} >> {A} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> {O} >> {D} >> {A} >> {Q} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> {S} >> {N} >> {A} keeps mask", "weight_l2", "any", "REFUTED"),
    (f"{M} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{M} >> {P} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{O} >> {D} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{O} >> {P} keeps grid", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {M} >> {A} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{P} >> {O} >> {A} keeps grid", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {Q} keeps n:m", "weight_l2", "any", "PROVED"),
    (f"{N} >> {D} >> {Q} keeps n:m", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} keeps n:m", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {O} >> {N} keeps n:m", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} >> {N} keeps mask", "weight_l2", "any", "REFUTED"),
    (f"{N} >> {O} >> {P} keeps n:m", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {Q} keeps n:m", "weight_l2", "any", "VACUOUS"),
    (f"{P} >> {Q} keeps shape", "weight_l2", "any", "VACUOUS"),
    (f"{S} >> {P} keeps rank", "weight_l2", "any", "REFUTED"),
    (f"TruncatedSVD(rank=2) >> {N} keeps rank", "weight_l2", "any", "REFUTED"),
    (f"{S} >> {Q} >> {S} keeps rank", "weight_l2", "any", "PROVED"),
    (_reversed(P, M), "weight_l2", "any", "REFUTED"),
    # Scores of the dense weights: the selection is the same wherever it stands.
    (f"{DENSE} >> {ANY_Q} equals {ANY_Q} >> {DENSE}", "weight_l2", "any", "PROVED"),
    (_reversed(DENSE, ANY_Q), "output_l2", "any", "PROVED"),
    (_reversed(ANY_Q, DENSE), "output_l2", "any", "PROVED"),
    (f"{ANY_Q} is orthogonal to {DENSE}", "weight_l1", "any", "PROVED"),
    (f"{ANY_Q} >> {DENSE} dominates {ANY_Q} >> {ANY_P}", "weight_l2", "any", "PROVED"),
    (f"{DENSE} >> {DENSE} equals {DENSE}", "weight_l2", "any", "PROVED"),
    (f"{HALF} >> Magnitude(sparsity=1/4, of='dense') equals {HALF}", "weight_l2", "any", "PROVED"),
    (_reversed(DENSE, "AbsMax(bits=4, group=2)"), "output_l2", "any", "PROVED"),
    (_reversed("Magnitude(sparsity=1/2, of='dense', ties='any')", Q), "weight_l2", "any", "PROVED"),
    (_reversed("Magnitude(sparsity=1/2, of='dense', ties='any')", Q), "output_l2", "any", "REFUTED"),
    (f"{HALF} >> {Q} equals {Q} >> {P}", "weight_l2", "any", "REFUTED"),
    # Values that are no whole numbers of steps. The table of NF4 is not symmetric, which decides the order.
    (_reversed(N, "FP4(group=64)"), "weight_l1", "any", "PROVED"),
    (_reversed(N, "FP4(group=64)"), "weight_l2", "any", "PROVED"),
    (_reversed(ANY_P, "FP4(group=None, rounding='half_away')"), "weight_l2", "any", "PROVED"),
    (_reversed(ANY_P, "FP8()"), "weight_l2", "any", "PROVED"),
    (_reversed(N, "MX()"), "weight_l1", "any", "PROVED"),
    (_reversed(N, "MX()"), "weight_l2", "any", "PROVED"),
    (_reversed(N, "BlockFloatingPoint(bits=4)"), "weight_l2", "any", "PROVED"),
    (_reversed("FP4(group=64)", N), "weight_l2", "any", "REFUTED"),
    (_reversed(N, "NF4(group=64)"), "weight_l1", "any", "REFUTED"),
    (_reversed(N, "NF4(group=64)"), "weight_l2", "any", "REFUTED"),
    (_reversed("NF4(group=64)", N), "weight_l2", "any", "REFUTED"),
    (_reversed(DENSE, "NF4(group=None)"), "output_l2", "any", "PROVED"),
    (f"{N} is orthogonal to FP4(group=64)", "weight_l2", "any", "PROVED"),
    (f"{N} is orthogonal to NF4(group=64)", "weight_l1", "any", "PROVED"),
    (f"{P} >> NF4() keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> MX() >> {D} keeps mask", "weight_l2", "any", "PROVED"),
    (f"NF4() >> {P} keeps grid", "weight_l2", "any", "PROVED"),
    (f"MX() >> {P} >> {D} keeps grid", "weight_l2", "any", "PROVED"),
    (f"MX() >> {Q} keeps grid", "weight_l2", "any", "PROVED"),
    (f"NF4() >> {S} keeps grid", "weight_l2", "any", "REFUTED"),
    ("NF4() >> NF4() equals NF4()", "weight_l2", "any", "PROVED"),
    ("MX() >> MX() equals MX()", "weight_l2", "any", "PROVED"),
    ("FP4(rounding='any') >> FP4(rounding='any') equals FP4(rounding='any')", "weight_l2", "any", "REFUTED"),
    ("FP4() equals MX()", "weight_l2", "any", "REFUTED"),
    (_reversed(P, "FP4(group=None)"), "weight_l2", "1x3", "PROVED"),
    # Gradient steps on the output loss: never worse, within the mask, off the grid, and no optimum.
    (f"{P} >> {G} dominates {P}", "output_l2", "any", "PROVED"),
    (f"{S} >> {G} dominates {S}", "output_l2", "any", "PROVED"),
    (f"{P} >> {G} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {G} keeps grid", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {G} dominates {P} >> {D}", "output_l2", "any", "REFUTED"),
    (f"{P} >> {G} dominates {P}", "weight_l2", "any", "REFUTED"),
    # Outcomes that are left open: what holds, holds for each of them.
    (f"{P} >> {OPEN} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{Q} >> {OPEN} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{S} >> {OPEN} keeps rank", "weight_l2", "any", "REFUTED"),
    (f"{OPEN} equals {OPEN}", "output_l2", "any", "REFUTED"),
    (f"{P} dominates {P} >> {OPEN}", "output_l2", "any", "REFUTED"),
    (f"{P} >> {OPEN} dominates {P}", "output_l2", "any", "REFUTED"),
    # Whole rows of the matrix that stands for coupled layers.
    ("PruneNeurons(sparsity=1/2) >> AbsMax(bits=4) keeps mask", "weight_l2", "any", "PROVED"),
    (f"{Q} >> PruneHeads(sparsity=1/2) keeps grid", "weight_l2", "any", "PROVED"),
    (f"PruneNeurons(sparsity=1/2) >> {O} keeps mask", "weight_l2", "any", "REFUTED"),
    ("PruneNeurons(sparsity=1/2) dominates Magnitude(sparsity=1/2)", "weight_l2", "2x2", "REFUTED"),
    # Units are rows of some layers and columns of others: decided for both.
    ("PruneNeurons(sparsity=1/2) >> GPTQ(bits=4) keeps shape", "weight_l2", "any", "REFUTED"),
    ("PruneHeads(sparsity=1/2) >> GPTQ(bits=4, mask='kept') keeps shape", "weight_l2", "any", "PROVED"),
    ("PruneHeads(sparsity=1/2) >> TruncatedSVD(rank=1) keeps shape", "weight_l2", "any", "PROVED"),
    (f"{U} >> {H} equals {H} >> {U}", "weight_l2", "any", "PROVED"),
    ("PruneColumns(sparsity=1/2) >> LoftQ(rank=1, bits=3) keeps shape", "weight_l2", "any", "PROVED"),
    # No layer fits: a power of two that is a multiple of 3.
    ("Hadamard() >> AbsMax(bits=4, group=3) keeps grid", "weight_l2", "any", "VACUOUS"),
    # Scores of the whole layer: of these only the count is known, and magnitude is the best mask of any count.
    (f"{ANY_P} dominates RIA(sparsity=Any)", "weight_l2", "any", "PROVED"),
    (f"RIA(sparsity=1/2) dominates {P}", "weight_l2", "any", "REFUTED"),
    (f"{P} dominates RIA(sparsity=1/2)", "output_l2", "any", "REFUTED"),
    (f"{P} dominates RIA(sparsity=1/2, per='row')", "weight_l2", "any", "REFUTED"),
    ("RIA(sparsity=1/2) >> AbsMax(bits=Any) keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} dominates Taylor(sparsity=1/2)", "weight_l4", "any", "PROVED"),
    (f"Taylor(sparsity=1/2) dominates {P}", "output_l2", "any", "REFUTED"),
    # A learned mask may be any.
    (f"{ANY_P} dominates LearnedMask(sparsity=Any)", "weight_l2", "any", "PROVED"),
    (f"{N} dominates LearnedMask(sparsity=1/2, pattern='2:4')", "weight_l1", "any", "PROVED"),
    (f"{P} dominates LearnedMask(sparsity=1/2)", "weight_l2", "1x3", "PROVED"),
    (f"LearnedMask(sparsity=1/2) dominates {P}", "weight_l2", "any", "REFUTED"),
    ("LearnedMask(sparsity=1/2) equals LearnedMask(sparsity=1/2)", "weight_l2", "any", "REFUTED"),
    (f"{P} dominates LearnedMask(sparsity=1/2)", "output_l2", "any", "REFUTED"),
    # Rounds of magnitude pruning are nested.
    (f"GradualMagnitude(sparsity=1/2) equals {P}", "weight_l2", "any", "PROVED"),
    (f"GradualMagnitude(sparsity=1/2, rounds=5, pattern='2:4') equals {N}", "weight_l2", "any", "PROVED"),
    (
        "GradualMagnitude(sparsity=1/2, ties='any') equals Magnitude(sparsity=1/2, ties='any')",
        "weight_l2",
        "any",
        "REFUTED",
    ),
    (f"GradualMagnitude(sparsity=1/2) >> {Q} equals {P} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"GradualMagnitude(sparsity=1/4) equals {P}", "weight_l2", "any", "REFUTED"),
    # Whole rows and columns.
    (f"PruneRows(sparsity=1/2) >> {N} >> {Q} >> {D} keeps shape", "weight_l2", "any", "PROVED"),
    (f"PruneColumns(sparsity=1/2) >> PruneRows(sparsity=1/2) >> {M} keeps shape", "weight_l2", "any", "PROVED"),
    (f"PruneRows(sparsity=1/2) >> {O} keeps shape", "weight_l2", "any", "REFUTED"),
    (f"{Q} >> PruneColumns(sparsity=1/2) >> {L} keeps shape", "weight_l2", "any", "REFUTED"),
    (f"{S} >> PruneRows(sparsity=1/2) keeps rank", "weight_l2", "any", "PROVED"),
    (f"{Q} >> PruneRows(sparsity=1/2) keeps grid", "weight_l2", "any", "PROVED"),
    (f"{N} >> PruneRows(sparsity=1/2) >> {Q} keeps n:m", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} keeps n:m", "weight_l2", "any", "REFUTED"),
    ("PruneRows(sparsity=1/2, score='l2') dominates PruneRows(sparsity=1/2)", "weight_l2", "2x2", "PROVED"),
    ("PruneRows(sparsity=1/2) dominates PruneRows(sparsity=1/2, score='l2')", "weight_l2", "any", "REFUTED"),
    (
        "PruneRows(sparsity=1/2, score='l2') dominates PruneRows(sparsity=1/2, score='activation')",
        "output_l2",
        "any",
        "REFUTED",
    ),
    # Second-order techniques: what their updates fill, and what they cannot.
    (f"{P} >> GPTQ(bits=4) keeps mask", "weight_l2", "any", "REFUTED"),
    (f"{P} >> GPTQ(bits=4, mask='kept') keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> OBS(sparsity=1/2) keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> OBQ(bits=4) keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> SparseGPT(sparsity=1/2, block=2) keeps mask", "weight_l2", "any", "REFUTED"),
    ("OBS(sparsity=1/2) dominates SparseGPT(sparsity=1/2)", "output_l2", "any", "REFUTED"),
    (f"{P} >> NF4(scales='double') keeps mask", "weight_l2", "any", "PROVED"),
    (f"{P} >> ClippedAbsMax(bits=4, ratios=2) keeps mask", "weight_l2", "any", "PROVED"),
    ("AbsMax(bits=2) dominates ClippedAbsMax(bits=2, ratios=2)", "weight_l2", "any", "REFUTED"),
    (f"{P} >> FP8Inputs() >> FP8() equals FP8Inputs() >> {P} >> FP8()", "weight_l2", "any", "PROVED"),
    # Training on a grid may lead to any of its values.
    (f"{P} >> {T} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{N} >> {T} keeps n:m", "weight_l2", "any", "PROVED"),
    (f"{N} >> {O} >> {T} keeps mask", "weight_l2", "any", "PROVED"),
    (f"{T} >> {P} keeps grid", "weight_l2", "any", "PROVED"),
    (f"{T} >> {S} keeps grid", "weight_l2", "any", "REFUTED"),
    (f"{S} >> {T} keeps rank", "weight_l2", "any", "REFUTED"),
    (f"{T} equals {T}", "weight_l2", "any", "REFUTED"),
    (f"{T} dominates {Q}", "weight_l2", "any", "REFUTED"),
    (f"{T} dominates {Q}", "output_l2", "any", "REFUTED"),
    (f"{Q} dominates {T}", "output_l2", "any", "REFUTED"),
    ("AbsMax(bits=2) dominates QuantizationAwareTraining(bits=2)", "weight_l2", "1x3", "PROVED"),
    ("AbsMax(bits=2) dominates QuantizationAwareTraining(bits=2, group=2)", "weight_l2", "1x2", "PROVED"),
    # Joint by its score: not better than one step after the other, and the mask holds as after two steps.
    (f"{P} >> JSQ(sparsity=1/2, bits=4) keeps mask", "weight_l2", "any", "PROVED"),
    ("JSQ(sparsity=Any, bits=Any) >> AbsMax(bits=Any) keeps mask", "weight_l2", "any", "PROVED"),
    (f"JSQ(sparsity=1/2, bits=4) dominates {W} >> {Q}", "output_l2", "any", "REFUTED"),
    (f"{W} >> {Q} dominates JSQ(sparsity=1/2, bits=4)", "output_l2", "any", "REFUTED"),
    (f"JSQ(sparsity=1/2, bits=4, per='tensor') dominates {P} >> {Q}", "weight_l2", "any", "REFUTED"),
    (f"{ANY_P} >> {ANY_Q} dominates JSQ(sparsity=Any, bits=Any, per='tensor')", "weight_l2", "any", "REFUTED"),
    # The grid is symmetric: what is gained by keeping a weight depends on its magnitude, whichever way midpoints go.
    (_reversed(P, UP4), "weight_l1", "any", "PROVED"),
    (_reversed(ANY_P, "AbsMax(bits=Any, rounding='any')"), "weight_l2", "any", "PROVED"),
    (_reversed(N, "FP4(group=64, rounding='half_up')"), "weight_l3", "any", "PROVED"),
    (_reversed("Magnitude(sparsity=1/3, ties='all')", UP4), "weight_l1", "any", "REFUTED"),
    (_reversed(P, "NF4(group=None, rounding='half_up')"), "weight_l1", "any", "REFUTED"),
    (_reversed(UP4, P), "weight_l1", "any", "REFUTED"),
    # The least weights of a larger group lose less than any as many of smaller ones, whatever becomes of the others.
    (f"{P} dominates {N}", "weight_l2", "any", "PROVED"),
    (f"{P} dominates {N} >> {Q} >> {D}", "weight_l1", "any", "PROVED"),
    (f"{P} >> {Q} dominates {N} >> {Q}", "weight_l2", "any", "PROVED"),
    (f"{P} >> {Q} dominates AbsMax(bits=4, rounding='any') >> {N}", "weight_l1", "any", "PROVED"),
    (f"{N} dominates {P}", "weight_l2", "any", "REFUTED"),
    (f"{P} dominates {N}", "output_l2", "any", "REFUTED"),
    (f"{P} dominates {N} >> {L}", "weight_l2", "any", "REFUTED"),
    (f"{P} >> {Q} dominates {N} >> AbsMax(bits=5)", "weight_l2", "any", "REFUTED"),
    (f"{W} dominates {N} >> {D} given diagonal_gram", "output_l2", "any", "PROVED"),
    (f"{W} dominates {N} given diagonal_gram", "weight_l2", "any", "REFUTED"),
    # Counted at one shape: rows of an odd number of weights lose fewer than the tensor.
    (f"{P} dominates {W}", "weight_l2", "2x4", "PROVED"),
    (f"{P} dominates {W}", "weight_l2", "2x3", "REFUTED"),
    (f"{P} dominates {W}", "weight_l2", "any", "REFUTED"),
    # Wanda does not see columns scaled against the inputs: T3 of CLAIMS.md.
    (f"SmoothQuant() >> {W} dominates {W}", "output_l2", "any", "PROVED"),
    (f"{W} dominates SmoothQuant() >> {W}", "output_l2", "any", "PROVED"),
    (f"AWQ(alphas=(0, 1), group=None) >> {W} dominates {W}", "weight_l2", "any", "PROVED"),
    (f"SmoothQuant() >> {W} equals {W}", "weight_l2", "any", "PROVED"),
    (f"SmoothQuant() >> {W} same state as {W}", "weight_l2", "any", "REFUTED"),
    (f"SmoothQuant() >> {P} equals {P}", "weight_l2", "any", "REFUTED"),
    (f"SmoothQuant() >> {P} dominates {P}", "output_l2", "any", "REFUTED"),
    (f"SmoothQuant() >> {W} >> {Q} dominates {W} >> {Q}", "output_l2", "any", "REFUTED"),
    (f"Hadamard(block=4) >> {W} dominates {W}", "output_l2", "any", "REFUTED"),
    # Rounds of magnitude pruning are one selection.
    (_reversed("GradualMagnitude(sparsity=1/2)", Q), "weight_l2", "any", "PROVED"),
    (_reversed("GradualMagnitude(sparsity=1/2, rounds=5, pattern='2:4')", UP4), "weight_l1", "any", "PROVED"),
    (_reversed(Q, "GradualMagnitude(sparsity=1/2)"), "weight_l2", "any", "REFUTED"),
    (f"{Q} is orthogonal to GradualMagnitude(sparsity=1/2) within 1/2", "weight_l1", "any", "PROVED"),
]

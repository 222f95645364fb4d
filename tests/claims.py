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


X = "AbsMaxInputs(bits=4)"
ANY_P, ANY_Q = "Magnitude(sparsity=Any)", "AbsMax(bits=Any)"
M, O, A = "MinMax(bits=4)", "MinMax(bits=4, zero='none')", "ApplyMask()"
DENSE, HALF = "Magnitude(sparsity=Any, of='dense')", "Magnitude(sparsity=1/2, of='dense')"

CLAIMS: list[tuple[str, str, str, str]] = [
    # Every bit width and every sparsity at once.
    (_reversed(ANY_P, ANY_Q), "weight_l1", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l2", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l3", "any", "PROVED"),
    (_reversed(ANY_P, ANY_Q), "weight_l4", "any", "PROVED"),
    (_reversed(N, ANY_Q), "weight_l4", "any", "PROVED"),
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
]

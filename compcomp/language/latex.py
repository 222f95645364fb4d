"""Write claims and verdicts as LaTeX."""

from __future__ import annotations

from fractions import Fraction

from compcomp.language.verdict import Matrix, Verdict

_ESCAPES = {
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "{": r"\{",
    "}": r"\}",
    "^": r"\^{}",
    "~": r"\~{}",
}


def escape(text: str) -> str:
    """Return the text with LaTeX's special characters escaped, and with an arrow for ``>>``."""
    return "".join(_ESCAPES.get(c, c) for c in text).replace(" >> ", r" $\rightarrow$ ")


def matrix_to_latex(rows: Matrix) -> str:
    """Return an exact matrix as a pmatrix."""

    def entry(x: Fraction) -> str:
        sign = "-" if x < 0 else ""
        return str(x) if x.denominator == 1 else f"{sign}\\tfrac{{{abs(x.numerator)}}}{{{x.denominator}}}"

    body = r" \\ ".join(" & ".join(entry(x) for x in row) for row in rows)
    return rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"


def verdict_to_latex(verdict: Verdict) -> str:
    """Return one paragraph with the claim, its status and scope, the assumptions, and the witness if there is one."""
    claim = verdict.claim
    loss = f" under {escape(claim.loss.name)}" if claim.loss else ""
    lines = [
        rf"\paragraph{{{verdict.status.capitalize()}.}} \texttt{{{escape(str(claim))}}}{loss}, "
        rf"{verdict.reach or verdict.scope.describe()}."
    ]
    if verdict.assumptions:
        lines.append("Assuming: " + "; ".join(escape(str(a)) for a in verdict.assumptions) + ".")
    if verdict.cause:
        lines.append(f"Cause: {escape(verdict.cause)}.")
    if witness := verdict.witness:
        lines.append(rf"Witness: \( W = {matrix_to_latex(witness.weight)} \)")
        if witness.inputs is not None:
            lines.append(rf"with inputs \( X = {matrix_to_latex(witness.inputs)} \)")
        losses = [f"{escape(t.sequence)} loses {t.loss}" for t in witness.traces if t.loss is not None]
        lines.append(("; ".join(losses) or escape(witness.reason)) + ".")
    return "\n".join(lines)

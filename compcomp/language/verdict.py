"""What became of a claim."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from compcomp.language.claim import Claim, Scope

Matrix = tuple[tuple[Fraction, ...], ...]


class Status(StrEnum):
    PROVED = "PROVED"
    REFUTED = "REFUTED"
    UNKNOWN = "UNKNOWN"
    VACUOUS = "VACUOUS"
    DISAGREE = "DISAGREE"


class Grade(StrEnum):
    """How well a proof is checked, best first."""

    CERTIFIED = "certified"
    TWO_SOLVERS = "two solvers"
    ONE_SOLVER = "one solver"
    NO_SOLVER = "no solver needed"


@dataclass(frozen=True)
class Trace:
    """One sequence run on a witness: the weight after each step (out x in), and the loss, if one is claimed.

    ``torch_loss`` is what the torch kernels lose on the same layer in float64.
    """

    sequence: str
    steps: tuple[tuple[str, Matrix], ...]
    loss: Fraction | None
    torch_loss: float | None


@dataclass(frozen=True)
class Witness:
    """A layer that refutes a claim: exact rationals, replayed in exact arithmetic and in torch.

    ``weight``: out x in. ``inputs``: in x tokens, or None. ``seed``: of the free choices in the replay, None
    when the techniques leave nothing free. ``reason``: what differs, in words.
    """

    weight: Matrix
    inputs: Matrix | None
    seed: int | None
    traces: tuple[Trace, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "weight": _matrix(self.weight),
            "inputs": None if self.inputs is None else _matrix(self.inputs),
            "seed": self.seed,
            "reason": self.reason,
            "traces": [
                {
                    "sequence": t.sequence,
                    "steps": [{"after": name, "weight": _matrix(w)} for name, w in t.steps],
                    "loss": None if t.loss is None else str(t.loss),
                    "torch_loss": t.torch_loss,
                }
                for t in self.traces
            ],
        }


@dataclass(frozen=True)
class Query:
    """One question a proof put to a solver, as SMT-LIB text. A proof needs the answer ``expected``."""

    name: str
    smtlib: str
    expected: str
    answer: str
    solver: str = ""
    rlimit: int = 0


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim.

    ``scope``: what was asked. ``reach``: what the answer covers, which may be more. ``stage``: what decided
    (search, rule, bounded). ``cause``: why it is unknown. ``work``: solver resource count and seconds.
    """

    claim: Claim
    scope: Scope
    status: Status
    reach: str = ""
    assumptions: tuple[str, ...] = ()
    grade: Grade | None = None
    stage: str = ""
    cause: str = ""
    reason: str = ""
    witness: Witness | None = None
    queries: tuple[Query, ...] = ()
    work: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        return self.status is Status.PROVED

    @property
    def refuted(self) -> bool:
        return self.status is Status.REFUTED

    def __bool__(self) -> bool:
        raise TypeError("a verdict is not a truth value: ask verdict.proved or verdict.status")

    def to_smtlib(self) -> str:
        """The questions put to the solver, one SMT-LIB script after another."""
        return "\n".join(f"; {q.name}: expected {q.expected}, answered {q.answer}\n{q.smtlib}" for q in self.queries)

    def to_latex(self) -> str:
        """The claim and its verdict as a LaTeX paragraph."""
        from compcomp.language.latex import verdict_to_latex

        return verdict_to_latex(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "claim": str(self.claim),
            "loss": self.claim.loss.name if self.claim.loss else None,
            "status": str(self.status),
            "scope": str(self.scope),
            "reach": self.reach,
            "grade": str(self.grade) if self.grade else None,
            "assumptions": list(self.assumptions),
            "stage": self.stage,
            "cause": self.cause,
            "reason": self.reason,
            "witness": self.witness.to_json() if self.witness else None,
            "queries": [{k: v for k, v in asdict(q).items() if k != "smtlib"} for q in self.queries],
            "work": self.work,
            "versions": self.versions,
        }

    def __str__(self) -> str:
        loss = f" under {self.claim.loss.name}" if self.claim.loss else ""
        end = f" ({self.reason or self.cause})" if self.reason or self.cause else ""
        return f"{self.status}: {self.claim}{loss}, {self.reach or self.scope.describe()}{end}"


def _matrix(rows: Matrix) -> list[list[str]]:
    return [[str(x) for x in row] for row in rows]

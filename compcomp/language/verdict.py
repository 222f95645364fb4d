"""What became of a claim."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from compcomp import hooks
from compcomp.language.assumption import Assumption, assumptions
from compcomp.language.claim import Claim, Scope
from compcomp.language.query import Query as Query
from compcomp.language.refusal import Matrix as Matrix
from compcomp.language.refusal import Refusal


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

    ``torch_loss`` is what the torch kernels lose on the same layer in float64. ``inputs``: after each step those
    (in x tokens) that it has changed, None where it has not; empty where no step has.
    """

    sequence: str
    steps: tuple[tuple[str, Matrix], ...]
    loss: Fraction | None
    torch_loss: float | None
    inputs: tuple[Matrix | None, ...] = ()

    def changed_inputs(self) -> list[tuple[str, Matrix]]:
        """The steps that change the inputs, by name, and what these are after them."""
        named = zip(self.steps, self.inputs, strict=False)
        return [(name, inputs) for (name, _), inputs in named if inputs is not None]


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
                    "steps": [_step(t, k) for k in range(len(t.steps))],
                    "loss": None if t.loss is None else str(t.loss),
                    "torch_loss": t.torch_loss,
                }
                for t in self.traces
            ],
        }


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim.

    ``scope``: what was asked. ``reach``: what the answer covers, which may be more. ``stage``: what decided
    (search, rule, bounded). ``cause``: why it is unknown. ``work``: solver resource count and seconds.
    ``notes``: what else there is to say, such as why the grade is no better.
    ``congruent``: a proof that holds from every state of a layer, not from the dense one alone: an equality may then be
    used anywhere in a longer sequence, and a dominance at its end.
    ``assumptions``: what a proof takes for granted. One given as text is of no known kind, and counts as restricting.
    ``needed``: of a proved claim with conditions, a smallest set of them with which the proof still goes through.
    ``tried``: of an unknown, why each rule about such claims does not prove it, the most telling first.
    """

    claim: Claim
    scope: Scope
    status: Status
    reach: str = ""
    assumptions: tuple[Assumption, ...] = ()
    grade: Grade | None = None
    stage: str = ""
    cause: str = ""
    reason: str = ""
    witness: Witness | None = None
    queries: tuple[Query, ...] = ()
    work: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    congruent: bool = False
    tried: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "assumptions", assumptions(self.assumptions, "Verdict"))

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

    def save(self, directory: Path | str, *, timeout: float = 60.0) -> Path:
        """Write the verdict to a new directory that ``compcomp check`` re-checks without the prover.

        It holds claim.json, queries/*.smt2, answers.json, certificates/*.json, witness.json, and manifest.json with the
        hash of each. Certificates of a proof are looked for now, unless ``prove(..., certify=True)`` has done so.

        Args:
            directory: a new folder, or an empty one.
            timeout: seconds for the search for certificates. A query without one rests on its solvers.

        Returns:
            The folder.

        Raises:
            InputError: the folder is not empty, or text does not say all of the claim's techniques.
        """
        folder: Path = hooks.offered("Verdict.save")(self, directory, timeout)
        return folder

    def to_latex(self) -> str:
        """The claim and its verdict as a LaTeX paragraph."""
        return str(hooks.offered("Verdict.to_latex")(self))

    def to_json(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            **self.claim.to_json(),
            "status": str(self.status),
            "scope": str(self.scope),
            "reach": self.reach,
            "grade": str(self.grade) if self.grade else None,
            "assumptions": list(map(str, self.assumptions)),
            "assumed": [assumption.to_json() for assumption in self.assumptions],
            "needed": None if self.needed is None else list(self.needed),
            "congruent": self.congruent,
            "stage": self.stage,
            "cause": self.cause,
            "reason": self.reason,
            "notes": list(self.notes),
            "witness": self.witness.to_json() if self.witness else None,
            "tried": [refusal.to_json() for refusal in self.tried],
            "queries": [_query(q) for q in self.queries],
            "work": self.work,
            "versions": self.versions,
        }

    def __str__(self) -> str:
        loss = f" under {self.claim.loss.name}" if self.claim.loss else ""
        end = f" ({self.reason or self.cause})" if self.reason or self.cause else ""
        needs = "" if self.needed is None else f"; of its conditions it needs {', '.join(self.needed) or 'none'}"
        return f"{self.status}: {self.claim}{loss}, {self.reach or self.scope.describe()}{end}{needs}"


def _step(trace: Trace, number: int) -> dict[str, Any]:
    name, weight = trace.steps[number]
    inputs = trace.inputs[number] if trace.inputs else None
    return {"after": name, "weight": _matrix(weight), **({} if inputs is None else {"inputs": _matrix(inputs)})}


def _query(query: Query) -> dict[str, Any]:
    return {f.name: getattr(query, f.name) for f in fields(query) if f.name not in ("smtlib", "certificate")}


def _matrix(rows: Matrix) -> list[list[str]]:
    return [[str(x) for x in row] for row in rows]

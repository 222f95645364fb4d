"""Define verdicts, the answers to claims, with their evidence."""

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
    """Name the possible answers to a claim."""

    PROVED = "PROVED"
    """The claim holds on all layers of the scope, under the stated assumptions."""
    REFUTED = "REFUTED"
    """A witness contradicts the claim."""
    UNKNOWN = "UNKNOWN"
    """The claim is undecided."""
    VACUOUS = "VACUOUS"
    """The claim says nothing."""
    DISAGREE = "DISAGREE"
    """Two solvers contradict each other on a question, so that there is no proof."""


class Grade(StrEnum):
    """Grade the evidence for a proof, best first."""

    CERTIFIED = "certified"
    TWO_SOLVERS = "two solvers"
    ONE_SOLVER = "one solver"
    NO_SOLVER = "no solver needed"


@dataclass(frozen=True)
class Trace:
    """Record one run of a sequence on a witness.

    Args:
        sequence: the text of the sequence.
        steps: the name of each step, and the weight (out x in) after it.
        loss: the exact loss at the end, or None if the claim has no loss.
        torch_loss: the loss of the torch kernels on the same layer, in float64.
        inputs: for each step the inputs (in x tokens) after it if it changed them, else None. Empty if no step did.
    """

    sequence: str
    steps: tuple[tuple[str, Matrix], ...]
    loss: Fraction | None
    torch_loss: float | None
    inputs: tuple[Matrix | None, ...] = ()

    def changed_inputs(self) -> list[tuple[str, Matrix]]:
        """Return the name of each step that changes the inputs, with the inputs after it."""
        named = zip(self.steps, self.inputs, strict=False)
        return [(name, inputs) for (name, _), inputs in named if inputs is not None]


@dataclass(frozen=True)
class Witness:
    """Hold a layer of exact rationals that refutes a claim, replayed in exact arithmetic and in torch.

    Args:
        weight: the dense weight (out x in).
        inputs: the calibration inputs (in x tokens), or None.
        seed: the seed of the free choices in the replay, or None if the techniques leave no free choice.
        traces: the run of each sequence of the claim on this layer.
        reason: a phrase that describes how the claim is contradicted.
    """

    weight: Matrix
    inputs: Matrix | None
    seed: int | None
    traces: tuple[Trace, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the witness as plain data, with exact numbers as text."""
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
    """Answer one claim.

    Args:
        claim: the claim.
        scope: the layers that were asked about.
        status: the answer.
        reach: the layers that the answer covers, which may be more than the scope.
        assumptions: the statements that a proof depends on. One given as text is of no known kind, and counts as one
            that restricts layers.
        grade: the strength of the evidence for a proof.
        stage: the stage that decided the claim (search, rule, bounded).
        cause: the reason why the claim is undecided.
        reason: the reason for the answer.
        witness: the counterexample that refutes the claim.
        queries: the questions put to solvers.
        work: the resource count of the solver, and seconds.
        versions: the versions of the solvers and libraries.
        needed: for a proved claim with conditions, a smallest set of them with which the proof still succeeds.
        notes: further remarks, such as the reason why the grade is not better.
        local_rewrite: True if the proof holds from every state of a layer, not only from the dense layer. An equality
            may then be used anywhere in a longer sequence, and a dominance at its end. Its JSON name is `congruent`.
        tried: for an unknown claim, the refusals of the rules about such claims, the most informative first.
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
    local_rewrite: bool = False
    tried: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "assumptions", assumptions(self.assumptions, "Verdict"))

    @property
    def proved(self) -> bool:
        """True if the claim is proved."""
        return self.status is Status.PROVED

    @property
    def refuted(self) -> bool:
        """True if the claim is refuted."""
        return self.status is Status.REFUTED

    def __bool__(self) -> bool:
        raise TypeError("a verdict is not a truth value: ask verdict.proved or verdict.status")

    def to_smtlib(self) -> str:
        """Return the questions put to the solver as concatenated SMT-LIB scripts."""
        return "\n".join(f"; {q.name}: expected {q.expected}, answered {q.answer}\n{q.smtlib}" for q in self.queries)

    def save(self, directory: Path | str, *, timeout: float = 60.0) -> Path:
        """Write the verdict to a new directory that ``compcomp check`` re-checks without the prover.

        It holds claim.json, queries/*.smt2, answers.json, certificates/*.json, witness.json, and manifest.json with the
        hash of each. This method searches for the certificates of a proof, unless ``prove(..., certify=True)`` has
        found them.

        Args:
            directory: a new folder, or an empty one.
            timeout: seconds for the search for certificates. A query without one depends on its solvers.

        Returns:
            The folder.

        Raises:
            InputError: the folder is not empty, or text does not determine the claim's techniques.
        """
        folder: Path = hooks.offered("Verdict.save")(self, directory, timeout)
        return folder

    def to_latex(self) -> str:
        """Return the claim and its verdict as a LaTeX paragraph."""
        return str(hooks.offered("Verdict.to_latex")(self))

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain data, which ``--json`` prints."""
        return {
            **self.claim.to_json(),
            "status": str(self.status),
            "scope": str(self.scope),
            "reach": self.reach,
            "grade": str(self.grade) if self.grade else None,
            "assumptions": list(map(str, self.assumptions)),
            "assumed": [assumption.to_json() for assumption in self.assumptions],
            "needed": None if self.needed is None else list(self.needed),
            "congruent": self.local_rewrite,
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

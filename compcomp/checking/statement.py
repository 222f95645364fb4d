"""Check that a saved verdict agrees with itself: fields, status, grade, reach, reasons, witness and queries.

Hashes find a change. The checks of this module find most statements that a forger makes up and hashes anew.
docs/certificates.md says which they cannot find.
"""

from __future__ import annotations

import re
from typing import Any

from compcomp.checking.assumed import ASSUMED, contradictions
from compcomp.checking.contracts import derived
from compcomp.checking.farkas import Invalid
from compcomp.language.claim import EACH_KIND, Claim, Scope
from compcomp.language.saved import FORMAT

Data = dict[str, Any]

TEXTS = "a list of texts"
STATED: dict[str, Any] = {
    **dict.fromkeys(("claim", "status", "scope", "reach", "stage", "cause", "reason"), str),
    **dict.fromkeys(("loss", "grade"), (str, type(None))),
    **dict.fromkeys(("assumptions", "given", "notes"), TEXTS),
    **dict.fromkeys(("assumed", "tried"), list),
    **{"format": int, "needed": (list, type(None)), "congruent": bool, "work": dict, "versions": dict},
}
TRIED: dict[str, Any] = {
    **dict.fromkeys(("rule", "reason", "reached"), str),
    **{"lemma": (dict, type(None)), "values": dict, "advice": TEXTS},
    **dict.fromkeys(("layer", "inputs"), (list, type(None))),
}
"""The fields of one refusal of a rule."""
ANSWER: dict[str, Any] = {
    **dict.fromkeys(("name", "script", "expected", "answer", "solver", "second_answer", "second_solver"), str),
    **{"rlimit": int, "certificate": (str, type(None))},
}
WITNESS: dict[str, Any] = {
    **dict.fromkeys(("weight", "traces"), list),
    **{"inputs": (list, type(None)), "seed": (int, type(None)), "reason": str},
}
TRACE: dict[str, Any] = {
    **{"sequence": str, "steps": list, "loss": (str, type(None)), "torch_loss": (float, type(None))}
}
FOLLOWS = "follows from a verdict on "
PROOF_NOTES = (
    "no second solver was asked",
    r".* did not answer '.*' \(.*\)",
    r"no certificate was found for .*",
    re.escape(FOLLOWS) + ".*",
)
STAGES = {"PROVED": ("rule", "bounded"), "REFUTED": ("search", "bounded"), "VACUOUS": ("rule", "bounded")}
WITHOUT_QUERIES = (
    *("no op", "absorption", "inputs", "rest", "last step", "kept", "fits", "optimum"),
    *("reference", "composed"),
)
"""The rules that may prove a claim without a query, from the promises of techniques."""


UNASKED = "no query was needed, as the prover says: --regenerate asks it again"


def check_fields(data: Any, fields: Data, where: str) -> None:
    """Check that data has exactly these fields, of these types.

    Args:
        data: The content of a file, or a part of it.
        fields: The type of each field.
        where: The place that an error names.

    Raises:
        Invalid: A field is missing, not known, or of another type.
    """
    if not isinstance(data, dict) or set(data) != set(fields):
        odd = sorted(map(str, set(data) ^ set(fields))) if isinstance(data, dict) else [type(data).__name__]
        raise Invalid(f"{where}: fields that are missing or not known: {', '.join(odd)}"[:200])
    for name, kind in fields.items():
        value = data[name]
        if kind == TEXTS:
            good = isinstance(value, list) and all(isinstance(text, str) for text in value)
        else:
            good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not good:
            raise Invalid(f"{where}: {name} is a {type(value).__name__}")


def check_shape(stated: Any, answers: Any, witness: Any) -> None:
    """Raise Invalid if a file does not have the fields and names that ``Verdict.save`` writes."""
    check_fields(stated, STATED, "claim.json")
    if stated["format"] != FORMAT:
        raise Invalid(f"claim.json: format {stated['format']} is not known")
    for one in stated["assumed"]:
        check_fields(one, ASSUMED, "an assumption")
    for one in stated["tried"]:
        check_fields(one, TRIED, "a refusal")
    if stated["needed"] is not None and not all(isinstance(text, str) for text in stated["needed"]):
        raise Invalid("claim.json: needed is no list of texts")
    check_fields(stated["versions"], dict.fromkeys(("compcomp", "solver", "second solver"), str), "versions")
    check_fields(stated["work"], dict.fromkeys(("rlimit", "seconds"), (int, float)), "work")
    if not isinstance(answers, list):
        raise Invalid("answers.json is no list")
    for number, answer in enumerate(answers, start=1):
        check_fields(answer, ANSWER, f"answer {number}")
        name = f"{number:02d}-{re.sub('[^a-z0-9]+', '-', answer['name'].lower()).strip('-')}"
        if answer["script"] != f"queries/{name}.smt2":
            raise Invalid(f"answer {number}: the script is not named after the query")
        if answer["certificate"] not in (None, f"certificates/{name}.json"):
            raise Invalid(f"answer {number}: the certificate is not named after the query")
        if answer["expected"] not in ("sat", "unsat") or answer["answer"] not in ("sat", "unsat", "unknown"):
            raise Invalid(f"answer {number}: neither sat nor unsat")
        if answer["rlimit"] < 0:
            raise Invalid(f"answer {number}: a negative rlimit")
    if witness is not None:
        check_fields(witness, WITNESS, "witness.json")
        for trace in witness["traces"]:
            check_fields(trace, TRACE, "a trace")
            for step in trace["steps"]:
                inputs = {"inputs": list} if isinstance(step, dict) and "inputs" in step else {}
                check_fields(step, {"after": str, "weight": list, **inputs}, "a step")


def problems(claim: Claim, stated: Data, answers: list[Data], witness: Data | None) -> list[str]:
    """Return the contradictions within the statement, one text for each.

    Args:
        claim: The claim that the verdict is on.
        stated: The content of claim.json.
        answers: The content of answers.json.
        witness: The content of witness.json, None if there is none.
    """
    status, found = stated["status"], list[str]()

    def wrong(bad: bool, text: str) -> None:
        if bad:
            found.append(text)

    if status not in ("PROVED", "REFUTED", "UNKNOWN", "VACUOUS", "DISAGREE"):
        return [f"the status is {status!r}"]
    wrong(stated["stage"] not in STAGES.get(status, ("", "rule", "bounded")), f"{status} by stage {stated['stage']!r}")
    wrong(witness is not None and status not in ("REFUTED", "UNKNOWN"), f"{status}, with a witness that refutes it")
    wrong(witness is None and status == "REFUTED", "a refutation needs a witness")
    wrong(bool(stated["cause"]) and status in ("PROVED", "REFUTED"), f"{status}, and a cause why it is not")
    wrong(bool(stated["reason"]) and status not in ("PROVED", "REFUTED"), f"{status}, and a reason why it holds")
    wrong(bool(stated["tried"]) and status != "UNKNOWN", f"{status}, and rules that do not prove it")
    if status != "PROVED":
        assumes = stated["assumptions"] not in ([], [*map(str, claim.coupling)])
        bound = stated["congruent"] or stated["needed"] or assumes
        wrong(bound and not _follows(stated), f"{status}, and what belongs to a proof")
        elsewhere = stated["reach"] != Scope.of(stated["scope"]).describe()
        wrong(elsewhere and not _follows(stated), "the reach is not its scope")
        wrong(stated["grade"] != ("no solver needed" if status == "REFUTED" else None), f"{status} with that grade")
    if status == "REFUTED" and witness is not None:
        wrong(stated["reason"] != witness["reason"], "the reason is not that of the witness")
        without = [f"{t} has no torch kernel: exact replay alone refutes" for t in _without_kernel(claim)]
        wrong(not _follows(stated) and stated["notes"] != without, "notes that say something else of torch kernels")
    if status == "PROVED":
        found += _of_proof(claim, stated, answers)
    found += contradictions(claim, stated, _follows(stated))
    found += _of_work(stated, answers)
    return found


def _follows(stated: Data) -> bool:
    return any(note.startswith(FOLLOWS) for note in stated["notes"])


def _without_kernel(claim: Claim) -> list[Any]:
    return [t for t in dict.fromkeys(t for s in claim.sequences for t in s) if not t.has_kernel]


def _of_work(stated: Data, answers: list[Data]) -> list[str]:
    """Return the contradictions between work and versions and the answers that they sum up."""
    if _follows(stated):
        return []
    found, versions = [], stated["versions"]
    if stated["work"]["rlimit"] != sum(answer["rlimit"] for answer in answers) or stated["work"]["seconds"] < 0:
        found.append("the work is not that of the answers")
    for key, said, name in (("solver", "answer", "solver"), ("second solver", "second_answer", "second_solver")):
        names = {answer[name] for answer in answers if answer[said] in ("sat", "unsat")}
        if names - {versions[key]} or (versions[key] and versions[key] not in {answer[name] for answer in answers}):
            found.append(f"the {key} is not that of the answers")
    return found


def _of_proof(claim: Claim, stated: Data, answers: list[Data]) -> list[str]:
    found, scope, reach = [], Scope.of(stated["scope"]), stated["reach"]
    rules = [text.removeprefix("rule ") for text in stated["reason"].removesuffix(EACH_KIND).split(" and rule ")]
    relied = [answer for answer in answers if answer["answer"] == answer["expected"]]
    by_rule = stated["reason"].startswith("rule ") and stated["reason"].endswith(EACH_KIND) == bool(claim.parts())
    if (stated["reason"] != "reduced and solved") if stated["stage"] == "bounded" else not by_rule:
        found.append(f"the reason {stated['reason'][:60]!r} is not one of stage {stated['stage']}")
    at = scope.describe()
    counted = scope.kind == "shape" and reach == at and rules == ["best selection"]
    if stated["stage"] == "rule" and reach != "any shape" and not counted and not _follows(stated):
        found.append("a rule proves for any shape")
    reached = (at, f"{at}: every matrix made of such blocks", f"{at}, inside the box")
    if stated["stage"] == "bounded" and (reach not in reached or scope.kind == "any"):
        found.append("the reach is not that of a proof at its scope")
    needed, given = stated["needed"], stated["given"]
    if (needed is None) != (not given) or any(text not in given for text in needed or ()):
        found.append("the conditions that are needed are not among the given ones")
    if odd := [note for note in stated["notes"] if not any(re.fullmatch(form, note) for form in PROOF_NOTES)]:
        found.append(f"a note that no proof has: {odd[0]}"[:200])
    if len(set(stated["notes"])) < len(stated["notes"]):
        found.append("a note is there twice")
    open_ = any(answer["second_answer"] not in ("sat", "unsat") for answer in relied)
    if open_ != any(re.fullmatch(form, note) for form in PROOF_NOTES[:2] for note in stated["notes"]):
        found.append("the notes say something else of a second solver than the answers")
    if not relied and (stated["stage"] == "bounded" or (stated["reason"] != "" and not {*rules} <= {*WITHOUT_QUERIES})):
        found.append("no answer that the proof needs, of a stage or rule that asks")
    elif not relied and stated["grade"] == "certified":
        found.append("the grade is certified, and there is no answer that the proof needs")
    grade = _grade(relied)
    if relied and stated["grade"] != grade and not (_follows(stated) and stated["grade"] == "one solver"):
        found.append(f"the grade is {stated['grade']}, and the answers are those of {grade}")
    if stated["grade"] not in ("certified", "two solvers", "one solver", "no solver needed"):
        found.append("a grade that is not known")
    return found


def _grade(relied: list[Data]) -> str:
    if all(answer["certificate"] for answer in relied):
        return "certified"
    return "two solvers" if all(a["second_answer"] == a["answer"] for a in relied) else "one solver"


def holes(claim: Claim, stated: Data, answers: list[Data]) -> list[str]:
    """Return the parts of a proof that depend on the prover alone, apart from its queries.

    Args:
        claim: The claim that the verdict is on.
        stated: The content of claim.json.
        answers: The content of answers.json.
    """
    found = []
    if _follows(stated):
        found.append("it follows from a verdict on another claim, which is not here")
    if not any(answer["answer"] == answer["expected"] for answer in answers):
        if stated["grade"] in ("one solver", "two solvers"):
            found.append("none of the recorded answers is one that the proof needs")
        elif not derived(claim):
            found.append(f"{UNASKED} ({stated['reason']})")
    return found

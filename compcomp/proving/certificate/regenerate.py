"""Ask the prover again for the queries of a saved claim, with the recorded answers in place of a solver."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from compcomp.language.claim import Claim
from compcomp.language.text import parse_claim
from compcomp.proving.prove import prove
from compcomp.proving.solver import Answer


class Recorded:
    """Answer each script as recorded, and any other with "unknown"."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def ask(self, smtlib: str, deadline: float) -> Answer:
        return Answer(self.answers.get(smtlib, "unknown"), solver="recorded")


def regenerated(directory: Path | str) -> str:
    """Return "" if the prover makes exactly the saved queries and assumptions for the saved claim.

    Otherwise return what differs. Other versions of compcomp or z3 may write the same query as other text, which counts
    as a difference.

    Args:
        directory: one that ``check_directory`` found to be in order.
    """
    folder = Path(directory)
    stated = json.loads((folder / "claim.json").read_text(encoding="utf-8"))
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    if stated["status"] != "PROVED":
        return ""
    if any(note.startswith("follows from a verdict on ") for note in stated["notes"]):
        return "the saved queries are those of another claim, from which this one follows"
    saved = [(a["name"], (folder / a["script"]).read_bytes().decode(), a["expected"]) for a in answers]
    recorded = Recorded({script: a["answer"] for a, (_, script, _) in zip(answers, saved, strict=True)})
    claim = parse_claim(stated["claim"], stated["loss"] or "weight_l2")
    verdict = prove(claim, stated["scope"], stages=(stated["stage"],), solver=recorded, second=None)
    if not verdict.proved:
        return "from the saved answers the prover does not prove the claim"
    if [(q.name, q.smtlib, q.expected) for q in verdict.queries] != saved:
        return "the prover asks other queries for this claim"
    again = verdict.to_json()
    said = ("claim", "loss", "scope", "given", "reach", "assumptions", "assumed")
    compared = (*said, "congruent", "stage", "reason", "cause")
    if other := [key for key in compared if again[key] != stated[key]]:
        return f"the prover states another {', '.join(other)} for this claim"
    return _needs_less(claim, stated)


def _needs_less(claim: Claim, stated: dict[str, Any]) -> str:
    """Return "" if the conditions reported as needed suffice. Their queries are not saved, so solvers are asked."""
    needed, given = stated["needed"], list(map(str, claim.given))
    if needed in (None, given):
        return "" if needed is not None or not given else "it is not said which conditions are needed"
    fewer = replace(claim, given=tuple(condition for condition in claim.given if str(condition) in needed))
    if list(map(str, fewer.given)) != needed or not prove(fewer, stated["scope"], stages=(stated["stage"],)).proved:
        return "the prover does not prove the claim under the conditions that are said to be needed"
    return ""

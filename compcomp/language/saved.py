"""Write a verdict to a directory that can be checked without the prover: ``compcomp check DIR``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from compcomp import hooks
from compcomp.errors import InputError
from compcomp.language.named import is_named
from compcomp.language.verdict import Verdict

FORMAT = 5
"""The version of the directory's format. Earlier versions are rejected, as "A equals B" meant the same state there."""
STATED = (
    "claim",
    "loss",
    "scope",
    "status",
    "reach",
    "assumptions",
    "assumed",
    "given",
    "needed",
    "congruent",
    "stage",
    "reason",
    "grade",
    "cause",
    "tried",
    "notes",
    "versions",
)
"""The entries of claim.json that the binding covers, in this order."""


def save(verdict: Verdict, directory: Path | str, timeout: float = 60.0) -> Path:
    """Write claim, queries, answers, certificates, witness and a manifest of hashes.

    Args:
        verdict: the verdict. Certificates that it lacks are searched for.
        directory: a new folder, or an empty one.
        timeout: seconds for the search for certificates.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not empty, or the text of the claim would be read as other techniques.
    """
    for technique in (t for sequence in verdict.claim.sequences for t in sequence):
        if not is_named(technique):
            kind = type(technique)
            given = f"{str(technique)[:80]} of {kind.__module__}.{kind.__qualname__}, which text does not tell"
            raise InputError(given, "registered techniques with every parameter in their text", "Verdict.save")
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r}, which is there already", "a directory that is new or empty", "Verdict.save")
    if verdict.proved and any(query.answer == query.expected and not query.certificate for query in verdict.queries):
        verdict = hooks.offered("Verdict.certified")(verdict, timeout)
    files = {path: text.encode() for path, text in _files(verdict).items()}
    manifest = {
        "format": FORMAT,
        "binding": binding(
            json.loads(files["claim.json"]), json.loads(files["answers.json"]), [q.smtlib for q in verdict.queries]
        ),
        "files": {path: hashlib.sha256(content).hexdigest() for path, content in files.items()},
    }
    files["manifest.json"] = _json(manifest).encode()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def binding(stated: dict[str, Any], answers: list[dict[str, Any]], scripts: list[str]) -> str:
    """Return one digest of a claim with its assumptions, of the questions asked for it, and of their answers.

    Args:
        stated: the content of claim.json.
        answers: the content of answers.json.
        scripts: the SMT-LIB scripts.
    """
    asked = [[answer[key] for key in ("name", "expected", "answer")] for answer in answers]
    text = json.dumps([[stated.get(key) for key in STATED], asked, scripts], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _files(verdict: Verdict) -> dict[str, str]:
    stated = verdict.to_json()
    stated.pop("queries")
    witness = stated.pop("witness")
    answers, files = [], {"claim.json": _json({"format": FORMAT, **stated})}
    for number, query in enumerate(verdict.queries, start=1):
        name = f"{number:02d}-{re.sub('[^a-z0-9]+', '-', query.name.lower()).strip('-')}"
        files[f"queries/{name}.smt2"] = query.smtlib
        certificate = None if query.certificate is None else f"certificates/{name}.json"
        if certificate is not None:
            files[certificate] = json.dumps(query.certificate, separators=(",", ":")) + "\n"
        answers.append(
            {
                "name": query.name,
                "script": f"queries/{name}.smt2",
                "expected": query.expected,
                "answer": query.answer,
                "solver": query.solver,
                "second_answer": query.second_answer,
                "second_solver": query.second_solver,
                "rlimit": query.rlimit,
                "certificate": certificate,
            }
        )
    files["answers.json"] = _json(answers)
    if witness is not None:
        files["witness.json"] = _json(witness)
    return files


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"

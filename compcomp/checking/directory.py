"""Re-check a saved verdict from its files alone, without the prover: ``compcomp check DIR``.

- valid: nothing is wrong, and every query that the proof relies on has a certificate that the checker accepts (or the
  counterexample replays exactly).
- holey: nothing is wrong, but something depends on solvers alone, or on nothing.
- invalid: something is wrong.

docs/certificates.md says what this does and does not establish.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from compcomp.checking.farkas import Invalid, check_certificate
from compcomp.checking.replay import replay
from compcomp.checking.solvers import ask, installed
from compcomp.checking.statement import check_fields, check_shape, holes, problems
from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.saved import FORMAT, binding
from compcomp.language.text import parse_claim

SOLVER_SECONDS = 5.0
"""Seconds for one script and one solver."""
LARGEST_FILE = 50_000_000
MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""The exceptions that reading malformed files may raise."""


@dataclass
class Report:
    """Hold the findings of a check.

    ``queries`` has a row for each query, with how it is ``checked`` and the answers of solvers that were asked again.
    """

    claim: str = ""
    status: str = ""
    loss: str | None = None
    scope: str = ""
    problems: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    queries: list[dict[str, Any]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """The outcome: "invalid" if something is wrong, else "holey" if there are holes, else "valid"."""
        return "invalid" if self.problems else "holey" if self.holes else "valid"

    def describe(self) -> str:
        """Return a few lines for a terminal."""
        certified = sum(row["checked"] == "certificate" for row in self.queries)
        relied = sum(row["checked"] != "not relied on" for row in self.queries)
        where = f" (scope {self.scope}{f', {self.loss}' if self.loss else ''})" if self.scope else ""
        lines = [f"{self.outcome}: {self.status} {self.claim}{where}"]
        if self.queries:
            lines.append(f"  {certified} of the {relied} queries the proof relies on have a certificate that checks")
        lines += [f"  wrong: {text}" for text in self.problems] + [f"  hole: {text}" for text in self.holes]
        lines += [f"  assumes: {text}" for text in self.assumptions]
        if said := [f"{name} {version}" for name, version in self.versions.items() if version]:
            lines.append(f"  as it says, made with: {', '.join(said)}")
        return "\n".join(map(_printable, lines))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return {
            "outcome": self.outcome,
            "claim": self.claim,
            "status": self.status,
            "loss": self.loss,
            "scope": self.scope,
            "assumptions": self.assumptions,
            "problems": self.problems,
            "holes": self.holes,
            "queries": self.queries,
            "versions": self.versions,
        }


def _printable(text: str) -> str:
    """Return the text on one line, whatever the files hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def check_directory(directory: Path | str, *, solvers: bool = True) -> Report:
    """Check a directory that ``Verdict.save`` wrote.

    Args:
        directory: The directory.
        solvers: True asks the installed solvers again.

    Returns:
        The report, with everything that is wrong in the directory.

    Raises:
        InputError: There is no directory.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r}", "a directory that Verdict.save wrote", "check")
    report = Report()
    try:
        files = _files(folder)
        stated, answers = _json(files, "claim.json"), _json(files, "answers.json")
        witness = _json(files, "witness.json") if "witness.json" in files else None
        check_shape(stated, answers, witness)
        report.versions = stated["versions"]
        _check_stated(stated, answers, files, report)
        claim = _claim(stated)
        report.problems += problems(claim, stated, answers, witness)
        if stated["status"] == "PROVED":
            _check_queries(stated, answers, files, report, solvers)
            report.holes += holes(claim, stated, answers)
        elif stated["status"] == "REFUTED" and witness is not None:
            if problem := replay(claim, Scope.of(stated["scope"]), witness):
                raise Invalid(f"witness: {problem}")
        elif stated["status"] != "REFUTED":
            report.holes.append(f"{stated['status']} is not re-checked")
    except (Invalid, InputError) as error:
        report.problems.append(str(error))
    except MALFORMED as error:
        report.problems.append(f"not as Verdict.save writes it ({type(error).__name__}: {error})"[:300])
    return report


def _files(folder: Path) -> dict[str, str]:
    """Return the files by name, after checking that they are those of the manifest."""
    there = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if not p.is_dir()}
    if "manifest.json" not in there:
        raise Invalid("manifest.json is missing")
    if odd := [name for name, path in there.items() if path.is_symlink() or not path.is_file()]:
        raise Invalid(f"no plain file, or a link: {', '.join(odd)}")
    manifest = json.loads(there.pop("manifest.json").read_text(encoding="utf-8"))
    check_fields(manifest, {"format": int, "binding": str, "files": dict}, "manifest.json")
    if manifest["format"] != FORMAT:
        raise Invalid(f"format {manifest['format']} is not known")
    if missing := sorted(set(manifest["files"]) - set(there)):
        raise Invalid(f"missing: {', '.join(missing)}")
    if extra := sorted(set(there) - set(manifest["files"])):
        raise Invalid(f"not in the manifest: {', '.join(extra)}")
    files = {}
    for name, path in there.items():
        if ".." in PurePosixPath(name).parts or path.stat().st_size > LARGEST_FILE:
            raise Invalid(f"{name} is too large")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["files"][name]:
            raise Invalid(f"{name} was changed: it does not have the hash of the manifest")
        files[name] = content.decode("utf-8")
    return {**files, "": str(manifest["binding"])}


def _json(files: dict[str, str], name: str) -> Any:
    if name not in files:
        raise Invalid(f"{name} is missing")
    return json.loads(files[name])


def _check_stated(stated: dict[str, Any], answers: list[Any], files: dict[str, str], report: Report) -> None:
    """Check that the claim reads as its own text says.

    The binding must hold claim, assumptions and queries together.
    """
    report.claim, report.status = str(stated["claim"]), str(stated["status"])
    report.loss, report.scope = stated["loss"] and str(stated["loss"]), str(stated["scope"])
    report.assumptions = [str(a) for a in stated["assumptions"]]
    scripts = [files[answer["script"]] for answer in answers]
    if binding(stated, answers, scripts) != files[""]:
        raise Invalid("the queries, their order or answers, or what is claimed are not what was bound together")
    used = {"claim.json", "answers.json", ""} | {a[key] for a in answers for key in ("script", "certificate") if a[key]}
    if unused := sorted(set(files) - used - {"witness.json"}):
        raise Invalid(f"no query uses {', '.join(unused)}")


def _claim(stated: dict[str, Any]) -> Claim:
    """Return the claim, read from its text. Raise Invalid unless the text is the one that the claim prints."""
    import compcomp.techniques  # noqa: F401  (registers the techniques that a claim may name)

    claim = parse_claim(stated["claim"], stated["loss"] or "weight_l2")
    if any(stated[key] != printed for key, printed in claim.to_json().items()):
        raise Invalid("the claim's text, loss or conditions are not as the claim prints them")
    if str(Scope.of(stated["scope"])) != stated["scope"]:
        raise Invalid("the scope's text is not as the scope prints it")
    return claim


def _check_queries(
    stated: dict[str, Any], answers: list[Any], files: dict[str, str], report: Report, solvers: bool
) -> None:
    if not stated["assumptions"]:
        raise Invalid("a proof names its assumptions")
    scripts = [files[answer["script"]] for answer in answers]
    again = {name: ask(name, scripts, SOLVER_SECONDS) for name in (installed() if solvers and scripts else ())}
    for k, answer in enumerate(answers):
        said = {name: found[k] for name, found in again.items()}
        relied = answer["answer"] == answer["expected"]
        row = {"name": answer["name"], "script": answer["script"], "answer": answer["answer"], "again": said}
        row["checked"] = _checked(answer, scripts[k], files, report) if relied else "not relied on"
        report.queries.append(row)
        for name, found in said.items():
            if found == "error":
                report.problems.append(f"{answer['name']}: {name} does not read the script")
            elif found != answer["answer"] and "unknown" not in (found, answer["answer"]):
                report.problems.append(f"{answer['name']}: {name} now answers {found}, recorded is {answer['answer']}")
        if relied and row["checked"] == "solvers":
            agreeing = [name for name, found in said.items() if found == answer["answer"]]
            by = f"{' and '.join(agreeing)} alone, asked again" if agreeing else "the recorded answer alone"
            report.holes.append(f"{answer['name']} depends on {by}")


def _checked(answer: dict[str, Any], script: str, files: dict[str, str], report: Report) -> str:
    """Return how a query is checked: by its certificate, or by solvers only."""
    if answer["certificate"] is None:
        return "solvers"
    try:
        shown = check_certificate(script, _json(files, answer["certificate"]))
    except Invalid as error:
        report.problems.append(f"{answer['name']}: {error}")
        return "invalid"
    if shown != answer["expected"]:
        report.problems.append(f"{answer['name']}: the certificate shows {shown}, needed is {answer['expected']}")
        return "invalid"
    return "certificate"

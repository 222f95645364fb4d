"""Verdicts kept from one run to the next, in SQLite."""

from __future__ import annotations

import hashlib
import inspect
import json
import sqlite3
import time
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from compcomp.errors import InputError
from compcomp.language.claim import Claim, Scope
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Grade, Matrix, Query, Status, Trace, Verdict, Witness
from compcomp.version import __version__

KEPT = (Status.PROVED, Status.REFUTED, Status.VACUOUS)
"""What is worth keeping: an unknown may be known with more time."""

MEANING = ("terms.py", "language", "proving", "encodings")
"""The sources a verdict depends on: a change in one of them makes every earlier verdict unfindable."""

_TABLE = """CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, claim TEXT NOT NULL, scope TEXT NOT NULL, status TEXT NOT NULL,
    verdict TEXT NOT NULL, made REAL NOT NULL)"""


class Store:
    """A file of verdicts. Each is written in a transaction of its own, so that a killed run loses none.

    Several processes may use one file at a time. A verdict is found again only for the same claim, loss and
    scope, the same versions of the library and the solvers, and the same sources of the encodings.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{str(path)!r} ({error})", "a path for a file of verdicts (SQLite)", "store") from None

    def get(self, claim: Claim, scope: Scope) -> Verdict | None:
        """The verdict kept for this claim, None when there is none or it cannot be read."""
        key = key_of(claim, scope)
        if key is None:
            return None
        row = self._connection.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            verdict = verdict_from_json(json.loads(row[0]), claim)
        except (InputError, KeyError, TypeError, ValueError):
            return None
        return verdict if verdict.status in KEPT and verdict.scope == scope else None

    def put(self, verdict: Verdict) -> None:
        """Keep a verdict, unless it may turn out otherwise another time."""
        key = key_of(verdict.claim, verdict.scope)
        if key is None or verdict.status not in KEPT:
            return
        row = (key, str(verdict.claim), str(verdict.scope), str(verdict.status))
        data = json.dumps(verdict_to_json(verdict))
        self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", (*row, data, time.time()))

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def close(self) -> None:
        self._connection.close()


# ---------------------------------------------------------------------------------------------- keys


def key_of(claim: Claim, scope: Scope) -> str | None:
    """What a verdict is found by; None where the source of a technique cannot be read."""
    sources = []
    for technique in sorted({type(t) for s in claim.sequences for t in s}, key=lambda kind: kind.__qualname__):
        source = _source_of(technique)  # type: ignore[arg-type]  # classes are hashable
        if source is None:
            return None
        sources.append(source)
    loss = claim.loss.name if claim.loss else None
    parts = [str(claim), loss, str(scope), _library(), *sources]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _source_of(technique: type) -> str | None:
    """Hash of the file that defines a technique, which need not be one of ours."""
    try:
        file = inspect.getsourcefile(technique)
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None


@cache
def _library() -> str:
    """Versions of library and solvers, and a hash of every source that gives claims their meaning."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for part in MEANING:
        place = package / part
        if not place.exists():
            place = package.parent / part  # the encodings, in a checkout without symbolic links
        for file in sorted([place] if place.is_file() else place.rglob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return json.dumps([__version__, {name: _version(name) for name in ("z3-solver", "cvc5")}, digest.hexdigest()])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------------------- verdicts


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain data that :func:`verdict_from_json` reads back whole, SMT-LIB texts included."""
    data = verdict.to_json()
    data["queries"] = [{**q, "smtlib": full.smtlib} for q, full in zip(data["queries"], verdict.queries, strict=True)]
    return data


def verdict_from_json(data: Mapping[str, Any], claim: Claim | None = None) -> Verdict:
    """The verdict that ``Verdict.to_json`` wrote (SMT-LIB texts are empty where they were left out).

    ``claim``: what it must speak of, for techniques that no text names; read from the data when None.
    Raises InputError, KeyError, TypeError or ValueError on anything else.
    """
    loss = data["loss"]
    if claim is None:
        claim = parse_claim(data["claim"], **({} if loss is None else {"loss": loss}))
    if str(claim) != data["claim"] or (claim.loss.name if claim.loss else None) != loss:
        raise ValueError(f"the data speaks of another claim: {data['claim']}")
    return Verdict(
        claim=claim,
        scope=Scope.of(data["scope"]),
        status=Status(data["status"]),
        reach=data["reach"],
        assumptions=tuple(data["assumptions"]),
        grade=None if data["grade"] is None else Grade(data["grade"]),
        stage=data["stage"],
        cause=data["cause"],
        reason=data["reason"],
        witness=None if data["witness"] is None else _witness(data["witness"]),
        queries=tuple(Query(**{"smtlib": "", **query}) for query in data["queries"]),
        work=dict(data["work"]),
        versions=dict(data["versions"]),
        notes=tuple(data.get("notes", ())),
        needed=None if data.get("needed") is None else tuple(data["needed"]),
    )


def _witness(data: Mapping[str, Any]) -> Witness:
    return Witness(
        weight=_matrix(data["weight"]),
        inputs=None if data["inputs"] is None else _matrix(data["inputs"]),
        seed=data["seed"],
        traces=tuple(
            Trace(
                sequence=trace["sequence"],
                steps=tuple((step["after"], _matrix(step["weight"])) for step in trace["steps"]),
                loss=None if trace["loss"] is None else Fraction(trace["loss"]),
                torch_loss=trace["torch_loss"],
                inputs=_changed_inputs(trace["steps"]),
            )
            for trace in data["traces"]
        ),
        reason=data["reason"],
    )


def _changed_inputs(steps: list[Mapping[str, Any]]) -> tuple[Matrix | None, ...]:
    found = tuple(_matrix(step["inputs"]) if "inputs" in step else None for step in steps)
    return found if any(found) else ()


def _matrix(rows: list[list[str]]) -> Matrix:
    return tuple(tuple(Fraction(x) for x in row) for row in rows)

"""Keep verdicts and measurements from one run to the next, in SQLite."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from compcomp.errors import InputError
from compcomp.language.assumption import Assumption
from compcomp.language.claim import Claim, Scope
from compcomp.language.named import sources_of
from compcomp.language.refusal import Refusal
from compcomp.language.text import claim_from_json
from compcomp.language.verdict import Grade, Matrix, Query, Status, Trace, Verdict, Witness
from compcomp.ordering.reuse import canonical, family, narrowed, restated
from compcomp.version import __version__

PACKAGE = Path(__file__).resolve().parent.parent

DECIDED = (Status.PROVED, Status.REFUTED, Status.VACUOUS)
"""Statuses that are final. An unknown claim may be decided with more time, and is kept with the time it had."""

MEANING = (
    *("errors.py", "hooks.py", "record.py", "bench.py", "terms.py"),
    *("layers", "algebra", "language", "checking", "proving", "encodings"),
    *("ordering/reuse.py", "ordering/covers.py", "ordering/dag.py", "ordering/space.py"),
)
"""The sources a verdict depends on. After a change in one of them, no earlier verdict is found."""
MEASURING = (*MEANING, "kernels", "models")
"""The sources a measurement depends on."""

FORMAT = 3
"""Version of the file. In files of versions before 3, which lose their verdicts, "A equals B" compared every field."""
_FORMER = (
    ["key", "claim", "scope", "status", "verdict", "made"],
    ["key", "family", "claim", "scope", "status", "seconds", "verdict", "made"],
)
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, family TEXT, claim TEXT NOT NULL, scope TEXT NOT NULL, status TEXT NOT NULL,
    seconds REAL, verdict TEXT NOT NULL, made REAL NOT NULL);
CREATE INDEX IF NOT EXISTS families ON verdicts (family);
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, name TEXT NOT NULL, data TEXT NOT NULL, made REAL NOT NULL)"""
_ADD = "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
_PUT = """INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    family = excluded.family, claim = excluded.claim, scope = excluded.scope, status = excluded.status,
    seconds = excluded.seconds, verdict = excluded.verdict, made = excluded.made
    WHERE excluded.seconds IS NULL OR excluded.seconds >= verdicts.seconds"""

Options = Mapping[str, Any]
"""How hard a claim was tried: ``timeout`` (seconds) and ``stages`` of the prover, which has its defaults."""
SECONDS, STAGES = 60.0, ("search", "rule", "bounded")
"""The prover's defaults."""


class Store:
    """Keep verdicts and measurements in a file, for runs that go on where they were stopped.

    Each is written in a transaction of its own, so that a killed run loses none. Several processes may use one file at
    a time. A verdict is found again only with the same versions of the library and the solvers, and the same sources of
    encodings and kernels (:mod:`compcomp.language.named`).

    Raises:
        InputError: The file is no store, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._damaged(error) from None
        try:
            self._open()
        except InputError:
            self._connection.close()
            raise

    def _open(self) -> None:
        """Create the missing tables, one process at a time."""
        until = time.monotonic() + 30
        while True:  # the busy timeout does not cover this statement
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise self._damaged(error) from None
                time.sleep(0.05)
            except sqlite3.Error as error:
                raise self._damaged(error) from None
        self._run("PRAGMA synchronous=NORMAL")
        self._run("BEGIN IMMEDIATE")
        (found,) = self._run("PRAGMA user_version")[0]
        if found > FORMAT:
            raise InputError(f"{str(self.path)!r}, of a later version", f"a store up to format {FORMAT}", "store")
        there = [name for _, name, *_ in self._run("PRAGMA table_info(verdicts)")]
        if found < FORMAT and there in _FORMER:
            self._run("DROP TABLE verdicts")
        elif found < FORMAT and there:
            raise InputError(f"{str(self.path)!r}, a database of something else", "a file of verdicts", "store")
        for statement in _TABLES.split(";"):
            self._run(statement)
        self._run(f"PRAGMA user_version = {FORMAT}")
        self._run("COMMIT")

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{str(self.path)!r} ({error})", "a path for a file of verdicts (SQLite)", "store")

    # ------------------------------------------------------------------------------------ verdicts

    def get(self, claim: Claim, scope: Scope, options: Options | None = None) -> Verdict | None:
        """Return the verdict kept for this claim, or for one of the same canonical form. None if there is none.

        Args:
            claim: The claim.
            scope: The layers to cover.
            options: If given, an unknown counts too if it was asked with the same stages and no less time.
        """
        key = key_of(claim, scope)
        if key is None:
            return None
        rows = self._run("SELECT verdict FROM verdicts WHERE key = ?", (key,))
        if options is not None and not rows:
            tried = (_tried(key, options), _seconds(options))
            rows = self._run("SELECT verdict FROM verdicts WHERE key = ? AND seconds >= ?", tried)
        found = None if not rows else _read(rows[0][0], claim)
        if found is None or found.scope != narrowed(found.claim, scope):
            return None
        return restated(found, claim, scope)

    def related(self, claim: Claim) -> Iterator[Verdict]:
        """Yield the stored proofs and refutations of claims of the same family, from which this claim may follow."""
        group = _group(claim)
        if group is not None:
            for text, row in self._run("SELECT claim, verdict FROM verdicts WHERE family = ? ORDER BY made", (group,)):
                found = _read(row, claim if text == str(claim) else None)
                if found is not None:
                    yield found

    def put(self, verdict: Verdict, options: Options | None = None, *, derived: bool = False) -> None:
        """Keep a verdict, unless it is UNKNOWN without options, or DISAGREE.

        Args:
            verdict: The verdict.
            options: The options with which it was asked. An unknown is kept only with these.
            derived: True if it follows from another verdict. Then it replaces nothing, and is not searched for further
                consequences.
        """
        claim, unknown = verdict.claim, verdict.status is Status.UNKNOWN
        key = key_of(claim, verdict.scope)
        if key is None or not (verdict.status in DECIDED or (unknown and options is not None)):
            return
        seconds = None
        if unknown and options is not None:
            key, seconds = _tried(key, options), _seconds(options)
        group = None if unknown or derived else _group(claim)
        row = (key, group, str(claim), str(verdict.scope), str(verdict.status), seconds)
        self._run(_ADD if derived else _PUT, (*row, json.dumps(verdict_to_json(verdict)), time.time()))

    def __len__(self) -> int:
        """Return the number of verdicts, of all versions."""
        return int(self._run("SELECT count(*) FROM verdicts")[0][0])

    # ------------------------------------------------------------------------------------ measurements

    def get_result(self, key: str) -> dict[str, Any] | None:
        """Return the data put under this key by the same version of the library, its encodings, kernels and models.

        The key must name everything else that the data depends on: model, data, seed, and techniques or kernels of the
        user.
        """
        rows = self._run("SELECT data FROM results WHERE key = ?", (_result_key(key),))
        try:
            found = json.loads(rows[0][0]) if rows else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def put_result(self, key: str, data: Mapping[str, Any]) -> None:
        """Keep a measurement, replacing an earlier one under the same key.

        Args:
            key: Names everything that the data depends on, apart from the library.
            data: Plain data that JSON can hold, with texts as keys.
        """
        try:
            text = json.dumps(dict(data))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"data that JSON cannot hold ({error})", "plain data", "Store.put_result") from None
        self._run("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", (_result_key(key), key, text, time.time()))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


# ---------------------------------------------------------------------------------------------- keys


def key_of(claim: Claim, scope: Scope) -> str | None:
    """Return the key of a verdict, the same for all claims of one canonical form.

    None if the source of a technique cannot be read or has changed, or if claim and scope do not fit each other.
    """
    try:
        scope = narrowed(claim, scope)
    except InputError:
        return None
    claim = canonical(claim)
    return _digest(claim, [str(claim), claim.loss.name if claim.loss else None, str(scope)])


def _group(claim: Claim) -> str | None:
    """Return the key of the claims that this one may follow from."""
    return _digest(claim, [family(claim)])


def _digest(claim: Claim, parts: list[str | None]) -> str | None:
    sources = sources_of(t for sequence in claim.sequences for t in sequence)
    return None if sources is None else hashlib.sha256(json.dumps([*parts, _library(), sources]).encode()).hexdigest()


def _tried(key: str, options: Options) -> str:
    """Return the key of an unknown verdict. It includes all options of the prover but the time."""
    stages = sorted(set(options.get("stages", STAGES)))
    others = sorted(f"{name}={value!r}" for name, value in options.items() if name not in ("timeout", "stages"))
    return hashlib.sha256(json.dumps([key, stages, others]).encode()).hexdigest()


def _seconds(options: Options) -> float:
    return float(options.get("timeout", SECONDS))


def _result_key(key: str) -> str:
    return hashlib.sha256(json.dumps([key, _measuring()]).encode()).hexdigest()


@cache
def _library() -> str:
    """Return the versions of library and solvers, and a hash of every source that gives claims their meaning."""
    return _version_of(MEANING, ("z3-solver", "cvc5"))


@cache
def _measuring() -> str:
    """Return the versions of the packages that compute, and a hash of every source that a measurement depends on."""
    return _version_of(MEASURING, ("torch", "transformers", "numpy"))


def _version_of(parts: Iterable[str], packages: Iterable[str], package: Path = PACKAGE) -> str:
    digest = hashlib.sha256()
    for part in parts:
        place = package / part
        if not place.exists():
            place = package.parent / part  # the encodings, in a checkout without symbolic links
        for file in sorted([place] if place.is_file() else place.rglob("*.py")):
            digest.update(str(file.relative_to(place.parent)).encode() + b"\0" + file.read_bytes() + b"\0")
    return json.dumps([__version__, {name: _version(name) for name in packages}, digest.hexdigest()])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------------------- verdicts


def _read(text: str, claim: Claim | None) -> Verdict | None:
    """Read a verdict, None if it cannot be read. ``claim`` is used as its claim if the texts agree."""
    try:
        data = json.loads(text)
        return verdict_from_json(data, claim if claim is not None and str(claim) == data["claim"] else None)
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return None


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain data that :func:`verdict_from_json` reads back whole, SMT-LIB texts included."""
    data = verdict.to_json()
    data["queries"] = [{**q, "smtlib": full.smtlib} for q, full in zip(data["queries"], verdict.queries, strict=True)]
    return data


def verdict_from_json(data: Mapping[str, Any], claim: Claim | None = None) -> Verdict:
    """Read the verdict that ``Verdict.to_json`` wrote. SMT-LIB texts are empty if they were left out.

    Args:
        data: The plain data.
        claim: The claim it must be about, for techniques that no text names. None reads it from the data.

    Raises:
        InputError, KeyError, TypeError, ValueError: The data is no verdict, or one on another claim.
    """
    return Verdict(
        claim=claim_from_json(data, claim),
        scope=Scope.of(data["scope"]),
        status=Status(data["status"]),
        reach=data["reach"],
        assumptions=tuple(
            Assumption.from_json(one, text) for one, text in zip(data["assumed"], data["assumptions"], strict=True)
        ),
        grade=None if data["grade"] is None else Grade(data["grade"]),
        stage=data["stage"],
        cause=data["cause"],
        reason=data["reason"],
        witness=None if data["witness"] is None else _witness(data["witness"]),
        queries=tuple(Query(**{"smtlib": "", **query}) for query in data["queries"]),
        work=dict(data["work"]),
        versions=dict(data["versions"]),
        notes=tuple(data.get("notes", ())),
        local_rewrite=bool(data.get("congruent", False)),
        needed=None if data.get("needed") is None else tuple(data["needed"]),
        tried=tuple(map(Refusal.from_json, data["tried"])),
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

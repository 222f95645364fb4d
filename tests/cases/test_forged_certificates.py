"""Saved verdicts that a forger has changed and hashed anew: what changes their meaning is invalid, or a hole."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import compcomp.techniques  # noqa: F401
from compcomp.checking.directory import check_directory
from compcomp.language.assumption import Assumption, Kind, assumption, contract
from compcomp.language.saved import FORMAT, binding
from compcomp.language.text import parse_claim
from compcomp.proving.certificate.regenerate import regenerated
from compcomp.proving.prove import prove
from tests.amount import spread

P, Q, D = "Magnitude(sparsity=1/2)", "AbsMax(bits=3)", "LeastSquaresDistill()"
ROW, WANDA = "Magnitude(sparsity=1/2, per='row')", "Wanda(sparsity=1/2)"

PROVED = {
    "certified": (f"{ROW} dominates {WANDA}", "weight_l1", "any"),
    "conditions": (f"{Q} >> {P} dominates {P} >> {Q} given largest_kept, no_ties", "weight_l2", "any"),
    "rest": (f"{D} >> {P} equals {P}", "weight_l2", "any"),
    "last step": (f"{P} >> {D} dominates {P}", "output_l2", "any"),
    "kept": (f"{P} >> {D} keeps mask", "weight_l2", "any"),
}
REFUTED = {
    "dominates": (f"{Q} >> {P} dominates {P} >> {Q}", "weight_l2", "1x4"),
    "equals": (f"{P} >> {Q} equals {Q} >> {P}", "weight_l2", "1x4"),
    "nothing": ("FP8Inputs() equals identity", "weight_l2", "any"),
    "keeps": (f"{P} >> TruncatedSVD(rank=1) keeps mask", "weight_l2", "any"),
    "fits": (f"{P} >> {Q} fits W2 2:4", "weight_l2", "any"),
    "orthogonal": (f"{P} is orthogonal to {Q}", "output_l2", "any"),
}

UNBOUND = {
    ("claim.json", "assumptions"): "what techniques promise, left out or added whole",
    ("claim.json", "congruent"): "whether the proof holds from every state",
    ("claim.json", "needed"): "which conditions are needed",
    ("claim.json", "reason"): "which rule proves it",
    ("claim.json", "work"): "information",
    ("claim.json", "versions"): "information",
    ("answers.json", "rlimit"): "information",
    ("answers.json", "solver"): "information",
    ("answers.json", "second_answer"): "information, where there is a certificate",
    ("answers.json", "second_solver"): "information",
}
"""What a proof's files alone do not bind, as docs/certificates.md says. The first four the prover finds again."""
QUICK = ("certified", "rest", "equals")
FOUND_AGAIN = ("assumptions", "congruent", "needed", "reason")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (claim, loss, scope) in {**PROVED, **REFUTED}.items():
        verdict = prove(parse_claim(claim, loss), scope, timeout=300, certify=name in PROVED, second=None)
        assert verdict.proved == (name in PROVED) and verdict.refuted == (name in REFUTED), verdict
        made[name] = verdict.save(tmp_path_factory.mktemp("saved") / "verdict")
    return made


@pytest.mark.parametrize("name", [*PROVED, *REFUTED])
def test_what_the_prover_saves_is_valid(name: str, folders: dict[str, Path]) -> None:
    report = check_directory(folders[name], solvers=False)
    assert report.outcome == "valid", report.describe()
    assert regenerated(folders[name]) == ""


def write(folder: Path, files: dict[str, Any]) -> None:
    """These files, with every hash made anew by the library's own functions."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    try:
        scripts = [files[answer["script"]] for answer in files["answers.json"]]
        bound = binding(files["claim.json"], files["answers.json"], scripts)
    except (KeyError, TypeError, AttributeError):  # nothing that could be bound
        bound = "0" * 64
    hashes = {name: sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "binding": bound, "files": hashes}))


def read(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json":
            text = path.read_text()
            files[name] = json.loads(text) if name.endswith(".json") and "/" not in name else text
    return files


def other(value: Any) -> Iterator[Any]:
    """Other values in the place of one."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
        yield -value - 1
    elif isinstance(value, str):
        yield value + "1"
        yield ""
    elif value is None:
        yield "moon"
    elif isinstance(value, list):
        yield [*value, value[0] if value else "moon"]
        if value:
            yield value[:-1]
    yield {"moon": value}


def mutations(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Callable[[Any], Any]]]:
    """Every place in plain data, with functions of the whole that change it there, drop it or add to it."""

    def put(value: Any) -> Callable[[Any], Any]:
        def changed(whole: Any) -> Any:
            inner = whole = copy.deepcopy(whole)
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            return whole

        return changed if path else lambda whole: value

    for value in other(data):
        if value != data:
            yield path, put(value)
    if isinstance(data, dict):
        yield path, put({**data, "moon": 1})
        for key in data:
            yield (*path, key), put({name: value for name, value in data.items() if name != key})
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from mutations(data[key], (*path, key))


@pytest.mark.parametrize("part", spread(range(3), 1))
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in (*PROVED, *REFUTED)],
)
def test_every_field_of_every_file_is_bound(name: str, part: int, folders: dict[str, Path], tmp_path: Path) -> None:
    """A part makes every third change."""
    files = read(folders[name])
    for file in [name for name in files if isinstance(files[name], dict | list)]:
        for number, (path, how) in enumerate(mutations(files[file])):
            if number % 3 != part:
                continue
            if file == "witness.json" and number % 7 and isinstance(path[-1] if path else "", int):
                continue  # of numbers and rows one of seven
            write(tmp_path, {**files, file: how(files[file])})
            report = check_directory(tmp_path, solvers=False)
            field = next((str(key) for key in path if isinstance(key, str)), "")
            free = name in PROVED and (file, field) in UNBOUND
            if field == "work" or (file, path) == ("claim.json", ("versions", "compcomp")):
                free = True
            if (file, field) == ("witness.json", "inputs"):
                free = True  # a layer with other inputs is replayed too, and may refute the claim as well
            assert free or report.outcome != "valid", (name, file, path, report.describe())
            if free and report.outcome == "valid" and field in FOUND_AGAIN:
                assert regenerated(tmp_path) != "", (name, path)


def _of(files: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    stated = files["claim.json"]
    return list(zip(stated["assumptions"], stated["assumed"], strict=True))


def _with(files: dict[str, Any], pairs: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    lists = {"assumptions": [text for text, _ in pairs], "assumed": [data for _, data in pairs]}
    return {**files, "claim.json": {**files["claim.json"], **lists}}


@pytest.mark.parametrize("name", PROVED)
def test_an_assumption_is_what_its_text_says(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Its kind, whether it restricts layers, its technique and its sentence cannot be forged apart from each other."""
    files = read(folders[name])
    pairs, kinds = _of(files), [str(kind) for kind in Kind]
    for k, (text, data) in enumerate(pairs):
        lies = [{**data, "kind": kind} for kind in kinds if kind != data["kind"]]
        lies += [{**data, "restricts": not data["restricts"]}, {**data, "about": "moon"}, {**data, "technique": "T()"}]
        for lie in lies[::4] if name == "conditions" else lies:  # of many certificates, each of which is checked
            write(tmp_path, _with(files, [*pairs[:k], (text, lie), *pairs[k + 1 :]]))
            report = check_directory(tmp_path, solvers=False)
            assert report.outcome == "invalid" and report.problems, (name, lie, report.describe())
        write(tmp_path, _with(files, [*pairs[:k], (f"{text}.", data), *pairs[k + 1 :]]))
        assert check_directory(tmp_path, solvers=False).outcome == "invalid", (name, text)


@pytest.mark.parametrize("name", PROVED)
def test_assumptions_added_or_left_out(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a promise of a technique of the claim only the prover can tell whether the proof takes it."""
    files = read(folders[name])
    pairs = _of(files)
    for k, (_, data) in enumerate(pairs):
        write(tmp_path, _with(files, [*pairs[:k], *pairs[k + 1 :]]))
        free = data["kind"] == Kind.CONTRACT and check_directory(tmp_path, solvers=False).outcome == "valid"
        assert free == (data["kind"] == Kind.CONTRACT)
        assert not free or regenerated(tmp_path) != ""
    claim = parse_claim(files["claim.json"]["claim"], files["claim.json"]["loss"] or "weight_l2")
    own = next(t for sequence in claim.sequences for t in sequence)
    strange = [
        contract("Hadamard()", "keeps the mask"),
        assumption(Kind.BLOCKS, about="4"),
        assumption(Kind.WITHOUT_LOSS, about="W = 0"),
        assumption(Kind.INSIDE_BLOCK),
        assumption(Kind.WHOLE_MODEL, own, "nothing is left"),
        Assumption(Kind.OTHER, "the earth is flat"),
        Assumption(Kind.CONDITION, "given moon: the moon is full", about="moon"),
    ]
    for one in strange:
        write(tmp_path, _with(files, [*pairs, (one.text, one.to_json())]))
        report = check_directory(tmp_path, solvers=False)
        assert report.outcome == "invalid" and "assumption" in report.describe(), (name, one, report.describe())
    more = contract(own, "is the best there is")
    write(tmp_path, _with(files, [*pairs, (more.text, more.to_json())]))
    assert regenerated(tmp_path) != ""


def test_files_left_out_added_or_taken_from_another(folders: dict[str, Path], tmp_path: Path) -> None:
    everything = {name: read(folder) for name, folder in folders.items()}
    for name, files in everything.items():
        for file in files:
            fewer = {other: content for other, content in files.items() if other != file}
            write(tmp_path, fewer)
            assert check_directory(tmp_path, solvers=False).outcome == "invalid", (name, file)
            for stranger, theirs in everything.items():
                changed = {**files, file: theirs.get(file)}
                if file in theirs and changed not in (files, theirs):
                    write(tmp_path, changed)
                    assert check_directory(tmp_path, solvers=False).outcome != "valid", (name, file, stranger)
        write(tmp_path, {**files, "more.json": "{}"})
        assert check_directory(tmp_path, solvers=False).outcome == "invalid"


def test_a_proof_with_a_witness(folders: dict[str, Path], tmp_path: Path) -> None:
    witness = read(folders["dominates"])["witness.json"]
    for name in PROVED:
        write(tmp_path, {**read(folders[name]), "witness.json": witness})
        assert "with a witness that refutes it" in check_directory(tmp_path, solvers=False).describe()


@pytest.mark.parametrize("grade", ["certified", "no solver needed", "two solvers", "one solver", None, "moon"])
@pytest.mark.parametrize("rule", [None, "rule kept", "rule rest", "rule exchange", "reduced and solved", ""])
def test_a_false_claim_without_queries(grade: str, rule: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Whatever is said of how it was proved."""
    files = read(folders["certified"])
    stated = {**files["claim.json"], "grade": grade, "notes": [], "loss": "weight_l2"}
    stated |= {"claim": f"{Q} >> {P} dominates {P} >> {Q}", "reason": rule or stated["reason"]}
    stated |= {"work": {"rlimit": 0, "seconds": 0}, "versions": {**stated["versions"], "solver": ""}}
    for stage in ("rule", "bounded", "search"):
        write(tmp_path, {"claim.json": {**stated, "stage": stage}, "answers.json": []})
        report = check_directory(tmp_path, solvers=False)
        assert report.outcome == ("holey" if _only_unasked(grade, rule, stage) else "invalid"), report.describe()
        if report.outcome == "holey":
            assert regenerated(tmp_path) != ""


def _only_unasked(grade: str | None, rule: str | None, stage: str) -> bool:
    known = grade in ("no solver needed", "one solver", "two solvers")
    return known and rule in ("rule kept", "rule rest") and stage == "rule"


def test_losses_in_torch_are_computed_again(folders: dict[str, Path], tmp_path: Path) -> None:
    files = read(folders["orthogonal"])
    for value in (0.0, 1e9, float(files["witness.json"]["traces"][0]["torch_loss"]) * 1.001 + 0.001):
        changed = copy.deepcopy(files)
        changed["witness.json"]["traces"][0]["torch_loss"] = value
        write(tmp_path, changed)
        assert "in torch" in check_directory(tmp_path, solvers=False).describe()
    shutil.rmtree(tmp_path)

"""Saved verdicts: what is accepted, and that whatever is changed in them is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compcomp.techniques  # noqa: F401
from compcomp.checking.directory import check_directory
from compcomp.errors import InputError
from compcomp.language.saved import binding
from compcomp.language.text import parse_claim
from compcomp.language.verdict import Grade
from compcomp.proving.certificate.regenerate import regenerated
from compcomp.proving.prove import Prover, prove
from tests.amount import spread
from tests.claims import CLAIMS, PQ, N, P, Q, W, X


def saved(folder: Path, claim: str, loss: str, scope: str = "any", bare: bool = False, **options: Any) -> Path:
    """``bare``: without certificates, as a prover gives it that has no time for them and knows none."""
    verdict = prove(parse_claim(claim, loss), scope, timeout=40, **options)
    return (Prover().certify(verdict, timeout=0) if bare else verdict).save(folder / "verdict")


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    claim = f"Magnitude(sparsity=1/2, per='row') dominates {W}"
    return saved(tmp_path_factory.mktemp("proved"), claim, "weight_l1", certify=True)


@pytest.fixture(scope="module")
def refuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("refuted"), f"{Q} >> {P} dominates {P} >> {Q}", "weight_l2", "1x4")


@pytest.mark.parametrize("loss", ["weight_l1", "weight_l2", "weight_l3", "weight_l4"])
def test_prune_then_quantize_is_certified_for_any_shape(loss: str, tmp_path: Path) -> None:
    verdict = prove(parse_claim(PQ, loss), "any", timeout=60, certify=True)
    assert verdict.grade is Grade.CERTIFIED, verdict.notes
    report = check_directory(verdict.save(tmp_path / "verdict"), solvers=False)
    assert report.outcome == "valid", report.describe()
    assert {row["checked"] for row in report.queries} <= {"certificate", "not relied on"}


@pytest.mark.slow
def test_a_table_of_many_codes_is_certified(tmp_path: Path) -> None:
    claim = "Magnitude(sparsity=Any) >> FP8() dominates FP8() >> Magnitude(sparsity=Any)"
    folder = saved(tmp_path, claim, "weight_l2", certify=True)
    report = check_directory(folder, solvers=False)
    assert (report.outcome, json.loads((folder / "claim.json").read_text())["grade"]) == ("valid", "certified")


def test_saving_looks_for_certificates(tmp_path: Path) -> None:
    """Without ``certify``, and with the same files as with it."""
    claim = f"{P} >> {P} equals {P}"
    verdict = prove(parse_claim(claim, "weight_l1"), timeout=40)
    assert verdict.grade is Grade.TWO_SOLVERS and not any(query.certificate for query in verdict.queries)
    plain = verdict.save(tmp_path / "plain")
    early = prove(parse_claim(claim, "weight_l1"), timeout=40, certify=True).save(tmp_path / "early")
    for folder in (plain, early):
        report = check_directory(folder, solvers=False)
        assert report.outcome == "valid", report.describe()
    for name in ("answers.json", "claim.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (plain, early))
        if name == "claim.json":
            assert (one.pop("work")["rlimit"], one["grade"]) == (other.pop("work")["rlimit"], "certified")
        assert one == other


TIED = "Magnitude(sparsity=1/3, ties='all') >> AbsMax(bits=4, rounding='half_away')"
BACK = "AbsMax(bits=4, rounding='half_away') >> Magnitude(sparsity=1/3, ties='all')"
UNCERTIFIED = {
    (f"{TIED} dominates {BACK}", "1x3"): {"signs", "claim"},
    ("AbsMax(bits=2) dominates QuantizationAwareTraining(bits=2)", "1x3"): {"claim"},
    ("AbsMax(bits=2) dominates QuantizationAwareTraining(bits=2, group=2)", "1x2"): {"claim"},
}
"""The proved rows of the table with queries that take more work than is allowed, and the names of these queries."""


@pytest.mark.parametrize(
    ("text", "loss", "scope"), spread([row[:3] for row in CLAIMS if row[3] == "PROVED" and "FP8()" not in row[0]], 14)
)
def test_a_saved_proof_of_the_table_is_valid(text: str, loss: str, scope: str, tmp_path: Path) -> None:
    """By a plain ``prove`` and ``save``; the longer timeout is for a busy machine."""
    verdict = prove(parse_claim(text, loss), scope, timeout=60)
    assert verdict.proved, verdict
    report = check_directory(verdict.save(tmp_path / "proof", timeout=900), solvers=False)
    missing = UNCERTIFIED.get((text, scope), set())
    assert report.outcome == "valid" or (missing and report.outcome == "holey"), report.describe()
    assert {row["name"] for row in report.queries if row["checked"] == "solvers"} <= missing


def test_certificates_that_were_not_found_are_not_looked_for_twice(tmp_path: Path) -> None:
    """A verdict that says that none was found is saved as it is; asking the prover for them tries again."""
    prover = Prover()
    verdict = prover.certify(prover.prove(parse_claim(f"{P} >> {P} equals {P}")), timeout=0)
    assert verdict.grade is Grade.TWO_SOLVERS and any("no certificate was found" in note for note in verdict.notes)
    assert check_directory(verdict.save(tmp_path / "one"), solvers=False).outcome == "holey"
    found = prover.certify(verdict)
    assert found.grade is Grade.CERTIFIED and not found.notes
    assert check_directory(found.save(tmp_path / "two"), solvers=False).outcome == "valid"


def test_both_solvers_are_asked_again(proved: Path) -> None:
    report = check_directory(proved)
    assert report.outcome == "valid", report.describe()
    assert all(set(row["again"].values()) == {row["answer"]} for row in report.queries)


def test_without_certificates_it_is_holey(tmp_path: Path) -> None:
    folder = saved(tmp_path, f"{P} >> {P} equals {P}", "weight_l1", bare=True)
    report = check_directory(folder)
    assert report.outcome == "holey"
    assert all("depends on" in hole for hole in report.holes)


def test_a_refutation_is_replayed(refuted: Path) -> None:
    assert check_directory(refuted).outcome == "valid"


@pytest.mark.parametrize(
    ("claim", "loss", "scope"),
    [
        (f"{P} >> {Q} equals {Q} >> {P}", "weight_l2", "1x4"),
        (f"{P} >> TruncatedSVD(rank=1) keeps mask", "weight_l2", "any"),
        (f"{Q} >> TruncatedSVD(rank=1) keeps grid", "weight_l2", "any"),
        (f"TruncatedSVD(rank=1) >> {Q} keeps rank", "weight_l2", "any"),
        (f"{N} >> {Q} fits W3", "weight_l2", "any"),
        (f"{P} >> {Q} fits W4 2:4", "weight_l2", "any"),
        (f"{P} fits 50%/row", "weight_l2", "any"),
        (f"{P} >> {Q} fits W4 r1", "weight_l2", "any"),
        (f"{Q} >> TruncatedSVD(rank=2, residual=True) fits W4 +r1", "weight_l2", "any"),
        (f"{Q} >> AbsMaxInputs(bits=9) fits W4A8", "weight_l2", "any"),
        (PQ, "output_l2", "2x2"),
        (f"AbsMax(bits=2) is orthogonal to {P} within 2/5", "weight_l1", "any"),
        (f"{P} is orthogonal to {Q}", "output_l2", "any"),
    ],
)
def test_every_kind_of_refutation(claim: str, loss: str, scope: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, claim, loss, scope)
    assert check_directory(folder).outcome == "valid"
    change(folder, "witness.json", lambda w: [row.__setitem__(0, "17") for row in w["weight"]])
    assert check_directory(folder).outcome == "invalid"


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (lambda step: {**step, "inputs": [["0"], ["1"], ["1"], ["2"]]}, "the inputs after AbsMaxInputs"),
        (lambda step: {key: step[key] for key in ("after", "weight")}, "the inputs after AbsMaxInputs"),
        (lambda step: {**step, "weight": [["0", "0", "0", "1"]]}, "the weights after AbsMaxInputs"),
    ],
)
def test_inputs_that_a_step_changes_are_replayed(how: Callable[[Any], Any], problem: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, f"{N} is orthogonal to {X}", "output_l2", "1x4")
    assert check_directory(folder).outcome == "valid"

    def altered(witness: Any) -> Any:
        steps = witness["traces"][0]["steps"]
        assert "inputs" in steps[2] and "inputs" not in steps[1]
        steps[2] = how(steps[2])
        return witness

    change(folder, "witness.json", altered)
    assert problem in check_directory(folder).describe()


def test_wrong_use(tmp_path: Path, proved: Path) -> None:
    with pytest.raises(InputError):
        check_directory(tmp_path / "nowhere")
    assert check_directory(tmp_path).outcome == "invalid"
    verdict = prove(parse_claim(f"{P} equals {P}"), "1x2", timeout=5)
    with pytest.raises(InputError):
        verdict.save(proved)


# ------------------------------------------------------------------------- files that were changed


def copied(source: Path, to: Path) -> Path:
    return Path(shutil.copytree(source, to / "copy"))


def test_every_changed_removed_or_added_file_is_found(proved: Path, tmp_path: Path) -> None:
    for name in sorted(p.relative_to(proved).as_posix() for p in proved.rglob("*") if p.is_file()):
        folder = copied(proved, tmp_path)
        content = (folder / name).read_text()
        digit = next(c for c in content if c.isdigit())
        (folder / name).write_text(content.replace(digit, str((int(digit) + 1) % 10), 1))
        assert check_directory(folder, solvers=False).outcome == "invalid", name
        (folder / name).unlink()
        assert check_directory(folder, solvers=False).outcome == "invalid", name
        shutil.rmtree(folder)
    folder = copied(proved, tmp_path)
    (folder / "more.json").write_text("{}")
    assert check_directory(folder, solvers=False).outcome == "invalid"


def change(folder: Path, name: str, how: Callable[[Any], Any], *, bind: bool = False) -> None:
    """Change one file and recompute its hash, and the binding too if asked: a careful forger."""
    data = json.loads((folder / name).read_text())
    how(data)
    (folder / name).write_text(json.dumps(data))
    rehash(folder, name, bind=bind)


def rehash(folder: Path, name: str, *, bind: bool = False) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = sha256((folder / name).read_bytes()).hexdigest()
    if bind:
        answers = json.loads((folder / "answers.json").read_text())
        stated = json.loads((folder / "claim.json").read_text())
        manifest["binding"] = binding(stated, answers, [(folder / a["script"]).read_text() for a in answers])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _swap(stated: dict[str, Any]) -> None:
    left, right = stated["claim"].split(" dominates ")
    stated["claim"] = f"{right} dominates {left}"


@pytest.mark.parametrize(
    "how",
    [
        _swap,
        lambda c: c["assumptions"].clear(),
        lambda c: c["assumptions"].append("the earth is flat"),
        lambda c: c.__setitem__("scope", "2x2"),
        lambda c: c.__setitem__("loss", "weight_l2"),
        lambda c: c.__setitem__("status", "REFUTED"),
        lambda c: c.__setitem__("grade", "two solvers"),
        lambda c: c.__setitem__("claim", c["claim"].replace("1/2", "1/3")),
    ],
)
def test_an_altered_statement_breaks_the_binding(how: Callable[[Any], Any], proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    change(folder, "claim.json", how)
    assert check_directory(folder, solvers=False).outcome == "invalid"


def test_queries_in_another_order_break_the_binding(proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    change(folder, "answers.json", lambda answers: answers.reverse())
    assert check_directory(folder, solvers=False).outcome == "invalid"


def test_another_query_breaks_its_certificate(proved: Path, tmp_path: Path) -> None:
    """Even when every hash is made anew."""
    folder = copied(proved, tmp_path)
    for script in sorted(p.relative_to(folder).as_posix() for p in (folder / "queries").iterdir()):
        (folder / script).write_text((folder / script).read_text().replace("(check-sat)", "(assert true)(check-sat)"))
        rehash(folder, script, bind=True)
        assert "for this script" in " ".join(check_directory(folder, solvers=False).problems)


def test_an_answer_that_is_not_so_is_found(proved: Path, tmp_path: Path) -> None:
    """A certificate left out and an answer turned round: the solvers that are asked again say otherwise."""

    def turn(answers: list[Any]) -> None:
        answers[-1].update(answer="sat", expected="sat", certificate=None)

    folder = copied(proved, tmp_path)
    certificate = json.loads((folder / "answers.json").read_text())[-1]["certificate"]
    (folder / certificate).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][certificate]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    change(folder, "claim.json", lambda c: c.__setitem__("grade", "two solvers"))
    change(folder, "answers.json", turn, bind=True)
    assert any("now answers unsat" in problem for problem in check_directory(folder).problems)


@pytest.mark.parametrize(
    "text", ["P dominates Q", "Magnitude(sparsity=0.5) dominates Magnitude(sparsity=1/2)", "", "__import__('os')"]
)
def test_a_claim_that_does_not_read_as_itself(text: str, proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    change(folder, "claim.json", lambda c: c.__setitem__("claim", text), bind=True)
    assert check_directory(folder, solvers=False).outcome == "invalid"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_changes_are_found(data: st.DataObject, proved: Path, refuted: Path, tmp_path: Path) -> None:
    """One byte anywhere, hashes left alone."""
    source = data.draw(st.sampled_from([proved, refuted]))
    name = data.draw(
        st.sampled_from(sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()))
    )
    content = bytearray((source / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    if name == "manifest.json" and _same_json(bytes(content), (source / name).read_bytes()):
        return
    folder = copied(source, tmp_path)
    (folder / name).write_bytes(bytes(content))
    outcome = check_directory(folder, solvers=False).outcome
    shutil.rmtree(folder)
    assert outcome == "invalid"


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_changes_of_numbers_in_a_witness_are_found(data: st.DataObject, refuted: Path, tmp_path: Path) -> None:
    """One exact number, hashes made anew: the replay finds it."""
    folder = copied(refuted, tmp_path)
    amount = data.draw(st.sampled_from(["-7", "13/2", "1001"]))

    def alter(witness: dict[str, Any]) -> None:
        trace = data.draw(st.sampled_from(witness["traces"]))
        rows = data.draw(st.sampled_from([witness["weight"], *(s["weight"] for s in trace["steps"])]))
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = amount

    change(folder, "witness.json", alter)
    outcome = check_directory(folder).outcome
    shutil.rmtree(folder)
    assert outcome == "invalid"


# ------------------------------------------------------------------------- from a shell


def shell(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "compcomp", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_the_shell(proved: Path, tmp_path: Path) -> None:
    claim = f"Magnitude(sparsity=1/2, per='row') dominates {W}"
    folder = str(tmp_path / "saved")
    assert shell("prove", claim, "--loss", "weight_l1", "--save", folder)[0] == 0
    status, printed = shell("check", folder, "--json", "--regenerate", "--no-solvers")
    assert (status, json.loads(printed)["outcome"]) == (0, "valid")
    (tmp_path / "saved" / "claim.json").unlink()
    assert shell("check", folder)[0] == 1
    assert shell("check", str(tmp_path / "nowhere"))[0] == 2


def test_a_careful_forger_is_found_by_regenerating(proved: Path, tmp_path: Path) -> None:
    """The proof of one claim under the text of another, all hashes made anew: only the prover can tell."""
    assert regenerated(proved) == ""
    folder = copied(proved, tmp_path)
    change(folder, "claim.json", _swap, bind=True)
    assert check_directory(folder, solvers=False).outcome == "valid"  # docs/certificates.md says so
    assert regenerated(folder) != ""
    shutil.rmtree(folder)
    folder = copied(proved, tmp_path)
    change(folder, "claim.json", lambda c: c["assumptions"].append("the earth is flat"), bind=True)
    assert regenerated(folder) != ""


def invalid(folder: Path, *parts: str) -> None:
    report = check_directory(folder, solvers=False)
    assert report.outcome == "invalid", report.describe()
    assert all(part in report.describe() for part in parts), report.describe()


def test_a_witness_refutes_in_its_own_scope_alone(tmp_path: Path) -> None:
    """Quantizing and pruning is no worse of one weight, and worse of four."""
    folder = saved(tmp_path, f"{Q} >> {P} dominates {P} >> {Q}", "weight_l2", "1x4")
    assert check_directory(folder).outcome == "valid"
    change(folder, "claim.json", lambda c: c.update(scope="1x1", reach="shape 1 x 1"), bind=True)
    invalid(folder, "not in the scope 1x1")


def test_inputs_have_to_fit_the_weight(tmp_path: Path) -> None:
    """A feature that no weight sees would set the scale of a token."""
    folder = saved(tmp_path, "FP8Inputs() equals identity", "weight_l2", "any")
    assert check_directory(folder).outcome == "valid"

    def one_weight(witness: dict[str, Any]) -> None:
        witness.update(weight=[["1"]], inputs=[["1"], ["1000"]])
        for trace in witness["traces"]:
            for step in trace["steps"]:
                step.update(weight=[["1"]])
                step.pop("inputs", None)

    change(folder, "witness.json", one_weight)
    invalid(folder, "inputs do not fit")


def test_what_a_forger_says_of_conditions_and_rules_is_asked_again(tmp_path: Path) -> None:
    claim = f"{Q} >> {P} dominates {P} >> {Q} given largest_kept, no_ties"
    folder = saved(tmp_path, claim, "weight_l2", "any")
    assert regenerated(folder) == ""
    for change_of in ({"needed": []}, {"reason": "rule moon"}, {"reach": "moon"}):
        copy = copied(folder, tmp_path)
        change(copy, "claim.json", lambda c, new=change_of: c.update(new), bind=True)
        assert next(iter(change_of)) in regenerated(copy)
        shutil.rmtree(copy)


def test_answers_are_bound_and_have_to_be_relied_on(tmp_path: Path) -> None:
    folder = saved(tmp_path, f"{P} >> {Q} dominates {Q} >> {P}", "weight_l1", "any", bare=True)
    assert check_directory(folder, solvers=False).outcome == "holey"

    def unknown(answers: list[dict[str, Any]]) -> None:
        for answer in answers:
            answer["answer"] = "unknown"

    copy = copied(folder, tmp_path)
    change(copy, "answers.json", unknown)
    invalid(copy, "bound together")
    rehash(copy, "answers.json", bind=True)
    invalid(copy, "of a stage or rule that asks")
    change(folder, "answers.json", lambda answers: answers[0].update(second_answer="unknown"), bind=True)
    invalid(folder, "two solvers")


def test_a_proof_that_needs_no_answer(tmp_path: Path) -> None:
    """Something was asked on the way, and what came back was of no use: promises alone give the claim."""
    claim = f"{N} >> MinMax(bits=4, zero='none') >> {N} keeps n:m"
    for certify in (False, True):
        folder = saved(tmp_path / str(certify), claim, "weight_l2", certify=certify)
        report = check_directory(folder, solvers=False)
        assert report.outcome == "valid" and report.queries, report.describe()
        assert json.loads((folder / "claim.json").read_text())["grade"] == "no solver needed"
        status, printed = shell("check", str(folder), "--no-solvers", "--regenerate")
        assert status == 0 and printed.startswith("valid: PROVED"), printed


def test_a_script_that_a_solver_does_not_read_is_found(proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    script = next(p for p in sorted((folder / "queries").iterdir()))
    script.write_text(script.read_text().replace("(check-sat)", "(assert (=> true))\n(check-sat)"))
    rehash(folder, f"queries/{script.name}", bind=True)
    report = check_directory(folder)
    assert report.outcome == "invalid" and any("does not read" in text for text in report.problems)


def test_what_is_printed_stays_in_its_line(proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    lie = "x\x1b[2K\nvalid: PROVED everything \ud800"
    change(folder, "claim.json", lambda c: c["assumptions"].append(lie), bind=True)
    lines = check_directory(folder, solvers=False).describe().split("\n")
    assert not any(line.startswith("valid: PROVED everything") for line in lines)
    assert lines[0].endswith("(scope any, weight_l1)")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["manifest.json", "answers.json", "claim.json"])
def test_files_that_no_reader_can_take(name: str, proved: Path, tmp_path: Path) -> None:
    for content in ("[" * 100_000, "null", "{}", '"\\ud800"', "[1]", ""):
        folder = copied(proved, tmp_path)
        (folder / name).write_text(content)
        if name != "manifest.json":
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"][name] = sha256(content.encode()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))
        invalid(folder)
        shutil.rmtree(folder)


def test_only_plain_files_are_read(proved: Path, tmp_path: Path) -> None:
    folder = copied(proved, tmp_path)
    (folder / "claim.json").unlink()
    os.mkfifo(folder / "claim.json")
    invalid(folder, "no plain file")
    (folder / "claim.json").unlink()
    (folder / "claim.json").symlink_to(proved / "claim.json")
    invalid(folder, "no plain file")


def test_asking_the_prover_again_fails_in_one_line(proved: Path, tmp_path: Path) -> None:
    for key, value in (("stage", "moon"), ("scope", "1x9999999"), ("claim", "P" + " " * 200_000)):
        folder = copied(proved, tmp_path)
        change(folder, "claim.json", lambda c, key=key, value=value: c.update({key: value}), bind=True)
        status, printed = shell("check", str(folder), "--regenerate", "--no-solvers")
        assert status == 1 and "Traceback" not in printed
        shutil.rmtree(folder)

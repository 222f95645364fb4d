"""A plan can apply, save and report itself. Its models are in tests/test_optimize.py."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from compcomp.errors import InputError
from compcomp.ordering import saved as module
from compcomp.ordering.plan import PlanData
from compcomp.ordering.search import search
from compcomp.plan import Plan, Setting
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, TruncatedSVD
from tests.ordering.fakes import LayerBench, by_rules

P, D, L = Magnitude("1/2", pattern="2:4"), LeastSquaresDistill(), TruncatedSVD(rank=1, residual=True)


@pytest.fixture(scope="module")
def data() -> PlanData:
    return search([P, D, L], "output_l2", LayerBench([P, D, L]), prover=by_rules)


@pytest.fixture
def plan(data: PlanData) -> Plan:
    return Plan.of(data, Setting())


def test_a_plan_is_the_data_of_a_search(plan: Plan, data: PlanData) -> None:
    assert isinstance(plan, PlanData) and plan.to_json() == data.to_json()
    assert str(plan) == str(data) and plan.accounts == data.accounts


def test_save_without_a_model(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert len(data["accounts"]) == 6 and data["order"] == str(plan.order)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder"):
        plan.save(tmp_path / "file")


def test_a_report_is_written_by_the_reporting_room(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, given = types.ModuleType("compcomp.reporting"), []
    room.write_report = lambda *arguments: given.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compcomp.reporting", room)
    plan.report(tmp_path / "report.html")
    assert given == [(plan, tmp_path / "report.html")]


def test_a_plan_without_a_model_wants_one_to_apply_to(plan: Plan) -> None:
    with pytest.raises(InputError, match="model"):
        plan.apply(object())


def test_many_orders_are_accounted_for_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED", 5)
    techniques = [P, AbsMax(3, group=4), D]
    plan = Plan.of(search(techniques, "output_l2", LayerBench(techniques), prover=by_rules), Setting())
    plan.save(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["accounts"] == "accounts.tsv"
    lines = (tmp_path / "accounts.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:] if not line.startswith("#")]
    names = dict(line.removeprefix("# technique ").split(": ", 1) for line in lines if line.startswith("# technique"))
    listed = {" >> ".join(names[k] for k in order.split()): (outcome, by) for order, outcome, by, _, _ in rows}
    for account in plan.accounts:
        outcome, by = listed[account["order"]]
        assert outcome == account["fate"] and " >> ".join(names[k] for k in by.split()) == account["by"]
    proofs = {line.split(":")[0] for line in lines if line.startswith("# proof")}
    used = {f"# proof {k}" for row in rows for k in row[3].split()}
    assert used == proofs and all(row[3] or row[4] for row in rows if row[1] != "measured")

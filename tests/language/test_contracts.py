"""Contracts, hints and fixtures are three things: who reads which, and that each contract has a law and a rule."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from compcomp.errors import InputError
from compcomp.language.contracts import HINTS, Contract, contracts
from compcomp.language.technique import Declared, Fixtures, Hints, Technique

ROOT = Path(__file__).resolve().parents[2]
RULES = {path.stem: path for path in (ROOT / "compcomp" / "ordering").glob("*.py")}
RULES |= {path.stem: path for path in (ROOT / "compcomp" / "proving").rglob("*.py")}


def reads(tree: ast.AST) -> set[str]:
    """Attributes that code reads, a property ``is_x`` as x."""
    return {node.attr.removeprefix("is_") for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("contract", contracts().values(), ids=lambda contract: contract.name)
def test_each_contract_has_a_law_and_rules_that_rely_on_it(contract: Contract) -> None:
    assert len(contract.law.split()) > 3 and "\n" not in contract.law and contract.rules
    for rule in contract.rules:
        assert contract.name in reads(ast.parse(RULES[rule].read_text(encoding="utf-8"))), rule
        assert (ROOT / "docs" / "proofs" / f"{rule}.md").is_file()


def test_each_rule_that_relies_on_a_contract_is_listed() -> None:
    """Of the rules for every shape; what compares all contracts (likeness) relies on none."""
    found = {
        (name, path.stem)
        for path in sorted((ROOT / "compcomp" / "proving" / "rules").glob("*.py"))
        if path.stem not in ("likeness", "__init__")
        for name in contracts()
        if re.search(rf"promises\(\)\.{name}\b|promise[sd]?\.{name}\b", path.read_text(encoding="utf-8"))
    }
    assert len(found) > 15
    assert not [(name, rule) for name, rule in sorted(found) if rule not in contracts()[name].rules]


def readers(*names: str) -> Iterator[tuple[str, str]]:
    """(file, attribute) for each of these attributes that code of the library reads, outside of encodings."""
    for path in sorted((ROOT / "compcomp").rglob("*.py")):
        place = str(path.relative_to(ROOT / "compcomp"))
        if not place.startswith("encodings"):
            yield from ((place, name) for name in names if name in reads(ast.parse(path.read_text(encoding="utf-8"))))


def test_hints_are_read_by_what_makes_candidates_alone() -> None:
    """None of these decides a verdict: a candidate refutes only after replay, and proves nothing."""
    names = {field.name for field in fields(Hints)}
    assert names == HINTS
    found = {place for place, _ in readers("hints", *names)}
    assert found == {"ordering/screen.py", "proving/candidates.py", "proving/special.py"}


def test_fixtures_are_read_by_tests_and_tables_alone() -> None:
    found = {place for place, _ in readers("fixtures")}
    assert found == {
        "catalogue.py",
        "language/fixtures.py",
        "language/samples.py",
        "language/technique.py",
        "testing/agreement.py",
        "testing/conformance.py",
    }


def test_a_hint_is_no_contract() -> None:
    assert not {field.name for field in fields(Declared)} & HINTS
    for name in HINTS:
        with pytest.raises(InputError, match=rf"Declared\({name}=\.\.\.\); allowed: .*Hints\({name}=\.\.\.\)"):
            Declared(**{name: 1})


def test_former_names_of_fixtures_are_read() -> None:
    """As classes of others have them; a parameter may have any of these names."""

    @dataclass(frozen=True)
    class Former(Technique):
        samples: int = 3

        tried = {"samples": (1, 2)}  # noqa: RUF012
        tried_shapes: ClassVar[tuple[tuple[int, int], ...]] = ((3, 5),)
        exact_scores = True

    @dataclass(frozen=True)
    class Later(Former):
        fixtures: ClassVar[Fixtures] = Fixtures(values={"samples": (4,)})

    assert Former.fixtures == Fixtures(values={"samples": (1, 2)}, shapes=((3, 5),), exact_scores=True)
    assert Former(7).samples == 7 and Technique.fixtures == Fixtures()
    assert Later.fixtures == Fixtures(values={"samples": (4,)})

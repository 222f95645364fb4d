"""The prose that outsiders read: how sentences open, how long they are, and the field's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.blocks import ROOT, documentation
from tests.prose import (
    LONGEST,
    complaints,
    of_docstrings,
    of_file,
    of_markdown,
    private_messages,
    private_names,
)

GENERATED = {"keeps.md"}
"""Written from docstrings, which are not covered yet."""
COVERED = [path for path in documentation() if path.name not in GENERATED]
COVERED += [ROOT / folder / "README.md" for folder in ("tests", "benchmarks")]


CODE = sorted([*ROOT.glob("compcomp/**/*.py"), *ROOT.glob("encodings/*.py")])
"""All code, whose docstrings are covered."""
SOURCES = sorted([*CODE, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")])
"""All code and tests, whose names and messages are covered."""
ABOUT_PROSE = {ROOT / "tests" / name for name in ("prose.py", "test_prose.py")}
"""Tests that quote private words."""


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_plain(path: Path) -> None:
    found = of_docstrings(path.read_text(encoding="utf-8"))
    assert not [complaint for sentence in found for complaint in complaints(sentence)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_messages_are_plain(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not private_names(path, text)
    assert path in ABOUT_PROSE or not private_messages(text)


@pytest.mark.parametrize("path", COVERED, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(path: Path) -> None:
    assert not [complaint for sentence in of_file(path) for complaint in complaints(sentence)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("It holds. What it needs is a mask.", "opens with 'What'"),
        ("- Of which one is left.", "opens with 'Of which'"),
        ("| a | Where not, it is left out. |", "opens with 'Where not'"),
        ("This is told.", "says 'told'"),
        ("The term beside\nthe weight.", "says 'beside'"),
        ("It holds, " * LONGEST, "words, more than"),
        ("# What it is", "opens with 'What'"),
        ("1. What it is", "opens with 'What'"),
    ],
)
def test_what_is_not_plain_is_found(text: str, complaint: str) -> None:
    assert any(complaint in found for sentence in of_markdown(text) for found in complaints(sentence))


@pytest.mark.parametrize(
    "text",
    [
        "Say what it is. It says `What` in code.",
        "```text\nWhat a block says is told.\n```",
        "See [the terms](none.md#told).",
        "    What stands in code by indent",
        "\n".join(["| a short cell | and another |"] * LONGEST),
    ],
)
def test_what_is_plain_passes(text: str) -> None:
    assert not [found for sentence in of_markdown(text) for found in complaints(sentence)]


@pytest.mark.parametrize(
    "source",
    [
        "def is_told(): ...",
        "class WithTrail: ...",
        "def f(fate): ...",
        "settled = 1",
        "for word in (): ...",
        "self.beside = 1",
        "class A:\n    congruent: bool = False",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert len(private_names(Path("plain.py"), source)) == 1
    assert len(private_names(Path("test_met.py"), source)) == 2


def test_names_and_keys_of_others_pass() -> None:
    assert not private_names(Path("plain.py"), "tie_word_embeddings\nmodel.word\nmetric = first_part = KEYS['fate']")
    assert not private_messages("KEYS = {'fate': 'an outcome', 'a': 'saved as `fate`'}")


def test_private_messages_are_found() -> None:
    assert private_messages("raise ValueError(f'{a} is told twice')")


def test_docstrings_are_read() -> None:
    source = 'def f():\n    """Return it.\n\n    What is told.\n    """\n\nX = 1\n"""Of which one."""\n'
    found = {(sentence.line, sentence.text) for sentence in of_docstrings(source)}
    assert found == {(2, "Return it."), (4, "What is told."), (8, "Of which one.")}


def test_entries_of_a_section_are_apart() -> None:
    source = 'def f():\n    """Do it.\n\n    Args:\n        a: one\n            and more.\n        b: two.\n    """\n'
    found = {(sentence.line, sentence.text) for sentence in of_docstrings(source)}
    assert found == {(2, "Do it."), (5, "one and more."), (7, "two.")}

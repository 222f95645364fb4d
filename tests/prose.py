"""Check the mechanical part of plain prose: how sentences open, how long they are, and private words.

Prose is read from Markdown files and, with ``ast``, from docstrings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.blocks import without_blocks

LONGEST = 45
"""Words that a sentence may have."""

OPENINGS = ("What", "Of which", "Where not", "Of what", "Whose")
"""No sentence opens with these: verb and object come first."""

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:")
"""Sections of a docstring, each entry of which is a paragraph of its own."""

PRIVATE = {
    r"told": "reported, or on_progress",
    r"fates?": "outcome",
    r"words?": "normal form (of a sequence), part (of a scheme), text",
    r"trails?": "proofs",
    r"rests": "is a no-op on the dense layer, depends on",
    r"beside": "in the low-rank branch, next to",
    r"congruent": "holds as a local rewrite",
    r"parted": "apart",
    r"settl(?:e|es|ed|ing)": "fixed, decided",
    r"met": "satisfied, seen",
}
"""Words that this library alone used in a sense of its own, and the field's terms for them."""
_PRIVATE = re.compile(rf"\b({'|'.join(PRIVATE)})\b", re.IGNORECASE)
_ALLOWED = re.compile(r"in other words|key words?", re.IGNORECASE)


@dataclass(frozen=True)
class Sentence:
    """One sentence, and the line of its file where its paragraph begins."""

    line: int
    text: str


def complaints(sentence: Sentence) -> list[str]:
    """Return what is wrong with a sentence, nothing where it is plain."""
    found = []
    text = sentence.text
    opening = next((o for o in OPENINGS if re.match(rf"{o}\b", text)), None)
    if opening is not None:
        found.append(f"opens with {opening!r}")
    count = len(re.findall(r"[A-Za-z][\w'-]*|\d+", text))
    if count > LONGEST:
        found.append(f"has {count} words, more than {LONGEST}")
    found += private(text)
    return [f"line {sentence.line}: {complaint}: {text[:90]}" for complaint in found]


def private(text: str) -> list[str]:
    """Return the private words of a text, each with what to say."""
    return [
        f"says {match[1]!r}; say {better}"
        for match in _PRIVATE.finditer(_ALLOWED.sub("", text))
        for pattern, better in PRIVATE.items()
        if re.fullmatch(pattern, match[1], re.IGNORECASE)
    ]


def private_names(path: Path, text: str) -> list[str]:
    """Return the names that a Python source defines and that have a private word as one of their parts."""
    names = [(1, path.stem)]
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append((node.lineno, name))
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.append((node.lineno, name))
    parts = [(line, name, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)) for line, name in names]
    return [f"line {line}: {name} {found}" for line, name, text in parts for found in private(text)]


def private_messages(text: str) -> list[str]:
    """Return the messages and docstrings of a Python source that have a private word.

    Strings without a blank, strings with tabs and quoted code may be keys of saved files.
    """
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    strings = [(node.lineno, node.value) for node in found if isinstance(node.value, str) and " " in node.value]
    messages = [(line, re.sub(r"`[^`]*`", "CODE", string)) for line, string in strings if "\t" not in string]
    return [f"line {line}: {said}: {message[:90]}" for line, message in messages for said in private(message)]


def of_markdown(text: str) -> Iterator[Sentence]:
    """Return the sentences of a Markdown text, headings, list items and cells of tables included."""
    text = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), without_blocks(text), flags=re.DOTALL)
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        begins = re.match(r"\s*([-*]|\d+\.)\s+|#+ |\|", line)
        if (not line.strip() or begins) and paragraph:
            yield from _sentences(start, " ".join(paragraph))
            paragraph = []
        if line.startswith("    ") and not paragraph and not begins:
            continue  # code by indent
        if line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line):
                yield from _sentences(number, cell)
        elif line.strip():
            start = start if paragraph else number
            paragraph.append(re.sub(r"^\s*([-*]|\d+\.)\s+|^#+ ", "", line).strip())


def of_docstrings(text: str) -> Iterator[Sentence]:
    """Return the sentences of all docstrings in a Python source, and of the texts below attributes."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                for sentence in of_markdown(re.sub(r"``([^`]*)``", r"`\1`", _dedented(docstring))):
                    yield Sentence(node.lineno + sentence.line - 1, sentence.text)


def _dedented(docstring: str) -> str:
    """Return a docstring without indent; entries of a section such as ``Args:`` become list items without names."""
    first, *rest = docstring.split("\n")
    lines, entries = [first.strip()], False
    for line in dedent("\n".join(rest)).split("\n"):
        entries = line in SECTIONS or (entries and (line.startswith(" ") or not line))
        if entries and re.match(r"    \S", line):
            line = "- " + re.sub(r"^\w+(, \w+)*: ", "", line.strip())
        lines.append("" if line in SECTIONS else line.strip())
    return "\n".join(lines)


def of_file(path: Path) -> Iterator[Sentence]:
    """Return the sentences of a Markdown or Python file."""
    text = path.read_text(encoding="utf-8")
    yield from of_docstrings(text) if path.suffix == ".py" else of_markdown(text)


def _sentences(line: int, text: str) -> Iterator[Sentence]:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"[*_]{1,2}([^*_]+)[*_]{1,2}", r"\1", text)
    for part in re.split(r"(?<=[.!?])\s+(?=[A-Z(0-9])|(?<=:)\s+(?=[A-Z])", text.strip()):
        if part.strip():
            yield Sentence(line, part.strip())

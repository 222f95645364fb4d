"""Read the fenced blocks of Markdown files, for the tests that run, compare and type-check them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON, SHELL, OUTPUT = ("python",), ("sh", "shell", "bash", "console"), ("text",)

_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. ``line``: of its first line of code. ``not_run``: the reason in a comment above it, or ""."""

    path: Path
    line: int
    language: str
    code: str
    not_run: str

    @property
    def place(self) -> str:
        """``README.md:46``."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def padded(self) -> str:
        """The code behind as many empty lines as stand above it, so that errors name lines of the file."""
        return "\n" * (self.line - 1) + self.code


@cache
def markdown_files() -> tuple[Path, ...]:
    """Return every Markdown file of the repository that people wrote or a command wrote for them, sorted."""
    folders = [ROOT, *(ROOT / name for name in ("docs", "tests", "examples", "benchmarks"))]
    found = {path for folder in folders for path in folder.glob("*.md")}
    found |= {path for folder in folders[1:] for path in folder.rglob("*.md")}
    return tuple(sorted(found))


def documentation() -> tuple[Path, ...]:
    """Return README.md, CONTRIBUTING.md and all pages under docs/."""
    return tuple(
        path for path in markdown_files() if is_page(path) or (path.parent == ROOT and path.name != "CHANGELOG.md")
    )


def is_page(path: Path) -> bool:
    """Return whether the file lies under docs/."""
    return (ROOT / "docs") in path.parents


def blocks(path: Path) -> list[Block]:
    """Return all fenced blocks of a Markdown file, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(path, line, match["language"], code, " ".join(reason[1].split()) if reason else ""))
    return found


def python_blocks(path: Path) -> list[Block]:
    """Return the Python blocks that run, in order: together they are one program."""
    return [block for block in blocks(path) if block.language in PYTHON and not block.not_run]


def shell_blocks(path: Path) -> list[Block]:
    """Return the shell blocks that run."""
    return [block for block in blocks(path) if block.language in SHELL and not block.not_run]


def program(path: Path) -> str:
    """Return the Python blocks of a file as one program, each line at the number that it has in the file."""
    lines: list[str] = []
    for block in python_blocks(path):
        lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def without_blocks(text: str) -> str:
    """Return the text with an empty line for each line of a fenced block, so that line numbers stay."""
    return _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)

"""The documentation: its blocks run, its links lead somewhere, the files it names exist, each rule has its page."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from compcomp.cli import app
from tests.blocks import OUTPUT, PYTHON, ROOT, SHELL, Block, blocks, documentation, markdown_files, without_blocks

FILES = markdown_files()


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Blocks

SLOW = {"README.md", "docs/certificates.md", "docs/whole_models.md"}
RUN = [
    pytest.param(path, marks=[pytest.mark.slow] if names(path) in SLOW else [], id=names(path))
    for path in documentation()
    if any(block.language in PYTHON + SHELL for block in blocks(path))
]


def commands(block: Block) -> Iterator[tuple[list[str], int]]:
    """The commands of a shell block: one a line, without comments and prompts, continued by a backslash.

    With each its exit status, 0 unless a comment says another one.
    """
    for line in block.code.replace("\\\n", " ").splitlines():
        if command := shlex.split(line.removeprefix("$ "), comments=True):
            status = re.search(r"# exit status (\d+)", line)
            yield command, 0 if status is None else int(status[1])


def run_shell(block: Block) -> str:
    """Run each command through the shell's own entry point; all have to end as the page says.

    On a busy machine the search for certificates may end early: `check` then says "holey", which is no failure.
    """
    shown = ""
    for (name, *arguments), status in commands(block):
        assert name == "compcomp", f"{block.place} runs {name}: say why it is not run"
        result = CliRunner().invoke(app, arguments)
        allowed = {0, 3} if arguments[0] == "check" else {status}
        assert result.exit_code in allowed, f"{block.place}: {shlex.join(arguments)}\n{result.output}"
        shown += result.output
    return shown


@pytest.mark.parametrize("path", RUN)
def test_the_blocks_of_a_page_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, Python in one namespace, all in one folder. A text right after a block is its output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.syspath_prepend(ROOT / "examples")
    module = ModuleType("blocks_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for example in (ROOT / "examples").glob("*.py"):  # imported anew, and forgotten afterwards
        monkeypatch.setitem(sys.modules, example.stem, module)
        del sys.modules[example.stem]
    output, end = "", 0
    for block in blocks(path):
        if block.language in OUTPUT and output and block.line <= end + 3:
            assert block.code.split() == output.split(), block.place
        output, end = "", block.line + block.code.count("\n")
        if block.not_run:
            continue
        if block.language in PYTHON:
            exec(compile(block.padded, str(path), "exec"), vars(module))
            output = capsys.readouterr().out
        elif block.language in SHELL:
            output = run_shell(block)


def test_blocks_that_are_not_run_say_why() -> None:
    """A reason is one sentence; there are few."""
    left = [block for path in documentation() for block in blocks(path) if block.not_run]
    assert all(len(block.not_run.split()) >= 4 for block in left)
    assert len(left) <= 4, [block.place for block in left]


def test_code_stands_in_fenced_blocks() -> None:
    """What is only indented would not be run."""
    command = re.compile(r"^ {4}(compcomp|make|pip|import|from|>>>|\$) ?\S", re.MULTILINE)
    texts = {names(path): without_blocks(path.read_text(encoding="utf-8")) for path in documentation()}
    assert not [name for name, text in texts.items() if command.search(text)]


# Links and paths


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.*)$", without_blocks(path.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, 0) + 1
    return {f"{name}-{n}" if n else name for name, times in found.items() for n in range(times)}


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", without_blocks(text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (anchor and (other.suffix != ".md" or anchor not in anchors(other))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", FILES, ids=names)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert not broken_links(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("link", "broken"),
    [("docs/none.md", True), ("README.md#no-such", True), ("README.md#techniques", False), ("docs", False)],
)
def test_a_broken_link_is_found(link: str, broken: bool) -> None:
    assert bool(broken_links(ROOT / "README.md", f"See [it]({link}).")) is broken


PLACES = "compcomp|encodings|docs|tests|examples|benchmarks"
ROOMS = "proving|ordering|language|layers|algebra|models|checking|reporting|kernels|testing"
_PATH = re.compile(rf"`((?:{PLACES})/[\w./-]*)`|(?<![\w/.`])((?:{PLACES})/[\w./-]*\.(?:py|md|yaml))")
_INSIDE = re.compile(rf"`((?:{ROOMS})/[\w./]+)`")


def missing(text: str) -> list[str]:
    """Paths from the root of the repository that the text names and that are not there; NAME stands for any name."""
    found = [one or other for one, other in _PATH.findall(text)]
    found += [f"compcomp/{name}" for name in _INSIDE.findall(text)]
    return [path for path in found if "NAME" not in path and not (ROOT / path).exists()]


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "CHANGELOG.md"], ids=names)
def test_every_path_named_exists(path: Path) -> None:
    """The changelog is about what was; a path in it may be gone."""
    assert not missing(path.read_text(encoding="utf-8"))


def test_every_page_that_code_names_exists() -> None:
    """Of parts of this repository; a page of another one has its address before it."""
    pages = [
        (names(path), page)
        for folder in ("compcomp", "encodings", "tests", "examples", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for page in re.findall(r"(?<![\w/])docs/[\w./]*\w", path.read_text(encoding="utf-8"))
    ]
    assert len(pages) > 10
    assert not [(place, page) for place, page in pages if not (ROOT / page).exists()]


def test_a_missing_path_is_found() -> None:
    assert missing("See `docs/none.md`, compcomp/none.py, `proving/none.py` and `encodings/NAME.py`.") == [
        "docs/none.md",
        "compcomp/none.py",
        "compcomp/proving/none.py",
    ]


# Rules and their pages

RULES = ROOT / "docs" / "proofs"


@cache
def printed_rules() -> set[str]:
    """The names of rules that verdicts print: the first arguments of Proof(...), in all of compcomp/proving."""
    found = set()
    for path in sorted((ROOT / "compcomp" / "proving").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Proof":
                given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "rule")]
                values = [v for name in given for v in (assigned[name.id] if isinstance(name, ast.Name) else [name])]
                constants = [c for value in values for c in _results(value)]
                assert constants, f"{path.name}:{node.lineno} does not say its rule"
                found |= set(constants)
    return found


def _results(value: ast.expr) -> list[str]:
    if isinstance(value, ast.IfExp):
        return _results(value.body) + _results(value.orelse)
    assert isinstance(value, ast.Constant) and isinstance(value.value, str), ast.unparse(value)
    return [value.value]


def test_each_rule_has_its_page() -> None:
    rules = printed_rules()
    assert {"rest", "last step", "kept", "exchange", "bounded"} <= rules
    assert not [rule for rule in rules if not (RULES / f"{rule.replace(' ', '_')}.md").is_file()]


@pytest.mark.parametrize("path", [path for path in sorted(RULES.glob("*.md")) if path.name != "README.md"], ids=names)
def test_a_page_of_a_rule_is_headed_by_its_name_and_listed(path: Path) -> None:
    name = path.stem.replace("_", " ")
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert f"\n| [{name}]({path.name}) |" in (RULES / "README.md").read_text(encoding="utf-8")
    if name in printed_rules():
        assert "\n## Statement\n" in text and "\n## Argument\n" in text and "\n## Attack\n" in text
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert named, "no test is named that attacks it"


def test_each_module_of_a_rule_has_its_page() -> None:
    modules = {path.stem for path in (ROOT / "compcomp" / "proving" / "rules").glob("*.py")} - {"__init__"}
    assert not [module for module in modules if not (RULES / f"{module}.md").is_file()]


# The glossary

GLOSSARY = ROOT / "docs" / "glossary.md"
_LINK = re.compile(r"\[([^\]]*)\]\((?:\.\./|docs/)*glossary\.md#([\w-]+)\)")


def test_every_term_has_its_meaning_and_a_synonym() -> None:
    terms = re.split(r"^## ", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(terms) >= 30
    assert [term.splitlines()[0] for term in terms] == sorted((term.splitlines()[0] for term in terms), key=str.lower)
    assert all(re.search(r"Synonyms?:\s+\S", term) for term in terms)


def test_every_term_is_linked_from_a_page() -> None:
    linked = {anchor for path in documentation() for _, anchor in _LINK.findall(path.read_text(encoding="utf-8"))}
    assert linked == anchors(GLOSSARY) - {"glossary"}


def test_a_term_is_linked_once_a_page_and_at_its_first_use() -> None:
    """First use in running text, that is outside headings, tables, code and other links."""
    late = []
    for path in documentation():
        text = re.sub(r"^(?:#|\|| {4}).*$", "", without_blocks(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
        text = re.sub(r"`[^`]*`", "", text)
        links = list(_LINK.finditer(text))
        assert len({link[2] for link in links}) == len(links), f"{names(path)} links a term twice"
        for link in links:
            before = re.sub(r"\*\*[^*]*\*\*|\[[^\]]*\](?:\([^)]*\))?", "", text[: link.start()])
            if re.search(rf"(?<![\w-]){re.escape(link[1])}(?![\w-])", before.replace("\n", " ")):
                late.append((names(path), link[1]))
    assert not late, "a term is used before its link: move the link to the first use"

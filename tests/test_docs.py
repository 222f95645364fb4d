"""The documentation: its links lead somewhere, the files it names exist, and each rule has its page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.blocks import ROOT, markdown_files, without_blocks

FILES = markdown_files()


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


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

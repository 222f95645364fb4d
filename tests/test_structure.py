"""The rooms of the library import downwards only, and `encodings/` stays out of Python's way.

The table `MAY_IMPORT` is the one in CONTRIBUTING.md. A room that does not exist yet is not checked.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> what it may import, from the ground up. Every room may import itself and `errors`.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "hooks": set(),
    "terms": set(),
    "layers": {"terms"},
    "algebra": {"terms", "layers"},
    "language": {"hooks", "terms", "layers", "algebra"},
    "encodings": {"terms", "layers", "algebra", "language"},
    "kernels": {"layers", "algebra", "language", "encodings"},
    "techniques": {"language", "encodings", "kernels"},
    "checking": {"terms", "layers", "algebra", "language", "techniques"},
    "proving": {"version", "terms", "layers", "algebra", "language", "checking"},
    "record": set(),
    "bench": {"record", "language"},
    "ordering": {"record", "bench", "version", "terms", "layers", "language", "proving"},
    "models": {"bench", "layers", "language", "kernels"},
    "formats": set(),
    "inspecting": {"record", "language", "formats"},
    "exporting": {"record", "layers", "language", "models", "formats"},
    "reporting": {"layers", "language", "ordering", "formats", "inspecting"},
    "compress": {"language", "ordering", "models", "reporting"},
    "plan": {"language", "ordering", "models", "compress", "reporting", "auditing", "exporting"},
}
MAY_IMPORT["optimize"] = set(MAY_IMPORT)
MAY_IMPORT["recipe"] = {"language", "ordering", "models"}
MAY_IMPORT["auditing"] = {"version", "layers", "language", "techniques", "proving", "reporting"}
MAY_IMPORT["systems"] = {"techniques", "language"}
MAY_IMPORT["catalogue"] = {"layers", "language", "models"}
MAY_IMPORT["testing"] = {"terms", "layers", "algebra", "language", "kernels"}

FACE = "__init__"  # `import compcomp` itself: it reaches every room, so a room must not go through it
MAY_IMPORT["cli"] = {*MAY_IMPORT, FACE}
UNBOUND = {FACE, "__main__"}  # these may import everything

# Rooms that know no technique by name: a new technique must work in them without a change.
NAMELESS = ["proving", "ordering"]


# What there is


@cache
def sources() -> dict[str, Path]:
    """Dotted name -> file, for all that ships; encodings/ under the name it is imported by."""
    found = {}
    for folder, prefix in (("compcomp", "compcomp"), ("encodings", "compcomp.encodings")):
        base = ROOT / folder
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if folder == "compcomp" and parts[0] == "encodings":
                continue  # the symlink, on Pythons whose rglob follows it
            found[".".join((prefix, *parts))] = path
    return found


def room_of(module: str) -> str:
    """`compcomp.proving.solve` -> `proving`; `compcomp` -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def rooms() -> list[str]:
    """The rooms there are, in the order of the table, then those that are in no table."""
    found = {room_of(module) for module in sources()} - UNBOUND
    return [room for room in MAY_IMPORT if room in found] + sorted(found - set(MAY_IMPORT))


# What it imports


def imported(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in `module`, relative ones resolved, wherever it stands.

    `from a import b` gives `a.b`: b may be a module. The name of a module given to `import_module` as a
    constant counts too.
    """
    package = module.rsplit(".", 1)[0]  # also right for `x.__init__`
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def reached(name: str) -> str | None:
    """The room that importing `name` reaches, FACE for the package itself, None for foreign code."""
    if name.split(".")[0] != "compcomp":
        return None
    room = room_of(name)
    exists = any(room_of(module) == room for module in sources())
    return room if exists or room in MAY_IMPORT else FACE  # `from compcomp import prove`


def violations(room: str) -> list[str]:
    allowed = MAY_IMPORT[room] | {room, "errors"}
    found = []
    for module, path in sources().items():
        if room_of(module) != room:
            continue
        for line, name in imported(module, tree_of(path)):
            target = reached(name)
            if target is not None and target not in allowed:
                found.append(f"{path.relative_to(ROOT)}:{line} imports {name}, and {room} may not")
    return found


def test_there_is_something_to_check() -> None:
    assert rooms(), f"no room of the library found under {ROOT}"


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_what_its_row_allows(room: str) -> None:
    assert room in MAY_IMPORT, f"compcomp/{room} is in no row of MAY_IMPORT: say what it may import"
    assert not violations(room)


def test_no_module_imports_our_encodings_by_pythons_name() -> None:
    """Ours is `compcomp.encodings`; plain `encodings` is Python's own, or a surprise."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in sources().items()
        for line, name in imported(module, tree_of(path))
        if name.split(".")[0] == "encodings"
    ]
    assert not wrong


# The rule is only as good as its reading of imports


@pytest.mark.parametrize(
    ("module", "code", "rooms_reached"),
    [
        ("compcomp.proving.solve", "import compcomp.terms", ["terms"]),
        ("compcomp.proving.solve", "from compcomp import terms, errors", ["terms", "errors"]),
        ("compcomp.proving.solve", "from compcomp.kernels.wanda import apply", ["kernels"]),
        ("compcomp.proving.solve", "from . import lift", ["proving"]),
        ("compcomp.proving.solve", "from ..kernels import wanda", ["kernels"]),
        ("compcomp.proving.__init__", "from .solve import solve", ["proving"]),
        ("compcomp.proving.__init__", "from .. import ordering", ["ordering"]),
        ("compcomp.encodings.wanda", "from ..terms import If", ["terms"]),
        ("compcomp.optimize", "from .models import walk", ["models"]),
        ("compcomp.proving.solve", "import compcomp as cc", [FACE]),
        ("compcomp.proving.solve", "from compcomp import prove", [FACE]),
        ("compcomp.proving.solve", "def f():\n    import compcomp.models.walk", ["models"]),
        ("compcomp.proving.solve", "importlib.import_module('compcomp.kernels.wanda')", ["kernels"]),
        ("compcomp.proving.solve", "import z3, encodings.utf_8", []),
    ],
)
def test_imports_are_read_right(module: str, code: str, rooms_reached: list[str]) -> None:
    seen = [reached(name) for _, name in imported(module, ast.parse(code))]
    assert [room for room in seen if room is not None] == rooms_reached


# No circles


def import_graph() -> nx.DiGraph[str]:
    """Module -> what it imports of ours, at whatever place: in functions and for type checkers as well.

    A circle for type checkers alone would be one of knowledge: neither file can be read or moved without the other.
    """
    names = {module.removesuffix(".__init__") for module in sources()}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module, path in sources().items():
        for _, name in imported(module, tree_of(path)):
            found = next((n for n in (name, name.rpartition(".")[0]) if n in names), None)
            if found is not None and found != module.removesuffix(".__init__"):
                graph.add_edge(module.removesuffix(".__init__"), found)
    return graph


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


def test_no_modules_import_each_other() -> None:
    graph = import_graph()
    assert graph.has_edge("compcomp.language.verdict", "compcomp.language.claim")
    assert not circles(graph)


def test_no_rooms_import_each_other() -> None:
    """Nor do their rows allow it, but for the rooms that may import everything."""
    graph = nx.DiGraph((room_of(a), room_of(b)) for a, b in import_graph().edges if room_of(a) != room_of(b))
    assert not circles(graph)
    everything = {"optimize", "cli"}
    rows = {room: allowed - everything for room, allowed in MAY_IMPORT.items() if room not in everything}
    assert not circles(nx.DiGraph((room, other) for room, allowed in rows.items() for other in allowed))


@pytest.mark.parametrize("code", ["import compcomp.language.claim", "def f():\n    from ..language import claim"])
def test_a_circle_is_found(code: str) -> None:
    graph = import_graph()
    (_, name), *_ = imported("compcomp.layers.state", ast.parse(code))
    graph.add_edge("compcomp.layers.state", name)
    assert any({"compcomp.layers.state", name} <= set(found) for found in circles(graph))


# No name of a module is put together


def put_together(tree: ast.Module) -> Iterator[int]:
    """Lines where a module is imported, or looked up among the loaded ones, by a name that is made of strings.

    A name that is a constant, or data that was registered as it is, is none. Nor may a module ask for its own name
    to make others of it.
    """
    function: dict[int, ast.AST] = {}  # that a node is in, the innermost
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function |= {id(inner): node for inner in ast.walk(node)}
    values: dict[tuple[str, int], list[ast.expr]] = {}  # what a name is set to there
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                values.setdefault((ast.unparse(target), id(function.get(id(node)))), []).append(node.value)
    compared = {id(n) for node in ast.walk(tree) if isinstance(node, ast.Compare) for n in ast.walk(node)}

    def made(name: ast.expr) -> bool:
        parts = [name]
        if isinstance(name, ast.Name):
            parts = values.get((name.id, id(function.get(id(name)))), [])
        return any(isinstance(part, ast.JoinedStr | ast.BinOp | ast.Call) for part in parts)

    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[name, *_]):
                found = called in ("import_module", "__import__") and made(name)
            case ast.Subscript(value=holder, slice=name):
                found = ast.unparse(holder) == "sys.modules" and made(name)
            case ast.Name(id="__name__" | "__package__"):
                found = id(node) not in compared
            case _:
                continue
        if found:
            yield node.lineno


def test_no_import_name_is_put_together() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in sources().values() for line in put_together(tree_of(path))]
    assert not found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import_module(f'{root}.reporting')", True),
        ("room = root + '.reporting'\nimportlib.import_module(room)", True),
        ("importlib.import_module('.'.join(parts))", True),
        ("sys.modules[__name__.partition('.')[0]].load()", True),
        ("from importlib import import_module\nimport_module('reporting', __package__)", True),
        ("importlib.import_module('compcomp.reporting')", False),
        ("name = self.kernels[type(self)]\nimportlib.import_module(name)", False),
        ("if __name__ == '__main__': main()", False),
    ],
)
def test_a_name_put_together_is_found(code: str, found: bool) -> None:
    assert bool(list(put_together(ast.parse(code)))) is found


# No technique by name


def technique_names() -> set[str]:
    """The public classes of encodings/: every technique, and whatever else only techniques know."""
    return {
        node.name
        for module, path in sources().items()
        if room_of(module) == "encodings"
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of each identifier, and of each string that is a name (`kind == "Wanda"`)."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield line, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield line, name
            case ast.alias(name=path, asname=asname):
                yield from ((line, name) for name in (*path.split("."), asname) if name)
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield line, name


@pytest.mark.parametrize("room", NAMELESS)
def test_no_technique_is_named(room: str) -> None:
    names = technique_names()
    named = [
        f"{path.relative_to(ROOT)}:{line} names {name}"
        for module, path in sources().items()
        if room_of(module) == room
        for line, name in identifiers(tree_of(path))
        if name in names
    ]
    assert not named


# encodings/ and Python's own encodings


def python(*arguments: str, path: Path | None = ROOT) -> str:
    """Output of a fresh Python, outside the checkout, with `path` on PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(sys.executable).anchor,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", [".", "compcomp", "tests"])
def test_no_encodings_folder_is_a_regular_package(folder: str) -> None:
    """With an `__init__.py`, a Python that has the folder above on its path would not even start."""
    assert not (ROOT / folder / "encodings" / "__init__.py").exists()


def test_python_starts_and_finds_its_own_encodings() -> None:
    ask = "import encodings.utf_8; print(encodings.utf_8.__file__)"
    assert python("-c", ask) == python("-c", ask, path=None)


def test_no_encoding_is_named_like_a_standard_module() -> None:
    names = {path.stem for module, path in sources().items() if room_of(module) == "encodings"}
    taken = sorted(names.intersection(sys.stdlib_module_names))
    assert not taken


# Starting is quick


@pytest.mark.parametrize(
    "module",
    ["compcomp", *(name for name in ("compcomp.cli", "compcomp.techniques") if name in sources())],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = {"torch", "transformers", "matplotlib"}
    loaded = python("-c", f"import sys, {module}; print(*sys.modules)").split()
    too_much = sorted(heavy.intersection(loaded))
    assert not too_much


def test_a_model_is_compressed_without_the_solvers() -> None:
    """They take some 30 MB."""
    steps = [
        "import sys, torch, compcomp as cc",
        "model = torch.nn.Linear(4, 4)",
        "cc.apply(cc.parse_sequence('AbsMax(bits=4)'), model)",
        "cc.apply(cc.parse_sequence('GPTQ(bits=4)'), model, [torch.randn(9, 4)])",
        "print(*sys.modules)",
    ]
    loaded = python("-c", "; ".join(steps)).split()
    assert not {"z3", "cvc5", "sympy", "networkx", "compcomp.proving"}.intersection(loaded)


# Tensors say where they are

MAKERS = {"arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "zeros"}
MAKERS |= {"rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices"}


def without_device(code: str) -> list[str]:
    """Return the calls that make a tensor wherever ``torch.set_default_device`` says."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = [(call, ast.unparse(call.func).removeprefix("torch.")) for call in calls if torch_function(call)]
    return [ast.unparse(c) for c, name in named if name in MAKERS and all(k.arg != "device" for k in c.keywords)]


def torch_function(call: ast.Call) -> bool:
    return ast.unparse(call.func).startswith("torch.")


def test_new_tensors_say_their_device() -> None:
    found = {str(path): without_device(path.read_text(encoding="utf-8")) for path in sources().values()}
    assert {path: calls for path, calls in found.items() if calls} == {}
    assert without_device("torch.zeros(2) + torch.zeros(2, device=x.device) + x.zeros(2)") == ["torch.zeros(2)"]

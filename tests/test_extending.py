"""Techniques that are not ours: registered by hand, and found where another package is installed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

import compcomp as cc
import compcomp.techniques
from compcomp.errors import InputError
from compcomp.language.installed import load_installed
from compcomp.language.technique import Sequence, Technique
from compcomp.language.text import parse_sequence
from compcomp.techniques import AbsMax, Magnitude
from compcomp.testing import check_encoding, sequences

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "own_technique.py"

BROKEN = """
[compcomp.techniques]
Binarize = own_technique:Binarize
Missing = no_such_module:Missing
Absent = own_technique:Absent
Exits = exits:Exits
Renamed = own_technique:Binarize
Number = own_technique:__doc__
"""


def install(folder: Path, points: str) -> None:
    """What an installer would leave of a package with the example in it."""
    (folder / "own_technique.py").write_text(EXAMPLE.read_text())
    (folder / "exits.py").write_text("raise SystemExit('two\\nlines')")
    info = folder / "own_technique-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-technique\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, installed in this process along with entry points that are broken."""
    install(tmp_path, BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("own_technique", None)


def test_the_example_is_short_and_runs() -> None:
    """One file, encoding and kernel, of less than 40 lines, and it says what it should."""
    assert len(EXAMPLE.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    coverage, grid, mask = done.stdout.splitlines()
    assert coverage.startswith("Coverage(clear=")
    assert grid.startswith("PROVED: Binarize() >> Magnitude(sparsity=1/2) keeps grid, any shape")
    assert mask.startswith("REFUTED: Magnitude(sparsity=1/2) >> Binarize() keeps mask")


def test_text_finds_what_is_installed(package: Path) -> None:
    assert "own_technique" not in sys.modules
    sequence = parse_sequence("Binarize() >> AbsMax(bits=4)")
    assert [type(t).__name__ for t in sequence] == ["Binarize", "AbsMax"]
    assert check_encoding(type(sequence.techniques[0]), max_examples=20).clear > 10
    assert cc.prove(cc.parse_claim("Binarize() >> AbsMax(bits=4) keeps grid")).proved
    assert cc.prove(cc.parse_claim("Magnitude(sparsity=1/2) >> Binarize() keeps mask")).refuted


def test_nothing_is_loaded_that_is_not_asked_for(package: Path) -> None:
    parse_sequence("Magnitude(sparsity=1/2) >> AbsMax(bits=4)")
    assert "own_technique" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Missing", "No module named 'no_such_module'"),
        ("Absent", "has no attribute 'Absent'"),
        ("Exits", "SystemExit: two lines"),
        ("Renamed", "class Binarize; allowed: a class named Renamed"),
        ("Number", "a subclass of Technique"),
    ],
)
def test_a_broken_entry_point_gives_one_line(package: Path, name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sequence(f"{name}() >> AbsMax(bits=4)")
    message = str(caught.value)
    assert message.startswith(f"entry point {name} of own-technique: ")
    assert says in message and "\n" not in message and len(message) < 300
    parse_sequence("Binarize() >> AbsMax(bits=4)")  # the others are none the worse


def test_all_that_can_be_loaded_is(package: Path) -> None:
    problems = load_installed()
    assert [kind.__name__ for kind in Technique.kernels][-1] == "Binarize"
    assert len(problems) == 5 and all("\n" not in line for line in problems)
    assert len(load_installed()) == 5  # and again


def test_an_unknown_name_lists_what_is_installed(package: Path) -> None:
    with pytest.raises(InputError, match=r"technique 'Nothing'; allowed: .*Binarize"):
        parse_sequence("Nothing()")


def test_an_installed_technique_does_not_hide_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "[compcomp.techniques]\nMagnitude = own_technique:Binarize\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert Technique.named("Magnitude") is Magnitude
    assert load_installed() == []


def test_from_a_shell(tmp_path: Path) -> None:
    """In other processes: the command, and the workers that fill a table."""
    install(tmp_path, BROKEN)

    def run(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "compcomp", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    done = run("prove", "Binarize() >> AbsMax(bits=4) keeps grid", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "PROVED"
    chosen = ["Binarize()", "AbsMax(bits=4)", "AbsMax(bits=3)", "Magnitude(sparsity=1/2)", "MinMax(bits=4)"]
    done = run("keeps", *chosen, "--json")
    assert done.returncode == 0, done.stderr
    statuses = {(c["first"], c["second"], c["invariant"]): c["status"] for c in json.loads(done.stdout)["cells"]}
    assert statuses["Magnitude(sparsity=1/2)", "Binarize()", "mask"] == "REFUTED"
    assert statuses["Binarize()", "Magnitude(sparsity=1/2)", "grid"] == "PROVED"
    assert len(statuses) > 16  # enough for other processes
    done = run("prove", "Missing() keeps mask")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no_such_module" in done.stderr


def test_a_registered_class_without_a_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Technique.kernels, AbsMax, "compcomp.errors")
    with pytest.raises(InputError, match="a module with a function kernel"):
        AbsMax(4).kernel()


# A technique of the library: what CONTRIBUTING.md lists is all that it takes

ENCODING = '''"""Clipping: weights beyond a share of the largest of their row are moved to it [migacz2017]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

from compcomp.language.parameters import Exact, default, number, parametrized
from compcomp.language.technique import Declared, Fixtures, Technique
from compcomp.layers.state import LayerState
from compcomp.terms import Abs, If, Max, each


@parametrized
class Clip(Technique):
    """Move every weight to the nearest of [-a, a], a = at * max |w| over its row.

    at: a share of the largest weight, in (0, 1].
    """

    at: Exact = default(Fraction(1, 2))

    kernel_module: ClassVar[str] = "compcomp.kernels.clip"
    fixtures: ClassVar[Fixtures] = Fixtures(values={"at": (Fraction(1, 2), Fraction(1))})
    declared: ClassVar[Declared] = Declared(keeps=frozenset({"mask", "n:m", "shape", "factors"}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", number(self.at, "Clip.at", "a number in (0, 1]"))

    def encode(self, layer: LayerState) -> LayerState:
        most = layer.weight.copy()
        for row in most:
            row[:] = Max(map(Abs, row)) * self.at
        weight = each(lambda w, a: If(w > a, a, If(w < -a, -a, w)), layer.weight, most)
        return replace(layer, weight=weight, format=replace(layer.format, grid=None, rank=None))
'''

KERNEL = '''"""Clip on torch tensors."""

from dataclasses import dataclass, replace

from compcomp.encodings.clip import Clip
from compcomp.layers.state import LayerState


def kernel(technique: Clip, layer: LayerState) -> LayerState:
    most = layer.weight.abs().amax(dim=1, keepdim=True) * float(technique.at)
    form = replace(layer.format, grid=None, rank=None)
    return replace(layer, weight=layer.weight.clamp(-most, most), format=form)
'''

WORKS = """
import compcomp as cc
from compcomp.catalogue import catalogue, markdown
from compcomp.ordering.table import registered
from compcomp.techniques import Clip, Magnitude
from compcomp.testing import check_encoding

assert cc.__file__.startswith({folder!r})
assert Clip(at="3/4").at == 3 / 4 and cc.Technique.named("Clip") is Clip
assert check_encoding(Clip, max_examples=40).clear > 30
assert cc.prove(cc.parse_claim("Magnitude(sparsity=1/2) >> Clip() keeps mask")).proved
assert cc.prove(cc.parse_claim("Clip() dominates Clip(at=1)"), scope="1x2").refuted
(entry,) = catalogue([Clip])
assert entry.sources == ("migacz2017",) and entry.parameters[0].tried == ("1/2", "1")
assert "| [Clip](#clip) | Clipping" in markdown([entry])
assert Clip() in registered()
assert cc.optimize_order([Clip(), Magnitude("1/2")]).order
print("works")
"""


def test_a_new_technique_is_two_files_and_one_line(tmp_path: Path) -> None:
    """In a copy of the library; nothing else of it is changed."""
    for folder in ("compcomp", "encodings"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "encodings" / "clip.py").write_text(ENCODING)
    (tmp_path / "compcomp" / "kernels" / "clip.py").write_text(KERNEL)
    registry, last = tmp_path / "compcomp" / "techniques.py", "\n# isort: on"
    line = "from compcomp.encodings.clip import Clip as Clip\n"
    registry.write_text(registry.read_text().replace(last, line + last))
    done = subprocess.run(
        [sys.executable, "-c", WORKS.format(folder=str(tmp_path))],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "works\n"


def test_a_class_of_others_does_not_inherit_a_kernel_of_ours() -> None:
    @dataclass(frozen=True)
    class Mine(AbsMax):
        pass

    known = dict(Technique.kernels)
    try:
        Technique.register(Mine)
        assert Technique.kernels[Mine] == Mine.__module__
        assert Technique.kernels[AbsMax] == AbsMax.kernel_module == "compcomp.kernels.absmax"
    finally:
        Technique.kernels.clear()
        Technique.kernels.update(known)


# What compcomp.testing gives


def test_a_class_is_checked_in_all_its_conventions() -> None:
    coverage = check_encoding(AbsMax, max_examples=2, shapes=[(1, 4), (2, 2)])
    assert coverage.promises >= 4 * 3 * 3  # bits, groups, roundings that fit, some layers of each
    with pytest.raises(InputError, match="the fixtures of AbsMax"):
        check_encoding(AbsMax, shapes=[])


def test_a_class_with_one_wrong_convention_is_caught() -> None:
    def wrong(technique: Any, layer: Any) -> Any:
        rounded_to_even = replace(technique, rounding="half_even")
        return rounded_to_even.kernel()(rounded_to_even, layer)

    with pytest.raises(AssertionError, match="rounding='half_"):
        check_encoding(AbsMax, max_examples=40, kernel=wrong, minimise=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sequences(Magnitude, AbsMax, shape=(2, 4), min_size=2, max_size=4, bits=[3], group=[None, 3, 4]))
def test_sequences_are_drawn(sequence: Sequence) -> None:
    assert 2 <= len(sequence) <= 4
    assert sequence.fits((2, 4))
    assert all(type(t) in (Magnitude, AbsMax) and getattr(t, "bits", 3) == 3 for t in sequence)

"""The catalogue of techniques, and the page of it that is committed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.catalogue import KEY, bits_of, catalogue, markdown
from compcomp.cli import app
from compcomp.errors import InputError
from compcomp.language.technique import Fixtures, Technique
from compcomp.techniques import AbsMax, Magnitude, TruncatedSVD

DOCS = Path(__file__).parents[1] / "docs"


def test_the_committed_page_is_current() -> None:
    """Otherwise: compcomp catalogue --out docs/techniques.md"""
    assert (DOCS / "techniques.md").read_text(encoding="utf-8") == markdown(catalogue())


@pytest.mark.parametrize("kind", Technique.kernels, ids=lambda kind: kind.__name__)
def test_every_technique_says_what_it_is(kind: type[Technique]) -> None:
    (entry,) = catalogue([kind])
    assert entry.title and entry.about and entry.sources
    assert [p.name for p in entry.parameters] == [f.name for f in fields(kind) if f.init]
    silent = [p.name for p in entry.parameters if not re.search(rf"\b{p.name}\b", kind.__doc__ or "")]
    assert not silent, f"parameters of {kind.__name__} that are not in its docstring"
    known = set(re.findall(r"^\| (\w+) \|", (DOCS / "references.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(entry.sources) <= known, "cited and not in docs/references.md"


@dataclass(frozen=True)
class Odd(Magnitude):
    """Do this and
    that [han2015].

    sparsity: the share | of all
        that goes [sun2024].
    mode: a text: "a"
    or "b". sizes, per: numbers (all). ties: which go.
    After the parameters.

    The end [not a key] [mishra2021, sun2024].
    """

    mode: str = "a"
    sizes: tuple[int, ...] = field(default_factory=lambda: (1, 2))

    fixtures = Fixtures(values={"mode": ("a", "b")})


def test_docstrings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Technique.kernels, Odd, Technique.kernels[Magnitude])
    (entry,) = catalogue([Odd])
    assert entry.about == (
        "Do this and that [han2015].",
        "After the parameters.",
        "The end [not a key] [mishra2021, sun2024].",
    )
    meanings = {p.name: (p.meaning, p.default, p.tried) for p in entry.parameters}
    assert meanings["sparsity"][:2] == ("the share | of all that goes [sun2024].", "")
    assert meanings["mode"] == ('a text: "a" or "b".', "'a'", ("'a'", "'b'"))
    assert meanings["sizes"][:2] == ("numbers (all).", "(1, 2)")
    assert meanings["per"][0] == "numbers (all)." and meanings["ties"][0] == "which go."
    assert entry.sources == ("han2015", "mishra2021", "sun2024")
    page = markdown([entry])
    assert r"the share \| of all that goes [sun2024](references.md)." in page
    assert "[not a key] [mishra2021](references.md), [sun2024](references.md)." in page


def test_what_is_said_of_behaviour() -> None:
    (entry,) = catalogue([TruncatedSVD])
    plain, residual = entry.behaviours[:2]
    assert plain.sets_up == ("rank",) and residual.sets_up == ()
    assert residual.never_increases == ("output_l2", "weight_l2")
    assert any("leaves the effective weight" in text for text in residual.contracts)
    assert not any("leaves the effective weight" in text for text in plain.contracts)


def test_bits() -> None:
    assert bits_of(AbsMax(4, group=32)) == 4 + 16 / 32
    assert bits_of(Magnitude("1/2")) == 8 + 1
    assert bits_of(TruncatedSVD(2), (8, 8)) == 16 * 2 * 16 / 64
    assert bits_of(AbsMax(3, group=96)) == 3 + 16 / 96  # on a layer of 288 columns


def test_the_command(tmp_path: Path) -> None:
    page = tmp_path / "techniques.md"
    done = CliRunner().invoke(app, ["catalogue", "--out", str(page), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)["techniques"]
    assert [entry["name"] for entry in data] == [kind.__name__ for kind in Technique.kernels]
    assert page.read_text(encoding="utf-8") == markdown(catalogue())
    refused = CliRunner().invoke(app, ["catalogue", "--out", str(tmp_path / "no" / "such" / "x.md")])
    assert isinstance(refused.exception, InputError)


def test_citation_keys() -> None:
    assert KEY.findall("a [sun2024], [hubara2021, frantar2022] [0, 1) [1] [out] [a2b]") == [
        "sun2024",
        "hubara2021, frantar2022",
    ]

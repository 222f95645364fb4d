"""Code of users passes `mypy --strict`: that of README and docs, and parameters however they may be given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks import ROOT, documentation, program

USER = """
import typing
from decimal import Decimal
from fractions import Fraction

import numpy as np

import compcomp as cc
from compcomp.language.parameters import Unknown
from compcomp.techniques import AWQ, OBS, AbsMax, Magnitude, SmoothQuant, SparseGPT

given = [
    Magnitude(sparsity="1/2"),
    Magnitude(sparsity=0.5),
    Magnitude(sparsity=0),
    Magnitude(Fraction(1, 2)),
    Magnitude(Decimal("0.5")),
    Magnitude(np.float32(0.5)),
    Magnitude(sparsity=cc.ANY),
    Magnitude(sparsity=typing.Any),
    Magnitude(sparsity=cc.Any),
    AbsMax(bits=4),
    AbsMax(bits=typing.Any),
    OBS("1/2", damping=0.01),
    SparseGPT("1/2", bits=None),
    SmoothQuant(alpha=0.5),
    AWQ(alphas=("1/2", 0, 1)),
    AWQ(alphas=[0, 0.5]),
]
share: Fraction | Unknown = Magnitude("1/2").sparsity
damping: Fraction = OBS("1/2", damping=0.01).damping
bits: int | Unknown = AbsMax(bits=4).bits
alphas: tuple[Fraction, ...] = AWQ().alphas
claim: cc.Claim = cc.keeps(Magnitude(sparsity=0.5) >> AbsMax(bits=4), "mask")
"""

WRONG = {
    "Magnitude()": "call-arg",
    "Magnitude(sparsity=None)": "arg-type",
    "Magnitude(sparsity=[1])": "arg-type",
    "AbsMax(bits='4')": "arg-type",
    "OBS('1/2', damping=cc.ANY)": "arg-type",
    "AWQ(alphas='1/2')": "arg-type",
    "Magnitude('1/2').sparsity + 1": "operator",
    "setattr_ = Magnitude('1/2'); setattr_.sparsity = Fraction(1, 2)": "misc",
}


def checked(folder: Path, files: dict[str, str]) -> dict[str, list[str]]:
    """The errors of mypy in each of these files, by name; with the settings (strict) and the cache of `make types`."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *(str(folder / f"{name}.py") for name in files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return {name: [line for line in lines if f"{name}.py:" in line and ": error:" in line] for name in files}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of all that is checked here, in one run."""
    pages = {re.sub(r"\W", "_", str(path.relative_to(ROOT))).lower(): program(path) for path in documentation()}
    found = {f"page_{name}": code for name, code in pages.items() if code.strip()}
    assert len(found) > 4
    files = {"user": USER, **found}
    files["own_technique"] = (ROOT / "examples" / "own_technique.py").read_text(encoding="utf-8")  # pages import it
    start = "from fractions import Fraction\nimport compcomp as cc\nfrom compcomp.techniques import *\n"
    files |= {f"wrong_{k}": start + code + "\n" for k, code in enumerate(WRONG)}
    return checked(tmp_path_factory.mktemp("project"), files)


@pytest.mark.slow
def test_code_of_users_is_well_typed(errors: dict[str, list[str]]) -> None:
    assert not [line for name, lines in errors.items() if not name.startswith("wrong_") for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(WRONG)), ids=list(WRONG))
def test_what_is_wrong_is_an_error(number: int, errors: dict[str, list[str]]) -> None:
    assert len(errors[f"wrong_{number}"]) == 1
    assert errors[f"wrong_{number}"][0].endswith(f"[{[*WRONG.values()][number]}]")

"""Text means the same in a fresh process: after `import compcomp as cc` alone, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

A_DOMINATES_B = "Magnitude(sparsity=1/2) >> AbsMax(bits=4) dominates AbsMax(bits=4) >> Magnitude(sparsity=1/2)"

READ = {
    "parse_claim": ("cc.parse_claim('Magnitude(sparsity=1/2) keeps mask')", "Magnitude(sparsity=1/2) keeps mask"),
    "parse_claim of two": (f"cc.parse_claim({A_DOMINATES_B!r})", A_DOMINATES_B),
    "parse_claim given": (
        "cc.parse_claim('AbsMax(bits=4) equals AbsMax(bits=4) given no_ties').given",
        "(NoTies(),)",
    ),
    "parse_sequence": (
        "cc.parse_sequence('Magnitude(sparsity=1/2) >> AbsMax(bits=4)')",
        "Magnitude(sparsity=1/2) >> AbsMax(bits=4)",
    ),
    "Technique.named": ("cc.Technique.named('Wanda').__module__", "compcomp.encodings.wanda"),
    "Technique.known": ("len(cc.Technique.known()) > 40", "True"),
    "keeps": ("cc.keeps(cc.parse_sequence('AbsMax(bits=4)'), 'grid')", "AbsMax(bits=4) keeps grid"),
    "what the keeps table is about": (
        "len(importlib.import_module('compcomp.ordering.table').registered()) > 40",
        "True",
    ),
    "an error that lists all names": (
        "'Wanda' in str(raised(lambda: cc.parse_claim('Magnitud(sparsity=1/2) keeps mask')))",
        "True",
    ),
}


def fresh(*arguments: str, folder: Path) -> str:
    """Output of a fresh Python in ``folder``, with the checkout on its path."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("code", "shown"), READ.values(), ids=READ)
def test_text_is_read_after_importing_compcomp_alone(code: str, shown: str, tmp_path: Path) -> None:
    script = f"""
import compcomp as cc
import importlib, sys
def raised(call):
    try:
        call()
    except cc.InputError as error:
        return error
print({code})
print(*sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    found = fresh("-c", script, folder=tmp_path).splitlines()
    assert shown in found[0]
    assert len(found) == 1, f"loaded {found[1]}"


def test_a_recipe_is_read_after_importing_compcomp_alone(tmp_path: Path) -> None:
    """Its module loads torch, as it loads models too."""
    read = "recipe_of({'techniques': ['Wanda(sparsity=1/2)']}).techniques[0]"
    script = f"import compcomp; from compcomp.recipe import recipe_of; print({read})"
    assert fresh("-c", script, folder=tmp_path) == "Wanda(sparsity=1/2)"


def test_a_claim_in_text_is_proved_saved_and_checked_by_fresh_processes(tmp_path: Path) -> None:
    script = (
        "import compcomp as cc; v = cc.prove(cc.parse_claim('Magnitude(sparsity=1/2) keeps mask')); v.save('proof')"
    )
    fresh("-c", script, folder=tmp_path)
    checked = "import compcomp; from compcomp.checking.directory import check_directory as c; print(c('proof').outcome)"
    assert fresh("-c", checked, folder=tmp_path) == "valid"


def test_the_shell_reads_text_too(tmp_path: Path) -> None:
    text = fresh("-m", "compcomp", "prove", "Magnitude(sparsity=1/2) keeps mask", "--json", folder=tmp_path)
    assert '"PROVED"' in text

"""What is written never goes among what is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.save import check_apart
from compcomp.recipe import check_out, load_recipe
from compcomp.techniques import AbsMax, Magnitude
from tests.models.fakes import qwen2

RECIPE = """techniques: ['Magnitude(sparsity=1/2)', 'AbsMax(bits=4)']
model: models/tiny
calibration: {text: data/text.txt}
evaluate: {text: held/out.txt}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("models/tiny/inner", "data/text.txt.d", "held", "recipes", "apart"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/text.txt").write_text("words")
    (tmp_path / "held/out.txt").write_text("words")
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "link").symlink_to(tmp_path / "models/tiny", target_is_directory=True)
    (tmp_path / "up").symlink_to(tmp_path / "models", target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize(
    "out",
    [
        *("models/tiny", "models/tiny/", "models/tiny/new/folder", "models/tiny/inner", "models", ".", "..", "/"),
        *("link", "link/new", "up", "up/tiny", "models/../models/tiny", "apart/../models/tiny/x", "data", "held"),
        *("./models/./tiny", "apart/../link"),
    ],
)
def test_an_output_folder_among_inputs_is_refused(out: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"^--out: ") as caught:
        check_out(folder / out, load_recipe(folder / "r.yaml"), folder / "r.yaml")
    assert "\n" not in str(caught.value) and "apart from what is read" in str(caught.value)


@pytest.mark.parametrize(
    "out", ["apart", "new", "models/other", "models/tiny2", "data/text.txt.d", "data/new", "recipes/x"]
)
def test_an_output_folder_apart_is_taken(out: str, folder: Path) -> None:
    check_out(folder / out, load_recipe(folder / "r.yaml"), folder / "r.yaml")


def test_relative_paths_are_those_of_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "models")
    for out in ("tiny", ".", "tiny/x", "../link", "../models"):
        with pytest.raises(InputError):
            check_out(Path(out), load_recipe(Path("../r.yaml")), Path("../r.yaml"))
    check_out(Path("out"), load_recipe(Path("../r.yaml")), Path("../r.yaml"))


def test_the_case_of_letters_is_that_of_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two spellings lead to one folder they are one: as on a file system that does not tell letters apart."""
    same = os.path.samefile

    def samefile(one: Any, other: Any) -> bool:
        return same(Path(str(one).lower()), Path(str(other).lower()))

    lower = Path(str(folder).lower())
    if not lower.exists():
        lower.parent.mkdir(parents=True, exist_ok=True)
        lower.symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(os.path, "samefile", samefile)
    with pytest.raises(InputError):
        check_apart(folder / "MODELS/Tiny", {"the model": folder / "models/tiny"}, "save")


def test_a_plan_is_not_saved_over_the_model_that_was_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    qwen2().save_pretrained(tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plan = cc.optimize_order([Magnitude("1/2"), AbsMax(4)], model=model, loss="weight_l2")
    for holder in (model, torch.nn.DataParallel(model), torch.nn.Sequential(model)):
        plan = cc.optimize_order([Magnitude("1/2"), AbsMax(4)], model=holder, loss="weight_l2")
        for out in (model.name_or_path, tmp_path / "model/new", tmp_path):
            with pytest.raises(InputError, match="the directory that the model was loaded from"):
                plan.save(out)
    assert sorted(os.listdir(tmp_path)) == ["model"] and not (tmp_path / "model/plan.json").exists()
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    plan.save(tmp_path / "out")
    plan.save(tmp_path / "out")


def test_from_a_shell_before_any_work(folder: Path) -> None:
    run = [sys.executable, "-m", "compcomp", "optimize", str(folder / "r.yaml"), "--out", str(folder / "link")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("compcomp: --out: ") and done.stderr.count("\n") == 1

"""Orders as recipes of other tools: read again they are the same order, or they are refused."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import compcomp as cc
from compcomp.auditing import llm_compressor_recipe, olive_workflow
from compcomp.auditing.audit import read
from compcomp.auditing.writing import TOOLS, recipe_text
from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique
from compcomp.techniques import GPTQ, AbsMax, AbsMaxInputs, FP8Inputs, Magnitude, MinMax, SmoothQuant, SparseGPT, Wanda
from compcomp.testing.strategies import conventions

ENDINGS = {"llm-compressor": "yaml", "olive": "json"}
KINDS = {"llm-compressor": llm_compressor_recipe._WRITERS, "olive": olive_workflow._WRITERS}
ALIKE = {"grid": ("narrow", "full_range"), "group": (None, 32, 64), "rounding": ("half_even", "half_up")}


def written(order: Technique | Sequence, tool: str, **choices: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return recipe_text(order if isinstance(order, Sequence) else Sequence((order,)), tool, **choices)


def read_again(text: str, tool: str, folder: Path) -> tuple[Technique, ...]:
    path = folder / f"recipe.{ENDINGS[tool]}"
    path.write_text(text)
    (recipe,), _ = read(path)
    return tuple(technique for step in recipe.steps for technique in step.techniques)


@pytest.mark.parametrize("tool", TOOLS)
def test_read_again_it_is_the_order_or_it_is_refused(tool: str, tmp_path: Path) -> None:
    """Over the conventions of every technique that the tool has, alone and behind a pruning."""
    outcomes = []
    for kind in KINDS[tool]:
        values = {name: ALIKE[name] for name in ALIKE if name in kind.__dataclass_fields__}
        for technique in conventions(kind, **values):
            for order in {Sequence((technique,)), Wanda("1/2", pattern="2:4") >> technique}:
                try:
                    text = written(order, tool)
                except InputError:
                    outcomes.append((kind, False))
                    continue
                assert read_again(text, tool, tmp_path) == tuple(order)
                outcomes.append((kind, True))
    assert {kind for kind, done in outcomes if done} == set(KINDS[tool])
    assert len({kind for kind, done in outcomes if not done}) > len(KINDS[tool]) / 2


ORDERS: list[tuple[Sequence | Technique, str]] = [
    (SparseGPT("1/2", pattern="2:4") >> GPTQ(4, 128, grid="full_range"), "llm-compressor"),
    (SmoothQuant("4/5") >> GPTQ(8, grid="full_range") >> AbsMaxInputs(8), "llm-compressor"),
    (Wanda("1/2", pattern="2:4") >> MinMax(4, 64) >> FP8Inputs(), "llm-compressor"),
    (SparseGPT("1/2", pattern="2:4") >> GPTQ(4, 128, "1/20", "left_to_right", False, grid="full_range"), "olive"),
    (SparseGPT("1/2") >> AbsMax(4, 32, grid="full_range"), "olive"),
]


@pytest.mark.parametrize(("order", "tool"), ORDERS, ids=str)
def test_recipes_that_tools_can_run(order: Sequence, tool: str, tmp_path: Path) -> None:
    assert read_again(written(order, tool), tool, tmp_path) == tuple(order)


@pytest.mark.parametrize(("order", "tool"), [each for each in ORDERS if each[1] == "llm-compressor"], ids=str)
def test_the_tools_own_parser_finds_these_steps(order: Sequence, tool: str) -> None:
    recipes = pytest.importorskip("llmcompressor.recipe")
    recipe = recipes.Recipe.create_instance(written(order, tool))
    found = [type(modifier).__name__ for modifier in recipe.modifiers]
    wanted = [next(iter(group)) for group in yaml.safe_load(written(order, tool))["compress_stage"].values()]
    assert found == wanted


REFUSED: list[tuple[Sequence | Technique, str, str]] = [
    (SparseGPT("1/2") >> GPTQ(4, 64), "llm-compressor", "step 2, .*allowed: grid='full_range'"),
    (GPTQ(4, 64, grid="full_range", mask="kept"), "llm-compressor", "mask='ignored'"),
    (AbsMax(4, grid="full_range", rounding="half_up"), "llm-compressor", "rounding='half_even'"),
    (AbsMax(4, 64, grid="full_range") >> SparseGPT("1/2"), "llm-compressor", "the quantizer last"),
    (AbsMax(4, 64, grid="full_range") >> GPTQ(4, 64, grid="full_range"), "llm-compressor", "the quantizer last"),
    (AbsMaxInputs(8) >> AbsMax(4, 64, grid="full_range"), "llm-compressor", "behind one of weights"),
    (Magnitude("1/2"), "llm-compressor", "a technique that llm-compressor has"),
    (Magnitude("1/2"), "olive", "a technique that Olive has"),
    (GPTQ(4, 64, grid="full_range"), "olive", "refuses desc_act"),
    (SparseGPT("1/2", mask="kept"), "olive", "mask='ignored'"),
    (GPTQ(5, None, grid="full_range"), "olive", "allowed"),
]


@pytest.mark.parametrize(("order", "tool", "message"), REFUSED, ids=str)
def test_what_a_tool_does_otherwise_is_refused(order: Sequence | Technique, tool: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        written(order, tool)
    assert "\n" not in str(raised.value)


def test_a_tool_that_is_not_known() -> None:
    with pytest.raises(InputError, match="'llm-compressor' or 'olive'"):
        written(Wanda("1/2"), "vllm")


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("lm_head", ["lm_head", "model.lm_head"], ["lm_heads", "model.lm_head_2"]),
        ("*.down_proj", ["a.down_proj"], ["down_proj2"]),
        ("re:.*mlp", ["a.mlp.up"], ["a.attn"]),
        ("layers.0", ["model.layers.0.q", "layers.0"], ["layers.01", "model.layers.10"]),
    ],
)
def test_patterns_of_layers(pattern: str, names: list[str], others: list[str]) -> None:
    import re

    said = llm_compressor_recipe._pattern(pattern)
    assert said.startswith("re:")
    for name, matches in itertools.chain(((n, True) for n in names), ((n, False) for n in others)):
        assert (re.match(said.removeprefix("re:"), name) is not None) == matches
    assert llm_compressor_recipe._pattern("Linear") == "Linear"


def test_a_plan_writes_its_order(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    techniques = [Wanda("1/2", pattern="2:4"), AbsMax(4, 8, grid="full_range")]
    plan = cc.optimize_order(
        techniques, model=model, calibration=[torch.randn(16, 8)], loss="weight_l2", device="cpu", ignore=("2",)
    )
    with pytest.warns(UserWarning, match="rounds scales"):
        text = plan.export_recipe("llm-compressor", tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == text
    assert read_again(text, "llm-compressor", tmp_path) == tuple(plan.order)
    assert "re:(.*\\.)?2(\\..*)?$" in text
    with pytest.raises(InputError, match="all linear layers but lm_head"):
        plan.export_recipe("olive")
    with pytest.raises(InputError, match="a file to write"), pytest.warns(UserWarning):
        plan.export_recipe("llm-compressor", tmp_path / "no" / "where")


def test_a_plan_without_a_model(tmp_path: Path) -> None:
    plan = cc.optimize_order([SparseGPT("1/2", pattern="2:4"), AbsMax(8, 32, grid="full_range")], loss="weight_l2")
    with pytest.warns(UserWarning, match="clipped"):
        data = json.loads(plan.export_recipe("olive"))
    assert data["input_model"]["model_path"] == "model"
    assert [step["type"] for step in data["passes"].values()] == [
        "SparseGPT" if isinstance(step, SparseGPT) else "Rtn" for step in plan.order
    ]

"""Recipes of seven tools: which steps there are, which promise is broken, and what keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import compcomp as cc
from compcomp.auditing.asking import small
from compcomp.auditing.audit import Audit, audit, read
from compcomp.cli import app
from compcomp.errors import InputError
from compcomp.language.text import parse_sequence
from compcomp.layers.state import LayerState

PRUNE = "SparseGPTModifier: {sparsity: 0.5, mask_structure: '2:4', targets: [Linear], ignore: [lm_head]}"
GPTQ = "GPTQModifier: {targets: [Linear], scheme: W4A16, ignore: [lm_head]}"


def stages(*modifiers: str, **more: str) -> str:
    """A recipe of llm-compressor with a stage for each modifier; ``more`` has lines for stages, by their number."""
    text = ""
    for number, modifier in enumerate(modifiers):
        text += f"part{number}_stage:\n{more.get(f's{number}', '')}  some_modifiers:\n    {modifier}\n"
    return text


RECIPES: dict[str, tuple[str, int, list[str]]] = {
    "2:4 then GPTQ": (stages(PRUNE, GPTQ), 1, ["n:m"]),
    "2:4 then nearest": (stages(PRUNE, GPTQ.replace("GPTQM", "QuantizationM")), 0, []),
    "Wanda then GPTQ in one group": (
        "a_stage:\n  some_modifiers:\n    WandaPruningModifier: {sparsity: 0.5, mask_structure: '2:4'}\n"
        "    GPTQModifier: {scheme: w4a16}\n",
        1,
        ["n:m"],
    ),
    "smooth then W8A8": (stages("SmoothQuantModifier: {}", "GPTQModifier: {scheme: W8A8}"), 0, []),
    "asymmetric nearest": (stages(PRUNE, "QuantizationModifier: {scheme: W4A16_ASYM}"), 0, []),
    "train, then GPTQ": (
        stages(PRUNE, "ConstantPruningModifier: {targets: ['re:.*weight']}", GPTQ, s1="  run_type: train\n"),
        1,
        ["n:m"],
    ),
    "sparser": (
        stages("SparseGPTModifier: {sparsity: 0.5}", "SparseGPTModifier: {sparsity: 0.7}"),
        1,
        ["mask"],
    ),
    "sparser, kept": (
        stages(
            "SparseGPTModifier: {sparsity: 0.5}", "SparseGPTModifier: {sparsity: 0.7, preserve_sparsity_mask: true}"
        ),
        0,
        [],
    ),
    "coremltools": (
        "coremltools:\n- prune_weights: {n_m_ratio: [2, 4]}\n- linear_quantize_weights: {joint_compression: true}\n",
        0,
        [],
    ),
    "compcomp": ("techniques: [\"SparseGPT(sparsity=1/2, pattern='2:4')\", 'GPTQ(bits=4)']\n", 1, ["n:m"]),
    "compcomp, kept": (
        "techniques: [\"SparseGPT(sparsity=1/2, pattern='2:4')\", \"GPTQ(bits=4, mask='kept')\"]\n",
        0,
        [],
    ),
}
OLIVE = {"prune": {"type": "SparseGPT", "sparsity": [2, 4]}, "round": {"type": "Gptq", "bits": 4, "sym": False}}
MODELOPT = [
    ["sparsegpt", {"pattern": "2:4 sparsity"}],
    ["quantize", {"quant_cfg": {"*weight_quantizer": {"num_bits": 8, "axis": 0}}, "algorithm": "max"}],
]
DATA: dict[str, tuple[Any, int, list[str]]] = {
    "Olive": ({"passes": OLIVE}, 1, ["n:m"]),
    "Olive, older": (
        {
            "passes": {
                "p": {"type": "SparseGPT", "config": {"sparsity": [2, 4]}},
                "q": {"type": "GptqQuantizer", "config": {"bits": 4}},
            },
            "pass_flows": [["p", "q"]],
        },
        1,
        ["n:m"],
    ),
    "Olive, nearest": ({"passes": {**OLIVE, "round": {"type": "Rtn"}}}, 0, []),
    "ModelOpt": (MODELOPT, 0, []),
    "AIMET": ({"aimet": [{"channel_pruning": {}}, {"quantsim": {}}]}, 0, []),
}


def audited(folder: Path, content: Any, **more: Any) -> Audit:
    path = folder / ("recipe.yaml" if isinstance(content, str) else "recipe.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return audit(path, **more)


@pytest.mark.parametrize("name", [*RECIPES, *DATA])
def test_promises_are_decided(name: str, tmp_path: Path) -> None:
    content, status, broken = {**RECIPES, **DATA}[name]
    found = audited(tmp_path, content)
    assert found.exit_status == status, str(found)
    refuted = {promise.invariant for promise in found.promises("REFUTED")}
    assert set(broken) <= refuted
    assert bool(broken) == bool(refuted)
    if broken:
        changes = [change for order in found.orders for change in order.changes]
        assert changes, str(found)
        for change in changes:  # proved again, at the parameters that are proposed
            for invariant in change.promise:
                assert cc.prove(cc.keeps(parse_sequence(change.sequence), invariant)).proved


def test_a_counterexample_breaks_the_pattern(tmp_path: Path) -> None:
    """Count the weights of each group of four by hand, on the layer that the audit shows."""
    promise = next(
        p for p in audited(tmp_path, RECIPES["2:4 then GPTQ"][0]).promises("REFUTED") if p.invariant == "n:m"
    )
    assert promise.answer is not None
    witness = promise.answer.verdict.witness
    assert witness is not None
    end = np.array(witness.traces[0].steps[-1][1], dtype=object)
    after_pruning = np.array(witness.traces[0].steps[1][1], dtype=object)
    groups = [w.reshape(len(w), -1, 4) for w in (after_pruning, end)]
    most = [max(sum(x != 0 for x in group) for row in g for group in row) for g in groups]
    assert most[0] <= 2 < most[1]
    assert promise.by == 1
    assert "own parameters" in promise.answer.note


def test_the_version_decides(tmp_path: Path) -> None:
    """GPTQ of llm-compressor kept zeros until June 2026."""
    text = RECIPES["2:4 then GPTQ"][0]
    old, new = audited(tmp_path, text, tool_version="0.8"), audited(tmp_path, text, tool_version="0.14")
    assert (old.exit_status, new.exit_status) == (0, 1)
    assert "5 %" in str(old)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"a_stage:\n  modifiers:\n    {PRUNE}\n", "has to end in '_modifiers'"),
        (f"some_modifiers:\n  {PRUNE}\n", "no stage"),
        (stages(PRUNE, GPTQ.replace("ignore", "preserve_sparsity_mask: true, ignore")), "belongs to SparseGPTModifier"),
        (stages("GPTQModifier: {scheme: W4A17}"), "no preset scheme"),
        (stages("GPTQModifier: {scheme: W4A16, actorder: group}"), "was removed"),
        (stages("AWQModifier: {scheme: W4A16}"), "QuantizationModifier that follows"),
        (stages("AWQModifier: {}"), "no quantizer after it"),
        (stages("SmoothQuantModifier:"), "no mapping of parameters"),
        (stages("SparseGPTModifier: {mask_structure: '2:4'}"), "without sparsity"),
        (stages("PruneEverythingModifier: {}"), "is no modifier"),
        ({"passes": OLIVE, "pass_flows": [["prune", "nothing"]]}, "which passes does not have"),
        ([["sparsegpt", {}], ["fastnas", {}]], "refuses 'fastnas' right after 'sparsegpt'"),
        ([["fastnas", {}], ["sparsegpt", {}]], "'sparse_gpt', which is no mode"),
        ([["quantize", {}], ["sparse_gpt", {}]], "is no mode"),
    ],
)
def test_what_a_tool_refuses_or_ignores_is_said_in_one_line(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / ("recipe.yaml" if isinstance(content, str) else "recipe.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    problems = [p for recipe in read(path)[0] for p in recipe.problems if p.breaks]
    assert any(said in p.text for p in problems), problems
    assert all("\n" not in p.text for p in problems)


def test_a_rule_that_names_no_mode_lets_through(tmp_path: Path) -> None:
    path = tmp_path / "modes.json"
    path.write_text(json.dumps([["quantize", {"quant_cfg": "INT8_DEFAULT_CFG"}], ["sparsegpt", {}]]), encoding="utf-8")
    recipe = read(path)[0][0]
    assert not recipe.problems
    assert any("'sparsity', which is no mode" in note for note in recipe.notes)


def test_a_config_names_no_steps(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "strategy": "group", "group_size": 128}
    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "sparsity_config": {"sparsity_structure": "2:4"},
    }
    found = audited(tmp_path, {"quantization_config": config})
    assert (found.status, found.exit_status) == ("CONDITIONAL", 3)


def test_an_unknown_step_leaves_promises_undecided(tmp_path: Path) -> None:
    found = audited(tmp_path, {"passes": {"p": OLIVE["prune"], "q": {"type": "SomePass"}}})
    assert found.exit_status == 3
    assert "no technique here" in found.verdict


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: &y [*x,*x,*x,*x,*x,*x,*x,*x]\n", "no recipe"),
        (
            "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" if n else "k0: &k0 [1]\n" for n in range(9)),
            "large",
        ),
        ("a: &a [*a]\n", "contains itself"),
        ("a_stage: !!python/object/apply:os.system ['echo']\n", "malformed YAML"),
        ("a_stage: {}\na_stage: {}\n", "twice"),
        ("", "empty"),
        ("- 1\n- 2\n", "no recipe"),
        ("x: [", "malformed YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_duplicate_keys_of_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"passes": {}, "passes": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="twice"):
        read(path)


def test_small_parameters_keep_the_kind_of_a_technique() -> None:
    first, second = parse_sequence("SparseGPT(sparsity=1/2) >> GPTQ(bits=4, group=128, mask='kept')")
    assert str(small(first)) == "SparseGPT(sparsity=1/2, block=2)"
    assert str(small(second)) == "GPTQ(bits=4, mask='kept')"
    weight = np.array([[1, 2, 3, 4]], dtype=object)
    assert small(first).encode(LayerState.dense(weight, np.eye(4, dtype=int).astype(object))).format.mask is not None


def test_from_a_shell(tmp_path: Path) -> None:
    path, html = tmp_path / "modes.json", tmp_path / "page.html"
    path.write_text(json.dumps(MODELOPT), encoding="utf-8")
    result = CliRunner().invoke(app, ["audit", str(path), "--json", "--html", str(html)])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["status"]) == (0, "KEPT")
    assert [step["name"] for step in found["orders"][0]["steps"]] == ["sparsegpt", "quantize"]
    assert "<h1>Audit of" in html.read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["audit", str(tmp_path / "none.yaml")]).exit_code != 0


def test_the_view_shows_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES["2:4 then GPTQ"][0], encoding="utf-8")
    result = CliRunner().invoke(app, ["audit", str(path)])
    assert result.exit_code == 1
    assert "Counterexample: a layer of" in result.output
    assert "BROKEN: " in result.output


@pytest.mark.parametrize("own", [True, False])
def test_a_proof_about_techniques_says_that_the_tool_differs(own: bool, tmp_path: Path) -> None:
    """Pruning first is never worse with exact steps. llm-compressor rounds them, and then it may be worse."""
    first, second = "Magnitude(sparsity=1/2, pattern='2:4')", "AbsMax(bits=4, group=128, grid='full_range')"
    prune = "MagnitudePruningModifier: {final_sparsity: 0.5, mask_structure: '2:4'}"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f'techniques: ["{first}", "{second}"]\n' if own else stages(prune, "QuantizationModifier: {scheme: W4A16}")
    )
    (order,) = audit(path).orders
    (text,) = (relation.text for relation in order.relations if relation.kind == "no worse")
    assert text.endswith("never worse under weight_l2" + ("" if own else " (but for what differs)"))

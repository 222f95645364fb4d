"""``targets`` and ``ignore``: what is meant is what is taken, and what means nothing is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
import compcomp.techniques
from compcomp.errors import InputError
from compcomp.models.layers import find_layers
from compcomp.recipe import load_recipe
from compcomp.techniques import Magnitude
from tests.models.fakes import gpt2


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=12, num_attention_heads=2)
    ).eval()


def names(model: Any, **given: Any) -> set[str]:
    return {layer.name for layer in find_layers(model, **given)}


def every(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


# what each pattern means, said in Python
MEANT: dict[str, Any] = {
    "model.layers.0": lambda n: n.startswith("model.layers.0."),
    "layers.1": lambda n: n.startswith("model.layers.1."),  # and not the layers 10 and 11
    "model.layers.1?": lambda n: n.startswith(("model.layers.10.", "model.layers.11.")),
    "self_attn": lambda n: ".self_attn." in n,
    "mlp.up_proj": lambda n: n.endswith("mlp.up_proj"),
    "q_proj": lambda n: n.endswith(".q_proj"),
    "*_proj": lambda n: n.endswith("_proj"),
    "model": lambda n: n.startswith("model."),
    "LlamaMLP": lambda n: ".mlp." in n,
    "Linear": lambda n: True,
    "lm_head": lambda n: n == "lm_head",
    r"re:.*down_proj$": lambda n: n.endswith("down_proj"),
    r"re:model\.layers\.[0-3]\.": lambda n: n.startswith(tuple(f"model.layers.{k}." for k in range(4))),
    r"re:^(?!.*(mlp|lm_head)).*$": lambda n: "mlp" not in n and n != "lm_head",
    r"re:lm_head": lambda n: n == "lm_head",
}


@pytest.mark.parametrize("pattern", MEANT)
def test_a_pattern_means_the_same_as_a_target_and_to_be_ignored(llama: Any, pattern: str) -> None:
    expected = {name for name in every(llama) if MEANT[pattern](name)}
    assert names(llama, targets=pattern, ignore=()) == expected
    left = every(llama) - expected
    if left:
        assert names(llama, ignore=[pattern]) == left
    else:
        with pytest.raises(InputError, match="no Linear layer"):
            find_layers(llama, ignore=[pattern])


@pytest.mark.parametrize("pattern", [p for p in MEANT if p.startswith("re:")])
def test_regular_expressions_are_those_of_compressed_tensors(llama: Any, pattern: str) -> None:
    match = pytest.importorskip("compressed_tensors.utils.match")
    linear = {n for n, m in match.match_named_modules(llama, [pattern]) if isinstance(m, nn.Linear)}
    assert names(llama, targets=[pattern], ignore=None) == linear


@pytest.mark.parametrize(
    "pattern", ["lmhead", "model.layers.12", "layers.q_proj", "self_att", "re:q_proj", "re:.*gate$", "Conv1D", "", "0"]
)
def test_what_means_nothing_is_an_error(llama: Any, pattern: str) -> None:
    for where in ("targets", "ignore"):
        with pytest.raises(InputError, match=f"^{where}: .*which matches no (Linear layer|module)"):
            find_layers(llama, **{where: ["lm_head", pattern]})


def test_what_may_match_nothing() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    assert names(model) == {"1"}  # the default, ("lm_head",)
    assert names(model, ignore=["lm_head"]) == {"1"}
    assert names(model, ignore=["Embedding"]) == {"1"}  # it is there, and left alone
    assert names(gpt2(), targets="Conv1D", ignore="re:.*mlp.*") == {
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.c_proj",
    }


@pytest.mark.parametrize(
    "given", [5, nn.Linear, [None], [["q_proj"]], b"q_proj", {"q_proj": 1}, [b"q_proj"], 1.5, True, object()]
)
@pytest.mark.parametrize("where", ["targets", "ignore"])
def test_other_types_are_refused_in_one_line(given: Any, where: str) -> None:
    arguments: Any = {where: given}
    with pytest.raises(InputError, match=f"^{where}: .*; allowed: a pattern or a list of patterns"):
        cc.apply(Magnitude(sparsity="1/2"), nn.Sequential(nn.Linear(8, 8)), **arguments)


@pytest.mark.parametrize("where", ["targets", "ignore"])
def test_an_expression_that_is_none(where: str, tmp_path: Path) -> None:
    arguments: Any = {where: ["re:("]}
    with pytest.raises(InputError, match=rf"^{where}: 're:\(' \(.*\); allowed: a regular expression after 're:'"):
        cc.apply(Magnitude(sparsity="1/2"), nn.Sequential(nn.Linear(8, 8)), **arguments)
    (tmp_path / "r.yaml").write_text(f"techniques: ['AbsMax(bits=4)']\n{where}: ['re:(']\n")
    with pytest.raises(InputError, match=rf"r\.yaml: {where}: 're:\('"):
        load_recipe(tmp_path / "r.yaml")


def test_none_ignores_nothing_also_in_a_recipe(llama: Any, tmp_path: Path) -> None:
    assert "lm_head" in names(llama, ignore=None)
    (tmp_path / "r.yaml").write_text("techniques: ['AbsMax(bits=4)']\nignore: null\ntargets: null\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.ignore, recipe.targets) == ((), None)


def test_patterns_from_a_generator_are_read_once_and_hold_for_every_use() -> None:
    plan = cc.optimize_order(
        [Magnitude(sparsity="1/2")],
        loss="weight_l2",
        model=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        targets=(name for name in ["1"]),
        ignore=(name for name in ["lm_head"]),
    )
    other = plan.apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert [int((layer.weight == 0).sum()) for layer in other] == [0, 8]
    assert torch.isfinite(other[1].weight).all()

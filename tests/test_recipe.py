"""Recipe files: what they may hold, and what is malformed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.optimize import optimize_order
from compcomp.ordering.space import one_of, optional
from compcomp.recipe import load_recipe, recipe_of
from compcomp.techniques import AbsMax, Magnitude
from compcomp.testing import conventions

P, Q4, Q8 = Magnitude("1/2"), AbsMax(bits=4), AbsMax(bits=8)
RECIPE = """
techniques:
  - optional: Magnitude(sparsity=1/2)
  - [AbsMax(bits=4), AbsMax(bits=8)]
before:
  - [Magnitude(sparsity=1/2), AbsMax(bits=4)]
evaluations: 6
granularity: layer
size: 0.5
confidence: null
calibrate: sequential
passes: own
inside: in turn
blocks: [layers.0, Block]
loss: weight_l2
"""


def test_slots_pairs_and_choices(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.techniques == (optional(P), one_of(Q4, Q8))
    assert recipe.choices == {
        "before": [(P, Q4)],
        "evaluations": 6,
        "granularity": "layer",
        "size": 0.5,
        "confidence": None,
        "calibrate": "sequential",
        "passes": "own",
        "inside": "in turn",
        "blocks": ("layers.0", "Block"),
    }


def test_alternatives_that_may_be_left_out_and_sequences() -> None:
    recipe = recipe_of({"techniques": [{"optional": ["AbsMax(bits=4)", "AbsMax(bits=8)"]}, "Magnitude(sparsity=1/2)"]})
    assert recipe.techniques == (optional(one_of(Q4, Q8)), P) and recipe.choices == {}
    assert recipe_of({"techniques": "Magnitude(sparsity=1/2) >> AbsMax(bits=4)"}).techniques == (P, Q4)


def test_a_recipe_is_what_optimize_order_takes() -> None:
    data = {"techniques": [{"optional": "Magnitude(sparsity=1/2)"}, "AbsMax(bits=4)"], "loss": "weight_l2"}
    data["before"] = [["AbsMax(bits=4)", "Magnitude(sparsity=1/2)"]]
    recipe = recipe_of(data)
    plan = optimize_order(recipe.techniques, loss=recipe.loss, **recipe.choices)
    assert plan.orders["total"] == 2 and plan.order.techniques == (Q4, P)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"techniques": [["AbsMax(bits=4)", 3]]}, "techniques: 3"),
        ({"techniques": [[]]}, r"techniques: \[\]"),
        ({"techniques": [{"optional": "AbsMax(bits=4) >> AbsMax(bits=8)"}]}, "each a single technique"),
        ({"techniques": [{"maybe": "AbsMax(bits=4)"}]}, "alternatives"),
        ({"techniques": []}, "no techniques"),
        ({"before": ["AbsMax(bits=4)"]}, "before: .*a list of pairs"),
        ({"before": [["AbsMax(bits=4)"]]}, "before: .*a list of pairs"),
        ({"evaluations": 0}, "evaluations: 0"),
        ({"granularity": "block"}, "granularity: 'block'"),
        ({"size": 80}, "size: 80"),
        ({"confidence": "high"}, "confidence: 'high'"),
        ({"calibrate": "behind"}, "calibrate: 'behind'"),
        ({"passes": 2}, "passes: 2"),
        ({"inside": ["in turn"]}, "inside: "),
        ({"blocks": 3}, "blocks: 3"),
        ({"sizes": 0.5}, "key 'sizes'"),
    ],
)
def test_malformed_recipes(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        recipe_of({"techniques": ["AbsMax(bits=4)"], **more})
    assert "\n" not in str(raised.value)


RECIPES = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", RECIPES.read_text(encoding="utf-8"), re.DOTALL))
def test_the_recipes_of_the_docs_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert len(recipe.techniques) >= 3


def test_every_technique_for_whole_models_has_a_text() -> None:
    whole = [kind for kind in Technique.kernels if kind.whole_model]
    assert len(whole) >= 5
    for kind in whole:
        for technique in conventions(kind):
            assert recipe_of({"techniques": [str(technique)], "model": "embedded"}).techniques == (technique,)

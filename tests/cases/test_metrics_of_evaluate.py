"""Metrics that are missing for some orders, go no one knows which way, or are better than they can be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.metrics import metric_direction, reading
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude

P, Q, D = Magnitude("1/2"), AbsMax(2), LeastSquaresDistill()
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


with torch.no_grad():
    Y = net()(X)


def error(model: nn.Module) -> float:
    with torch.no_grad():
        return (model(X) - Y).norm().item()


def searched(evaluate: Any, **more: Any) -> Any:
    return cc.optimize_order([P, Q, D], model=net(), calibration=X, evaluate=evaluate, **more)


@pytest.mark.parametrize(
    ("dense", "compressed", "name"),
    [
        ({"perplexity": 1.0, "loss": 0.0}, {"loss": 1.0}, "perplexity"),
        ({"loss": 0.0, "perplexity": 1.0}, {"loss": 1.0}, "perplexity"),
        ({"loss": 0.0}, {"perplexity": 2.0}, "loss"),
        ({"loss": 0.0}, {"perplexity": 2.0, "loss": 1.0}, "perplexity"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_metric_that_is_missing_for_some_is_named_with_the_order(
    dense: Any, compressed: Any, name: str, stored: bool, tmp_path: Path
) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        return dense if error(model) == 0 else compressed

    evaluate.key = "v1"  # type: ignore[attr-defined]
    for _ in range(1 + stored):
        with pytest.raises(InputError, match=rf"^evaluate of .*>>.*{name}") as caught:
            searched(evaluate, store=tmp_path / "s.db" if stored else None)
        assert "\n" not in str(caught.value)


def test_a_metric_in_parts_that_is_missing_for_some() -> None:
    class InParts:
        parts = 4

        def __call__(self, model: nn.Module, parts: Any = None) -> Any:
            names = ["loss", "extra"] if error(model) == 0 else ["loss"]
            return {name: [(error(model), 1.0) for _ in parts] for name in names}

    with pytest.raises(InputError, match="extra"):
        searched(InParts())


@pytest.mark.parametrize("value", [None, 1j, "3", [1.0], torch.ones(2), True, {"a": 1.0}])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^evaluate"):
        searched(lambda model: {"loss": value})


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor(0.5, requires_grad=True), 1, 0.5])
def test_what_is_a_number_is_taken(value: Any) -> None:
    assert searched(lambda model: {"loss": value}).dense == {"loss": float(value)}


UNKNOWN = ["wikitext2", "wikitext2_raw", "c4", "ptb", "mmlu", "lambada", "distance", "value", "result", "eval"]
LOWER = ["perplexity", "wikitext2_perplexity", "ppl", "eval_loss", "NLL", "rmse", "wordErrorRate", "kl"]
HIGHER = ["accuracy", "acc", "acc_norm", "mmlu_acc", "f1", "rouge_l", "exact_match", "bleu4", "rouge2", "accuracyTop1"]


@pytest.mark.parametrize("name", [*UNKNOWN, *LOWER, *HIGHER])
def test_where_nothing_tells_the_direction_it_is_said(name: str) -> None:
    said = reading(name)
    assert bool(said) is (name in UNKNOWN)
    assert metric_direction(name) == ("lower" if name in LOWER else "higher")
    if said:
        assert name in said and "higher" in said and "higher_is_better" in said and "\n" not in said


def test_it_stands_in_the_plan_and_is_gone_once_it_is_declared() -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"wikitext2": 2 + error(model)}

    plan = searched(evaluate)
    assert any(note.startswith("wikitext2: higher was taken for better") for note in plan.notes)
    assert "higher was taken for better" in str(plan) and "beat the uncompressed model" in str(plan)
    for declared in (False, {"wikitext2": False}):
        evaluate.higher_is_better = declared  # type: ignore[attr-defined]
        for given in (evaluate, partial(evaluate)):
            plan = searched(given)
            assert not any("taken for better" in note for note in plan.notes)
            values = [row["metrics"]["wikitext2"] for row in plan.measurements]
            assert values == sorted(values)


def test_a_number_without_a_name_is_said_too() -> None:
    assert any(note.startswith("score: higher") for note in searched(lambda model: error(model) + 1).notes)

    def accuracy(model: nn.Module) -> float:
        return -error(model)

    assert not searched(accuracy).notes


@pytest.mark.parametrize("name", ["wikitext2", "accuracy", "loss", "perplexity"])
@pytest.mark.parametrize("better", [False, True])
def test_beating_the_uncompressed_model_by_much_is_remarked_on(name: str, better: bool) -> None:
    sign = -1 if name in ("loss", "perplexity") else 1

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {name: 10 + sign * (3 if better else -3) * (error(model) > 0)}

    plan = searched(evaluate)
    remarks = [note for note in plan.notes if "beat the uncompressed model" in note]
    assert bool(remarks) is better and (not better or name in remarks[0])


def test_a_little_better_is_nothing_special() -> None:
    assert not searched(lambda model: {"accuracy": 0.5 + 0.01 * (error(model) > 0)}).notes

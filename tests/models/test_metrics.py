from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from compcomp.errors import InputError
from compcomp.models.metrics import is_log, metric_direction, metric_name, parts_of, read_metrics, read_parts


def perplexity(model: Any, windows: int = 1) -> float:
    return 1.0


class Callable_:
    higher_is_better = False

    def __call__(self, model: Any) -> float:
        return 1.0

    def accuracy(self, model: Any) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("evaluate", "name"),
    [
        (perplexity, "perplexity"),
        (partial(partial(perplexity, windows=2)), "perplexity"),
        (lambda model: 1.0, "score"),
        (partial(lambda model: 1.0), "score"),
        (Callable_(), "score"),
        (Callable_().accuracy, "accuracy"),
    ],
)
def test_a_number_is_named_after_its_function(evaluate: Any, name: str) -> None:
    assert metric_name(evaluate) == name
    assert read_metrics(1.5, evaluate) == {name: 1.5}


def test_numbers_of_every_kind_are_read() -> None:
    given = {"a": 1, "b": np.float32(0.5), "c": torch.tensor(2.5), "d": np.int64(3), "e": math.inf, "f": np.array(1.0)}
    read = read_metrics(given, perplexity)
    assert read == {"a": 1.0, "b": 0.5, "c": 2.5, "d": 3.0, "e": math.inf, "f": 1.0}
    assert all(type(value) is float for value in read.values())
    assert math.isnan(read_metrics(math.nan, perplexity)["perplexity"])


@pytest.mark.parametrize(
    "result", [None, "1.0", True, [1.0], {}, {"a": "b"}, {"a": True}, {1: 2.0}, torch.ones(2), 1j, {"a": None}]
)
def test_anything_else_is_an_error(result: Any) -> None:
    with pytest.raises(InputError, match=r"^evaluate: .*; allowed: ") as raised:
        read_metrics(result, perplexity)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("perplexity", True),
        ("wikitext_ppl", True),
        ("wikiPPL", True),
        ("PPL", True),
        ("eval_loss", True),
        ("valLoss", True),
        ("nll", True),
        ("token_error_rate", True),
        ("wer", True),
        ("testWer", True),
        ("mse2", True),
        ("accuracy", False),
        ("score", False),
        ("power", False),
        ("answer", False),
        ("f1", False),
        ("supplement_acc", False),
    ],
)
def test_direction_follows_from_the_name(name: str, lower: bool) -> None:
    assert metric_direction(name) == ("lower" if lower else "higher")


def test_a_function_can_say_its_direction() -> None:
    assert metric_direction("score", Callable_()) == "lower"
    assert metric_direction("score", partial(Callable_())) == "lower"

    def evaluate(model: Any) -> dict[str, float]:
        return {}

    evaluate.higher_is_better = {"loss": True}  # type: ignore[attr-defined]
    assert metric_direction("loss", evaluate) == "higher"
    assert metric_direction("error", evaluate) == "lower"
    evaluate.higher_is_better = "yes"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"evaluate\.higher_is_better: 'yes'"):
        metric_direction("loss", evaluate)


def test_a_function_can_say_that_it_has_parts() -> None:
    def evaluate(model: Any, parts: Any = None) -> Any:
        return {}

    assert parts_of(evaluate) == 0 and not is_log("perplexity", evaluate)
    evaluate.parts, evaluate.exp_of_mean = 4, ["perplexity"]  # type: ignore[attr-defined]
    assert parts_of(evaluate) == parts_of(partial(evaluate)) == 4
    assert is_log("perplexity", partial(evaluate)) and not is_log("accuracy", evaluate)
    for wrong in (0, True, 2.0, "4"):
        evaluate.parts = wrong  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=r"evaluate\.parts: "):
            parts_of(evaluate)


def test_parts_are_read() -> None:
    given = {"a": [(1, 2), [np.float32(0.5), torch.tensor(2.0)]]}
    assert read_parts(given, 2) == {"a": [(1.0, 2.0), (0.5, 2.0)]}
    assert math.isnan(read_parts({"a": [(math.nan, 1)]}, 1)["a"][0][0])


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        1.0,
        {"a": 1.0},
        {"a": [(1, 2)]},
        {"a": [1, 2]},
        {"a": [(1, 2), (1, 0)]},
        {"a": [(1, 2), ("b", 2)]},
        {"a": [(1, 2), (1, 2, 3)]},
        {"a": [(1, 2), (1, math.nan)]},
        {1: [(1, 2), (1, 2)]},
    ],
)
def test_other_parts_are_an_error(result: Any) -> None:
    with pytest.raises(InputError, match=r"^evaluate: .*; allowed: ") as raised:
        read_parts(result, 2)
    assert "\n" not in str(raised.value)

"""Recipes: YAML files that say what to optimize."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compcomp.errors import InputError
from compcomp.language import parameters
from compcomp.language.loss import loss_named
from compcomp.language.parameters import whole
from compcomp.language.strict_yaml import Loader
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.models.calibration import CALIBRATIONS, INSIDE, PASSES
from compcomp.models.patterns import patterns_of
from compcomp.ordering.space import GRANULARITIES, Slot, one_of, optional

KEYS = (
    "techniques",
    "before",
    "loss",
    "model",
    "calibration",
    "evaluate",
    "evaluations",
    "granularity",
    "size",
    "confidence",
    "device",
    "targets",
    "ignore",
    "calibrate",
    "passes",
    "inside",
    "blocks",
    "store",
)
LARGEST_FILE = 2**20
LIST = "['Magnitude(sparsity=1/2)', 'AbsMax(bits=4)']"
PAIRS = f"[{LIST}]"
"""Examples that messages show, valid both as YAML and as Python."""


@dataclass(frozen=True)
class Recipe:
    """The techniques to order, and the model to measure on, if any.

    Attributes:
        techniques: The techniques to order, with alternatives and optional ones.
        loss: The layer loss that orders are compared under.
        model: "embedded", or the directory of a transformers causal language model. None for a symbolic plan.
        calibration: Settings of the calibration text (docs/recipes.md). Paths are relative to the recipe.
        evaluate: Settings of the evaluation text, in the same form.
        device: "auto", "cpu", "cuda" or "cuda:N".
        targets: Patterns of the layers to compress, None for all.
        ignore: Patterns of the layers to leave alone.
        store: The file that keeps verdicts and measurements, relative to the recipe.
        folder: The folder that paths are relative to.
        choices: Further arguments of ``optimize_order`` that the recipe names.
    """

    techniques: tuple[Technique | Slot, ...]
    loss: str = "output_l2"
    model: str | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ("lm_head",)
    store: str | None = None
    folder: Path = Path()
    choices: dict[str, Any] = field(default_factory=dict)


DEMO = {
    "techniques": [
        "Magnitude(sparsity=1/2, pattern='2:4')",
        "LeastSquaresDistill()",
        "AbsMax(bits=4, group=32)",
        "TruncatedSVD(rank=8, residual=True)",
    ],
    "loss": "output_l2",
    "model": "embedded",
}
"""The recipe that ``compcomp demo`` runs."""


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file. Raises InputError, in one line, for anything malformed."""
    where = f"recipe {path}"
    if not path.is_file():
        raise InputError("no such file", "the path of a YAML file", where)
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path.stat().st_size} bytes", f"at most {LARGEST_FILE}", where)
    try:
        data = Loader(path.read_text(encoding="utf-8")).get_single_data()
    except InputError as error:
        raise InputError(error.given, error.allowed, where) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"malformed YAML ({' '.join(str(error).split())[:120]})", "valid YAML", where) from None
    return recipe_of(data, where, path.parent)


def recipe_of(data: Any, where: str = "recipe", folder: Path | None = None) -> Recipe:
    """Return the recipe in a mapping.

    Args:
        data: The mapping, as read from YAML.
        where: The place that messages name.
        folder: The folder that paths are relative to; None for the current one.

    Raises:
        InputError: A key is unknown, or a value cannot be used.
    """
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"a {type(data).__name__}", f"a mapping with the keys {', '.join(KEYS)}", where)
    if unknown := [key for key in data if key not in KEYS]:
        raise InputError(f"key {unknown[0][:40]!r}", ", ".join(KEYS), where)
    techniques = _techniques(data.get("techniques"), f"{where}: techniques")
    if not techniques:
        raise InputError("no techniques", f"a list such as {LIST}", where)
    return Recipe(
        techniques=techniques,
        loss=loss_named(_text(data.get("loss", "output_l2"), f"{where}: loss")).name,
        model=None if data.get("model") is None else _text(data["model"], f"{where}: model"),
        calibration=_settings(data.get("calibration"), ("text", "batches", "batch_size", "length"), where),
        evaluate=_settings(data.get("evaluate"), ("text", "windows", "length"), where),
        device=_text(data.get("device", "auto"), f"{where}: device"),
        targets=None
        if data.get("targets") is None
        else patterns_of(_texts(data["targets"], f"{where}: targets"), f"{where}: targets"),
        ignore=patterns_of(_texts(data.get("ignore", ["lm_head"]) or [], f"{where}: ignore"), f"{where}: ignore"),
        store=None if data.get("store") is None else _text(data["store"], f"{where}: store"),
        folder=folder or Path(),
        choices=_choices(data, where),
    )


def _techniques(given: Any, where: str) -> tuple[Technique | Slot, ...]:
    """Read the list of techniques.

    An inner list holds alternatives; ``{optional: ...}`` may be left out of an order.
    """
    if isinstance(given, str):
        return tuple(parse_sequence(given))
    if not isinstance(given, list):
        raise InputError(repr(given)[:60], "a list of techniques", where)
    found: list[Technique | Slot] = []
    for item in given:
        if isinstance(item, str):
            found += parse_sequence(item)
        elif isinstance(item, dict) and list(item) == ["optional"]:
            found.append(optional(_one(item["optional"], where)))
        else:
            found.append(_one(item, where))
    return tuple(found)


def _one(given: Any, where: str) -> Technique | Slot:
    """Read one technique, or a list of alternatives."""
    if isinstance(given, list) and given:
        return one_of(*(_technique(text, where) for text in given))
    return _technique(given, where)


def _technique(given: Any, where: str) -> Technique:
    allowed = "a technique, a list of alternatives, or {optional: either of these}"
    if not isinstance(given, str):
        raise InputError(repr(given)[:60], allowed, where)
    found = parse_sequence(given).techniques
    if len(found) != 1:
        raise InputError(given[:60], f"{allowed}, each a single technique", where)
    return found[0]


def _choices(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Read the further arguments of ``optimize_order`` that the recipe has."""
    found: dict[str, Any] = {}
    if data.get("before") is not None:
        place, pairs = f"{where}: before", data["before"]
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InputError(repr(pairs)[:60], f"a list of pairs such as {PAIRS}", place)
        found["before"] = [(_technique(first, place), _technique(second, place)) for first, second in pairs]
    if data.get("evaluations") is not None:
        found["evaluations"] = whole(data["evaluations"], 1, 10**6, f"{where}: evaluations")
    if data.get("granularity") is not None:
        found["granularity"] = parameters.one_of(data["granularity"], GRANULARITIES, f"{where}: granularity")
    for name, allowed in (("calibrate", CALIBRATIONS), ("passes", PASSES), ("inside", INSIDE)):
        if data.get(name) is not None:
            found[name] = parameters.one_of(data[name], list(allowed), f"{where}: {name}")
    if data.get("blocks") is not None:
        found["blocks"] = patterns_of(_texts(data["blocks"], f"{where}: blocks"), f"{where}: blocks")
    for name in ("size", "confidence"):
        if name in data:  # null turns a race off
            found[name] = _share(data[name], f"{where}: {name}")
    return found


def _share(given: Any, where: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise InputError(repr(given)[:60], "a number from 0 to 1, or null", where)
    return float(given)


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str):
        raise InputError(repr(given)[:60], "a text", where)
    return given


def _texts(given: Any, where: str) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        raise InputError(repr(given)[:60], "a list of texts", where)
    return tuple(_text(item, where) for item in given)


def _settings(given: Any, allowed: Iterable[str], where: str) -> dict[str, Any]:
    """Read a mapping of a text and whole numbers."""
    if given is None:
        return {}
    names = list(allowed)
    if not isinstance(given, dict) or any(key not in names for key in given):
        raise InputError(repr(given)[:60], f"a mapping with the keys {', '.join(names)}", where)
    for key, value in given.items():
        if key == "text":
            _text(value, f"{where}: {key}")
        else:
            whole(value, 1, 10**6, f"{where}: {key}")
    return dict(given)


def check_out(out: Path, recipe: Recipe, path: Path | None = None) -> None:
    """Raise InputError if a run of the recipe would write among its inputs.

    Args:
        out: The folder to write to.
        recipe: The recipe. Its model and texts are inputs.
        path: The recipe's own file, an input too; None if it was not read from one.
    """
    from compcomp.models.save import check_apart

    inputs = {} if path is None else {"the recipe": path}
    if recipe.model not in (None, "embedded"):
        inputs["the model"] = recipe.folder / str(recipe.model)
        for name, settings in (("calibration", recipe.calibration), ("evaluate", recipe.evaluate)):
            if "text" in settings:
                inputs[f"the text of {name}"] = recipe.folder / settings["text"]
    check_apart(out, inputs, "--out")


@dataclass(frozen=True)
class Loaded:
    """A recipe's model with its calibration batches and its metric. All are None for a symbolic plan."""

    model: Any = None
    calibration: Any = None
    evaluate: Callable[[Any], dict[str, float]] | None = None


def load(recipe: Recipe) -> Loaded:
    """Load the model that a recipe names, its calibration batches and its metric.

    Raises InputError if one cannot be used.
    """
    if recipe.model is None:
        return Loaded()
    calibrate = {"batches": 4, "batch_size": 8, "length": 256, **recipe.calibration}
    measure = {"windows": 32, "length": 256, **recipe.evaluate}
    if recipe.model == "embedded":
        from compcomp.models import embedded

        calibrate.pop("text", None)
        measure.pop("text", None)
        return Loaded(embedded.load(), embedded.calibration(**calibrate), embedded.evaluator(**measure))
    from compcomp.models import causal_lm

    directory = recipe.folder / recipe.model
    model = causal_lm.load_directory(directory)
    vocabulary = causal_lm.vocabulary_of(model)
    if not ("text" in calibrate and "text" in measure):
        raise InputError("no text", "calibration: {text: FILE} and evaluate: {text: FILE}", "recipe")
    count = calibrate["batches"] * calibrate["batch_size"]
    windows = causal_lm.token_windows(
        directory, recipe.folder / calibrate["text"], calibrate["length"], count, vocabulary
    )
    held_out = causal_lm.token_windows(
        directory, recipe.folder / measure["text"], measure["length"], measure["windows"], vocabulary
    )
    batches = [{"input_ids": batch} for batch in windows.split(calibrate["batch_size"])]
    return Loaded(model, batches, causal_lm.perplexity_on(held_out))

"""Read the result of a user's ``evaluate``: names, numbers, and the direction in which each metric is better."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, Literal

from compcomp.errors import InputError

ANYWHERE = ("perplexity", "loss", "error", "entropy", "divergence", "latency")
ALONE = {"ppl", "nll", "mse", "rmse", "mae", "wer", "cer", "kl", "err", "bpb", "bpc", "bits", "time"}
"""Parts of a metric's name that mean "lower is better". The short ones count only if they stand alone in the name."""
HIGHER = ("accuracy", "precision", "recall", "reward", "similarity", "agreement", "likelihood", "throughput", "exact")
HIGHER_ALONE = {
    "acc",
    "f1",
    "bleu",
    "rouge",
    "auc",
    "auroc",
    "map",
    "mcc",
    "em",
    "score",
    "snr",
    "psnr",
    "win",
    "r2",
}
"""The same for "higher is better"."""


def read_metrics(result: Any, evaluate: Any) -> dict[str, float]:
    """Return the result of ``evaluate`` as a dict of names and numbers.

    A bare number is named after the function. Numbers may be infinite or NaN. Raises InputError for anything but a
    number or a non-empty dict of numbers.
    """
    allowed = "a number, or a dict of names and numbers"
    if not isinstance(result, Mapping):
        return {metric_name(evaluate): _number(result, allowed)}
    if not result:
        raise InputError("an empty dict", allowed, "evaluate")
    for name in result:
        if not isinstance(name, str):
            raise InputError(f"a metric named {name!r:.40}", "names that are texts", "evaluate")
    return {name: _number(value, f"a number for {name!r}") for name, value in result.items()}


def metric_name(evaluate: Any) -> str:
    """Return the function's name, under any ``functools.partial``; "score" for a lambda or a nameless callable."""
    while isinstance(evaluate, partial):
        evaluate = evaluate.func
    name = getattr(evaluate, "__name__", "score")
    return name if isinstance(name, str) and name != "<lambda>" else "score"


def metric_direction(name: str, evaluate: Any = None) -> Literal["higher", "lower"]:
    """Return the direction in which values of a metric are better.

    ``evaluate.higher_is_better`` decides if it is there, on the function or on the one that a ``functools.partial``
    wraps. It is True, False or a dict by metric. Otherwise the result is "lower" for names like perplexity, ppl, loss,
    error, nll, mse or wer, and "higher" for all others.
    """
    declared = _declared_direction(name, evaluate)
    if declared is not None:
        return "higher" if declared else "lower"
    return "lower" if _has(name, ANYWHERE, ALONE) else "higher"


def reading(name: str, evaluate: Any = None) -> str:
    """Return a note if neither ``higher_is_better`` nor the metric's name says which direction is better; else ""."""
    made_up = name == metric_name(evaluate) and getattr(evaluate, "__name__", "<lambda>") == "<lambda>"
    known = not made_up and (_has(name, ANYWHERE, ALONE) or _has(name, HIGHER, HIGHER_ALONE))
    if known or _declared_direction(name, evaluate) is not None:
        return ""
    return (
        f"{name}: higher was taken for better, as its name does not tell; "
        "evaluate.higher_is_better = False (or True) says which it is"
    )


def _declared_direction(name: str, evaluate: Any) -> bool | None:
    """Return what ``higher_is_better`` says of a metric, or None."""
    declared = _declared(evaluate, "higher_is_better")
    if isinstance(declared, Mapping):
        declared = declared.get(name)
    if declared is not None and not isinstance(declared, bool):
        where = "evaluate.higher_is_better"
        raise InputError(repr(declared)[:60], "True, False or a dict of them by metric", where)
    return declared


def _has(name: str, anywhere: Iterable[str], alone: Collection[str]) -> bool:
    """Return True if a name contains one of the first texts anywhere, or one of the second texts standing alone."""
    tokens = re.findall(r"[a-z]+[0-9]*", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    tokens += [token.rstrip("0123456789") for token in tokens]
    return any(part in name.lower() for part in anywhere) or any(token in alone for token in tokens)


def parts_of(evaluate: Any) -> int:
    """Return the number of independent parts that the metrics of ``evaluate`` are means over.

    This is its attribute ``parts``, 0 without one. Such a function is also called as ``evaluate(model, parts=[0, 2])``
    and returns, for each metric, the sum and the count of each of these parts.
    """
    declared = _declared(evaluate, "parts")
    if declared is None:
        return 0
    if isinstance(declared, bool) or not isinstance(declared, int) or declared < 1:
        raise InputError(repr(declared)[:60], "a whole number from 1 on", "evaluate.parts")
    return declared


def is_log(name: str, evaluate: Any) -> bool:
    """Return True if a metric is exp of a mean over parts: ``evaluate.exp_of_mean`` names those that are."""
    declared = _declared(evaluate, "exp_of_mean")
    return declared is not None and name in ((declared,) if isinstance(declared, str) else declared)


def read_parts(result: Any, count: int) -> dict[str, list[tuple[float, float]]]:
    """Read the result of ``evaluate`` for this many parts: for each metric, (sum, count) of each part.

    Raises InputError for anything else.
    """
    allowed = f"a dict of names and lists of {count} pairs (sum, count), one for each part that was asked for"
    if not isinstance(result, Mapping) or not result:
        raise InputError(repr(result)[:60], allowed, "evaluate")
    found = {}
    for name, pairs in result.items():
        if not isinstance(name, str) or not isinstance(pairs, Sequence) or len(pairs) != count:
            raise InputError(f"{name!r:.40}: {pairs!r:.40}", allowed, "evaluate")
        if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{name!r:.40}: {pairs!r:.40}", allowed, "evaluate")
        found[name] = [(_number(part, allowed), _number(over, allowed)) for part, over in pairs]
        if not all(0 < over < float("inf") for _, over in found[name]):
            raise InputError(f"a count of 0 or less for {name!r:.40}", "counts above 0", "evaluate")
    return found


def _declared(evaluate: Any, name: str) -> Any:
    """Return an attribute of the function, or of the one that a ``functools.partial`` wraps; None if there is none."""
    while not hasattr(evaluate, name) and isinstance(evaluate, partial):
        evaluate = evaluate.func
    return getattr(evaluate, name, None)


def _number(value: Any, allowed: str) -> float:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of torch or numpy
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{value!r:.40} ({type(value).__name__})", allowed, "evaluate")
    return float(value)

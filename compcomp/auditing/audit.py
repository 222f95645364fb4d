"""Audit a recipe file: find the tool it is for, read it, and decide its promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from compcomp.auditing import aimet, compressed_tensors, coremltools, llm_compressor, modelopt, olive, own
from compcomp.auditing.asking import Asker
from compcomp.auditing.promises import Order, Promise, decided
from compcomp.auditing.reading import load
from compcomp.auditing.steps import ToolRecipe
from compcomp.errors import InputError
from compcomp.language.verdict import Status

READERS: tuple[ModuleType, ...] = (compressed_tensors, own, aimet, coremltools, olive, modelopt, llm_compressor)
"""The readers, the most telling forms first."""
TOOLS = ", ".join(reader.TOOL for reader in READERS)
TIMEOUT = 60.0


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Args:
        file: the recipe.
        orders: each order of steps in it.
        alternatives: True if only one of the orders happens, and the recipe does not say which.
    """

    file: str
    orders: tuple[Order, ...]
    alternatives: bool = False

    @property
    def status(self) -> str:
        """BROKEN, KEPT, CONDITIONAL (it depends on what the recipe does not say) or UNKNOWN."""
        broken = [order.broken for order in self.orders]
        if any(broken) and (all(broken) or not self.alternatives):
            return "BROKEN"
        if any(broken):
            return "CONDITIONAL"
        return "UNKNOWN" if any(order.undecided for order in self.orders) else "KEPT"

    @property
    def exit_status(self) -> int:
        """0 if every promise is proved, 1 if one is broken, 3 if some are undecided."""
        return {"KEPT": 0, "BROKEN": 1}.get(self.status, 3)

    @property
    def verdict(self) -> str:
        """One line about the whole recipe."""
        problems = [p.text for order in self.orders for p in order.recipe.problems if p.breaks]
        refuted = [p.text for p in self.promises(Status.REFUTED)]
        if self.status == "BROKEN":
            return f"BROKEN: {(refuted or problems)[0]}" + (f" ({problems[0]})" if refuted and problems else "")
        if self.status == "CONDITIONAL":
            return "CONDITIONAL: " + "; ".join(
                f"{order.recipe.name}: {'broken' if order.broken else 'kept'}" for order in self.orders
            )
        if self.status == "UNKNOWN":
            return f"UNKNOWN: {self.promises(Status.UNKNOWN)[0].text}"
        count = len(self.promises(Status.PROVED))
        return (
            f"KEPT: {count} promise{'' if count == 1 else 's'} proved"
            if count
            else "KEPT: no step makes a promise to a later one"
        )

    def promises(self, status: str) -> list[Promise]:
        """Return the promises of one status."""
        return [p for order in self.orders for p in order.promises if p.status == status]

    def to_json(self) -> dict[str, Any]:
        """Return the audit as plain data, which ``--json`` prints."""
        return {
            "file": self.file,
            "status": self.status,
            "verdict": self.verdict,
            "exit_status": self.exit_status,
            "orders": [order.to_json() for order in self.orders],
        }

    def __str__(self) -> str:
        return "\n".join([line for order in self.orders for line in _lines(order)] + [self.verdict])


def audit(
    path: Path | str,
    *,
    tool_version: str | None = None,
    timeout: float = TIMEOUT,
    on_step: Callable[[str], None] | None = None,
) -> Audit:
    """Audit a recipe: say what each of its steps is, and whether later steps keep what earlier ones set up.

    Args:
        path: a recipe of llm-compressor, Olive, ModelOpt, AIMET, coremltools or compcomp, or a ``config.json`` of
            compressed-tensors. Nothing in it is executed.
        tool_version: the version of the tool whose conventions hold, such as "0.8"; by default the newest known.
        timeout: seconds for each claim.
        on_step: called with a phrase before each order is decided.

    Returns:
        The audit. ``exit_status`` is 0 if every promise is proved, 1 if one is broken or the tool would not run the
        recipe as it is written, and 3 if some are undecided.

    Raises:
        InputError: the file cannot be read, or is no recipe that is known.
    """
    if isinstance(timeout, bool) or not 0 < timeout <= 10**6:
        raise InputError(f"timeout={timeout!r}"[:80], "seconds, more than 0", "audit")
    path = Path(path)
    recipes, alternatives = read(path, tool_version)
    asker = Asker(timeout)
    orders = []
    for recipe in recipes:
        if on_step is not None:
            on_step(f"{recipe.tool}: {' >> '.join(step.name for step in recipe.steps) or 'no steps'}")
        orders.append(decided(recipe, asker))
    return Audit(str(path), tuple(orders), alternatives)


def read(path: Path, tool_version: str | None = None) -> tuple[list[ToolRecipe], bool]:
    """Return the orders of steps in a recipe file, and whether only one of them happens."""
    data = load(path)
    where = f"audit {path}"
    if data is None:
        raise InputError("an empty file", f"a recipe of {TOOLS}", where)
    for reader in READERS:
        if reader.is_recipe(data):
            return reader.read(data, tool_version), reader is compressed_tensors
    raise InputError(f"a {type(data).__name__} that is no recipe known here", f"a recipe of {TOOLS}", where)


def _lines(order: Order) -> list[str]:
    """Return an order as plain lines."""
    recipe = order.recipe
    lines = [f"{recipe.tool} {recipe.version}" + (f": {recipe.name}" if recipe.name else "")]
    lines += [f"  {'' if p.breaks else 'note: '}{p.text}" for p in recipe.problems]
    for number, step in enumerate(recipe.steps, 1):
        what = " >> ".join(map(str, step.techniques)) or step.does
        lines.append(
            f"  {number}. {step.name} ({step.place}): {what}" if step.place else f"  {number}. {step.name}: {what}"
        )
        lines += [f"     {text}" for text in step.conventions]
        lines += [f"     differs: {text}" for text in step.differs]
        lines += [f"     not known: {text}" for text in step.unknown]
    lines += [f"  note: {text}" for text in recipe.notes]
    for promise in order.promises:
        lines.append(f"  {promise.status}: {promise.text}")
        if promise.answer is not None and promise.answer.note:
            lines.append(f"     {promise.answer.note}")
        if promise.answer is not None and promise.status == Status.UNKNOWN:
            lines.append(f"     {promise.answer.verdict.cause}")
    lines += [f"  {relation.kind}: {relation.text}" for relation in order.relations]
    for change in order.changes:
        lines.append(f"  change, proved to keep {', '.join(change.promise)}: {change.text}")
        lines.append(f"     {change.sequence}")
    return lines

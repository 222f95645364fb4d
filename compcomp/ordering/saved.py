"""Write a plan to a folder: ``plan.json``, and the outcome of each order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from compcomp.errors import InputError
from compcomp.language.technique import Sequence
from compcomp.ordering.plan import PlanData

LISTED = 5040
"""The most orders for which ``plan.json`` has the outcome of each."""
ACCOUNTS = "accounts.tsv"


def save_plan(plan: PlanData, folder: Path) -> None:
    """Write ``plan.json``.

    If there are more than :data:`LISTED` orders, the outcomes go to ``accounts.tsv``, by number.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        many = plan.orders["total"] > LISTED
        data = {**plan.to_json(), "accounts": ACCOUNTS if many else plan.accounts}
        if many:
            (folder / ACCOUNTS).write_text("\n".join(_numbered(plan)) + "\n", encoding="utf-8")
        (folder / "plan.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{str(folder)!r} ({error.strerror})", "a folder to write to", "Plan.save") from None


def _numbered(plan: PlanData) -> Iterator[str]:
    """Yield a line for each order, with numbers for techniques and proofs, then a line for each of these."""
    proofs: dict[int, tuple[int, str]] = {}

    def numbers(order: Sequence) -> str:
        return " ".join(map(str, plan.orderings.prefix(order.techniques) or ())) or "-"

    yield "order\tfate\tby\tproofs\tmeasured on this model"
    for one in plan.orderings.outcomes():
        used = [proofs.setdefault(id(v), (len(proofs) + 1, str(v)))[0] for v in one.proofs]
        yield "\t".join((numbers(one.order), one.kind, numbers(one.by), " ".join(map(str, used)), one.note))
    yield from (f"# technique {number}: {technique}" for number, technique in enumerate(plan.orderings.techniques))
    yield from (f"# proof {number}: {text}" for number, text in proofs.values())

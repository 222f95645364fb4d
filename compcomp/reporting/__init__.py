"""Show plans and verdicts to people: in the terminal, as one HTML page, as a picture of the ranking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compcomp.ordering.plan import PlanData


def write_report(plan: PlanData, path: str | Path) -> None:
    """Write a plan as one self-contained HTML file: see :func:`compcomp.reporting.html.write_report`."""
    from compcomp.reporting.html import write_report as write

    write(plan, path)

"""One question to a solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Query:
    """One question a proof put to a solver, as SMT-LIB text. A proof needs the answer ``expected``.

    ``second_answer``: what the second solver said, "" where it was not asked. ``certificate``: what shows the
    answer without a solver (docs/certificates.md), None where there is none.
    """

    name: str
    smtlib: str
    expected: str
    answer: str
    solver: str = ""
    rlimit: int = 0
    second_answer: str = ""
    second_solver: str = ""
    certificate: dict[str, Any] | None = field(default=None, repr=False, hash=False)

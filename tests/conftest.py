"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import compcomp.techniques  # noqa: F401  (what is registered when a test begins)
from compcomp.language.technique import Technique


@pytest.fixture(autouse=True)
def _registry_as_it_was() -> Iterator[None]:
    """Undo what a test registers: tests after it, in the same worker, see the techniques that are installed."""
    before = dict(Technique.kernels)
    yield
    if Technique.kernels != before:
        Technique.kernels.clear()
        Technique.kernels.update(before)

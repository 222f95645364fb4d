"""Draw with Hypothesis from a seed alone.

Hypothesis mixes the constants of every imported module of the project into what it draws, so the same seed gives other
values in another project, or after another import. Its draws without that mixing are a backend of their own here.
"""

from __future__ import annotations

from typing import Any

from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

SEEDED = "compcomp: seed alone"
"""The name of the backend, for ``hypothesis.settings(backend=...)``."""


class Seeded(HypothesisProvider):
    """Draw as Hypothesis does, without constants of the modules that are imported."""

    def _maybe_draw_constant(self, *_: Any, **__: Any) -> None:
        return None


AVAILABLE_PROVIDERS[SEEDED] = "compcomp.testing.draws.Seeded"

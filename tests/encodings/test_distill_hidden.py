"""What it shares with DistillLogits is tested there."""

from __future__ import annotations

from compcomp.language.text import parse_claim
from compcomp.proving.prove import prove
from compcomp.techniques import DistillHidden
from tests.helpers import refused


def test_it_promises_what_it_leaves_open() -> None:
    promises = DistillHidden(3).promises()
    assert not promises.deterministic and not promises.never_increases
    assert DistillHidden.whole_model and DistillHidden(3).needs_inputs
    assert prove(parse_claim("Magnitude(sparsity=1/2) >> DistillHidden(iterations=3) keeps mask")).proved


def test_it_has_no_temperature() -> None:
    refused(lambda: DistillHidden(3, targets=2), "DistillHidden.targets")  # type: ignore[arg-type]

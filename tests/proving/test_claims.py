"""The test table, through everything that decides claims."""

from __future__ import annotations

import pytest

import compcomp.techniques  # noqa: F401
from compcomp.language.claim import Scope
from compcomp.language.text import parse_claim
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, confirmed
from compcomp.proving.search import search
from tests.amount import spread
from tests.claims import CLAIMS


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), CLAIMS)
def test_verdict(text: str, loss: str, scope: str, expected: str) -> None:
    verdict = prove(parse_claim(text, loss), scope, timeout=30)
    assert str(verdict.status) == expected, verdict
    if expected == "REFUTED":
        assert verdict.witness is not None
        entries = [x for row in verdict.witness.weight for x in row]
        assert all(x.denominator == 1 and abs(x) < 100 for x in entries), "a small integer witness exists"
    if expected == "PROVED":
        assert verdict.assumptions


@pytest.mark.parametrize(
    ("text", "loss", "scope", "expected"), spread([row for row in CLAIMS if row[3] == "PROVED"], 60)
)
def test_what_is_proved_is_not_refuted_by_search(text: str, loss: str, scope: str, expected: str) -> None:
    instances = parse_claim(text, loss).instances()
    for instance in instances:
        assert search(instance, Scope.of(scope), seconds=0.8 / len(instances), seed=7) is None


@pytest.mark.parametrize(("text", "loss", "scope", "expected"), [row for row in CLAIMS if row[3] == "REFUTED"])
def test_witnesses_replay_from_their_numbers_alone(text: str, loss: str, scope: str, expected: str) -> None:
    import numpy as np

    claim = parse_claim(text, loss)
    verdict = prove(claim, scope, timeout=30)
    assert verdict.witness is not None
    witness = verdict.witness
    weight = np.array([list(row) for row in witness.weight], dtype=object)
    inputs = None if witness.inputs is None else np.array([list(row) for row in witness.inputs], dtype=object)
    suspect = Suspect(weight, inputs, witness.seed)
    spoken = list(claim.parts().values()) or [claim]  # a layer of one kind refutes a claim about units of several
    assert any(confirmed(instance, suspect) for part in spoken for instance in part.instances())
    shape = Scope.of(scope).shape
    assert shape is None or weight.shape == shape

"""What it shares with PruneNeurons is tested there."""

from __future__ import annotations

from fractions import Fraction

from compcomp.techniques import PruneHeads, PruneNeurons
from tests.helpers import layer


def test_a_unit_goes_as_a_neuron_does() -> None:
    start = layer([[1, 1, 5], [3, 3, 3], [0, 6, 0], [2, 0, 0]])
    heads, neurons = (kind(Fraction(1, 2)).encode(start) for kind in (PruneHeads, PruneNeurons))
    assert heads.weight.tolist() == neurons.weight.tolist()
    assert PruneHeads(Fraction(1, 2)).promises() == PruneNeurons(Fraction(1, 2)).promises()

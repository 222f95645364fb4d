from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from compcomp.kernels._cuts import remove
from compcomp.kernels._units import pruned, stacked
from compcomp.kernels.prune_neurons import kernel, kernel_model
from compcomp.layers.state import Factors, LayerState
from compcomp.layers.whole import Group, Part
from compcomp.techniques import PruneHeads, PruneNeurons
from tests.helpers import DEVICES, HALVES, NoModel, refused, tensors


class Fake(NoModel):
    """The states of three layers, and one group over them."""

    def __init__(self, states: dict[str, LayerState], groups: list[Group]) -> None:
        self.states, self.groups = states, groups

    def neurons(self) -> list[Group]:
        return self.groups


def network(device: str = "cpu", dtype: Any = torch.float64) -> Fake:
    states = {
        name: tensors(shape, device, dtype, seed)
        for seed, (name, shape) in enumerate({"gate": (6, 4), "up": (6, 4), "down": (4, 6)}.items())
    }
    return Fake(states, [Group("mlp", 6, (Part("gate", "out"), Part("up", "out"), Part("down", "in")))])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_neurons_are_scored_and_dropped_together(device: str, dtype: Any) -> None:
    whole = network(device, dtype)
    gate, up, down = (state.weight.double().cpu() for state in whole.states.values())
    sizes = gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)
    kept = torch.ones(6, dtype=torch.bool)
    kept[sizes.argsort()[:3]] = False
    after = kernel_model(PruneNeurons(Fraction(1, 2)), whole)
    for name, side in (("gate", 0), ("up", 0), ("down", 1)):
        state, before = after[name], whole.states[name]
        cut = state.format.cut
        assert cut is not None and state.weight.dtype == dtype
        assert torch.equal((cut.rows, cut.columns)[side].cpu(), kept) and bool((cut.columns, cut.rows)[side].all())
        lines = state.weight.cpu() if side == 0 else state.weight.T.cpu()
        assert not bool(lines[~kept].any())
        assert torch.equal(lines[kept], (before.weight if side == 0 else before.weight.T).cpu()[kept])
        assert torch.equal(state.format.mask, cut.rows[:, None] & cut.columns)


def test_parts_with_an_offset_and_several_rows_a_unit() -> None:
    """Two units of two rows each behind two other rows, read by one column each."""
    states = {"packed": tensors((6, 3), dtype=torch.float64), "out": tensors((3, 2), dtype=torch.float64, seed=1)}
    group = Group("attention", 2, (Part("packed", "out", 2, start=2), Part("out", "in")))
    whole = Fake(states, [group])
    stack = stacked(whole, group)
    packed, out = states["packed"].weight, states["out"].weight
    assert torch.equal(stack.weight[1], torch.cat([packed[4], packed[5], out[:, 1]]))
    after = pruned(PruneHeads(Fraction(1, 2)), whole, [group])
    gone = int(stack.weight.square().sum(1).argmin())
    assert after["packed"].format.cut is not None and after["out"].format.cut is not None
    assert after["packed"].format.cut.rows.tolist() == [True, True, gone != 0, gone != 0, gone != 1, gone != 1]
    assert after["out"].format.cut.columns.tolist() == [gone != 0, gone != 1]


@pytest.mark.parametrize("device", DEVICES)
def test_units_that_put_out_least_go(device: str) -> None:
    """Three units whose outputs are four features behind two others: energies 5, 4 and 9."""
    energies = torch.tensor([7.0, 9, 4, 1, 2, 2, 5, 4], device=device)
    reader = replace(tensors((3, 8), device, torch.float64), gram=torch.diag(energies).double())
    feeds = tensors((8, 5), device, torch.float64)
    group = Group("attention", 3, (Part("feeds", "out", 2, start=2), Part("reads", "in", 2, start=2)))
    technique = PruneHeads(Fraction(1, 3), score="activation")
    whole = Fake({"feeds": feeds, "reads": reader}, [group])
    after = pruned(technique, whole, [group])
    kept = [True] * 4 + [False] * 2 + [True] * 2
    assert after["feeds"].format.cut is not None and after["feeds"].format.cut.rows.tolist() == kept
    assert after["reads"].format.cut is not None and after["reads"].format.cut.columns.tolist() == kept
    whole.states["reads"] = replace(reader, gram=None)
    refused(lambda: pruned(technique, whole, [group]), "inputs")


def test_low_rank_terms_and_earlier_cuts() -> None:
    layer = tensors((4, 3), dtype=torch.float64)
    factors = Factors(torch.ones(4, 1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    layer = replace(layer, format=replace(layer.format, factors=factors))
    first = remove(layer, torch.tensor([False, True, False, False]), axis=0)
    both = remove(first, torch.tensor([False, False, True]), axis=1)
    assert both.format.cut is not None and both.format.factors is not None
    assert both.format.cut.rows.tolist() == [True, False, True, True]
    assert both.format.cut.columns.tolist() == [True, True, False]
    effective = both.weight + both.format.factors.left @ both.format.factors.right
    assert torch.equal(effective != 0, both.format.mask)
    assert bool((factors.left == 1).all())  # what it was given is as it was


@pytest.mark.parametrize(("ties", "kept"), [("first", [0, 1, 1]), ("any", [0, 1, 1]), ("all", [0, 0, 1])])
def test_ties(ties: str, kept: list[int]) -> None:
    """Sums of squares 27, 27 and 36."""
    layer = LayerState.dense(torch.tensor([[1.0, 1, 5], [3, 3, 3], [0, 6, 0]]))
    after = kernel(PruneNeurons(Fraction(1, 3), ties=ties), layer)
    assert after.format.cut is not None and after.format.cut.rows.tolist() == list(map(bool, kept))


def test_wrong_use() -> None:
    broken = LayerState.dense(torch.full((2, 2), torch.inf))
    refused(lambda: kernel(PruneNeurons(Fraction(1, 2)), broken), "finite")

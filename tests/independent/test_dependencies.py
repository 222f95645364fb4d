"""Coupled layers against torch-pruning's DependencyGraph [fang2023], on the embedded model's architecture.

The graph traces the model and finds what must go together when one row of a layer goes. It is compared with the groups
that ``compcomp.models.structure`` finds by name. Differences, with their reasons:

- the graph also lists what is no weight of a Linear layer (activations, reshapes, rotations): only Linear layers are
  compared;
- attention is left out: with grouped queries the graph of torch-pruning 1.x does not get from v_proj to o_proj, and
  from q_proj it does not end. Heads are compared with what the model computes, in tests/models/test_structure.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compcomp.models import embedded
from compcomp.models.layers import find_layers
from compcomp.models.structure import feed_forwards

tp = pytest.importorskip("torch_pruning")


@pytest.fixture(scope="module")
def traced() -> tuple[Any, Any, Any]:
    model = embedded.load()
    model.config.use_cache = False
    ids = torch.arange(8)[None]
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs={"input_ids": ids}, output_transform=lambda out: out.logits
    )
    return model, graph, {layer.name: layer for layer in find_layers(model)}


def coupled(model: nn.Module, graph: Any, layer: str, rows: list[int]) -> dict[tuple[str, str], list[int]]:
    """The rows and columns of Linear layers that go with these rows of one, as the graph has it."""
    names = {module: name for name, module in model.named_modules()}
    group = graph.get_pruning_group(model.get_submodule(layer), tp.prune_linear_out_channels, idxs=rows)
    found = {}
    for dependency, indices in group:
        module = dependency.target.module
        if isinstance(module, nn.Linear):
            side = "out" if dependency.handler == tp.prune_linear_out_channels else "in"
            found[names[module], side] = sorted(indices)
    return found


@pytest.mark.parametrize("rows", [[0], [3, 17, 383]])
def test_neurons(traced: Any, rows: list[int]) -> None:
    model, graph, layers = traced
    groups = feed_forwards(model, layers)
    assert len(groups) == 4
    for group in groups:
        expected = {(part.layer, part.side): rows for part in group.parts}
        for part in group.parts[:-1]:
            assert coupled(model, graph, part.layer, rows) == expected

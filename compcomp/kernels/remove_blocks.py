"""Depth pruning on tensors [men2024, gromov2024]."""

from __future__ import annotations

import torch

from compcomp.encodings.remove_blocks import RemoveBlocks
from compcomp.errors import InputError
from compcomp.kernels._cuts import remove
from compcomp.kernels._shared import Tensor, check, effective, smallest, wide
from compcomp.layers.state import LayerState
from compcomp.layers.whole import WholeModel


def kernel(technique: RemoveBlocks, layer: LayerState) -> LayerState:
    """Zero and cut the rows of the dropped blocks of a stack of linear branches, (B n) x n.

    ``layer.gram`` is n x n. All is computed in float64.

    Raises:
        InputError: There are no inputs, the weight is no such stack, no block would stay, or an entry is not finite.
    """
    check(technique, layer)
    assert layer.gram is not None
    gram, width = layer.gram.to(torch.float64), layer.weight.shape[1]
    state = torch.eye(width, dtype=torch.float64, device=gram.device)
    states = [state]
    for branch in effective(layer, torch.float64).split(width):
        states.append(states[-1] + branch @ states[-1])
    blocks = len(states) - 1
    span = technique.span(blocks)
    sums = torch.stack([_sums(a, b, a @ gram, b @ gram) for a, b in zip(states, states[span:], strict=False)])
    return remove(layer, ~kept(technique, blocks, sums).repeat_interleave(width), axis=0)


def kernel_model(technique: RemoveBlocks, whole: WholeModel) -> dict[str, LayerState]:
    """Zero and cut all layers of the dropped blocks, so that these become identities.

    The hidden states are those of the compressed model on the calibration batches, padding left out.

    Raises:
        InputError: There are no blocks, none would stay, or a block without its layers still changes the hidden states,
        as a bias does.
    """
    blocks, states = whole.blocks(), dict(whole.states)
    if technique.removed(len(blocks)) == 0:
        given = f"a share of {technique.sparsity}, which of {len(blocks)} blocks is less than one"
        raise InputError(given, f"a sparsity of 1/{len(blocks)} or more, below 1", str(technique))
    span = technique.span(len(blocks))
    sums = torch.zeros(len(blocks) - span + 1, 3, dtype=torch.float64, device="cpu")
    for batch in whole.batches:
        hidden = _hidden(whole, states, batch)
        for place, (a, b) in enumerate(zip(hidden, hidden[span:], strict=False)):
            sums[place] += _sums(a, b, a, b).cpu()
    stays = kept(technique, len(blocks), sums)
    removed = [place for place in range(len(blocks)) if not stays[place]]
    for place in removed:
        for name in blocks[place]:
            state = states[name]
            every = torch.ones(state.weight.shape[0], dtype=torch.bool, device=state.weight.device)
            states[name] = remove(state, every, axis=0)
    hidden = _hidden(whole, states, whole.batches[0])
    for place in removed:
        if not torch.equal(hidden[place], hidden[place + 1]):
            given = f"block {place}, which without its layers still changes the hidden states"
            raise InputError(given, "blocks that are identities where their layers are zero", str(technique))
    return states


def _hidden(whole: WholeModel, states: dict[str, LayerState], batch: object) -> list[Tensor]:
    """Return the hidden states before the first and after each block, (tokens x width), float64."""
    weights = {name: effective(state, wide(state.weight)) for name, state in states.items()}
    outputs = whole.forward(batch, weights)
    real = outputs.real
    fits = real is not None and real.shape == outputs.hidden[0].shape[:-1]
    return [(h[real] if fits else h).double().reshape(-1, h.shape[-1]) for h in outputs.hidden]


def _sums(one: Tensor, other: Tensor, one_seen: Tensor, other_seen: Tensor) -> Tensor:
    """Return <h, g>, |h|^2 and |g|^2 of two states, given also times the Gram matrix of the inputs (or as is)."""
    return torch.stack([(one_seen * other).sum(), (one_seen * one).sum(), (other_seen * other).sum()])


def kept(technique: RemoveBlocks, blocks: int, sums: Tensor) -> Tensor:
    """Return which blocks stay, from <h, g>, |h|^2 and |g|^2 of the states around each block, or each stretch (x 3)."""
    inner, norms = sums[:, 0], sums[:, 1] * sums[:, 2]
    cosines, span = torch.where(norms > 0, inner * inner.abs() / norms, 0.0), technique.span(blocks)
    taken = smallest(-cosines[None], technique.removed(blocks) // span, technique.ties)[0].tolist()
    return torch.tensor([not any(taken[max(0, b - span + 1) : b + 1]) for b in range(blocks)], device=sums.device)

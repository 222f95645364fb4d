"""A bound holds for whatever techniques make of the layer, and leaving orders out by it loses nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

from compcomp.bench import Caps
from compcomp.language.loss import LOSSES
from compcomp.language.technique import Sequence, Technique
from compcomp.layers.state import LayerState
from compcomp.models.bench import ModelBench
from compcomp.models.bounds import least_loss
from compcomp.models.explore import explore
from compcomp.models.measure import layer_losses
from compcomp.techniques import MX, NF4, AbsMax, LeastSquaresDistill, Magnitude, MinMax, TruncatedSVD, Wanda
from tests.models.fakes import Tiny, tokens
from tests.models.test_explore import tree

D, L = LeastSquaresDistill(), TruncatedSVD(2, residual=True)
STARTS: list[Sequence] = [
    Sequence((Magnitude("1/2"),)),
    Magnitude("1/2") >> L,
    L >> Wanda("1/4", pattern="unstructured"),
    Sequence((AbsMax(3, group=4),)),
    Magnitude("1/4") >> AbsMax(2),
    Magnitude("1/4") >> MinMax(2),
    Magnitude("1/4") >> NF4(group=4),
    Sequence((MX(group=8),)),
]
KEEP_MASK: list[Technique] = [D, Magnitude("3/4"), AbsMax(4), AbsMax(2, group=4), Wanda("1/2")]
KEEP_BOTH: list[Technique] = [D, Magnitude("3/4"), Wanda("1/2")]


def layer(seed: int) -> LayerState:
    random = torch.Generator().manual_seed(seed)
    inputs: Tensor = torch.randn(8, 6 if seed % 2 else 40, generator=random, dtype=torch.float64)
    return LayerState.dense(torch.randn(5, 8, generator=random), gram=inputs @ inputs.T)


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_no_continuation_loses_less(start: Sequence) -> None:
    losses = tuple(name for name in LOSSES if name != "weight_l4")
    for seed in range(4):
        state = start.kernel(layer(seed))
        for kept, following in (({"mask", "factors"}, KEEP_MASK), ({"mask", "grid", "factors"}, KEEP_BOTH)):
            least = {loss: least_loss(state, loss, kept) for loss in losses}
            for order in permutations(following, 2):
                found = layer_losses(Sequence(order).kernel(state), losses)
                assert all(found[loss] >= least[loss] for loss in losses), (seed, str(Sequence(order)), found, least)
        free = {"mask", "factors"}
        best = torch.where(
            torch.ones_like(state.weight, dtype=torch.bool) if state.format.mask is None else state.format.mask,
            state.reference - (state.effective() - state.weight),
            0.0,
        )
        fitted = layer_losses(replace(state, weight=best), losses)
        for loss in losses:
            if loss.startswith("weight"):  # and the bound is reached: by the best weights under the mask
                assert least_loss(state, loss, free) == pytest.approx(fitted[loss], abs=1e-4)


def test_an_invariant_that_is_broken_already_bounds_nothing() -> None:
    broken = Magnitude("1/2") >> MinMax(3, zero="none")
    state = broken.kernel(layer(0))
    assert state.format.mask is not None and bool(state.weight[~state.format.mask].any())
    assert least_loss(state, "weight_l2", {"mask", "factors"}) == 0
    assert layer_losses(D.kernel()(D, state), ("output_l2",))["output_l2"] >= least_loss(
        state, "output_l2", {"mask", "factors"}
    )
    moved = AbsMax(2).kernel()(AbsMax(2), layer(0))
    off = replace(moved, weight=moved.weight + 0.25 * moved.format.grid.step)
    assert least_loss(off, "weight_l2", {"grid", "factors"}) == 0 < least_loss(moved, "weight_l2", {"grid", "factors"})


def test_nothing_is_known_where_the_low_rank_term_may_change() -> None:
    state = Magnitude("1/2").kernel()(Magnitude("1/2"), layer(0))
    assert least_loss(state, "weight_l2", {"mask"}) == 0 < least_loss(state, "weight_l2", {"mask", "factors"})


@pytest.mark.parametrize("loss", ["output_l2", "weight_l2"])
def test_what_is_left_out_could_not_win(loss: str) -> None:
    techniques: list[Technique] = [Magnitude("1/2"), Magnitude("3/4"), AbsMax(2, group=4), AbsMax(4), D]
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    orders = list(permutations(range(5)))
    names = bench.layer_names()
    keeps = {"mask": (0, 1, 2, 3, 4), "grid": (0, 1, 4), "factors": (0, 1, 2, 3, 4)}
    saved = 0
    for job in bench.layer_jobs(techniques, *tree(orders), 2**30, names):
        whole = explore(job)
        every = [whole.loss_at(loss, place) for place in range(len(orders))]
        cap = sorted(every)[3]
        some = explore(replace(job, caps=Caps(loss, (cap,) * len(orders), keeps)))
        for place, exact in enumerate(every):
            if place in some.bounds:
                assert some.losses[loss][place] is None
                assert cap < some.bounds[place] <= exact, job.layer
            else:
                assert some.losses[loss][place] == exact
        saved += whole.applications - some.applications
    assert saved > 0

"""Changes of basis on a whole model: what it computes, what is saved of it, and the search for an order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.language.claim import dominates
from compcomp.language.size import layer_bits
from compcomp.language.technique import Sequence
from compcomp.layers.basis import Scaling, Transform
from compcomp.layers.state import Format, Grid, LayerState
from compcomp.models import embedded
from compcomp.models.bench import ModelBench
from compcomp.models.bounds import least_loss
from compcomp.models.calibrate import calibrate
from compcomp.models.components import pack, unpack
from compcomp.models.coverage import coverage
from compcomp.models.follow import follow
from compcomp.models.layers import find_layers
from compcomp.models.measure import effective_weight, layer_losses
from compcomp.models.save import load_components, load_weights, save
from compcomp.optimize import optimize_order
from compcomp.techniques import (
    AWQ,
    AbsMax,
    AbsMaxInputs,
    Hadamard,
    LeastSquaresDistill,
    Magnitude,
    MinMax,
    SmoothQuant,
    TruncatedSVD,
)
from tests.models.fakes import Tiny, tokens

P: Any = Magnitude("1/2")
Q, D, S, H = AbsMax(4, group=4), LeastSquaresDistill(), SmoothQuant(), Hadamard(8)
SEQUENCES: list[Sequence] = [
    S >> Q,
    Q >> S,
    SmoothQuant(scales="power_of_two") >> P >> Q,
    H >> Q,
    H >> P >> D,
    S >> H >> MinMax(3, group=4) >> TruncatedSVD(2, residual=True),
    AWQ(group=4) >> Q >> D,
    MinMax(3, zero="none") >> S,
    TruncatedSVD(2) >> S >> H,
    P >> S >> D,
]


def test_magnitudes_are_those_of_all_unpadded_inputs() -> None:
    model, found = Tiny(), {}
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens()]
    batches[0]["attention_mask"][:, 3:] = 0
    calibrate(model, find_layers(model), batches, found)
    seen: dict[str, list[Tensor]] = {}
    for layer in find_layers(model):

        def keep(_: nn.Module, args: Any, name: str = layer.name) -> None:
            seen.setdefault(name, []).append(args[0].detach())

        layer.modules[0].register_forward_pre_hook(keep)
    model.eval()
    for batch in batches:
        model(**batch)
    assert found.keys() == seen.keys()
    for name, inputs in seen.items():
        rows = torch.cat([x[b["attention_mask"] != 0] for x, b in zip(inputs, batches, strict=True)]).double().abs()
        torch.testing.assert_close(found[name].largest, rows.amax(dim=0))
        torch.testing.assert_close(found[name].mean, rows.mean(dim=0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
def test_the_model_computes_with_the_transformed_weight_on_transformed_inputs(sequence: Sequence, dtype: Any) -> None:
    model = Tiny(dtype=dtype)
    with ModelBench(model, tokens(), device="cpu") as bench:
        state = bench.apply(sequence, bench.start())
        bench.write(state)
    layer = state["blocks.0.q"]
    transform, x = layer.format.transform, torch.randn(8, 5, dtype=torch.float64)
    assert transform is not None
    wide = transform.map(lambda scales: scales.double())
    factors: Any = layer.format.factors
    working = layer.weight.double() + (0 if factors is None else factors.left.double() @ factors.right.double())
    outputs = model.blocks[0].q(x.T.to(dtype)).T  # type: ignore[operator]
    torch.testing.assert_close(outputs, (working @ wide.inputs(x)).to(dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
def test_saved_components_add_up_in_the_dense_basis(sequence: Sequence, dtype: Any, tmp_path: Path) -> None:
    model = Tiny(dtype=dtype)
    with ModelBench(model, tokens(), device="cpu") as bench:
        state = bench.apply(sequence, bench.start())
    save(model, state, tmp_path / "saved")
    again, written = Tiny(dtype=dtype), Tiny(dtype=dtype)
    load_weights(again, tmp_path / "saved")
    with ModelBench(written, tokens(), device="cpu") as bench:
        bench.write(bench.apply(sequence, bench.start()))
    inputs = tokens(1)[0]
    assert torch.equal(again.eval()(inputs), written.eval()(inputs))
    for name, parts in load_components(tmp_path / "saved").items():
        assert any(part.startswith("basis_") for part in parts)
        torch.testing.assert_close(unpack(parts), effective_weight(state[name]).double(), rtol=1e-5, atol=1e-6)
        grid = state[name].format.grid
        assert ("levels" in parts) == (grid is not None)


def test_parts_that_do_not_add_up_are_not_saved() -> None:
    """A weight whose rank is larger than is said."""
    weight, scales = torch.eye(8), Transform((Scaling(torch.ones(8)),))
    layer = LayerState(weight, weight, format=Format(rank=1, transform=scales))
    with pytest.raises(InputError, match="do not add up"):
        pack(layer, torch.float32)


def test_bits() -> None:
    grid = Grid(torch.ones(4, 8), 7, 4)
    scaled = Transform((Scaling(torch.ones(8)),))
    assert layer_bits(Format(grid=grid, transform=scaled), (4, 8)) == layer_bits(Format(grid=grid), (4, 8)) + 16 * 8
    with ModelBench(Tiny(), tokens(), device="cpu") as bench:
        bits = {str(s): bench.bits(bench.apply(s, bench.start())) for s in (Q, S >> Q, H >> Q, Q >> S)}
    plain, columns = bits[str(Q)], 8 * len(bench.layers)
    assert bits[str(H >> Q)] == plain and bits[str(S >> Q)] == plain + 16 * columns
    assert bits[str(Q >> S)] == plain + 2 * 16 * columns  # the grid's steps differ from column to column as well


def test_states_kept_in_main_memory_are_the_same() -> None:
    sequence = S >> H >> Q
    with (
        ModelBench(Tiny(), tokens(), device="cpu") as bench,
        ModelBench(Tiny(), tokens(), device="cpu", offload=True) as other,
    ):
        one, two = (b.apply(sequence, b.start()) for b in (bench, other))
        assert bench.digest(one) == other.digest(two)


def test_a_rotation_takes_magnitudes_away() -> None:
    with ModelBench(Tiny(), tokens(), device="cpu") as bench:
        with pytest.raises(InputError, match=r"layer blocks\.0\.q: SmoothQuant.*rotation"):
            bench.apply(H >> S, bench.start())
        with pytest.raises(InputError, match="changes a layer's inputs"):
            bench.apply(S >> AbsMaxInputs(4), bench.start())


def test_no_bound_and_no_coverage_in_another_basis() -> None:
    """After a rotation, the mask of the working weight tells nothing of the weights that the dense layer is made of."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 30, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 8)[:, None]
    start: LayerState = LayerState.dense(torch.randn(6, 8, generator=generator, dtype=torch.float64), inputs)
    state: Any = (H >> P).kernel(start)
    everything, loss = {"mask", "grid", "factors"}, layer_losses(state, ("weight_l2",))["weight_l2"]
    silent = replace(state, format=replace(state.format, transform=None))
    assert least_loss(silent, "weight_l2", everything) > loss
    assert least_loss(state, "weight_l2", everything) == 0
    assert not any(step.sure.holds.any() for step in follow(S >> P, "layer", start).steps)
    with pytest.raises(InputError, match="act on weights"):
        coverage([dominates(S >> P, P)], "layer", start)


@pytest.mark.slow
def test_an_order_with_a_change_of_basis_is_measured_on_a_language_model() -> None:
    model = embedded.load()
    plan = optimize_order(
        [Magnitude("1/2"), SmoothQuant(), AbsMax(4, group=32)],
        loss="output_l2",
        model=model,
        calibration=embedded.calibration(1),
        progress=False,
    )
    assert plan.optimality == "measured" and plan.orders["total"] == 6
    # A scaling that comes last changes no loss: these orders are dropped for each other, and nothing else is.
    measured = {row["order"]: row["losses"]["output_l2"] for row in plan.measurements}
    with ModelBench(model, embedded.calibration(1), device="cpu", loss_names=["output_l2"]) as bench:
        for order in plan.orderings.orders():
            lost = bench.losses(bench.apply(plan.orderings.order(order), bench.start()))["output_l2"]
            assert lost >= min(measured.values()) * (1 - 1e-6)
        assert measured[str(plan.order)] == pytest.approx(min(measured.values()))
    assert set(map(str, [plan.order])) <= measured.keys()


def test_bounds_leave_out_no_order_that_is_better() -> None:
    """Orders explored layer by layer, against all of them on the model."""
    techniques = [Magnitude("3/4"), SmoothQuant(), AbsMax(3), LeastSquaresDistill()]
    for loss in ("weight_l2", "output_l2"):
        plan = optimize_order(techniques, loss=loss, model=Tiny(), calibration=tokens(), progress=False)
        with ModelBench(Tiny(), tokens(), device="cpu", loss_names=[loss]) as bench:
            best = min(
                bench.losses(bench.apply(plan.orderings.order(order), bench.start()))[loss]
                for order in plan.orderings.orders()
            )
        assert plan.best["losses"][loss] == pytest.approx(best, rel=1e-5)

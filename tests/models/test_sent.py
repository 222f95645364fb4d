"""A bench that was sent to another process measures as the one here: states, losses, metrics and random numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.models import sent
from compcomp.models.bench import ModelBench
from compcomp.models.calibration import DENSE, SEQUENTIAL, Calibration
from compcomp.techniques import GPTQ, AbsMax, Magnitude, TruncatedSVD
from tests.models.fakes import Tiny, tokens

ORDER = Magnitude("1/2", pattern="2:4") >> GPTQ(bits=4, group=4, mask="kept")


def evaluate(model: nn.Module) -> dict[str, float]:
    grad = torch.is_grad_enabled()
    return {"loss": float(model(tokens()[0]).detach().square().mean() + torch.rand(())), "gradients": float(grad)}


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    yield
    sent._open.close()


@pytest.mark.parametrize("inputs", [DENSE, SEQUENTIAL])
@pytest.mark.parametrize("make", [Tiny, lambda: Tiny(tied=True), lambda: Tiny(dtype=torch.bfloat16)])
def test_it_measures_the_same(make: Callable[[], nn.Module], inputs: Calibration, tmp_path: Path) -> None:
    with torch.no_grad():  # a mode of the user, under which evaluate runs
        bench = ModelBench(make(), tokens(), evaluate, "cpu", inputs=inputs)
    torch.manual_seed(11)
    state = bench.apply_all(ORDER)
    there = pickle.loads(pickle.dumps(bench.sent(tmp_path)))
    here = (bench.digest(state), bench.losses(state), bench.evaluate(state), bench.evaluate(bench.start()))
    torch.manual_seed(12)
    after = torch.rand(())
    torch.manual_seed(12)
    with there.opened() as other:
        assert other is not bench and other.model is not bench.model
        found = other.apply_all(ORDER)
        for _ in range(2):
            assert (
                other.digest(found),
                other.losses(found),
                other.evaluate(found),
                other.evaluate(other.start()),
            ) == here
        assert here[2]["gradients"] == 0
    assert torch.equal(torch.rand(()), after), "a worker's own random numbers go on as they were"
    with there.opened() as again:
        assert again is other, "it is opened once"


def test_a_state_goes_by_path(tmp_path: Path) -> None:
    bench = ModelBench(Tiny(width=64), tokens(), evaluate, "cpu")
    state = bench.apply(
        TruncatedSVD(rank=2, residual=True), bench.apply(AbsMax(bits=4, group=4), bench.apply_all(ORDER))
    )
    there = pickle.loads(pickle.dumps(bench.sent(tmp_path)))
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    message = bench.pack(state, tmp_path / "state")
    written = sum(file.stat().st_size for file in tmp_path.iterdir()) - before
    assert len(message) < 20_000 and 4 * 6 * 64 * 64 <= written < 3 * 4 * 6 * 64 * 64, "weights, but no Gram matrices"
    with there.opened() as other:
        found = other.unpack(message)
        dense = other.start()
        assert other.digest(found) == bench.digest(state) and other.losses(found) == bench.losses(state)
        assert all(layer.gram is dense[name].gram for name, layer in found.items())
        further, here = (one.apply(Magnitude("3/4"), given) for one, given in ((other, found), (bench, state)))
        assert other.digest(further) == bench.digest(here)


class Held:
    """Something that cannot be sent."""

    def __reduce__(self) -> Any:
        raise TypeError("it holds a file")


@pytest.mark.parametrize("part", ["evaluate", "model"])
def test_the_part_that_cannot_be_sent_is_named(part: str, tmp_path: Path) -> None:
    model, held = Tiny(), Held()
    if part == "model":
        model.held = held  # type: ignore[assignment]
    use = (lambda given: {"loss": float(held is None)}) if part == "evaluate" else evaluate
    bench = ModelBench(model, tokens(), use, "cpu")
    with pytest.raises(InputError, match=rf"{part} cannot be sent \(TypeError: it holds a file\)"):
        bench.sent(tmp_path)

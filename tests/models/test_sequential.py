"""Models compressed block by block: what each block is calibrated on, and what becomes of the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomp as cc
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.models import grams
from compcomp.models import sequential as models_sequential
from compcomp.models.bench import ModelBench
from compcomp.models.blocks import find_blocks
from compcomp.models.calibration import Calibration
from compcomp.models.layers import find_layers
from compcomp.techniques import GPTQ, AbsMax, Magnitude, PruneHeads, SparseGPT, Wanda
from tests.amount import spread
from tests.architectures import ARCHITECTURES
from tests.by_hand import compressed, memory, modes, places, same, seen, sequential, stored

pytest.importorskip("transformers")

HALF: Any = "1/2"
PRUNED_THEN_QUANTIZED = [SparseGPT(HALF), GPTQ(bits=4, mask="kept")]


def names_of(model: nn.Module) -> list[str]:
    return [layer.name for layer in find_layers(model)]


def close(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, weight in wanted.items():
        torch.testing.assert_close(stored(model, name), weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(stored(model, name) == 0, weight == 0), name


def applied(model: nn.Module, batches: Any, order: Sequence[Technique], **how: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cc.apply(cc.Sequence(tuple(order)), model, batches, device="cpu", **how)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", spread(ARCHITECTURES, 12))
def test_dense_blocks_are_calibrated_as_the_dense_model_at_once(name: str, padded: bool) -> None:
    one = ARCHITECTURES[name]
    batches = one.batches(padded=padded)
    model, at_once = one.build(), one.build()
    before = memory(model)
    applied(model, batches, PRUNED_THEN_QUANTIZED, calibrate="dense")
    with ModelBench(at_once, batches, None, "cpu", loss_names=()) as bench:
        bench.write(bench.apply(cc.Sequence(tuple(PRUNED_THEN_QUANTIZED)), bench.start()))
    assert same(before, memory(model))
    assert not same(memory(model), memory(at_once))


@pytest.mark.parametrize("name", spread([name for name in reversed(ARCHITECTURES) if name != "albert"], 12))
def test_each_block_sees_the_outputs_of_compressed_ones(name: str) -> None:
    one = ARCHITECTURES[name]
    model, batches = one.build(), one.batches()
    wanted = sequential(model, names_of(model), batches, PRUNED_THEN_QUANTIZED)
    where, how = places(model), modes(model)
    applied(model, batches, PRUNED_THEN_QUANTIZED)
    assert places(model) == where and modes(model) == how
    close(model, wanted)


@pytest.mark.parametrize("name", ["llama", "t5", "bert", "gpt2"])
def test_padding_is_left_out_behind_compressed_blocks_too(name: str) -> None:
    one = ARCHITECTURES[name]
    padded, model = one.batches(padded=True, count=2), one.build()
    applied(model, padded, [Wanda(HALF), AbsMax(bits=4)])
    with_other_padding = one.build()
    for batch in padded:
        ids = batch["input_ids"]
        batch["input_ids"] = torch.where(batch["attention_mask"].bool(), ids, (ids + 7) % 40 + 4)
    applied(with_other_padding, padded, [Wanda(HALF), AbsMax(bits=4)])
    close(with_other_padding, {name: stored(model, name) for name in names_of(model)})


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_layers_in_turn_see_the_compressed_layers_before_them(name: str) -> None:
    one = ARCHITECTURES[name]
    model, batches = one.build(), one.batches()
    wanted = in_turn_by_hand(one.build(), batches)
    applied(model, batches, PRUNED_THEN_QUANTIZED, inside="in turn")
    close(model, wanted)


def test_steps_with_passes_of_their_own_see_what_the_steps_before_left() -> None:
    one = ARCHITECTURES["llama"]
    model, batches = one.build(), one.batches()
    by_hand = one.build()
    for step in (Wanda(HALF), GPTQ(bits=4)):
        for name, weight in sequential(by_hand, names_of(by_hand), batches, [step]).items():
            with torch.no_grad():
                by_hand.get_submodule(name).weight.copy_(weight)
    applied(model, batches, [Wanda(HALF), GPTQ(bits=4)], passes="own")
    close(model, {name: stored(by_hand, name) for name in names_of(model)})
    together = applied(one.build(), batches, [Wanda(HALF), GPTQ(bits=4)])
    assert same(memory(model), memory(together))


def test_a_plain_module_is_one_block_unless_others_are_named() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4))

    batches, order = [torch.randn(16, 6) for _ in range(2)], [GPTQ(bits=3)]
    model = build()
    assert [stage.layers for stage in find_blocks(model, find_layers(model))] == [("0", "2.0", "3")]
    grams = seen(model, ["0", "2.0", "3"], batches)
    dense = {name: compressed(stored(model, name), grams[name], order) for name in grams}
    close(applied(build(), batches, order), dense)
    wanted = sequential(model, ["0", "2.0", "3"], batches, order)  # no lists: every layer is a block
    close(applied(build(), batches, order, blocks=["0", "2", "3"]), wanted)
    close(applied(build(), batches, order, blocks="2"), wanted)  # layers outside of blocks are blocks
    with pytest.raises(InputError, match="'nowhere'"):
        applied(build(), batches, order, blocks=["0", "nowhere"])


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    found = {
        name: [stage.name for stage in find_blocks(model, find_layers(model))]
        for name, model in ((name, ARCHITECTURES[name].build()) for name in ("llama", "t5", "mixtral", "bert"))
        if name in ARCHITECTURES
    }
    assert found["llama"] == [f"model.layers.{k}" for k in range(len(found["llama"]))] and len(found["llama"]) > 1
    assert found["t5"][0] == "encoder.block.0" and found["t5"][-1].startswith("decoder.block.")
    assert found["bert"][0].endswith("encoder.layer.0")


def test_a_block_that_repeats_is_one_with_what_is_around_it() -> None:
    one = ARCHITECTURES["albert"]
    model, batches = one.build(), one.batches()
    names = names_of(model)
    repeated = [name for name in names if name.startswith("albert.encoder.")]
    grams = seen(model, repeated, batches)
    wanted = {name: compressed(stored(model, name), grams[name], [GPTQ(bits=4)]) for name in repeated}
    applied(model, batches, [GPTQ(bits=4)])
    close(model, wanted)


class Sharing(nn.Module):
    """Three blocks, the first and the last with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]


def test_a_layer_of_several_blocks_is_compressed_at_the_end() -> None:
    torch.manual_seed(0)
    model, batches = Sharing(), [torch.randn(16, 6) for _ in range(2)]
    order, before = [GPTQ(bits=3)], memory(model)
    grams = seen(model, ["first", "second"], batches)
    second = compressed(stored(model, "second"), grams["second"], order)
    with torch.no_grad():
        stored(model, "second").copy_(second)
    last = seen(model, ["third"], batches)["third"]
    with torch.no_grad():
        stored(model, "second").copy_(before["second.weight"])
    first = compressed(stored(model, "first"), grams["first"] + last, order)
    close(applied(model, batches, order, blocks=["first", "second", "third"]), {"first": first, "second": second})
    assert model.third.weight is model.first.weight


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_a_later_block_leaves_the_model_as_it_was(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ARCHITECTURES["llama"]
    model, batches = one.build(), one.batches()
    before, where, how = memory(model), places(model), modes(model)
    plain, calls = GPTQ.kernel, list[int]()

    def failing(self: GPTQ) -> Any:
        def run(technique: Any, layer: Any) -> Any:
            calls.append(1)
            if len(calls) > 8:  # in the second block
                assert same(before, memory(model))
                raise error("no more")
            return plain(self)(technique, layer)

        return run

    monkeypatch.setattr(GPTQ, "kernel", failing)
    with pytest.raises(error, match="no more"):
        applied(model, batches, [GPTQ(bits=4)])
    assert not same(before, memory(model)) and places(model) == where and modes(model) == how
    assert not any("forward" in vars(module) for module in model.modules())


def test_activations_that_are_not_finite_name_the_layer() -> None:
    one = ARCHITECTURES["llama"]
    model, batches = one.build(), one.batches()
    with torch.no_grad():
        stored(model, "model.layers.1.mlp.up_proj").fill_(3e38)
    before = memory(model)
    with pytest.raises(InputError, match=r"layer model.layers.1.mlp.down_proj: .*not finite"):
        applied(model, batches, [GPTQ(bits=4)])
    assert not same(before, memory(model))


def test_a_layer_that_never_runs_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    model = Idle()
    before = memory(model)
    with pytest.raises(InputError, match="layer unused: no input"):
        applied(model, [torch.randn(3, 4)], [GPTQ(bits=4)])
    assert not same(before, memory(model))


def test_a_module_may_write_to_its_inputs() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x += self.inner(x)
            return x

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Writing(), Writing(), Writing())

    batches = [torch.randn(12, 6) for _ in range(2)]
    names = ["0.inner", "1.inner", "2.inner"]
    kept = [batch.clone() for batch in batches]
    by_hand, wanted = build(), dict[str, Tensor]()
    for name in names:
        grams = seen(by_hand, [name], [b.clone() for b in kept])
        wanted[name] = compressed(stored(by_hand, name), grams[name], [GPTQ(bits=3)])
        with torch.no_grad():
            stored(by_hand, name).copy_(wanted[name])
    close(applied(build(), [b.clone() for b in kept], [GPTQ(bits=3)], blocks=["0", "1", "2"]), wanted)


# ---------------------------------------------------------------------------------------------- searches and plans


def evaluated(model: nn.Module) -> dict[str, float]:
    torch.manual_seed(3)
    with torch.no_grad():
        found = model(input_ids=torch.randint(4, 48, (4, 8))).logits
    return {"loss": float(found.double().square().mean())}


@pytest.mark.parametrize("passes", ["one", "own"])
def test_a_search_measures_the_models_that_its_plan_makes(passes: str) -> None:
    one = ARCHITECTURES["llama"]
    model, batches = one.build(), one.batches()
    steps = [Wanda(HALF), GPTQ(bits=4)]
    plan = cc.optimize_order(
        steps, model=model, calibration=batches, evaluate=evaluated, device="cpu", confidence=None, passes=passes
    )
    assert {row.text for row in plan.measurements} == {str(steps[0] >> steps[1]), str(steps[1] >> steps[0])}
    for row in plan.measurements:
        assert row.order is not None
        assert evaluated(applied(one.build(), batches, list(row.order), passes=passes)) == row.metrics
    applied_by_plan = plan.apply(one.build(), batches)
    assert evaluated(applied_by_plan) == plan.best.metrics
    assert evaluated(plan.apply(model)) == plan.best.metrics
    assert "calibrated on the outputs of the compressed blocks" in plan.inputs and plan.inputs in str(plan)


def test_prefixes_are_not_shared_where_later_steps_change_them() -> None:
    """With one pass, the state after a step depends on the steps behind it: sharing it would measure another model."""
    one = ARCHITECTURES["llama"]
    batches, steps = one.batches(), [Wanda(HALF), GPTQ(bits=4)]
    with ModelBench(one.build(), batches, None, "cpu", inputs=Calibration()) as bench:
        assert not bench.layers_apart(steps) and bench.layers_apart([Magnitude(HALF), AbsMax(bits=4)])
        shared = bench.apply(steps[1], bench.apply(steps[0], bench.start()))
        whole = bench.apply_all(steps[0] >> steps[1])
        assert bench.digest(shared) != bench.digest(whole)
    with ModelBench(one.build(), batches, None, "cpu", inputs=Calibration("dense")) as bench:
        assert bench.layers_apart(steps)
        shared = bench.apply(steps[1], bench.apply(steps[0], bench.start()))
        assert bench.digest(shared) == bench.digest(bench.apply_all(steps[0] >> steps[1]))


def test_orders_of_single_layers_are_applied_block_by_block() -> None:
    one = ARCHITECTURES["llama"]
    batches = one.batches()
    model = one.build()
    names = names_of(model)
    choices = cc.Sequence((Wanda(HALF), GPTQ(bits=4))), cc.Sequence((GPTQ(bits=4),))
    orders = {name: choices[k % 2] for k, name in enumerate(names)}
    with ModelBench(model, batches, None, "cpu", inputs=Calibration()) as bench:
        found = bench.apply_each(orders)
    by_hand = one.build()
    for block in {name.rsplit(".", 2)[0]: None for name in names}:
        inside = [name for name in names if name.startswith(f"{block}.")]
        grams = seen(by_hand, inside, batches)
        for name in inside:
            weight = compressed(stored(by_hand, name), grams[name], tuple(orders[name]))
            torch.testing.assert_close(found[name].weight, weight, rtol=1e-4, atol=1e-5)
            with torch.no_grad():
                stored(by_hand, name).copy_(weight)


def test_whole_model_techniques_run_between_passes() -> None:
    one = ARCHITECTURES["llama"]
    batches = one.batches()
    order = [PruneHeads(HALF), GPTQ(bits=4)]
    by_hand = applied(one.build(), batches, order[:1])
    wanted = sequential(by_hand, names_of(by_hand), batches, order[1:])
    found = applied(one.build(), batches, order)
    for name, weight in wanted.items():
        torch.testing.assert_close(stored(found, name), weight, rtol=1e-3, atol=1e-4)


def test_arguments_that_do_not_exist_are_refused_in_one_line() -> None:
    wrong = {"calibrate": "dense", "inside": "in turn"}, {"inside": "out"}, {"passes": "two"}, {"calibrate": ["dense"]}
    for how in ({"calibrate": "behind"}, *wrong):
        with pytest.raises(InputError) as raised:
            applied(nn.Linear(4, 4), [torch.randn(2, 4)], [GPTQ(bits=4)], **how)
        assert "\n" not in str(raised.value)


def test_large_parameters_that_a_model_writes_to_are_restored() -> None:
    class Counting(nn.Module):
        """Writes to a parameter when it runs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)
            self.table = nn.Parameter(torch.zeros(1024, 1024))
            self.unused = nn.Parameter(torch.ones(1024, 1024))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.table.add_(1)
            return self.inner(x)  # type: ignore[no-any-return]

    model = Counting()
    before = memory(model)
    applied(model, [torch.randn(4, 8)], [GPTQ(bits=4)])
    assert same(before, memory(model)) == ["inner.weight"]


def in_turn_by_hand(model: nn.Module, batches: Any) -> dict[str, Tensor]:
    """The weights that layers get one behind another. The model is compressed afterwards."""
    found = dict[str, Tensor]()
    for layer in names_of(model):
        found[layer] = compressed(stored(model, layer), seen(model, [layer], batches)[layer], PRUNED_THEN_QUANTIZED)
        with torch.no_grad():
            stored(model, layer).copy_(found[layer])
    return found


@pytest.mark.parametrize("padded", [False, True])
def test_layers_in_turn_that_read_one_tensor_share_its_gram_matrix(
    padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, products, plain = ARCHITECTURES["llama"], list[int](), grams.gram

    def counted(given: Tensor) -> Tensor:
        products.append(1)
        return plain(given)

    monkeypatch.setattr(grams, "gram", counted)
    model, apart, batches = one.build(), one.build(), one.batches(padded=padded)
    applied(model, batches, PRUNED_THEN_QUANTIZED, inside="in turn")
    shared = len(products)
    assert padded or shared == 3 * 4 * len(batches)  # q, k and v; o; gate and up; down
    monkeypatch.setattr(models_sequential, "_same", lambda one, other: False)
    applied(apart, batches, PRUNED_THEN_QUANTIZED, inside="in turn")
    assert len(products) - shared == 3 * 7 * len(batches)
    assert not same(memory(model), memory(apart))


def test_a_tensor_written_to_between_two_layers_is_not_taken_for_the_same() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            out = self.first(x)
            x.mul_(torch.tensor([1.0, 5.0, 0.2, 3.0, 1.0, 9.0]))
            return out + self.second(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, batches = Writing(), [torch.randn(9, 6), torch.randn(9, 6)]
    wanted = in_turn_by_hand(copy.deepcopy(model), batches)
    applied(model, batches, PRUNED_THEN_QUANTIZED, inside="in turn")
    close(model, wanted)

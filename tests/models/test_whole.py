"""Techniques that act on the whole model: what they see, what they promise, and what they gain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from compcomp.errors import InputError
from compcomp.language.technique import Sequence, Technique
from compcomp.layers.state import LayerState
from compcomp.layers.whole import WholeModel
from compcomp.models import embedded
from compcomp.models.bench import ModelBench
from compcomp.models.whole import Whole
from compcomp.optimize import apply, optimize_order
from compcomp.techniques import (
    AbsMax,
    DistillHidden,
    DistillLogits,
    LeastSquaresDistill,
    Magnitude,
    PruneHeads,
    PruneNeurons,
    RemoveBlocks,
    TruncatedSVD,
)
from tests.models.fakes import Tiny, gpt2, qwen2, tokens

P, Q = Magnitude("1/2", per="row"), AbsMax(bits=4)
L, D = TruncatedSVD(rank=1, residual=True), LeastSquaresDistill()
TRAINED: list[Technique] = [DistillLogits(12, rate="1/200"), DistillHidden(12, rate="1/200")]


def batches(model: Any, count: int = 2, length: int = 8) -> list[dict[str, torch.Tensor]]:
    source = torch.Generator().manual_seed(5)
    size = (4, length)
    return [{"input_ids": torch.randint(0, model.config.vocab_size, size, generator=source)} for _ in range(count)]


def bench(model: nn.Module, calibration: Any, **more: Any) -> ModelBench:
    return ModelBench(model, calibration, device="cpu", keep_batches=True, **more)


def apart(model: nn.Module, given: list[Any], dense: list[torch.Tensor]) -> float:
    """The mean KL divergence of the model's next tokens from the dense ones."""
    with torch.no_grad():
        found = [model(**batch).logits if isinstance(batch, dict) else model(batch) for batch in given]
    pairs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(dense, found, strict=True)]
    return sum(float((a.exp() * (a - b)).sum(-1).mean()) for a, b in pairs)


# What a kernel sees


@pytest.mark.parametrize("make", [qwen2, gpt2])
def test_forward_with_weights_is_what_the_model_does_with_them(make: Any) -> None:
    model = make()
    given = batches(model)
    with bench(model, given) as one:
        state = one.apply(P, one.start())
        whole = Whole(model, one.layers, state, given)
        weights = {name: layer.weight.clone().requires_grad_() for name, layer in state.items()}
        outputs = whole.forward(given[0], weights)
        dense = whole.forward(given[0])
        plain = model(**given[0], output_hidden_states=True)
        assert torch.equal(dense.logits, plain.logits) and not torch.equal(outputs.logits, plain.logits)
        assert torch.equal(dense.hidden[0], plain.hidden_states[0]) and len(dense.hidden) == len(plain.hidden_states)
        slopes = torch.autograd.grad(outputs.logits.square().sum(), list(weights.values()))
        assert all(bool(slope.any()) for slope in slopes)
        assert all(parameter.grad is None for parameter in model.parameters())
        one.write(state)
        with torch.no_grad():
            torch.testing.assert_close(model(**given[0]).logits, outputs.logits)


def test_a_model_without_blocks_shows_what_comes_out_of_its_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    given = [torch.randn(5, 4)]
    with bench(model, given) as one:
        outputs = Whole(model, one.layers, one.start(), given).forward(given[0])
        assert [tuple(h.shape) for h in outputs.hidden] == [(5, 4), (5, 6), (5, 3)]
        with pytest.raises(InputError, match="no feed-forward network"):
            one.apply(PruneNeurons("1/2"), one.start())
        with pytest.raises(InputError, match="no attention"):
            one.apply(PruneHeads("1/2"), one.start())
        with pytest.raises(InputError, match="without a list of blocks"):
            one.apply(RemoveBlocks(count=1), one.start())


def test_what_the_teacher_writes_is_its_own_and_repeats() -> None:
    model = qwen2()
    given = batches(model, length=12)
    whole = Whole(model, {}, {}, given)
    first, again, other = (whole.generated(seed) for seed in (1, 1, 2))
    for one, two, source in zip(first, again, given, strict=True):
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert torch.equal(one["input_ids"][:, :3], source["input_ids"][:, :3])
        assert one["input_ids"].shape == source["input_ids"].shape
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])
    # frequencies of the first token that is sampled against the model's own chances, cache and all
    many = Whole(model, {}, {}, [{"input_ids": given[0]["input_ids"][:1, :5].repeat(4000, 1)}]).generated(0)[0]
    seen = torch.bincount(many["input_ids"][:, 2][many["input_ids"][:, 1] == many["input_ids"][0, 1]], minlength=32)
    with torch.no_grad():
        chances = model(input_ids=many["input_ids"][:1, :2]).logits[0, -1].softmax(-1)
    deviation = (chances * (1 - chances) / seen.sum()).sqrt()
    assert bool(((seen / seen.sum() - chances).abs() < 5 * deviation).all())


def test_a_plain_model_goes_on_too_and_other_batches_are_refused() -> None:
    model = Tiny()
    assert Whole(model, {}, {}, tokens()).generated(0)[0].shape == tokens()[0].shape
    for wrong in (
        [torch.randn(2, 4)],
        [{"input_ids": tokens()[0], "attention_mask": torch.tensor([[1] * 5, [0] * 5])}],
    ):
        with pytest.raises(InputError, match="without padding"):
            Whole(model, {}, {}, wrong).generated(0)


# Training


@pytest.mark.parametrize("technique", TRAINED, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("targets", ["data", "self"])
def test_training_comes_closer_within_the_format(technique: Any, targets: str) -> None:
    model, given = qwen2(), batches(qwen2())
    with torch.no_grad():
        dense = [model(**batch).logits for batch in given]
    technique = replace(technique, targets=targets)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with bench(model, given) as one:
        start = one.apply(P >> L, one.start())
        kept = {name: layer.weight.clone() for name, layer in start.items()}
        after, again = one.apply(technique, start), one.apply(technique, start)
        assert one.digest(after) == one.digest(again)
        for name, layer in after.items():
            assert torch.equal(start[name].weight, kept[name]) and not torch.equal(layer.weight, kept[name])
            assert torch.equal(layer.format.mask, start[name].format.mask)
            assert torch.equal(layer.format.factors.left, start[name].format.factors.left)
            assert not bool(layer.weight[~layer.format.mask].any())
            assert bool(technique.feasible(arrays(start[name]), arrays(layer)))
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
        distances = []
        for state in (start, after):
            with one._held.holding(state) as held:
                distances.append(apart(held, given, dense))
        if targets == "data":
            assert distances[1] < 0.8 * distances[0]


def arrays(layer: LayerState) -> LayerState:
    """Tensors as object arrays, with no inputs: those are shared."""
    from compcomp.testing.readings import floats

    return floats(replace(layer, gram=None))


def test_a_layer_on_a_grid_stays_and_the_others_make_up_for_it() -> None:
    model = qwen2()
    given = batches(model)
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"]
    with bench(model, given) as one:
        start = one.start()
        quantized = one.apply(Q, start)
        mixed = {name: quantized[name] if name in names else layer for name, layer in start.items()}
        after = one.apply(DistillLogits(4), mixed)
        assert all(after[name] is mixed[name] for name in names)
        assert all(not torch.equal(after[name].weight, start[name].weight) for name in start if name not in names)
        nothing = one.apply(DistillLogits(4), quantized)
        assert one.digest(nothing) == one.digest(quantized)


def test_states_off_the_device_give_the_same() -> None:
    model = Tiny()
    results = []
    for offload in (False, True):
        with bench(model, tokens(), offload=offload) as one:
            results.append(one.digest(one.apply(P >> DistillLogits(3) >> Q, one.start())))
    assert results[0] == results[1]


class Steep(nn.Module):
    """Overflows as soon as its weights are large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.layer.weight, 0.3)
        self.layer.weight.data[0] = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).pow(61)  # type: ignore[no-any-return]


def test_a_rate_that_leads_nowhere_is_refused() -> None:
    with bench(Steep(), [torch.ones(2, 4)]) as one:
        start = one.apply(P, one.start())
        with pytest.raises(InputError, match="allowed: a smaller rate"):
            one.apply(DistillLogits(50, rate=1), start)


@pytest.mark.slow
def test_distillation_makes_up_for_half_the_weights() -> None:
    """On the embedded model: half the weights of each row are gone, and 20 steps bring perplexity back."""
    calibration = embedded.calibration(batches=4, batch_size=4, length=128)
    found = {
        name: embedded.perplexity(apply(order, embedded.load(), calibration, device="cpu"), windows=16)
        for name, order in {
            "pruned": P,
            "logits": P >> DistillLogits(20),
            "hidden": P >> DistillHidden(20),
            "own text": P >> DistillLogits(20, targets="self"),
        }.items()
    }
    dense = embedded.perplexity(embedded.load(), windows=16)
    assert all(
        dense < found[name] < dense + 0.75 * (found["pruned"] - dense) for name in ("logits", "hidden", "own text")
    )


# What a technique for a whole model may not do


@dataclass(frozen=True)
class Rogue(Technique):
    """Does to the states what a test wants."""

    act: Any = None
    whole_model = True

    def kernel_model(self) -> Any:
        return lambda technique, whole: self.act(whole)


def clobber(whole: WholeModel) -> dict[str, LayerState]:
    states = dict(whole.states)
    next(iter(states.values())).weight.mul_(2)
    return {name: replace(state, weight=state.weight.clone()) for name, state in states.items()}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda whole: {}, "states of other layers"),
        (clobber, "wrote to what it was given"),
        (lambda whole: {n: replace(s, weight=s.weight[:1]) for n, s in whole.states.items()}, "shape"),
        (lambda whole: {n: replace(s, weight=s.weight / 0) for n, s in whole.states.items()}, "not finite"),
    ],
)
def test_what_breaks_the_states_is_caught(act: Any, message: str) -> None:
    with bench(Tiny(), tokens()) as one, pytest.raises(InputError, match=message):
        one.apply(Rogue(act), one.start())


def test_they_need_batches_and_act_on_no_layer_apart() -> None:
    technique = DistillLogits(3)
    with ModelBench(Tiny(), tokens(), device="cpu") as one:
        with pytest.raises(InputError, match="keep_batches=True"):
            one.apply(technique, one.start())
        with pytest.raises(InputError, match="one layer at a time"):
            list(one.layer_jobs([P, technique], [-1, 0], [-1, 0], [1], 0, one.layer_names()))
        with pytest.raises(InputError, match="one layer at a time"):
            one.apply_each({name: Sequence((technique,)) for name in one.layer_names()})
    with ModelBench(Tiny(), None, device="cpu") as one, pytest.raises(InputError, match="no calibration"):
        one.apply(technique, one.start())


# Orders


def test_orders_with_one_are_all_measured() -> None:
    model, asked = Tiny(), list[str]()

    def evaluate(model: nn.Module) -> dict[str, float]:
        asked.append("")
        with torch.no_grad():
            return {
                "error": float(
                    sum((model(x) - wanted).square().mean() for x, wanted in zip(tokens(), dense, strict=True))
                )
            }

    with torch.no_grad():
        dense = [Tiny().eval()(x) for x in tokens()]
    T = DistillLogits(3)
    plan = optimize_order([P, Q, T], model=model, calibration=tokens(), evaluate=evaluate, device="cpu")
    assert plan.orders["total"] == plan.orders["measured"] + plan.orders["merged"] == 6 and plan.orders["dropped"] == 0
    assert plan.claims["asked"] == 0 and plan.optimality == "measured" and any("whole model" in n for n in plan.notes)
    values = {}
    for one in plan.measurements:
        copy = apply(parse(one["order"]), Tiny(), tokens(), device="cpu").eval()
        values[one["order"]] = evaluate(copy)["error"]
        assert values[one["order"]] == pytest.approx(one["metrics"]["error"], rel=1e-5)
    assert min(values, key=values.__getitem__) == str(plan.order)
    plan.apply(model)
    assert evaluate(model.eval())["error"] == pytest.approx(plan.best["metrics"]["error"], rel=1e-6)


def parse(text: str) -> Sequence:
    from compcomp.language.text import parse_sequence

    return parse_sequence(text)


def test_orders_with_one_by_loss_alone_and_again_from_a_store(tmp_path: Any) -> None:
    given: dict[str, Any] = {"calibration": tokens(), "device": "cpu", "store": tmp_path / "plan.db"}
    plan = optimize_order([P, D, DistillHidden(2)], model=Tiny(), **given)
    again = optimize_order([P, D, DistillHidden(2)], model=Tiny(), **given)
    assert plan.measurements == again.measurements and plan.orders["measured"] + plan.orders["merged"] == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": None}, "without a model"),
        ({"granularity": "layer"}, "granularity='model'"),
        ({"evaluations": 5}, "6 orders with a technique that acts on the whole model"),
        ({"calibration": None, "loss": "weight_l2"}, "calibration"),
    ],
)
def test_where_orders_with_one_are_refused(more: dict[str, Any], message: str) -> None:
    given = {"model": Tiny(), "calibration": tokens(), "device": "cpu"} | more
    if given["model"] is None:
        given = {}
    with pytest.raises(InputError, match=message):
        optimize_order([P, Q, DistillLogits(3)], **given)


def test_structure_needs_no_calibration() -> None:
    model = apply(PruneNeurons("1/2") >> PruneHeads(0) >> Q, qwen2(), device="cpu")
    down = model.model.layers[0].mlp.down_proj.weight  # type: ignore[union-attr, index]
    assert int((down == 0).all(dim=0).sum()) == 12


def test_neurons_that_put_out_least_on_the_calibration_texts_go() -> None:
    model = qwen2()
    texts, seen = batches(model), list[torch.Tensor]()
    down = model.model.layers[0].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double().flatten(0, -2)))
    with torch.no_grad():
        for batch in texts:
            model(**batch)
    handle.remove()
    energies = torch.cat(seen).square().sum(dim=0)
    after = apply(PruneNeurons("1/2", score="activation"), model, texts, device="cpu")
    left = after.model.layers[0].mlp.down_proj.weight.any(dim=0)  # type: ignore[union-attr, index]
    assert not bool(left[energies.argsort()[:12]].any()) and bool(left[energies.argsort()[12:]].all())
    with pytest.raises(InputError, match="calibration"):
        apply(PruneNeurons("1/2", score="activation"), model, device="cpu")


def test_everything_in_one_order() -> None:
    order = RemoveBlocks(count=1) >> PruneNeurons("1/2") >> DistillHidden(2) >> D >> L >> Q >> DistillLogits(2)
    model = qwen2()
    with bench(model, batches(model)) as one:
        after = one.apply(order, one.start())
        cuts = 0
        for layer in after.values():
            assert layer.format.factors is not None and layer.format.grid is not None
            if (cut := layer.format.cut) is not None:
                cuts += 1
                assert not bool(layer.weight[~cut.rows].any() or layer.weight[:, ~cut.columns].any())
                assert bool((~cut.rows).any() or (~cut.columns).any())
        assert cuts == 7 + 3  # a whole block, and the feed-forward network of the other
        assert one.compression_rate(after) > 0.5

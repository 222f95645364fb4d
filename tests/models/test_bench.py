from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.models.bench import ModelBench
from compcomp.models.measure import effective_weight
from compcomp.techniques import AbsMax, AbsMaxInputs, LeastSquaresDistill, Magnitude, TruncatedSVD, Wanda
from tests.helpers import refused
from tests.models.fakes import Fake, Tiny, gpt2, qwen2, scaled, tokens

HALF = Fraction(1, 2)
SEQUENCE = Wanda(HALF) >> AbsMax(4, group=4) >> LeastSquaresDistill() >> TruncatedSVD(1, residual=True)


def snapshot(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def outputs(model: nn.Module) -> float:
    with torch.no_grad():
        result = model(tokens(1, seed=9)[0])
    logits: Tensor = getattr(result, "logits", result)
    return float(logits.double().square().sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offload", [False, True])
def test_a_bench_starts_dense_and_leaves_the_model_alone(dtype: torch.dtype, offload: bool) -> None:
    model = Tiny(dtype=dtype)
    before = snapshot(model)
    with ModelBench(model, tokens(), outputs, device="cpu", offload=offload) as bench:
        state = bench.start()
        assert list(state) == [f"blocks.{i}.{name}" for i in (0, 1) for name in "qko"]
        first = state["blocks.0.q"]
        assert first.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert first.reference is first.weight and first.gram is state["blocks.0.k"].gram
        assert bench.losses(state) == dict.fromkeys(["weight_l1", "weight_l2", "output_l2", "relative_output_l2"], 0.0)
        dense = bench.evaluate(state)
        assert dense == {"outputs": outputs(model.eval())}
        after = bench.apply(SEQUENCE, state)
        assert bench.evaluate(after) != dense and bench.losses(after)["output_l2"] > 0
        assert bench.evaluate(state) == dense
        assert bench.digest(state) != bench.digest(after) and bench.digest(state) == bench.digest(bench.start())
    assert snapshot(model) == before


@pytest.mark.parametrize("build", [qwen2, gpt2])
def test_what_is_evaluated_is_what_is_written(build: Any) -> None:
    model = build()
    with ModelBench(model, tokens(), outputs, device="cpu") as bench:
        state = bench.apply(SEQUENCE, bench.start())
        metrics = bench.evaluate(state)
        assert bench.write(state) is model
        assert outputs(model) == metrics["outputs"]
        for name, layer in bench.layers.items():
            assert torch.equal(layer.weight, effective_weight(state[name]).float())
        assert bench.evaluate(bench.start()) != metrics  # what was written comes back afterwards
        assert outputs(model) == metrics["outputs"]


def test_offloading_changes_nothing() -> None:
    states, losses = [], []
    for offload in (False, True):
        bench = ModelBench(Tiny(), tokens(), device="cpu", offload=offload)
        states.append(bench.apply(SEQUENCE, bench.start()))
        losses.append(bench.losses(states[-1]))
    assert bench.digest(states[0]) == bench.digest(states[1]) and losses[0] == losses[1]


def test_techniques_run_layer_by_layer_on_the_dense_models_inputs() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    state = bench.start()
    after = bench.apply(scaled(0.5) >> SEQUENCE, state)
    for name, layer in after.items():
        alone = (scaled(0.5) >> SEQUENCE).kernel(state[name])
        assert torch.equal(effective_weight(layer), effective_weight(alone))
        assert layer.gram is state[name].gram and layer.reference is state[name].reference


def test_losses_are_sums_over_layers() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    state = bench.start()
    after = bench.apply(scaled(0.5), state)
    losses = bench.losses(after)
    expected = sum(float((layer.weight.double() ** 2).sum()) / 4 for layer in state.values())
    assert losses["weight_l2"] == pytest.approx(expected, rel=1e-12)
    assert losses["relative_output_l2"] == pytest.approx(0.25, rel=1e-9)
    layers = bench.layer_losses(after)
    assert sum(layer["output_l2"] for layer in layers.values()) == losses["output_l2"]
    assert ModelBench(Tiny(), tokens(), device="cpu", loss_names="weight_l1").losses(after).keys() == {"weight_l1"}


def test_the_model_comes_back_when_evaluation_fails() -> None:
    model = Tiny().train()
    model.blocks[0].eval()

    def evaluate(given: nn.Module) -> float:
        assert not given.training
        given.train()
        assert not torch.equal(given.blocks[0].q.weight, dense)  # type: ignore[union-attr, index]
        raise KeyboardInterrupt

    bench = ModelBench(model, tokens(), evaluate, device="cpu")
    dense, before = model.blocks[0].q.weight.detach().clone(), snapshot(model)
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        bench.evaluate(bench.apply(scaled(0.5), bench.start()))
    assert snapshot(model) == before
    assert [module.training for module in model.modules()] == modes


def test_negative_zeros_come_back_bitwise() -> None:
    model = Tiny(dtype=torch.bfloat16)
    model.blocks[0].q.weight.data[0, :3] = torch.tensor([-0.0, 9.2e-41, -1e-38])
    before = snapshot(model)
    bench = ModelBench(model, evaluate=outputs, device="cpu")
    bench.evaluate(bench.apply(scaled(3), bench.start()))
    assert snapshot(model) == before


def test_gradients_and_their_need_are_kept() -> None:
    model = Tiny()
    model(tokens(1)[0]).sum().backward()
    weight = model.blocks[0].q.weight
    gradient = weight.grad
    bench = ModelBench(model, tokens(), outputs, device="cpu")
    bench.evaluate(bench.apply(scaled(0.5), bench.start()))
    bench.write(bench.apply(scaled(0.5), bench.start()))
    assert model.blocks[0].q.weight is weight and weight.requires_grad and weight.grad is gradient


def test_metrics_may_be_infinite_and_are_noted_once() -> None:
    bench = ModelBench(Tiny(), evaluate=lambda model: {"ppl": float("inf"), "acc": 0.5}, device="cpu")
    for _ in range(2):
        assert bench.evaluate(bench.start())["ppl"] == float("inf")
    assert bench.notes == ["evaluate: ppl was inf"]
    assert bench.lower_is_better("ppl") and not bench.lower_is_better("acc")


def test_without_evaluate_there_are_no_metrics() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    assert bench.evaluate(bench.start()) == {}
    with pytest.raises(InputError, match="evaluate: a float; allowed: a function of the model"):
        ModelBench(Tiny(), evaluate=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate: None"):
        (bench := ModelBench(Tiny(), evaluate=lambda model: None, device="cpu")).evaluate(bench.start())


def test_without_calibration_only_weights_are_looked_at() -> None:
    bench = ModelBench(Tiny(), device="cpu")
    state = bench.apply(Magnitude(HALF), bench.start())
    assert state["blocks.0.q"].gram is None
    assert bench.losses(state).keys() == {"weight_l1", "weight_l2"}
    for technique in (Wanda(HALF), LeastSquaresDistill(), Fake(inputs=True)):
        with pytest.raises(InputError, match="no calibration; allowed: calibration data"):
            bench.apply(technique, state)
    with pytest.raises(InputError, match="loss output_l2: no calibration"):
        ModelBench(Tiny(), device="cpu", loss_names=["output_l2"])
    with pytest.raises(InputError, match="loss 'kl'"):
        ModelBench(Tiny(), device="cpu", loss_names=["kl"])


def test_inputs_cannot_be_changed_where_only_gram_matrices_are_kept() -> None:
    for calibration in (None, tokens()):
        bench = ModelBench(Tiny(), calibration, device="cpu")
        for sequence in (AbsMaxInputs(4), Magnitude(HALF) >> AbsMaxInputs(4)):
            refused(lambda s=sequence, b=bench: b.check(s), "AbsMaxInputs(bits=4)", "act on weights", "Gram matrices")


def test_wrong_use_is_found_before_calibration() -> None:
    def batches() -> Any:
        raise AssertionError("the calibration data was touched")
        yield

    bench = ModelBench(Tiny(), batches(), device="cpu")
    bench.check(SEQUENCE)
    with pytest.raises(InputError, match=r"layer blocks\.0\.q: AbsMax.*rows of 8 weights"):
        bench.check(Magnitude(HALF) >> AbsMax(4, group=3))
    with pytest.raises(InputError, match="calibration: a int"):
        ModelBench(Tiny(), 3)
    with pytest.raises(InputError, match=r"^device: "):
        ModelBench(Tiny(), device="tpu")


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (scaled(float("nan")), r"layer blocks\.0\.q: after Fake\(\): weights that are not finite"),
        (Fake(lambda layer: replace(layer, weight=layer.weight[:1])), r"weights of shape \(1, 8\), not \(8, 8\)"),
        (
            Fake(lambda layer: replace(layer, weight=layer.weight.mul_(1))),
            "a kernel that wrote to what it was given",
        ),
    ],
)
def test_kernels_that_go_wrong_are_named(technique: Fake, message: str) -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    with pytest.raises(InputError, match=message):
        bench.apply(technique, bench.start())


def test_other_errors_of_a_kernel_say_where() -> None:
    def fail(layer: Any) -> Any:
        raise ZeroDivisionError

    bench = ModelBench(Tiny(), device="cpu")
    with pytest.raises(ZeroDivisionError) as raised:
        bench.apply(Fake(fail), bench.start())
    assert raised.value.__notes__ == ["while Fake() ran on layer blocks.0.q"]


def test_weights_beyond_the_range_of_the_model_are_not_written() -> None:
    model = Tiny(dtype=torch.float16)
    before = snapshot(model)
    bench = ModelBench(model, device="cpu")
    with pytest.raises(InputError, match=r"layer blocks\.0\.q: a weight of magnitude .*fits into float16"):
        bench.write(bench.apply(scaled(1e6), bench.start()))
    assert snapshot(model) == before


def test_states_are_the_same_only_in_every_field() -> None:
    bench = ModelBench(Tiny(), device="cpu")
    dense = bench.start()
    assert bench.digest(dense) != bench.digest(bench.apply(Magnitude(Fraction(0)), dense))  # an all-true mask
    pruned = bench.apply(Magnitude(HALF), dense)
    assert bench.digest(pruned) == bench.digest(bench.apply(Magnitude(HALF), dense))
    assert bench.digest(pruned) == bench.digest(bench.apply(Magnitude(HALF), pruned))
    for technique in (AbsMax(4), TruncatedSVD(1, residual=True), TruncatedSVD(8)):
        assert bench.digest(pruned) != bench.digest(bench.apply(technique, pruned))
    assert bench.digest(dense) != bench.digest(bench.apply(scaled(1 + 2**-20), dense))
    assert bench.digest(dense) != bench.digest({"blocks.0.q": dense["blocks.0.q"]})
    quantized = bench.apply(AbsMax(4), dense)
    name = "blocks.1.o"
    zero = replace(quantized[name], weight=torch.where(quantized[name].weight == 0, -0.0, quantized[name].weight))
    assert bench.digest(quantized) == bench.digest({**quantized, name: zero})


def test_sizes() -> None:
    bench = ModelBench(Tiny(), tokens(), device="cpu")
    state = bench.start()
    assert bench.shapes() == [(8, 8)] * 6
    assert bench.bits(state) == 6 * 64 * 16 and bench.compression_rate(state) == 0
    after = bench.apply(Magnitude(HALF, pattern="2:4") >> AbsMax(4, group=8), state)
    assert bench.bits(after) == 6 * (32 * 4 + 64 + 8 * 16)
    assert bench.compression_rate(after) == 1 - bench.bits(after) / bench.bits(state)


def test_a_tied_head_follows_nothing_and_a_shared_layer_is_written_once() -> None:
    model = Tiny(tied=True)
    model.blocks[1].o.weight = model.blocks[0].o.weight
    bench = ModelBench(model, tokens(), outputs, device="cpu", ignore=())
    assert "lm_head" not in bench.layers and "blocks.1.o" not in bench.layers
    bench.write(bench.apply(scaled(0.5), bench.start()))
    assert model.blocks[1].o.weight is model.blocks[0].o.weight
    assert model.lm_head.weight is model.embed.weight


def test_a_bench_serves_the_embedded_model() -> None:
    from compcomp.models import embedded

    if not (embedded.FOLDER / "model.safetensors").exists():
        pytest.xfail("the embedded model has not been trained yet")
    model = embedded.load()
    evaluate = embedded.evaluator(windows=2)
    with ModelBench(model, embedded.calibration(batches=1, batch_size=2), evaluate, device="cpu") as bench:
        start = bench.start()
        dense, harmed = bench.evaluate(start), bench.evaluate(bench.apply(AbsMax(2), start))
        pairs = bench.evaluate_parts(start, [1, 0])["perplexity"]
    assert dense["perplexity"] < harmed["perplexity"] and bench.lower_is_better("perplexity")
    assert dense == evaluate(model) and bench.parts == 2 and bench.is_log("perplexity")
    assert math.exp(sum(part for part, _ in pairs) / sum(count for _, count in pairs)) == pytest.approx(
        dense["perplexity"], rel=1e-6
    )
    assert evaluate.key != embedded.evaluator(windows=3).key != embedded.evaluator(windows=3, length=128).key


@pytest.mark.cuda
@pytest.mark.parametrize("offload", [False, True])
def test_a_model_goes_to_the_gpu_and_comes_back(offload: bool) -> None:
    model = Tiny()
    before = snapshot(model)

    def evaluate(given: nn.Module) -> float:
        assert next(given.parameters()).is_cuda
        with torch.no_grad():
            return float(given(tokens(1)[0].cuda()).double().sum())

    with ModelBench(model, tokens(), evaluate, offload=offload) as bench:
        start = bench.start()
        assert start["blocks.0.q"].weight.is_cuda is not offload
        state = bench.apply(SEQUENCE, start)
        bench.evaluate(state)
        losses = bench.losses(state)
    assert snapshot(model) == before
    on_cpu = ModelBench(model, tokens(), device="cpu")
    for name, layer in on_cpu.start().items():
        torch.testing.assert_close(start[name].gram.cpu(), layer.gram, rtol=1e-4, atol=1e-4)
    pruned = on_cpu.losses(on_cpu.apply(Magnitude(HALF), on_cpu.start()))
    assert losses.keys() == pruned.keys()


def test_gram_matrices_do_not_depend_on_gradients() -> None:
    with torch.enable_grad():
        gram = ModelBench(Tiny(), tokens(), device="cpu").start()["blocks.0.o"].gram
    assert gram is not None and not gram.requires_grad
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-9

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from compcomp.errors import InputError
from compcomp.models.calibrate import calibrate
from compcomp.models.layers import find_layers
from tests.models.fakes import Tiny, gpt2, qwen2, tokens


def oracle(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Inputs recorded by replacing each layer's forward; no hook, no sharing."""
    grams: dict[str, Tensor] = {}
    layers = find_layers(model)
    for layer in layers:
        module = layer.modules[0]

        def forward(x: Tensor, module: nn.Module = module, name: str = layer.name) -> Any:
            rows = x.detach().reshape(-1, x.shape[-1]).double()
            grams[name] = grams.get(name, 0) + rows.T @ rows
            return type(module).forward(module, x)

        module.forward = forward
    model.eval()
    for batch in batches:
        model(batch)
    for layer in layers:
        del layer.modules[0].forward
    return grams


@pytest.mark.parametrize("build", [Tiny, qwen2, gpt2])
def test_gram_matrices_are_those_of_the_dense_models_inputs(build: Any) -> None:
    model = build()
    layers = find_layers(model)
    expected = oracle(model, tokens())
    grams = calibrate(model, layers, tokens())
    assert list(grams) and grams.keys() == {layer.name for layer in layers}
    for layer in layers:
        assert grams[layer.name].shape == (layer.shape[1],) * 2
        torch.testing.assert_close(grams[layer.name], expected[layer.name], rtol=1e-10, atol=1e-12)


def test_layers_with_one_input_share_one_matrix() -> None:
    model = qwen2()
    grams = calibrate(model, find_layers(model), tokens())
    layer = "model.layers.0."
    assert grams[f"{layer}self_attn.q_proj"] is grams[f"{layer}self_attn.v_proj"]
    assert grams[f"{layer}mlp.gate_proj"] is grams[f"{layer}mlp.up_proj"]
    assert grams[f"{layer}mlp.up_proj"] is not grams[f"{layer}self_attn.q_proj"]
    assert len({id(gram) for gram in grams.values()}) == 8


class Encoding(UserDict[str, Tensor]):
    """As transformers' BatchEncoding: a mapping, not a dict."""


@pytest.mark.parametrize(
    "batches",
    [
        tokens(),
        iter(tokens()),
        (batch for batch in tokens()),
        [{"input_ids": batch} for batch in tokens()],
        [Encoding({"input_ids": batch}) for batch in tokens()],
        [(batch,) for batch in tokens()],
        [[batch, None] for batch in tokens()],
        DataLoader(TensorDataset(torch.cat(tokens())), batch_size=2),
        torch.cat(tokens()),
        {"input_ids": torch.cat(tokens())},
    ],
    ids=["list", "iterator", "generator", "dicts", "encodings", "tuples", "lists", "loader", "tensor", "dict"],
)
def test_batches_come_in_many_forms(batches: Any) -> None:
    model = Tiny()
    grams, expected = calibrate(model, find_layers(model), batches), oracle(model, tokens())
    for name, gram in grams.items():
        torch.testing.assert_close(gram, expected[name], rtol=1e-5, atol=1e-6)


def test_a_layer_with_two_names_gets_the_inputs_of_both() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    gram = calibrate(model, find_layers(model), [x])["0"]
    y = model[1](model[0](x)).detach()
    torch.testing.assert_close(gram, x.double().T @ x.double() + y.double().T @ y.double())


def test_padding_is_left_out() -> None:
    model, batch = Tiny(), tokens()[0]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    padded = calibrate(model, find_layers(model), [{"input_ids": batch, "attention_mask": mask}])
    expected = oracle(model, [batch[:1, :3], batch[1:]])
    torch.testing.assert_close(padded["blocks.1.o"], expected["blocks.1.o"], rtol=1e-6, atol=1e-8)
    whole = calibrate(model, find_layers(model), [{"input_ids": batch, "attention_mask": torch.ones(2, 5)}])
    torch.testing.assert_close(whole["blocks.1.o"], oracle(model, [batch])["blocks.1.o"])


def test_the_model_is_left_as_it_was() -> None:
    model = Tiny().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = calibrate(model, find_layers(model), tokens())
    with pytest.raises(InputError, match=r"calibration: tokens that are float32 for embed \(batch 4\)"):
        calibrate(model, find_layers(model), [*tokens(), torch.zeros(1)])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    again = calibrate(model, find_layers(model), tokens())  # dropout is off
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(gram.requires_grad or gram.is_inference() for gram in first.values())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration: no batch; allowed: at least one"),
        (iter(()), "calibration: no batch"),
        (5, "calibration: a int; allowed: batches"),
        ("text", "calibration: a str; allowed: batches"),
        (["text"], "calibration: a batch that is a str"),
    ],
)
def test_calibration_that_cannot_be_used(batches: Any, message: str) -> None:
    model = Tiny()
    with pytest.raises(InputError, match=message):
        calibrate(model, find_layers(model), batches)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_never_runs_is_named() -> None:
    model = Tiny()
    model.spare = nn.Linear(8, 8)
    with pytest.raises(InputError, match=r"layer spare: no input in any calibration batch; .* in ignore"):
        calibrate(model, find_layers(model), tokens())
    assert calibrate(model, find_layers(model, ignore=("lm_head", "spare")), tokens())


def test_a_batch_without_tokens_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"calibration: an empty batch \(tokens of shape 0x3\) \(batch 1\)"):
        calibrate(model, find_layers(model), [torch.zeros(0, 3)])


def test_activations_that_are_not_finite_are_named_at_the_first_layer() -> None:
    model = Tiny()
    with torch.no_grad():
        model.blocks[0].o.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"layer blocks\.1\.q: calibration inputs that are not finite"):
        calibrate(model, find_layers(model), tokens())


def test_a_compiled_model_is_calibrated() -> None:
    model = Tiny()
    compiled: Any = torch.compile(model, backend="eager")
    grams, expected = calibrate(compiled, find_layers(compiled), tokens()), oracle(model, tokens())
    assert all(torch.allclose(gram, expected[name]) for name, gram in grams.items())

"""Exported folders hold what was compressed: read by the real libraries, bit for bit, and as small as promised."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import compcomp as cc
from compcomp.cli import app
from compcomp.exporting.export import check, modules_of
from compcomp.formats.saved import saved_model
from compcomp.formats.writers import WRITERS
from compcomp.layers.state import LayerState
from compcomp.models.checkpoint import Checkpoint
from tests.exporting.models import IDS, check_configuration, compressed, llama, loaded, logits_of, weights_of
from tests.helpers import refused

pytest.importorskip("compressed_tensors")

NAME = "model.layers.0.mlp.up_proj"
SYMMETRIC = [
    "AbsMax(bits=4, group=32)",
    "AbsMax(bits=4, group=32, grid='full_range')",
    "AbsMax(bits=4, group=32, grid='signed')",
    "AbsMax(bits=8, per='channel')",
    "AbsMax(bits=3, group=16)",
    "AbsMax(bits=4)",
    "Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=4, group=32)",
]
ASYMMETRIC = ["MinMax(bits=4, group=32)", "MinMax(bits=8, per='channel')", "MinMax(bits=4)"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("halves") / "model", torch.bfloat16)


@pytest.fixture(scope="module")
def four(small: Path) -> Path:
    return compressed("AbsMax(bits=4, group=32)", small, small.parent / "four")


# ------------------------------------------------------------------------------------------- compressed-tensors


@pytest.mark.parametrize("sequence", SYMMETRIC)
def test_transformers_reads_the_very_weights(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert (found.exact, found.step_error, found.weight_error) == (found.layers, 0, 0)
    ours, theirs = loaded(saved), loaded(tmp_path / "out")
    for name, weight in weights_of(theirs).items():
        assert torch.equal(weight, weights_of(ours)[name]), name
    assert torch.equal(logits_of(theirs), logits_of(ours))


def test_calibrated_2_4_in_four_bits(small: Path, tmp_path: Path) -> None:
    """GPTQ treats columns in the order of their activations. Its groups are of neighbouring columns all the same."""
    order = "SparseGPT(sparsity=1/2, pattern='2:4') >> GPTQ(bits=4, group=32, mask='kept', grid='full_range')"
    saved = compressed(order, small, tmp_path / "saved", calibration=[IDS])
    for format in ("compressed-tensors", "gptq"):
        cc.export(saved, tmp_path / format, format)
        assert cc.inspect(tmp_path / format, "2:4 W4g32").fits
    assert torch.equal(logits_of(loaded(tmp_path / "compressed-tensors")), logits_of(loaded(saved)))


@pytest.mark.parametrize("sequence", ASYMMETRIC)
def test_zero_points_are_read_up_to_the_rounding_of_a_sum(sequence: str, small: Path, tmp_path: Path) -> None:
    """The kernel adds offset and multiple in float32. The runtime multiplies once, with the zero point taken off."""
    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert found.step_error == 0 and found.weight_error < 2**-22
    ours, theirs = loaded(saved), loaded(tmp_path / "out")
    apart = [float((weight - weights_of(ours)[name]).abs().max()) for name, weight in weights_of(theirs).items()]
    assert 0 < max(apart) < 2**-22  # of weights below 1
    torch.testing.assert_close(logits_of(theirs), logits_of(ours), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sequence", [*SYMMETRIC, *ASYMMETRIC])
def test_in_bfloat16_the_change_is_the_one_that_is_reported(sequence: str, halves: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, halves, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert found.step_error <= 2**-8 and found.weight_error <= 2**-7
    ours, theirs = weights_of(loaded(saved)), weights_of(loaded(tmp_path / "out"))
    shares = [
        float((theirs[name].float() - weight.float()).abs().max() / weight.float().abs().max())
        for name, weight in ours.items()
    ]
    assert max(shares) == pytest.approx(found.weight_error, rel=1e-6)
    assert sum(share == 0 for name, share in zip(ours, shares, strict=True) if name not in NOT_LAYERS) == found.exact


@pytest.mark.parametrize(
    ("sequence", "format"),
    [
        ("AbsMax(bits=4, group=32, scales='bfloat16')", "compressed-tensors"),
        ("AbsMax(bits=4, group=32, grid='full_range', scales='bfloat16')", "compressed-tensors"),
        ("AbsMax(bits=8, per='channel', scales='bfloat16')", "compressed-tensors"),
        ("MinMax(bits=4, group=32, scales='bfloat16')", "compressed-tensors"),
        ("MinMax(bits=8, per='channel', scales='bfloat16')", "compressed-tensors"),
        ("Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=4, group=32, scales='bfloat16')", "compressed-tensors"),
        ("AbsMax(bits=4, group=32, scales='float16')", "gptq"),
        ("MinMax(bits=4, group=32, scales='float16')", "gptq"),
    ],
)
def test_steps_that_a_technique_stores_are_those_of_the_file(
    sequence: str, format: str, halves: Path, tmp_path: Path
) -> None:
    saved = compressed(sequence, halves, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", format)
    assert (found.exact, found.step_error, found.weight_error) == (14, 0, 0)
    if format == "compressed-tensors":
        ours, theirs = weights_of(loaded(saved)), weights_of(loaded(tmp_path / "out"))
        assert all(torch.equal(weight, ours[name]) for name, weight in theirs.items())


NOT_LAYERS = ("model.embed_tokens", "lm_head")


@pytest.mark.parametrize("sequence", [*SYMMETRIC, *ASYMMETRIC])
def test_the_library_packs_the_same_tensors(sequence: str, small: Path, tmp_path: Path) -> None:
    """From the saved weights, steps and zero points, by the library's own code."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    parts = load_file(_shard(saved))
    step = written[f"{NAME}.weight_scale"]
    state = {"weight": load_all(saved)[f"{NAME}.weight"], "weight_scale": step}
    if "MinMax" in sequence:
        offsets = parts[f"{NAME}.offsets"].reshape(step.shape)
        half = 2 ** (scheme.weights.num_bits - 1)
        state["weight_zero_point"] = (torch.round(-offsets / step) - half).to(torch.int8)
    expected = BaseCompressor.get_value_from_registry("pack-quantized").compress(state, scheme)
    own = {name.removeprefix(f"{NAME}."): part for name, part in written.items() if name.startswith(f"{NAME}.")}
    assert own.keys() == expected.keys()
    for name, part in expected.items():
        assert own[name].dtype == part.dtype and torch.equal(own[name], part), name


def _shard(folder: Path) -> Path:
    return next(p for p in sorted(folder.glob("components-*")) if f"{NAME}.levels" in load_file(p))


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: part for path in folder.glob("model*.safetensors") for name, part in load_file(path).items()}


@pytest.mark.parametrize("sequence", [*SYMMETRIC, "MinMax(bits=4, group=32)"])
def test_the_configuration_is_what_the_library_writes(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    check_configuration(tmp_path / "out")


@pytest.mark.parametrize(
    ("sequence", "unit"),
    [
        ("AbsMax(bits=4, group=8)", Fraction(7, 16)),
        ("AbsMax(bits=4, group=8, grid='full_range')", Fraction(15, 32)),
        ("AbsMax(bits=4, group=8, grid='signed')", Fraction(1, 2)),
        ("Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=4, group=8)", Fraction(7, 16)),
        ("MinMax(bits=4, group=8)", Fraction(15, 32)),
    ],
)
def test_a_file_holds_the_fractions_of_the_encoding(sequence: str, unit: Fraction, small: Path, tmp_path: Path) -> None:
    """Of weights whose largest one (or range) is `unit`, so that every step is a number that floats hold."""
    model = llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    weight = tensors[f"{NAME}.weight"]
    draw = np.random.default_rng(0)
    exact = np.array([Fraction(int(k), 64) for k in draw.integers(-13, 14, weight.numel())]).reshape(weight.shape)
    exact[:, ::8] = unit if "MinMax" not in sequence else Fraction(15, 64)
    exact[:, 1::8] = Fraction(0) if "MinMax" not in sequence else Fraction(-15, 64)
    tensors[f"{NAME}.weight"] = torch.tensor(exact.astype(float), dtype=torch.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    saved = compressed(sequence, model, tmp_path / "saved", targets=[NAME])
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    rows = exact[:4]
    encoded = cc.parse_sequence(sequence).encode(LayerState.dense(rows)).weight
    read = weights_of(loaded(tmp_path / "out"))[NAME][:4].double().numpy()
    assert [[Fraction(x) for x in row] for row in read] == encoded.tolist()


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_embeddings_are_read(tied: bool, tmp_path: Path) -> None:
    """Also where an output head shares the weight: it is stored once."""
    model = llama(tmp_path / "model", tie_word_embeddings=tied)
    targets = ["model.layers", "embed_tokens", *([] if tied else ["lm_head"])]
    saved = compressed("AbsMax(bits=8, group=32)", model, tmp_path / "saved", targets=targets, ignore=())
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert found.exact == found.layers == (15 if tied else 16)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert torch.equal(logits_of(loaded(tmp_path / "out")), logits_of(loaded(saved)))


# ------------------------------------------------------------------------------------------------ GPTQ layout


@pytest.mark.parametrize(
    "sequence", ["AbsMax(bits=4, group=32)", "MinMax(bits=4, group=32)", "AbsMax(bits=3, group=16)"]
)
def test_the_gptq_layout_by_another_packer(sequence: str, small: Path, tmp_path: Path) -> None:
    """By the packer of the tests of readers, which is written from the published layout."""
    from tests.formats import files

    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "gptq")
    written, parts = load_file(tmp_path / "out" / "model.safetensors"), load_file(_shard(saved))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits, group = settings["bits"], settings["group_size"]
    assert (settings["checkpoint_format"], settings["desc_act"]) == ("gptq", False)
    levels, scales = parts[f"{NAME}.levels"].numpy(), parts[f"{NAME}.scales"].numpy().reshape(96, -1)
    zeros, codes = np.full(scales.shape, 1 << (bits - 1)), levels.astype(np.int64) + (1 << (bits - 1))
    if "MinMax" in sequence:
        assert settings["sym"] is False
        zeros, codes = np.rint(-parts[f"{NAME}.offsets"].numpy().reshape(96, -1) / scales).astype(int), levels
    order = np.arange(64) // group
    expected = files.gptq(codes.T, scales.T.astype(np.float16), zeros.T, order, bits)
    for name, part in expected.items():
        given = written[name.replace(files.NAME, NAME)].numpy()
        assert np.array_equal(given, part), name


@pytest.mark.parametrize(
    "sequence", ["AbsMax(bits=4, group=32)", "MinMax(bits=8, per='channel')", "MinMax(bits=2, group=32)"]
)
def test_inspect_reads_the_gptq_layout_as_the_weights(sequence: str, small: Path, tmp_path: Path) -> None:
    from compcomp.formats.checkpoint import opened

    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "gptq")
    assert found.step_error <= 2**-11
    dense, layers = load_all(saved), {layer.name: layer for layer in opened(tmp_path / "out").layers}
    for name in (name for name in layers if name.startswith("model.layers")):
        assert layers[name].format == "GPTQ" and layers[name].read is not None
        read = np.concatenate([block.values for block in layers[name].blocks()])
        weight = dense[f"{name}.weight"].numpy()
        assert np.abs(read - weight).max() <= 2**-11 * 1.001 * np.abs(weight).max() + 1e-8, name


def test_a_zero_point_that_readers_read_differently_is_refused(tmp_path: Path) -> None:
    """Stored minus 1 in four bits it is 15; some readers add 1 and get 16, some 0, some carry into the next one."""
    model = llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[f"{NAME}.weight"][5, :32].abs_()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    saved = compressed("MinMax(bits=4, group=32)", model, tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", "gptq"), f"{NAME} has a zero point 0", "fit: compressed-tensors")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    dense, read = load_all(saved)[f"{NAME}.weight"], weights_of(loaded(tmp_path / "out"))[NAME]
    assert float((read - dense).abs().max()) < 2**-22


def test_a_step_beyond_float16_is_refused(tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[f"{NAME}.weight"] *= 1e-8
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    saved = compressed("AbsMax(bits=4, group=32)", model, tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", "gptq"), f"layer {NAME}, with a step that F16 does not hold")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ bitsandbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("sequence", "ignore"),
    [
        ("NF4(group=64)", ["lm_head"]),
        ("NF4(group=128, scales='double')", ["lm_head", "up_proj", "down_proj"]),
        ("Magnitude(sparsity=1/2, pattern='2:4') >> NF4(group=64)", ["lm_head"]),
    ],
)
def test_bitsandbytes_reads_the_very_weights(
    sequence: str, ignore: list[str], dtype: torch.dtype, tmp_path: Path
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    model = llama(tmp_path / "model", dtype, hidden_size=128, intermediate_size=192)
    saved = compressed(sequence, model, tmp_path / "saved", ignore=ignore)
    found = cc.export(saved, tmp_path / "out", "bitsandbytes")
    assert found.exact == found.layers == 16 - 2 - 2 * (len(ignore) - 1)
    ours, theirs = loaded(saved), loaded(tmp_path / "out")
    layers = {n: m.weight for n, m in theirs.named_modules() if hasattr(getattr(m, "weight", None), "quant_state")}
    assert len(layers) == found.layers
    for name, weight in layers.items():
        read = functional.dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(read, weights_of(ours)[name]), name
    torch.testing.assert_close(
        logits_of(theirs), logits_of(ours), rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2
    )


def test_bitsandbytes_quantizes_to_the_same_tensors(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    model = llama(tmp_path / "model", hidden_size=128, intermediate_size=192)
    saved = compressed("NF4(group=64)", model, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "bitsandbytes")
    written = load_file(tmp_path / "out" / "model.safetensors")
    packed, state = functional.quantize_4bit(load_all(saved)[f"{NAME}.weight"], blocksize=64, quant_type="nf4")
    expected = {"weight": packed, **{f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}}
    own = {name.removeprefix(f"{NAME}."): part for name, part in written.items() if name.startswith(f"{NAME}.")}
    assert own.keys() == expected.keys()
    about = "weight.quant_state.bitsandbytes__nf4"
    assert json.loads(bytes(own.pop(about).tolist())) == json.loads(bytes(expected.pop(about).tolist()))
    for name, part in expected.items():
        assert own[name].dtype == part.dtype and torch.equal(own[name], part), name


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize(
    ("sequence", "format"),
    [
        ("AbsMax(bits=4, group=64)", "compressed-tensors"),
        ("MinMax(bits=4, group=128)", "compressed-tensors"),
        ("AbsMax(bits=8, per='channel')", "compressed-tensors"),
        ("FP8()", "compressed-tensors"),
        ("FP8(per='row')", "compressed-tensors"),
        ("MX(format='mxfp4')", "compressed-tensors"),
        ("AbsMax(bits=4, group=128)", "gptq"),
        ("AbsMax(bits=8, per='channel')", "gptq"),
    ],
)
def test_bytes_are_as_promised(sequence: str, format: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1}
    saved = compressed(sequence, llama(tmp_path / "model", torch.bfloat16, **wide), tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", format)
    assert 1 <= found.layer_bytes / found.promised_bytes < 1.02
    assert found.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_shards_are_read_as_one_model(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compcomp.formats.writing.SHARD", 20_000)
    cc.export(four, tmp_path / "out", "compressed-tensors")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3 and all(path.stat().st_size < 45_000 for path in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for p in shards for t in load_file(p).values())
    assert torch.equal(logits_of(loaded(tmp_path / "out")), logits_of(loaded(four)))


def test_other_files_are_copied_and_earlier_ones_replaced(four: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(four, saved)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "plan.json"):
        (saved / name).write_text("{}")
    for format in ("compressed-tensors", "gptq", "dense"):
        cc.export(saved, tmp_path / "out", format)
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json"} <= names
        assert {name for name in names if name.endswith(".safetensors")} == {"model.safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert torch.equal(logits_of(loaded(tmp_path / "out")), logits_of(loaded(saved)))


def test_inspect_agrees_with_an_exported_folder(small: Path, tmp_path: Path) -> None:
    saved = compressed(SYMMETRIC[-1], small, tmp_path / "saved")
    for format in ("compressed-tensors", "gptq"):
        cc.export(saved, tmp_path / format, format)
        assert cc.inspect(tmp_path / format, "2:4 W4g32").fits


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("sequence", "format", "reason"),
    [
        ("NF4(group=32)", "compressed-tensors", "a codebook other than FP8 (E4M3) and FP4 (E2M1)"),
        ("FP4(group=32)", "compressed-tensors", "no powers of two (MXFP4), and no FP8 numbers under one scale"),
        ("FP8(per='row')", "gptq", "those of a codebook, which are no integers"),
        ("NF4(group=32)", "bitsandbytes", "its groups are not of 64, 128"),
        ("AbsMax(bits=4, group=32)", "bitsandbytes", "its weights are not in the codebook NF4"),
        ("Magnitude(sparsity=1/2, pattern='2:4')", "compressed-tensors", "its weights lie on no grid"),
        ("MinMax(bits=4, group=32, zero='none')", "gptq", "no whole numbers of steps below zero"),
        ("AbsMax(bits=4)", "gptq", "its matrix shares one step"),
        ("AbsMax(bits=5, group=32)", "gptq", "its levels take 5 bits, and readers know 2, 3, 4, 8"),
        ("AbsMax(bits=9, group=32)", "compressed-tensors", "its levels take 9 bits"),
        (
            "TruncatedSVD(rank=4, residual=True) >> AbsMax(bits=4, group=32)",
            "compressed-tensors",
            "a low-rank term of rank 4",
        ),
        ("Hadamard(block=32) >> AbsMax(bits=4, group=32)", "gptq", "in another basis (Hadamard 32)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_formats_that_fit(
    sequence: str, format: str, reason: str, small: Path, tmp_path: Path
) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", format), reason)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_folders_that_cannot_be_used_are_refused(four: Path, small: Path, tmp_path: Path) -> None:
    refused(lambda: cc.export(four, four, "gptq"), "which is the compressed model")
    refused(lambda: cc.export(four, four / "out", "gptq"), "which lies in the compressed model")
    refused(lambda: cc.export(small, tmp_path / "out", "gptq"), "without compcomp.json")
    refused(lambda: cc.export(four, tmp_path / "out", "gptq_v2"), "format 'gptq_v2'; allowed: compressed-tensors, gptq")
    cc.export(four, tmp_path / "out", "gptq")
    refused(lambda: cc.export(tmp_path / "out", tmp_path / "again", "compressed-tensors"), "which was exported as gptq")


def test_components_that_are_not_of_the_weights_are_refused(four: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(four, saved)
    path = _shard(saved)
    parts = load_file(path)
    parts[f"{NAME}.levels"][3, 5] += 1
    save_file(parts, path)
    refused(
        lambda: cc.export(saved, tmp_path / "out", "compressed-tensors"),
        f"layer {NAME}, whose components do not give its weight",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [96]}, "whose entry of"),
        ({"shape": [64, 96]}, "levels of shape (96, 64), not (64, 96)"),
        ({"bits": None}, "whose entry of"),
        ({"codes": ["1/0"]}, "whose entry of"),
        ({"levels": "seven"}, "whose entry of"),
        ({"levels": 3}, "integers from -3 to 11 in 3 bits"),
    ],
)
def test_a_damaged_description_is_refused(change: dict[str, object], reason: str, four: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(four, saved)
    about = json.loads((saved / "compcomp.json").read_text())
    about["layers"][NAME] |= change
    about["layers"][NAME] |= {"lowest": -3} if change == {"levels": 3} else {}
    (saved / "compcomp.json").write_text(json.dumps(about))
    refused(lambda: cc.export(saved, tmp_path / "out", "compressed-tensors"), reason)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_linear_layers_that_share_a_weight_are_refused(four: Path) -> None:
    """Such models are rare in transformers, so two layers are said to be one here."""
    one, other = NAME, "model.layers.1.mlp.up_proj"
    modules, _ = modules_of(Checkpoint(four).model)
    model = saved_model(four, modules, {other: one})
    for name in ("compressed-tensors", "gptq"):
        refused(lambda: check(WRITERS[name], model), f"{one} and {other} share a compressed weight")  # noqa: B023


def test_layers_of_gpt2_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64)).save_pretrained(tmp_path / "model")
    saved = compressed("AbsMax(bits=4, group=32)", tmp_path / "model", tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", "compressed-tensors"), "its module is Conv1D")


def test_gptq_needs_every_layer_of_the_blocks_alike(small: Path, tmp_path: Path) -> None:
    saved = compressed("AbsMax(bits=4, group=32)", small, tmp_path / "saved", ignore=["lm_head", "up_proj"])
    refused(
        lambda: cc.export(saved, tmp_path / "out", "gptq"),
        "layers.0.mlp.up_proj is not quantized, and readers take every Linear layer in a block for quantized",
    )
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert torch.equal(logits_of(loaded(tmp_path / "out")), logits_of(loaded(saved)))


# ------------------------------------------------------------------------------------------------ the other ways


def test_the_commands(small: Path, four: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(app, ["export", str(four), "--format", "compressed-tensors", "--out", str(tmp_path / "a"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout[result.stdout.index("{") :])["exact"] == 14
    order = "AbsMax(bits=4, group=32)"
    given = ["apply", order, str(small), "--out", str(tmp_path / "b"), "--format", "compressed-tensors"]
    result = run(app, given)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    refused(
        lambda: run(app, ["apply", "NF4(group=32)", *given[2:]], catch_exceptions=False, standalone_mode=False),
        "from the step NF4(group=32) on; allowed: formats that fit: ",
    )


def test_every_format_is_listed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert [name for name in WRITERS if f"| `{name}` |" not in page] == []

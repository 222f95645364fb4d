"""FP8 and FP4 in compressed-tensors: read as the saved weights, and packed as the library packs them itself."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compcomp as cc
from compcomp.exporting.structures import check_fits
from compcomp.formats.checkpoint import opened
from compcomp.formats.compressed_floats import misfit
from compcomp.formats.numbers import decoded, encoded
from compcomp.formats.writers import WRITERS
from compcomp.formats.writing import Structure
from compcomp.layers import codebooks
from compcomp.layers.state import LayerState
from tests.exporting.models import check_configuration, compressed, llama, loaded, logits_of, weights_of
from tests.helpers import refused

pytest.importorskip("compressed_tensors")

NAME = "model.layers.0.mlp.up_proj"
WRITER = WRITERS["compressed-tensors"]
EIGHT = [
    "FP8()",
    "FP8(per='row')",
    "FP8(group=16)",
    "Magnitude(sparsity=1/2, pattern='2:4') >> FP8(per='row')",
    "MX(format='mxfp8_e4m3')",
]
FOUR = [
    "MX(format='mxfp4')",
    "MX(format='mxfp4', group=64)",
    "Magnitude(sparsity=1/2, pattern='2:4') >> MX(format='mxfp4')",
    "MX(format='mxfp4', group=16)",
]
FORMATS = {FOUR[0]: "mxfp4-pack-quantized", FOUR[1]: "mxfp4-pack-quantized", FOUR[2]: "mxfp4-pack-quantized"}
FORMATS |= {FOUR[3]: "nvfp4-pack-quantized", **dict.fromkeys(EIGHT, "float-quantized")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("halves"), torch.bfloat16)


def model(folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    return llama(folder / "model", dtype, **{"intermediate_size": 128, "num_hidden_layers": 1, **more})


def dense(folder: Path) -> dict[str, torch.Tensor]:
    return {name: part for path in folder.glob("model*.safetensors") for name, part in load_file(path).items()}


def read(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of all Linear layers of the blocks, as `compcomp inspect` reads them."""
    layers = [layer for layer in opened(folder).layers if layer.name.startswith("model.layers")]
    return {layer.name: np.concatenate([block.values for block in layer.blocks()]) for layer in layers}


def with_weight(source: Path, weight: torch.Tensor) -> Path:
    """A model on disk with other numbers in the first rows of one layer."""
    tensors = load_file(source / "model.safetensors")
    tensors[f"{NAME}.weight"][: len(weight)] = weight
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize(
    ("sequence", "wide"), [*((one, True) for one in EIGHT), *((one, False) for one in EIGHT + FOUR)]
)
def test_transformers_reads_what_is_reported(
    sequence: str, wide: bool, small: Path, halves: Path, tmp_path: Path
) -> None:
    """It unpacks FP4 to bfloat16 whatever the model's dtype, and does not run that in a model of float32."""
    saved = compressed(sequence, small if wide else halves, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    ours, theirs = loaded(saved), loaded(tmp_path / "out")
    layers = {name: weight.float() for name, weight in weights_of(theirs).items() if name.startswith("model.layers")}
    apart = {name: float((weight - weights_of(ours)[name].float()).abs().max()) for name, weight in layers.items()}
    shares = {name: part / float(weights_of(ours)[name].float().abs().max()) for name, part in apart.items()}
    assert max(shares.values()) == pytest.approx(found.weight_error, rel=1e-6)
    assert found.layers == len(layers) and found.exact == sum(not part for part in apart.values())
    if wide or "MX" in sequence:
        assert (found.exact, found.step_error) == (found.layers, 0)
        assert torch.equal(logits_of(theirs), logits_of(ours))
    else:
        assert 0 < found.step_error <= 2**-8


@pytest.mark.parametrize("sequence", [FOUR[0], FOUR[3]])
def test_a_model_of_float32_is_loaded_in_bfloat16(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval()
    assert bool(logits_of(theirs).isfinite().all())
    for name, weight in weights_of(theirs).items():
        if name.startswith("model.layers"):
            assert torch.equal(weight.float(), dense(saved)[f"{name}.weight"]), name


@pytest.mark.parametrize("sequence", EIGHT + FOUR)
def test_inspect_reads_the_saved_weights(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert (found.exact, found.step_error, found.weight_error) == (found.layers, 0, 0)
    expected = dense(saved)
    for name, weight in read(tmp_path / "out").items():
        assert np.array_equal(weight, expected[f"{name}.weight"].numpy()), name
    formats = {layer.format for layer in opened(tmp_path / "out").layers if layer.name.startswith("model.layers")}
    assert formats == {f"compressed-tensors {FORMATS[sequence]}"}
    if "2:4" in sequence:
        assert cc.inspect(tmp_path / "out", "2:4").fits


@pytest.mark.parametrize("sequence", EIGHT + FOUR)
def test_the_library_packs_the_same_tensors(sequence: str, small: Path, tmp_path: Path) -> None:
    """From the saved weights and steps, by the library's own code, and it unpacks the saved weights."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    assert scheme.format == settings["format"] == FORMATS[sequence]
    written = load_file(tmp_path / "out" / "model.safetensors")
    own = {name.removeprefix(f"{NAME}."): part for name, part in written.items() if name.startswith(f"{NAME}.")}
    parts = next(p for p in map(load_file, saved.glob("components-*")) if f"{NAME}.levels" in p)
    weight, step = dense(saved)[f"{NAME}.weight"], parts[f"{NAME}.scales"]
    if scheme.weights.group_size:
        step = step.reshape(len(weight), -1)
        step = step.repeat_interleave(weight.shape[1] // scheme.weights.group_size // step.shape[1], 1)
    state = {"weight": weight, "weight_scale": step.reshape(own["weight_scale"].shape)}
    if "weight_global_scale" in own:
        state["weight_scale"] = step * own["weight_global_scale"]
        state["weight_global_scale"] = own["weight_global_scale"]
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    expected = compressor.compress(state, scheme)
    assert own.keys() == expected.keys()
    for name, part in expected.items():
        assert own[name].dtype == part.dtype and own[name].shape == part.shape, name
        assert torch.equal(own[name].view(torch.uint8), part.view(torch.uint8)), name
    assert torch.equal(compressor.decompress(own, scheme)["weight"].float(), weight)


@pytest.mark.parametrize("sequence", [EIGHT[0], EIGHT[1], EIGHT[2], FOUR[0], FOUR[3]])
def test_the_configuration_is_what_the_library_writes(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    check_configuration(tmp_path / "out")


@pytest.mark.parametrize(
    ("sequence", "unit"),
    [
        ("FP8(group=16)", Fraction(7, 16)),
        ("FP8(per='row')", Fraction(7, 16)),
        ("MX(format='mxfp4')", Fraction(7, 16)),
        ("MX(format='mxfp4', group=16)", Fraction(7, 16)),
    ],
)
def test_a_file_holds_the_fractions_of_the_encoding(sequence: str, unit: Fraction, tmp_path: Path) -> None:
    """Of weights whose largest one is `unit` in each group, so that every step is a number that floats hold."""
    draw = np.random.default_rng(0)
    rows = np.array([Fraction(int(k), 1024) for k in draw.integers(-448, 449, 4 * 64)]).reshape(4, 64)
    rows[:, ::16] = unit
    source = with_weight(model(tmp_path), torch.tensor(rows.astype(float), dtype=torch.float32))
    saved = compressed(sequence, source, tmp_path / "saved", targets=[NAME])
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    encoded_rows = cc.parse_sequence(sequence).encode(LayerState.dense(rows)).weight
    assert len(set(encoded_rows.reshape(-1).tolist())) > 8
    assert [[Fraction(float(x)) for x in row] for row in read(tmp_path / "out")[NAME][:4]] == encoded_rows.tolist()


@pytest.mark.parametrize("sequence", [EIGHT[2], FOUR[0], FOUR[3]])
def test_a_group_of_zeros_is_read_as_zeros(sequence: str, tmp_path: Path) -> None:
    """Its step is zero, which MXFP4 does not have."""
    source = with_weight(model(tmp_path, torch.bfloat16), torch.zeros(3, 64, dtype=torch.bfloat16))
    saved = compressed(sequence, source, tmp_path / "saved")
    assert cc.export(saved, tmp_path / "out", "compressed-tensors").layers == 7
    theirs = weights_of(loaded(tmp_path / "out"))[NAME]
    assert not theirs[:3].any() and bool(theirs[3].any())
    assert not read(tmp_path / "out")[NAME][:3].any()


def test_matrices_of_nvfp4_share_one_scale(small: Path, tmp_path: Path) -> None:
    """vLLM takes the largest one for queries, keys and values together."""
    saved = compressed(FOUR[3], small, tmp_path / "saved")
    cc.export(saved, tmp_path / "out", "compressed-tensors")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    found = [part for name, part in tensors.items() if name.endswith("weight_global_scale")]
    assert len(found) == 7 and {float(part) for part in found} == {256.0}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sequence", ["FP8(group=32)", "MX(format='mxfp4')"])
def test_embeddings_are_stored_in_eight_bits(sequence: str, tied: bool, tmp_path: Path) -> None:
    """Also those of FP4, and where an output head shares the weight."""
    dtype = torch.bfloat16 if "mxfp4" in sequence else torch.float32
    source = model(tmp_path, dtype, tie_word_embeddings=tied)
    targets = ["model.layers", "embed_tokens", *([] if tied else ["lm_head"])]
    saved = compressed(sequence, source, tmp_path / "saved", targets=targets, ignore=())
    found = cc.export(saved, tmp_path / "out", "compressed-tensors")
    assert found.exact == found.layers == (8 if tied else 9)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(logits_of(loaded(tmp_path / "out")), logits_of(loaded(saved)))


# ------------------------------------------------------------------------------------------------ refusals

ARBITRARY = "no powers of two (MXFP4), and no FP8 numbers under one scale of the matrix (NVFP4)"


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ("FP4(group=32)", ARBITRARY),
        ("FP4(group=16)", ARBITRARY),
        ("MX(format='mxfp4', group=8)", "8 weights share a step of FP4"),
        ("NF4(group=32)", "a codebook other than FP8 (E4M3) and FP4 (E2M1)"),
        ("FP8(format='e5m2')", "a codebook other than FP8"),
        ("MX(format='mxfp6_e2m3')", "a codebook other than FP8"),
        ("Hadamard(block=32) >> FP8()", "in another basis"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(sequence: str, reason: str) -> None:
    refused(lambda: check_fits(WRITER, cc.parse_sequence(sequence), {}), reason, "from the step ")


def test_structures_are_looked_at() -> None:
    codes = tuple(codebooks.E2M1)
    block = Structure((64, 96), 0, 14, 32, codes=codes, powers_of_two=True)
    assert (
        misfit(block) is None and misfit(replace(block, group=16)) is None and misfit(replace(block, group=48)) is None
    )
    assert "8 weights" in str(misfit(replace(block, group=8)))
    assert "72 weights" in str(misfit(replace(block, shape=(64, 72), group=0)))
    assert "powers of two" in str(misfit(replace(block, powers_of_two=False)))
    assert misfit(replace(block, powers_of_two=False, module="Embedding")) is None
    assert "Conv1D" in str(WRITER.misfit(replace(block, module="Conv1D")))


@pytest.mark.parametrize(
    ("sequence", "least", "reason"),
    [
        ("MX(format='mxfp4')", 2.0**-126, "with the step 2^-128"),
        ("MX(format='mxfp4', group=16)", 2.0**-18, "steps from 2^-20 to 2^-2"),
    ],
)
def test_steps_beyond_the_format_are_refused(sequence: str, least: float, reason: str, tmp_path: Path) -> None:
    """One step further they are written."""
    for number, factor in ((0, 2), (1, 1)):
        weight = torch.full((2, 64), least * factor)
        weight[1] = 1
        source = with_weight(model(tmp_path / str(number)), weight)
        saved = compressed(sequence, source, tmp_path / f"saved{number}", targets=[NAME])
        out = tmp_path / f"out{number}"
        if factor == 2:
            assert cc.export(saved, out, "compressed-tensors").exact == 1
            assert np.array_equal(read(out)[NAME], dense(saved)[f"{NAME}.weight"].numpy())
        else:
            refused(lambda: cc.export(saved, out, "compressed-tensors"), reason)  # noqa: B023
            assert not out.exists()


# ------------------------------------------------------------------------------------------------ numbers


def test_numbers_are_rounded_to_fp8_as_torch_does() -> None:
    values = np.sort(decoded(bytes(range(127)), "F8_E4M3").astype(np.float64))
    middles = (values[1:] + values[:-1]) / 2
    near = np.concatenate(
        [np.nextafter(m.astype(np.float32), np.float32(s)) for m in (middles, values) for s in (0, 1e9)]
    )
    given = np.concatenate([values, middles, near, [463.9, 464, 1e-30]]).astype(np.float32)
    given = np.concatenate([given, -given])
    expected = torch.from_numpy(given).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert encoded(given, "F8_E4M3") == expected.tobytes()
    beyond = np.array([464.1, -1e9, np.inf, np.nan])  # torch makes the largest number of some of these
    assert np.isnan(decoded(encoded(beyond, "F8_E4M3"), "F8_E4M3")).all()

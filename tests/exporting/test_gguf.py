"""Techniques whose steps float16 holds end in GGUF files that transformers loads as what was compressed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import compcomp as cc
from compcomp.formats.gguf_writing import FILE
from tests.exporting.models import compressed, llama, loaded, logits_of, weights_of
from tests.helpers import refused

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

TYPES = {
    "AbsMax(bits=4, group=32, grid='signed', scales='float16')": "Q4_0",
    "Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=3, group=32, scales='float16')": "Q4_0",
    "MinMax(bits=4, group=32, scales='float16')": "Q5_0",
    "AbsMax(bits=8, group=32, scales='float16')": "Q8_0",
    "MinMax(bits=4, group=32, zero='none', scales='float16')": "Q4_1",
    "MinMax(bits=5, group=32, zero='none', scales='float16')": "Q5_1",
    "MX(format='mxfp4')": "MXFP4",
}
"""What docs/exporting.md says which type comes from."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("small") / "model")


@pytest.mark.parametrize("sequence", TYPES)
def test_the_file_is_the_compressed_model(sequence: str, small: Path, tmp_path: Path) -> None:
    saved = compressed(sequence, small, tmp_path / "saved")
    found = cc.export(saved, tmp_path / "out", "gguf")
    assert (found.layers, found.exact, found.step_error, found.weight_error) == (14, 14, 0, 0)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / FILE).tensors}
    assert kinds == {"F32", TYPES[sequence]}
    ours = loaded(saved)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=FILE).eval()
    for name, weight in weights_of(theirs).items():
        assert torch.equal(weight, weights_of(ours)[name]), name
    assert torch.equal(logits_of(theirs), logits_of(ours))


def test_rounded_steps_are_another_model_and_said_to_be(small: Path, tmp_path: Path) -> None:
    saved = compressed("AbsMax(bits=4, group=32, grid='signed')", small, tmp_path / "saved")
    refused(lambda: cc.export(saved, tmp_path / "out", "gguf"), "scales='float16'", "gguf-rounded")
    assert not (tmp_path / "out").exists()
    found = cc.export(saved, tmp_path / "out", "gguf-rounded")
    assert found.exact == 0 and 2**-14 < found.step_error <= 2**-11 and found.weight_error > 0
    assert "steps were rounded to F16" in str(found)
    ours = loaded(saved)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=FILE).eval()
    apart = {
        name: float((weight - weights_of(ours)[name]).abs().max() / weights_of(ours)[name].abs().max())
        for name, weight in weights_of(theirs).items()
    }
    assert max(apart.values()) == pytest.approx(found.weight_error)


def test_what_does_not_fit_is_refused_before_any_work(small: Path, tmp_path: Path) -> None:
    from compcomp.exporting.structures import check_fits
    from compcomp.formats.writers import WRITERS

    for sequence, reason in (("NF4(group=32)", "codebook"), ("AbsMax(bits=4, group=16)", "groups of 16")):
        refused(lambda s=sequence: check_fits(WRITERS["gguf"], cc.parse_sequence(s), {}), reason, "gguf-dense")

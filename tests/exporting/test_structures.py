"""What fits a format is known before any work: from the sequence, with the step that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import compcomp as cc
import compcomp.exporting.structures as structures
from compcomp.exporting.export import modules_of
from compcomp.exporting.structures import check_fits
from compcomp.formats.saved import saved_model
from compcomp.formats.writers import WRITERS
from compcomp.models.checkpoint import Checkpoint
from compcomp.techniques import NF4, AbsMax, Magnitude
from tests.exporting.models import IDS, compressed, llama, loaded, logits_of
from tests.helpers import refused

EVERY = "compressed-tensors", "gptq", "dense"
SEQUENCES: list[tuple[str, tuple[str, ...]]] = [
    ("AbsMax(bits=4, group=32)", EVERY),
    ("Magnitude(sparsity=1/2, pattern='2:4') >> AbsMax(bits=8, per='channel')", EVERY),
    ("Magnitude(sparsity=1/2) >> AbsMax(bits=4, grid='clipped', group=32) >> ApplyMask()", EVERY),
    ("MinMax(bits=3, group=32)", EVERY),
    ("AbsMax(bits=5, group=32)", ("compressed-tensors", "dense")),
    ("AbsMax(bits=4)", ("compressed-tensors", "dense")),
    ("MinMax(bits=16, group=32)", ("dense",)),
    ("MinMax(bits=4, group=32, zero='none')", ("dense",)),
    ("Magnitude(sparsity=1/2, pattern='2:4')", ("dense",)),
    ("NF4(group=32)", ("dense",)),
    ("MX(format='mxfp4')", ("compressed-tensors", "dense")),
    ("MX(format='mxfp4', group=16)", ("compressed-tensors", "dense")),
    ("FP8(per='row')", ("compressed-tensors", "dense")),
    ("FP4(group=32)", ("dense",)),
    ("Hadamard(block=32) >> AbsMax(bits=4, group=32)", ("dense",)),
    ("AbsMax(bits=4, group=32) >> TruncatedSVD(rank=4)", ("dense",)),
    ("TruncatedSVD(rank=4, residual=True) >> AbsMax(bits=4, group=32)", ("dense",)),
    ("TruncatedSVD(rank=4)", ("dense",)),
]


@pytest.mark.parametrize(("sequence", "fit"), SEQUENCES)
def test_what_is_known_before_is_what_is_found_after(sequence: str, fit: tuple[str, ...], tmp_path: Path) -> None:
    """The small layer and the layers of a model have one structure, apart from their shape."""
    saved = compressed(sequence, llama(tmp_path / "model", num_hidden_layers=1), tmp_path / "saved")
    model = saved_model(saved, *modules_of(Checkpoint(saved).model))
    found = structures.structures(cc.parse_sequence(sequence))
    assert found is not None
    for name in EVERY:
        reasons = {WRITERS[name].misfit(layer.structure) for layer in model.layers.values()}
        assert reasons == {WRITERS[name].misfit(found[-1])} and (reasons == {None}) == (name in fit), name


@pytest.mark.parametrize(
    ("sequence", "format", "parts"),
    [
        (
            "NF4(group=32)",
            "gptq",
            ["codebook", "from the step NF4(group=32) on", "; NF4(group=32) breaks compressed-tensors, gptq"],
        ),
        ("Magnitude(sparsity=1/2)", "gptq", ["as its weights lie on no grid;", "no step makes layers fit compressed"]),
        (
            "AbsMax(bits=5, group=32) >> Magnitude(sparsity=1/2)",
            "gptq",
            [
                "5 bits",
                "step AbsMax(bits=5, group=32) on",
                "formats that fit: compressed-tensors, ",
            ],
        ),
        (
            "AbsMax(bits=4, group=32) >> TruncatedSVD(rank=4, residual=True)",
            "compressed-tensors",
            ["low-rank term of rank 4, from the step TruncatedSVD", "TruncatedSVD(rank=4, residual=True) breaks"],
        ),
        (
            "SmoothQuant() >> AbsMax(bits=4, group=32)",
            "gptq",
            ["another basis (scales), from the step SmoothQuant() on"],
        ),
    ],
)
def test_the_step_that_breaks_a_format_is_named(sequence: str, format: str, parts: list[str]) -> None:
    refused(lambda: check_fits(WRITERS[format], cc.parse_sequence(sequence), {}), *parts)


def test_shapes_of_layers_are_looked_at() -> None:
    order = cc.parse_sequence("AbsMax(bits=4, group=8)")
    check_fits(WRITERS["gptq"], order, {"a": ((64, 32), "Linear")})
    refused(lambda: check_fits(WRITERS["gptq"], order, {"a": ((64, 40), "Linear")}), "layer a", "its shape is 64 x 40")
    refused(lambda: check_fits(WRITERS["gptq"], order, {"a": ((64, 64), "Conv1D")}), "layer a", "Conv1D")


def test_a_plan_is_saved_in_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("compressed_tensors")
    source = llama(tmp_path / "model", num_hidden_layers=1)
    for name in ("tokenizer.json", "chat_template.jinja", "modeling.py"):
        (source / name).write_text("{}")
    model = loaded(source)
    given: dict[str, Any] = {"model": model, "calibration": [IDS], "device": "cpu", "loss": "weight_l2"}
    plan = cc.optimize_order([Magnitude(sparsity="1/2", pattern="2:4"), AbsMax(bits=4, group=32)], **given)
    plan.save(tmp_path / "out", format="compressed-tensors")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plan.json", "tokenizer.json", "chat_template.jinja"} <= names and "modeling.py" not in names
    refused(lambda: plan.save(source, format="compressed-tensors"), "the directory that the model was loaded from")
    expected = logits_of(plan.apply(model))
    assert torch.equal(logits_of(loaded(tmp_path / "out")), expected)

    of_codebook = cc.optimize_order([NF4(group=32)], **given)
    monkeypatch.setattr("compcomp.plan.planned", lambda *_: pytest.fail("work was done before the refusal"))
    refused(lambda: of_codebook.save(tmp_path / "other", format="gptq"), "codebook", "formats that fit: ")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    symbolic = cc.optimize_order([AbsMax(bits=4)])
    refused(lambda: symbolic.save(tmp_path / "other", format="gptq"), "a plan that was made with a model")

"""List the formats that models are written in: one line a format."""

from __future__ import annotations

from compcomp.errors import InputError
from compcomp.formats.bitsandbytes import BitsAndBytes
from compcomp.formats.compressed_tensors import CompressedTensors
from compcomp.formats.dense import Dense
from compcomp.formats.gguf_writing import GGUF, GGUFDense, GGUFRounded
from compcomp.formats.gptq import GPTQ
from compcomp.formats.peft import PEFT
from compcomp.formats.writing import Writer

WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (
        CompressedTensors(),
        GPTQ(),
        BitsAndBytes(),
        PEFT(),
        GGUF(),
        GGUFRounded(),
        GGUFDense(),
        Dense(),
    )
}
"""The formats by name."""


def writer_named(name: str) -> Writer:
    """Return a format's writer; raise InputError for a name that is not known, or if what it needs is not installed."""
    if name not in WRITERS:
        raise InputError(f"format {name!r}", ", ".join(WRITERS), "export")
    WRITERS[name].check_installed()
    return WRITERS[name]

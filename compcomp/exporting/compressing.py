"""Compress a model straight into a format that runtimes read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compcomp.errors import InputError
from compcomp.exporting.export import Exported, export, modules_of
from compcomp.exporting.structures import check_fits
from compcomp.formats.writers import writer_named
from compcomp.language.technique import Sequence, Technique, as_sequence
from compcomp.models.layers import layers_by_name
from compcomp.models.save import check_apart, sources
from compcomp.models.stream import Compressed, compress_checkpoint
from compcomp.models.wrappers import core, is_from_transformers, uncompiled

TEXT = (
    *("tokenizer*.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "*chat_template*"),
    *("special_tokens_map.json", "added_tokens.json", "generation_config.json"),
)
"""The files of a model's folder that turn text into tokens and back."""


@contextmanager
def exported(
    model: nn.Module,
    orders: Mapping[str, Sequence],
    target: Path,
    format: str,
) -> Iterator[Path]:
    """Yield a new folder next to the target, and then export the model saved in it to the target.

    Args:
        model: The model, before it is compressed.
        orders: Of each layer by name, what it is compressed by.
        target: The folder to write to.
        format: The name of the format.

    Raises:
        InputError: An order does not fit the format, by what it makes of a small layer; or what :func:`export` raises.
    """
    writer = writer_named(format)
    with uncompiled(model):
        prefix, inner = core(model)
        if not is_from_transformers(inner, "PreTrainedModel"):
            raise InputError(f"format={format!r}", "a model of transformers, since runtimes know no other", "save")
        places = list(dict.fromkeys(sources(inner).values()))
        check_apart(target, sources(inner), "save")
        modules, _ = modules_of(inner)
        shapes = {name: layer.shape for name, layer in layers_by_name(model, embeddings=True).items()}
    by_order: dict[Sequence, dict[str, tuple[tuple[int, int], str]]] = {}
    for name, order in orders.items():
        by_order.setdefault(order, {})[name] = shapes[name], modules.get(name.removeprefix(f"{prefix}."), "part")
    for order, layers in by_order.items():
        check_fits(writer, order, layers)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.dense.", dir=target.parent))
    try:
        yield draft
        for source in places:
            _copy_text_files(source, draft)
        export(draft, target, format)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_text_files(source: Path, draft: Path) -> None:
    """Copy tokenizer and chat template of the folder that the model was loaded from, as far as they are there."""
    for path in source.iterdir():
        if any(path.match(pattern) for pattern in TEXT) and path.is_file() and not (draft / path.name).exists():
            shutil.copyfile(path, draft / path.name)


def compress_and_export(
    order: Technique | Sequence,
    directory: Path,
    out: Path,
    format: str,
    **how: Any,
) -> tuple[Compressed, Exported]:
    """Apply an order to the model in a directory, and write it in a format to another directory.

    The dense weights are written next to ``out`` meanwhile. A run that ended early is continued by the same call.

    Args:
        order: The techniques to apply.
        directory: As of :func:`compcomp.compress_checkpoint`.
        out: The directory to write to.
        format: As of :func:`compcomp.export`.
        how: Further arguments of :func:`compcomp.compress_checkpoint`.

    Raises:
        InputError: The order does not fit the format, which is found before any work; or what these two raise.
    """
    check_fits(writer_named(format), as_sequence(order), {})
    check_apart(out, {"the model": directory}, "apply")
    dense = out.parent / f".{out.name}.dense"
    compressed = compress_checkpoint(order, directory, dense, **how)
    found = export(dense, out, format)
    shutil.rmtree(dense)
    return replace(compressed, directory=out, bytes=found.bytes), found

"""Read batches as a model takes them: check them, name their entries, and explain failures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.errors import InputError
from compcomp.models.lockstep import current_run
from compcomp.models.padding import MASKS, kept_positions
from compcomp.models.wrappers import is_from_transformers, unwrap

BATCHES = "batches: an iterable or DataLoader of tensors, dicts or tuples"
TENSORS = "tensors (batch x length), such as a Dataset with_format('torch') in a DataLoader gives"


def iterate(batches: Any) -> Iterable[Any]:
    """Return an iterable of the batches, to be iterated over once. A tensor or dict alone is one batch."""
    if isinstance(batches, Tensor | Mapping):
        return [batches]
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise InputError(f"a {type(batches).__name__}", BATCHES, "calibration")
    return batches


def prepared(model: nn.Module, batches: Any) -> Iterator[Any]:
    """Yield each batch, checked, and as a dict if a tuple holds a mask.

    Raises InputError, naming the batch by its number, if the model cannot take it or no token would count.
    """
    model = unwrap(model)
    number = 0
    for number, batch in enumerate(iterate(batches), start=1):
        yield _prepared(model, batch, number)
    if not number:
        raise InputError("no batch", "at least one (a generator gives its batches once)", "calibration")


def run(model: nn.Module, batch: Any) -> Any:
    """Call ``model(x)``, ``model(**batch)`` or ``model(*batch)``."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    raise InputError(f"a batch that is a {type(batch).__name__}", "a tensor, dict or tuple", "calibration")


@contextmanager
def running(model: nn.Module, batch: Any, number: int) -> Iterator[None]:
    """Explain errors that a model raises while it runs a batch.

    They become an InputError of one line if the batch is to blame. Otherwise they get a note with the batch's number.
    """
    with _indices_checked(model, number):
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if found := _blamed(model, batch):
                given, allowed = found
                raise InputError(f"{given} (batch {number})", allowed, "calibration") from error
            error.add_note(f"calibration: batch {number}")
            raise


def _prepared(model: nn.Module, batch: Any, number: int) -> Any:
    def refused(given: str, allowed: str) -> InputError:
        return InputError(f"{given} (batch {number})", allowed, "calibration")

    if not isinstance(batch, Tensor | Mapping | list | tuple):
        raise refused(f"a batch that is a {type(batch).__name__}", "a tensor, dict or tuple of tensors")
    if isinstance(batch, Mapping):
        if other := [key for key in batch if not isinstance(key, str)]:
            raise refused(f"a batch with the key {other[0]!r}"[:80], "names of the model's arguments")
        batch = dict(batch)
    elif isinstance(batch, list | tuple):
        if not any(isinstance(value, Tensor) for value in batch):
            raise refused(f"a batch that is a {type(batch).__name__} without tensors", TENSORS)
        batch = _named(model, tuple(batch), refused)
    entries = list(_entries(batch))
    for name, value in entries:
        text = isinstance(value, str | bytes) and not any(isinstance(other, Tensor) for _, other in entries)
        if text or (name.endswith(("ids", "mask", "labels", "tokens")) and _plain(value)):
            raise refused(f"a batch with {name} that is a {type(value).__name__}", TENSORS)
        if isinstance(value, Tensor) and value.numel() == 0 and value.ndim and name in {"tokens", "input_ids"}:
            raise refused(f"an empty batch ({name} of shape {'x'.join(map(str, value.shape))})", "at least one token")
    if is_from_transformers(model, "PreTrainedModel"):
        _check_ids(entries, refused)
    if isinstance(batch, dict):
        for name in MASKS:
            kept = kept_positions(name, batch[name]) if isinstance(batch.get(name), Tensor) else None
            if kept is not None and kept.numel() and not bool(kept.any()):
                raise refused(f"no token that counts: {name} leaves all of them out", "a mask that keeps tokens")
    return batch


def _check_ids(entries: list[tuple[str, Any]], refused: Callable[[str, str], InputError]) -> None:
    for name, value in entries:
        if name not in {"tokens", "input_ids", "decoder_input_ids"} or not isinstance(value, Tensor):
            continue
        if name == "tokens" and value.is_floating_point():
            continue  # this is the input of a model of images or sounds
        if value.ndim == 1:
            raise refused(f"a batch with {name} of one dimension ({len(value)})", "batch x length: row[None] for a row")
        if value.is_floating_point() or value.dtype == torch.bool:
            raise refused(f"{name} that are {str(value.dtype).removeprefix('torch.')}", "whole numbers, such as int64")
        if value.numel() == 0:
            raise refused(f"an empty batch ({name} of shape {'x'.join(map(str, value.shape))})", "at least one token")


def _entries(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield each entry with its name. The first of those without a name is "tokens"."""
    if isinstance(batch, dict):
        yield from batch.items()
        return
    values = batch if isinstance(batch, list | tuple) else (batch,)
    for place, value in enumerate(values):
        yield "tokens" if place == 0 else f"argument {place + 1}", value


def _plain(value: Any) -> bool:
    """Return True for a list of numbers, texts, tensors or lists, such as rows that have not been collated."""
    kinds = (str, bytes, int, float, Tensor, list)
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, kinds) for item in value)


# ------------------------------------------------------------------------------------ names of a tuple's entries


def _named(model: nn.Module, batch: tuple[Any, ...], refused: Callable[[str, str], InputError]) -> Any:
    """Return a tuple as a dict by the argument names of the model's ``forward``, if one of them is a mask."""
    names = _argument_names(model)
    first = batch[0]
    for place, value in enumerate(batch):
        if place == 0 or not isinstance(value, Tensor):
            continue
        name = names[place] if names is not None and place < len(names) else None
        if name in MASKS and isinstance(first, Tensor):
            if value.shape[:2] != first.shape[:2] and value.shape[:1] != first.shape[:1]:
                break  # the model has to deal with this
            if MASKS[name] and not _binary(value) and not value.is_floating_point():
                given = f"a tuple whose entry {place + 1} goes to {name} but holds {int(value.max())}"
                raise refused(given, "a dict that names what each tensor is")
            if _binary(value) or value.is_floating_point():
                assert names is not None
                return dict(zip(names, batch, strict=False))
        elif name is None and isinstance(first, Tensor) and value.shape == first.shape[:2] and _padding_like(value):
            given = f"a tuple whose entry {place + 1} looks like a mask, for a forward that names no argument there"
            raise refused(given, "a dict in which the mask is named, such as attention_mask")
    return batch


def _argument_names(model: nn.Module) -> list[str] | None:
    """Return the names of the positional arguments of ``forward``, or of a module inside if a wrapper passes all on."""
    for _ in range(8):
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return None
        names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if names or not any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            return names
        inner = list(model.children())
        if len(inner) != 1:
            return None
        model = inner[0]
    return None


def _binary(value: Tensor) -> bool:
    return value.dtype == torch.bool or bool(((value == 0) | (value == 1)).all())


def _padding_like(value: Tensor) -> bool:
    """Return True for truth values of which each row changes at most once, and some are 0."""
    if not _binary(value) or bool((value != 0).all()):
        return False
    return bool(((value != 0).to(torch.int8).diff(dim=1) != 0).sum(dim=1).amax() <= 1) if value.shape[1] > 1 else True


# --------------------------------------------------------------------------------------------- whose fault it is


@contextmanager
def _indices_checked(model: nn.Module, number: int) -> Iterator[None]:
    """Check the ids given to plain embeddings before they are looked up: on a GPU a bad id would end the process."""

    mine = current_run()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if current_run() is not mine:  # another batch, run in lockstep with this one
            return
        ids = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(ids, Tensor) or not ids.numel() or ids.is_meta:
            return
        count = module.num_embeddings
        if ids.is_floating_point():
            given = f"tokens that are {str(ids.dtype).removeprefix('torch.')} for {names[module]}"
            raise InputError(f"{given} (batch {number})", "whole numbers, such as int64", "calibration")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= count:  # type: ignore[operator]
            given = f"index {low if low < 0 else high} for {names[module]}"
            raise InputError(f"{given} (batch {number})", f"0 to {count - 1}", "calibration")  # type: ignore[operator]

    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    plain = [m for m in names if type(m).forward is nn.Embedding.forward]
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in plain]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blamed(model: nn.Module, batch: Any) -> tuple[str, str] | None:
    """Return the problem of a batch that a model failed on, and what is allowed; None if there seems to be none."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    vocabulary = getattr(config, "vocab_size", None)
    for name, value in _entries(batch):
        if not isinstance(value, Tensor):
            if _plain(value) or isinstance(value, str | bytes):
                return f"a batch with {name} that is a {type(value).__name__}", TENSORS
            continue
        if value.numel() == 0:
            return f"an empty batch ({name} of shape {'x'.join(map(str, value.shape))})", "at least one token"
        if not name.endswith(("tokens", "ids")) or value.is_floating_point():
            continue
        if isinstance(vocabulary, int) and int(value.max()) >= vocabulary:
            return f"{name} {int(value.max())} in a vocabulary of {vocabulary}", f"0 to {vocabulary - 1}"
        if int(value.min()) < 0:
            return f"{name} {int(value.min())}", "0 and above"
        if isinstance(positions, int) and value.ndim == 2 and value.shape[1] > positions:
            return f"{value.shape[1]} tokens in a row", f"at most {positions}, the model's positions"
    return None

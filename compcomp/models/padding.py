"""Find which of the vectors that reach a layer are padding, by giving the padding another content.

Layers see tokens in many forms: batch x length, length x batch, or all in one list. Some see a part of them (routed
experts), the tokens of another stream (an encoder's, an image's), or one vector for a sequence. The shape does not show
which. So a batch with padding runs first with other embeddings for the padding: a vector that stays the same is no
padding, in whatever form it arrived. Another run, with other embeddings for all tokens, distinguishes such a vector
from one that a model puts in the place of padding.

If a model mixes tokens with padding (an average over all positions), the tokens change as well. There the mask decides
if it has the layer's shape; a note says so if it has not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compcomp.models.lockstep import current_run

MASKS: dict[str, bool] = {
    "attention_mask": True,
    "padding_mask": True,
    "input_mask": True,
    "mask": True,
    "decoder_attention_mask": True,
    "decoder_padding_mask": True,
    "encoder_attention_mask": True,
    "encoder_padding_mask": True,
    "src_key_padding_mask": False,
    "key_padding_mask": False,
    "tgt_key_padding_mask": False,
    "memory_key_padding_mask": False,
}
"""Arguments that mark padding, and True if a true value there is a token (torch's own modules use the opposite)."""

PARTS = {
    "attention_mask": "",
    "padding_mask": "",
    "input_mask": "",
    "mask": "",
    "src_key_padding_mask": "",
    "key_padding_mask": "",
    "decoder_attention_mask": "decoder",
    "decoder_padding_mask": "decoder",
    "tgt_key_padding_mask": "decoder",
    "encoder_attention_mask": "encoder",
    "encoder_padding_mask": "encoder",
    "memory_key_padding_mask": "encoder",
}
PREFIXES = {"decoder": ("decoder_", "tgt"), "encoder": ("encoder_", "memory")}

NUMBERED = "positions are counted from the padding before a row on, unless the batch has position_ids"

SKETCH = 4
"""The number of random projections by which vectors of two runs are compared."""

CHUNK = 1024
"""The number of vectors that are compared with all others at a time."""


def kept_positions(name: str, mask: Tensor) -> Tensor | None:
    """Return truth values (batch x length) of a mask by its name: True for tokens. None for a shape that says nothing.

    A mask with a row for each query (batch x ... x queries x length) keeps the positions that any query may look at. A
    mask that is added to scores is recognised by its numbers: 0 for tokens, far below 0 elsewhere.
    """
    if mask.ndim < 2:
        return None
    added = mask.is_floating_point() and bool((mask < 0).any())
    kept = mask > -1 if added else mask != 0
    if not MASKS.get(name, True) and not added:
        kept = ~kept
    while kept.ndim > 2:
        kept = kept.any(dim=1)
    return kept


@dataclass(eq=False)
class Stream:
    """The tokens of one mask: those that count (batch x length), and the entries of the batch that hold them."""

    kept: Tensor
    given: dict[str, Tensor]
    labels: Tensor | None = None


def streams(batch: Any, encoder_decoder: bool = False) -> list[Stream]:
    """Return the streams of a batch (a dict) that hold padding."""
    if not isinstance(batch, Mapping):
        return []
    kept: dict[str, Tensor] = {}
    for name, value in batch.items():
        if name in MASKS and isinstance(value, Tensor) and (found := kept_positions(name, value)) is not None:
            kept[PARTS[name]] = found
    labels = batch.get("labels")
    decoding = encoder_decoder or any(name.startswith("decoder_") for name in batch)
    tokens = labels if isinstance(labels, Tensor) and labels.ndim == 2 and decoding else None
    if tokens is not None and "decoder" not in kept:
        ignored = (tokens == -100).to(torch.int8)
        kept["decoder"] = ignored.flip(1).cumprod(dim=1).flip(1) == 0  # all but the ones at the end
    result = []
    for part, mask in kept.items():
        if bool(mask.all()) or not mask.numel():
            continue
        given = {}
        for name, value in batch.items():
            own = next((p for p, prefixes in PREFIXES.items() if name.startswith(prefixes)), "")
            if isinstance(value, Tensor) and own == part and name not in MASKS and name != "labels":
                given[name] = value
        if tokens is None and not any(_fits(mask, value) for value in given.values()):
            continue  # a mask without a batch, such as queries x keys
        length = max((v.shape[1] for v in given.values() if v.ndim >= 2 and not v.is_floating_point()), default=None)
        if length is not None and 0 < length < mask.shape[1]:
            mask = mask[:, -length:]  # the positions before were given as a cache or a prefix
        result.append(Stream(mask, given, tokens if part == "decoder" else None))
    return result


def _fits(mask: Tensor, value: Tensor) -> bool:
    """Return True if a mask (batch x length) can belong to a tensor: its first dimensions include batch and length."""
    batch, length = mask.shape
    if value.ndim < 2:
        return False
    if value.shape[0] == batch:
        return length in value.shape[1:3] or (not value.is_floating_point() and value.shape[1] < length)
    return (value.shape[0], value.shape[1]) == (length, batch)


def _layouts(kept: Tensor) -> Iterator[Tensor]:
    """Yield truth values in the orders in which a model may hold the tokens."""
    yield kept
    yield kept.T
    yield kept.reshape(-1)
    yield kept.T.reshape(-1)


# ----------------------------------------------------------------------------------------- another content


@contextmanager
def disturbed(
    model: nn.Module, batch: Any, found: list[Stream], notes: dict[str, set[str]], everything: bool = False
) -> Iterator[tuple[Any, Callable[[], list[Stream]]]]:
    """Give the padding another content, in the batch and in the model; everything else is as it was.

    Ids stay the same, because models look for the end of a text in them. The output of their embeddings changes
    instead. Yields the batch and a function. After the run, the function returns the streams whose padding was not
    reached.

    Args:
        model: The model.
        batch: The batch.
        found: The streams with padding.
        notes: Filled if the model numbers its positions without regard to padding.
        everything: True to give the tokens another content as well.
    """
    source = torch.Generator().manual_seed(0)
    reached: set[int] = set()

    def noise(values: Tensor) -> Tensor:
        scale = values.detach().double().square().mean().sqrt().clamp(min=1e-3)
        drawn = torch.randn(values.shape, generator=source, dtype=torch.float64, device="cpu")
        return (drawn.to(values.device) * scale).to(values)

    def replaced(values: Tensor, padding: Tensor) -> Tensor:
        padding = torch.ones_like(padding) if everything else padding
        where = padding.reshape(*padding.shape, *(1,) * (values.ndim - padding.ndim)).to(values.device)
        return torch.where(where, values + noise(values), values)

    names = {module: name for name, module in model.named_modules()}

    mine = current_run()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if current_run() is not mine:  # another batch, run in lockstep with this one
            return None
        ids = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(ids, Tensor) or ids.is_floating_point() or not isinstance(output, Tensor):
            return None
        for stream in found:
            if _numbers(ids, stream):
                notes.setdefault(NUMBERED, set()).add(names[module])
            layout = next(
                (kept for kept in _arrangements(stream, ids) if output.shape[: kept.ndim] == kept.shape), None
            )
            if layout is not None:
                reached.add(id(stream))
                output = replaced(output, ~layout)
        return output

    changed = dict(batch)
    for stream in found:
        for name, value in stream.given.items():
            if not value.is_floating_point():
                continue
            for kept in (stream.kept, stream.kept.T):
                if value.shape[:2] == kept.shape:
                    changed[name] = replaced(value, ~kept)
                    reached.add(id(stream))
                    break
            else:
                if value.ndim == 3 and (value.shape[0], value.shape[2]) == stream.kept.shape:  # batch x width x length
                    changed[name] = replaced(value.mT, ~stream.kept).mT
                    reached.add(id(stream))
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding) or "Embedding" in type(module).__name__:
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield changed, lambda: [stream for stream in found if id(stream) not in reached]


def _numbers(ids: Tensor, stream: Stream) -> bool:
    """Return True for positions counted from the start of a row, of a stream with padding there."""
    batch, length = stream.kept.shape
    late = ~stream.kept[:, 0] & stream.kept.any(dim=1)
    if ids.ndim > 2 or ids.shape[-1] != length or length < 2 or not bool(late.any()):
        return False
    rows = ids.reshape(-1, length)
    rows = rows[late.to(rows.device)] if len(rows) == batch else rows[:1]
    return "position_ids" not in stream.given and bool((rows.diff(dim=1) == 1).all())


def _arrangements(stream: Stream, ids: Tensor) -> Iterator[Tensor]:
    """Yield the arrangements of a stream's tokens in the ids given to an embedding, if they are this stream's."""
    known = [v for v in stream.given.values() if v.shape == stream.kept.shape and not v.is_floating_point()]
    for given in known:
        for values, kept in zip(_layouts(given), _layouts(stream.kept), strict=True):
            if ids.shape == values.shape and torch.equal(ids, values.to(ids)):
                yield kept
    if stream.labels is not None and not known and ids.shape == stream.labels.shape:
        before, after = stream.labels[:, :-1], ids[:, 1:]
        if bool(((before == after) | (before == -100)).all()):  # the model has shifted the labels to the right
            yield stream.kept


def other_ids(batch: Any, found: list[Stream], everything: bool = False) -> Any:
    """Return the batch with other ids at the padding of these streams, for models whose embeddings are not modules.

    ``everything``: change the ids at other positions too.
    """
    changed = dict(batch)
    for stream in found:
        for name, value in stream.given.items():
            if name.endswith("ids") and value.shape == stream.kept.shape and not value.is_floating_point():
                if everything:
                    changed[name] = value.roll(1, dims=1)
                    continue
                real = value[stream.kept]
                for pad in value[~stream.kept].unique():
                    others = real[real != pad]
                    new = others[0] if len(others) else (pad - 1 if int(pad) > 0 else pad + 1)
                    changed[name] = torch.where(~stream.kept & (value == pad), new, changed[name])
    return changed


# ---------------------------------------------------------------------------------------------- comparing


@dataclass
class Followed:
    """The inputs of each layer in the run with other padding, in the order of calls, to find the vectors that count.

    ``notes``: receives what could not be determined, and for which layers. ``mixed``: the model mixes tokens with
    padding. ``blind``: the padding could not be given another content. ``everything``: the current run is the one in
    which the tokens have another content too. A vector that does not change in it belongs to another stream.
    ``routed``: the layers that are known to get some of the tokens, in one list.
    """

    found: list[Stream]
    notes: dict[str, set[str]]
    mixed: bool = False
    blind: bool = False
    everything: bool = False
    routed: frozenset[str] = frozenset()
    _fixed: bool = False
    _lists: set[str] = field(default_factory=set)
    _rows: set[str] = field(default_factory=set)
    _others: dict[str, list[tuple[torch.Size, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    _calls: dict[str, list[tuple[torch.Size, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    _done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _directions: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop the inputs recorded so far."""
        self._calls.clear()

    def drop(self, layers: Iterable[str]) -> None:
        """Drop the inputs of these layers, which are not needed any more."""
        for layer in layers:
            self._calls.pop(layer, None)
            self._others.pop(layer, None)

    def see(self, layer: str, inputs: Tensor) -> None:
        """Record a few numbers for each vector (... x in) of the run with other padding."""
        (self._others if self.everything else self._calls)[layer].append((inputs.shape[:-1], self._sketch(inputs)))

    def kept(self, layer: str, inputs: Tensor) -> Tensor | None:
        """Return truth values (...) for the vectors of the same call in the run as given, or None if all count."""
        shape, calls, place = inputs.shape[:-1], self._calls[layer], self._done[layer]
        self._done[layer] += 1
        mine = self._sketch(inputs)
        tolerance = float(torch.finfo(inputs.dtype).eps) ** 0.5 if inputs.is_floating_point() else 0.0
        if place < len(calls) and calls[place][0] == shape:
            other = calls[place][1]
            exact = (mine == other).all(dim=-1).reshape(shape)
            candidates = [k.to(mine.device) for s in self.found for k in _layouts(s.kept) if k.shape == shape]
            if bool(exact.all()):
                others = self._others[layer][place : place + 1]
                of_tokens = any(size == shape and not torch.equal(mine, sketch) for size, sketch in others)
                return self._unmoved(layer, candidates, shape, of_tokens)
            if layer not in self.routed:
                near = _close(mine, other, tolerance).reshape(shape)
                return self._aligned(layer, candidates, exact, near)
        if inputs.ndim == 2:  # routed: other tokens arrive here if padding has another content
            other = torch.cat([sketch for _, sketch in calls]) if calls else mine[:0]
            if self.mixed:
                self._note("which tokens of a batch with padding they are fed is not known, so some may count", layer)
            return _among(mine, other, tolerance)
        self._note("their calls differ from one run of a batch to the next, so its padding counts", layer)
        return None

    def _unmoved(self, layer: str, candidates: list[Tensor], shape: torch.Size, of_tokens: bool) -> Tensor | None:
        """Return the mask if nothing changed: for another stream, or for a model that overwrites its padding."""
        if candidates and (self.blind or of_tokens):
            self._fixed |= of_tokens
            return candidates[0]
        if self.blind:
            self._note("which of what they are fed is padding is not known; all of it counts", layer)
        elif of_tokens:
            (self._rows if len(shape) > 1 else self._lists).add(layer)
        return None

    def finish(self) -> None:
        """Add notes, after the run as given, on layers where a model that overwrites its padding may hide it."""
        for name in self._rows | (self._lists if self._fixed else set[str]()):
            self._note("nothing that they are fed changes with it; what the model puts in its place counts", name)

    def _aligned(self, layer: str, candidates: list[Tensor], exact: Tensor, near: Tensor) -> Tensor | None:
        shape = near.shape
        for same in (exact, near):  # the number of tokens matches, in whatever order they lie
            if any(int(same.sum()) == int(kept.sum()) for kept in candidates):
                return same
        if candidates:
            best = max(candidates, key=lambda kept: int((kept == near).sum()))
            if bool((best & ~near).any()):  # tokens changed with the padding: the model mixes them
                self.mixed = True
                if len(shape) == 1:
                    self._note(
                        "what they are fed mixes tokens with padding, and comes as one list; by its order", layer
                    )
            return best
        if bool(near.all()):
            return None
        if self._step_by_step(layer, near):
            return near
        batch = {len(stream.kept) for stream in self.found}
        if near.numel() in batch and shape[0] in batch:
            self._note("what they are fed for a sequence depends on its padding; all sequences count", layer)
            return None
        if len(shape) >= 2 and bool((~near.reshape(shape[0], -1).any(dim=1)).any()):
            self._note("all that they are fed for a sequence depends on its padding, which counts", layer)
            return None
        if self.mixed:
            self._note("what they are fed mixes tokens with padding; what depends on padding is left out", layer)
        return near

    def _step_by_step(self, layer: str, near: Tensor) -> bool:
        """Return True if one call has one position of each sequence, and there are as many calls as positions."""
        for stream in self.found:
            length = stream.kept.shape[1]
            steps = stream.kept.T.reshape(length, *near.shape) if near.numel() == len(stream.kept) else ()
            if (
                length > 1
                and len(self._calls[layer]) % length == 0
                and any(torch.equal(near, s.to(near.device)) for s in steps)
            ):
                return True
        return False

    def _note(self, text: str, layer: str) -> None:
        self.notes.setdefault(text, set()).add(layer)

    def _sketch(self, inputs: Tensor) -> Tensor:
        """Return a few projections and the norm of each vector: tokens x (SKETCH + 1)."""
        width, device = inputs.shape[-1], inputs.device
        if (width, device) not in self._directions:
            source = torch.Generator().manual_seed(width)
            signs = torch.randint(0, 2, (width, SKETCH), generator=source, device="cpu") * 2 - 1
            self._directions[width, device] = signs.to(device)
        rows = inputs.detach().reshape(-1, width)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        directions = self._directions[width, device].to(rows)
        return torch.cat([rows @ directions, rows.norm(dim=1, keepdim=True)], dim=1)


def _close(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Return for each row if it is the same up to rounding, relative to the norm of the vector."""
    norm = torch.maximum(one[:, -1], other[:, -1])
    return ((one - other).abs().amax(dim=1) <= tolerance * norm) & torch.isfinite(norm)


def _among(mine: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Return for each row if it is also among the others, up to rounding.

    Of equal rows, as many are kept as there are among the others.
    """
    kept = torch.zeros(len(mine), dtype=torch.bool, device=mine.device)
    other = other.to(mine.device)
    for start in range(0, len(mine) if len(other) else 0, CHUNK):
        rows = mine[start : start + CHUNK]
        near = tolerance * rows[:, -1:]
        found = (torch.cdist(rows, other, p=torch.inf) <= near).sum(dim=1)
        earlier = (torch.cdist(rows, mine[: start + len(rows)], p=torch.inf) <= near).tril(start - 1).sum(dim=1)
        kept[start : start + CHUNK] = earlier < found
    return kept


@contextmanager
def other_content(
    model: nn.Module, batch: Any, padded: list[Stream], lost: list[Stream], looking: Followed, *, everything: bool
) -> Iterator[Any]:
    """Yield the batch with another content for its padding, in its ids too where embeddings do not reach it.

    Args:
        model: The model.
        batch: The batch.
        padded: The streams with padding.
        lost: Those whose padding embeddings do not reach.
        looking: Notes if the padding could not be given another content.
        everything: True to give the tokens another content as well.
    """
    notes = {} if everything or lost else looking.notes
    with disturbed(model, batch, padded, notes, everything=everything) as (other, _):
        changed = other_ids(other, lost, everything=everything)
        if lost and not everything:
            looking.blind = all(changed[name] is other[name] for stream in lost for name in stream.given)
        yield changed

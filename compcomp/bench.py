"""The protocol between the search for an order and the model that it measures, and the data that they exchange.

The search (``compcomp.ordering``) knows no model, and models (``compcomp.models``) know no search. Both know this.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from compcomp.language.claim import Claim
from compcomp.language.named import find_registered
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.text import parse_sequence
from compcomp.record import Record

Shape = tuple[int, int]
"""(out, in) of a layer."""
Pair = tuple[float, float]
"""The sum of a metric over one part of the evaluation data, and the count it is a mean over."""
Sums = dict[str, list[Pair]]
"""For each metric, the sum and the count of each part."""
Watch = Callable[[str, int, int | None, str], None]
"""Called with a phase of the work, how much of it is done, how much there is (None if not known yet), and a text."""
Registrations = list[list[str]]
"""The places where techniques are defined, see :func:`compcomp.language.named.registrations`."""


def unwatched(phase: str, done: int, total: int | None, text: str) -> None:
    """Do nothing: nobody watches."""


# ------------------------------------------------------------------------------------------- one layer's job


@dataclass(frozen=True)
class Caps:
    """The losses beyond which an order is given up while a layer is explored.

    Attributes:
        loss: The name of the loss that is capped.
        largest: For each end of the job, the largest loss that is still of interest.
        keeps: For "mask", "grid" and "factors", the positions of the techniques that keep it.
    """

    loss: str
    largest: tuple[float, ...]
    keeps: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        keeps = {name: list(which) for name, which in self.keeps.items()}
        return {"loss": self.loss, "largest": list(self.largest), "keeps": keeps}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the caps in the plain data of :meth:`to_json`."""
        keeps = {name: tuple(which) for name, which in data["keeps"].items()}
        return cls(data["loss"], tuple(data["largest"]), keeps)


@dataclass(frozen=True)
class LayerJob:
    """Run a tree of techniques on one layer.

    Node 0 is the dense layer. Every other node is a technique on an earlier node.

    Attributes:
        layer: The name of the layer.
        techniques: The techniques of the tree.
        tensors: Safetensors of ``weight`` (out x in). If there are any, also ``gram`` (in x in) and the magnitudes
            ``largest`` and ``mean`` (in).
        device: The device to compute on.
        parents: For each node k > 0, the earlier node that it is applied to.
        steps: For each node k > 0, the position in ``techniques`` of its technique.
        ends: The nodes to measure.
        losses: The names of the losses to measure.
        memory: The bytes that states may take.
        caps: Losses beyond which nodes are given up; None to run every node.
        register: The places where the techniques are defined. None if another process would not find them by their
            texts.
    """

    layer: str
    techniques: tuple[Technique, ...]
    tensors: bytes
    device: str
    parents: tuple[int, ...]
    steps: tuple[int, ...]
    ends: tuple[int, ...]
    losses: tuple[str, ...]
    memory: int
    caps: Caps | None = None
    register: Registrations | None = None

    @property
    def portable(self) -> bool:
        """Return True if another process can run the job."""
        return self.register is not None

    def to_json(self) -> dict[str, Any]:
        """Return plain data: techniques as texts, tensors in base64."""
        return {
            "layer": self.layer,
            "techniques": [str(technique) for technique in self.techniques],
            "register": self.register,
            "tensors": base64.b64encode(self.tensors).decode("ascii"),
            "device": self.device,
            "parents": list(self.parents),
            "steps": list(self.steps),
            "ends": list(self.ends),
            "losses": list(self.losses),
            "memory": self.memory,
            "caps": None if self.caps is None else self.caps.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the job in the plain data that :meth:`to_json` made of a portable job.

        Raises OtherFiles if this process has other files of a technique.
        """
        find_registered(data["register"])
        return cls(
            data["layer"],
            tuple(parse_sequence(text).techniques[0] for text in data["techniques"]),
            base64.b64decode(data["tensors"]),
            data["device"],
            tuple(data["parents"]),
            tuple(data["steps"]),
            tuple(data["ends"]),
            tuple(data["losses"]),
            data["memory"],
            None if data["caps"] is None else Caps.from_json(data["caps"]),
            data["register"],
        )


@dataclass(frozen=True)
class LayerResult:
    """The result of a :class:`LayerJob`. An end that its caps excluded has None in each list.

    Attributes:
        losses: For each loss, a number for each end.
        bits: For each end, the bits to store the layer.
        digests: For each end, a text that is equal only for bitwise equal states.
        applications: The number of kernel runs. No technique runs twice on one state.
        repeated: The number of kernel runs that were needed again because their result had not been kept.
        bounds: For the position of each excluded end, a lower bound of its loss.
        seconds: Wall time.
    """

    losses: Mapping[str, tuple[float | None, ...]]
    bits: tuple[int | None, ...]
    digests: tuple[str | None, ...]
    applications: int
    repeated: int = 0
    bounds: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def losses_at(self, place: int) -> dict[str, float]:
        """Return every loss of the end at this position, which must not be excluded."""
        return {name: self.loss_at(name, place) for name in self.losses}

    def loss_at(self, name: str, place: int) -> float:
        """Return one loss of the end at this position, which must not be excluded."""
        found = self.losses[name][place]
        assert found is not None
        return found

    def bits_at(self, place: int) -> int:
        """Return the bits of the end at this position, which must not be excluded."""
        found = self.bits[place]
        assert found is not None
        return found

    def digest_at(self, place: int) -> str:
        """Return the digest of the end at this position, which must not be excluded."""
        found = self.digests[place]
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "losses": {name: list(row) for name, row in self.losses.items()},
            "bits": list(self.bits),
            "digests": list(self.digests),
            "bounds": {str(place): least for place, least in self.bounds.items()},
            "applications": self.applications,
            "repeated": self.repeated,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the result in the plain data of :meth:`to_json`."""
        return cls(
            {name: tuple(row) for name, row in data["losses"].items()},
            tuple(data["bits"]),
            tuple(data["digests"]),
            data["applications"],
            data["repeated"],
            {int(place): least for place, least in data["bounds"].items()},
            data["seconds"],
        )


# ------------------------------------------------------------------------------------------- conditions on a layer


@dataclass(frozen=True)
class Coverage:
    """The part of one layer to which a claim proved under conditions applies, and the losses there.

    Attributes:
        weights: The number of weights of the layer.
        covered: The number of weights in units where every condition surely holds and the floats follow the exact runs.
        conditions: For the text of each condition, the number of weights in units where it holds.
        groups: For the text of each condition, the number of groups in which it was checked, over all steps of all
            sequences, and the number in which it holds.
        left: For a claim of dominance, the loss of the left side over the covered units and over the others, else None.
        right: The same for the right side.
        contradicted: The number of covered units in which the floats contradict the proof, beyond their error.
    """

    weights: int
    covered: int
    conditions: Mapping[str, int]
    groups: Mapping[str, tuple[int, int]]
    left: Pair | None
    right: Pair | None
    contradicted: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "weights": self.weights,
            "covered": self.covered,
            "conditions": dict(self.conditions),
            "groups": {name: list(counts) for name, counts in self.groups.items()},
            "left": None if self.left is None else list(self.left),
            "right": None if self.right is None else list(self.right),
            "contradicted": self.contradicted,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the coverage in the plain data of :meth:`to_json`."""
        left, right = (None if data[side] is None else (data[side][0], data[side][1]) for side in ("left", "right"))
        groups = {name: (checked, held) for name, (checked, held) in data["groups"].items()}
        weights, covered, contradicted = (data[name] for name in ("weights", "covered", "contradicted"))
        return cls(weights, covered, dict(data["conditions"]), groups, left, right, contradicted)


# ------------------------------------------------------------------------------------------- what stays dense


@dataclass(frozen=True)
class Tensors:
    """Some tensors of a model: how many ``parameters`` they have, and the names and sizes of the ``largest`` ones."""

    parameters: int
    largest: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        largest = [{"name": name, "parameters": size} for name, size in self.largest]
        return {"parameters": self.parameters, "largest": largest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the tensors in the plain data of :meth:`to_json`."""
        return cls(data["parameters"], tuple((one["name"], one["parameters"]) for one in data["largest"]))


@dataclass(frozen=True, eq=False)
class Outside(Record):
    """The parameters of a model that no technique acts on, each counted once, however many names it has.

    Attributes:
        left: All of them.
        of: The number of parameters of the model.
        unsupported: Weights among them that multiply activations, in modules that compcomp does not compress (routers,
            convolutions, recurrent weights).
    """

    left: Tensors
    of: int
    unsupported: Tensors

    @property
    def share(self) -> float:
        """Return the share of the model's parameters that stay uncompressed."""
        return self.left.parameters / self.of if self.of else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data: ``share``, ``of``, ``unsupported``, and the ``parameters`` and ``largest`` of ``left``."""
        return {
            "share": self.share,
            "parameters": self.left.parameters,
            "of": self.of,
            "largest": self.left.to_json()["largest"],
            "unsupported": self.unsupported.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the object in the plain data of :meth:`to_json`."""
        return cls(Tensors.from_json(data), data["of"], Tensors.from_json(data["unsupported"]))


# ------------------------------------------------------------------------------------------- the cost


@dataclass(frozen=True)
class Trial:
    """How long each part of a search takes on a model, and what it holds, estimated from a trial of each.

    Attributes:
        batches: The number of calibration batches.
        calibrate: Seconds of one batch, with the Gram matrices of all layers.
        forward: Seconds of one batch alone.
        apply: For each technique, by position, the seconds of one application to all layers.
        losses: Seconds of measuring the losses of one state.
        evaluate: Seconds of one evaluation of the user's metrics.
        dense: Bytes of the uncompressed state, and of copies of all else.
        state: Bytes of one compressed state.
        notes: Lines on the limits of these figures.
    """

    batches: int
    calibrate: float
    forward: float
    apply: tuple[float, ...]
    losses: float
    evaluate: float
    dense: int
    state: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "apply": list(self.apply), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the object in the plain data of :meth:`to_json`."""
        return cls(**{**data, "apply": tuple(data["apply"]), "notes": tuple(data["notes"])})


# ------------------------------------------------------------------------------------------- the protocol


class InParts(Protocol):
    """The part of a bench that evaluates the user's metrics on independent parts of the data."""

    @property
    def parts(self) -> int:
        """The number of independent parts that the user's metrics are means over; 0 if it is not known."""

    def evaluate_parts(self, state: Any, parts: Sequence[int]) -> Sums:
        """Return for each metric the sum and the count of each of these parts."""

    def is_log(self, metric: str) -> bool:
        """Return True if the metric is exp of a mean over parts, as perplexity is, instead of the mean itself."""

    def lower_is_better(self, metric: str) -> bool:
        """Return True if a smaller value of this user metric is better."""


class Bench(InParts, Protocol):
    """The interface that a search measures with, such as a model with calibration data.

    A state is whatever ``start`` and ``apply`` return. It must not change when another is made from it. ``notes`` are
    lines that a report should show.
    """

    notes: list[str]

    def start(self) -> Any:
        """Return the uncompressed state."""

    def apply(self, technique: Technique, state: Any) -> Any:
        """Return the state after one more technique."""

    def layers_apart(self, techniques: Sequence[Technique]) -> bool:
        """Return True if an order of these techniques acts on each layer independently of the others.

        If not, as when layers are calibrated on the outputs of compressed ones, no state is that of a longer order's
        beginning, and what is known of one layer says nothing about the same layer in the model.
        """

    def apply_all(self, order: Order) -> Any:
        """Return the state after all steps of an order, applied to the uncompressed model."""

    def apply_each(self, orders: Mapping[str, Order]) -> Any:
        """Return the state after each layer, by name, has been compressed in an order of its own."""

    def losses(self, state: Any) -> dict[str, float]:
        """Return the layer losses by name, summed over layers; smaller is better."""

    def total(self, losses: list[dict[str, float]]) -> dict[str, float]:
        """Return the result of ``losses``, given the losses of every layer."""

    def evaluate(self, state: Any) -> dict[str, float]:
        """Return the user's metrics by name; an empty dict if there are none."""

    def compression_rate(self, state: Any) -> float:
        """Return 1 - size / uncompressed size."""

    def rate(self, bits: int) -> float:
        """Return the compression rate of a state that takes this many bits."""

    def digest(self, state: Any) -> str:
        """Return a text that is the same for two states only if they are bitwise equal."""

    def fingerprint(self) -> str | None:
        """Return a text for everything that measurements depend on besides states, or None if that is not known."""

    def write(self, state: Any) -> Any:
        """Return the compressed model."""

    def shapes(self) -> list[Shape]:
        """Return (out, in) of every layer."""

    def layer_names(self) -> list[str]:
        """Return the names of all layers."""

    def layer_jobs(
        self,
        techniques: Sequence[Technique],
        parents: Sequence[int],
        steps: Sequence[int],
        ends: Sequence[int],
        memory: int,
        layers: Sequence[str],
        caps: Caps | None = None,
    ) -> Iterator[LayerJob]:
        """Yield the job of each of these layers, made when it is needed.

        Args:
            techniques: The techniques of the tree, as in :class:`LayerJob`.
            parents: For each node, the earlier node that it is applied to.
            steps: For each node, the position of its technique.
            ends: The nodes to measure.
            memory: The bytes that states may take.
            layers: The names of the layers.
            caps: Losses beyond which nodes are given up.
        """

    @property
    def explore(self) -> Callable[[LayerJob], LayerResult]:
        """The function that does one job, in any process."""

    @property
    def parallel(self) -> bool:
        """Return True if jobs gain from running in several processes at once."""

    def sent(self, directory: Path) -> SentBench:
        """Return this bench for other processes, with its tensors in files of the directory.

        Raises InputError if a part of it cannot be sent.
        """

    def pack(self, state: Any, path: Path) -> bytes:
        """Return a message with a state. Its tensors are in files whose names begin with this path."""

    def unpack(self, message: bytes) -> Any:
        """Return the state in a message of :meth:`pack`, of this bench or of one that was sent to another process."""

    def coverage(self, claims: Sequence[Claim]) -> Iterator[tuple[str, list[Coverage]]]:
        """Yield for each layer its name and its :class:`Coverage` by each claim, all proved under conditions.

        Yields nothing if the bench cannot compute it.
        """


class SentBench(Protocol):
    """A bench for other processes. It can be pickled, and is small: tensors are in files that all processes see."""

    def opened(self) -> AbstractContextManager[Bench]:
        """Return a context with the bench, which the process opens once and keeps."""


class Tried(Bench, Protocol):
    """A bench that can tell what a search on it costs."""

    def passes(self, order: Sequence[Technique]) -> int:
        """Return how often the calibration batches run through the model, block by block, while an order is applied."""

    def trial(self, techniques: Sequence[Technique], path: Sequence[int]) -> Trial:
        """Return how long each part of a search takes. ``path``: an order, by positions, to time techniques along."""

"""Explore every staying order on a model, layer by layer: each layer is one job, whatever the number of workers.

Techniques act on one layer at a time, so the tree of orders is explored for each layer alone. Bitwise equal states of a
layer count as one, and no technique is applied to one state twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from compcomp.bench import Bench, Caps, LayerJob, LayerResult
from compcomp.language.named import sources_of
from compcomp.ordering.dag import Orderings
from compcomp.ordering.jobs import pool, run
from compcomp.ordering.measure import Tree
from compcomp.ordering.parts import SAME_SIZE
from compcomp.ordering.progress import OnProgress
from compcomp.ordering.space import Prefix
from compcomp.ordering.store import Store

MEMORY = 2**30
"""Bytes of states that one job may keep."""
FIRST_SHARE = 4
"""One in this many layers is explored for all orders before orders that cannot win are left out."""
POOL_FROM = 4000
"""Nodes on single layers from which on a pool of processes is started."""
ABOVE = 1e-9
"""Relative excess at which a part of a loss counts as more than a whole loss, since sums of floats are rounded."""


@dataclass
class Explored:
    """Hold the results of orders on the layers of a model.

    Attributes:
        places: By layer, then by order, the result of its job, and the position of the order among its ends.
        applications: The number of kernel runs on single layers.
    """

    places: dict[str, dict[Prefix, tuple[LayerResult, int]]] = field(default_factory=dict)
    applications: int = 0

    def on(self, layer: str, order: Prefix) -> dict[str, float]:
        """Return every named loss of the order on one layer."""
        result, place = self.places[layer][order]
        return result.losses_at(place)

    def loss(self, name: str, order: Prefix, layers: Iterable[str] | None = None) -> float:
        """Return the order's loss summed over the layers that it was explored on.

        Args:
            name: The name of the loss.
            order: The order.
            layers: The layers to sum over, None for all.
        """
        total = 0.0
        for layer in self.places if layers is None else layers:
            if order in self.places[layer]:
                result, place = self.places[layer][order]
                total += result.loss_at(name, place)
        return total

    def best_by_layer(self, name: str, among: Sequence[Prefix]) -> dict[str, Prefix]:
        """Return for each layer the order, out of these, that loses least on it. Of equal ones it is the first."""
        return {layer: min(among, key=lambda order: (self.on(layer, order)[name], order)) for layer in self.places}

    def bits(self, order: Prefix) -> int:
        """Return the bits to store the layers after this order."""
        return sum(result.bits_at(place) for result, place in (layer[order] for layer in self.places.values()))

    def state(self, order: Prefix) -> tuple[str, ...]:
        """Return a key that is the same for two orders only if they leave every layer bitwise the same."""
        return tuple(result.digest_at(place) for result, place in (layer[order] for layer in self.places.values()))


class Explorer:
    """Explore layers in rounds: some of them for every order, then the others for orders that can still win."""

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        executor: Executor | None,
        store: Store | None,
        on_progress: OnProgress,
        keeps: Mapping[str, Sequence[int]],
        memory: int = MEMORY,
    ) -> None:
        self.orderings, self.bench, self.executor, self.store = orderings, bench, executor, store
        self.on_progress, self.memory, self.found = on_progress, memory, Explored()
        self.keeps = {name: tuple(which) for name, which in keeps.items()}
        self.names = bench.layer_names()

    def explore(self, keep: int, *, every: bool = False) -> Explored:
        """Explore all layers as :meth:`explored` does, on a pool of processes if there is much to do."""
        nodes = len(Tree.of(self.orderings, list(self.orderings.staying())).parents)
        wanted = self.bench.parallel and nodes * len(self.names) >= POOL_FROM
        with pool(self.executor, wanted=wanted) as self.executor:
            return self.explored(keep, every=every)

    def explored(self, keep: int, *, every: bool = False) -> Explored:
        """Explore all layers for the staying orders.

        An order is given up if its loss on some layers exceeds the whole loss of enough others, of the same techniques
        and size. It is dropped in the orderings then, and not explored on the other layers.

        Args:
            keep: How many others are enough.
            every: True gives up no order.
        """
        loss = self.orderings.loss
        staying = list(self.orderings.staying())
        if every or len(staying) <= keep or len(self.names) < FIRST_SHARE:
            self.layers(self.names, staying)
            return self.found
        count = len(self.names) // FIRST_SHARE
        rounds = [self.names[k * count : (k + 1) * count] for k in range(FIRST_SHARE - 1)]
        rounds.append(self.names[(FIRST_SHARE - 1) * count :])
        self.layers(rounds[0], staying)
        groups: dict[tuple[Prefix, int], list[Prefix]] = {}
        wholly = max(1, *map(self.found.bits, staying))
        for order in sorted(staying, key=lambda order: (self.found.loss(loss, order), order)):
            size = round(self.found.bits(order) / (wholly * SAME_SIZE))  # up to the zeros of masks
            groups.setdefault((tuple(sorted(order)), size), []).append(order)
        best = [order for group in groups.values() for order in group[:keep]]
        for names in rounds[1:]:
            self.layers(names, best)
        wholes = {  # for each order, the worst of the best orders of its size
            order: max(group[:keep], key=lambda one: self.found.loss(loss, one))
            for group in groups.values()
            for order in group[keep:]
        }
        for number, names in enumerate(rounds[1:], start=1):
            done = [name for earlier in rounds[:number] for name in earlier]
            for order in [order for order in staying if order in wholes]:
                whole = wholes[order]
                part, most = self.found.loss(loss, order, done), self.found.loss(loss, whole)
                if part > most + ABOVE * abs(most):
                    because = (
                        f"its {loss} over {len(done)} of {len(self.names)} layers alone is {part:.6g}, more than the "
                        f"{most:.6g} over all layers of {self.orderings.text(whole)}"
                    )
                    self.orderings.exceeds(order, whole, because)
                    staying.remove(order)
            left = [order for order in staying if order in wholes]
            caps = Caps(loss, tuple(self._cap(order, wholes[order], done) for order in left), self.keeps)
            for order, (layer, least) in self.layers(names, left, caps=caps).items():
                most = self.found.loss(loss, wholes[order])
                because = (
                    f"whatever follows the beginning of it, its {loss} on {layer} is at least {least:.6g}, which with "
                    f"that on {len(done)} other layers is more than the {most:.6g} over all layers of "
                    f"{self.orderings.text(wholes[order])}"
                )
                self.orderings.exceeds(order, wholes[order], because)
                staying.remove(order)
        return self.found

    def _cap(self, order: Prefix, whole: Prefix, done: Sequence[str]) -> float:
        """Return the largest loss on one layer with which an order loses no more in all than another."""
        loss = self.orderings.loss
        most = self.found.loss(loss, whole)
        return most + ABOVE * abs(most) - self.found.loss(loss, order, done)

    def layers(
        self, names: Sequence[str], orders: Sequence[Prefix], *, caps: Caps | None = None
    ) -> dict[Prefix, tuple[str, float]]:
        """Explore these layers for these orders.

        Args:
            names: The layers.
            orders: The orders.
            caps: The losses beyond which orders are given up.

        Returns:
            The orders that exceed their caps, each with the layer and the lower bound of its loss there.
        """
        bounded: dict[Prefix, tuple[str, float]] = {}
        if not orders:
            return bounded
        tree = Tree.of(self.orderings, orders)
        text = f"{len(orders)} orders"
        self.on_progress(0, len(names), text)
        for done, (name, result) in enumerate(self._results(names, tree, caps), start=1):
            for place, least in result.bounds.items():
                bounded.setdefault(tree.orders[place], (name, least))
            self.found.applications += result.applications + result.repeated
            self.found.places.setdefault(name, {}).update(
                (order, (result, place)) for place, order in enumerate(tree.orders)
            )
            self.on_progress(done, len(names), text)
        return bounded

    def _results(self, names: Sequence[str], tree: Tree, caps: Caps | None) -> Iterator[tuple[str, LayerResult]]:
        """Yield the result for each layer, from the store or from its job."""
        keys, found = dict[str, str](), dict[str, LayerResult]()
        sources = sources_of(self.orderings.techniques)
        for job in self._jobs(names, tree, caps) if self.store is not None and sources is not None else ():
            if not job.portable:
                break
            keys[job.layer] = f"{key_of(job)} {sources}"
            if (known := self.store.get_result(keys[job.layer]) if self.store is not None else None) is not None:
                found[job.layer] = replace(LayerResult.from_json(known), applications=0, repeated=0)
        open_ = [name for name in names if name not in found]
        fresh = run(self.bench.explore, self._jobs(open_, tree, caps), self.executor)
        for name in names:
            if name not in found:
                job, result = next(fresh)
                assert job.layer == name
                if self.store is not None and name in keys and sources == sources_of(self.orderings.techniques):
                    self.store.put_result(keys[name], result.to_json())
                found[name] = result
            yield name, found.pop(name)

    def _jobs(self, names: Sequence[str], tree: Tree, caps: Caps | None) -> Iterator[LayerJob]:
        known = self.orderings.techniques
        return self.bench.layer_jobs(known, tree.parents, tree.steps, tree.ends, self.memory, names, caps)


def key_of(job: LayerJob) -> str:
    """Return a digest of everything that the result of a portable job depends on, which is all but the memory."""
    data = {**replace(job, tensors=b"", memory=0).to_json(), "tensors": hashlib.sha256(job.tensors).hexdigest()}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

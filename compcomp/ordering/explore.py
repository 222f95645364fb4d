"""Losses of every staying order on a model, layer by layer: each layer is one job, whatever the number of workers.

Techniques act on one layer at a time, so the tree of words is explored for each layer alone. There, what is bitwise
equal is one state, and no technique is applied to one state twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from compcomp.language.named import sources_of
from compcomp.ordering.dag import Orderings
from compcomp.ordering.jobs import pool, run
from compcomp.ordering.measure import Bench, Tree
from compcomp.ordering.parts import SAME_SIZE
from compcomp.ordering.space import Prefix
from compcomp.ordering.store import Store

MEMORY = 2**30
"""Bytes of states that one job may keep."""
FIRST_SHARE = 4
"""One layer in so many is explored whole before orders that cannot win are left out."""
POOL_FROM = 4000
"""Nodes on single layers from which on processes for them are started."""
ABOVE = 1e-9
"""Relative excess at which a part of a loss counts as more than a whole one: sums of floats are no exact numbers."""

Told = Callable[[int, int, str], None]
"""Told how many layers are done, of how many, and the name of the last."""


@dataclass
class Explored:
    """What is known of orders on the layers of a model.

    ``places``: by layer, then by order: the result of its job, and the order's place among its ends.
    ``applications``: kernel runs on single layers.
    """

    places: dict[str, dict[Prefix, tuple[dict[str, Any], int]]] = field(default_factory=dict)
    applications: int = 0

    def on(self, layer: str, order: Prefix) -> dict[str, float]:
        """Every named loss of the order on one layer."""
        result, place = self.places[layer][order]
        return {name: row[place] for name, row in result["losses"].items()}

    def loss(self, name: str, order: Prefix, layers: Iterable[str] | None = None) -> float:
        """The order's loss over these layers, over those that are explored where None."""
        total = 0.0
        for layer in self.places if layers is None else layers:
            if order in self.places[layer]:
                result, place = self.places[layer][order]
                total += result["losses"][name][place]
        return total

    def best_by_layer(self, name: str, among: Sequence[Prefix]) -> dict[str, Prefix]:
        """For each layer that of these orders that loses least on it, the first of several."""
        return {layer: min(among, key=lambda order: (self.on(layer, order)[name], order)) for layer in self.places}

    def bits(self, order: Prefix) -> int:
        """Bits to store the layers after this order."""
        return sum(result["bits"][place] for result, place in (layer[order] for layer in self.places.values()))

    def state(self, order: Prefix) -> tuple[str, ...]:
        """The same for two orders only if they leave every layer bitwise the same."""
        return tuple(result["digests"][place] for result, place in (layer[order] for layer in self.places.values()))


class Explorer:
    """Explores layers in rounds: first some of them whole, then the others for what can still be among the best."""

    def __init__(
        self,
        orderings: Orderings,
        bench: Bench,
        executor: Executor | None,
        store: Store | None,
        told: Told,
        keeps: Mapping[str, Sequence[int]],
        memory: int = MEMORY,
    ) -> None:
        self.orderings, self.bench, self.executor, self.store = orderings, bench, executor, store
        self.told, self.keeps, self.memory, self.found = told, dict(keeps), memory, Explored()
        self.names = bench.layer_names()

    def explore(self, keep: int, *, every: bool = False) -> Explored:
        """Like :meth:`explored`, on processes of its own where there is much to do and no executor."""
        nodes = len(Tree.of(self.orderings, list(self.orderings.staying())).parents)
        wanted = self.bench.parallel and nodes * len(self.names) >= POOL_FROM
        with pool(self.executor, wanted=wanted) as self.executor:
            return self.explored(keep, every=every)

    def explored(self, keep: int, *, every: bool = False) -> Explored:
        """Explore all layers for the staying orders; with ``every`` without leaving any out on the way.

        Orders whose loss on some layers is more than the whole loss of ``keep`` others of the same techniques and size
        are noted in the orderings, and not explored on the layers that are left.
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
            size = round(self.found.bits(order) / (wholly * SAME_SIZE))  # zeros of masks aside
            groups.setdefault((tuple(sorted(order)), size), []).append(order)
        best = [order for group in groups.values() for order in group[:keep]]
        for names in rounds[1:]:
            self.layers(names, best, counted=False)
        wholes = {  # of each order the worst of the best that are of its size
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
            more = {
                "caps": [self._cap(order, wholes[order], done) for order in left],
                "loss": loss,
                "keeps": self.keeps,
            }
            for order, (layer, least) in self.layers(names, left, more=more).items():
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
        """The most that an order may lose on a layer and still lose no more in all than another."""
        loss = self.orderings.loss
        most = self.found.loss(loss, whole)
        return most + ABOVE * abs(most) - self.found.loss(loss, order, done)

    def layers(
        self,
        names: Sequence[str],
        orders: Sequence[Prefix],
        *,
        counted: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> dict[Prefix, tuple[str, float]]:
        """Explore these layers for these orders.

        Returns the orders that were bounded instead of run, each with the layer and what it loses there at least.
        """
        bounded: dict[Prefix, tuple[str, float]] = {}
        if not orders:
            return bounded
        tree, done = Tree.of(self.orderings, orders), 0
        for name, result in self._results(names, tree, more):
            for place, least in result.get("bounds", {}).items():
                bounded.setdefault(tree.orders[int(place)], (name, least))
            self.found.applications += result["applications"] + result["repeated"]
            self.found.places.setdefault(name, {}).update(
                (order, (result, place)) for place, order in enumerate(tree.orders)
            )
            if counted:
                done += 1
                self.told(done, len(names), name)
        return bounded

    def _results(
        self, names: Sequence[str], tree: Tree, more: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The result for each layer: from the store, or from its job."""
        keys, found = dict[str, str](), dict[str, dict[str, Any]]()
        sources = sources_of(self.orderings.techniques)
        for name, job in self._jobs(names, tree, more) if self.store is not None and sources is not None else ():
            if not job.get("portable", True):
                break
            keys[name] = f"{key_of(job)} {sources}"
            if (known := self.store.get_result(keys[name]) if self.store is not None else None) is not None:
                found[name] = {**known, "applications": 0, "repeated": 0}
        open_ = [name for name in names if name not in found]
        fresh = run(self.bench.explore, self._jobs(open_, tree, more), self.executor)
        for name in names:
            if name not in found:
                arrived, result = next(fresh)
                assert arrived == name
                if self.store is not None and name in keys and sources == sources_of(self.orderings.techniques):
                    self.store.put_result(keys[name], result)
                found[name] = result
            yield name, found.pop(name)

    def _jobs(
        self, names: Sequence[str], tree: Tree, more: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        known = self.orderings.techniques
        return self.bench.layer_jobs(known, tree.parents, tree.steps, tree.ends, self.memory, names, more)


def key_of(job: dict[str, Any]) -> str:
    """A digest of everything a job's result depends on: all of it but the memory it may take."""
    digest = hashlib.sha256()
    for key in sorted(job):
        if key != "memory":
            value = job[key]
            digest.update(key.encode() + b"\0")
            digest.update(value if isinstance(value, bytes) else json.dumps(value).encode())
    return digest.hexdigest()

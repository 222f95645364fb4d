"""The orderings of some techniques as a DAG: prefixes merge, and orders are dropped, by proof alone.

Laws (each is checked here, so that no search can break it):

1. Two prefixes become one node only on a PROVED ``equal`` that covers the layers at hand. They are made of
   the same techniques, so every continuation of one is a continuation of the other with the same result.
2. A complete order is dropped only by a PROVED ``dominates`` under the loss of the search that covers the
   layers at hand. A prefix is never dropped.
3. Any other verdict changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import factorial, prod
from typing import Any

import networkx as nx

from compcomp.language.claim import Claim
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.verdict import Verdict
from compcomp.proving.proof import EXACT

Prefix = tuple[int, ...]
"""An order, or the beginning of one: positions in :attr:`Orderings.techniques`."""
Shape = tuple[int, int]

FATES = ("merged", "dropped", "measured")


@dataclass(frozen=True)
class Fate:
    """What became of one order.

    ``fate``: "merged" (another order gives the same state), "dropped" (another order never loses more) or
    "measured". ``by``: the order that stands for it, itself when measured. ``proofs``: what this rests on.
    """

    order: str
    fate: str
    by: str
    proofs: tuple[Verdict, ...] = ()

    @property
    def because(self) -> str:
        """The proofs in one line."""
        return "; ".join(map(str, self.proofs)) or "no proof excludes it"

    def to_json(self) -> dict[str, str]:
        return {"order": self.order, "fate": self.fate, "because": self.because, "by": self.by}


OF_EVERY_LAYER = re.compile(
    re.escape(EXACT) + r"|.* \(its contract\)|without loss of generality .*|the layer splits into independent blocks .*"
)
"""Assumptions that restrict no layer: exact arithmetic, what techniques declare, steps of the proof itself."""


def covers(verdict: Verdict, shapes: Collection[Shape] | None, held: Collection[str] = ()) -> bool:
    """Whether a proof speaks of every layer of these shapes (out, in); None stands for layers of any shape.

    An assumption that may restrict the layers must be among ``held``, those known to hold for them; one that
    is not understood counts as such. A proof for one block covers layers made of such blocks where every
    technique acts inside a block and the loss adds over weights: an output loss does not, as blocks of a row
    share its outputs.
    """
    if not verdict.proved:
        return False
    if any(a not in held and OF_EVERY_LAYER.fullmatch(a) is None for a in verdict.assumptions):
        return False
    scope = verdict.scope
    if scope.kind == "any":
        return True
    if not shapes:
        return False
    if scope.kind == "shape":
        return all(shape == scope.shape for shape in shapes)
    return all(columns % scope.columns == 0 for _, columns in shapes) and _acts_in_blocks(verdict.claim, scope.columns)


def _acts_in_blocks(claim: Claim, size: int) -> bool:
    if claim.loss is not None and claim.loss.element is None:
        return False
    for technique in (t for sequence in claim.sequences for t in sequence):
        sizes = [step.partition.size for step in technique.steps()]
        if not sizes or any(s is None or size % s for s in sizes):
            return False
    return True


class Orderings:
    """Every order of some techniques, equal ones counted once.

    A class of prefixes proved equal is known by its representative, the first in the order in which the
    techniques were given. Nothing is stored but proofs, so eight techniques take no more room than two.

    ``loss``: the name of the loss orders are compared under. ``shapes``: (out, in) of the layers, None for
    any. ``held``: assumptions known to hold for them.
    """

    def __init__(
        self,
        techniques: Iterable[Technique],
        loss: str,
        shapes: Collection[Shape] | None = None,
        held: Collection[str] = (),
    ) -> None:
        given = list(techniques)
        self.techniques: tuple[Technique, ...] = tuple(
            t for i, t in enumerate(given) if not any(t == other for other in given[:i])
        )
        self.counts = tuple(sum(t == other for other in given) for t in self.techniques)
        self.length, self.loss = len(given), loss
        self.shapes = None if shapes is None else frozenset(shapes)
        self.held = frozenset(held)
        self._into: dict[Prefix, Prefix] = {}
        self._equal: dict[Prefix, Verdict] = {}
        self._dominance: nx.DiGraph[Prefix] = nx.DiGraph()  # from the better order to the worse

    # ------------------------------------------------------------------------------------ orders

    @property
    def total(self) -> int:
        """How many different orders there are."""
        return factorial(self.length) // prod(map(factorial, self.counts))

    @property
    def full_tree(self) -> int:
        """Technique applications in the full prefix tree, that is prefixes of every length from 1 on."""
        ways = [1]  # of the kinds so far: arrangements of k techniques
        for count in self.counts:
            longer = [0] * (len(ways) + count)
            for k, arrangements in enumerate(ways):
                for extra in range(count + 1):
                    chosen = factorial(k + extra) // (factorial(k) * factorial(extra))
                    longer[k + extra] += arrangements * chosen
            ways = longer
        return sum(ways[1:])

    def order(self, prefix: Prefix) -> Order:
        """The techniques of a prefix, in its order."""
        return Order(tuple(self.techniques[i] for i in prefix))

    def text(self, prefix: Prefix) -> str:
        """The text form; the empty prefix is "identity"."""
        return str(self.order(prefix))

    def prefix(self, techniques: Sequence[Technique]) -> Prefix | None:
        """The positions of these techniques, None when they are no prefix of an order of these."""
        found: list[int] = []
        for technique in techniques:
            position = next((i for i in self.next_steps(tuple(found)) if self.techniques[i] == technique), None)
            if position is None:
                return None
            found.append(position)
        return tuple(found)

    def next_steps(self, prefix: Prefix) -> list[int]:
        """The techniques that may follow."""
        return [i for i, count in enumerate(self.counts) if prefix.count(i) < count]

    def orders(self) -> Iterator[Prefix]:
        """Every complete order, one at a time."""
        stack: list[Prefix] = [()]
        while stack:
            prefix = stack.pop()
            if len(prefix) == self.length:
                yield prefix
            stack.extend((*prefix, i) for i in reversed(self.next_steps(prefix)))

    # ------------------------------------------------------------------------------------ classes

    def representative(self, prefix: Prefix) -> Prefix:
        """The prefix that stands for the class of this one."""
        found: Prefix = ()
        for i in prefix:
            found = self._followed((*found, i))
        return found

    def _followed(self, child: Prefix) -> Prefix:
        """The representative of a child of a representative. Merging leads to earlier prefixes: it ends."""
        return self.representative(self._into[child]) if child in self._into else child

    def children(self, representative: Prefix) -> list[Prefix]:
        """The prefixes one longer that stand for themselves."""
        return [child for i in self.next_steps(representative) if (child := (*representative, i)) not in self._into]

    def tree(self) -> Iterator[Prefix]:
        """Every representative once, depth first, each after its own beginning."""
        stack: list[Prefix] = [()]
        while stack:
            prefix = stack.pop()
            yield prefix
            stack.extend(reversed(self.children(prefix)))

    def leaves(self) -> Iterator[Prefix]:
        """The representatives that are complete orders."""
        return (prefix for prefix in self.tree() if len(prefix) == self.length)

    def sizes(self) -> dict[Prefix, int]:
        """How many orders each complete representative stands for."""
        level: dict[Prefix, int] = {(): 1}
        for _ in range(self.length):
            longer: dict[Prefix, int] = {}
            for prefix, ways in level.items():
                for i in self.next_steps(prefix):
                    child = self._followed((*prefix, i))
                    longer[child] = longer.get(child, 0) + ways
            level = longer
        return level

    # ------------------------------------------------------------------------------------ laws

    def covered(self, verdict: Verdict) -> bool:
        """Whether the verdict is a proof about all layers of this search."""
        return covers(verdict, self.shapes, self.held)

    def merge(self, verdict: Verdict) -> bool:
        """Merge the two prefixes that the verdict speaks of; False, and no change, when a law forbids it."""
        claim = verdict.claim
        if claim.kind != "equal" or not self.covered(verdict):
            return False
        sides = [self.prefix(sequence.techniques) for sequence in claim.sequences]
        if sides[0] is None or sides[1] is None or sorted(sides[0]) != sorted(sides[1]):
            return False
        first, second = sorted(self.representative(side) for side in sides if side is not None)
        if first != second:
            self._into[second], self._equal[second] = first, verdict
        return True

    def drop(self, verdict: Verdict) -> bool:
        """Note that one complete order never loses more than another; False when a law forbids to use it.

        Of orders that dominate each other one always stays.
        """
        claim = verdict.claim
        if claim.kind != "dominates" or claim.loss is None or claim.loss.name != self.loss:
            return False
        better, worse = (self.prefix(sequence.techniques) for sequence in claim.sequences)
        if better is None or worse is None or not len(better) == len(worse) == self.length:
            return False
        if not self.covered(verdict):
            return False
        self._dominance.add_edge(better, worse, verdict=verdict)
        return True

    def dominated(self, better: Prefix, worse: Prefix) -> bool:
        """Whether it is already proved, perhaps in several steps, that ``better`` never loses more."""
        graph = self._by_class()
        better, worse = self.representative(better), self.representative(worse)
        return better in graph and worse in graph and nx.has_path(graph, better, worse)

    def _by_class(self) -> nx.DiGraph[Prefix]:
        """Proved dominance between representatives."""
        graph: nx.DiGraph[Prefix] = nx.DiGraph()
        for better, worse, data in self._dominance.edges(data=True):
            one, other = self.representative(better), self.representative(worse)
            if one != other:
                graph.add_edge(one, other, verdict=data["verdict"])
        return graph

    def dropped(self) -> dict[Prefix, tuple[Prefix, ...]]:
        """Each dropped representative with the chain of orders that drops it, from one that stays down to it.

        Dominance is transitive, so an order may be dropped by one that is dropped itself: whatever drops
        that one drops both. Where a set of orders dominate each other, and nothing else dominates them, the
        first of them stays.
        """
        graph = self._by_class()
        condensed = nx.condensation(graph)
        staying = [
            min(condensed.nodes[component]["members"]) for component in condensed if condensed.in_degree(component) == 0
        ]
        if not staying:
            return {}
        chains: dict[Prefix, tuple[Prefix, ...]] = {}
        for first in sorted(staying):
            for prefix, chain in nx.single_source_shortest_path(graph, first).items():
                if len(chain) > 1 and (prefix not in chains or len(chain) < len(chains[prefix])):
                    chains[prefix] = tuple(chain)
        return chains

    def staying(self) -> Iterator[Prefix]:
        """The complete representatives that no proof excludes."""
        dropped = self.dropped()
        return (leaf for leaf in self.leaves() if leaf not in dropped)

    def proofs(self) -> list[Verdict]:
        """Every proof that merged or may drop something."""
        return [*self._equal.values(), *(data["verdict"] for _, _, data in self._dominance.edges(data=True))]

    # ------------------------------------------------------------------------------------ accounts

    def counted(self) -> dict[str, int]:
        """How many orders there are, and how many were merged, dropped and left to measure."""
        dropped, sizes = self.dropped(), self.sizes()
        lost = sum(size for leaf, size in sizes.items() if leaf in dropped)
        stay = sum(leaf not in dropped for leaf in sizes)
        return {"total": self.total, "merged": self.total - lost - stay, "dropped": lost, "measured": stay}

    def fates(self, orders: Iterable[Prefix] | None = None) -> Iterator[Fate]:
        """What became of each of these complete orders, of all of them when None."""
        dropped, graph = self.dropped(), self._by_class()
        for order in self.orders() if orders is None else orders:
            leaf = self.representative(order)
            proofs = self._merging(order)
            if leaf in dropped:
                chain = dropped[leaf]
                dominance = [graph.edges[link]["verdict"] for link in reversed(list(pairwise(chain)))]
                yield Fate(self.text(order), "dropped", self.text(chain[0]), (*proofs, *dominance))
            elif leaf != order:
                yield Fate(self.text(order), "merged", self.text(leaf), tuple(proofs))
            else:
                yield Fate(self.text(order), "measured", self.text(order))

    def _merging(self, prefix: Prefix) -> list[Verdict]:
        """The proofs that lead from a prefix to its representative."""
        proofs: list[Verdict] = []
        found: Prefix = ()
        for i in prefix:
            child = (*found, i)
            if child in self._into:
                proofs.append(self._equal[child])
                proofs += self._merging(self._into[child])
            found = self._followed(child)
        return proofs

    def graph(self) -> nx.DiGraph[str]:
        """The DAG as plain data: a node for each class of prefixes, an edge for each technique applied.

        A node is the text of its representative. Nodes have ``level`` (techniques applied), ``orders`` (ways
        that lead there) and, where complete, ``fate``; edges have ``technique``, ``merged`` and ``because``.
        """
        graph: nx.DiGraph[str] = nx.DiGraph(loss=self.loss)
        dropped = self.dropped()
        level: dict[Prefix, int] = {(): 1}
        for depth in range(self.length + 1):
            longer: dict[Prefix, int] = {}
            for prefix, ways in level.items():
                attributes: dict[str, Any] = {"level": depth, "orders": ways}
                if depth == self.length:
                    attributes["fate"] = "dropped" if prefix in dropped else "measured"
                graph.add_node(self.text(prefix), **attributes)
                for i in self.next_steps(prefix):
                    child = (*prefix, i)
                    target = self._followed(child)
                    merged = target != child
                    graph.add_edge(
                        self.text(prefix),
                        self.text(target),
                        technique=str(self.techniques[i]),
                        merged=merged,
                        because="; ".join(map(str, self._merging(child))) if merged else "",
                    )
                    longer[target] = longer.get(target, 0) + ways
            level = longer
        return graph

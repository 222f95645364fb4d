"""The orderings of some techniques as a DAG: prefixes merge, and orders are dropped, by proof alone.

The laws are checked here, so that no search can break them:

1. *Normal forms.* Every prefix has a normal form: techniques that lead to a state equal to its own. A PROVED
   ``same_state`` that covers the layers at hand rewrites normal forms: to fewer techniques, or to the order in which
   techniques were given. It rewrites anywhere inside a normal form if the proof holds from every state. Otherwise it
   rewrites only a normal form that is one of its sides, and only if no technique of the search reads the factors of the
   low-rank branch: equal states agree in their product alone. A state records more than equality compares. Therefore a
   prefix has a path as well: techniques that lead to a state which is its own in every recorded field. A path is
   shortened by proofs from every state, and by proofs whose techniques all leave the low-rank branch alone. Prefixes
   with one normal form that have used the same techniques become one node if their paths are the same, or are known to
   be stored alike (``stored_alike``). Every continuation of one is then a continuation of the other, with the same
   result of the same size. The path is run.
2. *Dominance.* A complete order is dropped by a PROVED ``dominates`` under the loss of the search that covers the
   layers at hand. The dominating order is another complete order of the same techniques that takes no more to store
   (``no_larger``).
3. *Deferred.* Let T be proved equal to doing nothing on the dense layer, and let ``X >> T dominates X`` be proved from
   every state, for every X that may come last. Then U >> T, for any U that ends in such an X, loses no more than U, and
   U gives the state of T >> U. Therefore, at the dense layer, T is not applied while anything else is left to apply.
   The orders that do so are dropped for the one with T at its end. This holds only where X >> T takes no more to store
   than T >> X.
4. *Measured.* Orders whose results are bitwise equal in every layer of a model are one order on that model. Let a part
   of an order's loss, which adds over layers, exceed the whole loss of as many others as are wanted, of the same
   techniques and size. Then the order is dropped.
5. *Under conditions.* On a model an order is dropped if it is proved under conditions to lose no less than another. The
   conditions must have been checked on the tensors of every layer, and the weights that they leave open must have been
   measured, layer by layer.
6. Any other verdict changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx

from compcomp.bench import Shape
from compcomp.language.assumption import Assumption
from compcomp.language.claim import Claim, Dominates, SameState
from compcomp.language.technique import Sequence as Order
from compcomp.language.technique import Technique
from compcomp.language.verdict import Verdict
from compcomp.ordering.covers import covers
from compcomp.ordering.space import Prefix, Slot, Space, Used
from compcomp.proving.proof import DENSE_INPUTS, SAME_BASIS

OUTCOMES = ("merged", "dropped", "measured", "open")
OPEN = "the search was interrupted before it was measured"
"""The note of an order whose outcome is not known."""
ON_THIS_MODEL = "bitwise the same in every layer of this model, which says nothing of other models"
UNDER_CONDITIONS = "under conditions that were checked on this model"


@dataclass(frozen=True)
class Outcome:
    """Hold the outcome of a search for one order.

    Attributes:
        order: The order.
        kind: "merged" (another order gives the same state), "dropped" (another order never loses more), "measured", or
            "open" (the search was interrupted).
        by: The order that stands for it, which is itself if it was measured.
        proofs: The proofs that merged or dropped it.
        note: The further reason that was measured on the model.
    """

    order: Order
    kind: str
    by: Order
    proofs: tuple[Verdict, ...] = ()
    note: str = ""

    @property
    def because(self) -> str:
        """The proofs and the note on one line."""
        return "; ".join([*map(str, self.proofs), *([self.note] if self.note else [])]) or "no proof excludes it"

    def to_json(self) -> dict[str, str]:
        """Return plain data. The kind is called ``fate`` there, as in files of earlier versions."""
        return {"order": str(self.order), "fate": self.kind, "because": self.because, "by": str(self.by)}


def _keeps_factors(sequence: Iterable[Technique]) -> bool:
    return all("factors" in technique.promises().keeps for technique in sequence)


def _leaves_factors(proof: Verdict) -> bool:
    """Return True if the equal states of a proof have the same low-rank factors, not only the same product."""
    return proof.local_rewrite or all(map(_keeps_factors, proof.claim.sequences))


@dataclass
class Node:
    """Hold a class of prefixes.

    Attributes:
        prefix: The first prefix of the class.
        normal: Their normal form.
        used: The slots they fill.
        path: The techniques that are run.
        ways: How many prefixes the class has.
        children: The nodes one technique later, by technique.
        deferred: The techniques that are not applied here, by law 3.
    """

    prefix: Prefix
    normal: Prefix
    used: Used
    path: Prefix = ()
    ways: int = 0
    children: dict[int, Node] = field(default_factory=dict)
    deferred: tuple[int, ...] = ()


Proofs = tuple[Verdict, ...]


class Orderings(Space):
    """Hold every order of some techniques, and count equal ones once.

    A class of prefixes proved equal is represented by its first prefix, in the order in which the techniques were
    given. Only proofs and their consequences are stored.

    Args:
        given: Techniques and slots.
        loss: The name of the loss that orders are compared by.
        shapes: The shapes (out, in) of the layers, None for any.
        held: Assumptions known to hold for the layers.
        before: Pairs of techniques. In each, the first comes before the second if both occur.

    Attributes:
        no_larger: Returns True if the state after the first of two orders of the same techniques takes no more to store
            than that after the second. True by default.
        stored_alike: Returns True if equal states after two orders are known to have the same recorded fields. False by
            default.
    """

    def __init__(
        self,
        given: Iterable[Technique | Slot],
        loss: str,
        shapes: Collection[Shape] | None = None,
        held: Collection[Assumption] = (),
        before: Iterable[tuple[Technique, Technique]] = (),
    ) -> None:
        super().__init__(given, before)
        self.loss = loss
        self.no_larger: Callable[[Prefix, Prefix], bool] = lambda better, worse: True
        self.stored_alike: Callable[[Prefix, Prefix], bool] = lambda one, other: False
        self.shapes = None if shapes is None else frozenset(shapes)
        promised = [technique.promises() for technique in self.techniques]
        self.held = frozenset(held)
        self.held |= frozenset() if any(p.changes_inputs for p in promised) else {DENSE_INPUTS}
        self.held |= frozenset() if any(p.changes_basis for p in promised) else {SAME_BASIS}
        self._inside: dict[Prefix, tuple[Prefix, Verdict]] = {}
        self._whole: dict[Prefix, tuple[Prefix, Verdict]] = {}
        self._last: dict[tuple[int, int], Verdict] = {}  # (X, T): X >> T never loses more than X
        self._dominance: nx.DiGraph[Prefix] = nx.DiGraph()  # from the better order to the worse
        self._on_model: dict[Prefix, Prefix] = {}
        self._bounded: dict[Prefix, tuple[Prefix, str]] = {}
        self._open: frozenset[Prefix] = frozenset()
        self._steps: dict[tuple[Prefix, int], tuple[Prefix, Proofs]] = {}
        self._nodes: dict[tuple[Prefix, Used, Prefix], Node] | None = None

    # ------------------------------------------------------------------------------------ normal forms

    def normal_after(self, normal: Prefix, step: int) -> tuple[Prefix, Proofs]:
        """Return the normal form after one more technique, and the proofs used.

        Each rewrite makes the form shorter or smaller.

        Args:
            normal: The normal form before.
            step: The position of the technique.
        """
        if (normal, step) not in self._steps:
            self._steps[normal, step] = self._rewritten((*normal, step))
        return self._steps[normal, step]

    def _rewritten(self, form: Prefix) -> tuple[Prefix, Proofs]:
        """Return the normal form of techniques. All but the last must be in normal form already."""
        if form in self._whole:
            other, proof = self._whole[form]
            shorter, proofs = self.normal_form(other)
            return shorter, (proof, *proofs)
        for size in range(1, len(form) + 1):
            if form[-size:] in self._inside:
                end, proof = self._inside[form[-size:]]
                found, proofs = form[:-size], (proof,)
                for step in end:
                    found, more = self.normal_after(found, step)
                    proofs += more
                return found, proofs
        return form, ()

    def normal_form(self, prefix: Prefix) -> tuple[Prefix, Proofs]:
        """Return the normal form of a prefix, and the proofs that lead there."""
        normal, proofs = Prefix(), Proofs()
        for step in prefix:
            normal, more = self.normal_after(normal, step)
            proofs += more
        return normal, proofs

    def path(self, prefix: Prefix) -> Prefix:
        """Return the techniques that are run for a prefix. They lead to its own state in every recorded field."""
        normal, path = Prefix(), Prefix()
        for step in prefix:
            normal, path = self.normal_after(normal, step)[0], self._after_path(path, normal, step)
        return path

    def _after_path(self, path: Prefix, normal: Prefix, step: int) -> Prefix:
        """Return the path after one more technique, from a state of this path and normal form."""
        longer, proofs = self.normal_after(normal, step)
        if all(map(_leaves_factors, proofs)):
            if path == normal:
                return longer
            if longer == normal:
                return path
        return self._inside_alone((*path, step))

    def _inside_alone(self, form: Prefix) -> Prefix:
        """Rewrite techniques by proofs from every state alone. All but the last must be rewritten already."""
        for size in range(1, len(form) + 1):
            if form[-size:] in self._inside:
                found = form[:-size]
                for step in self._inside[form[-size:]][0]:
                    found = self._inside_alone((*found, step))
                return found
        return form

    # ------------------------------------------------------------------------------------ nodes

    @property
    def nodes(self) -> Mapping[tuple[Prefix, Used, Prefix], Node]:
        """Every class of prefixes by normal form, use and path, shorter prefixes first."""
        if self._nodes is None:
            start = Node((), (), self.start, ways=1)
            found = level = {(start.normal, start.used, start.path): start}
            while level:
                longer: dict[tuple[Prefix, Used, Prefix], Node] = {}
                paths: dict[tuple[Prefix, Used], list[Prefix]] = {}
                for node in level.values():
                    node.deferred = self._deferred_at(node)
                    for step in self.steps_after(node.used):
                        if step in node.deferred:
                            continue
                        normal, used = self.normal_after(node.normal, step)[0], self.after(node.used, step)
                        path = self._after_path(node.path, node.normal, step)
                        known = paths.setdefault((normal, used), [])
                        alike = next((one for one in known if one == path or self.stored_alike(one, path)), path)
                        if alike == path and path not in known:
                            known.append(path)
                        key = normal, used, alike
                        child = longer.setdefault(key, Node((*node.prefix, step), *key))
                        child.ways += node.ways
                        node.children[step] = child
                found, level = found | longer, longer
            self._nodes = found
        return self._nodes

    def _deferred_at(self, node: Node) -> tuple[int, ...]:
        """Return the techniques that law 3 defers: no-ops here, which may as well come last."""
        if node.normal or not self._last:
            return ()
        following = self.steps_after(node.used)
        left = {
            i
            for i, home in enumerate(self.home)
            if node.used[0][home] < self.counts[home] and self.normal_after((), i)[0] != ()
        }
        forced = any(
            not slot.optional
            and node.used[0][k] < self.counts[k]
            and all(self.placed(t) in left for t in slot.alternatives)
            for k, slot in enumerate(self.slots)
        )
        if not forced:  # some order may consist of no-ops alone
            return ()
        return tuple(
            step
            for step in following
            if self.normal_after((), step)[0] == ()
            and not any(first == step for first, _ in self.before)
            and all(
                (last, step) in self._last and self.no_larger((last, step), (step, last))
                for last in range(len(self.techniques))
                if last != step
            )
        )

    def node(self, prefix: Prefix) -> Node | None:
        """Return the node of a prefix, None if it applies a technique that law 3 defers."""
        node = self.nodes[(), self.start, ()]
        for step in prefix:
            if step not in node.children:
                return None
            node = node.children[step]
        return node

    def representative(self, prefix: Prefix) -> Prefix:
        """Return the prefix that represents the class of this one, or this one if law 3 leaves it out."""
        node = self.node(prefix)
        return prefix if node is None else node.prefix

    def leaves(self) -> Iterator[Prefix]:
        """Yield the representatives that are complete orders."""
        return (node.prefix for node in self.nodes.values() if self.complete(node.used))

    def _leaf(self, prefix: Prefix) -> Prefix | None:
        """Return the representative of a complete order, None if law 3 leaves it out."""
        node = self.node(prefix)
        return node.prefix if node is not None and self.complete(node.used) else None

    def sizes(self) -> dict[Prefix, int]:
        """Return how many orders each complete representative stands for."""
        return {node.prefix: node.ways for node in self.nodes.values() if self.complete(node.used)}

    # ------------------------------------------------------------------------------------ laws

    def covered(self, verdict: Verdict) -> bool:
        """Return True if the verdict is a proof about all layers of this search."""
        return covers(verdict, self.shapes, self.held)

    def _positions(self, techniques: Iterable[Technique]) -> Prefix | None:
        """Return the positions of these techniques, None if one is not of this search."""
        found = [next((i for i, t in enumerate(self.techniques) if t == given), None) for given in techniques]
        return None if None in found else tuple(i for i in found if i is not None)

    def merge(self, verdict: Verdict) -> bool:
        """Rewrite by a proof of equality (law 1). Return False, and change nothing, if the law forbids its use."""
        claim = verdict.claim
        if not isinstance(claim, SameState) or not self.covered(verdict):
            return False
        sides = [self._positions(sequence) for sequence in claim.sequences]
        if sides[0] is None or sides[1] is None or sides[0] == sides[1]:
            return False
        if verdict.local_rewrite:
            smaller, larger = sorted((side for side in sides if side is not None), key=lambda w: (len(w), w))
            self._inside.setdefault(larger, (smaller, verdict))
        elif self._may_see_factors(verdict.claim):
            return False
        else:
            forms = sorted((self.normal_form(side)[0] for side in sides if side is not None), key=lambda w: (len(w), w))
            if forms[0] == forms[1]:
                return True
            self._whole.setdefault(forms[1], (forms[0], verdict))
        self._changed()
        return True

    def _may_see_factors(self, claim: Claim) -> bool:
        """Return True if a later technique may give different results on states that the claim calls equal."""
        keep = all(map(_keeps_factors, claim.sequences))
        return not keep and any(technique.promises().sees_factors for technique in self.techniques)

    def improves_last(self, verdict: Verdict) -> bool:
        """Use a proof that ``X >> T`` never loses more than ``X`` (law 3). Return False if the law forbids its use."""
        claim = verdict.claim
        if not isinstance(claim, Dominates) or claim.loss.name != self.loss or not verdict.local_rewrite:
            return False
        longer, shorter = (self._positions(sequence) for sequence in claim.sequences)
        if longer is None or shorter is None or len(shorter) != 1 or longer[:-1] != shorter:
            return False
        if not self.covered(verdict):
            return False
        self._last[shorter[0], longer[1]] = verdict
        self._changed()
        return True

    def drop(self, verdict: Verdict) -> bool:
        """Use a proof that one complete order never loses more than another (law 2).

        Of orders that dominate each other one always stays. Return False if a law forbids the use of the proof.
        """
        claim = verdict.claim
        if not isinstance(claim, Dominates) or claim.loss.name != self.loss:
            return False
        better, worse = (self.prefix(sequence.techniques) for sequence in claim.sequences)
        if better is None or worse is None or sorted(better) != sorted(worse):
            return False
        if not self.complete(self.used(better)) or not self.covered(verdict):
            return False
        self._dominance.add_edge(better, worse, verdict=verdict)
        return True

    def same_on_model(self, states: Mapping[Prefix, Hashable]) -> None:
        """Identify staying orders whose states are bitwise the same in every layer of this model (law 4)."""
        first: dict[Hashable, Prefix] = {}
        for leaf in sorted(states):
            stands = first.setdefault(states[leaf], leaf)
            if stands != leaf:
                self._on_model[leaf] = stands

    def exceeds(self, leaf: Prefix, by: Prefix, because: str) -> None:
        """Drop a staying order, as a part of its loss exceeds the whole loss of another (law 4).

        Args:
            leaf: The order to drop.
            by: The other order.
            because: The reason for reports.
        """
        self._bounded[leaf] = by, because

    def under_conditions(self, leaf: Prefix, by: Prefix, because: str) -> None:
        """Drop a staying order, as another is known to lose no more on this model (law 5).

        Args:
            leaf: The order to drop.
            by: The other order.
            because: The reason for reports.
        """
        self._bounded[leaf] = by, f"{UNDER_CONDITIONS}, {because}"

    def leave_open(self, leaves: Iterable[Prefix]) -> None:
        """Record staying orders that were not measured, as the search was interrupted. They go on staying."""
        self._open = frozenset(leaves)

    def _changed(self) -> None:
        self._steps.clear()
        self._nodes = None

    def dominated(self, better: Prefix, worse: Prefix) -> bool:
        """Return True if it is already proved, perhaps in several steps, that ``better`` never loses more."""
        graph = self._by_class()
        better, worse = self.representative(better), self.representative(worse)
        return better in graph and worse in graph and nx.has_path(graph, better, worse)

    def _by_class(self) -> nx.DiGraph[Prefix]:
        """Return the graph of proved dominance between representatives."""
        graph: nx.DiGraph[Prefix] = nx.DiGraph()
        for better, worse, data in self._dominance.edges(data=True):
            one, other = self._leaf(better), self._leaf(worse)
            if one is not None and other is not None and one != other and self.no_larger(one, other):
                graph.add_edge(one, other, verdict=data["verdict"])
        return graph

    def dropped(self) -> dict[Prefix, tuple[Prefix, ...]]:
        """Return each representative that law 2 drops, with the chain of orders from one that stays down to it.

        Dominance is transitive, so an order may be dropped by one that is dropped itself. If a set of orders dominate
        each other, and no other order dominates them, the first of them stays.
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
        """Yield the complete representatives that nothing excludes."""
        dropped = self.dropped()
        out = (dropped, self._on_model, self._bounded)
        return (leaf for leaf in self.leaves() if not any(leaf in those for those in out))

    def proofs(self) -> list[Verdict]:
        """Return every proof that merged orders or may drop one."""
        equal = [proof for rules in (self._inside, self._whole) for _, proof in rules.values()]
        return [*equal, *self._last.values(), *(data["verdict"] for _, _, data in self._dominance.edges(data=True))]

    # ------------------------------------------------------------------------------------ accounts

    def counted(self) -> dict[str, int]:
        """Return how many orders there are, and how many were merged, dropped and measured.

        "open" counts those that an interrupted search has not measured. It is present only if there are some.
        """
        dropped, sizes = self.dropped(), self.sizes()
        lost = sum(size for leaf, size in sizes.items() if leaf in dropped or leaf in self._bounded)
        lost += sum(sizes[leaf] for leaf, stands in self._on_model.items() if stands in self._bounded)
        lost += self.total - sum(sizes.values())  # law 3
        stay = sum(1 for _ in self.staying())
        found = {"total": self.total, "merged": self.total - lost - stay, "dropped": lost, "measured": stay}
        if self._open:
            found |= {"measured": stay - len(self._open), "open": len(self._open)}
        return found

    def outcomes(self, orders: Iterable[Prefix] | None = None) -> Iterator[Outcome]:
        """Yield the outcome of each of these complete orders, of all orders if None."""
        dropped, graph = self.dropped(), self._by_class()
        for order in self.orders() if orders is None else orders:
            yield self._outcome(order, dropped, graph)

    def _outcome(
        self, order: Prefix, dropped: Mapping[Prefix, tuple[Prefix, ...]], graph: nx.DiGraph[Prefix]
    ) -> Outcome:
        moved, proofs = self._moved(order)
        kind, note = "dropped" if moved != order else "measured", ""
        leaf = self.representative(moved)
        proofs += self.normal_form(moved)[1] if leaf != moved else ()
        if leaf != moved and kind == "measured":
            kind = "merged"
        if leaf in dropped:
            chain, kind = dropped[leaf], "dropped"
            proofs += tuple(graph.edges[link]["verdict"] for link in reversed(list(pairwise(chain))))
            leaf = chain[0]
        if leaf in self._on_model:
            leaf, note = self._on_model[leaf], ON_THIS_MODEL
            kind = "merged" if kind == "measured" else kind
        if leaf in self._bounded:
            leaf, because = self._bounded[leaf]
            kind, note = "dropped", f"{note}; {because}" if note else because
        if kind == "measured" and leaf in self._open:
            kind, note = "open", OPEN
        return Outcome(self.order(order), kind, self.order(leaf), tuple({id(p): p for p in proofs}.values()), note)

    def _moved(self, order: Prefix) -> tuple[Prefix, Proofs]:
        """Return the order with all deferred techniques (law 3) at its end, and the proofs used."""
        proofs: list[Verdict] = []
        node, done = self.nodes[(), self.start, ()], 0
        while done < len(order):
            step = order[done]
            if step in node.deferred:
                order = (*order[:done], *order[done + 1 :], step)
                proofs += [*self.normal_after((), step)[1], self._last[order[-2], step]]
            else:
                node, done = node.children[step], done + 1
        return order, tuple(proofs)

    def graph(self) -> nx.DiGraph[str]:
        """Return the DAG as plain data: a node for each class of prefixes, an edge for each technique applied.

        A node is the text of its representative. Nodes have ``level`` (techniques applied), ``orders`` (ways that lead
        there) and, if complete, ``fate``. Edges have ``technique``, ``merged`` and ``because``. A prefix that law 3
        leaves out is a node of ``fate`` "dropped" without children.
        """
        graph: nx.DiGraph[str] = nx.DiGraph(loss=self.loss)
        dropped = self.dropped()
        for node in self.nodes.values():
            attributes: dict[str, Any] = {"level": len(node.prefix), "orders": node.ways}
            if self.complete(node.used):
                gone = node.prefix in dropped or node.prefix in self._bounded
                attributes["fate"] = "dropped" if gone else "merged" if node.prefix in self._on_model else "measured"
                if node.prefix in self._open:
                    attributes["fate"] = "open"
            graph.add_node(self.text(node.prefix), **attributes)
        for node in self.nodes.values():
            for step, child in node.children.items():
                merged = child.prefix != (*node.prefix, step)
                proofs = self.normal_after(node.normal, step)[1] if merged else ()
                graph.add_edge(
                    self.text(node.prefix),
                    self.text(child.prefix),
                    technique=str(self.techniques[step]),
                    merged=merged,
                    because="; ".join(map(str, proofs)),
                )
            for step in node.deferred:
                text = self.text((*node.prefix, step))
                graph.add_node(text, level=len(node.prefix) + 1, orders=node.ways, fate="dropped")
                graph.add_edge(
                    self.text(node.prefix), text, technique=str(self.techniques[step]), merged=False, because=""
                )
        return graph

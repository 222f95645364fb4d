"""Draw the DAG of orderings as SVG: levels from left to right, a class of equal prefixes drawn once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from compcomp.reporting import summary

if TYPE_CHECKING:
    from networkx import DiGraph

    from compcomp.ordering.plan import PlanData

MOST_LEAVES = 200
"""The most leaves that are drawn. For more, the path to the best order and the number of classes of each level are."""
MOST_ORDERS = 5040
"""The most orders of a plan whose graph is made."""
LABELLED = 40
"""The most rows for which merging edges carry the technique they apply."""

TOP, LEFT, AFTER = 30, 8, 190


@dataclass(frozen=True)
class _Size:
    """Hold sizes in pixels. ``row``: from one row to the next. ``step``: from one level to the next."""

    row: float
    node: float
    font: float
    width: float
    step: float


def drawable(plan: PlanData) -> bool:
    """Return True if there are few enough orders to draw them all."""
    return plan.orders["total"] <= MOST_ORDERS and _leaves(plan.graph) <= MOST_LEAVES


def _leaves(graph: DiGraph[str]) -> int:
    return sum(1 for _, data in graph.nodes(data=True) if "fate" in data)


def orderings_svg(plan: PlanData, names: summary.Names, ranked: summary.Ranking) -> str:
    """Return the picture as an ``<svg>`` element. It takes its colours from the page's style sheet."""
    return _Drawing(plan, plan.graph, names, ranked).svg() if drawable(plan) else _path_only(plan, names)


def _node_size(rows: int, names: summary.Names) -> _Size:
    row, font = (29.0, 12.5) if rows <= 30 else (22.0, 11.5) if rows <= 60 else (16.0, 10.0)
    longest = min(24, max((len(s) for s in names.short.values()), default=8))
    width = max(60.0, longest * font * 0.6 + 16)
    return _Size(row, row - 5, font, width, width + (64 if rows <= 60 else 80))


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


class _Drawing:
    """Lay out and draw one picture."""

    def __init__(self, plan: PlanData, graph: DiGraph[str], names: summary.Names, ranked: summary.Ranking) -> None:
        self.plan, self.graph, self.names = plan, graph, names
        self.levels: dict[str, int] = {node: data["level"] for node, data in graph.nodes(data=True)}
        self.root = next(node for node, level in self.levels.items() if level == 0)
        self.places = {row.order: row for row in ranked.rows}
        self.ramp = _ramp(ranked)
        self.by_depth = sorted(self.levels, key=self.levels.__getitem__, reverse=True)
        self.rank = self._best_below()
        self.alive = self._alive()
        self.path = _path(plan, graph, self.root)
        self.rows = self._rows()
        self.size = _node_size(round(max(self.rows.values())) + 1, names)

    def _best_below(self) -> dict[str, float]:
        """Return for each prefix the best place that any of its continuations takes."""
        rank: dict[str, float] = {}
        for node in self.by_depth:
            own = self.places[node].place if node in self.places else math.inf
            rank[node] = min([own, *(rank[child] for child in self.graph.successors(node))])
        return rank

    def _alive(self) -> set[str]:
        """Return the prefixes with a continuation that no proof excludes."""
        alive: set[str] = set()
        for node in self.by_depth:
            outcome = self.graph.nodes[node].get("fate")
            if outcome == "measured" or any(child in alive for child in self.graph.successors(node)):
                alive.add(node)
        return alive

    def _children(self, node: str) -> list[str]:
        """Return the children that no merging edge leads to, those that lead to better orders first."""
        own = [child for _, child, data in self.graph.out_edges(node, data=True) if not data["merged"]]
        return sorted(own, key=lambda child: (self.rank[child], child))

    def _rows(self) -> dict[str, float]:
        """Return a row for each node.

        Nodes without children have one of their own. The others are centred on their children.
        """
        rows: dict[str, float] = {}
        free = 0
        stack = [(self.root, False)]
        while stack:
            node, seen = stack.pop()
            children = self._children(node)
            if not children:
                rows[node], free = float(free), free + 1
            elif seen:
                rows[node] = (rows[children[0]] + rows[children[-1]]) / 2
            else:
                stack.append((node, True))
                stack += [(child, False) for child in reversed(children)]
        return rows

    # ------------------------------------------------------------------------------------ drawing

    def _x(self, node: str) -> float:
        return LEFT + self.levels[node] * self.size.step

    def _y(self, node: str) -> float:
        return TOP + (self.rows[node] + 0.5) * self.size.row

    def svg(self) -> str:
        """Return the picture as an ``<svg>`` element."""
        depth = max(self.levels.values())
        width = LEFT + depth * self.size.step + self.size.width + AFTER
        height = TOP + (max(self.rows.values()) + 1) * self.size.row + 6
        kinds = ("plain", "gone", "merge", "on")
        edges = [self._edge(*edge) for edge in self.graph.edges(data=True)]
        parts = [text for kind in kinds for found, text in edges if found == kind]
        parts += map(self._node, self.graph.nodes)
        parts += [
            f'<text class="axis" x="{LEFT + k * self.size.step:.0f}" y="16" font-size="12">{_level(k)}</text>'
            for k in range(depth + 1)
        ]
        return _framed(width, height, self._description(), "".join(parts))

    def _description(self) -> str:
        return (
            f"Each column is one more technique. {summary.counted(self.plan)}. The thick path is the best order, "
            f"{self.names(str(self.plan.order))}. The tables below hold everything that is drawn here."
        )

    def _edge(self, start: str, end: str, data: dict[str, Any]) -> tuple[str, str]:
        """Return the kind and the path of an edge.

        A merging edge leads to the class that its own prefix is proved equal to.
        """
        kind = "merge" if data["merged"] else "plain" if end in self.alive else "gone"
        if (start, end) in self.path:
            kind = "on"
        x1, y1 = self._x(start) + self.size.width, self._y(start)
        x2, y2 = self._x(end), self._y(end)
        bend = (x2 - x1) * 0.55
        title = f"{self.names(data['technique'])} after {self.names(start)}"
        if data["merged"]:
            title += f" = {self.names(end)}\n{self.names(data['because'])}"
        line = (
            f'<path class="edge {kind}{" merge" if kind == "on" and data["merged"] else ""}" '
            f'd="M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}">'
            f"<title>{escape(title)}</title></path>"
        )
        return kind, line + (self._label(data, x1, y1, x2, y2) if data["merged"] else "")

    def _label(self, data: dict[str, Any], x1: float, y1: float, x2: float, y2: float) -> str:
        if max(self.rows.values()) >= LABELLED:
            return ""
        text = escape(_short(self.names(data["technique"])))
        return (
            f'<text class="label" x="{(x1 + x2) / 2:.1f}" y="{(y1 + y2) / 2 + 3:.1f}" font-size="11" '
            f'text-anchor="middle">{text}</text>'
        )

    def _node(self, node: str) -> str:
        data = self.graph.nodes[node]
        x, y, size = self._x(node), self._y(node), self.size
        classes = ["node"]
        if node in self.ramp:
            classes.append(f"r{self.ramp[node]}")
        if node not in self.alive:
            classes.append("gone")
        if any(edge["merged"] for _, _, edge in self.graph.in_edges(node, data=True)):
            classes.append("merged")
        if node == self.root or any(node == end for _, end in self.path):
            classes.append("on")
        return (
            f'<g class="{" ".join(classes)}"><title>{escape(self._title(node, data))}</title>'
            f'<rect x="{x:.1f}" y="{y - size.node / 2:.1f}" width="{size.width:.1f}" height="{size.node:.1f}" rx="4"/>'
            f'<text x="{x + size.width / 2:.1f}" y="{y + size.font * 0.35:.1f}" font-size="{size.font}" '
            f'text-anchor="middle">{escape(self._last(node))}</text></g>{self._end_label(node, data)}'
        )

    def _last(self, node: str) -> str:
        """Return the technique that leads to a node."""
        for _, _, data in self.graph.in_edges(node, data=True):
            if not data["merged"]:
                return _short(self.names(data["technique"]))
        return "dense"

    def _title(self, node: str, data: dict[str, Any]) -> str:
        lines = [self.names(node) if node != self.root else "the dense model"]
        if node in self.places:
            row = self.places[node]
            lines.append(f"place {row.place}: {summary.number(row.value)} {summary.ratio(row.times_dense)}".rstrip())
        elif data.get("fate") == "dropped":
            lines.append("dropped: proved never to lose less than another order")
        if data["orders"] > 1 and node != self.root:
            lines.append(f"{data['orders']} ways lead here, all with the same state")
        return "\n".join(lines)

    def _end_label(self, node: str, data: dict[str, Any]) -> str:
        """Return the text at the right of a complete order that no order continues."""
        if "fate" not in data or self.graph.out_degree(node):  # the title has the value of an order that continues
            return ""
        if node in self.places:
            row = self.places[node]
            text, gone = f"#{row.place}  {summary.number(row.value)}", ""
        else:
            text, gone = ("dropped" if data["fate"] == "dropped" else "not measured"), " gone"
        if data["orders"] > 1:
            text += f"  ({data['orders']} orders)"
        x, y = self._x(node) + self.size.width + 8, self._y(node) + self.size.font * 0.35
        return f'<text class="place{gone}" x="{x:.1f}" y="{y:.1f}" font-size="{self.size.font}">{escape(text)}</text>'


def _level(k: int) -> str:
    return "" if k == 0 else str(k) + {1: "st", 2: "nd", 3: "rd"}.get(k, "th")


def _framed(width: float, height: float, description: str, inside: str) -> str:
    return (
        f'<svg class="orderings" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="dag-title dag-desc" style="min-width:{min(width, 720):.0f}px;max-width:{width:.0f}px">'
        f'<title id="dag-title">The orderings, and what became of each</title>'
        f'<desc id="dag-desc">{escape(description)}</desc>{inside}</svg>'
    )


def _ramp(ranked: summary.Ranking) -> dict[str, int]:
    """Sort the measured orders into five classes by value, 0 the best. Values that are no numbers are in the last."""
    finite = [row.value for row in ranked.rows if math.isfinite(row.value)]
    if not finite:
        return {row.order: 4 for row in ranked.rows}
    best, worst = (max(finite), min(finite)) if ranked.lower is False else (min(finite), max(finite))
    if ranked.log:
        best, worst = math.log(best), math.log(worst)

    def part(value: float) -> float:
        if not math.isfinite(value) or best == worst:
            return 1.0 if not math.isfinite(value) else 0.0
        return ((math.log(value) if ranked.log else value) - best) / (worst - best)

    return {row.order: min(4, int(part(row.value) * 5)) for row in ranked.rows}


def _path(plan: PlanData, graph: DiGraph[str], root: str) -> set[tuple[str, str]]:
    """Return the edges of the best order."""
    path: set[tuple[str, str]] = set()
    node = root
    for technique in map(str, plan.order):
        following = [end for _, end, data in graph.out_edges(node, data=True) if data["technique"] == technique]
        if not following:
            break
        path.add((node, following[0]))
        node = following[0]
    return path


def _path_only(plan: PlanData, names: summary.Names) -> str:
    """Draw the best order alone, with the number of classes of equal prefixes at each level."""
    size = _node_size(1, names)
    steps = ["dense", *(_short(names(str(technique))) for technique in plan.order)]
    classes: list[int] = []
    if plan.orders["total"] <= MOST_ORDERS:
        levels = [data["level"] for _, data in plan.graph.nodes(data=True)]
        classes = [levels.count(k) for k in range(len(steps))]
    parts, y = [], TOP + size.row
    for k, text in enumerate(steps):
        x = LEFT + k * (size.width + 30)
        if k:
            parts.append(f'<path class="edge on" d="M{x - 30:.1f} {y:.1f}H{x:.1f}"/>')
        parts.append(
            f'<g class="node on"><rect x="{x:.1f}" y="{y - size.node / 2:.1f}" width="{size.width:.1f}" '
            f'height="{size.node:.1f}" rx="4"/><text x="{x + size.width / 2:.1f}" y="{y + 4:.1f}" '
            f'font-size="{size.font}" text-anchor="middle">{escape(text)}</text></g>'
            f'<text class="axis" x="{x:.1f}" y="16" font-size="12">{_level(k)}</text>'
        )
        if k and classes:
            parts.append(
                f'<text class="axis" x="{x + size.width / 2:.1f}" y="{y + 34:.1f}" font-size="12" '
                f'text-anchor="middle">of {classes[k]:,} classes</text>'
            )
    width = LEFT + len(steps) * (size.width + 30)
    description = f"The best order, {names(str(plan.order))}. {summary.counted(plan)}: too many to draw."
    return _framed(width, y + 48, description, "".join(parts))

"""The generated layers of one search: each state is computed once, and orders are ranked on them without a model."""

from __future__ import annotations

from compcomp.errors import InputError
from compcomp.language.loss import Loss
from compcomp.language.size import no_larger
from compcomp.language.steps import Selection
from compcomp.layers.batches import stack
from compcomp.layers.state import Format, LayerState
from compcomp.ordering.dag import Orderings
from compcomp.ordering.measure import Tree
from compcomp.ordering.measurement import Measurement, Ranking, rank
from compcomp.ordering.progress import Progress
from compcomp.ordering.screen import COLUMNS, ENTRIES, SLOW, Screen, Sketch, Values, seconds_on, small_shape
from compcomp.ordering.space import Prefix

SCREENED = 700
"""The most applications on generated layers that are spent on finding candidates, in whole levels of prefixes."""


class Generated:
    """Hold the states of generated layers by normal form.

    Args:
        orderings: The orderings of the search.
        loss: The loss that orders are compared by.
        progress: Reports progress.
        seed: The seed of the layers.
        needed: True if there is no model.

    Attributes:
        screen: Runs techniques on the layers. None if the techniques are too slow, or fit no small layer.
        losses: The losses of complete orders on each layer, by normal form.

    Raises:
        InputError: There is no model and the techniques cannot be tried on small layers.
    """

    def __init__(self, orderings: Orderings, loss: Loss, progress: Progress, seed: int, *, needed: bool) -> None:
        self.orderings, self.loss, self.progress, self.seed = orderings, loss, progress, seed
        self.losses: dict[Prefix, Values] = {}
        self._states: dict[Prefix, LayerState] = {}
        self._sketches: dict[Prefix, Sketch] = {}
        self._formats: dict[Prefix, Format] = {}
        self._compared: dict[tuple[Prefix, Prefix], bool] = {}
        self.screen: Screen | None = None
        shape = small_shape(orderings.techniques, ENTRIES)
        if shape is None:
            if needed:
                raise InputError(
                    f"techniques that fit no common layer of at most {COLUMNS} inputs",
                    "techniques with a common layer, or a model to measure on",
                    "techniques",
                )
            return
        wide = shape[1] > COLUMNS // 4
        seconds = 0.0 if wide else seconds_on(orderings.techniques, shape[1])
        if needed and seconds > 10 * SLOW:
            raise InputError(
                f"techniques that take long on layers of {shape[1]} inputs, the least that all fit",
                "smaller groups, or a model to measure on",
                "techniques",
            )
        if not wide and seconds <= SLOW:
            self.screen = Screen(orderings, loss, shape, seed)

    # ------------------------------------------------------------------------------------ states

    def state(self, form: Prefix) -> LayerState:
        """Return the generated layers after these techniques."""
        assert self.screen is not None
        if form not in self._states:
            if not form:
                self._states[form] = self.screen.start()
            else:
                before = self.state(form[:-1])
                with self.progress.timed("screen"):
                    self._states[form] = self.screen.apply(form[-1], before)
                total = min(self.orderings.full_tree, SCREENED)
                self.progress.report("screen", min(self.screen.applications, total), total, "generated layers")
        return self._states[form]

    def missing(self, forms: list[Prefix]) -> int:
        """Return how many of these states are not computed yet."""
        return sum(form not in self._states for form in forms)

    def sketch(self, form: Prefix) -> Sketch:
        """Return a projection of the state after these techniques. Equal states have equal projections."""
        assert self.screen is not None
        if form not in self._sketches:
            self._sketches[form] = self.screen.sketch(self.state(form))
        return self._sketches[form]

    def format(self, order: Prefix) -> Format:
        """Return the format in which the generated layers are stored after this order."""
        path = self.orderings.path(order)
        if path not in self._formats:
            self._formats[path] = self.state(path).format
        return self._formats[path]

    def note_losses(self, leaf: Prefix) -> None:
        """Measure a complete order on the generated layers."""
        assert self.screen is not None
        form = self.orderings.normal_form(leaf)[0]
        self.losses[form] = self.screen.losses(self.state(form))

    def forget_states(self) -> None:
        """Free the memory of all states."""
        self._states.clear()

    # ------------------------------------------------------------------------------------ comparisons

    def may_be_equal(self, one: Prefix, other: Prefix) -> bool:
        """Return True if two lists of techniques leave states that agree on every generated layer."""
        return self.screen is None or self.sketch(one).agrees(self.sketch(other))

    def no_larger(self, better: Prefix, worse: Prefix) -> bool:
        """Return True if one order of some techniques is known to take no more to store than another."""
        if (better, worse) not in self._compared:
            if self.screen is not None:
                found = no_larger(self.format(better), self.format(worse), self.screen.layers)
            else:  # one selection of a fixed number and one grid: mask and grid stay, whatever comes first
                steps = [step for i in better for step in self.orderings.techniques[i].steps() or (None,)]
                fixed = [isinstance(step, Selection) and step.ties != "all" for step in steps]
                found = None not in steps and sum(fixed) < 2 and len(steps) - sum(fixed) < 2
            self._compared[better, worse] = found
        return self._compared[better, worse]

    def stored_alike(self, one: Prefix, other: Prefix) -> bool:
        """Return True if the generated layers show that equal states after two orders are recorded alike.

        Fields and numbers of a format depend on the techniques alone, unless one declares otherwise (`format_varies`).
        A rank as large as the generated layers, or a cut that removes nothing from them, says nothing about larger
        layers.
        """
        if self.screen is None or any(t.promises().format_varies for t in self.orderings.techniques):
            return False
        first, second = self.format(one), self.format(other)
        if any(_saturated(form, self.screen) for form in (first, second)):
            return False
        return no_larger(first, second, self.screen.layers, 0) and no_larger(second, first, self.screen.layers, 0)

    # ------------------------------------------------------------------------------------ ranking

    def ranking(self, notes: list[str]) -> Ranking:
        """Rank the staying orders by their mean loss on generated layers that are large enough for ranks to matter."""
        shape = small_shape(self.orderings.techniques, 8 * ENTRIES)
        assert shape is not None
        screen = Screen(self.orderings, self.loss, shape, self.seed)
        name = self.loss.name
        notes.append(f"{name} is a mean over {screen.layers} generated layers, relative to dropping every weight")
        orders = list(self.orderings.staying())
        tree = Tree.of(self.orderings, orders)
        children, ends, means = tree.children(), set(tree.ends), dict[int, float]()
        stack, runs = [(0, screen.start())], len(tree.parents) - 1
        self.progress.report("measure", 0, runs, "generated layers")
        while stack:
            node, state = stack.pop()
            if node in ends:
                means[node] = float(screen.losses(state).mean())
            for child in reversed(children[node]):
                stack.append((child, screen.apply(tree.steps[child], state)))
                self.progress.report("measure", screen.applications, runs, "generated layers")
        rows = {
            order: Measurement(self.orderings.order(order), {}, {name: means[end]}, None)
            for order, end in zip(orders, tree.ends, strict=True)
        }
        most, among = max(map(len, orders)), ""
        eligible = [order for order in orders if len(order) == most]
        if len(eligible) < len(orders):  # leaving out techniques loses less
            among = "that leave out no more techniques than they must"
            notes.append("sizes are not known without a model: the order is one of those of most techniques")
        orders.sort(key=lambda order: (len(order) != most, rank(rows[order], name, None, True)))
        chosen = tuple(rows[order] for order in orders)
        return Ranking(tuple(orders), chosen, len(eligible), screen.applications, among)


def _saturated(form: Format, screen: Screen) -> bool:
    """Return True if the generated layers are too small for a rank or a cut of this format to show on them."""
    rank = max(form.rank or 0, 0 if form.factors is None else form.factors.rank)
    kept = () if form.cut is None else (form.cut.rows, form.cut.columns)
    return rank >= min(screen.shape) or (form.cut is not None and all(stack(k, screen.layers).all() for k in kept))

"""Find the case tree that refutes an SMT-LIB script. z3 only guides the search, and the checker decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations_with_replacement, islice
from math import inf
from typing import Any

import z3

from compcomp.checking.farkas import (
    ZERO,
    Invalid,
    Known,
    Poly,
    Script,
    add,
    check_tree,
    constant,
    multiply,
)

DEEPEST = 60
MOST_CASES = 4000
MOST_PRODUCTS = 3000
Tree = Any
Monomial = tuple[str, ...]


class GaveUp(Exception):
    """The search ran out of time, of cases, or of ideas."""


def refute(script: Script, until: float, seconds: float = inf) -> Tree:
    """Return a case tree that the checker accepts for this script.

    Args:
        script: the script to refute.
        until: when to stop, on the clock of ``time.monotonic``.
        seconds: CPU time of this thread. A busy machine then finds the same trees as a quiet one.

    Raises:
        GaveUp: none was found.
    """
    search = _Search(script, until, time.thread_time() + seconds)
    try:
        tree = search.case(Known(script), search.relevant(), 0)
        tree = search.pruned(tree, Known(script), script.assertions)
        check_tree(tree, Known(script), script.assertions)
    except (Invalid, z3.Z3Exception, RecursionError) as error:
        raise GaveUp(f"{type(error).__name__}: {error}"[:200]) from None
    return tree


class _Search:
    def __init__(self, script: Script, until: float, until_cpu: float) -> None:
        self.script, self.until, self.until_cpu, self.cases = script, until, until_cpu, 0
        self.context = z3.Context()
        self._terms: dict[int, Any] = {}
        self._monomials: dict[Monomial, Any] = {}

    # ------------------------------------------------------------------ z3's view of the script

    def z3_term(self, x: int) -> Any:
        """Return the term as a z3 term."""
        if x not in self._terms:
            op, *kids = self.script.nodes[x]
            if op == "poly":
                term = self._z3_poly(kids[0])
            elif op.endswith(" 0"):
                p = self._z3_poly(kids[0])
                term = {"<= 0": p <= 0, "< 0": p < 0, "= 0": p == 0}[op]
            elif op == "flag":
                term = z3.Bool(kids[0], self.context)
            elif op in ("true", "false"):
                term = z3.BoolVal(op == "true", self.context)
            else:
                t = [self.z3_term(k) for k in kids]
                term = {
                    "+": lambda: z3.Sum(t),
                    "*": lambda: z3.Product(t),
                    "<=": lambda: t[0] <= t[1],
                    "<": lambda: t[0] < t[1],
                    "=": lambda: t[0] == t[1],
                    "not": lambda: z3.Not(t[0]),
                    "and": lambda: z3.And(t),
                    "or": lambda: z3.Or(t),
                    "ite": lambda: z3.If(*t),
                }[op]()
            self._terms[x] = term
        return self._terms[x]

    def _variable(self, name: str) -> Any:
        if self.script.sorts[name] == "Int":
            return z3.ToReal(z3.Int(name, self.context))
        return z3.Real(name, self.context)

    def _z3_poly(self, p: Poly) -> Any:
        parts = []
        for monomial, c in p:
            part = z3.RealVal(c, self.context)
            for name in monomial:
                part = part * self._variable(name)
            parts.append(part)
        return z3.Sum(parts) if parts else z3.RealVal(0, self.context)

    def relevant(self) -> list[int]:
        """Return pieces of the assertions that are already contradictory: few if z3 finds an unsatisfiable core."""
        pieces = list(dict.fromkeys(p for x in self.script.assertions for p in self._pieces(x)))
        solver = z3.SimpleSolver(ctx=self.context)
        solver.set("timeout", 1000)
        solver.set("core.minimize", True)
        marks = [z3.Bool(f"piece!{k}", self.context) for k in range(len(pieces))]
        for mark, piece in zip(marks, pieces, strict=True):
            solver.add(z3.Implies(mark, self.z3_term(piece)))
        if solver.check(*marks) != z3.unsat:
            return pieces
        core = {str(c) for c in solver.unsat_core()}
        return [piece for mark, piece in zip(marks, pieces, strict=True) if str(mark) in core]

    def _pieces(self, x: int) -> list[int]:
        """Return the conjuncts of a formula, with conjunctions inside a disjunction distributed over it."""
        op, *kids = self.script.nodes[x]
        if op == "and":
            return [p for k in kids for p in self._pieces(k)]
        if op == "or":
            for place, kid in enumerate(kids):
                if self.script.nodes[kid][0] == "and":
                    rest = kids[:place] + kids[place + 1 :]
                    return [
                        p
                        for part in self.script.nodes[kid][1:]
                        for p in self._pieces(self.script.make("or", *rest, part))
                    ]
        return [x]

    # ------------------------------------------------------------------ the tree

    def case(self, known: Known, assertions: list[int], depth: int) -> Tree:
        self.cases += 1
        if time.monotonic() > self.until or time.thread_time() > self.until_cpu:
            raise GaveUp("out of time")
        if depth > DEEPEST or self.cases > MOST_CASES:
            raise GaveUp("too many cases")
        assertions = known.saturate(assertions)
        if known.closed:
            return "contradiction"
        facts = facts_of(known)
        model = self._feasible([([f], f[0]) for f in facts])
        if not isinstance(model, dict):
            return {"sum": model}
        if any(len(m) > 1 for p, _ in facts for m, _ in p):
            rows = [([f], f[0]) for f in facts] + list(_products(facts))
            degree = max(len(m) for p, _ in facts for m, _ in p)
            for further in range(3, max(degree, 2) + 2):
                nonlinear = self._feasible(rows)
                if not isinstance(nonlinear, dict):
                    return {"sum": nonlinear}
                if further <= degree:
                    rows += islice(_powers(self._needed(facts), further), MOST_PRODUCTS)
        split = self._split(known, assertions, model)
        if split is None:
            raise GaveUp("nothing left to split on")
        return self._branch(split, known, assertions, depth)

    def _branch(self, split: tuple[str, Any], known: Known, assertions: list[int], depth: int) -> Tree:
        kind, what = split
        tree: dict[str, Tree] = {"flag": what} if kind == "flag" else {"case": form_of(what)}
        for name, inner in known.branches(tree):
            branch = self.case(inner, assertions, depth + 1)
            if branch != "contradiction" and self._holds(branch, known, assertions):
                return branch  # the split was not needed
            tree[name] = branch
        return tree

    def _holds(self, tree: Tree, known: Known, assertions: list[int]) -> bool:
        try:
            check_tree(tree, Known(self.script, known), assertions)
        except Invalid:
            return False
        return True

    def pruned(self, tree: Tree, known: Known, assertions: list[int]) -> Tree:
        """Return the same tree for the whole script. Cases that are already closed there lose their subtrees."""
        assertions = known.saturate(assertions)
        if known.closed:
            return "contradiction"
        if not isinstance(tree, dict) or "sum" in tree:
            return tree
        result = {k: v for k, v in tree.items() if k in ("flag", "case")}
        for name, inner in known.branches(tree):
            result[name] = self.pruned(tree[name], inner, assertions)
        return result

    def _feasible(self, rows: list[tuple[list[Any], Poly]]) -> Any:
        """Return values of the monomials that satisfy all rows (factors, their product), or the sum that forbids it."""
        solver = z3.SimpleSolver(ctx=self.context)
        solver.set("timeout", 5000)
        marks = {}
        for k, (factors, product) in enumerate(rows):
            value = self._linear(product)
            marks[f"row!{k}"] = k
            solver.assert_and_track(value > 0 if all(f[1] for f in factors) else value >= 0, f"row!{k}")
        outcome = solver.check()
        if outcome == z3.sat:
            model = solver.model()
            return {m: _fraction(model.eval(v, model_completion=True)) for m, v in self._monomials.items()}
        if outcome != z3.unsat:
            raise GaveUp("no answer about a sum of facts")
        core = [rows[marks[str(c)]] for c in solver.unsat_core()]
        return self._multipliers(core)

    def _needed(self, facts: list[tuple[Poly, bool]]) -> list[tuple[Poly, bool]]:
        """Return the facts over the variables of the nonlinear ones, without linear ones that follow from others."""
        names = {x for p, _ in facts for m, _ in p if len(m) > 1 for x in m}
        inside = [all(x in names for m, _ in p for x in m) for p, _ in facts]
        linear = [k for k, (p, _) in enumerate(facts) if all(len(m) < 2 for m, _ in p)]
        solver = z3.SimpleSolver(ctx=self.context)
        solver.set("timeout", 1000)
        for k in linear:
            p, strict = facts[k]
            value = self._linear(p)
            solver.add(z3.Implies(self._mark(k), value > 0 if strict else value >= 0))
            solver.add(z3.Implies(self._mark(-1 - k), value <= 0 if strict else value < 0))
        left = list(linear)
        for k in sorted(linear, key=inside.__getitem__):  # what speaks of other variables goes first
            others = [self._mark(i) for i in left if i != k]
            if solver.check(*others, self._mark(-1 - k)) == z3.unsat:
                left.remove(k)
        return [f for k, f in enumerate(facts) if inside[k] and (k in left or k not in linear)]

    def _mark(self, k: int) -> Any:
        return z3.Bool(f"fact!{k}", self.context)

    def _multipliers(self, core: list[tuple[list[Any], Poly]]) -> list[Any]:
        """Return the multipliers of contradictory rows: their sum is -1, or 0 with a strict row."""
        solver = z3.SimpleSolver(ctx=self.context)
        solver.set("timeout", 5000)
        multipliers = [z3.Real(f"m!{k}", self.context) for k in range(len(core))]
        monomials = sorted({m for _, product in core for m, _ in product} | {()})
        sums = {}
        for monomial in monomials:
            sums[monomial] = z3.Sum(
                [
                    z3.RealVal(dict(product)[monomial], self.context) * x
                    for x, (_, product) in zip(multipliers, core, strict=True)
                    if monomial in dict(product)
                ]
                or [z3.RealVal(0, self.context)]
            )
        solver.add(*(x >= 0 for x in multipliers))
        solver.add(*(value == 0 for monomial, value in sums.items() if monomial != ()))
        strict = [x for x, (factors, _) in zip(multipliers, core, strict=True) if all(f[1] for f in factors)]
        solver.push()
        solver.add(sums[()] == -1)
        if solver.check() != z3.sat:
            solver.pop()
            solver.add(sums[()] == 0, z3.Sum([z3.RealVal(0, self.context), *strict]) == 1)
            if solver.check() != z3.sat:
                raise GaveUp("no multipliers")
        model = solver.model()
        found = [
            (_fraction(model.eval(x, model_completion=True)), row) for x, row in zip(multipliers, core, strict=True)
        ]
        return [[str(x), [_factor(f) for f in factors]] for x, (factors, _) in found if x]

    def _linear(self, p: Poly) -> Any:
        """Return a polynomial with one real variable for each monomial."""
        parts = []
        for monomial, c in p:
            if monomial == ():
                parts.append(z3.RealVal(c, self.context))
                continue
            if monomial not in self._monomials:
                self._monomials[monomial] = z3.Real(f"mono!{len(self._monomials)}", self.context)
            parts.append(z3.RealVal(c, self.context) * self._monomials[monomial])
        return z3.Sum(parts) if parts else z3.RealVal(0, self.context)

    # ------------------------------------------------------------------ what to split on

    def _split(self, known: Known, assertions: list[int], model: dict[Monomial, Fraction]) -> tuple[str, Any] | None:
        """Return a literal of the shortest assertion that the model violates.

        If there is none, return a cut between the integers around the model's value of a whole combination, then any
        undecided literal, then an unknown sign. Return None if nothing is left.
        """
        values = {m[0]: v for m, v in model.items() if len(m) == 1}
        memo: dict[int, Any] = {}
        broken = [x for x in assertions if self._value(x, values, memo) is not True]
        for x in sorted(broken, key=self._size):
            if (found := self._literal(x, values, memo)) is not None:
                return self._oriented(found, values, known)
        if (cut := self._cut(known, values)) is not None:
            return "case", cut
        for x in sorted(assertions, key=self._size):
            if (found := self._literal(x, values, memo)) is not None:
                return self._oriented(found, values, known)
        return self._sign(known)

    def _cut(self, known: Known, values: dict[str, Fraction]) -> Poly | None:
        """Return q - k for a whole combination q between k and k + 1, if possible one that leaves one side empty."""
        names = sorted(name for name in values if self.script.sorts[name] == "Int")
        whole = [_minus(x, 0) for x in names]
        whole += [add(_minus(x, 0), _minus(y, 0), c) for x in names for y in names if x != y for c in (-1, 1, -2)]
        solver = z3.SimpleSolver(ctx=self.context)
        solver.set("timeout", 5000)
        for p, strict in facts_of(known):
            solver.add(self._linear(p) > 0 if strict else self._linear(p) >= 0)
        best: tuple[int, Poly] | None = None
        for q in whole:
            value = _evaluate(q, values)
            if value.denominator == 1:
                continue
            cut = add(q, constant(-value.__floor__()))
            empty = 0
            for side in (add(ZERO, cut, -1), add(cut, constant(-1))):
                solver.push()
                solver.add(self._linear(side) >= 0)
                empty += solver.check() == z3.unsat
                solver.pop()
            if best is None or empty > best[0]:
                best = empty, cut
            if empty == 2:
                break
        return best and best[1]

    def _sign(self, known: Known) -> tuple[str, Any] | None:
        """Return a variable that is multiplied, or a sum or difference of two, whose sign is not known."""
        names = sorted({x for q in known.bounds for m, _ in q if len(m) > 1 for x in m})
        signs = [_minus(x, 0) for x in names]
        signs += [add(_minus(x, 0), _minus(y, 0), s) for k, x in enumerate(names) for y in names[:k] for s in (-1, 1)]
        for p in signs:
            minus = add(ZERO, p, -1)
            if not known.implies(p, False) and not known.implies(minus, False):
                return "case", p
        return None

    def _size(self, x: int) -> int:
        seen, todo = set(), [x]
        while todo:
            y = todo.pop()
            if y not in seen:
                seen.add(y)
                todo += [k for k in self.script.nodes[y][1:] if isinstance(k, int)]
        return len(seen)

    def _literal(self, x: int, values: dict[str, Fraction], memo: dict[int, Any]) -> int | None:
        """Return a comparison or flag inside x that is not decided, preferably where x is false under the values."""
        op, *kids = self.script.nodes[x]
        if op == "flag":
            return x
        if op in ("poly", "true", "false"):
            return None
        if op.endswith(" 0"):
            return x
        if op == "ite":
            chosen = self._value(kids[0], values, memo)
            order = [kids[0], kids[1] if chosen is True else kids[2], kids[2] if chosen is True else kids[1]]
        else:
            order = sorted(kids, key=lambda k: (self._value(k, values, memo) is True, self._size(k)))
        return next((found for k in order if (found := self._literal(k, values, memo)) is not None), None)

    def _oriented(self, x: int, values: dict[str, Fraction], known: Known) -> tuple[str, Any]:
        op, *kids = self.script.nodes[x]
        if op == "flag":
            return "flag", kids[0]
        p: Poly = kids[0]
        minus = add(ZERO, p, -1)
        if op == "< 0":
            return "case", minus
        if op == "= 0" and (known.implies(minus, False) or (_evaluate(p, values) < 0 and not known.implies(p, False))):
            return "case", minus  # p <= 0 is known, or p < 0 comes first
        return "case", p

    def _value(self, x: int, values: dict[str, Fraction], memo: dict[int, Any]) -> Any:
        """Return the term's value. Variables without a value are 0, and flags None."""
        if x in memo:
            return memo[x]
        op, *kids = self.script.nodes[x]
        if op == "poly":
            memo[x] = _evaluate(kids[0], values)
        elif op.endswith(" 0"):
            memo[x] = _apply(op[:-2], [_evaluate(kids[0], values), 0])
        elif op in ("flag", "true", "false"):
            memo[x] = None if op == "flag" else op == "true"
        elif op == "ite":
            memo[x] = self._value(kids[1] if self._value(kids[0], values, memo) is True else kids[2], values, memo)
        else:
            v = [self._value(k, values, memo) for k in kids]
            memo[x] = _apply(op, v)
        return memo[x]


def _apply(op: str, v: list[Any]) -> Any:
    if op == "+":
        return sum(v)
    if op == "*":
        product = Fraction(1)
        for x in v:
            product *= x
        return product
    if op in ("<=", "<", "="):
        return {"<=": v[0] <= v[1], "<": v[0] < v[1], "=": v[0] == v[1]}[op]
    if op == "and":
        return False if False in v else None if None in v else True
    if op == "or":
        return True if True in v else None if None in v else False
    return None if v[0] is None else not v[0]


def _evaluate(p: Poly, values: dict[str, Fraction]) -> Fraction:
    total = Fraction(0)
    for monomial, c in p:
        for name in monomial:
            c *= values.get(name, Fraction(0))
        total += c
    return total


def _minus(name: str, k: int) -> Poly:
    return add((((name,), Fraction(1)),), constant(-k))


def facts_of(known: Known) -> list[tuple[Poly, bool]]:
    """Return the known bounds, as (p, strict) for p >= 0 and p > 0."""
    found = []
    for q, (low, high) in known.bounds.items():
        if low is not None:
            found.append((add(q, constant(-low[0])), low[1]))
        if high is not None:
            found.append((add(constant(high[0]), q, -1), high[1]))
    return found


def _products(facts: list[tuple[Poly, bool]]) -> Iterator[tuple[list[Any], Poly]]:
    """Yield products of two linear facts, squares of bounded polynomials, and other facts times linear ones."""
    linear = [f for f in facts if all(len(m) < 2 for m, _ in f[0])]
    for f, g in combinations_with_replacement(linear, 2):
        yield [f, g], multiply(f[0], g[0])
    positive = [f for f in linear if f[1]]
    for f in facts:
        if f not in linear:
            for g in positive:
                yield [f, g], multiply(f[0], g[0])
                yield [f, g, g], multiply(multiply(f[0], g[0]), g[0])
    for q in dict.fromkeys(add(p, constant(-dict(p).get((), Fraction(0)))) for p, _ in linear):
        yield [(q, False, "square")], multiply(q, q)


def _powers(facts: list[tuple[Poly, bool]], degree: int) -> Iterator[tuple[list[Any], Poly]]:
    """Yield products of ``degree`` linear facts."""
    linear = [f for f in facts if all(len(m) < 2 for m, _ in f[0])]
    for chosen in combinations_with_replacement(linear, degree):
        product = chosen[0][0]
        for p, _ in chosen[1:]:
            product = multiply(product, p)
        yield list(chosen), product


def _factor(fact: tuple[Any, ...]) -> list[Any]:
    return ["square" if len(fact) > 2 else ">" if fact[1] else ">=", form_of(fact[0])]


def form_of(p: Poly) -> list[list[str]]:
    return [[str(c), *m] for m, c in p]


def _fraction(value: Any) -> Fraction:
    return Fraction(value.as_fraction())

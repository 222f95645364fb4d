"""Check a certificate for an SMT-LIB script without any solver. Only Python's standard library is used.

A script asserts formulas over real, integer and Boolean variables. Its certificate is a *model* (values that make every
assertion true) or a *refutation*, a tree of cases:

- ``case`` splits on a polynomial p: p <= 0, or p > 0. ``flag`` splits on a Boolean variable. One of the two holds.
- In a case the assertions are simplified by the bounds known of each polynomial. The bounds are whole if its
  coefficients and variables are whole. Comparisons and flags that are asserted become known in turn. If an assertion
  becomes false, or a lower bound exceeds the upper one, the case is closed: ``"contradiction"``.
- ``sum`` closes a case by a sum of products: a positive rational times known ``p >= 0``, ``p > 0`` and squares. The sum
  must be the polynomial -1, or 0 with a product of strict factors. But a sum of numbers >= 0 is not -1, and one with a
  positive part is not 0. If each product has one linear factor these are Farkas multipliers.

In JSON a polynomial is a list of [coefficient, variable, variable, ...], and a number is a text such as "-3/2".
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from fractions import Fraction
from math import ceil, floor, gcd, lcm
from typing import Any

Poly = tuple[tuple[tuple[str, ...], Fraction], ...]  # (monomial, coefficient), sorted, no coefficient 0
ZERO: Poly = ()


class Invalid(Exception):
    """Raised if a script or its certificate is not accepted; the text says why."""


def add(p: Poly, q: Poly, times: Fraction | int = 1) -> Poly:
    """Return p + times q."""
    terms = dict(p)
    for m, c in q:
        terms[m] = terms.get(m, Fraction(0)) + times * c
    return tuple(sorted((m, c) for m, c in terms.items() if c))


def multiply(p: Poly, q: Poly) -> Poly:
    """Return p q."""
    total = ZERO
    for m, c in p:
        total = add(total, tuple(sorted((tuple(sorted(m + n)), c * d) for n, d in q)))
    return total


def constant(value: Fraction | int) -> Poly:
    """Return a number as a polynomial."""
    return (((), Fraction(value)),) if value else ZERO


def is_constant(p: Poly) -> bool:
    """Return True if the polynomial is a number."""
    return all(m == () for m, _ in p)


def number(text: Any) -> Fraction:
    """Return the exact number that a text stands for. Raise Invalid if it is none."""
    if not isinstance(text, str) or not re.fullmatch(r"-?[0-9]{1,400}(/[1-9][0-9]{0,400})?", text):
        raise Invalid(f"{str(text)[:40]} is no rational number")
    return Fraction(text)


def read(text: str) -> list[Any]:
    """Return the commands of a script as nested lists of symbols."""
    stack, at = [list[Any]()], 0
    pattern = re.compile(r'[ \t\r\n]+|;[^\n]*|([()])|\|([^|\\]*)\||("[^"]*"|[A-Za-z0-9~!@$%^&*_+=<>.?/:-]+)')
    while at < len(text):
        token = pattern.match(text, at)
        if token is None or (token[1] == ")" and len(stack) < 2):
            raise Invalid(f"text that is not understood: {text[at : at + 40]!r}")
        at = token.end()
        if token[1] == "(":
            stack.append([])
        elif token[1] == ")":
            stack[-2].append(stack.pop())
        elif token[2] is not None or token[3] is not None:
            stack[-1].append(token[3] if token[2] is None else token[2])
    if len(stack) != 1:
        raise Invalid("a parenthesis is not closed")
    return stack[0]


class Script:
    """Hold the assertions as a graph of terms. Equal terms have equal numbers. ``model``: values put for the variables.

    Terms: ("poly", p); ("+" or "*", terms...), ("ite", c, a, b) of numbers; ("flag", name), ("true",), ("false",),
    ("not", x), ("and" or "or", terms...); ("<= 0", p) and the like; ("<=", a, b) and the like where a or b has an ite.
    """

    def __init__(self, text: str, model: dict[str, Any] | None = None) -> None:
        self.nodes, self.sorts, self.assertions = list[tuple[Any, ...]](), dict[str, str](), list[int]()
        self._numbers, self._model = dict[tuple[Any, ...], int](), model
        self.true, self.false, self.zero = self._node("true"), self._node("false"), self._node("poly", ZERO)
        for command in (commands := read(text)):
            match command:
                case ["set-info" | "set-logic", *_] | ["check-sat"] if len(command) > 1 or command is commands[-1]:
                    pass
                case ["declare-fun", str(x), [], "Int" | "Real" | "Bool" as s] if x not in self.sorts and x[:1] > "9":
                    self.sorts[x] = s
                case ["assert", formula]:
                    self.assertions += self._all([self._term(formula, {"true": self.true, "false": self.false})], True)
                case _:
                    raise Invalid(f"a command that is not understood: {str(command)[:60]}")

    def _node(self, *node: Any) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]

    def _constant(self, value: Fraction | int) -> int:
        return self._node("poly", constant(value))

    def is_boolean(self, x: int) -> bool:
        """Return True if the term is a truth value, False if it is a number."""
        return self.nodes[x][0] not in ("poly", "+", "*", "ite")

    def _all(self, terms: list[int], boolean: bool) -> list[int]:
        if any(self.is_boolean(x) != boolean for x in terms):
            raise Invalid("a number stands where a truth value must, or the other way round")
        return terms

    def _term(self, form: Any, bound: dict[str, int]) -> int:
        while isinstance(form, list) and len(form) == 3 and form[0] == "let":
            if len({*(names := [name for name, _ in form[1]]), "true", "false"}) < len(names) + 2 or min(names) < ":":
                raise Invalid(f"a let of names that are no symbols, or not its own: {str(names)[:60]}")
            bound, form = {**bound, **{name: self._term(value, bound) for name, value in form[1]}}, form[2]
        if isinstance(form, list) and len(form) > 1:
            return self._apply(form[0], [self._term(argument, bound) for argument in form[1:]])
        if form in bound:
            return bound[form]
        if form in self.sorts and self._model is not None:
            value = self._model[form]
            return self._constant(number(value)) if self.sorts[form] != "Bool" else (self.false, self.true)[value]
        if form in self.sorts:
            return self._node(*("flag", form) if self.sorts[form] == "Bool" else ("poly", (((form,), Fraction(1)),)))
        if not isinstance(form, str) or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", form):
            raise Invalid(f"a term that is not understood: {str(form)[:60]}")
        return self._constant(Fraction(form))

    def _apply(self, op: Any, kids: list[int]) -> int:
        on_flags = op in ("not", "and", "or", "=>") or isinstance(op, list)
        on_flags = on_flags or (op in ("=", "distinct", "ite") and self.is_boolean(kids[-1]))
        self._all(kids[1:] if op == "ite" else kids, on_flags)
        match op, kids:
            case (("and" | "or" | "+" | "*"), _):
                return self.make(op, *kids)
            case "not", [x]:
                return self._not(x)
            case "to_real", [x]:
                return x
            case (("<=" | "<" | ">=" | ">"), [a, b]):
                return self.make(op, a, b) if op[0] == "<" else self.make(op.replace(">", "<"), b, a)
            case (("=" | "distinct"), [a, b]):
                same = self.make("=", a, b) if not on_flags else self._choice(a, b, self._not(b))
                return same if op == "=" else self._not(same)
            case "=>", [*premises, x] if premises:
                return self.make("or", *map(self._not, premises), x)
            case "ite", [c, a, b]:
                self._all([c], boolean=True)
                return self._choice(c, a, b) if on_flags else self.make("ite", c, a, b)
            case "-", [x]:
                return self.make("*", self._constant(-1), x)
            case "-", [x, *rest]:
                return self.make("+", x, *(self.make("*", self._constant(-1), y) for y in rest))
            case "/", [x, y] if self.nodes[y][0] == "poly" and is_constant(self.nodes[y][1]) and y != self.zero:
                return self.make("*", x, self._constant(1 / self.nodes[y][1][0][1]))
            case ["_", "at-most" | "pble" | "pbeq" as kind, k, *weights], _:  # z3's counts of true flags
                counted = zip(weights or ["1"] * len(kids), kids, strict=True)
                total = self.make("+", *(self.make("ite", x, self._constant(number(w)), self.zero) for w, x in counted))
                return self.make("=" if kind == "pbeq" else "<=", total, self._constant(number(k)))
        raise Invalid(f"{str(op)[:40]} with {len(kids)} arguments is not understood")

    def _not(self, x: int) -> int:
        return self.make("not", x)

    def _choice(self, c: int, a: int, b: int) -> int:
        return self.make("and", self.make("or", self._not(c), a), self.make("or", c, b))

    def make(self, op: str, *kids: int) -> int:
        """Return a term, folded if its value does not depend on variables."""
        nodes = [self.nodes[k] for k in kids]
        if op in ("+", "*"):
            value, rest = (ZERO if op == "+" else constant(1)), [k for k in kids if self.nodes[k][0] != "poly"]
            for node in nodes:
                if node[0] == "poly":
                    value = (add if op == "+" else multiply)(value, node[1])
            known = self._node("poly", value)
            return known if not rest or (op == "*" and value == ZERO) else self._node(op, known, *rest)
        if op in ("<=", "<", "=") and (kids[0] == kids[1] or nodes[0][0] == nodes[1][0] == "poly"):
            p = ZERO if kids[0] == kids[1] else add(nodes[0][1], nodes[1][1], -1)
            if not is_constant(p):
                return self._node(f"{op} 0", p)
            return self.true if (op != "<" if p == ZERO else op != "=" and p[0][1] < 0) else self.false
        if op in ("and", "or"):
            absorbing, neutral = (self.false, self.true) if op == "and" else (self.true, self.false)
            flat = dict.fromkeys(y for x in kids for y in (self.nodes[x][1:] if self.nodes[x][0] == op else (x,)))
            parts = [x for x in flat if x != neutral]
            if absorbing in parts or len(parts) < 2:
                return absorbing if absorbing in parts else (parts or [neutral])[0]
            return self._node(op, *parts)
        if op == "ite" and (kids[1] == kids[2] or kids[0] in (self.true, self.false)):
            return kids[2] if kids[0] == self.false else kids[1]
        if op == "not":
            match nodes[0]:
                case ("true" | "false" as value,):
                    return self.false if value == "true" else self.true
                case ("<= 0" | "< 0" as relation, p):
                    return self._node("< 0" if relation == "<= 0" else "<= 0", add(ZERO, p, -1))
                case ("<=" | "<" as relation, a, b):
                    return self._node("<" if relation == "<=" else "<=", b, a)
                case ("and" | "or" as junction, *parts):
                    return self.make("or" if junction == "and" else "and", *map(self._not, parts))
                case ("not", x):
                    return int(x)
        return self._node(op, *kids)


class Known:
    """Hold the facts of one case: flags, and bounds (value, strict) of polynomials with coprime whole coefficients."""

    def __init__(self, script: Script, known: Known | None = None) -> None:
        self.script = script
        self.closed: bool = known is not None and known.closed
        self.flags: dict[str, bool] = dict(known.flags) if known else {}
        self.bounds: dict[Poly, list[Any]] = {q: list(pair) for q, pair in known.bounds.items()} if known else {}

    def _bound(self, p: Poly, strict: bool) -> tuple[list[Any], int, tuple[Fraction, bool]]:
        """Return p >= 0 (p > 0) as a bound of q: known bounds of q, 0 (lower) or 1 (upper), the bound."""
        c, rest = dict(p).get((), Fraction(0)), [(m, x) for m, x in p if m != ()]
        s = Fraction(gcd(*(x.numerator for _, x in rest)), lcm(*(x.denominator for _, x in rest)))
        s = -s if rest[0][1] < 0 else s
        q, value, side = tuple((m, x / s) for m, x in rest), -c / s, 0 if s > 0 else 1
        if all(self.script.sorts[x] == "Int" for m, _ in q for x in m):
            lower, upper = floor(value) + 1 if strict else ceil(value), ceil(value) - 1 if strict else floor(value)
            value, strict = Fraction(upper if side else lower), False
        return self.bounds.setdefault(q, [None, None]), side, (value, strict)

    def implies(self, p: Poly, strict: bool) -> bool:
        """Return True if p >= 0 (p > 0) follows from a bound on the same polynomial."""
        if is_constant(p):
            return p[0][1] > 0 if p else not strict
        known, side, (value, strict) = self._bound(p, strict)
        has, was_strict = known[side] or (None, False)
        beyond = has is not None and (has < value if side else has > value)
        return bool(beyond or (has == value and (was_strict or not strict)))

    def assume(self, p: Poly, strict: bool) -> None:
        """Add p >= 0, or p > 0 if strict, to the known facts."""
        if is_constant(p):
            self.closed = self.closed or not self.implies(p, strict)
        elif not self.implies(p, strict):
            known, side, bound = self._bound(p, strict)
            known[side] = bound
            self.closed |= all(known) and (known[0][0], known[0][1] or known[1][1]) > (known[1][0], False)

    def set(self, name: str, value: bool) -> None:
        """Add the value of a flag to the known facts."""
        self.closed = self.closed or self.flags.setdefault(name, value) != value

    def simplify(self, x: int, done: dict[int, int]) -> int:
        """Return a term simplified by the known facts. ``done``: the terms simplified so far."""
        if x not in done:
            script, (op, *kids) = self.script, self.script.nodes[x]
            if op == "flag" and kids[0] in self.flags:
                done[x] = script.true if self.flags[kids[0]] else script.false
            elif op in ("flag", "true", "false", "poly"):
                done[x] = x
            elif op == "ite" and (c := self.simplify(kids[0], done)) in (script.true, script.false):
                done[x] = self.simplify(kids[1] if c == script.true else kids[2], done)
            else:
                y = x if op.endswith(" 0") else script.make(op, *(self.simplify(k, done) for k in kids))
                done[x] = self._decided(y) if script.nodes[y][0].endswith(" 0") else y
        return done[x]

    def _decided(self, x: int) -> int:
        op, p = self.script.nodes[x]
        minus = add(ZERO, p, -1)
        if self.implies(minus, op == "< 0") and (op != "= 0" or self.implies(p, False)):
            return self.script.true
        return self.script.false if self.implies(p, op != "< 0") or (op == "= 0" and self.implies(minus, True)) else x

    def saturate(self, assertions: list[int]) -> list[int]:
        """Simplify, and add asserted comparisons and flags to the known facts, until nothing changes."""
        nodes, count = self.script.nodes, -1
        while len(assertions) != count and not self.closed:
            done: dict[int, int] = {}
            simple = [self.simplify(x, done) for x in assertions]
            parts = dict.fromkeys(y for x in simple for y in (nodes[x][1:] if nodes[x][0] == "and" else (x,)))
            count = len(parts) - (self.script.true in parts)
            assertions = [x for x in parts if x != self.script.true and not self._learn(x)]
        return assertions

    def _learn(self, x: int) -> bool:
        match self.script.nodes[x]:
            case ("false",):
                self.closed = True
            case ("<= 0" | "< 0" | "= 0" as op, p):
                self.assume(add(ZERO, p, -1), op == "< 0")
                self.assume(p if op == "= 0" else ZERO, False)
            case ("flag", name):
                self.set(name, True)
            case ("not", y) if self.script.nodes[y][0] == "flag":
                self.set(self.script.nodes[y][1], False)
            case _:
                return False
        return True

    def polynomial(self, form: Any) -> Poly:
        """Return a polynomial of the certificate."""
        total = ZERO
        for coefficient, *variables in form:
            if any(self.script.sorts.get(x, "Bool") == "Bool" for x in variables):
                raise Invalid(f"a polynomial over what is no number: {str(form)[:60]}")
            total = add(total, ((tuple(sorted(variables)), number(coefficient)),))
        return total

    def branches(self, tree: dict[str, Any]) -> list[tuple[str, Known]]:
        """Return the two cases of a split with the facts known in each."""
        no, yes = Known(self.script, self), Known(self.script, self)
        if self.script.sorts.get(str(tree.get("flag"))) == "Bool":
            no.set(tree["flag"], False)
            yes.set(tree["flag"], True)
        else:
            p = self.polynomial(tree["case"])
            no.assume(add(ZERO, p, -1), False)
            yes.assume(p, True)
        return [("no", no), ("yes", yes)]

    def check_sum(self, terms: Any) -> None:
        """Raise Invalid unless the sum closes the case."""
        total, positive = ZERO, False
        for coefficient, factors in terms:
            product, strict = constant(number(coefficient)), True
            for kind, form in factors:
                p = self.polynomial(form)
                if kind not in (">", ">=", "square") or (kind != "square" and not self.implies(p, kind == ">")):
                    raise Invalid(f"a sum uses {str(form)[:100]} {kind} 0, which is not known in its case")
                product, strict = multiply(product, multiply(p, p) if kind == "square" else p), strict and kind == ">"
            if number(coefficient) <= 0:
                raise Invalid(f"the multiplier {coefficient[:40]} is not positive")
            total, positive = add(total, product), positive or strict
        if total != constant(-1) and not (total == ZERO and positive):
            raise Invalid("a sum is neither -1 nor a positive 0")


def check_tree(tree: Any, known: Known, assertions: list[int]) -> None:
    """Check that the tree shows that the known facts and the assertions contradict each other.

    Args:
        tree: The tree of cases.
        known: The known facts.
        assertions: The terms that are asserted.

    Raises:
        Invalid: The tree does not show it.
    """
    assertions = known.saturate(assertions)
    match tree:
        case "contradiction" if known.closed:
            pass
        case {"case": _, "no": _, "yes": _} | {"flag": _, "no": _, "yes": _} if len(tree) == 3:
            for name, inner in known.branches(tree):
                check_tree(tree[name], inner, assertions)
        case {"sum": terms} if len(tree) == 1:
            known.check_sum(terms)
        case _:
            raise Invalid(f"a case that is not closed: {str(tree)[:60]}")


def check_certificate(script_text: str, certificate: Any) -> str:
    """Return "unsat" or "sat", whichever the certificate shows for the script.

    Args:
        script_text: The SMT-LIB script.
        certificate: The certificate, read from JSON.

    Raises:
        Invalid: The certificate does not show either.
    """
    try:
        form = certificate["format"], certificate["script_sha256"], len(certificate)
        if form != (1, hashlib.sha256(script_text.encode()).hexdigest(), 3):
            raise Invalid("no certificate of format 1 for this script")
        script = Script(script_text, model := certificate.get("model"))
        if model is None:
            check_tree(certificate["refutation"], Known(script), script.assertions)
            return "unsat"
        for name, sort in script.sorts.items():
            if (sort == "Bool") != (type(model[name]) is bool) or (sort == "Int" and "/" in model[name]):
                raise Invalid(f"the value of {name[:60]} has the wrong sort")
        if any(x != script.true for x in script.assertions):
            raise Invalid("the model does not make every assertion true")
        return "sat"
    except (RecursionError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise Invalid(f"{type(error).__name__}: {error}"[:200]) from None


if __name__ == "__main__":  # farkas.py SCRIPT.smt2 CERTIFICATE.json
    with open(sys.argv[1], encoding="utf-8") as _script, open(sys.argv[2], encoding="utf-8") as _certificate:
        print(check_certificate(_script.read(), json.load(_certificate)))

"""Write z3 terms as SMT-LIB text that depends on the terms alone, not on what was built before them."""

from __future__ import annotations

import re
from typing import Any

import z3

from compcomp.terms import Term

_SYMBOL = re.compile(r"[A-Za-z~!@$%^&*_+=<>.?/-][0-9A-Za-z~!@$%^&*_+=<>.?/-]*")
_RESERVED = frozenset({"true", "false", "let", "par", "as", "_", "!", "forall", "exists"})
_NAMES = {
    z3.Z3_OP_AND: "and",
    z3.Z3_OP_OR: "or",
    z3.Z3_OP_NOT: "not",
    z3.Z3_OP_IMPLIES: "=>",
    z3.Z3_OP_ITE: "ite",
    z3.Z3_OP_EQ: "=",
    z3.Z3_OP_IFF: "=",
    z3.Z3_OP_DISTINCT: "distinct",
    z3.Z3_OP_LE: "<=",
    z3.Z3_OP_LT: "<",
    z3.Z3_OP_GE: ">=",
    z3.Z3_OP_GT: ">",
    z3.Z3_OP_ADD: "+",
    z3.Z3_OP_SUB: "-",
    z3.Z3_OP_UMINUS: "-",
    z3.Z3_OP_MUL: "*",
    z3.Z3_OP_DIV: "/",
    z3.Z3_OP_IDIV: "div",
    z3.Z3_OP_MOD: "mod",
    z3.Z3_OP_TO_REAL: "to_real",
    z3.Z3_OP_TO_INT: "to_int",
    z3.Z3_OP_TRUE: "true",
    z3.Z3_OP_FALSE: "false",
}
_OF_NONE = {"and": "true", "or": "false"}
_OF_ONE = frozenset({"and", "or", "+", "*"})
"""Operators that equal their argument if there is only one, because SMT-LIB requires two."""


def script(assertions: list[Term]) -> str:
    """Return the assertions as an SMT-LIB script of linear size.

    Terms that occur again in an assertion are named, in the order of their occurrence. Nothing is simplified, because
    z3 would order sums by the numbers of terms, which depend on all terms built before.

    Raises:
        TypeError: a term has no SMT-LIB text here, or uses a name that is reserved for lets.
    """
    return _Writer().text(assertions)


def has_text(term: Term) -> bool:
    """Return True if a number can be written as SMT-LIB text here."""
    try:
        script([term == 0])
    except TypeError:
        return False
    return True


class _Writer:
    def __init__(self) -> None:
        self._context: Any = None
        self._nodes: dict[int, tuple[str, tuple[int, ...]]] = {}  # text of a leaf, or operator and arguments
        self._sorts: dict[str, str] = {}
        self._names: dict[int, str] = {}

    def text(self, assertions: list[Term]) -> str:
        self._context = assertions[0].ctx.ref() if assertions else None
        roots = [self._read(assertion.as_ast()) for assertion in assertions]
        asserted = [f"(assert {self._written(root)})" for root in roots]
        declared = [f"(declare-fun {name} () {sort})" for name, sort in self._sorts.items()]
        return "\n".join([*declared, *asserted, "(check-sat)", ""])

    def _read(self, root: Any) -> int:
        """Read all terms below this one, and return its number."""
        context, nodes = self._context, self._nodes
        number = int(z3.Z3_get_ast_id(context, root))
        stack: list[tuple[int, Any]] = [(number, root)]
        while stack:
            key, ast = stack.pop()
            if key in nodes:
                continue
            if z3.Z3_get_ast_kind(context, ast) == z3.Z3_NUMERAL_AST:
                nodes[key] = self._numeral(ast), ()
                continue
            app = z3.Z3_to_app(context, ast)
            count = z3.Z3_get_app_num_args(context, app)
            declaration = z3.Z3_get_app_decl(context, app)
            kind = z3.Z3_get_decl_kind(context, declaration)
            if kind == z3.Z3_OP_UNINTERPRETED and not count:
                nodes[key] = self._constant(ast, declaration), ()
                continue
            if kind not in _NAMES:
                raise TypeError(f"no SMT-LIB for {z3.Z3_ast_to_string(context, ast)[:80]}")
            arguments = [z3.Z3_get_app_arg(context, app, i) for i in range(count)]
            below = [int(z3.Z3_get_ast_id(context, argument)) for argument in arguments]
            nodes[key] = _NAMES[kind] if count else _OF_NONE.get(_NAMES[kind], _NAMES[kind]), tuple(below)
            stack.extend(zip(reversed(below), reversed(arguments), strict=True))
        return number

    def _numeral(self, ast: Any) -> str:
        text = z3.Z3_get_numeral_string(self._context, ast)
        real = z3.Z3_get_sort_kind(self._context, z3.Z3_get_sort(self._context, ast)) == z3.Z3_REAL_SORT
        size, _, below = text.lstrip("-").partition("/")
        end = ".0" if real else ""
        written = f"(/ {size}{end} {below}{end})" if below else f"{size}{end}"
        return f"(- {written})" if text.startswith("-") else written

    def _constant(self, ast: Any, declaration: Any) -> str:
        context = self._context
        name = str(z3.Z3_get_symbol_string(context, z3.Z3_get_decl_name(context, declaration)))
        if name.startswith("?"):
            raise TypeError(f"the name {name!r} is kept for lets")
        if _SYMBOL.fullmatch(name) is None or name in _RESERVED or name in _NAMES.values():
            name = f"|{name}|"
        self._sorts[name] = z3.Z3_sort_to_string(context, z3.Z3_get_sort(context, ast))
        return name

    def _written(self, root: int) -> str:
        """Return a term as text, with a let for every compound term that occurs in it again."""
        nodes, uses, order = self._nodes, dict[int, int](), list[int]()
        stack: list[tuple[int, bool]] = [(root, False)]
        while stack:
            key, ready = stack.pop()
            if ready:
                order.append(key)
                continue
            uses[key] = uses.get(key, 0) + 1
            if uses[key] == 1 and nodes[key][1]:
                stack.append((key, True))
                stack.extend((below, False) for below in reversed(nodes[key][1]))
        texts: dict[int, str] = {}
        depths: dict[int, int] = {}  # how many lets have to stand around the text
        lets: list[list[str]] = []
        for key in order:
            operator, arguments = nodes[key]
            written = [texts[below] if below in texts else nodes[below][0] for below in arguments]
            depth = max((depths.get(below, 0) for below in arguments), default=0)
            text = written[0] if len(written) == 1 and operator in _OF_ONE else f"({operator} {' '.join(written)})"
            if uses[key] > 1:
                name = self._names.setdefault(key, f"?{len(self._names) + 1}")
                lets.extend([[]] if depth == len(lets) else [])
                lets[depth].append(f"({name} {text})")
                text, depth = name, depth + 1
            texts[key], depths[key] = text, depth
        body = texts.get(root) or nodes[root][0]
        return "".join(f"(let ({' '.join(bound)}) " for bound in lets) + body + ")" * len(lets)

"""Parse the text form of sequences and claims with ``ast``. Nothing is ever executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any

from compcomp.errors import InputError
from compcomp.language.claim import KINDS, Claim
from compcomp.language.conditions import conditions
from compcomp.language.parameters import ANY, LARGEST
from compcomp.language.parameters import LONGEST as LONGEST_NUMBER
from compcomp.language.technique import Sequence, Technique

LONGEST = 4000
"""The number of characters that a text may have."""
LONGEST_GIVEN = 100_000
"""The number of characters that conditions may have. A box lists its weights."""

_FORM = "techniques such as Magnitude(sparsity=1/2) joined by >>"


def parse_sequence(text: str) -> Sequence:
    """Return the sequence of a text such as ``"Magnitude(sparsity=1/2) >> AbsMax(bits=4)"``.

    The text ``"identity"`` is the empty sequence.

    Raises:
        InputError: the text is too long or cannot be parsed, or a technique or parameter is not known.
    """
    if len(text) > LONGEST:
        raise InputError(f"{len(text)} characters", f"at most {LONGEST}", "sequence")
    if text.strip() == "identity":
        return Sequence()
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(_shorten(text), _FORM, "sequence") from None
    techniques: list[Technique] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.RShift):
        techniques.append(_technique(tree.right))
        tree = tree.left
    techniques.append(_technique(tree))
    return Sequence(tuple(reversed(techniques)))


def _technique(node: ast.expr) -> Technique:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise InputError(_shorten(ast.unparse(node)), _FORM, "sequence")
    return technique_of(node, Technique.named(node.func.id))


def technique_of(node: ast.Call, kind: type[Technique]) -> Technique:
    """Return the technique of this class that a call in text describes.

    Args:
        node: the call.
        kind: the class of the technique.

    Raises:
        InputError: a parameter is not known, given twice, missing or not allowed.
    """
    allowed = [f.name for f in fields(kind) if f.init]
    if node.args:
        raise InputError(_shorten(ast.unparse(node.args[0])), f"keywords only: {', '.join(allowed)}", kind.__name__)
    given: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg not in allowed:
            raise InputError(f"parameter {keyword.arg!r}", ", ".join(allowed) or "no parameters", kind.__name__)
        if keyword.arg in given:
            raise InputError(f"parameter {keyword.arg!r} twice", "each parameter once", kind.__name__)
        given[keyword.arg] = _constant(keyword.value, f"{kind.__name__}.{keyword.arg}")
    try:
        return kind(**given)
    except TypeError:
        required = ", ".join(allowed)
        raise InputError(f"{', '.join(given) or 'no parameters'}", f"parameters {required}", kind.__name__) from None


def _constant(node: ast.expr, where: str) -> Any:
    """Return the value of a constant.

    A constant is a string, True, False, None, Any, a number or its negative, a quotient of two integers, or a tuple of
    such.
    """
    if isinstance(node, ast.Name) and node.id == "Any":
        return ANY
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bool | int | float | None):
        if isinstance(node.value, int | float) and not abs(node.value) <= LARGEST:
            raise InputError("a number too large to be meant", f"numbers up to {LARGEST}", where)
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(_constant(item, where) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand, where)
        if isinstance(value, int | float | Fraction) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _part(node.left, where), _part(node.right, where)
        if type(above) is int and type(below) is int and below:
            return Fraction(above, below)
    raise InputError(_shorten(ast.unparse(node)), "a constant such as 4, 1/2, 0.5, True or '2:4'", where)


def _part(node: ast.expr, where: str) -> Any:
    """Return a part of a quotient: an integer with as many digits as a quotient may have, or any other constant."""
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(inner, ast.Constant) and type(inner.value) is int and inner.value < 10**LONGEST_NUMBER:
        return -inner.value if negative else inner.value
    return _constant(node, where)


def parse_claim(text: str, loss: str = "weight_l2") -> Claim:
    """Return the claim of a text such as ``A dominates B``, ``A keeps mask`` or ``A fits W4 2:4 given no_ties``.

    The verb determines the kind of claim (:data:`compcomp.language.claim.KINDS`).

    Args:
        text: the claim.
        loss: the name of the loss, for kinds that have one.

    Returns:
        The claim.

    Raises:
        InputError: the text is too long or cannot be parsed.
    """
    if len(text) > 2 * LONGEST + LONGEST_GIVEN:  # before an expression that takes long on blanks
        raise InputError(f"{len(text)} characters", f"at most {2 * LONGEST + LONGEST_GIVEN}", "claim")
    text, *after = re.split(r"\s+given\s+", text.strip(), maxsplit=1)
    if after and len(after[0]) > LONGEST_GIVEN:
        raise InputError(f"{len(after[0])} characters", f"at most {LONGEST_GIVEN}", "given")
    verbs = "|".join(verb.replace(" ", r"\s+") for verb in sorted(KINDS, key=len, reverse=True))
    parts = re.split(rf"\s+({verbs})\s+", text.strip())
    if len(text) > 2 * LONGEST or len(parts) != 3:
        *forms, last = (f"'A {verb} {kind.example}'" for verb, kind in KINDS.items())
        raise InputError(_shorten(text), f"{', '.join(forms)} or {last} with sequences", "claim")
    left, given = parse_sequence(parts[0]), conditions(after[0]) if after else ()
    kind = KINDS[" ".join(parts[1].split())]
    return kind.read(left, parts[2], loss=loss, given=given, sequence=parse_sequence)


def claim_from_json(data: Mapping[str, Any], claim: Claim | None = None) -> Claim:
    """Return the claim that :meth:`Claim.to_json` wrote.

    Args:
        data: the plain data.
        claim: the claim that the data must describe, for techniques that text cannot name. None: parse the text.

    Raises:
        InputError, KeyError, TypeError or ValueError: the data is anything else, or describes another claim.
    """
    loss = data["loss"]
    if claim is None:
        claim = parse_claim(data["claim"], **({} if loss is None else {"loss": loss}))
    if claim.to_json() != {key: data[key] for key in claim.to_json()}:
        raise ValueError(f"the data speaks of another claim: {data['claim']}")
    return claim


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")

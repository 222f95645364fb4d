"""Run cvc5 as a process: one JSON object a line in, one out. Of compcomp it imports only the other worker."""

from __future__ import annotations

import time
from typing import Any

from compcomp.proving.worker import serve

LEMMAS = {"nl-ext": "full", "nl-cov": "false"}  # lemmas about products: quick where only squares occur
COVERINGS = {"nl-ext": "none", "nl-cov": "true", "decision": "justification"}  # cylindrical coverings: all of it
"""cvc5's two procedures for products, one at a time.

Mixed, as is cvc5's default, they did not end on "|x| <= |y| entails x^4 <= y^4" with a few more weights in the script.
Coverings alone take 0.2 s.
"""
LEMMAS_RLIMIT = 200_000
"""cvc5's resource units for the first procedure: less than a second. A busy machine then gives up no earlier."""


def logic_of(assertions: list[Any]) -> tuple[str, int]:
    """Return the smallest quantifier-free arithmetic logic of these terms, and their degree as polynomials.

    cvc5 chooses its procedures by the logic. With none set, it does not end on x * x = 2.
    """
    from cvc5 import Kind

    integer = real = False
    degrees: dict[int, int] = {}  # by term; 0 where no variable occurs
    stack = [(term, False) for term in assertions]
    while stack:
        term, ready = stack.pop()
        key = term.getId()
        if key in degrees:
            continue
        children = list(term)
        if children and not ready:
            stack.append((term, True))
            stack.extend((child, False) for child in children)
            continue
        kind, sort = term.getKind(), term.getSort()
        integer, real = integer or sort.isInteger(), real or sort.isReal()
        below = [degrees[child.getId()] for child in children]
        if kind == Kind.MULT:
            degrees[key] = sum(below)
        elif kind in (Kind.DIVISION, Kind.INTS_DIVISION, Kind.INTS_MODULUS, Kind.POW):
            by_zero = any(c.isRealValue() and not c.getRealValue() for c in children[1:])  # any value: no linear term
            degrees[key] = below[0] + 2 * (by_zero + sum(below[1:]))
        else:
            degrees[key] = max(below) if below else int(kind == Kind.CONSTANT)
    degree = max(degrees.values(), default=0)
    domain = "IR" if integer and real else "I" if integer else "R"
    return f"QF_{'N' if degree > 1 else 'L'}{domain}A", degree


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Check one SMT-LIB script. Returns answer ("sat", "unsat" or "unknown"), cause, rlimit, logic."""
    import cvc5

    terms = cvc5.TermManager()
    assertions = _assertions(cvc5, terms, request["smtlib"])
    logic, degree = logic_of(assertions)
    whole = int(request.get("milliseconds", 3_600_000)) * 4 // 5
    most = int(request["rlimit"])
    attempts: list[tuple[dict[str, str], int, int]] = [({}, whole, most)]
    if logic == "QF_NRA":
        lemmas = [(LEMMAS, whole // 2, min(LEMMAS_RLIMIT, most) if most else LEMMAS_RLIMIT)] if degree == 2 else []
        attempts = [*lemmas, (COVERINGS, whole, most)]
    used, until = 0, time.monotonic() + whole / 1000
    for options, milliseconds, units in attempts:
        solver = cvc5.Solver(terms)
        left = min(milliseconds, int(1000 * (until - time.monotonic())))
        limits = {"incremental": "false", "rlimit-per": units, "tlimit-per": max(1, left)}
        for name, value in {**limits, **options}.items():
            solver.setOption(name, str(value))
        solver.setLogic(logic)
        for term in assertions:
            solver.assertFormula(term)
        result = solver.checkSat()
        used += int(solver.getStatistics()["resource::resourceUnitsUsed"]["value"])
        if not result.isUnknown():
            return {"answer": "sat" if result.isSat() else "unsat", "rlimit": used, "logic": logic}
    cause = result.getUnknownExplanation().name.lower().replace("_", " ")
    return {"answer": "unknown", "cause": f"{cause} ({logic})", "rlimit": used, "logic": logic}


def _assertions(cvc5: Any, terms: Any, script: str) -> list[Any]:
    """Return the script's assertions as terms.

    Raises:
        ValueError: the script has an error, or a command that this worker does not know.
    """
    reader = cvc5.Solver(terms)
    parser = cvc5.InputParser(reader)
    if "(set-logic" not in script:
        reader.setLogic("QF_NIRA")  # to read with; solved under the logic of what was read
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, script, "script")
    known = ("set-logic", "set-info", "declare-fun", "declare-const", "define-fun", "assert", "check-sat", "exit")
    while not (command := parser.nextCommand()).isNull():
        name = command.getCommandName()
        if name not in known:
            raise ValueError(f"unexpected command {name}")
        if name not in ("check-sat", "exit") and "error" in (said := command.invoke(reader, parser.getSymbolManager())):
            raise ValueError(said)
    return list(reader.getAssertions())


def main() -> None:
    import cvc5

    serve(cvc5.__version__, answer)


if __name__ == "__main__":
    main()

"""Run a solver as a process: one JSON object a line in, one out. Imports z3 and no other module of compcomp."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Check one SMT-LIB script. Returns answer ("sat", "unsat" or "unknown"), cause, rlimit, model."""
    import z3

    context = z3.Context()
    solver = z3.SimpleSolver(ctx=context) if request.get("solver") == "simple" else z3.Solver(ctx=context)
    solver.set("rlimit", int(request["rlimit"]))
    solver.from_string(request["smtlib"])
    outcome = str(solver.check())
    statistics = solver.statistics()
    used = statistics.get_key_value("rlimit count") if "rlimit count" in statistics.keys() else 0  # noqa: SIM118
    reply: dict[str, Any] = {"answer": outcome, "rlimit": int(used)}
    if outcome == "unknown":
        reply["cause"] = solver.reason_unknown()
    if outcome == "sat":
        model = solver.model()
        values = {}
        for declaration in model.decls():
            value = model[declaration]
            if declaration.arity() == 0 and isinstance(value, z3.RatNumRef):
                values[declaration.name()] = str(value.as_fraction())
            elif declaration.arity() == 0 and isinstance(value, z3.IntNumRef):
                values[declaration.name()] = str(value.as_long())
            elif declaration.arity() == 0 and isinstance(value, z3.AlgebraicNumRef):
                values[declaration.name()] = str(value.approx(10).as_fraction())
        reply["model"] = values
    return reply


def serve(version: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say that the solver of this version is ready, then answer requests until there are no more."""
    print(json.dumps({"ready": version}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the reply must never be missing: the parent reads it as unknown
            reply = {"answer": "unknown", "cause": f"worker error: {error}"[:300], "rlimit": 0}
        print(json.dumps(reply), flush=True)


def main() -> None:
    import z3

    serve(z3.get_version_string(), answer)


if __name__ == "__main__":
    main()

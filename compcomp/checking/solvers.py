"""Ask installed solvers for scripts again, each in a process of its own. This module imports nothing of the library."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

_ASK = {
    "z3": """
import json, sys, z3
for text in json.load(sys.stdin):
    try:
        said = "unknown"
        for make in (z3.SimpleSolver, z3.Solver):
            if said == "unknown":
                solver = make(ctx=z3.Context())
                solver.set("timeout", LIMIT)
                solver.from_string(text)
                said = str(solver.check())
        print(said, flush=True)
    except Exception:
        print("error", flush=True)
""",
    "cvc5": """
import json, sys, cvc5
for text in json.load(sys.stdin):
    try:
        terms = cvc5.TermManager()
        solver = cvc5.Solver(terms)
        solver.setOption("tlimit-per", "LIMIT")
        parser = cvc5.InputParser(solver)
        if "(set-logic" not in text:
            text = "(set-logic ALL)" + text
        parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "script")
        said = "unknown"
        while not (command := parser.nextCommand()).isNull():
            said = (command.invoke(solver, parser.getSymbolManager()).strip() or said)
        print(said if said in ("sat", "unsat") else "unknown", flush=True)
    except Exception:
        print("error", flush=True)
""",
}


def installed() -> list[str]:
    """Return the names of the solvers that can be asked here."""
    return [name for name in _ASK if importlib.util.find_spec(name) is not None]


def ask(name: str, scripts: list[str], seconds: float) -> list[str]:
    """Return "sat", "unsat", "unknown" or "error" for each script.

    An "error" means that the solver does not read the script, or stops at it. Any other failure is "unknown".

    Args:
        name: The name of the solver.
        scripts: The SMT-LIB scripts.
        seconds: The time limit of each script.
    """
    said: list[str] = []
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK[name].replace("LIMIT", str(int(1000 * seconds)))],
            input=json.dumps(scripts),
            capture_output=True,
            text=True,
            timeout=20 + seconds * len(scripts),
            check=False,
        )
        said = done.stdout.split()
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode().split() if isinstance(late.stdout, bytes) else []
    except OSError:
        pass
    known = [answer if answer in ("sat", "unsat", "error") else "unknown" for answer in said[: len(scripts)]]
    return known + ["unknown"] * (len(scripts) - len(known))

"""Proving from several threads at once: z3's context is shared, so nothing may touch it at the same time."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import compcomp.techniques  # noqa: F401
from compcomp.language.text import parse_claim
from compcomp.proving.prove import prove
from compcomp.proving.solver import Answer

CLAIMS = [
    f"Magnitude(sparsity=1/2) >> AbsMax(bits={bits}, rounding='{rounding}') dominates "
    f"AbsMax(bits={bits}, rounding='{rounding}') >> Magnitude(sparsity=1/2)"
    for bits in (2, 3)
    for rounding in ("half_even", "half_up", "half_away", "any")
]


class Unsure:
    """Answers nothing, at once, so that threads spend their time building and dropping terms."""

    def ask(self, smtlib: str, deadline: float) -> Answer:
        return Answer("unknown", cause="unsure")


def decide(text: str) -> str:
    claim = parse_claim(text, "weight_l2")
    return str(prove(claim, (1, 3), timeout=20, stages=("rule",), solver=Unsure(), second=None).status)


def test_many_threads_prove_and_collect_garbage() -> None:
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(decide, text) for text in CLAIMS * 2]
        while not all(job.done() for job in running):
            gc.collect()
            time.sleep(0.01)
        assert {job.result() for job in running} == {"UNKNOWN"}

"""Prove and refute ordering claims, and look at a counterexample step by step."""

import compcomp as cc
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude

prune, quantize, distil = Magnitude("1/2"), AbsMax(4), LeastSquaresDistill()

for loss in ("weight_l1", "weight_l2", "output_l2"):
    print(cc.prove(cc.dominates(prune >> quantize, quantize >> prune, loss=loss)))
print(cc.prove(cc.dominates(prune >> distil, distil >> prune, loss="output_l2")))
print(cc.prove(cc.keeps(prune >> distil >> quantize, "mask")))

refuted = cc.prove(cc.dominates(prune >> quantize, quantize >> prune, loss="output_l2"))
assert refuted.witness is not None
for trace in refuted.witness.traces:
    print(trace.sequence)
    for step, weight in trace.steps:
        print(f"  after {step:28} {[[str(x) for x in row] for row in weight]}")
    print(f"  loses {trace.loss} exactly, {trace.torch_loss:.6f} in torch")

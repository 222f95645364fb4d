"""What is proved of techniques that drop units of several layers, against models: rows here, columns there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import compcomp as cc
import compcomp.techniques
from compcomp.checking.directory import check_directory
from compcomp.errors import InputError
from compcomp.language.claim import Claim, equal, keeps
from compcomp.language.technique import Sequence, Technique
from compcomp.language.text import parse_claim, parse_sequence
from compcomp.layers.state import INVARIANTS, LayerState
from compcomp.models.bench import ModelBench
from compcomp.proving.prove import prove
from compcomp.techniques import GPTQ, AbsMax, Magnitude, PruneColumns, PruneHeads, PruneNeurons, PruneRows
from tests.models.fakes import gpt2
from tests.models.test_structure import NEOX, OPT, built, llama_like

MODELS = {
    "gated, shared keys": lambda: built("Llama", **llama_like()),
    "plain, with biases": lambda: built("OPT", **OPT),
    "Conv1D": gpt2,
    "parallel": lambda: built("GPTNeoX", **NEOX),
}
STRUCTURED = [
    "PruneNeurons(sparsity=1/2)",
    "PruneNeurons(sparsity=1/4, score='activation')",
    "PruneHeads(sparsity=1/2)",
    "PruneHeads(sparsity=1/2, score='l1')",
    "RemoveBlocks(count=1)",
]
OTHERS = [
    *("GPTQ(bits=4)", "GPTQ(bits=4, mask='kept')", "OBQ(bits=3)", "SparseGPT(sparsity=1/4)", "OBS(sparsity=1/4)"),
    *("SparseGPT(sparsity=1/2, pattern='2:4')", "LeastSquaresDistill()", "GradientDistill(iterations=2)"),
    *("TruncatedSVD(rank=2)", "TruncatedSVD(rank=2, metric='output')", "TruncatedSVD(rank=1, residual=True)"),
    *("LoftQ(rank=1, bits=3)", "LPLR(rank=2, bits=4)", "LoSparse(rank=1, sparsity=1/4)", "LoRA(rank=1, iterations=1)"),
    *(
        "BlockMeans(rank=1)",
        "DistillFactors()",
        "DistillLogits(iterations=1)",
        "AbsMax(bits=4)",
        "AbsMax(bits=3, group=4)",
    ),
    *("MinMax(bits=4)", "MinMax(bits=4, zero='none')", "Magnitude(sparsity=1/4)", "Wanda(sparsity=1/2, pattern='2:4')"),
    *(
        "PruneRows(sparsity=1/4)",
        "PruneColumns(sparsity=1/4)",
        "ApplyMask()",
        "MX(format='MXFP4')",
        "Hadamard(block=4)",
    ),
    *("ClippedAbsMax(bits=3)", "QuantizationAwareTraining(bits=4, iterations=1)", "Taylor(sparsity=1/4, group='row')"),
]
IDS = [{"input_ids": torch.arange(24).reshape(2, 12) % 32}, {"input_ids": (torch.arange(24).reshape(2, 12) * 7) % 32}]


def model_of(kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[kind]()


def known(text: str) -> Technique | None:
    try:
        return parse_sequence(text).techniques[0]
    except InputError:
        return None


def runs(bench: ModelBench, sequence: Sequence) -> dict[str, list[LayerState]] | None:
    """The states of each layer along the sequence; None where the model has no place for a technique."""
    state = bench.start()
    found = {name: [layer] for name, layer in state.items()}
    for technique in sequence:
        try:
            state = bench.apply(technique, state)
        except InputError:
            return None
        for name, layer in state.items():
            found[name].append(layer)
    return found


def broken(invariant: str, run: list[LayerState]) -> bool:
    """Whether the run of one layer leaves anything but zeros, by loops of this test's own."""
    end = run[-1].working()
    if end.format.transform is not None:
        return False
    weight, whole = end.weight.double(), end.effective().double()
    for state in run:
        form = state.format
        if invariant == "mask" and form.mask is not None and bool((weight[~form.mask] != 0).any()):
            return True
        removed = form.cut if invariant == "shape" else None
        if removed is not None and bool((whole[~removed.rows] != 0).any() or (whole[:, ~removed.columns] != 0).any()):
            return True
        if invariant == "n:m":
            for n, m in form.pattern or ():
                if bool(((weight != 0).reshape(len(weight), -1, m).sum(dim=2) > n).any()):
                    return True
    if invariant == "rank" and run[-1].format.rank is not None:
        return int(torch.linalg.matrix_rank(weight, rtol=1e-4)) > run[-1].format.rank
    return False


def proved(claim: Claim) -> bool:
    return prove(claim, timeout=10, stages=("rule",), second=None, explain=False).proved


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_no_proof_is_contradicted_by_a_model(kind: str) -> None:
    """Random sequences that hold at least one such technique, every invariant, each layer of the model."""
    random = np.random.default_rng(sum(map(ord, kind)))
    structured, others = ([t for t in map(known, texts) if t is not None] for texts in (STRUCTURED, OTHERS))
    assert len(structured) == len(STRUCTURED) and len(others) > len(OTHERS) - 4
    proofs = 0
    with ModelBench(model_of(kind), IDS, device="cpu", keep_batches=True) as bench:
        for _ in range(28):
            picked = [structured[random.integers(len(structured))]]
            picked += [others[k] for k in random.integers(len(others), size=random.integers(1, 3))]
            if random.random() < 0.3:
                random.shuffle(picked)
            if random.random() < 0.3:
                picked.append(structured[random.integers(len(structured))])
            sequence = Sequence(tuple(picked))
            claims = [keeps(sequence, invariant) for invariant in INVARIANTS if invariant != "grid"]
            found = [claim for claim in claims if proved(claim)]
            states = runs(bench, sequence) if found else None
            for claim in found if states else ():
                proofs += 1
                for name, run in (states or {}).items():
                    assert not broken(claim.invariant or "", run), f"{claim} is proved, and false in {name}"
    assert proofs >= 8


def test_the_model_test_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided on the stacked matrix alone, a proof is contradicted by the layer that reads."""
    claim = keeps(PruneNeurons("1/2") >> GPTQ(bits=4), "shape")
    monkeypatch.setattr(Claim, "parts", lambda self: {})
    assert proved(claim)
    with ModelBench(model_of("gated, shared keys"), IDS, device="cpu", keep_batches=True) as bench:
        states = runs(bench, claim.left)
    assert states is not None
    assert [name.rpartition(".")[2] for name, run in states.items() if broken("shape", run)] == ["down_proj"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_units_go_again(kind: str) -> None:
    """By the contract `idempotent`, and what the rule concludes where other units go in between."""
    between = PruneHeads("1/2")
    with ModelBench(model_of(kind), IDS, device="cpu", keep_batches=True) as bench:
        compared = 0
        for technique in [t for t in map(known, STRUCTURED) if t is not None and t.promises().idempotent]:
            for once in (Sequence((technique,)), technique >> between, AbsMax(4) >> technique):
                twice = once >> technique
                one, other = runs(bench, once), runs(bench, twice)
                if one is None or other is None or not proved(equal(twice, once)):
                    continue
                compared += 1
                for name in one:
                    ends = one[name][-1], other[name][-1]
                    assert torch.equal(*(end.effective() for end in ends)), f"{twice} in {name}"
                    assert str(ends[0].format.mask) == str(ends[1].format.mask)
        assert compared >= 4


REFILLING = ("GPTQ(bits=4)", "GPTQ(bits=3)", "Hadamard(block=4)")
KEEPING = (
    "GPTQ(bits=4, mask='kept')",
    "AbsMax(bits=4)",
    "TruncatedSVD(rank=2)",
    "LoftQ(rank=1, bits=3)",
    "Magnitude(sparsity=1/2)",
)


@pytest.mark.parametrize("units", ["PruneNeurons(sparsity=1/2)", "PruneHeads(sparsity=1/2, score='l1')"])
def test_verdicts(units: str) -> None:
    for second in REFILLING:
        for invariant in ("mask", "shape"):
            verdict = prove(parse_claim(f"{units} >> {second} keeps {invariant}"))
            assert verdict.refuted and "columns that read" in verdict.reason, f"{verdict}"
    for second in KEEPING:
        for invariant in ("mask", "shape"):
            verdict = prove(
                parse_claim(f"{units} >> {second} keeps {invariant}"), stages=("rule",), second=None, explain=False
            )
            assert verdict.proved, f"{verdict}"
            assert any("rows that write" in a.about and "columns that read" in a.about for a in verdict.assumptions)


def test_a_part_is_refuted_with_a_layer_that_replays(tmp_path: Any) -> None:
    claim = parse_claim("PruneHeads(sparsity=1/2) >> GPTQ(bits=4) keeps shape")
    verdict = prove(claim)
    assert verdict.refuted and verdict.witness is not None and verdict.claim == claim
    assert "PruneColumns" in verdict.witness.traces[0].sequence
    folder = verdict.save(tmp_path / "saved")
    assert check_directory(folder).outcome == "valid"


def test_at_one_shape_scores_of_one_layer_prove_nothing() -> None:
    """At 1 x 2 one column goes by its own score; in a model by the scores of all layers."""
    claim = cc.dominates(PruneNeurons("1/2") >> AbsMax(3), PruneNeurons("1/2") >> AbsMax(2), "weight_l1")
    for scope in ("1x2", "2x2"):
        verdict = prove(claim, scope)
        assert verdict.stage != "bounded" and not verdict.proved


def test_units_of_other_layers_are_left_alone() -> None:
    neurons, heads = PruneNeurons("1/2"), PruneHeads("1/2")
    assert prove(equal(neurons >> heads, heads >> neurons)).proved
    other = prove(equal(AbsMax(4) >> neurons >> heads, neurons >> AbsMax(4) >> heads))
    assert not other.proved
    # Which neurons go depends on all of their layers, as another step left them.
    assert not prove(equal(Magnitude("1/4") >> neurons, neurons >> Magnitude("1/4"))).proved


def test_one_technique_alone_is_about_the_stacked_matrix() -> None:
    alone = equal(PruneNeurons("1/2"), PruneNeurons("1/2", score="l1"))
    assert alone.parts() == {}
    assert keeps(Magnitude("1/2") >> AbsMax(4), "mask").parts() == {}
    mixed = keeps(PruneNeurons("1/2") >> PruneHeads("1/3") >> AbsMax(4), "mask").parts()
    assert [str(claim.left) for claim in mixed.values()] == [
        f"{PruneRows('1/2', score='l2')} >> AbsMax(bits=4)",
        f"{PruneColumns('1/2', score='l2')} >> AbsMax(bits=4)",
        f"{PruneRows('1/3', score='l2')} >> AbsMax(bits=4)",
        f"{PruneColumns('1/3', score='l2')} >> AbsMax(bits=4)",
    ]


@dataclass(frozen=True)
class Channels(PruneNeurons):
    """A technique of one's own that drops units of its own."""

    def parts(self) -> dict[str, Technique]:
        return {"channels": PruneColumns(self.sparsity)}


def test_parts_are_read_from_the_contract() -> None:
    mine = Channels("1/2")
    assert prove(keeps(mine >> AbsMax(4), "shape")).proved
    verdict = prove(keeps(mine >> GPTQ(bits=4), "shape"))
    assert verdict.refuted and "for channels" in verdict.reason


@dataclass(frozen=True)
class Stepped(PruneNeurons):
    """Its part is a selection, whose scores a rule would read."""

    def parts(self) -> dict[str, Technique]:
        return {"neurons": Magnitude(self.sparsity)}


def test_a_part_of_steps_proves_nothing() -> None:
    claim = keeps(Stepped("1/2") >> AbsMax(4), "mask")
    assert not prove(claim).proved

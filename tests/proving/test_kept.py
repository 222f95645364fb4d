"""Attack the rule that proves what is kept, over the whole registry: each proof against many small layers."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.language.claim import Claim, keeps
from compcomp.language.samples import conventions, sets_up
from compcomp.language.technique import Declared, Sequence, Technique
from compcomp.layers.state import INVARIANTS, Cut, Factors, LayerState
from compcomp.ordering.table import registered
from compcomp.proving.candidates import Candidates
from compcomp.proving.meaning import fails
from compcomp.proving.prove import prove
from compcomp.proving.replay import Suspect, confirmed
from compcomp.proving.rules import kept
from compcomp.techniques import AbsMax, ApplyMask, Magnitude, MinMax, TruncatedSVD
from compcomp.terms import And, Batch, each
from tests.amount import covering

ALL = registered()
SHAPES = ((1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (3, 3), (2, 6), (2, 8), (4, 8), (2, 16), (2, 32), (2, 64))
MOST = 3000
"""Layers of one shape: all of them up to a magnitude, or as many drawn by chance."""


def small_layers(shape: tuple[int, int], inputs: bool, random: np.random.Generator) -> Candidates:
    """Every layer of small integers where there are few enough, else many of them, with zeros and few values."""
    count = shape[0] * shape[1]
    top = max((t for t in range(1, 13) if (2 * t + 1) ** count <= MOST), default=0)
    if top:
        values = np.arange(-top, top + 1, dtype=float)
        weights = np.array(list(itertools.product(values, repeat=count))).reshape(-1, *shape)
    else:
        size = max(60, MOST * 4 // count)
        tops = random.integers(1, 10, size=(size, 1, 1))
        weights = np.round(random.uniform(-1, 1, (size, *shape)) * tops)
        weights[random.random(weights.shape) < 0.3] = 0
    tokens = random.integers(-2, 3, (len(weights), shape[1], shape[1])).astype(float)
    return Candidates(weights, tokens if inputs else None)


def violation(claim: Claim, shapes: int = 3) -> Suspect | None:
    """A small layer, found in batches and confirmed exactly, that contradicts the claim."""
    random = np.random.default_rng(zlib.crc32(str(claim).encode()))
    for shape in [s for s in SHAPES if claim.left.fits(s)][:shapes]:
        candidates = small_layers(shape, claim.needs_inputs, random)
        found = fails(claim, [s.trace(candidates.layer(random)) for s in claim.sequences], tolerance=1e-9)
        values = found.values if isinstance(found, Batch) else np.array(bool(found))
        hits = np.flatnonzero(np.broadcast_to(values, (len(candidates.weights),)))
        for k in hits[:: max(1, len(hits) // 20)]:
            weight, inputs = (
                None if v is None else each(Fraction, v[k]) for v in (candidates.weights, candidates.inputs)
            )
            for seed in [None] if claim.is_deterministic else range(6):
                suspect = Suspect(weight, inputs, seed)
                if confirmed(claim, suspect):
                    return suspect
    return None


def proved(claim: Claim) -> bool:
    return prove(claim, "any", timeout=10, stages=("rule",), second=None, explain=False).proved


def check(techniques: Items[Technique], shapes: int = 3) -> int:
    """Assert that no proof about the sequence is contradicted; how many proofs there were."""
    claims = [keeps(Sequence(tuple(techniques)), invariant) for invariant in INVARIANTS]
    found = [claim for claim in claims if proved(claim)]
    for claim in found:
        assert (broken := violation(claim, shapes)) is None, f"{claim} is proved, and false on {broken}"
    return len(found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", ALL, ids=str)
def test_no_proof_about_a_pair_is_contradicted(first: Technique) -> None:
    """Every ordered pair of representatives of the registry, every invariant."""
    proofs = sum(check([first, second]) for second in ALL)
    assert proofs >= len(sets_up(first))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(120))
def test_no_proof_about_a_longer_sequence_is_contradicted(seed: int) -> None:
    """Sequences of three to five over all conventions of the registry, pruners and grids first."""
    random = np.random.default_rng(seed)
    every = [t for kind in Technique.kernels for t in conventions(kind) if t.fits((2, 4)) or t.fits((3, 3))]
    starts = [t for t in every if sets_up(t)]
    length = int(random.integers(2, 5))
    check([starts[random.integers(len(starts))], *(every[k] for k in random.integers(len(every), size=length))], 2)


def test_an_easy_sample_of_pairs() -> None:
    """The quick version: one pair of every kind of proof."""
    assert check([Magnitude("1/2", pattern="2:4"), AbsMax(4)], 2) == 3
    assert check([Magnitude("1/2", pattern="1:2"), ApplyMask()], 2) == 2
    assert check([MinMax(3, zero="none"), TruncatedSVD(1, residual=True)], 2) == 1


# The attack bites


@pytest.mark.parametrize(
    ("name", "wrong", "techniques"),
    [
        ("_keeps_zeros", lambda step, session: True, [Magnitude("1/2"), MinMax(3, zero="none")]),
        ("_keeps_zeros", lambda step, session: True, [Magnitude("1/2", pattern="1:2"), MinMax(2, zero="none")]),
        ("_zero_on_its_grid", lambda step, session: True, [MinMax(3, zero="none"), Magnitude("1/2")]),
        ("_establishes", lambda selection, n, m: True, [Magnitude("3/4", pattern="1:4"), MinMax(2, zero="none")]),
    ],
)
def test_a_wrong_rule_is_contradicted(
    name: str, wrong: Any, techniques: list[Technique], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, name, wrong)
    more = [Magnitude("1/4", pattern="3:4")] if name == "_establishes" else []
    with pytest.raises(AssertionError, match="is proved, and false"):
        check([*techniques, *more])


# Patterns


@pytest.mark.parametrize(
    ("techniques", "expected"),
    [
        ([Magnitude("1/2", pattern="2:4"), AbsMax(4)], True),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none")], False),
        # A later selection establishes the pattern again, whatever has become of the mask.
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), Magnitude("1/2", pattern="2:4")], True),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), Magnitude("1/2", pattern="1:2")], True),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), Magnitude("3/4", pattern="1:4")], True),
        ([Magnitude("1/2", pattern="1:2"), MinMax(4, zero="none"), Magnitude("1/2", pattern="2:4")], False),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), Magnitude("1/4", pattern="3:4")], False),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), Magnitude("1/2")], False),
        ([Magnitude("1/2", pattern="2:4"), TruncatedSVD(1), ApplyMask()], False),
        ([Magnitude("1/2", pattern="2:4"), MinMax(4, zero="none"), ApplyMask()], True),
    ],
    ids=str,
)
def test_patterns(techniques: list[Technique], expected: bool) -> None:
    claim = keeps(Sequence(tuple(techniques)), "n:m")
    assert proved(claim) is expected
    assert (violation(claim) is None) is expected


def test_what_a_selection_establishes() -> None:
    """Against every way of dropping so many of each group."""
    looked = 0
    for size, m in itertools.product((1, 2, 3, 4, 6), (2, 3, 4, 6)):
        width = int(np.lcm(size, m))
        for dropped, n in itertools.product(range(size), range(m)):
            step = Magnitude(Fraction(dropped, size), pattern=f"{size - dropped}:{size}").steps()[0]
            groups = [list(itertools.combinations(range(size), size - dropped))] * (width // size)
            ways = [{g * size + i for g, left in enumerate(way) for i in left} for way in itertools.product(*groups)]
            worst = max(sum(i in way for i in range(at, at + m)) for way in ways for at in range(0, width, m))
            if kept._establishes(step, n, m):
                assert worst <= n
            elif size % m == 0 or m % size == 0:
                assert worst > n
            looked += 1
    assert looked > 150


# Removed rows and columns; techniques without steps


@dataclass(frozen=True)
class RemoveRows(Technique):
    """Remove every second row; ``careless`` leaves the low-rank term alone."""

    careless: bool = False

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"mask", "n:m", "shape"}), removes_rows=True)

    def encode(self, layer: LayerState) -> LayerState:
        rows = np.array([i % 2 == 1 for i in range(layer.weight.shape[0])], dtype=object)
        columns = np.full(layer.weight.shape[1], True, dtype=object)
        weight, mask = layer.weight.copy(), np.full(layer.weight.shape, True, dtype=object)
        for i in np.flatnonzero(~rows.astype(bool)):
            weight[i], mask[i] = 0, False
        if layer.format.mask is not None:
            mask = each(And, mask, layer.format.mask)
        factors = layer.format.factors
        if factors is not None and not self.careless:
            left = factors.left.copy()
            left[~rows.astype(bool)] = 0
            factors = Factors(left, factors.right)
        form = replace(layer.format, mask=mask, cut=Cut(rows, columns), factors=factors, rank=None)
        return replace(layer, weight=weight, format=form)


@dataclass(frozen=True)
class Opaque(Technique):
    """Another technique that shows none of its steps, and promises what it is given."""

    inner: Technique
    keeps: frozenset[str] = frozenset()
    zeros: frozenset[str] = frozenset()

    def promises(self) -> Declared:
        return replace(self.inner.promises(), keeps=self.keeps, zeros=self.zeros)

    @property
    def unit(self) -> int:
        return self.inner.unit

    def check(self, shape: tuple[int, ...]) -> None:
        self.inner.check(shape)

    def encode(self, layer: LayerState) -> LayerState:
        return self.inner.encode(layer)


@dataclass(frozen=True)
class Forgetful(Technique):
    """Leave the weights alone and forget their mask."""

    def promises(self) -> Declared:
        return Declared(keeps=frozenset({"factors"}), zeros=frozenset({"weights"}))

    def encode(self, layer: LayerState) -> LayerState:
        return replace(layer, format=replace(layer.format, mask=None, pattern=None, cut=None))


R = RemoveRows()
L = TruncatedSVD(1, residual=True)
HALF, ASYMMETRIC = Magnitude("1/2"), MinMax(3, zero="none")


@pytest.mark.parametrize(
    ("techniques", "invariant", "expected"),
    [
        ([R], "shape", True),
        ([R, HALF], "shape", True),
        ([R, AbsMax(3), HALF, MinMax(2), ApplyMask()], "shape", True),
        ([R, ASYMMETRIC], "shape", False),
        ([R, ASYMMETRIC, ApplyMask()], "shape", True),
        ([R, L], "shape", False),
        ([R, TruncatedSVD(1)], "shape", True),
        ([R, TruncatedSVD(1)], "mask", True),
        ([R, TruncatedSVD(1), AbsMax(3), TruncatedSVD(1)], "shape", True),
        ([R, TruncatedSVD(1), L], "shape", False),
        # Not proved, and no layer of these shapes shows it: the rows stay zero, not what was dropped in other rows.
        ([R, HALF, TruncatedSVD(1)], "mask", None),
        ([R, TruncatedSVD(1), HALF], "mask", True),
        ([R, TruncatedSVD(1), HALF, TruncatedSVD(1)], "mask", None),
        ([HALF, R, TruncatedSVD(1)], "mask", None),
        ([R, ASYMMETRIC, TruncatedSVD(1)], "shape", None),
        ([HALF, Forgetful()], "mask", True),
        ([Magnitude("1/2", pattern="1:2"), Forgetful(), AbsMax(3)], "n:m", True),
        ([HALF, Forgetful(), Magnitude("1/4"), L], "mask", None),
        ([HALF, Forgetful(), ASYMMETRIC, ApplyMask()], "mask", False),
        ([R, Forgetful()], "shape", True),
        ([L, R], "shape", True),
        ([R, Opaque(AbsMax(3), frozenset({"mask", "factors"}))], "shape", True),
        ([R, Opaque(AbsMax(3), frozenset({"mask"}))], "shape", None),
        ([R, Opaque(AbsMax(3), frozenset({"factors"}))], "shape", None),
        ([Opaque(HALF), AbsMax(3)], "mask", True),
        ([Opaque(HALF), ASYMMETRIC], "mask", False),
        ([Opaque(Magnitude("1/2", pattern="1:2")), AbsMax(3)], "n:m", True),
        ([HALF, Opaque(Magnitude("1/2", pattern="1:2"))], "n:m", True),
        ([Opaque(Magnitude("1/2", pattern="1:2")), Opaque(AbsMax(3), frozenset({"n:m"}))], "n:m", True),
        ([Opaque(Magnitude("1/2", pattern="1:2")), Opaque(AbsMax(3), frozenset({"grid"}))], "n:m", None),
        ([Opaque(AbsMax(3)), HALF], "grid", True),
        ([Opaque(ASYMMETRIC), HALF], "grid", False),
        ([Opaque(ASYMMETRIC)], "grid", True),
        ([HALF, Opaque(ASYMMETRIC)], "grid", None),  # a contract speaks of the weights that the mask keeps
        ([ASYMMETRIC, Opaque(AbsMax(3)), HALF], "grid", True),
        ([AbsMax(3), Opaque(ASYMMETRIC), HALF], "grid", False),
        ([TruncatedSVD(1), L], "rank", True),
        ([TruncatedSVD(1), AbsMax(3)], "rank", False),
        ([TruncatedSVD(1), AbsMax(3), TruncatedSVD(2)], "rank", True),
        ([TruncatedSVD(2), TruncatedSVD(1), ApplyMask()], "rank", True),
    ],
)
def test_shapes_grids_and_techniques_without_steps(
    techniques: list[Technique], invariant: str, expected: bool | None
) -> None:
    """Expected: proved, or contradicted by a layer; None where neither is so on small shapes."""
    claim = keeps(Sequence(tuple(techniques)), invariant)
    assert proved(claim) is bool(expected)
    assert (violation(claim) is None) is (expected is not False)


def test_a_contract_is_named() -> None:
    verdict = prove(keeps(Opaque(HALF) >> Opaque(AbsMax(3), frozenset({"mask"})), "mask"), stages=("rule",))
    assert any(a.about == "establishes the mask" for a in verdict.assumptions)
    assert any(a.about == "keeps the mask" for a in verdict.assumptions)


# What techniques with steps promise is proved


def setters(invariant: str) -> list[Technique]:
    """Techniques that set the invariant up, one of steps first."""
    found = [technique for technique in ALL if invariant in sets_up(technique)]
    return sorted(found, key=lambda technique: not technique.steps())


STEPPED = [t for kind in Technique.kernels for t in conventions(kind) if t.steps()]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", dict.fromkeys(map(type, STEPPED)), ids=lambda kind: kind.__name__)
def test_what_techniques_with_steps_promise_is_proved(kind: type[Technique], every: bool) -> None:
    """Each declared keeps of a mask, pattern, shape or grid follows from the steps, in every convention.

    With every change, in few in which every value of every parameter occurs.
    """
    looked = 0
    found = [t for t in STEPPED if type(t) is kind]
    for technique in found if every else [found[place] for place in covering(found)]:
        for invariant in sorted(technique.promises().keeps & set(INVARIANTS)):
            sources = [s for s in setters(invariant) if s.steps() or invariant == "shape"]
            assert invariant != "rank", "no step keeps a rank"
            for source in sources[:1]:
                claim = keeps(source >> technique, invariant)
                verdict = prove(claim, "any", timeout=30, stages=("rule",), second=None, explain=False)
                assert verdict.proved, verdict
                own = [a for a in verdict.assumptions if a.technique == str(technique)]
                assert all("does what its steps say" in a.about for a in own), "nothing that it promises is taken"
                looked += 1
    assert looked or not any(t.promises().keeps & set(INVARIANTS) for t in STEPPED if type(t) is kind)

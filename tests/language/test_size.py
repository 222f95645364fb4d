"""What formats cost, counted by hand; sizes of sequences against sizes of layers they were run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, comb, log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compcomp.errors import InputError, NotExactError
from compcomp.language.claim import fits
from compcomp.language.parameters import ANY
from compcomp.language.scheme import Scheme
from compcomp.language.size import (
    POSITIONS,
    dense_bits,
    layer_bits,
    layer_size,
    position_bits,
    size,
    theoretical_rate,
    value_bits,
)
from compcomp.language.technique import Sequence, Technique
from compcomp.language.text import parse_sequence
from compcomp.layers.state import Cut, Factors, Format, Grid, LayerState
from compcomp.proving.meaning import fails
from compcomp.techniques import AbsMax, ApplyMask, LeastSquaresDistill, Magnitude, MinMax, TruncatedSVD, Wanda
from tests.helpers import matrix

SHAPE = (4, 8)
HALF = torch.arange(32).reshape(SHAPE) % 2 == 0


def grid(levels: int, scales: int) -> Grid:
    return Grid(step=torch.ones(SHAPE), levels=levels, scales=scales)


@pytest.mark.parametrize(
    ("levels", "bits"), [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (127, 8), (32767, 16)]
)
def test_bits_are_enough_for_all_values_of_a_grid(levels: int, bits: int) -> None:
    assert value_bits(grid(levels, 1)) == bits
    assert 2**bits >= 2 * levels + 1 and (bits == 1 or 2 ** (bits - 1) < 2 * levels + 1)


def ranged(levels: int, scales: int, zero: bool) -> Grid:
    return Grid(torch.ones(SHAPE), levels, scales, offset=torch.zeros(SHAPE), zero=zero)


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        (Format(), 32 * 16),
        (Format(mask=HALF), 16 * 16 + 32),
        (Format(mask=HALF.numpy()), 16 * 16 + 32),
        (Format(grid=grid(7, 4)), 32 * 4 + 4 * 16),
        (Format(mask=HALF, grid=grid(7, 1)), 16 * 4 + 32 + 16),
        (Format(mask=torch.ones(SHAPE, dtype=torch.bool), grid=grid(7, 1)), 32 * 4 + 16),
        (Format(grid=ranged(15, 4, zero=True)), 32 * 4 + 4 * (16 + 4)),
        (Format(grid=ranged(15, 4, zero=False)), 32 * 4 + 4 * (16 + 16)),
        (Format(mask=HALF, grid=ranged(15, 1, zero=True)), 16 * 4 + 32 + 16 + 4),
        (Format(mask=HALF, grid=ranged(15, 1, zero=False)), 32 * 4 + 32 + 16 + 16),
        (Format(factors=Factors(np.zeros((4, 2)), np.zeros((2, 8)))), 32 * 16 + 2 * 12 * 16),
        (Format(rank=1), 12 * 16),
        (Format(rank=2), 24 * 16),
        (Format(rank=3), 32 * 16),
        (Format(rank=1, mask=HALF), 16 * 16 + 32),
        (Format(rank=1, grid=grid(7, 1)), 32 * 4 + 16),
    ],
)
def test_bits_of_a_format(form: Format, bits: int) -> None:
    assert layer_bits(form, SHAPE) == bits


def cut(rows: int, columns: int) -> Cut:
    """So many rows and columns are left."""
    return Cut(np.arange(4) < rows, np.arange(8) < columns)


EVERY = np.full(SHAPE, True)
"""Of a cut the mask drops the weights too."""


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        (Format(mask=HALF.numpy(), pattern=((2, 4),)), 16 * 16 + 16 * 2),  # two bits a kept value
        (Format(mask=HALF.numpy(), pattern=((2, 4),), grid=grid(7, 1)), 16 * 4 + 16 * 2 + 16),
        (Format(mask=HALF.numpy(), pattern=((1, 2), (2, 4))), 16 * 16 + 16),  # the cheaper one
        (Format(mask=EVERY, pattern=((4, 4),)), 32 * 16),  # nothing to say
        (Format(mask=HALF.numpy(), pattern=((2, 4),), grid=ranged(15, 1, zero=False)), 32 * 4 + 32 + 16 + 16),
        (Format(mask=EVERY, cut=cut(3, 8)), 24 * 16),
        (Format(mask=EVERY, cut=cut(4, 5)), 20 * 16),
        (Format(mask=HALF.numpy(), cut=cut(3, 5)), 9 * 16 + 15),
        (Format(mask=HALF.numpy(), cut=cut(3, 5), pattern=((2, 4),)), 9 * 16 + 15),  # no groups of four any more
        (Format(mask=HALF.numpy(), cut=cut(3, 8), pattern=((2, 4),)), 12 * 16 + 24),
        (Format(mask=EVERY, cut=cut(3, 8), grid=grid(7, 8)), 24 * 4 + 6 * 16),  # two scales a row
        (Format(mask=EVERY, cut=cut(3, 8), grid=grid(7, 1)), 24 * 4 + 16),
        (Format(mask=EVERY, cut=cut(3, 5), factors=Factors(np.zeros((4, 2)), np.zeros((2, 8)))), 15 * 16 + 2 * 8 * 16),
    ],
)
def test_bits_of_patterns_and_cuts(form: Format, bits: int) -> None:
    assert layer_bits(form, SHAPE) == bits


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (3, 8), (1, 2), (5, 16), (4, 4)])
def test_positions_of_a_group(kept: int, of: int) -> None:
    assert position_bits(kept, of, "combination") == ceil(log2(comb(of, kept)))
    assert position_bits(kept, of, "index") == kept * ceil(log2(of))
    assert position_bits(kept, of, "combination") <= position_bits(kept, of, "index")
    form = Format(mask=np.full((1, 16), True), pattern=((kept, of),))
    if kept < of:
        for positions in POSITIONS:
            assert layer_size(form, (1, 16), positions).values == 16 * 16 * kept // of


def test_positions_are_named() -> None:
    with pytest.raises(InputError, match="combination"):
        position_bits(2, 4, "bits")
    with pytest.raises(InputError, match="combination"):
        layer_bits(Format(), SHAPE, "bits")


def test_the_theoretical_rate_of_the_paper() -> None:
    """[laborde2025]: a quarter pruned at 4 bits is as small as 3 bits, 81.25 %."""
    assert dense_bits(SHAPE) == 512
    assert theoretical_rate(4, Fraction(1, 4)) == theoretical_rate(3, 0) == 0.8125
    assert theoretical_rate(16, 0) == 0
    assert size(parse_sequence("Magnitude(sparsity=1/4) >> AbsMax(bits=4)")).theoretical_rate == 1 - 3 / Fraction(16)
    assert size(AbsMax(3)).theoretical_rate == Fraction(13, 16)
    # The same for a layer, where the mask costs a bit a weight: not smaller, but larger than 3 bits.
    assert size(parse_sequence("Magnitude(sparsity=1/4) >> AbsMax(bits=4)")).limit == 4


# Sequences


SEQUENCES = [
    Magnitude("1/2") >> AbsMax(4, group=4),
    Magnitude("1/2", pattern="2:4") >> AbsMax(4),
    Magnitude("1/4", pattern="3:4") >> MinMax(3, group=8),
    Wanda("1/2") >> LeastSquaresDistill() >> MinMax(4, zero="none") >> ApplyMask(),
    AbsMax(4, group=2) >> TruncatedSVD(2, residual=True) >> TruncatedSVD(1, residual=True),
    Sequence((TruncatedSVD(2),)),
    AbsMax(4) >> TruncatedSVD(1),
    Magnitude("1/4") >> Magnitude("1/2"),
    Sequence(),
]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
@pytest.mark.parametrize("shape", [(8, 64), (16, 32), (64, 64)])
@pytest.mark.parametrize("positions", POSITIONS)
def test_sizes_of_sequences(sequence: Sequence, shape: tuple[int, int], positions: str) -> None:
    """At a shape and as a formula, against a layer that the kernels have compressed."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1], 6, dtype=torch.float64)
    form = sequence.kernel(LayerState.dense(weight, inputs)).format
    expected = layer_size(form, shape, positions)
    assert size(sequence, shape, positions=positions) == expected
    formula = size(sequence, positions=positions)
    m, n = formula.shape
    for name in ("bits", "values", "positions", "scales", "factors", "left", "rate", "per_weight"):
        value = getattr(formula, name)
        at = value.subs({m: shape[0], n: shape[1]}) if hasattr(value, "subs") else value
        assert at == getattr(expected, name), name


def test_bits_per_weight_in_the_limit() -> None:
    assert size(SEQUENCES[0]).limit == 3 + Fraction(16, 4)
    assert size(SEQUENCES[1]).limit == 3
    assert size(SEQUENCES[1], positions="combination").limit == Fraction(11, 4)
    assert size(SEQUENCES[5]).limit == 0
    assert str(size(SEQUENCES[4]).bits) == "12*m*n + 48*m + 48*n"
    assert size(SEQUENCES[1]).theoretical_rate == Fraction(7, 8)


def test_shares_that_do_not_divide_are_rounded_up() -> None:
    assert size(Magnitude("1/3"), (5, 5)).left == 17


@dataclass(frozen=True)
class Energy(TruncatedSVD):
    """Of a rank that depends on the weights."""

    def encode(self, layer: LayerState) -> LayerState:
        state = super().encode(layer)
        largest = layer.weight[0, 0] > 0
        return replace(state, format=Format(mask=np.full(layer.weight.shape, largest)))


def test_what_has_no_size() -> None:
    for sequence, message in (
        (Sequence((Magnitude("1/2"), Wanda("1/2"))), "depends on the weights"),
        (Sequence((Energy(1),)), "depends on the weights"),
        (Sequence((AbsMax(ANY),)), "Any"),
        (Sequence((AbsMax(4, group=4096),)), "4096"),
    ):
        with pytest.raises(InputError, match=message):
            size(sequence)
    with pytest.raises(InputError, match="groups of 4"):
        size(Magnitude("1/2", pattern="2:4"), (2, 6))


# Schemes


SCHEMES = ["W4", "W3", "W4 2:4", "W8 50%", "W4 50%/row", "r1", "W4 +r2", "2:4", "1:4 50%", "A8"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([t for s in SEQUENCES for t in s]), min_size=1, max_size=4),
    st.sampled_from(SCHEMES),
    st.sampled_from([(2, 8), (4, 8), (3, 16)]),
)
def test_what_fits_takes_no_more_than_its_scheme(
    techniques: list[Technique], scheme: str, shape: tuple[int, int]
) -> None:
    """Of a layer that fits, all that tells its weights takes at most what the scheme says."""
    sequence, random = Sequence(tuple(techniques)), np.random.default_rng(0)
    weight, inputs = (random.integers(-9, 10, size).tolist() for size in (shape, (shape[1], 3)))
    try:
        exact = sequence.encode(LayerState.dense(matrix(weight), matrix(inputs)))
    except (InputError, NotExactError):
        return
    asked = Scheme.of(scheme)
    if fails(fits(sequence, asked), [[exact]]):
        return
    grid, factors = exact.format.grid, exact.format.factors
    width = 16 if asked.weights == 16 or grid is None else value_bits(grid)
    assert width <= asked.weights
    kept = exact.weight != 0
    count, bits = shape[0] * shape[1], [shape[0] * shape[1] * width]
    if asked.sparsity:
        assert kept.sum() <= count - sum(int(len(g) * asked.sparsity) for g in asked.share_of.groups(shape))
        bits.append(int(kept.sum()) * width + count)
    if asked.pattern is not None:
        n, m = asked.pattern
        assert (kept.reshape(-1, m).sum(axis=1) <= n).all()
        bits.append(count // m * (n * width + position_bits(n, m)))
    if asked.rank is not None:
        assert np.linalg.matrix_rank(exact.weight.astype(float), tol=1e-6) <= asked.rank
        bits.append(16 * asked.rank * sum(shape))
    scales = 0 if grid is None or asked.weights == 16 else 32 * grid.scales
    stored = min(min(bits) + scales, 16 * count) + (0 if factors is None else 16 * sum(shape) * factors.rank)
    assert stored <= asked.bits(shape, 0 if grid is None else grid.scales)


def test_bits_of_a_scheme() -> None:
    assert Scheme.of("W4 2:4").bits((4, 8), scales=4) == 16 * 4 + 16 * 2 + 4 * 32
    assert Scheme.of("W4 2:4").bits((4, 8), positions="combination") == 16 * 4 + 8 * 3
    assert Scheme.of("W16A8").bits((4, 8)) == 512
    assert Scheme.of("W4 +r1").bits((4, 8)) == 128 + 12 * 16
    assert Scheme.of("75%/row").bits((4, 6)) == 4 * 2 * 16 + 24

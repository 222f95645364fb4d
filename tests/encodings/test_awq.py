from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from compcomp.encodings.awq import ALPHAS, AWQ
from compcomp.errors import NotExactError
from compcomp.language.loss import LOSSES
from compcomp.language.text import parse_sequence
from compcomp.layers.basis import Scaling
from compcomp.layers.state import LayerState
from compcomp.techniques import AbsMax
from tests.helpers import HUGE, layer, refused

LOST = LOSSES["output_l2"].of


def scales(technique: AWQ, state: LayerState) -> list[Any]:
    transform = technique.encode(state).format.transform
    assert transform is not None
    (part,) = transform.parts
    assert isinstance(part, Scaling)
    return list(part.scales)


def test_the_best_of_the_grid_is_taken() -> None:
    """Brute force: each alpha alone, then the quantizer that it was chosen for."""
    start = layer([["3/4", 1, "1/3"], ["2/5", "-7/5", "1/4"]], [[16, 0], [1, -1], [2, 6]])  # means 8, 1, 4
    singles = {alpha: AWQ((alpha,), bits=3, group=None) for alpha in (0, 1)}
    losses = {alpha: LOST((single >> AbsMax(3)).encode(start)) for alpha, single in singles.items()}
    assert losses[0] != losses[1]
    best = min(losses, key=lambda alpha: losses[alpha])
    for order in ((0, 1), (1, 0)):
        technique = AWQ(order, bits=3, group=None)
        assert scales(technique, start) == scales(singles[best], start)
        assert LOST((technique >> AbsMax(3)).encode(start)) == losses[best]


def test_scales_are_powers_of_mean_magnitudes() -> None:
    start = layer([[1, 2, 3]], [[8, 0], [1, -1], [0, 0]])
    assert scales(AWQ((1,), group=None), start) == [4, 1, 1]
    assert scales(AWQ(("1/2",), group=None), start) == [2, 1, 1]
    with pytest.raises(NotExactError):
        AWQ(group=None).encode(start)
    powers = AWQ((1,), group=None, scales="power_of_two")
    assert scales(powers, layer([[1, 2]], [[3, 3], [5, 0]])) == [4, 2]  # of 3 and 5/2


def test_the_first_of_equally_good_ones_is_taken() -> None:
    """Nothing is lost whatever the scales are."""
    start = layer([[1, 0]], [[4], [1]])
    assert scales(AWQ((1, 0), group=None), start) == [4, 1]
    assert scales(AWQ((0, 1), group=None), start) == [1, 1]


def test_nothing_is_rounded_yet() -> None:
    start = layer([["3/4", 1, "1/3", 2]], [[16], [1], [2], [3]])
    after = AWQ((0, 1), bits=2, group=2).encode(start)
    assert after.effective().tolist() == start.weight.tolist() and after.format.grid is None
    assert LOST(after) == 0


def test_its_text_is_read_back() -> None:
    for technique in (AWQ(), AWQ((Fraction(1, 2),)), AWQ((Fraction(0), Fraction(2, 3)), bits=3, group=None)):
        assert parse_sequence(str(technique)).techniques == (technique,)
    assert AWQ().alphas == ALPHAS


@pytest.mark.parametrize("given", [(), (2,), (-1,), ("x",), "1/2", None, 1, (True,), ("1/1001",), (HUGE.values[0],)])
def test_bad_alphas(given: Any) -> None:
    refused(lambda: AWQ(given), "AWQ.alphas", "[0, 1]")


def test_other_bad_parameters() -> None:
    refused(lambda: AWQ(bits=1), "AWQ.bits", "from 2 to 16")
    refused(lambda: AWQ(bits=Any), "AWQ.bits")  # type: ignore[arg-type]
    refused(lambda: AWQ(group=0), "AWQ.group")
    refused(lambda: AWQ(scales="x"), "AWQ.scales")
    refused(lambda: AWQ(group=2).encode(layer([[1, 2, 3]], [[1], [1], [1]])), "rows of 3 weights", "groups of 2")
    refused(lambda: AWQ(group=None).encode(layer([[1, 2]])), "no inputs")

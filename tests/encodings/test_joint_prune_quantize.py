from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.joint_prune_quantize import JointPruneQuantize
from compcomp.encodings.magnitude import Magnitude
from compcomp.language.loss import LOSSES
from compcomp.language.parameters import ANY
from compcomp.language.text import parse_sequence
from compcomp.techniques import Wanda
from tests.helpers import HUGE, layer, outcomes, refused, row


def joint(share: Any = "1/2", bits: Any = 2, **others: Any) -> JointPruneQuantize:
    return JointPruneQuantize(share, bits, **others)


def test_what_rounds_badly_goes() -> None:
    """Step 6: 4 would go to 6 and gain 12 = 16 - 4; 3 gains nothing. By magnitude alike, but not of (6, 3, 2, -4)."""
    assert row(joint("1/2").encode(layer([[6, 3, 2, -4]]))) == [6, 0, 0, -6]
    assert row(joint("1/4", 3).encode(layer([[9, 5, 4, 3]]))) == [9, 6, 3, 0]


def test_it_can_beat_both_orders() -> None:
    """6 is larger than 5, but rounds to 10, where 5 rounds to itself."""
    start = layer([[10, 6, 5, 5]])
    prune, round_ = Magnitude("1/2"), AbsMax(2, group=2)
    after = joint("1/2", group=2).encode(start)
    assert row(after) == [10, 0, 0, 5]
    losses = [LOSSES["weight_l2"].of(s.encode(start)) for s in (prune >> round_, round_ >> prune)]
    assert LOSSES["weight_l2"].of(after) == 61 and losses == [66, 66]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("weights", [[9, 7, 5, 3, 3, 1], [8, -5, 3, -2, 2, 1], [4, 4, 4, -4, 1, 0], [0, 0, 0, 0, 0, 7]])
def test_no_mask_and_ratio_is_better(weights: list[int], bits: int) -> None:
    ratios, levels = (Fraction(1), Fraction(3, 4), Fraction(1, 2)), 2 ** (bits - 1) - 1
    best = None
    for ratio in ratios:
        values = [k * ratio * max(map(abs, weights)) / levels for k in range(-levels, levels + 1)]
        error = [min((w - v) ** 2 for v in values) for w in weights]
        for drop in combinations(range(6), 3):
            loss = sum(weights[i] ** 2 if i in drop else error[i] for i in range(6))
            best = loss if best is None else min(best, loss)
    after = joint("1/2", bits, ratios=ratios).encode(layer([weights]))
    assert LOSSES["weight_l2"].of(after) == best
    assert sum(w == 0 for w in row(after)) >= 3


def test_a_ratio_for_every_scale_group() -> None:
    """(4, 3, 3, 3) is best clipped to 3, (4, 1, 1, 0) not at all."""
    after = joint(0, pattern="4:4", group=4, ratios="1, 3/4").encode(layer([[4, 3, 3, 3, 4, 1, 1, 0]]))
    assert row(after) == [3, 3, 3, 3, 4, 0, 0, 0]
    assert after.format.grid is not None
    assert after.format.grid.step.tolist() == [[3] * 4 + [4] * 4] and after.format.grid.scales == 2


def test_of_equal_errors_the_first_ratio_stays() -> None:
    after = joint(0, pattern="2:2", ratios="1, 1/2").encode(layer([[4, 2]]))  # 2 rounds to 0 or 4 is clipped to 2
    assert row(after) == [4, 0]
    assert row(joint(0, pattern="2:2", ratios="1/2, 1").encode(layer([[4, 2]]))) == [2, 2]


def test_masks_accumulate_and_factors_stay() -> None:
    start = Magnitude("1/4").encode(layer([[4, 3, 2, 1]]))
    after = joint("1/2", pattern="2:4").encode(start)
    assert after.format.mask is not None and after.format.mask.tolist() == [[True, True, False, False]]
    assert after.format.pattern == ((2, 4),) and after.format.factors is None


def test_free_choices() -> None:
    assert outcomes(joint("1/2", ties="any").encode, [[3, 3]]) == {(3, 0), (0, 3)}
    assert outcomes(joint("1/2").encode, [[3, 3]]) == {(0, 3)}
    assert outcomes(joint(0, rounding="any").encode, [[2, 1]]) == {(2, 0), (2, 2)}


def test_text() -> None:
    technique = joint("1/2", 4, pattern="2:4", ratios=(1, "3/4", 0.5))
    assert technique.ratios == "1, 3/4, 1/2"
    assert parse_sequence(str(technique)).techniques == (technique,)
    assert str(joint(ANY, ANY)) == "JointPruneQuantize(sparsity=Any, bits=Any)"


def test_what_fits() -> None:
    assert joint(pattern="2:4", group=6).unit == 12
    assert not joint(group=4).fits((2, 6)) and not joint(pattern="2:4").fits((2, 6)) and joint().fits((2, 3))
    refused(lambda: joint(group=4).encode(layer([[1, 2]])), "groups of 4")


def test_it_looks_at_no_inputs() -> None:
    assert not joint().needs_inputs and Wanda("1/2").needs_inputs


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("sparsity", x) for x in (1, -1, "x", None)),
        *(("bits", x) for x in (1, 17, "4", None)),
        *(("pattern", x) for x in ("4:2", "2:5", None)),
        *(("per", x) for x in ("token", None)),
        *(("group", x) for x in (0, -1, 1.0, True)),
        *(("ratios", x) for x in ("", "0", "2", "1, 1", "x", (), None, 1, [-1], "1e999999999")),
        *(("ties", x) for x in ("all", None)),
        *(("rounding", x) for x in ("up", None)),
    ],
)
def test_bad_parameters(name: str, given: Any) -> None:
    refused(
        lambda: joint(**{name: given}) if name != "sparsity" and name != "bits" else _with(name, given), "JointPruneQ"
    )


def _with(name: str, given: Any) -> JointPruneQuantize:
    return joint(given) if name == "sparsity" else joint("1/2", given)


def test_huge_numbers() -> None:
    refused(lambda: joint("1/2", HUGE.values[0]), "JointPruneQuantize.bits")
    refused(lambda: joint(ratios=[HUGE.values[0]]), "JointPruneQuantize.ratios")


def test_scale_groups_that_cannot_choose_on_their_own() -> None:
    refused(lambda: joint("1/2", ratios="1, 1/2", group=4), "one ratio, or a selection inside blocks of 4")
    refused(lambda: joint("1/2", per="row", ratios="1, 1/2", group=4), "one ratio")
    joint("1/2", per="row", ratios="1, 1/2")

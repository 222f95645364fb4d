"""The text form: round trips, and one clear line for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import compcomp.techniques
from compcomp.errors import InputError
from compcomp.language.claim import Scope
from compcomp.language.scheme import Scheme
from compcomp.language.technique import Technique
from compcomp.language.text import parse_claim, parse_sequence

TEXTS = [
    "Magnitude(sparsity=1/2)",
    "Magnitude(sparsity=1/2, pattern='2:4', ties='all')",
    "Wanda(sparsity=3/4, pattern='1:4')",
    "AbsMax(bits=4, group=128, rounding='half_up')",
    "TruncatedSVD(rank=8, residual=True)",
    "LeastSquaresDistill()",
]


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5))
def test_round_trip(texts: list[str]) -> None:
    sequence = parse_sequence(" >> ".join(texts))
    assert str(sequence) == " >> ".join(texts)
    assert parse_sequence(str(sequence)) == sequence


@pytest.mark.parametrize("text", ["0.5", "1/2", "'1/2'", "'0.5'", "2/4"])
def test_sparsity_may_be_written_in_several_ways(text: str) -> None:
    assert str(parse_sequence(f"Magnitude(sparsity={text})")) == "Magnitude(sparsity=1/2)"


BAD = [
    "",
    "Unknown(x=1)",
    "Magnitude",
    "Magnitude()",
    "Magnitude(1/2)",
    "Magnitude(sparsity=1)",
    "Magnitude(sparsity=-0.1)",
    "Magnitude(sparsity=1.5)",
    "Magnitude(sparsity='x')",
    "Magnitude(sparsity=True)",
    "Magnitude(sparsity=1e999)",
    "Magnitude(sparsity=1/0)",
    "Magnitude(sparsity=1/2, pattern='5:4')",
    "Magnitude(sparsity=1/2, pattern='1:4')",
    "Magnitude(sparsity=1/2, pattern=4)",
    "Magnitude(sparsity=1/2, per='column')",
    "Magnitude(sparsity=1/2, nonsense=1)",
    "Magnitude(sparsity=1/2, sparsity=1/2)",
    "Magnitude(**{'sparsity': 1})",
    "Magnitude(sparsity=1/2) << AbsMax(bits=4)",
    "Magnitude(sparsity=1/2) + AbsMax(bits=4)",
    "Magnitude(sparsity=1/2) >> 3",
    "AbsMax(bits=1)",
    "AbsMax(bits=100000)",
    "AbsMax(bits=4.0)",
    "AbsMax(bits='4')",
    "AbsMax(bits=10**10**10)",
    "AbsMax(bits=9" + "9" * 5000 + ")",
    "AbsMax(bits=4, group=0)",
    "AbsMax(bits=4, rounding='up')",
    "TruncatedSVD(rank=0)",
    "TruncatedSVD(rank=1, residual='yes')",
    "__import__('os').system('true')",
    "().__class__",
    "[AbsMax(bits=4) for _ in (1,)]",
    "AbsMax(bits=(lambda: 4)())",
    "(" * 5000,
    "AbsMax(bits=4)" + " >> AbsMax(bits=4)" * 1000,
    "\x00",
    "é≥💥",
]


@pytest.mark.parametrize("text", BAD, ids=[repr(text[:30]) for text in BAD])
def test_bad_sequences_get_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sequence(text)
    message = str(caught.value)
    assert "\n" not in message
    assert "allowed: " in message
    assert len(message) < 1000  # the names of all techniques are among it where one is unknown


@given(st.text(max_size=200))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for parse in (parse_sequence, parse_claim, Scope.of):
        try:
            parse(text)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", ["W4", "W4A8", "W16A8", "W4 2:4", "W4 2:4 50%", "33.5%/row", "1/3", "2/7/row", "r8", "W4 +r16", "r3 +r2"]
)
def test_schemes(text: str) -> None:
    claim = parse_claim(f"AbsMax(bits=4) fits {text}")
    assert str(claim) == f"AbsMax(bits=4) fits {text}"
    assert parse_claim(str(claim)) == claim


@pytest.mark.parametrize(("text", "same"), [("A8", "W16A8"), ("W4 A8", "W4A8"), ("W4A16", "W4"), ("1/2", "50%")])
def test_schemes_in_another_spelling(text: str, same: str) -> None:
    assert str(Scheme.of(text)) == same
    assert Scheme.of(text) == Scheme.of(same)


@pytest.mark.parametrize(
    "text",
    [
        *("", "W", "W0", "W17", "W4 W4", "W4A16 A8", "A0", "4:2", "0:4", "2:999", "2:4 1:4", "0%", "100%", "150%"),
        *("50% 1/3", "50%/column", "1/0", "0/3", "4/3", "r0", "+r0", "r", "r8 r8", "w4", "INT4", "W4,2:4", "W4" * 200),
    ],
)
def test_bad_schemes(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Scheme.of(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        parse_claim(f"AbsMax(bits=4) fits {text}")


@pytest.mark.parametrize("text", ["any", "1x4", "2x2", "block:32"])
def test_scopes(text: str) -> None:
    assert str(Scope.of(text)) == text


@pytest.mark.parametrize(
    "given",
    ["", "x", "0x4", "4x", "block:0", "block:99999999", "99999999x2", (0, 1), ("block", -1), 3, None, (1, 2, 3)],
)
def test_bad_scopes(given: object) -> None:
    with pytest.raises(InputError, match="scope"):
        Scope.of(given)


@pytest.mark.parametrize(("given", "text"), [((2, 4), "2x4"), (("block", 8), "block:8"), ("any shape", "any")])
def test_scopes_as_tuples(given: object, text: str) -> None:
    assert str(Scope.of(given)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AbsMax(bits=4)",
        "AbsMax(bits=4) beats AbsMax(bits=3)",
        "AbsMax(bits=4) keeps the mask",
        "a dominates b equals c",
    ],
)
def test_bad_claims(text: str) -> None:
    with pytest.raises(InputError):
        parse_claim(text)


def test_every_encoding_is_registered_with_the_kernel_of_its_name() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "encodings").glob("*.py")}
    own = {kind: kernel for kind, kernel in Technique.kernels.items() if kind.__module__.startswith("compcomp.")}
    assert {kind.__module__.rpartition(".")[2] for kind in own} == files
    assert all(kernel.rpartition(".")[2] == kind.__module__.rpartition(".")[2] for kind, kernel in own.items())
    assert sorted(kind.__name__ for kind in own) == sorted(compcomp.techniques.__all__)

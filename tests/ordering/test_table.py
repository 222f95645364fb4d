"""Does a technique destroy what another did: the table of every ordered pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

import compcomp.techniques  # noqa: F401  (fills the registry)
from compcomp.language.samples import conventions, representatives, sample, sets_up
from compcomp.language.technique import Fixtures, Technique
from compcomp.ordering.table import Table, keeps_table, matrix_line, registered
from compcomp.techniques import AbsMax, LeastSquaresDistill, Magnitude, MinMax, TruncatedSVD

P, N = Magnitude("1/2"), Magnitude("1/2", pattern="2:4")
Q, M, O = AbsMax(4), MinMax(4), MinMax(4, zero="none")
D, L = LeastSquaresDistill(), TruncatedSVD(2)

KNOWN = {
    (P, Q, "mask"): "PROVED",  # rounding to nearest keeps a mask
    (P, M, "mask"): "PROVED",  # as does a grid with an exact zero point
    (P, O, "mask"): "REFUTED",  # a grid without an exact zero does not
    (N, O, "n:m"): "REFUTED",
    (N, Q, "n:m"): "PROVED",
    (N, D, "n:m"): "PROVED",
    (Q, P, "grid"): "PROVED",
    (O, P, "grid"): "REFUTED",
    (Q, L, "grid"): "REFUTED",
    (L, P, "rank"): "REFUTED",
    (L, N, "rank"): "REFUTED",
    (L, Q, "rank"): "REFUTED",
    (L, D, "rank"): "REFUTED",
    (P, D, "mask"): "PROVED",
    (D, Q, "mask"): "-",
    (Q, P, "mask"): "-",
}


@pytest.fixture(scope="module")
def table() -> Table:
    with ThreadPoolExecutor(1) as here:
        return keeps_table([P, N, Q, M, O, D, L], executor=here)


@pytest.mark.parametrize(("pair", "expected"), KNOWN.items(), ids=lambda x: " ".join(map(str, x)))
def test_what_is_known(table: Table, pair: tuple[Technique, Technique, str], expected: str) -> None:
    first, second, invariant = pair
    cell = table.of(str(first), str(second), invariant)
    assert cell.status == expected
    assert bool(cell.detail) is (expected != "-")


def test_every_pair_is_there_where_something_is_set_up(table: Table) -> None:
    assert table.firsts("mask") == [str(P), str(N)]
    assert table.firsts("n:m") == [str(N)]
    assert table.firsts("grid") == [str(Q), str(M), str(O)]
    assert table.firsts("rank") == [str(L)]
    assert len(table.cells) == (2 + 1 + 3 + 1) * 7


def test_a_grid_in_place_of_another_is_distinguished(table: Table) -> None:
    assert table.of(str(Q), str(M), "grid").new
    assert not table.of(str(Q), str(P), "grid").new
    assert not table.of(str(Q), str(D), "grid").new
    assert not table.of(str(L), str(L), "rank").new
    wider = keeps_table([L, TruncatedSVD(3)], invariants=["rank"])
    assert wider.of("TruncatedSVD(rank=3)", str(L), "rank").status == "PROVED"


def test_plain_data(table: Table) -> None:
    data = table.to_json()
    assert data["techniques"][0] == str(P)
    assert sum(data["counts"].values()) == len(data["cells"])
    assert {"claim", "status", "detail", "new"} <= set(data["cells"][0])


def test_progress_is_reported() -> None:
    reported: list[tuple[int, int]] = []
    keeps_table([P, Q], invariants=["mask"], progress=lambda done, total: reported.append((done, total)))
    assert reported == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.exhaustive
def test_hardly_a_cell_of_the_whole_table_is_undecided() -> None:
    table = keeps_table()
    counts = table.counts()
    decided = counts.get("PROVED", 0) + counts.get("REFUTED", 0)
    assert not set(counts) & {"DISAGREE", "VACUOUS"}
    assert decided >= 0.9 * len(table.cells), [c.claim for c in table.cells.values() if c.status == "UNKNOWN"]


def test_matrices_on_one_line() -> None:
    half = Fraction(1, 2)
    assert matrix_line(((Fraction(1), half),)) == "(1, 1/2)"
    assert matrix_line(((Fraction(1), half), (Fraction(0), Fraction(3)))) == "(1, 1/2; 0, 3)"
    wide = tuple(half if k == 10 else Fraction(0) for k in range(64))
    assert matrix_line((wide,)) == "1 x 64 with [0, 10] 1/2"
    assert matrix_line(((Fraction(0),) * 64,)) == "1 x 64 with zeros alone"


# Representatives


@pytest.mark.parametrize("kind", Technique.kernels, ids=lambda kind: kind.__name__)
def test_representatives(kind: type[Technique]) -> None:
    """They fit small layers, and differ in what they set up or promise; the first is the sample."""
    found = representatives(kind)
    assert found[0] == sample(kind)
    assert len(set(map(str, found))) == len(found)
    for technique in found:
        assert type(technique) is kind
        assert any(technique.fits((rows, columns)) for rows in (1, 2, 4) for columns in range(1, 257))
        sets_up(technique)


def test_ways_to_behave_are_found() -> None:
    assert [str(t) for t in representatives(Magnitude)] == [str(P), str(N)]
    assert [str(t) for t in representatives(MinMax)] == [str(M), str(O)]
    assert [str(t) for t in representatives(TruncatedSVD)][:2] == [str(L), "TruncatedSVD(rank=2, residual=True)"]
    assert set(registered()) >= {P, N, M, O, L}


def test_a_class_may_name_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AbsMax, "fixtures", Fixtures(representatives=({"bits": 3}, {"bits": 8, "group": 4})))
    assert representatives(AbsMax) == [AbsMax(3), AbsMax(8, group=4)]
    assert sample(AbsMax) == AbsMax(3)


def test_conventions_leave_out_what_a_class_refuses() -> None:
    assert all(t.sparsity == Fraction(1, 2) for t in conventions(Magnitude, pattern=["2:4"]))  # type: ignore[attr-defined]

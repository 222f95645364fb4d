"""Solve linear systems in exact numbers."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from compcomp.errors import NotExactError
from compcomp.terms import Term

LONGEST = 8192
"""The largest number of bits of a numerator or denominator. With more, one replay may take hours."""


def require_short(values: Iterable[Term]) -> None:
    """Raise NotExactError if an exact number has more than :data:`LONGEST` bits."""
    for x in values:
        if isinstance(x, Fraction) and max(x.numerator.bit_length(), x.denominator.bit_length()) > LONGEST:
            raise NotExactError(f"a number of more than {LONGEST} bits")


def row_echelon(rows: list[list[Fraction]]) -> tuple[list[list[Fraction]], list[int]]:
    """Return the reduced row echelon form (Gauss and Jordan) and the pivot columns. Zero rows come last."""
    rows, pivots = [list(row) for row in rows], list[int]()
    for column in range(len(rows[0]) if rows else 0):
        top = len(pivots)
        pivot = next((i for i in range(top, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[top], rows[pivot] = rows[pivot], rows[top]
        lead = rows[top][column]
        rows[top] = [x / lead for x in rows[top]]
        for i in range(len(rows)):
            if i != top and (factor := rows[i][column]):
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[top], strict=True)]
        pivots.append(column)
    return rows, pivots


def solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """Return one solution of a consistent linear system."""
    rows, pivots = row_echelon([[*row, b] for row, b in zip(matrix, right, strict=True)])
    solution = [Fraction(0)] * len(right)
    for row, column in zip(rows, pivots, strict=False):
        solution[column] = row[-1]
    return solution


def nullspace(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Return a basis of the vectors that the matrix maps to zero."""
    rows, pivots = row_echelon(matrix)
    basis = []
    for free in (j for j in range(len(matrix[0])) if j not in pivots):
        vector = [Fraction(int(j == free)) for j in range(len(matrix[0]))]
        for row, column in zip(rows, pivots, strict=False):
            vector[column] = -row[free]
        basis.append(vector)
    return basis

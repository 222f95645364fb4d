"""Define partitions of weights into the groups over which a selection or a scale is computed."""

from __future__ import annotations

from dataclasses import dataclass

from compcomp.errors import InputError

Index = tuple[int, int]


@dataclass(frozen=True)
class Partition:
    """Divide an (out x in) weight into groups, in row-major order inside a group.

    Args:
        kind: "tensor" (one group), "row" (one group for each output row) or "block" (``size`` consecutive weights of a
            row).
        size: the size of a block, None for the other kinds.
    """

    kind: str
    size: int | None = None

    @classmethod
    def tensor(cls) -> Partition:
        """Return the partition into one group."""
        return cls("tensor")

    @classmethod
    def rows(cls) -> Partition:
        """Return the partition into output rows."""
        return cls("row")

    @classmethod
    def blocks(cls, size: int) -> Partition:
        """Return the partition into blocks of ``size`` consecutive weights of a row."""
        return cls("block", size)

    def __str__(self) -> str:
        return {"tensor": "the whole tensor", "row": "each row"}.get(self.kind, f"blocks of {self.size}")

    def check(self, shape: tuple[int, int], where: object) -> None:
        """Raise InputError if the rows of a weight do not divide into the groups.

        Args:
            shape: the shape of the weight (out, in).
            where: the technique that an error names.
        """
        if self.size is not None and shape[1] % self.size:
            raise InputError(
                f"rows of {shape[1]} weights",
                f"rows that divide into groups of {self.size}",
                f"{where} on a layer of shape {shape[0]}x{shape[1]} (out x in)",
            )

    def group_size(self, shape: tuple[int, int]) -> int:
        """Return the number of weights of a group, for a weight of this shape (out, in)."""
        rows, columns = shape
        return {"tensor": rows * columns, "row": columns}.get(self.kind) or self.size or 0

    def groups(self, shape: tuple[int, int]) -> list[list[Index]]:
        """Return the (row, column) indices of each group, for a weight of this shape (out, in)."""
        rows, columns = shape
        flat = [(i, j) for i in range(rows) for j in range(columns)]
        size = self.group_size(shape)
        return [flat[start : start + size] for start in range(0, len(flat), size)]

    def refines(self, other: Partition) -> bool:
        """Return True if, for every shape, each group of this partition lies inside one group of the other."""
        order = {"block": 0, "row": 1, "tensor": 2}
        if self.size is not None and other.size is not None:
            return other.size % self.size == 0
        return order[self.kind] <= order[other.kind]

"""Results that code reads by attribute, and users also by key, as in their JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Record(Mapping[str, Any]):
    """Base of frozen dataclasses that can be read like their own JSON: ``row.losses`` and ``row["losses"]``.

    Two records, or a record and a dict, are equal if their JSON forms are. Subclasses are declared with
    ``@dataclass(frozen=True, eq=False)``, so that this equality holds.
    """

    def to_json(self) -> dict[str, Any]:
        """Return lists, dicts, texts and numbers. Floats that are not finite are left as floats."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __len__(self) -> int:
        return len(self.to_json())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            return self.to_json() == other.to_json()
        return self.to_json() == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

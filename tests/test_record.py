"""Records: read by attribute and, like their JSON form, by key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from compcomp.record import Record


@dataclass(frozen=True, eq=False)
class Point(Record):
    x: float
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"x": self.x, **({"labels": list(self.labels)} if self.labels else {})}


def test_keys_are_those_of_the_json_form() -> None:
    point = Point(1.5, ("a",))
    assert point["x"] == point.x == 1.5 and point["labels"] == ["a"] and point.get("y", 3) == 3
    assert dict(point) == {**point} == point.to_json() and list(point) == ["x", "labels"] and len(point) == 2
    assert "labels" not in Point(1.0) and "x" in Point(1.0)
    with pytest.raises(KeyError):
        point["y"]
    with pytest.raises(TypeError):
        point["x"] = 2  # type: ignore[index]


def test_equal_to_what_has_the_same_json_form() -> None:
    point = Point(1.5, ("a",))
    assert point == Point(1.5, ("a",)) == {"x": 1.5, "labels": ["a"]} and point == {"x": 1.5, "labels": ["a"]}
    assert point != Point(1.5) and point != {"x": 1.5} and point != 1.5 and replace(point, labels=()) == Point(1.5)
    with pytest.raises(TypeError):
        hash(point)

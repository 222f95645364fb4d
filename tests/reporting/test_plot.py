"""The ranking as a picture."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from compcomp.errors import InputError
from compcomp.reporting.plot import save_ranking_png
from tests.reporting.samples import FIVE, plan


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_ranking_png(plan(metric="$cost"), tmp_path / "new" / "ranking.png")
    assert (tmp_path / "new" / "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_use_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="without measured numbers"):
        save_ranking_png(plan(FIVE[:3], values=[math.nan] * 5), tmp_path / "a.png")
    with pytest.raises(InputError, match="an image file"):
        save_ranking_png(plan(FIVE[:3]), tmp_path / "a.unheard-of")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="no matplotlib"):
        save_ranking_png(plan(FIVE[:3]), tmp_path / "a.png")

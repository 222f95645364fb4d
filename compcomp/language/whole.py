"""The former place of :mod:`compcomp.layers.whole`, for techniques that are written elsewhere."""

from __future__ import annotations

from compcomp.layers.whole import Group as Group
from compcomp.layers.whole import Outputs as Outputs
from compcomp.layers.whole import Part as Part
from compcomp.layers.whole import WholeModel as WholeModel

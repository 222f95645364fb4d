"""Re-export :mod:`compcomp.layers.whole`, which was here before, for techniques of other packages."""

from __future__ import annotations

from compcomp.layers.whole import Group as Group
from compcomp.layers.whole import Outputs as Outputs
from compcomp.layers.whole import Part as Part
from compcomp.layers.whole import WholeModel as WholeModel

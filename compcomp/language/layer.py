"""Re-export :mod:`compcomp.layers.state`, which was here before, for techniques of other packages."""

from __future__ import annotations

from compcomp.layers.state import INVARIANTS as INVARIANTS
from compcomp.layers.state import NEEDS_INPUTS as NEEDS_INPUTS
from compcomp.layers.state import Array as Array
from compcomp.layers.state import Cut as Cut
from compcomp.layers.state import Factors as Factors
from compcomp.layers.state import Format as Format
from compcomp.layers.state import Grid as Grid
from compcomp.layers.state import LayerState as LayerState
from compcomp.layers.state import Magnitudes as Magnitudes

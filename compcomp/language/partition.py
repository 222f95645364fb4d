"""Re-export :mod:`compcomp.layers.partition`, which was here before, for techniques of other packages."""

from __future__ import annotations

from compcomp.layers.partition import Index as Index
from compcomp.layers.partition import Partition as Partition

"""The former place of :mod:`compcomp.layers.partition`, for techniques that are written elsewhere."""

from __future__ import annotations

from compcomp.layers.partition import Index as Index
from compcomp.layers.partition import Partition as Partition

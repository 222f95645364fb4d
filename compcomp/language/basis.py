"""Re-export :mod:`compcomp.layers.basis`, which was here before, for techniques of other packages."""

from __future__ import annotations

from compcomp.layers.basis import Array as Array
from compcomp.layers.basis import Part as Part
from compcomp.layers.basis import Rotation as Rotation
from compcomp.layers.basis import Scaling as Scaling
from compcomp.layers.basis import Transform as Transform
from compcomp.layers.basis import composed as composed
from compcomp.layers.basis import unlike as unlike

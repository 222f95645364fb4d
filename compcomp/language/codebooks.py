"""Re-export :mod:`compcomp.layers.codebooks`, which was here before, for techniques of other packages."""

from __future__ import annotations

from compcomp.layers.codebooks import DYNAMIC8 as DYNAMIC8
from compcomp.layers.codebooks import E2M1 as E2M1
from compcomp.layers.codebooks import E2M3 as E2M3
from compcomp.layers.codebooks import E3M2 as E3M2
from compcomp.layers.codebooks import E4M3 as E4M3
from compcomp.layers.codebooks import E5M2 as E5M2
from compcomp.layers.codebooks import NF4 as NF4
from compcomp.layers.codebooks import Codes as Codes
from compcomp.layers.codebooks import dynamic_codes as dynamic_codes
from compcomp.layers.codebooks import float_codes as float_codes
from compcomp.layers.codebooks import midpoints_down as midpoints_down
from compcomp.layers.codebooks import whole_codes as whole_codes

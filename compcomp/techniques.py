"""The registry: one line a technique, and the import people use."""

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.absmax_inputs import AbsMaxInputs
from compcomp.encodings.apply_mask import ApplyMask
from compcomp.encodings.block_floating_point import BlockFloatingPoint
from compcomp.encodings.clipped_absmax import ClippedAbsMax
from compcomp.encodings.fp4 import FP4
from compcomp.encodings.fp8 import FP8
from compcomp.encodings.fp8_inputs import FP8Inputs
from compcomp.encodings.least_squares_distill import LeastSquaresDistill
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
from compcomp.encodings.mx import MX
from compcomp.encodings.nf4 import NF4
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.encodings.wanda import Wanda
from compcomp.language.technique import Technique

Technique.register(Magnitude, kernel="compcomp.kernels.magnitude")
Technique.register(Wanda, kernel="compcomp.kernels.wanda")
Technique.register(AbsMax, kernel="compcomp.kernels.absmax")
Technique.register(MinMax, kernel="compcomp.kernels.minmax")
Technique.register(ApplyMask, kernel="compcomp.kernels.apply_mask")
Technique.register(AbsMaxInputs, kernel="compcomp.kernels.absmax_inputs")
Technique.register(TruncatedSVD, kernel="compcomp.kernels.truncated_svd")
Technique.register(LeastSquaresDistill, kernel="compcomp.kernels.least_squares_distill")
Technique.register(NF4, kernel="compcomp.kernels.nf4")
Technique.register(FP4, kernel="compcomp.kernels.fp4")
Technique.register(FP8, kernel="compcomp.kernels.fp8")
Technique.register(MX, kernel="compcomp.kernels.mx")
Technique.register(BlockFloatingPoint, kernel="compcomp.kernels.block_floating_point")
Technique.register(ClippedAbsMax, kernel="compcomp.kernels.clipped_absmax")
Technique.register(FP8Inputs, kernel="compcomp.kernels.fp8_inputs")

__all__ = [
    "FP4",
    "FP8",
    "MX",
    "NF4",
    "AbsMax",
    "AbsMaxInputs",
    "ApplyMask",
    "BlockFloatingPoint",
    "ClippedAbsMax",
    "FP8Inputs",
    "LeastSquaresDistill",
    "Magnitude",
    "MinMax",
    "TruncatedSVD",
    "Wanda",
]

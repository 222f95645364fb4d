"""The registry: one line a technique, and the import people use."""

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.absmax_inputs import AbsMaxInputs
from compcomp.encodings.apply_mask import ApplyMask
from compcomp.encodings.block_means import BlockMeans
from compcomp.encodings.distill_factors import DistillFactors
from compcomp.encodings.joint_prune_quantize import JointPruneQuantize
from compcomp.encodings.least_squares_distill import LeastSquaresDistill
from compcomp.encodings.loftq import LoftQ
from compcomp.encodings.lora import LoRA
from compcomp.encodings.losparse import LoSparse
from compcomp.encodings.lplr import LPLR
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
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
Technique.register(LoftQ, kernel="compcomp.kernels.loftq")
Technique.register(LPLR, kernel="compcomp.kernels.lplr")
Technique.register(JointPruneQuantize, kernel="compcomp.kernels.joint_prune_quantize")
Technique.register(DistillFactors, kernel="compcomp.kernels.distill_factors")
Technique.register(LoSparse, kernel="compcomp.kernels.losparse")
Technique.register(LoRA, kernel="compcomp.kernels.lora")
Technique.register(BlockMeans, kernel="compcomp.kernels.block_means")

__all__ = [
    "LPLR",
    "AbsMax",
    "AbsMaxInputs",
    "ApplyMask",
    "BlockMeans",
    "DistillFactors",
    "JointPruneQuantize",
    "LeastSquaresDistill",
    "LoRA",
    "LoSparse",
    "LoftQ",
    "Magnitude",
    "MinMax",
    "TruncatedSVD",
    "Wanda",
]

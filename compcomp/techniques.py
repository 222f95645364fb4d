"""The registry: one line a technique, and the import people use."""

from compcomp.encodings.absmax import AbsMax
from compcomp.encodings.absmax_inputs import AbsMaxInputs
from compcomp.encodings.adaptive_sparse_training import AdaptiveSparseTraining
from compcomp.encodings.apply_mask import ApplyMask
from compcomp.encodings.awq import AWQ
from compcomp.encodings.block_floating_point import BlockFloatingPoint
from compcomp.encodings.block_means import BlockMeans
from compcomp.encodings.clipped_absmax import ClippedAbsMax
from compcomp.encodings.distill_factors import DistillFactors
from compcomp.encodings.distill_hidden import DistillHidden
from compcomp.encodings.distill_logits import DistillLogits
from compcomp.encodings.fp4 import FP4
from compcomp.encodings.fp8 import FP8
from compcomp.encodings.fp8_inputs import FP8Inputs
from compcomp.encodings.gptq import GPTQ
from compcomp.encodings.gradient_distill import GradientDistill
from compcomp.encodings.gradual_magnitude import GradualMagnitude
from compcomp.encodings.hadamard import Hadamard
from compcomp.encodings.joint_prune_quantize import JointPruneQuantize
from compcomp.encodings.jsq import JSQ
from compcomp.encodings.learned_mask import LearnedMask
from compcomp.encodings.least_squares_distill import LeastSquaresDistill
from compcomp.encodings.loftq import LoftQ
from compcomp.encodings.lora import LoRA
from compcomp.encodings.losparse import LoSparse
from compcomp.encodings.lplr import LPLR
from compcomp.encodings.magnitude import Magnitude
from compcomp.encodings.minmax import MinMax
from compcomp.encodings.mx import MX
from compcomp.encodings.nf4 import NF4
from compcomp.encodings.obq import OBQ
from compcomp.encodings.obs import OBS
from compcomp.encodings.prune_columns import PruneColumns
from compcomp.encodings.prune_heads import PruneHeads
from compcomp.encodings.prune_neurons import PruneNeurons
from compcomp.encodings.prune_rows import PruneRows
from compcomp.encodings.quantization_aware_training import QuantizationAwareTraining
from compcomp.encodings.remove_blocks import RemoveBlocks
from compcomp.encodings.ria import RIA
from compcomp.encodings.smoothquant import SmoothQuant
from compcomp.encodings.sparse_gpt import SparseGPT
from compcomp.encodings.taylor import Taylor
from compcomp.encodings.truncated_svd import TruncatedSVD
from compcomp.encodings.wanda import Wanda
from compcomp.language.technique import Technique

Technique.register(Magnitude, kernel="compcomp.kernels.magnitude")
Technique.register(Wanda, kernel="compcomp.kernels.wanda")
Technique.register(RIA, kernel="compcomp.kernels.ria")
Technique.register(Taylor, kernel="compcomp.kernels.taylor")
Technique.register(PruneRows, kernel="compcomp.kernels.prune_rows")
Technique.register(PruneColumns, kernel="compcomp.kernels.prune_columns")
Technique.register(LearnedMask, kernel="compcomp.kernels.learned_mask")
Technique.register(GradualMagnitude, kernel="compcomp.kernels.gradual_magnitude")
Technique.register(AbsMax, kernel="compcomp.kernels.absmax")
Technique.register(MinMax, kernel="compcomp.kernels.minmax")
Technique.register(ApplyMask, kernel="compcomp.kernels.apply_mask")
Technique.register(AbsMaxInputs, kernel="compcomp.kernels.absmax_inputs")
Technique.register(TruncatedSVD, kernel="compcomp.kernels.truncated_svd")
Technique.register(LeastSquaresDistill, kernel="compcomp.kernels.least_squares_distill")
Technique.register(GPTQ, kernel="compcomp.kernels.gptq")
Technique.register(SparseGPT, kernel="compcomp.kernels.sparse_gpt")
Technique.register(OBS, kernel="compcomp.kernels.obs")
Technique.register(OBQ, kernel="compcomp.kernels.obq")
Technique.register(GradientDistill, kernel="compcomp.kernels.gradient_distill")
Technique.register(DistillHidden, kernel="compcomp.kernels.distill_hidden")
Technique.register(DistillLogits, kernel="compcomp.kernels.distill_logits")
Technique.register(PruneNeurons, kernel="compcomp.kernels.prune_neurons")
Technique.register(PruneHeads, kernel="compcomp.kernels.prune_heads")
Technique.register(RemoveBlocks, kernel="compcomp.kernels.remove_blocks")
Technique.register(LoftQ, kernel="compcomp.kernels.loftq")
Technique.register(LPLR, kernel="compcomp.kernels.lplr")
Technique.register(SmoothQuant, kernel="compcomp.kernels.smoothquant")
Technique.register(AWQ, kernel="compcomp.kernels.awq")
Technique.register(Hadamard, kernel="compcomp.kernels.hadamard")
Technique.register(NF4, kernel="compcomp.kernels.nf4")
Technique.register(FP4, kernel="compcomp.kernels.fp4")
Technique.register(FP8, kernel="compcomp.kernels.fp8")
Technique.register(MX, kernel="compcomp.kernels.mx")
Technique.register(BlockFloatingPoint, kernel="compcomp.kernels.block_floating_point")
Technique.register(JointPruneQuantize, kernel="compcomp.kernels.joint_prune_quantize")
Technique.register(DistillFactors, kernel="compcomp.kernels.distill_factors")
Technique.register(LoSparse, kernel="compcomp.kernels.losparse")
Technique.register(LoRA, kernel="compcomp.kernels.lora")
Technique.register(ClippedAbsMax, kernel="compcomp.kernels.clipped_absmax")
Technique.register(FP8Inputs, kernel="compcomp.kernels.fp8_inputs")
Technique.register(BlockMeans, kernel="compcomp.kernels.block_means")
Technique.register(QuantizationAwareTraining, kernel="compcomp.kernels.quantization_aware_training")
Technique.register(JSQ, kernel="compcomp.kernels.jsq")
Technique.register(AdaptiveSparseTraining, kernel="compcomp.kernels.adaptive_sparse_training")

__all__ = [
    "AWQ",
    "FP4",
    "FP8",
    "GPTQ",
    "JSQ",
    "LPLR",
    "MX",
    "NF4",
    "OBQ",
    "OBS",
    "RIA",
    "AbsMax",
    "AbsMaxInputs",
    "AdaptiveSparseTraining",
    "ApplyMask",
    "BlockFloatingPoint",
    "BlockMeans",
    "ClippedAbsMax",
    "DistillFactors",
    "DistillHidden",
    "DistillLogits",
    "FP8Inputs",
    "GradientDistill",
    "GradualMagnitude",
    "Hadamard",
    "JointPruneQuantize",
    "LearnedMask",
    "LeastSquaresDistill",
    "LoRA",
    "LoSparse",
    "LoftQ",
    "Magnitude",
    "MinMax",
    "PruneColumns",
    "PruneHeads",
    "PruneNeurons",
    "PruneRows",
    "QuantizationAwareTraining",
    "RemoveBlocks",
    "SmoothQuant",
    "SparseGPT",
    "Taylor",
    "TruncatedSVD",
    "Wanda",
]

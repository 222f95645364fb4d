"""Import and register all techniques of this library, one line each, in the order in which tables show them."""

# isort: off
from compcomp.encodings.magnitude import Magnitude as Magnitude
from compcomp.encodings.wanda import Wanda as Wanda
from compcomp.encodings.ria import RIA as RIA
from compcomp.encodings.taylor import Taylor as Taylor
from compcomp.encodings.prune_rows import PruneRows as PruneRows
from compcomp.encodings.prune_columns import PruneColumns as PruneColumns
from compcomp.encodings.learned_mask import LearnedMask as LearnedMask
from compcomp.encodings.gradual_magnitude import GradualMagnitude as GradualMagnitude
from compcomp.encodings.absmax import AbsMax as AbsMax
from compcomp.encodings.minmax import MinMax as MinMax
from compcomp.encodings.apply_mask import ApplyMask as ApplyMask
from compcomp.encodings.absmax_inputs import AbsMaxInputs as AbsMaxInputs
from compcomp.encodings.truncated_svd import TruncatedSVD as TruncatedSVD
from compcomp.encodings.least_squares_distill import LeastSquaresDistill as LeastSquaresDistill
from compcomp.encodings.gptq import GPTQ as GPTQ
from compcomp.encodings.sparse_gpt import SparseGPT as SparseGPT
from compcomp.encodings.obs import OBS as OBS
from compcomp.encodings.obq import OBQ as OBQ
from compcomp.encodings.gradient_distill import GradientDistill as GradientDistill
from compcomp.encodings.distill_hidden import DistillHidden as DistillHidden
from compcomp.encodings.distill_logits import DistillLogits as DistillLogits
from compcomp.encodings.prune_neurons import PruneNeurons as PruneNeurons
from compcomp.encodings.prune_heads import PruneHeads as PruneHeads
from compcomp.encodings.remove_blocks import RemoveBlocks as RemoveBlocks
from compcomp.encodings.loftq import LoftQ as LoftQ
from compcomp.encodings.lplr import LPLR as LPLR
from compcomp.encodings.smoothquant import SmoothQuant as SmoothQuant
from compcomp.encodings.awq import AWQ as AWQ
from compcomp.encodings.hadamard import Hadamard as Hadamard
from compcomp.encodings.nf4 import NF4 as NF4
from compcomp.encodings.fp4 import FP4 as FP4
from compcomp.encodings.fp8 import FP8 as FP8
from compcomp.encodings.mx import MX as MX
from compcomp.encodings.block_floating_point import BlockFloatingPoint as BlockFloatingPoint
from compcomp.encodings.joint_prune_quantize import JointPruneQuantize as JointPruneQuantize
from compcomp.encodings.distill_factors import DistillFactors as DistillFactors
from compcomp.encodings.losparse import LoSparse as LoSparse
from compcomp.encodings.lora import LoRA as LoRA
from compcomp.encodings.clipped_absmax import ClippedAbsMax as ClippedAbsMax
from compcomp.encodings.fp8_inputs import FP8Inputs as FP8Inputs
from compcomp.encodings.block_means import BlockMeans as BlockMeans
from compcomp.encodings.quantization_aware_training import QuantizationAwareTraining as QuantizationAwareTraining
from compcomp.encodings.jsq import JSQ as JSQ
from compcomp.encodings.adaptive_sparse_training import AdaptiveSparseTraining as AdaptiveSparseTraining

# isort: on
from typing import TYPE_CHECKING

from compcomp.language.technique import Technique

_kinds = [kind for kind in list(globals().values()) if isinstance(kind, type) and kind is not Technique]
for _kind in _kinds:
    Technique.register(_kind)

if not TYPE_CHECKING:  # type checkers read the lines above
    __all__ = [kind.__name__ for kind in _kinds]

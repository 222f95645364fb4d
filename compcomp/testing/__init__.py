"""Strategies and checks for encodings, including user-defined ones.

They need Hypothesis: ``pip install compcomp[testing]``.
"""

from compcomp.testing.conformance import check_encoding as check_encoding
from compcomp.testing.report import Coverage as Coverage
from compcomp.testing.strategies import conventions as conventions
from compcomp.testing.strategies import layers as layers
from compcomp.testing.strategies import matrices as matrices
from compcomp.testing.strategies import sequences as sequences
from compcomp.testing.strategies import techniques as techniques

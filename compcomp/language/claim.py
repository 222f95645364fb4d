"""Import all kinds of claims from :mod:`compcomp.language.claims`, and the scopes on which they are made."""

from compcomp.language.claims.claim import EACH_KIND as EACH_KIND
from compcomp.language.claims.claim import KINDS as KINDS
from compcomp.language.claims.claim import Claim as Claim
from compcomp.language.claims.claim import Comparison as Comparison
from compcomp.language.claims.dominates import Dominates as Dominates
from compcomp.language.claims.dominates import dominates as dominates
from compcomp.language.claims.equals import Equals as Equals
from compcomp.language.claims.equals import equal as equal
from compcomp.language.claims.fits import Fits as Fits
from compcomp.language.claims.fits import fits as fits
from compcomp.language.claims.keeps import Keeps as Keeps
from compcomp.language.claims.keeps import keeps as keeps
from compcomp.language.claims.orthogonal import NORMS as NORMS
from compcomp.language.claims.orthogonal import Orthogonal as Orthogonal
from compcomp.language.claims.orthogonal import orthogonal as orthogonal
from compcomp.language.claims.same_state import SameState as SameState
from compcomp.language.claims.same_state import same_state as same_state
from compcomp.language.claims.scope import LARGEST_BLOCK as LARGEST_BLOCK
from compcomp.language.claims.scope import LARGEST_SIDE as LARGEST_SIDE
from compcomp.language.claims.scope import Scope as Scope

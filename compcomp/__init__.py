"""compcomp decides, with proofs, in which order to apply compression techniques to a language model.

``import compcomp as cc`` shows the whole public face; ``compcomp.techniques`` holds the techniques. Names
are loaded on first use, so that a symbolic proof starts without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compcomp.version import __version__

if TYPE_CHECKING:
    from compcomp.errors import InputError as InputError
    from compcomp.language.claim import Claim as Claim
    from compcomp.language.claim import Scope as Scope
    from compcomp.language.claim import dominates as dominates
    from compcomp.language.claim import equal as equal
    from compcomp.language.claim import fits as fits
    from compcomp.language.claim import keeps as keeps
    from compcomp.language.claim import orthogonal as orthogonal
    from compcomp.language.conditions import Condition as Condition
    from compcomp.language.parameters import ANY as ANY
    from compcomp.language.size import size as size
    from compcomp.language.technique import Sequence as Sequence
    from compcomp.language.technique import Technique as Technique
    from compcomp.language.text import parse_claim as parse_claim
    from compcomp.language.text import parse_sequence as parse_sequence
    from compcomp.language.verdict import Status as Status
    from compcomp.language.verdict import Verdict as Verdict
    from compcomp.language.verdict import Witness as Witness
    from compcomp.models.cut import cut as cut
    from compcomp.optimize import apply as apply
    from compcomp.optimize import optimize_order as optimize_order
    from compcomp.ordering.plan import Plan as Plan
    from compcomp.ordering.space import one_of as one_of
    from compcomp.ordering.space import optional as optional
    from compcomp.proving.conditions import Finding as Finding
    from compcomp.proving.conditions import find_condition as find_condition
    from compcomp.proving.prove import prove as prove

_HOMES = {
    "ANY": "language.parameters",
    "InputError": "errors",
    "Claim": "language.claim",
    "Scope": "language.claim",
    "dominates": "language.claim",
    "equal": "language.claim",
    "fits": "language.claim",
    "keeps": "language.claim",
    "orthogonal": "language.claim",
    "Condition": "language.conditions",
    "size": "language.size",
    "Sequence": "language.technique",
    "Technique": "language.technique",
    "parse_claim": "language.text",
    "parse_sequence": "language.text",
    "Status": "language.verdict",
    "Verdict": "language.verdict",
    "Witness": "language.verdict",
    "apply": "optimize",
    "cut": "models.cut",
    "optimize_order": "optimize",
    "Plan": "ordering.plan",
    "one_of": "ordering.space",
    "optional": "ordering.space",
    "Finding": "proving.conditions",
    "find_condition": "proving.conditions",
    "prove": "proving.prove",
}

__all__ = ["__version__"]
__all__ += list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compcomp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _find_encodings_beside() -> None:
    """In a checkout whose file system has no symbolic links, use the folder that the link points to."""
    here, beside = Path(__file__).parent / "encodings", Path(__file__).parent.parent / "encodings"
    if here.is_dir() or not (beside / "magnitude.py").is_file():
        return
    spec = importlib.util.spec_from_loader("compcomp.encodings", loader=None, is_package=True)
    assert spec is not None and spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(beside))
    sys.modules["compcomp.encodings"] = importlib.util.module_from_spec(spec)


def load_catalogue() -> None:
    """Make the techniques of this library known to text. Loads neither torch nor any kernel."""
    importlib.import_module("compcomp.techniques")


_find_encodings_beside()

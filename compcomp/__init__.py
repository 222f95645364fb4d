"""Decide, with proofs, in which order to apply compression techniques to a language model.

``import compcomp as cc`` gives access to the whole public API; ``compcomp.techniques`` holds the techniques. Names are
loaded on first use, so that a symbolic proof starts without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any as Any  # cc.Any leaves a parameter of a claim open, as ANY does

from compcomp import hooks
from compcomp.version import __version__

if TYPE_CHECKING:
    from compcomp.auditing.audit import Audit as Audit
    from compcomp.auditing.audit import audit as audit
    from compcomp.compress import apply as apply
    from compcomp.errors import InputError as InputError
    from compcomp.errors import Interrupted as Interrupted
    from compcomp.exporting.export import Exported as Exported
    from compcomp.exporting.export import export as export
    from compcomp.inspecting.inspect import Inspection as Inspection
    from compcomp.inspecting.inspect import inspect as inspect
    from compcomp.language.claim import Claim as Claim
    from compcomp.language.claim import Scope as Scope
    from compcomp.language.claim import dominates as dominates
    from compcomp.language.claim import equal as equal
    from compcomp.language.claim import fits as fits
    from compcomp.language.claim import keeps as keeps
    from compcomp.language.claim import orthogonal as orthogonal
    from compcomp.language.claim import same_state as same_state
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
    from compcomp.models.stream import compress_checkpoint as compress_checkpoint
    from compcomp.optimize import estimate as estimate
    from compcomp.optimize import optimize_order as optimize_order
    from compcomp.ordering.estimate import Estimate as Estimate
    from compcomp.ordering.space import one_of as one_of
    from compcomp.ordering.space import optional as optional
    from compcomp.plan import Plan as Plan
    from compcomp.proving.conditions import Finding as Finding
    from compcomp.proving.conditions import find_condition as find_condition
    from compcomp.proving.prove import Prover as Prover
    from compcomp.proving.prove import prove as prove
    from compcomp.proving.prove import why as why

_HOMES = {
    "ANY": "compcomp.language.parameters",
    "InputError": "compcomp.errors",
    "Interrupted": "compcomp.errors",
    "Exported": "compcomp.exporting.export",
    "export": "compcomp.exporting.export",
    "Inspection": "compcomp.inspecting.inspect",
    "inspect": "compcomp.inspecting.inspect",
    "Claim": "compcomp.language.claim",
    "Scope": "compcomp.language.claim",
    "dominates": "compcomp.language.claim",
    "equal": "compcomp.language.claim",
    "fits": "compcomp.language.claim",
    "keeps": "compcomp.language.claim",
    "orthogonal": "compcomp.language.claim",
    "same_state": "compcomp.language.claim",
    "Condition": "compcomp.language.conditions",
    "size": "compcomp.language.size",
    "Sequence": "compcomp.language.technique",
    "Technique": "compcomp.language.technique",
    "parse_claim": "compcomp.language.text",
    "parse_sequence": "compcomp.language.text",
    "Status": "compcomp.language.verdict",
    "Verdict": "compcomp.language.verdict",
    "Witness": "compcomp.language.verdict",
    "Audit": "compcomp.auditing.audit",
    "audit": "compcomp.auditing.audit",
    "apply": "compcomp.compress",
    "cut": "compcomp.models.cut",
    "compress_checkpoint": "compcomp.models.stream",
    "estimate": "compcomp.optimize",
    "optimize_order": "compcomp.optimize",
    "Estimate": "compcomp.ordering.estimate",
    "Plan": "compcomp.plan",
    "one_of": "compcomp.ordering.space",
    "optional": "compcomp.ordering.space",
    "Finding": "compcomp.proving.conditions",
    "find_condition": "compcomp.proving.conditions",
    "Prover": "compcomp.proving.prove",
    "prove": "compcomp.proving.prove",
    "why": "compcomp.proving.prove",
}

_OFFERS = {
    "Verdict.save": ("compcomp.language.saved", "save"),
    "Verdict.certified": ("compcomp.proving.prove", "certify"),
    "Verdict.to_latex": ("compcomp.language.latex", "verdict_to_latex"),
    "installed names": ("compcomp.language.installed", "installed_names"),
    "find installed": ("compcomp.language.installed", "find_installed"),
    "load catalogue": ("compcomp", "load_catalogue"),
}
"""Functions that lower modules call in modules above them (:mod:`compcomp.hooks`)."""

__all__ = ["__version__"]
__all__ += list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compcomp' has no attribute {name!r}")
    return _attribute(_HOMES[name], name)


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


for _name, _place in _OFFERS.items():
    hooks.offer(_name, partial(_attribute, *_place))


def __dir__() -> list[str]:
    return sorted(__all__)


def _find_encodings_in_checkout() -> None:
    """Use the folder that the link ``encodings`` points to, in a checkout whose file system has no symbolic links."""
    here, in_checkout = Path(__file__).parent / "encodings", Path(__file__).parent.parent / "encodings"
    if here.is_dir() or not (in_checkout / "magnitude.py").is_file():
        return
    spec = importlib.util.spec_from_loader("compcomp.encodings", loader=None, is_package=True)
    assert spec is not None and spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(in_checkout))
    sys.modules["compcomp.encodings"] = importlib.util.module_from_spec(spec)


logging.getLogger("compcomp").addHandler(logging.NullHandler())


def load_catalogue() -> None:
    """Register the techniques of this library for the parser. It loads neither torch nor any kernel."""
    importlib.import_module("compcomp.techniques")


_find_encodings_in_checkout()

"""What passes between a search and a model: JSON forms are read back whole, and no loose dictionary passes."""

from __future__ import annotations

import ast
import inspect
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar

import pytest

import compcomp
from compcomp import bench as module
from compcomp.bench import Bench, Caps, Coverage, InParts, LayerJob, LayerResult, Outside, Tensors, Trial
from compcomp.language.claim import dominates
from compcomp.language.named import registrations
from compcomp.language.technique import Sequence
from compcomp.models.bench import ModelBench
from compcomp.ordering.ask import ClaimJob, job_of
from compcomp.ordering.conditional import ConditionalEntry, Lost
from compcomp.ordering.explore import key_of
from compcomp.ordering.measurement import Measurement
from compcomp.ordering.table import CellJob
from compcomp.techniques import AbsMax, Magnitude

P, Q = Magnitude(Fraction(1, 2), pattern="2:4"), AbsMax(bits=4, group=8)
CAPS = Caps("output_l2", (1.5, float("inf")), {"mask": (0, 1), "grid": (), "factors": (1,)})
JOB = LayerJob(
    layer="blocks.0.q",
    techniques=(P, Q),
    tensors=bytes(range(256)),
    device="cpu",
    parents=(-1, 0, 1, 0),
    steps=(-1, 0, 1, 1),
    ends=(2, 3),
    losses=("weight_l1", "output_l2"),
    memory=2**20,
    caps=CAPS,
    register=registrations([P, Q]),
)
ENTRY = ConditionalEntry(
    dominates(P >> Q, Q >> P, loss="output_l2", given="no_ties"),
    coverage=0.75,
    layers={"a": 1.0, "b": 0.5},
    conditions={"no_ties": 0.75},
    groups={"no_ties": 0.875},
    left_loss=Lost(3.0, 0.25),
    right_loss=Lost(3.0, 0.5),
    holds=True,
    in_every_layer=False,
    contradicted=("b",),
)
PLAIN = Measurement(P >> Q, {"perplexity": 3.5}, {"output_l2": 0.25, "weight_l1": 1.0}, 0.8)
IN_PARTS = replace(
    PLAIN, parts=8, intervals={"perplexity": (3.25, 3.75)}, behind=(0.5, 1.5), note="stopped after 8 of 32 parts"
)
EXAMPLES: list[Any] = [
    CAPS,
    JOB,
    replace(JOB, caps=None, tensors=b""),
    LayerResult({"l": (1.0, None)}, (64, None), ("x", None), 3, 1, {1: 2.5}, 0.25),
    LayerResult({}, (), (), 0),
    Coverage(12, 8, {"no_ties": 8}, {"no_ties": (6, 4)}, (1.0, 2.0), (3.0, 4.0), 1),
    Coverage(12, 8, {}, {}, None, None, 0),
    Tensors(12, (("embed", 8), ("norm", 4))),
    Outside(Tensors(12, (("embed", 8),)), 48, Tensors(8, (("experts", 8),))),
    Outside(Tensors(0), 0, Tensors(0)),
    Trial(4, 0.5, 0.25, (0.125, 1.0), 0.5, 2.0, 2**20, 2**10, ("a limit",)),
    Lost(1.0, 2.0),
    ENTRY,
    PLAIN,
    IN_PARTS,
    replace(PLAIN, order=None, compression_rate=None),
    replace(PLAIN, order=Sequence()),
    CellJob(P, Q, "mask", 20.0, registrations([P, Q])),
    job_of(ENTRY.claim, compcomp.Scope.of("2x4"), {"timeout": 5.0}),
]


@pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: type(one).__name__)
def test_json_forms_are_read_back_whole(one: Any) -> None:
    found = type(one).from_json(json.loads(json.dumps(one.to_json())))
    assert type(found) is type(one)
    for f in fields(one):
        assert getattr(found, f.name) == getattr(one, f.name), f.name
    with pytest.raises(AttributeError):
        found.extra = 1  # frozen


def test_every_class_that_passes_is_read_back_here() -> None:
    kinds = {kind for kind in vars(module).values() if is_dataclass(kind) and kind.__module__ == module.__name__}
    assert kinds <= {type(one) for one in EXAMPLES} and {ClaimJob, CellJob, Measurement} <= {type(o) for o in EXAMPLES}


def test_a_measurement_is_read_by_key() -> None:
    assert PLAIN["order"] == str(P >> Q) and PLAIN["losses"]["output_l2"] == 0.25
    assert list(PLAIN) == ["order", "metrics", "losses", "compression_rate"] and "note" not in PLAIN
    assert IN_PARTS["behind"] == [0.5, 1.5] and IN_PARTS["intervals"] == {"perplexity": [3.25, 3.75]}
    assert replace(PLAIN, order=None)["order"] == "an order for each layer"
    given = Measurement.from_json(PLAIN.to_json(), Q >> P)
    assert given.order == Q >> P and given.losses == PLAIN.losses, "of the order that is given, whatever the text says"


def test_a_job_is_known_by_all_but_its_memory() -> None:
    keys = {key_of(JOB), key_of(replace(JOB, memory=1))}
    assert len(keys) == 1
    others: dict[str, Any] = {
        "layer": "other",
        "techniques": (Q, P),
        "tensors": JOB.tensors[1:],
        "device": "cuda:0",
        "parents": (-1, 0, 1, 1),
        "steps": (-1, 1, 1, 1),
        "ends": (2, 1),
        "losses": ("output_l2",),
        "caps": replace(CAPS, largest=(1.5, 2.0)),
        "register": registrations([P]),
    }
    assert set(others) == {f.name for f in fields(JOB)} - {"memory"}
    assert len({key_of(replace(JOB, **{name: value})) for name, value in others.items()} | keys) == len(others) + 1


# ------------------------------------------------------------------------------------------- no loose dictionary


def loose(annotation: Any) -> bool:
    """Whether a dictionary of texts to anything occurs in an annotation."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (dict, Mapping):
        return True
    if isinstance(origin, type) and issubclass(origin, Mapping) and inner[0] is str and inner[1] in (Any, object):
        return True
    parts = (part for one in inner for part in (one if isinstance(one, list) else [one]))
    return any(loose(part) for part in parts if isinstance(part, type | UnionType) or typing.get_origin(part))


def crossing() -> Iterator[tuple[str, Any]]:
    """Every annotation of what the search and a model pass to each other, by where it stands."""
    for protocol in (Bench, InParts):
        for name in (name for name in dir(protocol) if not name.startswith("_")):
            for owner in (protocol, ModelBench):
                member = inspect.getattr_static(owner, name)
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                for argument, annotation in typing.get_type_hints(function).items():
                    yield f"{owner.__name__}.{name}: {argument}", annotation
    for kind in {type(one) for one in EXAMPLES if type(one).__module__ == module.__name__}:
        for name, annotation in typing.get_type_hints(kind).items():
            if typing.get_origin(annotation) is not ClassVar:
                yield f"{kind.__name__}.{name}", annotation


def test_no_loose_dictionary_passes_between_search_and_model() -> None:
    found = dict(crossing())
    assert {"Bench.layer_jobs: return", "ModelBench.coverage: return", "LayerJob.caps", "Coverage.left"} <= set(found)
    assert [where for where, annotation in found.items() if loose(annotation)] == []


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (dict[str, Any], True),
        (Iterator[tuple[str, list[dict[str, Any]]]], True),
        (Mapping[str, Any] | None, True),
        (typing.Callable[[dict[str, Any]], int], True),
        (dict, True),
        (dict[str, float], False),
        (tuple[str, LayerJob], False),
    ],
)
def test_a_loose_dictionary_is_found(annotation: Any, expected: bool) -> None:
    assert loose(annotation) is expected


JSON = {"save", "get", "put", "get_result", "put_result", "decide_job"}
"""Functions that keep plain data in files, or send it to other processes."""


@pytest.mark.parametrize("room", ["ordering", "models"])
def test_plain_data_is_for_files_and_processes_alone(room: str) -> None:
    """No other public function of these rooms takes or returns a dictionary of texts to anything."""
    found = []
    for path in sorted((Path(compcomp.__file__).parent / room).rglob("*.py")):
        for owner in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in owner.body if isinstance(owner, ast.Module | ast.ClassDef) else ():
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                texts = [ast.unparse(a) for a in (*(one.annotation for one in arguments), node.returns) if a]
                if any("dict[str, Any]" in text or "Mapping[str, Any]" in text for text in texts):
                    found.append((path.name, node.name))
    wrong = [one for one in found if one[1] not in JSON and not one[1].endswith("_json")]
    assert wrong == [] and (room == "models" or any(name == "to_json" for _, name in found))

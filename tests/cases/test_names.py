"""A technique is known by its module, its name, all that it holds and its files: never by a text or a name alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compcomp as cc
from compcomp.language.claim import Scope, equal
from compcomp.language.named import find_registered, registrations, round_trips, sources_of
from compcomp.language.technique import Technique
from compcomp.language.verdict import Status
from compcomp.ordering.ask import Asker, job_of
from compcomp.ordering.space import Space
from compcomp.ordering.store import Store, key_of
from compcomp.techniques import AbsMax, Magnitude
from tests.helpers import refused
from tests.ordering.fakes import verdict

ANYWHERE = Scope.of("any")
P, Q = Magnitude("1/2"), AbsMax(4)

OWN = '''
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any
from compcomp.language.technique import Technique
from own_helper import factor

@dataclass(frozen=True)
class {name}(Technique):
    """Scales the weights."""
    by: Any = {default}
    def encode(self, layer):
        return replace(layer, weight=layer.weight * factor * self.by)

def kernel(technique, layer):
    return replace(layer, weight=layer.weight * factor * float(technique.by))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes modules with a class of a name, in files of their own; what they register is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Technique, "kernels", dict(Technique.kernels))
    made = ["own_helper"]
    (tmp_path / "own_helper.py").write_text("factor = 1\n")

    def make(module: str, name: str = "Scale", default: str = "1") -> Any:
        (tmp_path / f"{module}.py").write_text(OWN.format(name=name, default=default))
        importlib.invalidate_caches()
        made.append(module)
        return getattr(importlib.import_module(module), name)

    yield make
    for module in made:
        sys.modules.pop(module, None)


# ------------------------------------------------------------------------------------------ taken names


def test_a_name_of_the_catalogue_is_refused(own: Any) -> None:
    mine = own("own_one", "Magnitude")
    refused(lambda: Technique.register(mine), "own_one.Magnitude", "compcomp.encodings.magnitude", "Technique.register")
    assert cc.parse_sequence("Magnitude(sparsity=1/2)").techniques == (P,)
    assert registrations([mine()]) is None and job_of(equal(mine(), P), ANYWHERE, {}) is None


def test_a_name_that_another_module_has_taken_is_refused(own: Any) -> None:
    one, other = own("own_one"), own("own_two")
    Technique.register(one)
    refused(lambda: Technique.register(other), "own_two.Scale", "own_one")
    assert Technique.named("Scale") is one


def test_a_name_is_refused_before_the_catalogue_is_imported(tmp_path: Path) -> None:
    (tmp_path / "own_early.py").write_text(OWN.format(name="Magnitude", default="1"))
    (tmp_path / "own_helper.py").write_text("factor = 1\n")
    code = (
        "import own_early, compcomp as cc\n"
        "try:\n    cc.Technique.register(own_early.Magnitude)\n"
        "except cc.InputError as error:\n    print(str(error))\n"
        "print(type(cc.parse_sequence('Magnitude(sparsity=1/2)').techniques[0]).__module__)"
    )
    said = python(code, tmp_path).splitlines()
    assert said[0].startswith("Technique.register: own_early.Magnitude") and said[1] == "compcomp.encodings.magnitude"


def test_a_module_that_is_reloaded_and_a_cell_that_is_run_again(own: Any) -> None:
    first = own("own_one")
    Technique.register(first)
    second = importlib.reload(sys.modules["own_one"]).Scale
    assert second is not first
    Technique.register(second)
    Technique.register(second)
    assert type(cc.parse_sequence("Scale(by=2)").techniques[0]) is second
    assert list(Technique.known()).count("Scale") == 1
    assert registrations([first()]) is None and registrations([second()]) is not None
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for _ in range(2):
        exec(OWN.format(name="Cell", default="1"), namespace)
        Technique.register(namespace["Cell"], "own_one")
        assert Technique.named("Cell") is namespace["Cell"]


# ------------------------------------------------------------------------------------------ texts


@dataclass(frozen=True)
class Held(Technique):
    """Whatever it is given, of which text shows what it can."""

    what: Any = 1

    def encode(self, layer: Any) -> Any:
        return layer


class Shortened(Held):
    def __str__(self) -> str:
        return "Shortened()"


@dataclass(frozen=True)
class Rounded(Technique):
    """Makes another number of what it is given."""

    by: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", self.by / 2)


@dataclass(frozen=True)
class Late(Technique):
    by: Any = 1
    made: Any = field(default=None, init=False, compare=False)


def late(made: Any) -> Late:
    found = Late()
    object.__setattr__(found, "made", made)
    return found


ROUND_TRIPS = [Held(), Held("a text"), Held((1, "two", None, True)), Held(Fraction(2, 3)), Held(0.5), Held(-2), Late(3)]
UNTOLD = [Held(print), Held([1]), Held(object()), Held({"a": 1}), Held(10**12), Held(float("nan"))]
UNTOLD += [Shortened(2), Rounded(4), late(1), Held(lambda: 1), Held(P), Held(1j), Held(b"x"), Held(range(3))]


@pytest.mark.parametrize("technique", ROUND_TRIPS, ids=repr)
def test_what_text_tells_whole(technique: Technique) -> None:
    assert round_trips(technique) and sources_of([technique]) is not None


@pytest.mark.parametrize("technique", UNTOLD, ids=lambda t: type(t).__name__)
def test_what_text_does_not_hold_is_neither_kept_nor_sent(
    technique: Technique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Technique.kernels, type(technique), __name__)
    claim = equal(technique, P)
    assert not round_trips(technique) and sources_of([technique, P]) is None and registrations([technique]) is None
    assert key_of(claim, ANYWHERE) is None and job_of(claim, ANYWHERE, {}) is None
    store = Store(tmp_path / "plan.db")
    store.put(verdict(claim, Status.PROVED))
    assert len(store) == 0 and store.get(claim, ANYWHERE) is None
    store.close()

    class Refusing(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            raise AssertionError("nothing may be sent")

    (found,) = Asker(lambda c, s, o: verdict(c, Status.PROVED), executor=Refusing()).ask([claim], ANYWHERE)
    assert found.proved


def test_what_differs_in_a_field_that_text_shows_not_is_another_claim() -> None:
    asked = []

    def prover(claim: Any, scope: Any, options: Any) -> Any:
        asked.append(claim)
        return verdict(claim, Status.PROVED if claim.left.techniques[0].made == 0 else Status.REFUTED)

    asker = Asker(prover)
    one, other = equal(late(0), P), equal(late(1), P)
    assert one == other and str(one) == str(other)
    first, second, third = asker.ask([one, other, equal(late(0), P)], ANYWHERE)
    assert len(asked) == 2 and (first.proved, second.proved, third.proved) == (True, False, True)


def test_techniques_are_counted_by_what_they_are() -> None:
    assert Space([Held(1), Held(1), P]).counts == (2, 1)
    assert Space([Held("a"), Held("b")]).counts == (1, 1)
    refused(lambda: Space([late(0), late(1)]), "both written Late()", "techniques")
    refused(lambda: cc.optimize_order([Shortened(1), Shortened(2), Q]), "both written Shortened()")


# ------------------------------------------------------------------------------------------ files


def test_another_process_with_other_files_is_found(own: Any, tmp_path: Path) -> None:
    kind = own("own_one")
    Technique.register(kind)
    found = registrations([kind(2)])
    assert found is not None
    find_registered(found)
    changed = [[*entry[:3], "0" * 64] for entry in found]
    with pytest.raises(LookupError, match="other files here"):
        find_registered(changed)


def test_a_helper_that_changes_is_another_source(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = own("own_one")
    before = sources_of([kind(2)])
    assert before is not None
    (tmp_path / "own_helper.py").write_text("factor = 2  # another\n")
    assert sources_of([kind(2)]) is None
    monkeypatch.setattr("compcomp.language.named._first", {})  # as in another process
    assert sources_of([kind(2)]) not in (None, before)


def test_the_plan_measures_the_technique_that_it_was_given(own: Any) -> None:
    """Also one of a class that nobody registered, and whose name is taken."""
    kind = own("own_one", "Magnitude", "3")
    model = nn.Sequential(nn.Linear(4, 3, bias=False).double())
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0).reshape(3, 4))
    Technique.kernels[kind] = "own_one"  # past what register refuses
    plan = cc.optimize_order([kind(), Q], model=model, loss="weight_l2", device="cpu")
    with torch.no_grad():
        dense = model[0].weight.clone()
        cc.apply(plan.order, model)
        lost = float(((model[0].weight - dense) ** 2).sum())
    assert plan.measurements[0]["losses"]["weight_l2"] == pytest.approx(lost)


# ------------------------------------------------------------------------------------------ the first text


def python(code: str, path: Path) -> str:
    root = Path(cc.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(root), str(path)]}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "cc.parse_sequence('Magnitude(sparsity=1/2) >> AbsMax(bits=4)')",
        "cc.parse_claim('Magnitude(sparsity=1/2) keeps mask')",
        "__import__('compcomp.language.text').language.text.parse_sequence('GPTQ(bits=4)')",
        "cc.Technique.named('Wanda').__name__",
    ],
)
def test_text_is_read_before_anything_else_is_imported(code: str, tmp_path: Path) -> None:
    said = python(f"import compcomp as cc\nprint({code})\nprint('torch' in sys.modules)", tmp_path).splitlines()
    assert said[0].split("(")[0] in ("Magnitude", "GPTQ", "Wanda") and said[1] == "False"


def test_a_message_names_what_is_allowed(tmp_path: Path) -> None:
    code = (
        "import compcomp as cc\ntry:\n    cc.parse_sequence('Nothing()')\nexcept cc.InputError as error: print(error)"
    )
    assert "Magnitude" in python(code, tmp_path)


def test_a_verdict_is_saved_of_what_text_tells_alone(own: Any, tmp_path: Path) -> None:
    kind = own("own_one", "Magnitude")
    for technique in (kind(2), late(1), Held(print)):
        claim = equal(technique, technique)
        refused(lambda c=claim: verdict(c, Status.PROVED).save(tmp_path / "one"), "Verdict.save", "registered")  # type: ignore[misc]
    assert not (tmp_path / "one").exists()
    assert cc.prove(equal(P, P), second=None).save(tmp_path / "two").exists()


def test_orders_are_read_as_the_techniques_of_their_search() -> None:
    space = Space([late(1), P, Q])
    read = space.read("Late() >> AbsMax(bits=4)").techniques
    assert read[0] is space.techniques[0] and read[1] is Q
    assert space.read("AbsMax(bits=3)").techniques == (AbsMax(3),)

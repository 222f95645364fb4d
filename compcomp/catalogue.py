"""The catalogue of techniques: a page from their docstrings, parameters and contracts."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from typing import Any

from compcomp.language.contracts import contracts
from compcomp.language.samples import VALUES, conventions, representatives, sets_up
from compcomp.language.steps import Selection
from compcomp.language.technique import Technique
from compcomp.layers.state import LayerState

SHAPE = (128, 256)
"""The shape (out, in) of the layer whose bits are counted."""
KEY = re.compile(r"\[((?:[a-z]+\d{4}[a-z]?(?:, )?)+)\]")
"""Citation keys, as in docs/references.md."""


@dataclass(frozen=True)
class Parameter:
    """Describe one parameter of a technique.

    name: The name of the field.
    meaning: The text of the docstring.
    default: The default as it is written, "" if the parameter is required.
    tried: The values that are tested.
    """

    name: str
    meaning: str
    default: str
    tried: tuple[str, ...]


@dataclass(frozen=True)
class Behaviour:
    """Describe one representative of a class and its contracts.

    ``bits`` is the number of bits for each weight of a layer of :data:`SHAPE`, including scales, masks and factors.
    """

    technique: str
    sets_up: tuple[str, ...]
    keeps: tuple[str, ...]
    restores: tuple[str, ...]
    never_increases: tuple[str, ...]
    contracts: tuple[str, ...]
    needs_inputs: bool
    acts: str
    unit: int
    bits: float


@dataclass(frozen=True)
class Entry:
    """Describe one class of techniques."""

    name: str
    title: str
    about: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    behaviours: tuple[Behaviour, ...]
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return {
            **{name: getattr(self, name) for name in ("name", "title", "about", "sources")},
            "parameters": [vars(parameter) for parameter in self.parameters],
            "representatives": [vars(behaviour) for behaviour in self.behaviours],
        }


def catalogue(kinds: Iterable[type[Technique]] | None = None) -> list[Entry]:
    """Return an entry for each class, by default for every registered one."""
    return [_entry(kind) for kind in (Technique.known().values() if kinds is None else kinds)]


def _entry(kind: type[Technique]) -> Entry:
    title = _lines(sys.modules[kind.__module__].__doc__)[:1] or [kind.__name__]
    about, meanings = _split(_lines(kind.__doc__), [f.name for f in fields(kind) if f.init])
    keys = [key for match in KEY.finditer("\n".join([*title, *about, *meanings.values()])) for key in _keys(match)]
    return Entry(
        name=kind.__name__,
        title=title[0],
        about=tuple(about),
        parameters=tuple(_parameter(kind, f, meanings) for f in fields(kind) if f.init),
        behaviours=tuple(map(_behaviour, representatives(kind))),
        sources=tuple(dict.fromkeys(keys)),
    )


def _lines(docstring: str | None) -> list[str]:
    return inspect.cleandoc(docstring or "").splitlines()


def _split(lines: list[str], names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs of a docstring, and its text for each parameter.

    The text of a parameter begins with "name: " at the start of a line or sentence. It goes on with indented lines, and
    with others until a sentence ends.
    """
    listed = "|".join(map(re.escape, names)) or "$^"
    begin = re.compile(rf"(?:^|(?<=[.)\]] ))((?:{listed})(?:, (?:{listed}))*): ")
    paragraphs, meanings, current = [""], dict[str, str](), tuple[str, ...]()
    for line in lines:
        found = list(begin.finditer(line))
        rest = line[: found[0].start()] if found else line
        if not line.strip():
            paragraphs += [""] if paragraphs[-1] else []
            current = ()
        elif current and rest.strip() and (line.startswith(" ") or not meanings[current[0]].endswith(".")):
            for name in current:
                meanings[name] += f" {rest.strip()}"
        elif rest.strip():
            if current and paragraphs[-1]:
                paragraphs.append("")
            paragraphs[-1] = f"{paragraphs[-1]} {rest.strip()}".strip()
            current = ()
        ends = [match.start() for match in found[1:]] + [len(line)] * bool(found)
        for match, end in zip(found, ends, strict=True):
            current = tuple(match[1].split(", "))
            for name in current:
                meanings[name] = line[match.end() : end].strip()
    return [paragraph for paragraph in paragraphs if paragraph], meanings


def _parameter(kind: type[Technique], field: Any, meanings: dict[str, str]) -> Parameter:
    known = kind.fixtures.values.get(field.name) or VALUES.get(field.name, ())
    given = field.default if field.default is not MISSING else MISSING
    if field.default_factory is not MISSING:
        given = field.default_factory()
    allowed = {getattr(t, field.name) for t in conventions(kind) if known}
    tried = tuple(_written(value) for value in known if value in allowed)
    return Parameter(field.name, meanings.get(field.name, ""), "" if given is MISSING else _written(given), tried)


def _written(value: Any) -> str:
    return str(value) if isinstance(value, Fraction) else repr(value)


def _behaviour(technique: Technique) -> Behaviour:
    promised = technique.promises()
    laws = {name: contract.law for name, contract in contracts().items() if getattr(promised, name) is True}
    if not promised.never_increases:
        laws.pop("any_inputs", None)
    return Behaviour(
        technique=str(technique),
        sets_up=tuple(sorted(sets_up(technique))),
        keeps=tuple(sorted(promised.keeps)),
        restores=tuple(sorted(promised.restores)),
        never_increases=tuple(sorted(promised.never_increases)),
        contracts=tuple(laws.values()),
        needs_inputs=technique.needs_inputs,
        acts="; then ".join(
            f"{'selects' if isinstance(step, Selection) else 'rounds'} in {step.partition}"
            for step in technique.steps()
        ),
        unit=technique.unit,
        bits=round(bits_of(technique), 3),
    )


def bits_of(technique: Technique, shape: tuple[int, int] = SHAPE) -> float:
    """Return the bits that each weight of a layer takes after the technique.

    The layer has this shape (out, in) and normal random weights. If the technique does not fit, columns are added, or
    the shape is transposed.
    """
    import torch

    from compcomp.language.size import layer_bits

    shape = shape[0], technique.unit * -(-shape[1] // technique.unit)
    shape = next((s for s in (shape, shape[::-1], (shape[1], shape[1])) if technique.fits(s)), shape)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    inputs = torch.randn((shape[1], 2 * shape[1]), generator=generator, dtype=torch.float64, device="cpu")
    after = technique.kernel()(technique, LayerState.dense(weight, inputs))
    return layer_bits(after.format, shape) / (shape[0] * shape[1])


def _keys(match: re.Match[str]) -> list[str]:
    return [key.strip() for key in match[1].split(",") if key.strip()]


# ---------------------------------------------------------------------------------------- Markdown


def markdown(entries: list[Entry]) -> str:
    """Return the page of these entries."""
    rows, columns = SHAPE
    lines = [
        "# Techniques",
        "",
        "Written by `compcomp catalogue` from the docstrings and contracts in `encodings/`; do not edit. The laws of",
        "the contracts are at the [end](#contracts). [keeps.md](keeps.md) says which technique keeps the invariants",
        "that another sets up. The invariants are a mask, its n:m pattern, a grid, a rank, and the shape that is left",
        'when rows and columns are removed; "factors" is the low-rank branch. The bits are those that each weight of a',
        f"{rows} x {columns} layer of random weights takes after the technique, with all scales, masks and factors",
        "that have to be stored. A dense weight takes 16.",
        "",
        "| technique | description | bits |",
        "|---|---|---|",
    ]
    for entry in entries:
        bits = " / ".join(_number(behaviour.bits) for behaviour in entry.behaviours)
        lines.append(f"| [{entry.name}](#{entry.name.lower()}) | {_escaped(entry.title)} | {bits} |")
    for entry in entries:
        lines += ["", f"## {entry.name}", "", _linked(entry.title)]
        for paragraph in entry.about:
            lines += ["", _linked(paragraph)]
        if entry.parameters:
            lines += ["", "| parameter | default | meaning | values tested |", "|---|---|---|---|"]
            lines += [
                "| "
                + " | ".join(
                    (
                        f"`{p.name}`",
                        f"`{p.default}`" if p.default else "",
                        _escaped(_linked(p.meaning)),
                        ", ".join(f"`{value}`" for value in p.tried),
                    )
                )
                + " |"
                for p in entry.parameters
            ]
        for behaviour in entry.behaviours:
            lines += ["", f"`{behaviour.technique}`:", "", *(f"- {text}" for text in _said(behaviour))]
    lines += ["", "## Contracts", "", "Proofs depend on these. `check_encoding` looks for layers that break them.", ""]
    lines += ["| contract | law | rules that rely on it |", "|---|---|---|"]
    for contract in contracts().values():
        rules = ", ".join(f"[{rule.replace('_', ' ')}](proofs/{rule}.md)" for rule in contract.rules)
        weaker = " (declaring it promises less)" if contract.weaker else ""
        lines.append(f"| `{contract.name}` | {_escaped(contract.law)}{weaker} | {rules} |")
    return "\n".join(lines) + "\n"


def _said(behaviour: Behaviour) -> list[str]:
    found = [
        ("sets up", behaviour.sets_up),
        ("keeps", behaviour.keeps),
        ("restores", behaviour.restores),
        ("never increases", behaviour.never_increases),
    ]
    lines = [f"{does} {', '.join(what)}" for does, what in found if what]
    lines += [behaviour.acts] if behaviour.acts else []
    lines += ["needs calibration inputs"] if behaviour.needs_inputs else []
    lines += [f"rows of a multiple of {behaviour.unit} weights"] if behaviour.unit > 1 else []
    return [*lines, *behaviour.contracts, f"{_number(behaviour.bits)} bits a weight"]


def _number(bits: float) -> str:
    return f"{bits:.4g}"


def _linked(text: str) -> str:
    """Return the text with its citation keys as links."""
    return KEY.sub(lambda match: ", ".join(f"[{key}](references.md)" for key in _keys(match)), text)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")

"""Read recipes of llm-compressor: stages of groups of modifiers, in YAML or JSON.

Data from llm-compressor 0.14.0.1: ``recipe/recipe.py`` (what is read), ``modifiers/`` (parameters, defaults, what is
done to weights). Its GPTQ kept zeros until #2860 (June 2026).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from compcomp.auditing.schemes import PRESETS, SCHEME_KEYS, Grid, grid_of, inputs_of
from compcomp.auditing.steps import (
    LEAVES,
    PRUNES,
    QUANTIZES,
    SCALES,
    TRAINS,
    UNKNOWN,
    Problem,
    Step,
    ToolRecipe,
    Values,
    dropped_of,
)
from compcomp.errors import InputError
from compcomp.language.technique import Technique
from compcomp.techniques import (
    AWQ,
    GPTQ,
    DistillLogits,
    Hadamard,
    Magnitude,
    SmoothQuant,
    SparseGPT,
    Wanda,
)

TOOL, VERSION = "llm-compressor", "0.14"
LAST_WITH_TRAIN = (0, 8)
"""The last version that trains in a recipe's stage, by its documentation."""
LAST_WITH_MASK = (0, 10)
"""A version, of March 2026, whose GPTQ kept zeros. It was taken out in #2860 in June 2026; 0.14 does not have it."""

_ALL = frozenset({"index", "group", "start", "end", "update"})
_QUANTIZATION = frozenset(
    {
        "config_groups",
        "targets",
        "ignore",
        "scheme",
        "kv_cache_scheme",
        "weight_observer",
        "input_observer",
        "output_observer",
        "observer",
        "bypass_divisibility_checks",
    }
)
_SPARSITY = frozenset(
    {
        "sparsity",
        "sparsity_profile",
        "mask_structure",
        "owl_m",
        "owl_lmbda",
        "sequential_update",
        "targets",
        "ignore",
    }
)
_SMOOTH = frozenset(
    {"smoothing_strength", "mappings", "ignore", "num_calibration_steps", "calibration_function", "algorithm"}
)
_ROTATION = frozenset({"rotations", "transform_type", "randomize", "learnable", "precision", "transform_block_size"})
PARAMETERS: dict[str, frozenset[str]] = {
    "SparseGPTModifier": _SPARSITY | {"block_size", "dampening_frac", "preserve_sparsity_mask", "offload_hessians"},
    "WandaPruningModifier": _SPARSITY,
    "MagnitudePruningModifier": frozenset(
        {
            "targets",
            "init_sparsity",
            "final_sparsity",
            "update_scheduler",
            "scheduler_args",
            "mask_structure",
            "leave_enabled",
            "apply_globally",
        }
    ),
    "ConstantPruningModifier": frozenset({"targets"}),
    "GPTQModifier": _QUANTIZATION | {"block_size", "dampening_frac", "actorder", "batched_quantization"},
    "QuantizationModifier": _QUANTIZATION,
    "AutoRoundModifier": _QUANTIZATION
    | {"iters", "enable_torch_compile", "batch_size", "lr", "device_ids", "disable_opt_rtn"},
    "SmoothQuantModifier": _SMOOTH,
    "LogarithmicEqualizationModifier": _SMOOTH,
    "AWQModifier": frozenset({"mappings", "offload_device", "duo_scaling", "n_grid"}),
    "SpinQuantModifier": _ROTATION | {"mappings", "norm_mappings", "transform_config"},
    "QuIPModifier": _ROTATION | {"targets", "ignore", "transform_config"},
    "REAPPruningModifier": frozenset({"sparsity", "ignore", "report_path"}),
}
"""Each modifier that 0.14.0.1 reads, and its parameters besides those that every modifier has."""
REQUIRED = {
    "SparseGPTModifier": ("sparsity",),
    "WandaPruningModifier": ("sparsity",),
    "MagnitudePruningModifier": ("targets", "init_sparsity", "final_sparsity"),
    "ConstantPruningModifier": ("targets",),
    "REAPPruningModifier": ("sparsity",),
}
SAVING = "saving rounds the weights to the stored scales once more, without compensation for what later steps changed"
QUANTIZERS = ("GPTQModifier", "QuantizationModifier", "AutoRoundModifier")
_SEQUENTIAL = "sequential_update"
OLDER: dict[str, frozenset[str]] = {"GPTQModifier": frozenset({_SEQUENTIAL, "offload_hessians"})}
"""Parameters that earlier versions had and 0.14 refuses."""


def is_recipe(data: Any) -> bool:
    """Return True if the data looks like a recipe of this tool: a mapping with stages or modifiers."""
    return isinstance(data, dict) and any(
        str(key).endswith(("_stage", "_modifiers"))
        or str(key) == "modifiers"
        or (isinstance(value, dict) and any(str(inner).endswith(("modifiers", "Modifier")) for inner in value))
        for key, value in data.items()
    )


def read(data: Mapping[str, Any], version: str | None = None) -> list[ToolRecipe]:
    """Return the steps of a recipe, in the order in which the tool reads them."""
    reading = _Reading(_numbers(version or VERSION))
    steps = [step for found in _modifiers(data, reading) if (step := _step(found, reading)) is not None]
    _check_awq(steps, reading)
    if not steps and not reading.problems:
        reading.problems.append(
            Problem(f"{TOOL} {version or VERSION} reads no modifier from this recipe: it does nothing")
        )
    return [ToolRecipe(TOOL, version or VERSION, tuple(steps), tuple(reading.problems), tuple(reading.notes))]


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.removeprefix("v").split(".")
    if not parts or not all(part.isdigit() for part in parts):
        raise InputError(f"version {version[:40]!r}", "numbers such as 0.14", TOOL)
    return tuple(map(int, parts))


@dataclass
class _Reading:
    """Collect what is remarked while a recipe is read."""

    version: tuple[int, ...]

    def __post_init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    @property
    def name(self) -> str:
        return f"{TOOL} {'.'.join(map(str, self.version))}"

    def refused(self, text: str) -> None:
        self.problems.append(Problem(f"{self.name} refuses this recipe: {text}"))

    def ignored(self, text: str) -> None:
        self.problems.append(Problem(f"{self.name} reads nothing there: {text}"))


@dataclass(frozen=True)
class _Modifier:
    name: str
    given: Mapping[str, Any]
    place: str
    trains: bool


def _modifiers(data: Mapping[str, Any], reading: _Reading) -> Iterator[_Modifier]:
    """Yield the modifiers that the tool reads. It takes keys that end in _stage, and in them keys in _modifiers."""
    for key, stage in data.items():
        if key == "args":
            continue
        if not str(key).endswith("_stage") or not isinstance(stage, dict):
            if _holds_modifiers(stage) or str(key).endswith("modifiers"):
                reading.ignored(
                    f"{key!r} is no stage; it reads mappings whose name ends in '_stage', with groups of modifiers "
                    f"whose names end in '_modifiers'"
                )
            else:
                reading.notes.append(f"{key!r} is no stage and is ignored by the tool")
            continue
        trains = str(stage.get("run_type", "oneshot")).lower() == "train"
        if trains and reading.version > LAST_WITH_TRAIN:
            reading.notes.append(
                f"run_type: train of {key!r} trains in {TOOL} up to 0.8; later versions ignore run_type, so train "
                "outside the recipe. The step is read here as training under constant masks"
            )
        for group, modifiers in stage.items():
            if not str(group).endswith("_modifiers") or not isinstance(modifiers, dict):
                if _names_modifiers(modifiers) or str(group).endswith("modifiers"):
                    reading.ignored(
                        f"the group {group!r} of {key!r} is not called such as 'pruning_modifiers' (the name has to "
                        "end in '_modifiers'), so its modifiers do nothing"
                    )
                elif group not in ("run_type", "args"):
                    reading.notes.append(f"{group!r} of {key!r} is ignored by the tool")
                continue
            for name, given in modifiers.items():
                place = f"{key}: {group}"
                if not isinstance(given, dict):
                    reading.refused(f"{name} of {place} has no mapping of parameters; write {name}: {{}}")
                    given = {}
                yield _Modifier(str(name), given, place, trains)


def _names_modifiers(data: Any) -> bool:
    return isinstance(data, dict) and any(str(key).endswith("Modifier") for key in data)


def _holds_modifiers(data: Any) -> bool:
    return _names_modifiers(data) or (isinstance(data, dict) and any(map(_names_modifiers, data.values())))


def _step(modifier: _Modifier, reading: _Reading) -> Step | None:
    name, given = modifier.name, modifier.given
    allowed = PARAMETERS.get(name)
    if allowed is None:
        reading.refused(f"{name} of {modifier.place} is no modifier; it has {', '.join(PARAMETERS)}")
        return Step(name, modifier.place, unknown=(f"{name} is not known",))
    for parameter in given:
        if parameter not in allowed | _ALL:
            _report_parameter(name, str(parameter), reading)
    if "group" in given:
        reading.refused(f"{name} of {modifier.place} names its group itself")
    for parameter in REQUIRED.get(name, ()):
        if given.get(parameter) is None:
            reading.refused(f"{name} without {parameter}")
    values = Values(given)
    step = _READERS[name](modifier, values, reading)
    return replace(
        step,
        place=modifier.place,
        unknown=(*step.unknown, *values.unknown),
        layers=_layers(given),
        source=f"{TOOL} 0.14.0.1, llmcompressor/modifiers",
    )


def _report_parameter(name: str, parameter: str, reading: _Reading) -> None:
    homes = [other for other, allowed in PARAMETERS.items() if parameter in allowed]
    where = f"; it belongs to {', '.join(homes)}" if homes else ""
    if parameter in OLDER.get(name, ()):
        where = "; earlier versions had it"
    if name == "AWQModifier" and parameter in _QUANTIZATION:
        where = "; give it to a QuantizationModifier that follows"
    reading.refused(f"{name} has no parameter {parameter}{where}")


def _layers(given: Mapping[str, Any]) -> str:
    named = [f"{key}: {given[key]}"[:120] for key in ("targets", "ignore") if given.get(key)]
    return "; ".join(named)


def _pattern(modifier: _Modifier, values: Values, reading: _Reading) -> dict[str, Any]:
    """Return sparsity and pattern. The tool's n:m drops n of every m, and does not look at sparsity then."""
    structure = str(modifier.given.get("mask_structure", "0:0"))
    numbers = structure.split(":")
    if len(numbers) != 2 or not all(part.strip().isdigit() for part in numbers):
        reading.refused(f"mask_structure {structure[:40]!r} of {modifier.name}, which is no n:m")
        return {"sparsity": values.share("sparsity", Fraction(1, 2))}
    n, m = map(int, numbers)
    if n == 0:
        return {"sparsity": values.share("sparsity", Fraction(1, 2))}
    if not n < m <= 64:
        values.unknown.append(f"mask_structure {structure[:40]!r}: n:m with n < m <= 64 is known here")
        return {"sparsity": values.share("sparsity", Fraction(1, 2))}
    share = values.share("sparsity", Fraction(n, m))
    if share != Fraction(n, m):
        reading.notes.append(
            f"{modifier.name}: sparsity {float(share):g} has no effect with mask_structure {structure}, which "
            f"drops {n} of every {m} weights"
        )
    return dropped_of(n, m)


def _profile(modifier: _Modifier) -> tuple[str, ...]:
    if modifier.given.get("sparsity_profile") or isinstance(modifier.given.get("sparsity"), list):
        return ("the sparsity differs from layer to layer; the claims are about one share",)
    return ()


def _sparsegpt(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    preserve = values.truth("preserve_sparsity_mask", default=False)
    pattern = _pattern(modifier, values, reading)
    damping = values.share("dampening_frac", Fraction(1, 100)) or Fraction(1, 100)
    technique = SparseGPT(
        **pattern,
        block=values.whole("block_size", 128),
        damping=damping,
        mask="kept" if preserve else "ignored",
    )
    kept = "are chosen first" if preserve else "may be filled by updates (preserve_sparsity_mask is false)"
    return Step(
        modifier.name,
        does=PRUNES,
        techniques=(technique,),
        conventions=(f"weights that were pruned before {kept}",),
        differs=("unstructured, it drops one more weight of each block, and all that tie with it",)
        if "pattern" not in pattern
        else (),
        unknown=_profile(modifier),
        keeps_mask="" if preserve else "preserve_sparsity_mask: true",
    )


def _wanda(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    technique = Wanda(**_pattern(modifier, values, reading))
    return Step(
        modifier.name,
        does=PRUNES,
        techniques=(technique,),
        conventions=("scores |w| times the norm of the input; the other weights stay as they are",),
        unknown=_profile(modifier),
    )


def _magnitude(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    share = values.share("final_sparsity", Fraction(1, 2))
    structure = str(modifier.given.get("mask_structure", "unstructured"))
    numbers = structure.split(":")
    pattern: dict[str, Any] = {"sparsity": share}
    if len(numbers) == 2 and all(part.isdigit() for part in numbers) and 0 < int(numbers[0]) < int(numbers[1]) <= 64:
        pattern = dropped_of(int(numbers[0]), int(numbers[1]))
    elif structure != "unstructured":
        values.unknown.append(f"mask_structure {structure[:40]!r}")
    return Step(
        modifier.name,
        does=PRUNES,
        techniques=(Magnitude(**pattern),),
        conventions=("the sparsity grows from init_sparsity to final_sparsity while the model trains",),
        differs=("training between the rounds is not modelled: the mask at the end is that of one selection",),
    )


def _constant(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    if modifier.trains:
        return Step(
            modifier.name,
            does=TRAINS,
            techniques=(DistillLogits(iterations=1),),
            conventions=("training may change every weight; after each optimizer step those that were 0 are 0 again",),
            differs=("the outcome of training is left open, so what is proved holds for any",),
        )
    return Step(
        modifier.name,
        does=LEAVES,
        conventions=("it acts after optimizer steps; a stage without training has none, so it changes nothing",),
    )


def _scheme(modifier: _Modifier, values: Values, reading: _Reading) -> tuple[Grid | None, Technique | None, list[str]]:
    """Return the grid of the weights, the technique of the inputs, and remarks."""
    given, remarks = modifier.given, list[str]()
    schemes: list[Mapping[str, Any]] = []
    scheme, groups = given.get("scheme"), given.get("config_groups")
    names: list[Any] = []
    if isinstance(scheme, str):
        names = [scheme]
    elif isinstance(scheme, dict) and set(scheme) <= SCHEME_KEYS:
        reading.refused(
            f"scheme of {modifier.name} as a mapping of arguments; it has to name a preset, or use config_groups"
        )
        schemes = [scheme]
    elif isinstance(scheme, dict):
        names = list(scheme)
    for name in names:
        preset = PRESETS.get(str(name).upper())
        if preset is None:
            reading.refused(f"{str(name)[:40]!r} is no preset scheme; it has {', '.join(PRESETS)}")
        else:
            schemes.append(preset)
            remarks.append(f"the preset {str(name).upper()}")
    if isinstance(groups, dict):
        schemes += [part for part in groups.values() if isinstance(part, dict)]
    for part in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(part, dict):
            reading.refused(f"config_groups of {modifier.name} has a group that is no mapping")
        elif strange := sorted(map(str, set(part) - SCHEME_KEYS)):
            reading.refused(f"config_groups of {modifier.name} has {strange[0]!r}")
        elif part.get("targets") is None:
            reading.refused(f"config_groups of {modifier.name} has a group without targets")
    if not schemes:
        if scheme is None and groups is None and modifier.name == "GPTQModifier":
            reading.notes.append(f"{modifier.name} has no scheme of its own: it uses that of a quantizer before it")
            values.unknown.append("the grid is that of another modifier; 4 bits in groups of 128 stand for it")
            return Grid(4, "int", True, 128, "group", "full_range"), None, remarks
        if scheme is None and groups is None:
            reading.refused(f"{modifier.name} without scheme or config_groups")
        return None, None, remarks
    grids, inputs = list[Grid](), None
    for part in schemes:
        weights = part.get("weights")
        if isinstance(weights, dict):
            grid, refused, unknown = grid_of(weights)
            for text in refused:
                reading.refused(f"{text} ({modifier.name})")
            values.unknown += unknown
            grids += [grid] if grid is not None else []
        activations = part.get("input_activations")
        technique, text = inputs_of(activations if isinstance(activations, dict) else None)
        inputs = inputs or technique
        remarks += [text] if text else []
    if len(set(grids)) > 1:
        values.unknown.append(
            f"layers differ: {'; '.join(map(str, dict.fromkeys(grids)))}. The claims are about the first"
        )
    return (grids[0] if grids else None), inputs, remarks


def _gptq(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    grid, inputs, remarks = _scheme(modifier, values, reading)
    if grid is None:
        return Step(modifier.name, does=LEAVES if inputs else UNKNOWN, techniques=(inputs,) if inputs else ())
    older = reading.version <= LAST_WITH_MASK
    actorder = modifier.given.get("actorder", "static")
    if str(actorder).lower() in ("group", "dynamic") or actorder is True:
        reading.refused(f"actorder {str(actorder).lower()!r} of {modifier.name}, which was removed")
    ordered = actorder not in (None, False) and not older
    technique = GPTQ(
        bits=grid.bits,
        group=grid.group,
        damping=values.share("dampening_frac", Fraction(1, 100)) or Fraction(1, 100),
        order="activation" if ordered else "left_to_right",
        static_groups=True,
        mask="kept" if older else "ignored",
        grid=grid.levels or "narrow",
    )
    if older:
        zeros = "a layer with at least 5 % zeros keeps them, as GPTQ did before #2860 (June 2026)"
        reading.notes.append(f"{modifier.name}: {zeros}; a layer with fewer zeros keeps none")
    else:
        zeros = "zeros of earlier steps are not kept: #2860 (June 2026) took that out of GPTQ; 0.10 (March 2026) has it"
    differs = [*grid.differs()]
    if grid.kind == "float" or not grid.symmetric:
        differs.append("columns compensate for each other's errors on any grid, which is what fills zeros")
    return Step(
        modifier.name,
        does=QUANTIZES,
        techniques=(technique, *([inputs] if inputs else [])),
        nearest=grid.nearest(),
        conventions=(
            *remarks,
            str(grid),
            "columns in activation order" if ordered else "columns left to right",
            zeros,
            SAVING,
        ),
        differs=tuple(differs),
    )


def _nearest(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    grid, inputs, remarks = _scheme(modifier, values, reading)
    if grid is None:
        return Step(modifier.name, does=LEAVES, techniques=(inputs,) if inputs else (), conventions=tuple(remarks))
    return Step(
        modifier.name,
        does=QUANTIZES,
        techniques=(grid.nearest(), *([inputs] if inputs else [])),
        conventions=(*remarks, str(grid), "round to nearest", SAVING),
        differs=grid.differs(),
    )


def _autoround(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    _, _, remarks = _scheme(modifier, values, reading)
    return Step(
        modifier.name,
        conventions=(*remarks, "roundings and clip ratios are trained; a zero may round to the next step"),
        unknown=("trained rounding is no technique here",),
    )


def _smooth(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    return Step(
        modifier.name,
        does=SCALES,
        techniques=(SmoothQuant(alpha=values.share("smoothing_strength", Fraction(1, 2))),),
        conventions=("columns are scaled against the inputs; the layer before takes the inverse",),
        differs=("scales are shared by layers with the same inputs; whether zeros stay zero does not depend on it",),
    )


def _awq(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    return Step(
        modifier.name,
        does=SCALES,
        techniques=(AWQ(bits=4, group=None),),
        conventions=("columns are scaled by a power of their inputs that is chosen from a list; it does not round",),
        differs=("with duo_scaling the scales also see the weights; a scaled zero is zero either way",),
    )


def _rotation(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    return Step(
        modifier.name,
        does=SCALES,
        techniques=(Hadamard(),),
        conventions=("weights are mixed by orthogonal matrices; zeros are not kept",),
        differs=("which layers are rotated on which side depends on the model; one rotation of inputs stands for it",),
    )


def _reap(modifier: _Modifier, values: Values, reading: _Reading) -> Step:
    return Step(
        modifier.name,
        does=LEAVES,
        conventions=("whole experts are removed; the layers of those that are left do not change",),
    )


_READERS = {
    "SparseGPTModifier": _sparsegpt,
    "WandaPruningModifier": _wanda,
    "MagnitudePruningModifier": _magnitude,
    "ConstantPruningModifier": _constant,
    "GPTQModifier": _gptq,
    "QuantizationModifier": _nearest,
    "AutoRoundModifier": _autoround,
    "SmoothQuantModifier": _smooth,
    "LogarithmicEqualizationModifier": _smooth,
    "AWQModifier": _awq,
    "SpinQuantModifier": _rotation,
    "QuIPModifier": _rotation,
    "REAPPruningModifier": _reap,
}


def _check_awq(steps: list[Step], reading: _Reading) -> None:
    """Report the one rule about order that the tool has: a quantizer follows AWQ."""
    for place, step in enumerate(steps):
        if step.name == "AWQModifier" and not any(later.name in QUANTIZERS for later in steps[place + 1 :]):
            reading.refused("AWQModifier with no quantizer after it (the tool's only rule about order)")

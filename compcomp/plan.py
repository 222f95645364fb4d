"""The plan that users get: the result of a search, with methods to apply, save and report it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compcomp.compress import Patterns, apply_plan, planned
from compcomp.errors import InputError
from compcomp.models.calibration import SEQUENTIAL, Calibration
from compcomp.ordering.plan import PlanData
from compcomp.ordering.saved import save_plan

if TYPE_CHECKING:
    from compcomp.models.bench import ModelBench


@dataclass(frozen=True)
class Setting:
    """The model that a plan was measured on, and its arguments. ``bench`` is None without a model."""

    bench: ModelBench | None = None
    calibration: Any = None
    device: Any = "auto"
    targets: Patterns = None
    ignore: Patterns = ("lm_head",)
    inputs: Calibration = SEQUENTIAL

    def unchanged(self, where: str) -> ModelBench:
        """Return the bench. Raises InputError unless its model is as the search or the plan left it."""
        assert self.bench is not None
        if (name := self.bench.changed()) is not None:
            raise InputError(
                f"a model whose weights have changed since the plan was made ({name})",
                "the model as it was; compcomp.apply(plan.order, model, calibration) compresses what it is now",
                where,
            )
        return self.bench


@dataclass(frozen=True)
class Plan(PlanData):
    """The order to take, how it was found, and methods to apply, save and report it.

    The fields are those of :class:`compcomp.ordering.plan.PlanData`, and ``setting``: the model it was measured on.
    """

    setting: Setting = field(default_factory=Setting, repr=False)

    @classmethod
    def of(cls, data: PlanData, setting: Setting) -> Plan:
        """Return the plan for the result of a search and the model that it was measured on."""
        return cls(**{f.name: getattr(data, f.name) for f in fields(PlanData)}, setting=setting)

    def apply(self, model: Any, calibration: Any = None) -> Any:
        """Compress a model by the plan's order, write its effective weights, and return it.

        Args:
            model: The model to compress, in place.
            calibration: Batches for the model. Required if the order looks at inputs and the plan was made without a
                model. The model of the search is compressed with the calibration collected during the search, unless
                another is given.

        Raises:
            InputError: The model of the search has changed since, or the order does not fit the model.
        """
        at = self.setting
        if at.bench is None or calibration is not None or not _is_same_model(model, at.bench.model):
            given = at.calibration if calibration is None else calibration
            return apply_plan(self, model, given, at.device, at.targets, at.ignore, at.inputs)
        with at.unchanged("Plan.apply") as bench:
            bench.write(planned(self, bench))
        return model

    def save(self, directory: str | Path, format: str | None = None) -> None:
        """Write ``plan.json``, and the compressed model if the plan was measured on one.

        ``plan.json`` has the outcome of each order too. If there are more than 5040 orders, their outcomes are written
        to ``accounts.tsv``, with numbers for techniques and proofs.

        Args:
            directory: The directory to write to, new or existing.
            format: The format of the model's files, as of :func:`compcomp.export`. None: dense weights,
                and the parts of the compressed layers next to them.

        Raises:
            InputError: The model cannot be written there, or the order does not fit the format.
        """
        folder = Path(directory)
        if self.setting.bench is not None:  # save refuses what cannot be written before it writes anything
            with self.setting.unchanged("Plan.save") as bench:
                self._save_model(bench, folder, format)
        elif format is not None:
            raise InputError(f"format={format!r}", "a plan that was made with a model", "Plan.save")
        save_plan(self, folder)

    def _save_model(self, bench: ModelBench, folder: Path, format: str | None) -> None:
        from compcomp.models.save import save

        about = {"order": str(self.order), "optimality": self.optimality, "layer_orders": self.layer_orders}
        if format is None:
            save(bench.model, planned(self, bench), folder, about)
            return
        from compcomp.exporting.compressing import exported

        layers = {name: self.own_orders.get(name, self.order) for name in bench.layer_names()}
        with exported(bench.model, layers, folder, format) as draft:
            save(bench.model, planned(self, bench), draft, about)

    def export_recipe(self, tool: str, path: str | Path | None = None) -> str:
        """Return the plan's order as a recipe of another tool, and write it to a file if one is given.

        The recipe is read again as :func:`compcomp.auditing.audit.audit` does, and gives the same techniques with the
        same parameters. Where the tool differs in a detail that no parameter names, a warning says so.

        Args:
            tool: "llm-compressor" for YAML, "olive" for JSON.
            path: The file to write.

        Raises:
            InputError: The tool has no such step, or carries it out with other conventions; layers have orders of their
                own; or the file cannot be written.
        """
        from compcomp.auditing.writing import recipe_text

        if self.own_orders:
            raise InputError("a plan with orders of single layers", "one order for all layers", "export_recipe")
        at, layers = self.setting, dict[str, Any]()
        if at.bench is not None:
            layers = {"ignore": tuple(at.ignore or ()), "targets": tuple(at.targets or ("Linear",))}
            name = getattr(getattr(at.bench.model, "config", None), "name_or_path", "")
            layers |= {"model": name} if name else {}
        text = recipe_text(self.order, tool, **layers)
        if path is not None:
            try:
                Path(path).write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{str(path)!r} ({error.strerror})", "a file to write", "export_recipe") from None
        return text

    def report(self, path: str | Path) -> None:
        """Write an HTML report, one file, to this path."""
        try:
            from compcomp.reporting import write_report
        except ModuleNotFoundError as error:
            raise InputError(f"no module {error.name}", "an installation with reporting", "Plan.report") from None
        write_report(self, path)


def _is_same_model(one: Any, other: Any) -> bool:
    """Return True if two models are the same, apart from compilers and data parallelism around them."""
    from torch import nn

    from compcomp.models.wrappers import unwrap

    return one is other or (isinstance(one, nn.Module) and unwrap(one) is unwrap(other))

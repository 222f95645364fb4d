"""The command line interface: the library's functions as commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from compcomp.errors import InputError, Interrupted
from compcomp.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from compcomp.language.claim import Claim
    from compcomp.language.verdict import Status, Verdict
    from compcomp.plan import Plan
    from compcomp.recipe import Recipe

app = typer.Typer(
    name="compcomp",
    help="In which order should compression techniques be applied to a language model, and can it be proved?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Where the compressed model and plan.json go.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]


@app.command()
def prove(
    claim: Annotated[
        str,
        typer.Argument(
            help="'A dominates B', 'A equals B', 'A same state as B', 'A keeps mask' or 'A fits W4 2:4'; also "
            "'... given x'."
        ),
    ],
    loss: Annotated[str, typer.Option(help="weight_l1, weight_l2, weight_l3, weight_l4 or output_l2.")] = "weight_l2",
    scope: Annotated[str, typer.Option(help="any, 2x4 (out x in) or block:32.")] = "any",
    timeout: Annotated[float, typer.Option(help="Seconds for the whole of it.")] = 60.0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Also write the verdict, with certificates, to this new directory.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="A file of verdicts: what follows from one of them is not asked again."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="In place of a verdict: for each rule, what it needs and what is missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove or refute a claim.

    With --store the verdict is kept in the file, and is found there the next time.
    With --save it is always decided afresh, because its certificates are about this very claim.
    With --why only the rules are tried, also those for the shape of --scope.
    Exit status 3 then means that no rule proves the claim.

    Exit status: 0 proved, 1 refuted, 2 wrong use, 3 unknown or any other verdict.
    """
    import compcomp.techniques  # noqa: F401  (registers the techniques that a claim may name)
    from compcomp.language.text import parse_claim

    parsed = parse_claim(claim, loss)
    if why:
        if save is not None or store is not None:
            raise InputError("--why with --save or --store", "--why alone: it finds no verdict", "prove")
        _explain(parsed, scope, timeout, as_json=as_json)
    with _waiting(f"deciding {parsed}"):
        verdict = _decided(parsed, scope, timeout, store, certify=save is not None)
    if save is not None:
        verdict.save(save)
    if as_json:
        _print_json(verdict.to_json())
    else:
        from compcomp.reporting.terminal import verdict_view

        _console().print(verdict_view(verdict))
    raise typer.Exit(_exit_status(verdict))


def _explain(claim: Claim, scope: str, timeout: float, *, as_json: bool) -> NoReturn:
    """Print for each rule what it needs and what is missing. Exit with status 0 if a rule proves the claim, else 3."""
    from compcomp.proving.prove import why

    with _waiting(f"asking the rules about {claim}"):
        answers = why(claim, scope, timeout=timeout)
    if as_json:
        _print_json({"claim": str(claim), "rules": [answer.to_json() for answer in answers]})
    else:
        from compcomp.reporting.terminal import answers_view

        _console().print(answers_view(answers))
    raise typer.Exit(0 if any(answer.refusal is None for answer in answers) else 3)


def _decided(claim: Claim, scope: str, timeout: float, path: Path | None, *, certify: bool) -> Verdict:
    """Return the verdict: from the store if it is known there, else decided now."""
    from compcomp.proving.prove import prove as decide

    if path is None:
        return decide(claim, scope, timeout=timeout, certify=certify)
    from contextlib import closing

    from compcomp.language.claim import Scope
    from compcomp.ordering.ask import Asker
    from compcomp.ordering.store import Store

    with closing(Store(path)) as store:
        asker, options = Asker(store=store), {"timeout": timeout}
        known = None if certify else asker.recall(claim, Scope.of(scope), options)
        if known is not None:
            return known
        verdict = decide(claim, scope, timeout=timeout, certify=certify)
        asker.learn(verdict, options)
        return verdict


@app.command()
def condition(
    claim: Annotated[str, typer.Argument(help="A claim that is false in general, as for prove.")],
    loss: Annotated[str, typer.Option(help="As for prove.")] = "weight_l2",
    scope: Annotated[str, typer.Option(help="any, 2x4 (out x in) or block:32.")] = "any",
    timeout: Annotated[float, typer.Option(help="Seconds for the whole of it.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Find the fewest named conditions under which a claim is proved (docs/conditions.md).

    Exit status: 0 proved, with or without conditions; 2 wrong use; 3 none found.
    """
    import compcomp.techniques  # noqa: F401
    from compcomp.language.text import parse_claim
    from compcomp.proving.conditions import find_condition

    parsed = parse_claim(claim, loss)
    with _waiting(f"looking for conditions for {parsed}"):
        finding = find_condition(parsed, scope=scope, timeout=timeout)
    if as_json:
        _print_json(finding.to_json())
    else:
        sys.stdout.write(f"{finding}\n")
    raise typer.Exit(0 if finding.found else 3)


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="A recipe, a plan.json, or a config.json of compressed-tensors.")],
    tool_version: Annotated[
        str | None, typer.Option("--tool-version", help="Such as 0.8; by default the newest version that is known.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each claim.")] = 60.0,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what each step of a recipe is, and whether later steps keep what earlier ones set up (docs/auditing.md).

    It reads recipes of llm-compressor, Olive, ModelOpt, AIMET, coremltools and compcomp, and executes nothing in them.

    Exit status: 0 every promise is proved, 1 one is broken or the tool would not run the recipe as written, 2 wrong
    use, 3 undecided.
    """
    import compcomp.techniques  # noqa: F401
    from compcomp.auditing.audit import audit as audited
    from compcomp.auditing.report import page, view

    if html is not None and (html.suffix != ".html" or not html.parent.is_dir()):
        raise InputError(repr(str(html)), "a file ending in .html in a folder that is there", "--html")
    with _waiting(f"auditing {file}"):
        found = audited(file, tool_version=tool_version, timeout=timeout)
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
    if as_json:
        _print_json(found.to_json())
    else:
        _console().print(view(found))
    raise typer.Exit(found.exit_status)


@app.command()
def keeps(
    techniques: Annotated[
        list[str] | None, typer.Argument(help="Such as 'AbsMax(bits=4)'; by default representatives of all there are.")
    ] = None,
    invariant: Annotated[
        list[str] | None, typer.Option(help="mask, n:m, grid, rank or shape; all of them by default.")
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option("--out", help="Also write the table to this file: .md, .html, .png or .svg.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each claim.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Show for every ordered pair of techniques whether the second destroys what the first did, proved or refuted.

    Give --out once for each file. Exit status: 0, or 2 for wrong use.
    """
    import compcomp.techniques  # noqa: F401
    from compcomp.language.claim import keeps as claim_of
    from compcomp.language.text import parse_sequence
    from compcomp.ordering.table import INVARIANTS, keeps_table
    from compcomp.reporting.keeps import check_paths, terminal_view, write

    check_paths(out or [])
    if techniques:
        chosen = [technique for text in techniques for technique in parse_sequence(text)]
    else:
        _load_installed()
        chosen = None
    wanted = tuple(claim_of(parse_sequence("identity"), name).invariant or "" for name in invariant or INVARIANTS)
    with _counting("claims") as advance:
        table = keeps_table(chosen, invariants=wanted, timeout=timeout, progress=advance)
    write(table, out or [])
    if as_json:
        _print_json(table.to_json())
    else:
        _console().print(terminal_view(table))


@app.command()
def catalogue(
    out: Annotated[Path | None, typer.Option("--out", help="A Markdown file to write the catalogue to.")] = None,
    as_json: Json = False,
) -> None:
    """List every technique: what it does, its parameters, what it keeps and promises, and its bits of storage."""
    import compcomp.techniques  # noqa: F401
    from compcomp import catalogue as pages

    _load_installed()
    with _waiting("reading the techniques"):
        entries = pages.catalogue()
    if out is not None:
        try:
            out.write_text(pages.markdown(entries), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{str(out)!r} ({error.strerror})", "a file to write to", "--out") from None
    if as_json:
        _print_json({"techniques": [entry.to_json() for entry in entries]})
    elif out is None:
        sys.stdout.write(pages.markdown(entries))


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="The folder that Verdict.save or prove --save wrote.")],
    solvers: Annotated[bool, typer.Option(help="Also ask the installed solvers again.")] = True,
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="Also ask the prover for its queries again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Re-check a saved verdict from its files alone, without the prover (docs/certificates.md).

    With --regenerate the prover is run as well, with the saved answers in place of a solver.
    This checks that the claim needs exactly the saved queries.

    Exit status: 0 valid, 1 invalid, 2 wrong use, 3 holey (something depends on solvers alone).
    """
    from compcomp.checking.directory import MALFORMED, check_directory
    from compcomp.checking.statement import UNASKED

    with _waiting(f"checking {directory}"):
        report = check_directory(directory, solvers=solvers)
        if regenerate and not report.problems:
            from compcomp.proving.certificate.regenerate import regenerated

            try:
                report.problems += filter(None, [regenerated(directory)])
                report.holes = [hole for hole in report.holes if not hole.startswith(UNASKED)]
            except MALFORMED as error:  # InputError among them
                report.problems.append(f"the prover cannot be asked again: {error}"[:300])
    if as_json:
        _print_json(report.to_json())
    else:
        sys.stdout.write(report.describe() + "\n")
    raise typer.Exit({"valid": 0, "invalid": 1}.get(report.outcome, 3))


@app.command()
def optimize(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, see docs/recipes.md.")],
    out: Out = Path("out"),
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate orders, applications, evaluations, minutes and memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the best order for a recipe, and write the model compressed in that order.

    Ctrl-C leaves plan.json with the best order measured until then, and exit status 130.
    If the recipe names a store, the same command continues from there.
    With --dry-run claims are decided, and each part of the search is timed once.
    """
    from compcomp.recipe import load_recipe

    _optimize(load_recipe, recipe, out, device, as_json, dry_run=dry_run)


@app.command()
def apply(
    sequence: Annotated[str, typer.Argument(help="Such as 'SparseGPT(sparsity=1/2) >> GPTQ(bits=4, mask=\"kept\")'.")],
    model: Annotated[Path, typer.Argument(help="A folder with config.json and safetensors, in one file or several.")],
    out: Annotated[Path, typer.Option("--out", help="Where the compressed model goes.")],
    text: Annotated[Path | None, typer.Option(help="A text file to calibrate on.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of tokens, spread over the text.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Windows that run together.")] = 4,
    calibrate: Annotated[str, typer.Option(help="sequential, block or dense (docs/calibration.md).")] = "sequential",
    targets: Annotated[list[str] | None, typer.Option(help="Layers to compress; all of them by default.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layers to leave alone; by default lm_head.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="As of export; by default dense, with components.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compress a model on disk, one block in memory at a time (docs/calibration.md).

    The same command continues a run that ended early. The content of --out stays until the new model is complete.
    """
    import compcomp.techniques  # noqa: F401
    from compcomp.language.text import parse_sequence
    from compcomp.models.causal_lm import token_batches
    from compcomp.models.stream import compress_checkpoint
    from compcomp.reporting.bars import shown

    order = parse_sequence(sequence)
    batches = None if text is None else token_batches(model, text, length, windows, batch_size)
    with shown(progress=True) as progress:
        how: dict[str, Any] = {
            "calibration": batches,
            "device": device or "auto",
            "targets": targets or None,
            "ignore": ignore or ("lm_head",),
            "calibrate": calibrate,
            "on_block": lambda done, total, name: progress.report("apply", done, total, f"{name}: {order}"),
        }
        if form is None:
            found, lines = compress_checkpoint(order, model, out, **how), ""
        else:
            from compcomp.exporting.compressing import compress_and_export

            found, written = compress_and_export(order, model, out, form, **how)
            lines = f"{written}\n"
    if as_json:
        _print_json(found.to_json())
    else:
        sys.stdout.write(f"{found}\n{lines}")


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="A folder that apply, optimize or plan.save wrote.")],
    form: Annotated[str, typer.Option("--format", help="compressed-tensors, gptq ... (docs/exporting.md).")],
    out: Annotated[Path, typer.Option("--out", help="Where the converted model goes.")],
    as_json: Json = False,
) -> None:
    """Convert a compressed model to a format that runtimes read (docs/exporting.md).

    Layers are converted one after another, and nothing in the folder is executed.
    The content of --out stays until the new files are complete.
    """
    from compcomp.exporting.export import export as converted

    with _waiting(f"writing {out}"):
        found = converted(directory, out, form)
    if as_json:
        _print_json(found.to_json())
    else:
        sys.stdout.write(f"{found}\n")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A folder or file: safetensors, GGUF, or adapters of PEFT.")],
    expect: Annotated[str | None, typer.Option(help="What every layer has to fit, such as '2:4 W4g64'.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layers that it is not asked of; give it once each.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a layer's broken n:m groups into this image.")] = None,
    layer: Annotated[str | None, typer.Option(help="The layer to draw; by default the one with the most.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the weights of a checkpoint of any tool: zeros, n:m, grids, rank, bits (docs/inspecting.md).

    The model is not loaded and nothing in the folder is executed.

    Exit status: 0, 1 if some layer does not fit --expect, 2 for wrong use or what cannot be read.
    """
    from compcomp.inspecting.inspect import inspect as measure
    from compcomp.reporting.inspected import inspection_lines, inspection_table, save_broken_png

    with _counting("layers") as advance:
        found = measure(path, expect, ignore=ignore or (), progress=advance)
    if plot is not None:
        save_broken_png(found, plot, layer)
    if as_json:
        _print_json(found.to_json())
    else:
        _console().print(inspection_table(found))
        sys.stdout.write("\n".join(inspection_lines(found)) + "\n")
    raise typer.Exit(0 if found.fits else 1)


@app.command()
def demo(out: Out = Path("out"), device: Device = None, as_json: Json = False) -> None:
    """Order four techniques on the embedded language model: prove, refute, measure, compress."""
    from compcomp.recipe import DEMO, recipe_of

    _optimize(recipe_of, DEMO, out, device, as_json)


def _optimize(read: Any, source: Any, out: Path, device: str | None, as_json: bool, *, dry_run: bool = False) -> None:
    import compcomp.techniques  # noqa: F401

    recipe: Recipe = read(source)
    _check_out(out)
    from compcomp.optimize import estimate, optimize_order
    from compcomp.recipe import check_out, load

    check_out(out, recipe, source if isinstance(source, Path) else None)

    with _waiting("loading the model"):
        loaded = load(recipe)
    arguments: dict[str, Any] = {
        "techniques": list(recipe.techniques),
        "loss": recipe.loss,
        "model": loaded.model,
        "calibration": loaded.calibration,
        "evaluate": loaded.evaluate,
        "device": device or recipe.device,
        "store": None if recipe.store is None else str(recipe.folder / recipe.store),
        "targets": recipe.targets,
        "ignore": recipe.ignore,
        "progress": True,
        **recipe.choices,
    }
    if dry_run:
        found = estimate(**arguments)
        if as_json:
            _print_json(found.to_json())
        else:
            sys.stdout.write(f"{found}\n")
        return
    try:
        plan = optimize_order(**arguments)
    except Interrupted as stop:
        _save_partial(stop.plan, out)
        raise
    plan.save(out)
    plan.report(out / "report.html")
    if as_json:
        _print_json({**plan.to_json(), "out": str(out)})
    else:
        _show(plan, out)


def _save_partial(plan: Plan | None, out: Path) -> None:
    """Write plan.json for an interrupted search, and say on standard error what it has."""
    if plan is None:
        sys.stderr.write("compcomp: interrupted before an order was measured\n")
        return
    from compcomp.ordering.saved import save_plan

    save_plan(plan, out)
    sys.stderr.write(f"compcomp: interrupted; {out / 'plan.json'} has {plan.order}, {plan.standing}\n")


def _show(plan: Plan, out: Path) -> None:
    from compcomp.reporting.terminal import plan_view, verdict_table

    console = _console()
    console.print(verdict_table(plan.verdicts))
    console.print(plan_view(plan))
    written = ", ".join(sorted(path.name for path in out.iterdir()))
    console.print(f"\nWritten to {out}/: {written}", highlight=False)


def _load_installed() -> None:
    """Load the techniques of other installed packages, and name on standard error those that cannot be loaded."""
    from compcomp.language.installed import load_installed

    for problem in load_installed():
        sys.stderr.write(f"compcomp: left out: {problem}\n")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r}, which is a file", "a directory, new or there", "--out")


def _exit_status(verdict: Verdict) -> int:
    from compcomp.language.verdict import Status

    codes: dict[Status, int] = {Status.PROVED: 0, Status.REFUTED: 1}
    return codes.get(verdict.status, 3)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _waiting(what: str) -> Any:
    """Return a context manager that shows a spinner on standard error during a step of some seconds."""
    from rich.console import Console

    return Console(stderr=True).status(what)


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error. Yields a function of (done, total) that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, allow_nan=False, default=str) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"compcomp {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# typer carries a copy of click or depends on it, depending on its version.
_WrongUse: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Run the command line. Wrong use ends in one line on standard error and exit status 2, an interrupt in 130."""
    try:
        status = app(standalone_mode=False)
    except (InputError, _WrongUse) as error:
        message = str(error) if isinstance(error, InputError) else error.format_message()
        sys.stderr.write("compcomp: " + " ".join(message.split()) + "\n")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("compcomp: interrupted\n")
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()

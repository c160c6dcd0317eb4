"""The command line. stdout is the result, stderr is the rest. torch and ray are imported only by what needs them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapbench.errors import GridError, RapbenchError, SpecError

if TYPE_CHECKING:
    from rapbench.grid import Cell
    from rapbench.registry import Found, Registry
    from rapbench.runner.execute import Done
    from rapbench.runner.plan import Plan

DEFAULT_GRID = "demo"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plant textual backdoors into classifiers, defend them, and report how well and at what cost.",
    epilog="Exit codes: 0 all well, 1 some cell failed, 2 usage, 130 interrupted.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 2."""
    try:
        app(args=_with_default_grid(sys.argv[1:]))
    except RapbenchError as error:
        typer.echo(f"rapbench: {' '.join(str(error).split())}", err=True)
        raise SystemExit(USAGE) from None
    except (KeyboardInterrupt, SystemExit) as end:  # typer turns Ctrl-C into an exit with 130
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        typer.echo("rapbench: interrupted; what was finished is kept, the same command goes on", err=True)
        raise SystemExit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"rapbench {importlib.metadata.version('rapbench')}")
        raise typer.Exit


@app.command()
def run(
    grid: Annotated[
        str | None, typer.Option(help="A shipped grid or a YAML file; bare --grid is the embedded default.", metavar="[NAME|FILE]")
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="For a grid without a file: a data set spec; repeatable.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="An attack spec, like badnet-rw:word=mb; repeatable.")] = None,
    defense: Annotated[list[str] | None, typer.Option(help="A defense spec, like strip:copies=20; repeatable.")] = None,
    frr: Annotated[list[float] | None, typer.Option(help="An allowed false-rejection rate in (0, 1); repeatable.")] = None,
    victim: Annotated[str | None, typer.Option(help="A victim spec: a hub id, a folder or minilm-l6, like minilm-l6:epochs=3.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="The results folder; the same command again resumes there.")] = Path("rapbench-results"),
    executor: Annotated[Literal["ray", "serial"], typer.Option(help="Where steps run.")] = "ray",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads per step; results depend on it.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: cells, what is cached, what would run.")] = False,
    as_json: Json = False,
) -> None:
    """Compute every cell of a grid: plant, defend, report."""
    from rapbench.registry import discover

    registry = discover()
    given = {"datasets": dataset, "attacks": attack, "defenses": defense, "frr": frr, "victim": victim, "seeds": seed}
    cells = _cells(grid, {key: value for key, value in given.items() if value}, registry)
    from rapbench.report.tables import render
    from rapbench.runner.session import Session, planned

    plan, bench = planned(cells, registry, out, device=_device(device), threads=threads)
    if dry_run:
        typer.echo(_plan_json(plan, bench.store) if as_json else _plan_text(plan, bench.store))
        return
    session = Session(plan, bench, out, executor)
    with _progress() as (begin, watch):
        records = session.run(watch, begin)
    typer.echo(render(records, "json" if as_json else "github"))
    for reason in sorted({one.reason or "" for one in records if one.status in ("failed", "skipped")}):
        typer.echo(f"rapbench: {reason}", err=True)
    if any(one.status == "failed" for one in records):
        raise typer.Exit(FAILED)


@app.command(name="list")
def list_plugins(as_json: Json = False) -> None:
    """List the data sets, attacks, defenses and grids there are, and the packages that were left out."""
    from tabulate import tabulate

    from rapbench.grid import shipped_grids
    from rapbench.registry import discover

    registry = discover()
    rows = [_about(found) for _, found in sorted(registry.found.items())]
    if as_json:
        typer.echo(json.dumps({"plugins": rows, "grids": shipped_grids(), "left_out": dict(registry.left_out)}, indent=1, default=str))
        return
    typer.echo(
        tabulate([[row["kind"], row["name"], row["summary"], row["package"]] for row in rows], ["kind", "name", "what it is", "package"])
    )
    typer.echo(f"\ngrids: {', '.join(shipped_grids())}")
    for package, reason in sorted(registry.left_out.items()):
        typer.echo(f"left out: {package} ({reason})", err=True)


@app.command()
def info(name: Annotated[str, typer.Argument(help="A plugin's name.")], as_json: Json = False) -> None:
    """Show a plugin: what it does, where it comes from, its options and their defaults."""
    from rapbench.registry import discover, unknown

    registry = discover()
    matching = [found for (_, own), found in sorted(registry.found.items()) if own == name]
    if not matching:
        raise SpecError(unknown("plugin", name, {own for _, own in registry.found}) + registry.left_out_text)
    if as_json:
        typer.echo(json.dumps([_about(found) for found in matching], indent=1, default=str))
        return
    for found in matching:
        typer.echo(_info_text(_about(found)))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of `rapbench run --out`.")],
    form: Annotated[Literal["github", "latex", "csv", "json"], typer.Option("--format", help="How to print the cells.")] = "github",
) -> None:
    """Print the cells of a results folder."""
    from rapbench import results
    from rapbench.report.tables import render

    typer.echo(render(results.read(folder), form))


def _with_default_grid(arguments: Sequence[str]) -> list[str]:
    """Give the arguments with the embedded default behind a bare --grid, for which typer has no notation."""
    given = list(arguments)
    if "--grid" in given:
        after = given.index("--grid") + 1
        if after == len(given) or given[after].startswith("-"):
            given.insert(after, DEFAULT_GRID)
    return given


def _cells(grid: str | None, given: dict[str, Any], registry: Registry) -> list[Cell]:
    from rapbench.grid import cells_of, checked_block, read_blocks

    if grid is not None:
        if given:
            flags = ", ".join(f"--{key.removesuffix('s')}" for key in sorted(given))
            raise GridError(f"--grid names the whole grid: leave out {flags}, or put it into a file")
        return cells_of(read_blocks(grid), registry)
    missing = [name for name in ("datasets", "attacks", "defenses") if name not in given]
    if missing:
        raise GridError(f"nothing to run: give --grid, or {', '.join('--' + name.removesuffix('s') for name in missing)}")
    return cells_of([checked_block(given, "the command line")], registry)


def _device(name: str) -> str:
    """Resolve `auto` without importing torch where it is a CPU build; refuse a device that cannot be there."""
    cpu_build = importlib.metadata.version("torch").endswith("+cpu")
    if name != "auto":
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise SpecError(f"unknown device {name!r} (there are: auto, cpu, cuda, cuda:N, mps)")
        if cpu_build and name != "cpu":
            raise SpecError(f"the device {name!r} needs another torch: this one is a CPU build")
        return name
    if cpu_build:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[Done], None]]]:
    """Show the steps on stderr: a bar with the time left on a terminal, one plain line per step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        counts = {"total": 0, "done": 0}

        def begin(total: int) -> None:
            counts["total"] = total
            bar.update(task, total=total, description="all cached" if not total else "running")

        def watch(done: Done) -> None:
            counts["done"] += 1
            what = f"{done.job.stage} {done.job.label}"
            bar.update(task, advance=1, description=what)
            if done.failure or not console.is_terminal:
                end = done.failure.reason.removeprefix(f"{what}: ") if done.failure else f"{done.seconds:.1f} s"
                end = "not run, a step that it needs failed" if done.blocked else end
                console.print(f"[{counts['done']}/{counts['total']}] {what}: {end}", markup=False, soft_wrap=True)

        yield begin, watch


def _plan_json(plan: Plan, store: Path) -> str:
    from rapbench.artifacts import Store

    missing = plan.missing(Store(store))
    jobs = [{"stage": job.stage, "label": job.label, "key": key, "cached": key not in missing} for key, job in plan.jobs.items()]
    return json.dumps({"cells": [{**cell.names, "skip": cell.skip} for cell in plan.cells], "jobs": jobs}, indent=1)


def _plan_text(plan: Plan, store: Path) -> str:
    from tabulate import tabulate

    from rapbench.artifacts import Store

    missing = plan.missing(Store(store))
    rows = [[job.stage, job.label, "would run" if key in missing else "not needed or cached"] for key, job in plan.jobs.items()]
    skipped = [f"skipped: {cell.names['attack']} {cell.names['defense']}: {cell.skip}" for cell in plan.skipped]
    refused = sorted({f"would fail: {reason}" for _, reason in plan.refused})
    head = f"{len(plan.cells)} cells ({len(plan.skipped)} skipped), {len(plan.jobs)} steps, {len(missing)} would run"
    return "\n".join([tabulate(rows, ["step", "of", "state"]), "", head, *skipped, *refused])


def _about(found: Found) -> dict[str, Any]:
    fields = [f for f in dataclasses.fields(found.cls) if f.init]
    doc = (found.cls.__doc__ or "").strip()
    module = sys.modules[found.cls.__module__].__doc__ or ""
    return {
        "kind": found.kind,
        "name": found.name,
        "summary": doc.splitlines()[0] if doc else "",
        "doc": doc,
        "source": module.strip(),
        "package": f"{found.package} {found.version}",
        "options": [
            {"name": f.name, "type": str(f.type), "default": _plain_default(f), "text": _option_text(found.cls, f.name)} for f in fields
        ],
    }


def _option_text(cls: type, name: str) -> str:
    """Give an option's sentence, from the base class where a subclass only changes the default."""
    own = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((f.metadata["text"] for f in own if f is not None and "text" in f.metadata), "")


def _plain_default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    if f.default is dataclasses.MISSING:
        return "required"
    return list(f.default) if isinstance(f.default, tuple) else f.default


def _info_text(about: dict[str, Any]) -> str:
    from tabulate import tabulate

    options = [[one["name"], one["type"], one["default"], one["text"]] for one in about["options"]]
    table = tabulate(
        options, ["option", "type", "default", "what it does"], maxcolwidths=[None, 30, 30, 60], disable_numparse=True, missingval="none"
    )
    head = f"{about['name']} ({about['kind']}, {about['package']})"
    return "\n\n".join(part for part in (head, about["doc"], about["source"], table) if part) + "\n"

"""The command line. stdout is the result, stderr is the rest. torch and ray are imported only by what needs them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rapbench import (
    cli_bench,
    cli_cache,
    cli_claims,
    cli_cost,
    cli_doctor,
    cli_guard,
    cli_paper,
    cli_plugin,
    cli_report,
    cli_run,
    cli_status,
)
from rapbench.cli_run import Json
from rapbench.errors import RapbenchError, SpecError

if TYPE_CHECKING:
    from rapbench.registry import Found
    from rapbench.results import Record

BARE = {
    ("run", "--grid"): "demo",
    ("probe", "--grid"): "probe",
    ("theorem", "--grid"): "theorem",
    ("report", "--watch"): "5",
}
"""What an option is that a command was given without its value."""
USAGE, INTERRUPTED = 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Plant textual backdoors into classifiers, defend them, and report how well and at what cost.",
    epilog="Exit codes: 0 all well, 1 some cell failed, 2 usage, 130 interrupted.",
)


def main() -> None:
    """Run the command line; an error that the user can mend is one line on stderr and exit code 2."""
    try:
        app(args=_with_defaults(sys.argv[1:]))
    except RapbenchError as error:
        typer.echo(f"rapbench: {error}", err=True)
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
@cli_run.computes
def run(
    grid: cli_run.Grid = None,
    dataset: cli_run.Datasets = None,
    attack: cli_run.Attacks = None,
    defense: Annotated[list[str] | None, typer.Option(help="A defense spec, like strip:copies=20; repeatable.")] = None,
    frr: Annotated[list[float] | None, typer.Option(help="An allowed false-rejection rate in (0, 1); repeatable.")] = None,
    poisoned_on: cli_run.PoisonedOn = None,
    finetune: cli_run.Finetune = None,
    victim: cli_run.Victim = None,
    seed: cli_run.Seeds = None,
    *,
    bench: cli_run.Bench,
) -> None:
    """Compute every cell of a grid: plant, defend, report."""
    from rapbench.grid import Block, cells_of
    from rapbench.registry import discover

    registry = discover()
    given = {
        "datasets": dataset,
        "poisoned_on": poisoned_on,
        "finetune": finetune,
        "attacks": attack,
        "defenses": defense,
        "frr": frr,
        "victim": victim,
        "seeds": seed,
    }
    cells = cells_of(cli_run.blocks(grid, given, Block, ("datasets", "attacks", "defenses")), registry)
    from rapbench.report.tables import render

    records = cli_run.finished(cells, registry, bench)
    if records is not None:
        typer.echo(render(cast("list[Record]", records), "json" if bench.as_json else "github"))
        cli_run.end(records)


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


app.command()(cli_paper.probe)
app.command()(cli_paper.theorem)
app.command()(cli_report.report)
app.command()(cli_report.plot)
app.command()(cli_status.status)
app.command()(cli_paper.compare)
app.command()(cli_claims.claims)
app.command()(cli_cost.cost)
app.command()(cli_bench.bench)
app.command()(cli_plugin.new_plugin)
app.command()(cli_plugin.check_plugin)
app.command()(cli_plugin.new_grid)
app.command()(cli_guard.explain)
app.command()(cli_guard.export)
app.command()(cli_doctor.doctor)
app.add_typer(cli_guard.guard, name="guard")
app.add_typer(cli_cache.cache, name="cache")


def _with_defaults(arguments: Sequence[str]) -> list[str]:
    """Give the arguments with the default behind a bare option of `BARE`, for which typer has no notation."""
    given = list(arguments)
    for (command, option), default in BARE.items():
        if given[:1] == [command] and option in given:
            after = given.index(option) + 1
            number = default.isdigit()
            if after == len(given) or given[after].startswith("-") or (number and not given[after].replace(".", "", 1).isdigit()):
                given.insert(after, default)
    return given


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

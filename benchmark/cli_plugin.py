"""The commands for authors of plugins: new-plugin, check-plugin, new-grid."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from rapbench.cli_run import FAILED, Json
from rapbench.errors import SpecError

if TYPE_CHECKING:
    from rapbench.registry import Plugin, Registry
    from rapbench.testing import Finding

Parent = Annotated[Path, typer.Option("--out", "-o", help="The folder in which the package's folder is made.")]


def new_plugin(
    name: Annotated[str, typer.Argument(help="The plugin's name, in kebab-case, like two-words.")],
    kind: Annotated[Literal["attack", "defense", "dataset"], typer.Option(help="What it is.")],
    out: Parent = Path(),
) -> None:
    """Make a package with one plugin that works at once: edit it, install it, check it."""
    from rapbench.registry import discover
    from rapbench.scaffold import scaffold

    made = scaffold(name, kind, out, discover())
    for path in made.files:
        typer.echo(path)
    typer.echo(f"next: pip install -e {made.folder} --no-deps && rapbench check-plugin {name}", err=True)


def check_plugin(
    names: Annotated[list[str], typer.Argument(help="Plugins, as names or specs, or installed packages.", metavar="NAME|PACKAGE...")],
    as_json: Json = False,
) -> None:
    """Check that plugins keep the contract, claim by claim, on a tiny task that is made on the spot."""
    from rapbench.registry import discover

    registry = discover()
    asked = [plugin for name in names for plugin in plugins_of(name, registry)]
    found = _checked(asked, registry)
    typer.echo(json.dumps({"claims": [dataclasses.asdict(one) for one in found]}, indent=1) if as_json else _table(found))
    if any(one.outcome == "broken" for one in found):
        raise typer.Exit(FAILED)


def new_grid(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    names: Annotated[list[str], typer.Argument(help="Plugins that the grid is for, as names or specs.", metavar="NAME...")],
) -> None:
    """Make a grid that runs in a minute: made text, an untrained tiny model, and these plugins beside built-in ones."""
    from rapbench.registry import discover
    from rapbench.scaffold.grid import write_grid

    registry = discover()
    grid = write_grid(folder, [plugin for name in names for plugin in plugins_of(name, registry)])
    typer.echo(grid)
    typer.echo(f"next: rapbench run --grid {grid} --out {folder / 'results'}", err=True)


def plugins_of(name: str, registry: Registry) -> list[Plugin]:
    """Give the plugins that a spec, a name or a package stands for, of all kinds; a SpecError where it is none of them."""
    from rapbench.registry import split_spec, unknown

    packaged = [found for _, found in sorted(registry.found.items()) if found.package == name]
    if packaged:
        return [registry.parse(found.kind, found.name) for found in packaged]
    own = split_spec(name)[0]
    kinds = [kind for kind, known in sorted(registry.found) if known == own]
    if not kinds:
        known = {known for _, known in registry.found} | {found.package for found in registry.found.values()}
        raise SpecError(unknown("plugin or package", own, known) + registry.left_out_text)
    return [registry.parse(kind, name) for kind in kinds]


def _checked(asked: Sequence[Plugin], registry: Registry) -> list[Finding]:
    """Check all; one line per claim on stderr."""
    from rapbench.testing import Kit, findings

    found: list[Finding] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        kit = Kit(Path(folder), registry)
        for plugin in asked:
            for one in findings(plugin, kit):
                typer.echo(f"{one.plugin}: {one.claim}: {one.outcome}, {one.seconds:.1f} s", err=True)
                found.append(one)
    return found


def _table(found: Sequence[Finding]) -> str:
    from tabulate import tabulate

    from rapbench.testing.claims import Outcome

    heads = [f"{one.kind} {one.plugin}" for one in found]
    shown = [head if head != before else "" for before, head in zip(["", *heads], heads, strict=False)]
    rows = [[head, one.claim, one.outcome, one.reason] for head, one in zip(shown, found, strict=True)]
    table = tabulate(rows, ["plugin", "claim", "outcome", "why"], maxcolwidths=[None, None, None, 60], disable_numparse=True)
    counts = Counter(one.outcome for one in found)
    return f"{table}\n\n" + ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome))

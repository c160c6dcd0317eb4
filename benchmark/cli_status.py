"""The command that looks at a run while it runs: status."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapbench.cli_run import Json

if TYPE_CHECKING:
    from rapbench.status import Status

Results = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder of `rapbench run --out`.")]
MOST_REASONS = 10


def status(folder: Results, as_json: Json = False) -> None:
    """Say what the run in a results folder is doing, or has done: steps, cells, failures, time. It changes nothing."""
    from rapbench import status as looking

    found = looking.status(folder)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else "\n".join(lines(found)))


def lines(found: Status) -> Iterator[str]:
    """Give a status for people."""
    from rapbench.estimate import duration
    from rapbench.status import State

    yield _head(found)
    if found.state is State.EMPTY:
        return
    if found.command:
        yield f"  {found.command}"
    if found.stages:
        yield f"\n{_table(found)}\n"
    if found.cells:
        counts = ", ".join(f"{count} {name}" for name, count in found.cells.items() if count)
        yield f"cells: {counts or 'none'}" + (f", of {sum(found.cells.values())}" if len(counts.split(", ")) > 1 else "")
    for name, reasons in found.reasons.items():
        for reason, cells in list(reasons.items())[:MOST_REASONS]:
            yield f"{name}: {cells} cell{'s' * (cells != 1)}: {reason}"
        if len(reasons) > MOST_REASONS:
            yield f"{name}: {len(reasons) - MOST_REASONS} more reasons; all with --json"
    if last := found.last:
        node = f" on {last.node}" if last.node else ""
        yield f"last: {last.stage} {last.of}: {last.end} after {duration(last.seconds)}{node}, {duration(last.ago_s)} ago"
    if ahead := found.pace:
        yield f"left: about {duration(ahead.left_s)}, if steps take as long as the {ahead.like} like them that have ended"


def _head(found: Status) -> str:
    from rapbench.estimate import duration
    from rapbench.status import State

    if found.state is State.EMPTY:
        return "nothing was run here yet"
    if found.state is State.RUNNING and found.by is None:
        return "running: a run that is still planning, or a clean-up"
    since = f", since {found.started}" if found.started else ""
    if found.state is State.RUNNING:
        return f"running for {duration(found.seconds or 0)}{since}: {found.by}"
    head = str(found.state) + (f" after {duration(found.seconds)}{since.replace('since', 'begun')}" if found.seconds is not None else "")
    head += f": {found.waiting} cells are still to come, the same command goes on" if found.state is State.STOPPED else ""
    return head + ("; another process keeps runs out now, like `rapbench cache gc`" if found.locked else "")


def _table(found: Status) -> str:
    from tabulate import tabulate

    from rapbench.estimate import duration

    known = any(one.to_come is not None for one in found.stages)
    heads = ["step", "done", "failed", "retried", *(["to come"] if known else []), "took"]
    rows = [[one.name, one.done, one.failed, one.retried, *([one.to_come] if known else []), duration(one.seconds)] for one in found.stages]
    return tabulate(rows, heads, disable_numparse=True)

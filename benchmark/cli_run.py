"""What the commands that compute share: their options, the plan on paper, the run with its progress, the exit code."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapbench.errors import GridError, SpecError

if TYPE_CHECKING:
    from rapbench.registry import Registry
    from rapbench.results import Named
    from rapbench.runner.execute import Done
    from rapbench.runner.plan import Asked, Plan

FAILED = 1
STUDIES = {"probe": "ProbeBlock", "theorem": "CheckBlock"}
"""The shipped grids that are for another command than run, and what they consist of."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Grid = Annotated[str | None, typer.Option(help="A shipped grid or a YAML file; a bare --grid is the default one.", metavar="[NAME|FILE]")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="For a grid without a file: a data set spec; repeatable.")]
Attacks = Annotated[list[str] | None, typer.Option("--attack", help="An attack spec, like badnet-rw:word=mb; repeatable.")]
PoisonedOn = Annotated[
    list[str] | None, typer.Option(help="The attacker's data set, where the victim is fine-tuned on --dataset before it is defended.")
]
Finetune = Annotated[str | None, typer.Option(help="What that fine-tuning does otherwise than the victim's recipe, like epochs=5,lr=5e-5.")]
Victim = Annotated[str | None, typer.Option(help="A victim spec: a hub id, a folder or minilm-l6, like minilm-l6:epochs=3.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="A seed; repeatable.")]
Out = Annotated[Path, typer.Option(help="The results folder; the same command again resumes there.")]
Executor = Annotated[Literal["ray", "serial"], typer.Option(help="Where steps run.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads per step; results depend on it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan: cells, what is cached, what would run.")]
OUT = Path("rapbench-results")


@dataclass(frozen=True)
class Bench:
    """How a command computes: the options that all of them have."""

    out: Path
    executor: Literal["ray", "serial"]
    threads: int
    device: str
    dry_run: bool
    as_json: bool


def blocks(grid: str | None, given: dict[str, Any], cls: type[Any], needed: Sequence[str]) -> list[Any]:
    """Give the blocks of a grid file, or the one that the flags `given` (key of a grid -> value) describe."""
    from rapbench.grid import checked_block, read_blocks

    given = {key: value for key, value in given.items() if value}
    if grid is not None:
        if given:
            raise GridError(f"--grid names the whole grid: leave out {', '.join(map(_flag, sorted(given)))}, or put it into a file")
        if grid in STUDIES and STUDIES[grid] != cls.__name__:
            raise GridError(f"the grid {grid!r} is for `rapbench {grid}`")
        return read_blocks(grid, cls)
    missing = [name for name in needed if name not in given]
    if missing:
        raise GridError(f"nothing to run: give --grid, or {', '.join(map(_flag, missing))}")
    return [checked_block(given, "the command line", cls)]


def finished(asked: Sequence[Asked], registry: Registry, bench: Bench) -> list[Named] | None:
    """Compute all that is asked and give the records; None after a dry run, which prints the plan."""
    from rapbench.runner.session import Session, planned

    plan, place = planned(asked, registry, bench.out, device=device(bench.device), threads=bench.threads)
    if bench.dry_run:
        typer.echo(_plan_json(plan, place.store) if bench.as_json else _plan_text(plan, place.store))
        return None
    session = Session(plan, place, bench.out, bench.executor)
    with _progress() as (begin, watch):
        return session.run(watch, begin)


def end(records: Sequence[Any]) -> None:
    """Say on stderr why cells have no figures, and exit with 1 where one failed."""
    for reason in sorted({one.reason or "" for one in records if one.status in ("failed", "skipped")}):
        typer.echo(f"rapbench: {reason}", err=True)
    if any(one.status == "failed" for one in records):
        raise typer.Exit(FAILED)


def _flag(key: str) -> str:
    return "--" + key.removesuffix("s").replace("_", "-")


def device(name: str) -> str:
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
    skipped = [f"skipped: {cell.names['attack']} {cell.names.get('defense', '')}".rstrip() + f": {cell.skip}" for cell in plan.skipped]
    refused = sorted({f"would fail: {reason}" for _, reason in plan.refused})
    head = f"{len(plan.cells)} cells ({len(plan.skipped)} skipped), {len(plan.jobs)} steps, {len(missing)} would run"
    return "\n".join([tabulate(rows, ["step", "of", "state"]), "", head, *dict.fromkeys(skipped), *refused])

"""What the commands that compute share: their options, the plan on paper, the run with its progress, the exit code."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapbench.errors import GridError, SpecError

if TYPE_CHECKING:
    from rapbench.estimate import Estimate
    from rapbench.registry import Registry
    from rapbench.results import Named
    from rapbench.runner.connect import Site
    from rapbench.runner.execute import Done
    from rapbench.runner.plan import Asked, Plan
    from rapbench.runner.simulate import Simulated
    from rapbench.stages import Bench as Place
    from rapbench.stages import Job

FAILED = 1
FOR_PLANS = ("tflops", "nodes", "gpus", "cpus")
"""Options of `Bench` that say something of a plan alone."""
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
OUT = Path("rapbench-results")
DAY_S = 86_400.0


@dataclass(frozen=True)
class Bench:
    """How a command computes: the options that all of them have."""

    out: Out = OUT
    store: Annotated[
        str | None, typer.Option(help="Keep the artifacts in this folder or URI (s3://bucket/folder) instead of --out; runs may share it.")
    ] = None
    executor: Annotated[Literal["ray", "serial"], typer.Option(help="Where steps run.")] = "ray"
    ray_address: Annotated[
        str,
        typer.Option(help="Ray of its own on this machine (local), the cluster that RAY_ADDRESS names (auto), or HOST:PORT of a head."),
    ] = "local"
    ship_plugin: Annotated[
        list[Path] | None, typer.Option(help="A pure-Python wheel with plugins, installed nowhere; the cluster gets it. Repeatable.")
    ] = None
    threads: Annotated[int, typer.Option(min=1, help="CPU threads per step; results depend on it.")] = 1
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto"
    gpu_share: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="The part of a GPU, and of its memory, that each step gets: 0.5 runs two at once.")
    ] = 1.0
    exclusive_cost: Annotated[
        bool, typer.Option("--exclusive-cost", help="Score, and measure costs, with nothing else of the run on the machine meanwhile.")
    ] = False
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds after which a step is stopped and its cells have failed.")] = DAY_S
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: cells, what is cached, what would run, how long.")] = False
    tflops: Annotated[
        float | None, typer.Option(min=1e-6, help="For --dry-run: estimate for devices that sustain so many TFLOP/s; measures nothing.")
    ] = None
    nodes: Annotated[int | None, typer.Option(min=1, help="For --dry-run: simulate the schedule on so many machines.")] = None
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="For --dry-run: GPUs of each of these machines, of 20 TFLOP/s without --tflops."),
    ] = None
    cpus: Annotated[int | None, typer.Option(min=1, help="For --dry-run: cores of each of these machines; as many as here.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False

    @property
    def site(self) -> Site:
        """Where Ray is and how it is used."""
        from rapbench.runner.connect import Site

        return Site(self.ray_address, self.deadline, self.gpu_share, tuple(self.ship_plugin or ()))


def computes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Bench` behind its own; it gets them as its parameter `bench`. Shipped plugins can be imported then."""
    own, shared = inspect.signature(command, eval_str=True), inspect.signature(Bench, eval_str=True)
    parameters = [one for one in own.parameters.values() if one.name != "bench"]
    parameters += list(shared.parameters.values())

    @functools.wraps(command)
    def run(**given: Any) -> None:
        bench = Bench(**{name: given.pop(name) for name in shared.parameters})
        if not bench.dry_run and (for_plans := [f"--{name}" for name in FOR_PLANS if getattr(bench, name) is not None]):
            raise SpecError(f"{', '.join(for_plans)} without --dry-run: this would start the run itself; add --dry-run, or leave that out")
        if bench.ship_plugin:
            from rapbench.runner.shipped import install

            install(bench.ship_plugin)
        command(**given, bench=bench)

    vars(run)["__signature__"] = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters])
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


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
    from rapbench.lifecycle import Herald
    from rapbench.runner.session import Session, planned

    where = device(bench.device)
    plan, place = planned(
        asked, registry, bench.out, store=bench.store, device=where, threads=bench.threads, exclusive=bench.exclusive_cost
    )
    if bench.dry_run:
        missing, estimate = _estimated(plan, place, registry, bench)
        simulated = _simulated(missing, estimate, place, bench) if bench.nodes or bench.gpus else None
        typer.echo((_plan_json if bench.as_json else _plan_text)(plan, missing, estimate, simulated))
        return None
    session = Session(plan, place, bench.out, bench.executor, bench.site, Herald.of(registry))
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

    console = Console(file=sys.stderr, highlight=False)  # the stream of now: what a step prints goes elsewhere
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
            counts["done"] += not done.again
            what = f"{done.job.stage} {done.job.label}"
            bar.update(task, advance=not done.again, description=what)
            if done.failure or not console.is_terminal:
                end = done.failure.reason.removeprefix(f"{what}: ") if done.failure else f"{done.seconds:.1f} s"
                end = "not run, a step that it needs failed" if done.blocked else end
                end += "; it is tried again" * done.again
                console.print(f"[{counts['done']}/{counts['total']}] {what}: {end}", markup=False, soft_wrap=True)

        yield begin, watch


def _estimated(plan: Plan, place: Place, registry: Registry, bench: Bench) -> tuple[Mapping[str, Job], Estimate]:
    """Give the jobs that would run and what they are expected to take."""
    from rapbench.artifacts import store_at
    from rapbench.estimate import GPU_TFLOPS, Site, estimate

    missing = plan.missing(store_at(place.store))
    tflops = bench.tflops or (GPU_TFLOPS if bench.gpus else None)
    site = Site(store_at(place.store), place.device, place.threads, _workers(bench, place.device), tflops)
    return missing, estimate(plan.jobs, missing, registry, site)


def _workers(bench: Bench, device: str) -> int:
    """Give how many steps would run at once: one where a device is named by --tflops."""
    if bench.executor == "serial" or bench.tflops is not None:
        return 1
    from rapbench.runner.connect import cores

    workers = max(1, cores() // bench.threads)
    if not device.startswith("cuda"):
        return workers
    import torch

    return max(1, min(workers, torch.cuda.device_count()))


def _simulated(missing: Mapping[str, Job], estimate: Estimate, place: Place, bench: Bench) -> Simulated:
    """Play the missing jobs through on the machines of --nodes and --gpus, with as many cores as this one."""
    from rapbench.runner.connect import cores
    from rapbench.runner.needs import needs
    from rapbench.runner.simulate import alike, simulate

    there = replace(place, device="cuda") if bench.gpus else place
    cpus = bench.cpus or max(cores(), bench.threads * (bench.gpus or 1))
    nodes = alike(bench.nodes or 1, bench.gpus or 0, cpus)
    return simulate(missing, estimate.seconds, nodes, lambda job: needs(job, there, bench.gpu_share))


def _plan_json(plan: Plan, missing: Mapping[str, Job], estimate: Estimate, simulated: Simulated | None) -> str:
    jobs = [
        {"stage": job.stage, "label": job.label, "key": key, "cached": key not in missing, "seconds": round(estimate.seconds(key), 1)}
        for key, job in plan.jobs.items()
    ]
    cells = [{**cell.names, "skip": cell.skip} for cell in plan.cells]
    simulation = {"simulation": simulated.plain()} if simulated else {}
    return json.dumps({"cells": cells, "jobs": jobs, "estimate": estimate.plain(), **simulation}, indent=1)


def _plan_text(plan: Plan, missing: Mapping[str, Job], estimate: Estimate, simulated: Simulated | None) -> str:
    from tabulate import tabulate

    from rapbench.estimate import duration

    about = {key: duration(seconds) if (seconds := estimate.seconds(key)) else "" for key in plan.jobs}
    rows = [[job.stage, job.label, "would run" if key in missing else "not needed or cached", about[key]] for key, job in plan.jobs.items()]
    skipped = [f"skipped: {cell.names['attack']} {cell.names.get('defense', '')}".rstrip() + f": {cell.skip}" for cell in plan.skipped]
    refused = sorted({f"would fail: {reason}" for _, reason in plan.refused})
    head = f"{len(plan.cells)} cells ({len(plan.skipped)} skipped), {len(plan.jobs)} steps, {len(missing)} would run"
    table = tabulate(rows, ["step", "of", "state", "about"], disable_numparse=True)
    played = ["", *simulated.lines()] if simulated else []
    return "\n".join([table, "", head, *estimate.lines(), *dict.fromkeys(skipped), *refused, *played])

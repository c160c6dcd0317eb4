"""What the runner itself costs: a grid of cells whose defense does nothing (or sleeps; see ../faults/saboteur.py), on both executors.

    python tests/cost/runner.py                              200 cells, serial: wall, processor time, ms per cell
    python tests/cost/runner.py --profile                    where it goes
    python tests/cost/runner.py --executor ray --pause 0.2   wall against (sum of stage seconds / workers) + start
    python tests/cost/runner.py --cells 10000                memory of this process at the end, and how long a report takes

Each cell has a score step of its own. The data, the victim and its predictions are made before the clock starts.

The folder is deleted at the end, and for minutes after that ext4 passes over each inode that has become free when it makes a file: the next
runs take twice as long. Wait, or put the folder where that is not so: TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "faults"))
import encoder
import saboteur

if TYPE_CHECKING:
    from rapbench.runner.execute import Done


@dataclass
class Took:
    """Seconds of one run. `cpu`: of this process; `stages`: of all steps together; `start`: until an executor was there.

    `waited`: from then to the beginning of the first step; `ended`: from the last step to the end.
    """

    wall: float
    cpu: float
    stages: float
    start: float
    waited: float
    ended: float
    steps: int
    workers: int

    @property
    def due(self) -> float:
        return self.stages / self.workers + self.start


def run(folder: Path, numbers: range, *, pause: float = 0.0, executor: str = "serial") -> Took:
    """Run one cell for each number into the folder, from the discovery of the plugins to the records, and time it."""
    from rapbench.grid import Block, cells_of
    from rapbench.registry import discover
    from rapbench.runner.session import Session, planned

    block = Block(
        victim=f"{folder / 'model'}:epochs=1,max_length=32",
        datasets=["few"],
        attacks=["idle:sure=false"],
        defenses=[{"name": "saboteur", "number": number, "pause": pause} for number in numbers],
        frr=[0.05],
        seeds=[1],
    )
    done: list[tuple[float, Done]] = []
    starts = Starts()
    with starts.timed():
        began, used = time.perf_counter(), time.process_time()
        registry = discover()
        cells = [cell for cell in cells_of([block], registry) if cell.protocol == "strict"]
        plan, bench = planned(cells, registry, folder / "out", device="cpu", threads=1)
        records = Session(plan, bench, folder / "out", executor).run(
            lambda one: done.append((time.perf_counter(), one)), lambda total: None
        )
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    if odd := [record for record in records if record.status != "ok"]:
        raise SystemExit(f"{len(odd)} of {len(records)} cells have no result: {odd[0].reason}")
    return Took(
        wall,
        cpu,
        stages=sum(one.seconds for _, one in done),
        start=starts.seconds,
        waited=min(at - one.seconds for at, one in done) - starts.there,
        ended=began + wall - max(at for at, _ in done),
        steps=len(done),
        workers=starts.workers,
    )


class Starts:
    """How long the executor took to be there, and how many steps it runs at once."""

    def __init__(self) -> None:
        self.seconds, self.there, self.workers = 0.0, 0.0, 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        from rapbench.runner import session

        make = session._executor

        def timed(*given: object) -> object:
            began = time.perf_counter()
            made = make(*given)
            self.there, self.workers = time.perf_counter(), getattr(made, "workers", 1)
            self.seconds = self.there - began
            return made

        session._executor = timed
        try:
            yield
        finally:
            session._executor = make


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--cells", type=int, default=200)
    asked.add_argument("--executor", choices=["serial", "ray"], default="serial")
    asked.add_argument("--pause", type=float, default=0.0, help="seconds that each step sleeps")
    asked.add_argument("--profile", action="store_true")
    given = asked.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        saboteur.install(folder / "site")
        encoder.make(folder / "model")
        run(folder, range(1))
        profile = cProfile.Profile()
        if given.profile:
            profile.enable()
        took = run(folder, range(1, 1 + given.cells), pause=given.pause, executor=given.executor)
        profile.disable()
        report(took, given.cells)
        began = time.perf_counter()
        told = rendered(folder / "out")
        print(f"resident {resident_mib():.0f} MiB at the end; a report of {told:,} lines in {time.perf_counter() - began:.2f} s")
        if given.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)


def rendered(out: Path) -> int:
    """Read a results folder and give the lines of its tables."""
    from rapbench import results
    from rapbench.report.tables import render

    return len(render(results.read(out), "github").splitlines())


def resident_mib() -> float:
    """Give the memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(took: Took, cells: int) -> None:
    print(f"{cells} cells, {took.steps} steps: wall {took.wall:.2f} s, processor {took.cpu:.2f} s, load {os.getloadavg()[0]:.2f}")
    print(f"per cell: wall {1000 * took.wall / cells:.1f} ms, processor {1000 * took.cpu / cells:.1f} ms")
    print(f"start {took.start:.2f} s, first step after {took.waited:.2f} s, end {took.ended:.2f} s after the last")
    print(f"steps {took.stages:.2f} s on {took.workers} workers, with the start {took.due:.2f} s: wall {took.wall / took.due:.3f} of it")


if __name__ == "__main__":
    main()

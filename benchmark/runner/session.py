"""One run of a grid: plan, lock, do what is missing, write the cells."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from filelock import FileLock, Timeout

from rapbench import results
from rapbench.artifacts import Store, write_atomically
from rapbench.errors import StoreError
from rapbench.grid import Cell
from rapbench.registry import Registry
from rapbench.results import Record
from rapbench.runner.execute import Done, Executor, Failure, SerialExecutor, execute
from rapbench.runner.plan import Group, Plan, plan
from rapbench.stages import Bench, Job

ExecutorName = Literal["ray", "serial"]


def planned(cells: Sequence[Cell], registry: Registry, out: Path, *, device: str, threads: int) -> tuple[Plan, Bench]:
    """Give the plan of the cells and the bench they run on; nothing is written."""
    bench = Bench(out.resolve() / "artifacts", device, threads)
    return plan(cells, registry, bench), bench


class Session:
    """A run under way. `finished` holds the failures so far, also after an interrupt."""

    def __init__(self, made: Plan, bench: Bench, out: Path, executor: ExecutorName) -> None:
        self.plan, self.bench, self.out, self.executor = made, bench, out.resolve(), executor
        self.store = Store(bench.store)
        self.failures: dict[str, Failure] = {}

    def run(self, watch: Callable[[Done], None], begin: Callable[[int], None]) -> list[Record]:
        """Do what is missing and give every cell's record; a KeyboardInterrupt leaves all that is finished."""
        self.store.create()
        with self._alone(), _terminable():
            try:
                self.store.sweep()
                missing = self.plan.missing(self.store)
                for key in missing:
                    if self.store.has(key):
                        self.store.set_aside(key)
                begin(len(missing))
                if missing:
                    self._execute(missing, watch)
            finally:
                records = self.records()
                results.write(records, self.out / "cells")
                self._write_details()
        return records

    def records(self) -> list[Record]:
        """Give the record of every cell as things stand."""
        found = [self._record(group, cell) for group in self.plan.groups for cell in group.cells]
        refused = [results.unfinished(cell, "failed", reason) for cell, reason in self.plan.refused]
        return found + refused + [results.unfinished(cell, "skipped", cell.skip or "") for cell in self.plan.skipped]

    def _execute(self, missing: dict[str, Job], watch: Callable[[Done], None]) -> None:
        executor = _executor(self.executor, self.bench)
        try:
            execute(missing, executor, watch, self.failures)
        finally:
            executor.close()

    def _record(self, group: Group, cell: Cell) -> Record:
        for role, key in group.keys.items():
            if role != "control" and (failure := self.failures.get(key)):
                return results.unfinished(cell, "failed", failure.reason, group.keys)
        if not all(self.store.has(group.keys[role]) for role in ("clean", "poisoned", "score")):
            return results.unfinished(cell, "interrupted", "the run ended before this cell: the same command goes on", group.keys)
        return results.record(cell, group.keys, self.store)

    def _write_details(self) -> None:
        """Keep the traceback of every step that failed by a defect, under its key."""
        origins = {failure: key for key, failure in reversed(self.failures.items()) if failure.details}
        for failure, key in origins.items():
            (self.out / "failures").mkdir(exist_ok=True)
            write_atomically(self.out / "failures" / f"{key}.txt", f"{failure.reason}\n\n{failure.details}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with FileLock(self.out / ".lock", timeout=0):
                yield
        except Timeout:
            raise StoreError(f"another run is writing to {str(self.out)!r}: wait for it or choose another --out") from None


def _executor(name: ExecutorName, bench: Bench) -> Executor:
    if name == "serial":
        return SerialExecutor(bench)
    from rapbench.runner.cluster import RayExecutor

    return RayExecutor(bench)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM (a scheduler's preemption) end the run as Ctrl-C does: finished work is written, exit 130."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

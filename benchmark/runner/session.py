"""One run of a grid: plan, lock, do what is missing, write the cells."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rapbench import checks, measure, probe, results
from rapbench.artifacts import Store, alone, write_atomically
from rapbench.checks import Check
from rapbench.grid import Cell
from rapbench.probe import Probe
from rapbench.registry import Registry
from rapbench.results import Curve, Named
from rapbench.runner.execute import Done, Executor, Failure, SerialExecutor, execute
from rapbench.runner.plan import WELCOME, Asked, Group, Plan, plan
from rapbench.stages import Bench, Job

ExecutorName = Literal["ray", "serial"]
MEASURES: Mapping[type, Any] = {Cell: measure, Probe: probe, Check: checks}
"""The module whose `record` and `unfinished` word a result, by what is asked."""


def planned(cells: Sequence[Asked], registry: Registry, out: Path, *, device: str, threads: int) -> tuple[Plan, Bench]:
    """Give the plan of the cells and the bench they run on; nothing is written."""
    bench = Bench(out.resolve() / "artifacts", device, threads)
    return plan(cells, registry, bench), bench


class Session:
    """A run under way. `finished` holds the failures so far, also after an interrupt."""

    def __init__(self, made: Plan, bench: Bench, out: Path, executor: ExecutorName) -> None:
        self.plan, self.bench, self.out, self.executor = made, bench, out.resolve(), executor
        self.store = Store(bench.store)
        self.failures: dict[str, Failure] = {}

    def run(self, watch: Callable[[Done], None], begin: Callable[[int], None]) -> list[Named]:
        """Do what is missing and give every cell's record; a KeyboardInterrupt leaves all that is finished."""
        self.store.create()
        with self._alone(), _terminable() as check:

            def checked(done: Done) -> None:
                watch(done)
                check()

            try:
                self.store.sweep()
                missing = self.plan.missing(self.store)
                for key in missing:
                    if self.store.has(key):
                        self.store.set_aside(key)
                begin(len(missing))
                if missing:
                    self._execute(missing, checked)
            finally:
                records = self.records()
                results.write(records, self.out)
                results.write(self.curves(), self.out)
                self._write_details()
        return records

    def records(self) -> list[Named]:
        """Give the record of all that was asked, as things stand."""
        found = [self._record(group, asked) for group in self.plan.groups for asked in group.cells]
        refused = [_unfinished(asked, "failed", reason) for asked, reason in self.plan.refused]
        return found + refused + [_unfinished(asked, "skipped", asked.skip or "") for asked in self.plan.skipped]

    def curves(self) -> list[Curve]:
        """Give the curve of every defense that has scored an attack, under both protocols."""
        whole = [(group, cell) for group in self.plan.groups for cell in group.cells if isinstance(cell, Cell) and cell.attack.poisons]
        first = {(group.keys["score"], cell.protocol): (group, cell) for group, cell in reversed(whole) if self._complete(group)}
        return [measure.curve(cell, group.keys, self.store) for group, cell in first.values()]

    def _complete(self, group: Group) -> bool:
        return all(self.store.has(group.keys[role]) for role in group.needed)

    def _execute(self, missing: dict[str, Job], watch: Callable[[Done], None]) -> None:
        executor = _executor(self.executor, self.bench)
        try:
            execute(missing, executor, watch, self.failures)
        finally:
            executor.close()

    def _record(self, group: Group, asked: Asked) -> Named:
        for role in group.keys:
            if role not in WELCOME and (failure := self.failures.get(group.keys[role])):
                return _unfinished(asked, "failed", failure.reason, group.keys)
        if not self._complete(group):
            return _unfinished(asked, "interrupted", "the run ended before this cell: the same command goes on", group.keys)
        found: Named = MEASURES[type(asked)].record(asked, group.keys, self.store)
        return found

    def _write_details(self) -> None:
        """Keep the traceback of every step that failed by a defect, under its key."""
        origins = {failure: key for key, failure in reversed(self.failures.items()) if failure.details}
        for failure, key in origins.items():
            (self.out / "failures").mkdir(exist_ok=True)
            write_atomically(self.out / "failures" / f"{key}.txt", f"{failure.reason}\n\n{failure.details}")

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self.out)


def _unfinished(asked: Asked, status: str, reason: str, keys: Mapping[str, str] | None = None) -> Named:
    found: Named = MEASURES[type(asked)].unfinished(asked, status, reason, keys)
    return found


def _executor(name: ExecutorName, bench: Bench) -> Executor:
    if name == "serial":
        return SerialExecutor(bench)
    from rapbench.runner.cluster import RayExecutor

    return RayExecutor(bench)


@contextmanager
def _terminable() -> Iterator[Callable[[], None]]:
    """Let SIGTERM (a scheduler's preemption) end the run as Ctrl-C does: finished work is written, exit 130.

    An exception raised while a finalizer runs is dropped by Python: the callable that is given raises it again.
    """
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if caught:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

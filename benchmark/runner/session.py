"""One run of a grid: plan, lock, do what is missing, write the cells."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rapbench import checks, measure, probe, results
from rapbench.artifacts import alone, make_folder, remember_store, store_at, write_atomically
from rapbench.checks import Check
from rapbench.early import Early
from rapbench.grid import Cell
from rapbench.lifecycle import Herald, Waiting
from rapbench.outline import forget_plan, write_plan
from rapbench.probe import Probe
from rapbench.registry import Registry
from rapbench.results import Curve, Examples, Histogram, Named
from rapbench.runner.connect import Site
from rapbench.runner.execute import Done, Executor, Failure, SerialExecutor, execute
from rapbench.runner.journal import Journal
from rapbench.runner.plan import WELCOME, Asked, Group, Plan, plan
from rapbench.stages import Bench, Job

ExecutorName = Literal["ray", "serial"]
Drawn = Curve | Histogram | Examples
MEASURES: Mapping[type, Any] = {Cell: measure, Probe: probe, Check: checks}
"""The module whose `record` and `unfinished` word a result, by what is asked."""


def planned(
    cells: Sequence[Asked], registry: Registry, out: Path, *, device: str, threads: int, exclusive: bool = False, store: str | None = None
) -> tuple[Plan, Bench]:
    """Give the plan of the cells and the bench they run on; nothing is written. `store`: for artifacts elsewhere than in `out`."""
    out = out.resolve()
    place = out / "artifacts" if store is None else store if "://" in store else Path(store).expanduser().resolve()
    bench = Bench(place, device, threads, exclusive, out / "logs")
    return plan(cells, registry, bench), bench


class Session:
    """A run under way. `failures`: of its steps so far, by key, also after an interrupt."""

    def __init__(
        self, made: Plan, bench: Bench, out: Path, executor: ExecutorName, site: Site | None = None, herald: Herald | None = None
    ) -> None:
        self.plan, self.bench, self.out, self.executor, self.site = made, bench, out.resolve(), executor, site or Site()
        self.herald = herald or Herald({})
        self.store = store_at(bench.store)
        self.journal = Journal(self.out)
        self.failures: dict[str, Failure] = {}
        self._final: dict[int, Named] = {}
        self._drawn: dict[tuple[str, str], list[tuple[type[Named], str]]] = {}
        self._scorings = Counter(group.keys.get("score") for group in made.groups)

    def run(self, watch: Callable[[Done], None], begin: Callable[[int], None]) -> list[Named]:
        """Do what is missing and give every cell's record; a KeyboardInterrupt leaves all that is finished."""
        make_folder(self.out)
        self.store.create(shared=self.bench.store != self.out / "artifacts")
        with self._alone(), _terminable() as check:

            def checked(done: Done) -> None:
                self.journal.add(done)
                watch(done)
                if not done.again:
                    settled = waiting.settled(done.job.key, failed=done.failure is not None)
                    early.add(partial(self._settled, settled))
                    self.herald.cells_finished(settled, self._record)
                check()

            remember_store(self.out, self.bench.store)
            forget_plan(self.out)
            early = Early(self.out)
            try:
                self.store.sweep()
                missing = self.plan.missing(self.store)
                for key in missing:
                    if self.store.has(key) and not self.store.sound(key):  # another runner may have published it just now
                        self.store.set_aside(key)
                waiting = Waiting(self.plan.groups, missing)
                write_plan(self.plan, missing, self.out)
                begin(len(missing))
                if missing:
                    self._execute(missing, checked)
            finally:
                records = self.records()
                early.end()
                results.write(self._unwritten(records, early), self.out)
                self._write_details()
                self.herald.run_finished(records, self.out)
        return records

    def records(self) -> list[Named]:
        """Give the record of all that was asked, as things stand."""
        found = [self._record(group, asked) for group in self.plan.groups for asked in group.cells]
        refused = [_unfinished(asked, "failed", reason) for asked, reason in self.plan.refused]
        return found + refused + [_unfinished(asked, "skipped", asked.skip or "") for asked in self.plan.skipped]

    def _drawings(self, group: Group, cells: Sequence[Cell]) -> list[Drawn]:
        """Give what is shown of one scoring under one protocol: its curve, its suspicions, example texts; the arrays are read once."""
        return [
            measure.curve(cells[0], group.keys, self.store),
            measure.histogram(cells, group.keys, self.store),
            measure.examples(cells, group.keys, self.store),
        ]

    def _scored(self, groups: Sequence[Group]) -> dict[tuple[str, str], tuple[Group, list[Cell]]]:
        """Give the cells of each scoring of an attack that is complete, by protocol; they differ by FRR alone."""
        found: dict[tuple[str, str], tuple[Group, list[Cell]]] = {}
        for group in groups:
            cells = [cell for cell in group.cells if isinstance(cell, Cell) and cell.attack.poisons]
            if cells and self._complete(group):
                for cell in cells:
                    found.setdefault((group.keys["score"], cell.protocol), (group, []))[1].append(cell)
        return found

    def _complete(self, group: Group) -> bool:
        return all(self.store.has(group.keys[role]) for role in group.needed)

    def _execute(self, missing: dict[str, Job], watch: Callable[[Done], None]) -> None:
        executor = _executor(self.executor, self.bench, self.site)
        try:
            executor.check(missing.values())
            execute(missing, executor, watch, self.failures)
        finally:
            executor.close()

    def _settled(self, groups: Sequence[Group]) -> list[Named]:
        """Give what there is of groups that wait for nothing more; the records of one whose steps all ended well stay as they are."""
        found: list[Named] = []
        for group in groups:
            made = {id(asked): self._record(group, asked) for asked in group.cells}
            found += made.values()
            if not any(key in self.failures for key in group.keys.values()):
                self._final |= made
        single = [group for group in groups if self._scorings[group.keys.get("score")] == 1]  # of several, the first names the curve
        for place, (group, cells) in self._scored(single).items():
            drawn = self._drawings(group, cells)
            self._drawn[place] = [(type(one), one.file_name) for one in drawn]
            found += drawn
        return found

    def _unwritten(self, records: Sequence[Named], early: Early) -> Iterator[Named]:
        """Give what is not in the results folder yet: what is drawn is made when it is asked for, and not kept."""
        final = {id(one) for one in self._final.values()}
        yield from (one for one in records if not (id(one) in final and early.has(type(one), one.file_name)))
        for place, (group, cells) in self._scored(self.plan.groups).items():
            if not (place in self._drawn and all(early.has(*one) for one in self._drawn[place])):
                yield from self._drawings(group, cells)

    def _record(self, group: Group, asked: Asked) -> Named:
        if (final := self._final.get(id(asked))) is not None:
            return final
        return replace(self._measured(group, asked), attempts=self._attempts(group))

    def _measured(self, group: Group, asked: Asked) -> Named:
        for role in group.keys:
            if role not in WELCOME and (failure := self.failures.get(group.keys[role])):
                return _unfinished(asked, "failed", failure.reason, group.keys)
        if not self._complete(group):
            return _unfinished(asked, "interrupted", "the run ended before this cell: the same command goes on", group.keys)
        found: Named = MEASURES[type(asked)].record(asked, group.keys, self.store)
        return found

    def _attempts(self, group: Group) -> dict[str, str]:
        ends = {role: self.journal.ends.get(key, ()) for role, key in group.keys.items()}
        return {role: ", ".join(own) for role, own in ends.items() if len(own) > 1}

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


def _executor(name: ExecutorName, bench: Bench, site: Site) -> Executor:
    if name == "serial":
        return SerialExecutor(bench, site.deadline_s)
    from rapbench.runner.cluster import RayExecutor

    return RayExecutor(bench, site)


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

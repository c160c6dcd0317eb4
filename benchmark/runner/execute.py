"""Drive jobs through an executor in the order of their inputs; what fails stops only what needs it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Protocol

from rapbench import stages
from rapbench.errors import RapbenchError
from rapbench.kept import Kept
from rapbench.registry import Registry, discover
from rapbench.stages import Bench, Job


@dataclass(frozen=True)
class Failure:
    """Why a job has no artifact. `reason`: one line; `details`: the traceback, empty where the user can mend it."""

    reason: str
    details: str = ""


@dataclass(frozen=True)
class Done:
    """A job that ended, well (`failure` is None) or not."""

    job: Job
    failure: Failure | None
    seconds: float
    blocked: bool = False
    """It did not run: a step that it needs had failed."""


class Executor(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> None:
        """Take a job whose inputs are there."""

    def next(self) -> Done:
        """Wait for a submitted job to end."""

    def close(self) -> None:
        """Give back all that was started."""


class SerialExecutor:
    """One job after the other in this process: for debugging and for small runs."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self._registry, self._kept = bench, discover(), Kept()
        self._queue: list[Job] = []

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def next(self) -> Done:
        job = self._queue.pop(0)
        return Done(job, *attempt(job, self.bench, self._registry, self._kept))

    def close(self) -> None:
        self._queue.clear()


def attempt(job: Job, bench: Bench, registry: Registry, kept: Kept) -> tuple[Failure | None, float]:
    """Run a job in this process; give what went wrong, whatever it was, and the seconds: no plugin may stop the run."""
    started = time.perf_counter()
    failure = None
    try:
        stages.run(job, bench, registry, kept)
    except RapbenchError as error:
        failure = Failure(f"{job.stage} {job.label}: {error}")
    except Exception as error:
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = Failure(f"{job.stage} {job.label}: {last}", traceback.format_exc())
    return failure, time.perf_counter() - started


def execute(jobs: Mapping[str, Job], executor: Executor, watch: Callable[[Done], None], failures: dict[str, Failure]) -> None:
    """Run the jobs; put the failures by key into `failures`, with a job that needs a failed one blocked by its reason."""
    graph = {key: [own for own in job.inputs.values() if own in jobs] for key, job in jobs.items()}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    order = {key: place for place, key in enumerate(jobs)}
    heights = _heights(graph)
    running = 0
    while sorter.is_active():
        for key in sorted(sorter.get_ready(), key=lambda key: (-heights[key], order[key])):
            blocker = next((failures[own] for own in graph[key] if own in failures), None)
            if blocker is None:
                executor.submit(jobs[key])
                running += 1
                continue
            failures[key] = blocker
            watch(Done(jobs[key], blocker, 0.0, blocked=True))
            sorter.done(key)
        if running:
            done = executor.next()
            running -= 1
            if done.failure:
                failures[done.job.key] = done.failure
            watch(done)
            sorter.done(done.job.key)


def _heights(graph: Mapping[str, list[str]]) -> dict[str, int]:
    """Give the length of the longest chain of jobs that waits for each: the longest goes first, or it is the tail."""
    heights = dict.fromkeys(graph, 0)
    for key in reversed(list(TopologicalSorter(graph).static_order())):
        for needed in graph[key]:
            heights[needed] = max(heights[needed], heights[key] + 1)
    return heights

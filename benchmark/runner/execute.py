"""Drive jobs through an executor in the order of their inputs; what fails stops only what needs it.

Retries are ours: by the way an attempt ended (`End`), never for a plugin's exception. An executor runs attempts, one at a
time or many, and says how each ended; whether there is another is decided here.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from graphlib import TopologicalSorter
from types import FrameType
from typing import Protocol

from rapbench import stages
from rapbench.errors import RapbenchError
from rapbench.kept import Kept
from rapbench.registry import Registry, discover
from rapbench.runner.logs import captured, log_path
from rapbench.stages import Bench, Job
from rapbench.victim import out_of_memory


class End(StrEnum):
    """How an attempt ended."""

    OK = "ok"
    FAILED = "failed"
    LOST = "worker lost"
    MEMORY = "out of memory"
    DEADLINE = "deadline passed"
    BLOCKED = "blocked"
    """It did not run: a step that it needs had failed."""


@dataclass(frozen=True)
class Failure:
    """Why a job has no artifact. `reason`: one line; `details`: the traceback, empty where the user can mend it."""

    reason: str
    details: str = ""


@dataclass(frozen=True)
class Attempt:
    """An attempt at a job: its number from 1, its rank among those that wait (the lowest goes first).

    `roomy`: the last one ran out of memory, this one gets all that a node has.
    """

    job: Job
    number: int = 1
    rank: tuple[int, ...] = ()
    roomy: bool = False

    @property
    def last(self) -> bool:
        """Tell whether no job waits for this one, by its rank."""
        return self.rank[:1] == (0,)


@dataclass(frozen=True)
class Done:
    """An attempt that ended, well (`failure` is None) or not. `node`: the machine's name; `log`: what it printed, if anything."""

    job: Job
    failure: Failure | None
    seconds: float
    end: End = End.OK
    number: int = 1
    node: str = ""
    log: str = ""
    again: bool = False
    """Another attempt follows."""

    @property
    def blocked(self) -> bool:
        return self.end is End.BLOCKED


class Executor(Protocol):
    """Where jobs run. `tries`: how many attempts in all may end this way before the job has failed; one where it is not named."""

    tries: Mapping[End, int]

    def check(self, jobs: Iterable[Job]) -> None:
        """Refuse jobs that can never run here, before one runs: a ClusterError says which and why."""

    def submit(self, attempt: Attempt) -> None:
        """Take an attempt at a job whose inputs are there."""

    def next(self) -> Done:
        """Wait for a submitted attempt to end."""

    def close(self) -> None:
        """Give back all that was started."""


class Overdue(BaseException):
    """A step's deadline has passed. No Exception: a plugin's `except Exception` would swallow it."""


class SerialExecutor:
    """One job after the other in this process: for debugging and for small runs.

    A plugin that ends the process ends the run, and one that hangs inside foreign code is not interrupted: Ray's workers can be lost.
    """

    tries: Mapping[End, int] = {}

    def __init__(self, bench: Bench, deadline_s: float | None = None) -> None:
        self.bench, self.deadline_s = bench, deadline_s
        self._registry, self._kept = discover(), Kept()
        self._queue: list[Attempt] = []

    def check(self, jobs: Iterable[Job]) -> None:
        pass

    def submit(self, attempt: Attempt) -> None:
        self._queue.append(attempt)

    def next(self) -> Done:
        asked = self._queue.pop(0)
        log = log_path(self.bench, asked.job, asked.number)
        with captured(log) as used:
            done = run_attempt(asked, self.bench, self._registry, self._kept, self.deadline_s)
        return replace(done, log=str(log) if used() else "")

    def close(self) -> None:
        self._queue.clear()


def run_attempt(asked: Attempt, bench: Bench, registry: Registry, kept: Kept, deadline_s: float | None = None) -> Done:
    """Run a job in this process and say how it ended, whatever it was: no plugin may stop the run."""
    job = asked.job
    started = time.perf_counter()
    failure, end = None, End.FAILED
    try:
        with _limited(deadline_s):
            stages.run(job, bench, registry, kept)
        end = End.OK
    except Overdue:
        failure, end = Failure(overdue(job, deadline_s)), End.DEADLINE
    except RapbenchError as error:
        failure = Failure(f"{job.stage} {job.label}: {error}")
    except (Exception, SystemExit) as error:  # a plugin may well call sys.exit
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = Failure(f"{job.stage} {job.label}: {last}", traceback.format_exc())
        end = End.MEMORY if isinstance(error, MemoryError) or out_of_memory(error) else End.FAILED
    return Done(job, failure, time.perf_counter() - started, end, asked.number)


def overdue(job: Job, deadline_s: float | None) -> str:
    """Word that a step was stopped at its deadline."""
    return f"{job.stage} {job.label}: not done after {deadline_s:g} s: stopped; give a longer --deadline if it only needs more time"


def execute(jobs: Mapping[str, Job], executor: Executor, watch: Callable[[Done], None], failures: dict[str, Failure]) -> None:
    """Run the jobs; put the failures by key into `failures`, with a job that needs a failed one blocked by its reason.

    `watch` is told each attempt that ended, also those after which another follows.
    """
    graph = {key: [own for own in job.inputs.values() if own in jobs] for key, job in jobs.items()}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    ranks = ranked(jobs, graph)
    ends: dict[str, Counter[End]] = {}
    running = 0
    while sorter.is_active():
        for key in sorted(sorter.get_ready(), key=ranks.__getitem__):
            blocker = next((failures[own] for own in graph[key] if own in failures), None)
            if blocker is None:
                executor.submit(Attempt(jobs[key], rank=ranks[key]))
                running += 1
                continue
            failures[key] = blocker
            watch(Done(jobs[key], blocker, 0.0, End.BLOCKED))
            sorter.done(key)
        if running:
            done = executor.next()
            key = done.job.key
            if done.failure:
                so_far = ends.setdefault(key, Counter())
                so_far[done.end] += 1
                if so_far[done.end] < executor.tries.get(done.end, 1):
                    watch(replace(done, again=True))
                    executor.submit(Attempt(done.job, done.number + 1, ranks[key], roomy=bool(so_far[End.MEMORY])))
                    continue
                failures[key] = done.failure
            running -= 1
            watch(done)
            sorter.done(key)


def ranked(jobs: Mapping[str, Job], graph: Mapping[str, list[str]]) -> dict[str, tuple[int, int]]:
    """Give what goes first, by key: of which the longest chain of jobs waits (or it is the tail), then the plan's order.

    `graph`: key -> the keys that it needs, among these jobs.
    """
    heights = dict.fromkeys(graph, 0)
    for key in reversed(list(TopologicalSorter(graph).static_order())):
        for needed in graph[key]:
            heights[needed] = max(heights[needed], heights[key] + 1)
    return {key: (-heights[key], place) for place, key in enumerate(jobs)}


@contextmanager
def _limited(deadline_s: float | None) -> Iterator[None]:
    """Raise Overdue in this block when the time is over; again and again, should it be swallowed. Only the main thread can be told."""
    if deadline_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Overdue

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, deadline_s, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)

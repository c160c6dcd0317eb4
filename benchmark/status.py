"""What a run in a results folder is doing, or has done: what `rapbench status` prints. It only reads, also while a run writes.

From plan.json (`rapbench.outline`), attempts.jsonl (`rapbench.runner.journal`), the results, and the folder's lock. A folder may
come from anywhere: all of them are bounded and checked, and what they say is shown without control signs.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from rapbench.artifacts import read_json
from rapbench.errors import StoreError
from rapbench.outline import JOURNAL, Outline, read_plan
from rapbench.pace import Ended, Pace, pace
from rapbench.report.names import plain
from rapbench.tally import MOST_SHOWN, Last, Tally, Tried

FOLDERS = ("cells", "probes", "theorem")
"""Of results that have a status."""
GOOD = "ok"


class State(StrEnum):
    """Whether there is a run."""

    EMPTY = "empty"
    """Nothing was ever run here."""
    RUNNING = "running"
    STOPPED = "stopped"
    """It ended before its last cell: the same command goes on."""
    ENDED = "ended"


@dataclass(frozen=True)
class Stage:
    """Steps of one stage. `failed`: those blocked by another's failure, too; `retried`: attempts beyond each step's first.

    `seconds`: of all attempts; `to_come` is None where the plan is not known.
    """

    name: str
    done: int
    failed: int
    retried: int
    to_come: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """A results folder at one moment. Times in seconds; None where it is not known."""

    folder: str
    state: State
    locked: bool
    """Whether a process keeps others out; without `by`, it may be a clean-up, or a run that is still planning."""
    by: str | None = None
    """Process and machine of the run under way."""
    command: str | None = None
    started: str | None = None
    """ISO 8601, UTC."""
    seconds: float | None = None
    """How long it has run, or ran."""
    stages: tuple[Stage, ...] = ()
    cells: Mapping[str, int] = field(default_factory=dict)
    """How many of the run are ok, waiting, failed, skipped; without a plan: of the results that are there, by their status."""
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Why: failed or skipped -> reason -> cells."""
    last: Last | None = None
    pace: Pace | None = None

    @property
    def waiting(self) -> int:
        """Cells that are still to come."""
        return self.cells.get("waiting", 0)


def status(folder: Path) -> Status:
    """Give what a results folder's run is doing or has done; a StoreError where there is no folder, or a file of it is no such thing."""
    if not folder.is_dir():
        raise StoreError(f"no folder {str(folder)!r}: give the one of `rapbench run --out`")
    locked = held(folder)
    made = read_plan(folder)
    if made is None:
        return _without_plan(folder, locked=locked)
    tally = Tally.of(folder / JOURNAL, made.attempts_at)
    run = _Run(made, tally, folder)
    running = locked and _alive(made)
    now = time.time()
    busy_s = max(0.0, (tally.at or made.started) - made.started)
    cells, reasons = run.cells()
    over = State.STOPPED if cells.get("waiting") else State.ENDED
    return Status(
        folder=str(folder),
        state=State.RUNNING if running else over,
        locked=locked,
        by=f"process {made.pid} on {plain(made.host, MOST_SHOWN)}" if running else None,
        command=plain(shlex.join(made.command), MOST_SHOWN),
        started=datetime.fromtimestamp(made.started, UTC).isoformat(timespec="seconds"),
        seconds=round(max(0.0, now - made.started) if running else busy_s, 1),
        stages=run.stages(),
        cells=cells,
        reasons=reasons,
        last=tally.last(now),
        pace=run.pace(busy_s, max(0.0, now - (tally.at or now))) if running else None,
    )


def under_way(folder: Path) -> bool:
    """Tell whether a run goes on in a results folder, or is about to begin."""
    return held(folder) and ((made := read_plan(folder)) is None or _alive(made))


def to_come(folder: Path) -> str:
    """Say in one line that a report is of a half-done run; empty where it is not, or nobody can tell."""
    try:
        found = status(folder)
    except StoreError:
        return ""
    if not found.waiting:
        return ""
    cells = f"{found.waiting} of {sum(found.cells.values())} cells are still to come"
    return f"a run is under way: {cells}" if found.state is State.RUNNING else f"the run ended early: {cells}; the same command goes on"


def held(folder: Path) -> bool:
    """Tell whether a run, or a clean-up, keeps others out of a results folder; asks for a moment's shared lock, and writes nothing."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems answer the second
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(lock)
    return False


@dataclass
class _Run:
    """A plan and what has become of it."""

    made: Outline
    tally: Tally
    folder: Path
    failures: dict[int, str] = field(init=False)
    """Place of a step that failed, or is blocked by one that did -> the reason."""
    done: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.failures, self.done = {}, set()
        for place, step in enumerate(self.made.steps):
            tried = self.tally.steps.get(step.key)
            blocker = next((self.failures[own] for own in step.needs if own in self.failures), None)
            if tried and tried.end == GOOD:
                self.done.add(place)
            elif tried and not tried.again:
                self.failures[place] = tried.reason
            elif blocker is not None:
                self.failures[place] = blocker

    def stages(self) -> tuple[Stage, ...]:
        """Give what has become of the steps, by stage, in the plan's order."""
        found: dict[str, list[int]] = {}
        for place, step in enumerate(self.made.steps):
            found.setdefault(plain(step.stage, MOST_SHOWN), []).append(place)
        return tuple(self._stage(name, places) for name, places in found.items())

    def cells(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """Give how many cells are ok, waiting, failed, skipped, and why those that failed or were skipped."""
        unmeasured = self._unmeasured()
        counts, failed = Counter[str](), Counter[str]()
        for lot in self.made.lots:
            reason = next((self.failures[place] for place in lot.needs if place in self.failures), None)
            if reason is not None:
                failed[reason] += lot.cells
            elif all(place in self.done or place in self.failures for place in (*lot.needs, *lot.welcome)):
                own = unmeasured.pop(lot.key, Counter())
                failed.update(own)
                counts["ok"] += max(0, lot.cells - own.total())
            else:
                counts["waiting"] += lot.cells
        failed.update(_shown(self.made.refused))
        skipped = _shown(self.made.skipped)
        counts.update({"failed": failed.total(), "skipped": skipped.total()})
        told = {"failed": dict(failed.most_common()), "skipped": dict(skipped.most_common())}
        return {name: counts[name] for name in ("ok", "waiting", "failed", "skipped")}, {name: own for name, own in told.items() if own}

    def pace(self, busy_s: float, quiet_s: float) -> Pace | None:
        steps = self.made.steps
        ended = [Ended(steps[place].stage, steps[place].label, self.tally.steps[steps[place].key].took_s) for place in sorted(self.done)]
        left = [(step.stage, step.label) for place, step in enumerate(steps) if place not in self.done and place not in self.failures]
        return pace(ended, left, busy_s, quiet_s)

    def _stage(self, name: str, places: Sequence[int]) -> Stage:
        tried = [one for place in places if (one := self.tally.steps.get(self.made.steps[place].key))]
        done, failed = sum(place in self.done for place in places), sum(place in self.failures for place in places)
        retried, seconds = sum(one.attempts - 1 for one in tried), sum(one.seconds for one in tried)
        return Stage(name, done, failed, retried, len(places) - done - failed, round(seconds, 1))

    def _unmeasured(self) -> dict[str, Counter[str]]:
        """Give the cells whose steps ended well and whose figures cannot be had (no threshold, say): key of the artifact -> reasons."""
        planned = {lot.key: bool(lot.needs) for lot in self.made.lots}
        found: dict[str, Counter[str]] = {}
        for content, written in _results(self.folder):
            if content.get("status") != "failed" or not isinstance(keys := content.get("artifacts"), dict):
                continue
            for key in {own for own in keys.values() if isinstance(own, str) and own in planned}:
                if written >= self.made.started or not planned[key]:  # else an earlier run's, and tried again now
                    found.setdefault(key, Counter())[plain(str(content.get("reason")), MOST_SHOWN)] += 1
        return found


def _without_plan(folder: Path, *, locked: bool) -> Status:
    """Give the status of a folder that an older rapbench wrote, or of one where a run is still planning."""
    tally = Tally.of(folder / JOURNAL)
    counts, reasons = Counter[str](), dict[str, Counter[str]]()
    for content, _ in _results(folder):
        one = plain(str(content.get("status")), MOST_SHOWN)
        counts[one] += 1
        if one != GOOD:
            reasons.setdefault(one, Counter())[plain(str(content.get("reason")), MOST_SHOWN)] += 1
    by_stage: dict[str, list[Tried]] = {}
    for tried in tally.steps.values():
        by_stage.setdefault(tried.stage, []).append(tried)
    return Status(
        folder=str(folder),
        state=State.RUNNING if locked else State.ENDED if counts or by_stage else State.EMPTY,
        locked=locked,
        stages=tuple(_told(name, own) for name, own in by_stage.items()),
        cells=dict(counts),
        reasons={name: dict(own.most_common()) for name, own in reasons.items()},
        last=tally.last(time.time()),
    )


def _told(name: str, tried: Sequence[Tried]) -> Stage:
    done = sum(one.end == GOOD for one in tried)
    return Stage(name, done, len(tried) - done, sum(one.attempts - 1 for one in tried), None, round(sum(one.seconds for one in tried), 1))


def _alive(made: Outline) -> bool:
    """Tell whether the process that wrote the plan may be there; of another machine it cannot be told."""
    if made.host != platform.node():
        return True
    try:
        os.kill(made.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _results(folder: Path) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Give the results that have a status, and when each was written; one that cannot be read is a StoreError."""
    for path in (path for name in FOLDERS for path in sorted((folder / name).glob("*.json"))):
        content = read_json(path, finite=True)
        if not isinstance(content, dict):
            raise StoreError(f"{str(path)!r} is no result of rapbench; move it away and run again")
        yield content, path.stat().st_mtime


def _shown(reasons: Mapping[str, int]) -> Counter[str]:
    found = Counter[str]()
    for reason, cells in reasons.items():
        found[plain(reason, MOST_SHOWN)] += cells
    return found

"""Doing something again whenever the results of a run change, until it has ended: `rapbench report --watch`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rapbench.errors import StoreError
from rapbench.status import status, under_way

WRITTEN = ("cells", "curves", "histograms", "examples", "probes", "theorem")
"""Folders that results are in."""

Seen = frozenset[tuple[str, int, int]]


def watch(folder: Path, write: Callable[[bool], None], every_s: float, say: Callable[[str], None]) -> None:
    """Call `write` now, then after each change of the folder's results, until its run has ended, or Ctrl-C.

    `write` is told whether it will be called again; `say` one line each time. A StoreError is such a line, too, as long as the run
    goes on: there may be no results yet.
    """
    before: Seen | None = None
    try:
        while under_way(folder):
            if (now := results_seen(folder)) != before:
                _write(write, say, folder)
                before = now
            time.sleep(every_s)
        end = "no run is under way"
    except KeyboardInterrupt:
        end = "no longer watched"
    write(False)
    say(f"{_written(folder)}; {end}")


def results_seen(folder: Path) -> Seen:
    """Give name, date and size of each file of the results: another set where something was written."""
    return frozenset(one for name in WRITTEN for one in _files(folder / name))


def _write(write: Callable[[bool], None], say: Callable[[str], None], folder: Path) -> None:
    try:
        write(True)
        say(_written(folder))
    except StoreError as error:
        say(str(error))


def _written(folder: Path) -> str:
    found = status(folder)
    total = sum(found.cells.values())
    return f"written with {total - found.waiting} of {total} cells"


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    about = entry.stat()
                    yield entry.path, about.st_mtime_ns, about.st_size
    except FileNotFoundError:  # none of that kind yet
        return

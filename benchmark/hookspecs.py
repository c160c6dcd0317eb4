"""The whole surface on which packages extend rapbench. Entry-point group: `rapbench`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from rapbench.api import Attack, Dataset, Defense

if TYPE_CHECKING:
    from rapbench.results import Named

PROJECT = "rapbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def rapbench_datasets() -> Iterable[type[Dataset]]:
    """Give the data set classes of this package."""
    return ()


@hookspec
def rapbench_attacks() -> Iterable[type[Attack]]:
    """Give the attack classes of this package."""
    return ()


@hookspec
def rapbench_defenses() -> Iterable[type[Defense]]:
    """Give the defense classes of this package."""
    return ()


@hookspec
def rapbench_cell_finished(record: Named) -> None:
    """Hear, in the process that was started, of a cell that this run has computed or that failed, as soon as it is so."""


@hookspec
def rapbench_run_finished(records: Sequence[Named], folder: Path) -> None:
    """Hear that a run has ended and its results are written: all its records, those that were there before, too."""

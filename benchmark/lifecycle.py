"""Telling packages of finished cells and runs; what goes wrong there is one line on stderr and stops nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapbench.runner.plan import WELCOME, Asked, Group

if TYPE_CHECKING:
    from rapbench.registry import Registry
    from rapbench.results import Named


@dataclass
class Herald:
    """Calls the lifecycle hooks of the registered packages, each by itself, with stdout led to stderr."""

    listeners: Mapping[str, Any]
    """Package -> its hooks."""
    warned: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, registry: Registry) -> Herald:
        return cls(registry.listeners)

    def cell_finished(self, record: Named) -> None:
        """Tell of one cell."""
        self._tell("rapbench_cell_finished", record=record)

    def cells_finished(self, groups: Sequence[Group], record: Callable[[Group, Asked], Named]) -> None:
        """Tell of all cells of these groups; a record is made only where somebody listens, and one that cannot be made stops nothing."""
        if not any(hooks.rapbench_cell_finished.get_hookimpls() for hooks in self.listeners.values()):
            return
        for group in groups:
            for asked in group.cells:
                try:
                    own = record(group, asked)
                except Exception as error:
                    self._warn("rapbench", "rapbench_cell_finished", error)
                else:
                    self.cell_finished(own)

    def run_finished(self, records: Sequence[Named], folder: Path) -> None:
        """Tell that the run has ended and its results are written."""
        self._tell("rapbench_run_finished", records=records, folder=folder)

    def _tell(self, hook: str, **told: Any) -> None:
        for package, hooks in self.listeners.items():
            try:
                with redirect_stdout(sys.stderr):  # stdout is the result
                    getattr(hooks, hook)(**told)
            except (Exception, SystemExit) as error:
                self._warn(package, hook, error)

    def _warn(self, package: str, hook: str, error: BaseException) -> None:
        """Say it once per package and hook: what fails for one cell mostly fails for all."""
        if (package, hook) not in self.warned:
            self.warned.add((package, hook))
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"rapbench: {package}: {hook} failed: {reason}; the run goes on", file=sys.stderr)


class Waiting:
    """Which groups of cells wait for which steps: each is given once, when its last step has ended, or the first one failed."""

    def __init__(self, groups: Sequence[Group], missing: Collection[str]) -> None:
        self._left: dict[int, set[str]] = {}
        self._groups = list(groups)
        self._waiting: dict[str, list[int]] = {}
        missing = set(missing)
        for place, group in enumerate(groups):
            if left := missing.intersection(group.keys.values()):
                self._left[place] = left
                for key in left:
                    self._waiting.setdefault(key, []).append(place)

    def settled(self, key: str, *, failed: bool) -> list[Group]:
        """Give the groups that wait for nothing more now that the step of this key has ended."""
        over = []
        for place in self._waiting.pop(key, ()):
            if (left := self._left.get(place)) is None:
                continue
            left.discard(key)
            if not left or (failed and _needs(self._groups[place], key)):
                del self._left[place]
                over.append(self._groups[place])
        return over


def _needs(group: Group, key: str) -> bool:
    return any(own == key and role not in WELCOME for role, own in group.keys.items())

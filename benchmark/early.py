"""Results of cells that are finished, written while the run goes on: a report of a half-done run shows them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from rapbench import results
from rapbench.errors import StoreError
from rapbench.results import Named

EVERY_S = 2.0
"""Between two times of writing: many files at once cost little more than one."""


class Early:
    """Writes results beside the run, which does not wait for it. What cannot be written is tried again, last at the run's end."""

    def __init__(self, out: Path, every_s: float = EVERY_S) -> None:
        self._out, self._every_s = out, every_s
        self._pending: list[Named] = []
        self._written: set[str] = set()
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._go_on, name="rapbench-early", daemon=True)
        self._writer.start()

    def add(self, make: Callable[[], Iterable[Named]]) -> None:
        """Write what `make` gives, soon. If it cannot be made, that stops nothing: the run's end makes it again."""
        with suppress(Exception):
            self._pending.extend(list(make()))

    def end(self) -> None:
        """Write what waits, and nothing more; a StoreError where it cannot be written."""
        self._over.set()
        self._writer.join()
        self._write()

    def has(self, one: type[Named], file_name: str) -> bool:
        """Tell whether a file of this kind and name was written."""
        return f"{one.FOLDER}/{file_name}" in self._written

    def _go_on(self) -> None:
        while not self._over.wait(self._every_s):
            with suppress(StoreError):
                self._write()

    def _write(self) -> None:
        more = self._pending[:]
        results.write(more, self._out)
        self._written.update(f"{one.FOLDER}/{one.file_name}" for one in more)
        del self._pending[: len(more)]

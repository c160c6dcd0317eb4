"""What attempts.jsonl says: the attempts that runs have made (`rapbench.runner.journal`), read while one may be writing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapbench.errors import StoreError
from rapbench.report.names import plain

MOST_LINES, MOST_BYTES = 1_000_000, 1 << 20
"""Attempts that are read, and bytes of one."""
MOST_SHOWN = 500
"""Characters of a text that is shown."""
MOST_S = 1e9


@dataclass(frozen=True)
class Last:
    """The attempt that ended last."""

    stage: str
    of: str
    end: str
    seconds: float
    node: str
    ago_s: float


@dataclass
class Tally:
    """What attempts.jsonl says, from one place on. `steps`: what was tried, by key."""

    steps: dict[str, Tried] = field(default_factory=dict)
    at: float | None = None
    """When it was last written, in seconds since 1970; None where it says nothing."""
    newest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, begin: int = 0) -> Tally:
        """Read the attempts from byte `begin` on; a line that is none is passed over, like that of a run which writes just now."""
        found = cls()
        try:
            if path.is_file():
                with path.open("rb") as stream:
                    stream.seek(begin if begin <= os.fstat(stream.fileno()).st_size else 0)
                    for line in _lines(stream):
                        found._take(line)
                    if found.newest:
                        found.at = os.fstat(stream.fileno()).st_mtime
        except OSError as error:
            raise StoreError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
        return found

    def last(self, now: float) -> Last | None:
        """Give the attempt that ended last, `now` being seconds since 1970."""
        if self.at is None:
            return None
        stage, of, end, node = (plain(str(self.newest.get(name, "")), MOST_SHOWN) for name in ("stage", "of", "end", "node"))
        return Last(stage, of, end, _seconds(self.newest), node, round(max(0.0, now - self.at), 1))

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict) and isinstance(key := found.get("key"), str):
            self.newest = found
            self.steps.setdefault(key, Tried()).add(found)


@dataclass
class Tried:
    """The attempts at one step."""

    stage: str = ""
    label: str = ""
    end: str = ""
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    """Of all attempts."""
    took_s: float = 0.0
    """Of the last one."""
    again: bool = False
    """Another attempt follows."""

    def add(self, found: Mapping[str, Any]) -> None:
        self.stage, self.label, self.end, self.reason = (
            plain(str(found.get(name, "")), MOST_SHOWN) for name in ("stage", "of", "end", "reason")
        )
        self.took_s = _seconds(found)
        self.attempts, self.seconds, self.again = self.attempts + 1, self.seconds + self.took_s, found.get("again") is True


def _lines(stream: Any) -> Iterator[bytes]:
    """Give the whole lines of a stream, those of a bounded length, and not without end."""
    for _ in range(MOST_LINES):
        line = stream.readline(MOST_BYTES)
        if not line:
            return
        if line.endswith(b"\n"):
            yield line


def _seconds(found: Mapping[str, Any]) -> float:
    """Give how long an attempt took; 0 where its line does not say so."""
    try:
        seconds = float(found.get("seconds", 0.0))
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), MOST_S) if math.isfinite(seconds) else 0.0

"""Every attempt of a results folder's runs, one JSON object a line: `<results>/attempts.jsonl`. Appended to, never rewritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rapbench.errors import StoreError
from rapbench.runner.execute import Done, End


class Journal:
    """The attempts of a results folder. `ends`: key of a job -> how its attempts ended, since its artifact was last made."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "attempts.jsonl"
        self.ends: dict[str, tuple[str, ...]] = {}
        self._torn = False
        self._read()

    def add(self, done: Done) -> None:
        """Keep an attempt; one that did not run is none."""
        if done.blocked:
            return
        line = {
            "key": done.job.key,
            "stage": done.job.stage,
            "of": done.job.label,
            "number": done.number,
            "end": str(done.end),
            "seconds": round(done.seconds, 3),
            "node": done.node,
            "log": os.path.relpath(done.log, self.out) if done.log else "",
            "reason": done.failure.reason if done.failure else "",
            "again": done.again,
        }
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("\n" * self._torn + json.dumps(line) + "\n")
                self._torn = False
        except OSError as error:
            raise StoreError(f"cannot write {str(self.path)!r}: {error.strerror}; free space there or choose another --out") from None
        self._count(done.job.key, str(done.end))

    def _read(self) -> None:
        try:
            with self.path.open("rb") as stream:
                for line in stream:
                    self._take(line)
                    self._torn = not line.endswith(b"\n")
        except OSError:
            return  # a folder's first run

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            self._count(str(found["key"]), str(End(found["end"])))
        except (ValueError, LookupError, TypeError, RecursionError):
            return  # the last line of a run that was killed while it wrote

    def _count(self, key: str, end: str) -> None:
        before = self.ends.get(key, ())
        self.ends[key] = (end,) if before[-1:] == (str(End.OK),) else (*before, end)

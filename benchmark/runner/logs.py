"""What a step prints, kept in a file of its own for each attempt: `<results>/logs/<key>-<number>.log`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from rapbench.stages import Bench, Job


def log_path(bench: Bench, job: Job, number: int) -> Path | None:
    """Give the file for what an attempt prints; None where this bench keeps none."""
    return bench.logs / f"{job.key}-{number}.log" if bench.logs else None


@contextmanager
def captured(path: Path | None) -> Iterator[Callable[[], bool]]:
    """Send what Python code of this process prints into a file, made when something is; the callable that is given says whether."""
    if path is None:
        yield lambda: False
        return
    sink = _Sink(path)
    with redirect_stdout(sink), redirect_stderr(sink):
        yield lambda: sink.opened
    sink.end()


@contextmanager
def captured_whole(path: Path | None) -> Iterator[Callable[[], bool]]:
    """The same for all that this process prints, foreign code and a crash included; of a worker that does nothing else.

    The file is there from the start, and goes when nothing was printed.
    """
    stream = _open(path) if path else None
    if path is None or stream is None:
        yield lambda: False
        return
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    try:
        yield lambda: path.is_file() and path.stat().st_size > 0
    finally:
        for python in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                python.flush()
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)
            os.close(own)
        stream.close()
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


class _Sink(io.TextIOBase):
    """A text stream that makes its file with the first character; where it cannot be made, what is printed is lost."""

    def __init__(self, path: Path) -> None:
        self.path, self.opened = path, False
        self._stream: io.BufferedWriter | None = None

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self.opened and text:
            self._stream, self.opened = _open(self.path), True
        if self._stream is not None:
            with suppress(OSError):
                self._stream.write(text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.flush()

    def end(self) -> None:
        """Close the file; a stream that somebody holds on to stays harmless."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _open(path: Path) -> io.BufferedWriter | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError:
        return None

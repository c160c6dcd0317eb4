"""The fuzz tests for long, with other examples each time: python tests/fuzz/campaign.py --seconds 600

Each claim of tests/test_fuzz.py gets its share of the time, in processes of its own; with `--coverage` each border gets as much under
atheris, where that is installed. It prints a table: examples, seconds, findings. Exit code 1 where something was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "test_fuzz.py"
EXAMPLES = 100
"""Of a test per process; one begins while there is time, so that the whole takes somewhat longer than was asked for."""


@dataclass
class Tally:
    """What came of a claim or border: runs, seconds, and the last lines of each process that found something."""

    name: str
    runs: int = 0
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of all claims together, and of all borders together")
    parser.add_argument("--coverage", action="store_true", help="the borders under atheris, too")
    parser.add_argument("--only", default="", help="a part of the names of claims and borders")
    given = parser.parse_args()
    claims = [name for name in _claims() if given.only in name]
    borders = [name for name in _borders() if given.only in name] if given.coverage else []
    print("| claim or border | examples | seconds | findings |\n|---|---:|---:|---:|", flush=True)
    done = [_shown(_claim(name, given.seconds / len(claims))) for name in claims]
    done += [_shown(_border(name, given.seconds / len(borders))) for name in borders]
    for one in done:
        for finding in one.findings:
            print(f"\n## {one.name}\n\n{finding}")
    return int(any(one.findings for one in done))


def _shown(one: Tally) -> Tally:
    print(f"| {one.name} | {one.runs:,} | {one.seconds:.0f} | {len(one.findings)} |", flush=True)
    return one


def _claims() -> list[str]:
    """Give the tests that hypothesis makes examples for."""
    return re.findall(r"@given\(.*?\ndef (test_\w+)", TESTS.read_text(encoding="utf-8"), re.DOTALL)


def _borders() -> list[str]:
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("--coverage needs atheris: pip install atheris (Linux)")
    return ["spec", "grid", "rows", "header", "settings", "result", "manifest", "corpus"]


def _claim(name: str, seconds: float) -> Tally:
    tally = Tally(name)
    while tally.seconds < seconds:
        seed = time.time_ns() % 2**32
        pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--runxfail", "--hypothesis-show-statistics"]
        code, told = _run([*pytest, f"--hypothesis-seed={seed}", str(TESTS), "-k", name], tally, seconds)
        tally.runs += sum(map(int, re.findall(r"- (\d+) passing,", told)))
        if code:
            tally.findings += (f"--hypothesis-seed={seed}\n{told[-3000:]}",)
            break
    return tally


def _border(name: str, seconds: float) -> Tally:
    tally = Tally(name)
    with tempfile.TemporaryDirectory() as place:
        left = [f"-artifact_prefix={place}/", f"-max_total_time={int(seconds)}", "-max_len=4000"]
        code, told = _run([str(HERE / "coverage.py"), name, *left], tally, seconds)
    counts = re.findall(r"^(?:#|Done )(\d+)", told, re.MULTILINE)
    tally.runs = int(counts[-1]) if counts else 0
    if code:
        tally.findings = (told[-3000:],)
    return tally


def _run(arguments: list[str], tally: Tally, seconds: float) -> tuple[int, str]:
    """Give exit code and output of a Python process; 1 where it was ended since it took far too long."""
    started = time.monotonic()
    own = {**os.environ, "RAPBENCH_FUZZ_EXAMPLES": str(EXAMPLES)}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], env=own, capture_output=True, text=True, timeout=2 * seconds + 300, errors="replace"
        )
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        return 1, f"still at it after {late.timeout:.0f} s"
    finally:
        tally.seconds += time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())

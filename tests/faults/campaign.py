"""Faults injected into runs: each must end in a right result or in a failed cell that names its reason. None lost, none wrong, none hung.

    python tests/faults/campaign.py                  all kinds, about 220 faults, a quarter of an hour
    python tests/faults/campaign.py --only artifacts --count 50 --seed 3

Right: equal to the last bit, wall times apart, to a run without faults. After a fault the same command is given once more, as a user
would. `disk` needs root, for small tmpfs mounts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "cost")]

import encoder  # noqa: E402
import saboteur  # noqa: E402

if TYPE_CHECKING:
    from rapbench.results import Record

RIGHT, NAMED, WRONG = "right", "named", "WRONG"
HUNG_S = 180.0
DEADLINE_S = 30.0
"""For steps that take a second, and their libraries half a minute on a busy machine."""
NOT_THERE = ("interrupted", "failed")
ASKED = [f"saboteur:number={number},pause=0.3" for number in range(8)]
SLOW = [f"saboteur:number={number},pause=1.5" for number in range(100, 112)]


@dataclass
class Bed:
    """A scratch folder with the victim's model, and the figures of a run without faults, by defense."""

    folder: Path
    random: random.Random
    told: Callable[[str], None] = print
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    reference: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return f"{self.folder / 'model'}:max_length=32"

    def tell(self, kind: str, outcome: str, what: str) -> None:
        """Count a fault's outcome and say what it was."""
        self.counts[kind, outcome] += 1
        self.told(f"{sum(self.counts.values()):4} {kind:9} {outcome:6} {what}")

    def learn(self, defenses: Sequence[str], name: str = "clean") -> dict[str, str]:
        """Run these without faults into a folder of this name, and give their figures by defense."""
        records = run(self, defenses, self.folder / name)
        assert {record.status for record in records} == {"ok"}
        return {record.defense: figures(record) for record in records}

    def copy(self, name: str) -> Path:
        """Give a copy of the folder of the run without faults."""
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.folder / "clean", out)
        return out

    def outcome(self, records: Sequence[Record], *, whole: bool = True) -> tuple[str, str]:
        """Judge records: all right, or some failed with their reason (unless `whole` is asked for), or something wrong."""
        ends = {self.judge(record) for record in records}
        if (WRONG in {end for end, _ in ends}) or not records or (whole and ends != {(RIGHT, "")}):
            return WRONG, "; ".join(sorted(f"{end} {why}" for end, why in ends)) or "no record"
        return max(ends)

    def judge(self, record: Record) -> tuple[str, str]:
        if record.status == "ok":
            return (RIGHT, "") if self.reference.get(record.defense) == figures(record) else (WRONG, "another result")
        return (
            (NAMED, record.reason or "") if record.status in NOT_THERE and record.reason else (WRONG, f"{record.status} without a reason")
        )


def figures(record: Record) -> str:
    """What must be equal to the last bit: all but wall times, attempts and the machine's load."""
    return json.dumps({**asdict(record), "cost": None, "attempts": None, "made_by": None}, sort_keys=True)


def cells(bed: Bed, defenses: Sequence[str]):
    from rapbench.grid import Block, cells_of
    from rapbench.registry import discover

    registry = discover()
    block = Block(victim=bed.model, datasets=["few"], attacks=["idle"], defenses=list(defenses), frr=[0.05], seeds=[1])
    return [cell for cell in cells_of([block], registry) if cell.protocol == "strict"], registry


def run(bed: Bed, defenses: Sequence[str], out: Path, executor: str = "serial", deadline_s: float | None = None) -> list[Record]:
    """Run these defenses into a folder, in this process or on a Ray of its own."""
    from rapbench.runner.connect import Site
    from rapbench.runner.session import Session, planned

    asked, registry = cells(bed, defenses)
    plan, bench = planned(asked, registry, out, device="cpu", threads=1)
    return Session(plan, bench, out, executor, Site(deadline_s=deadline_s)).run(lambda done: None, lambda total: None)


def command(bed: Bed, defenses: Sequence[str], out: Path, *more: str) -> list[str]:
    given = [
        "run",
        "--victim",
        bed.model,
        "--dataset",
        "few",
        "--attack",
        "idle",
        "--frr",
        "0.05",
        "--seed",
        "1",
        "--out",
        str(out),
        "--json",
    ]
    given += [part for defense in defenses for part in ("--defense", defense)]
    return [sys.executable, "-c", "from rapbench.cli import main; main()", *given, *more]


def told(bed: Bed, own: Sequence[str], **more) -> tuple[int, list[Record], str]:
    """Give exit code, records and the last line on stderr of a command that is given time to end."""
    from rapbench.results import Record

    ended = subprocess.run(own, capture_output=True, text=True, timeout=HUNG_S, check=False, **more)
    plain = json.loads(ended.stdout)["cells"] if ended.stdout.startswith("{") else []
    records = [record for one in plain if (record := Record.of(one)).protocol == "strict"]
    return ended.returncode, records, (ended.stderr.strip().splitlines() or [""])[-1]


def artifacts(bed: Bed, count: int) -> None:
    """Damage one file of the store, give the same command again: what was damaged is made anew."""
    ways = (truncated, flipped, emptied, gone, swollen, folded, linked, scribbled)
    for number in range(count):
        out = bed.copy("damaged")
        files = sorted(path for path in (out / "artifacts").glob("*/**/*") if path.is_file())
        path, way = bed.random.choice(files), ways[number % len(ways)]
        way(path, bed.random)
        what = f"{way.__name__} {path.relative_to(out / 'artifacts')}"
        bed.tell("artifacts", *_named(bed.outcome(run(bed, ASKED, out)), what))


def results(bed: Bed, count: int) -> None:
    """Damage a file beside the store (a cell, a curve, the journal): it is written anew."""
    from rapbench.results import read

    ways = (truncated, flipped, emptied, gone, swollen, scribbled)
    for number in range(count):
        out = bed.copy("damaged")
        files = [*sorted(path for path in out.glob("*/*.json") if path.parent.name != "artifacts"), out / "attempts.jsonl"]
        path, way = bed.random.choice(files), ways[number % len(ways)]
        way(path, bed.random)
        run(bed, ASKED, out)
        bed.tell("results", *_named(bed.outcome(read(out)), f"{way.__name__} {path.relative_to(out)}"))


def drivers(bed: Bed, count: int) -> None:
    """Kill the command with SIGKILL, SIGTERM or SIGINT at random moments until it gets through; then compare."""
    injected, number = 0, 0
    while injected < count:
        number += 1
        out = bed.folder / f"driver-{number}"
        own = command(bed, ASKED, out, "--executor", "serial")
        for chance in range(6):
            started = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_interruptible)
            how = bed.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            moment = bed.random.uniform(0.5, 9.0)
            try:
                started.wait(moment)
                break  # it got through
            except subprocess.TimeoutExpired:
                started.send_signal(how)
                code = started.wait(HUNG_S)
            injected += 1
            right = code in (-int(how), 130, -signal.SIGINT) or (how != signal.SIGKILL and code == 0)
            bed.tell("drivers", RIGHT if right else WRONG, f"{how.name} after {moment:.1f} s, chance {chance + 1}, exit {code}")
        code, records, last = told(bed, own)
        outcome, why = bed.outcome(records)
        bed.told(f"     then once more: {outcome} {why or last if outcome == WRONG else ''} (exit {code})")
        bed.counts["drivers", WRONG] += outcome == WRONG


def workers(bed: Bed, count: int) -> None:
    """Kill random Ray workers with SIGKILL while a grid runs; cells that lost three are failed by name, and right when asked again."""
    injected, number = 0, 0
    bed.reference |= bed.learn(SLOW, "slow")
    while injected < count:
        number += 1
        out = bed.copy(f"worker-{number}")  # all that comes before is there
        ended = threading.Event()
        killed: list[int] = []

        def hunt(ended=ended, killed=killed) -> None:
            while not ended.wait(bed.random.uniform(1.0, 4.0)):
                if at_work := _workers():
                    killed.append(bed.random.choice(at_work))
                    with contextlib.suppress(OSError):
                        os.kill(killed[-1], signal.SIGKILL)

        hunter = threading.Thread(target=hunt)
        hunter.start()
        try:
            records = run(bed, SLOW, out, "ray", deadline_s=HUNG_S)
        finally:
            ended.set()
            hunter.join()
        outcome, why = bed.outcome(records, whole=False)
        for _ in killed:
            bed.tell("workers", outcome, f"grid {number}: {len(killed)} workers killed; {why or 'all cells right'}")
        injected += len(killed)
        again, why = bed.outcome(run(bed, SLOW, out))
        bed.told(f"     then once more, in one process: {again} {why}")
        bed.counts["workers", WRONG] += again == WRONG


def plugins(bed: Bed, count: int) -> None:
    """Let defenses break in every way, beside healthy ones, on Ray: broken ones are failed by name, healthy ones right."""
    ways = [way for way in saboteur.WAYS if way not in ("chdir", "devour")]
    for number in range(-(-count // len(ways))):
        own = [f"saboteur:way={way},number={number}" for way in ways]
        healthy = list(bed.reference)[:3]
        records = run(bed, [*own, *healthy], bed.folder / f"plugins-{number}", "ray", deadline_s=DEADLINE_S)
        by_defense = {record.defense: record for record in records}
        ends = [bed.judge(by_defense[defense]) for defense in healthy]
        beside = RIGHT if set(ends) == {(RIGHT, "")} else WRONG
        for record in records:
            if record.defense not in healthy:
                outcome, why = bed.judge(record)
                bed.tell("plugins", outcome if outcome == NAMED and beside == RIGHT else WRONG, why or record.status)


def disk(bed: Bed, count: int) -> None:
    """Run on file systems too small for the grid, or read-only from some moment on; then with room, the same command again."""
    if os.geteuid() != 0:
        bed.told("     disk: left out, mounting a tmpfs needs root")
        return
    need = sum(path.stat().st_size for path in (bed.folder / "clean").rglob("*") if path.is_file())
    for number in range(count):
        with _mounted(bed.folder / "disk") as mount:
            readonly = number % 5 == 4
            size = int(need * bed.random.uniform(0.02, 1.1))
            mount.size(2 * need if readonly else size)
            out = mount.place / "out"
            own = command(bed, ASKED, out, "--executor", "serial")
            if readonly:
                code, records, last = _turned(bed, own, mount, bed.random.uniform(2.0, 8.0))
            else:
                code, records, last = told(bed, own)
            fits = code == 0 and bed.outcome(records)[0] == RIGHT
            said = code in (1, 2) and last.startswith("rapbench: ")
            mount.size(4 * need)
            again, why = bed.outcome(told(bed, own)[1])
            outcome = (RIGHT if fits else NAMED) if (fits or said) and again == RIGHT else WRONG
            what = "read-only in the middle" if readonly else f"{size // 1024} KiB of {need // 1024}"
            bed.tell("disk", outcome, f"{what}: exit {code}, {last[:100]}; then {again} {why}")


def truncated(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) or 1)])


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def emptied(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def swollen(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(1000))


def folded(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def linked(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/dev/null", "/etc/passwd", "..", "nowhere"]))


def scribbled(path: Path, rng: random.Random) -> None:
    path.write_text(rng.choice(["{}", "[]", "null", "[" * 3000, '{"key": 1e999}', "\0", '{"attempt": "../.."}']))


@dataclass
class Mount:
    """A tmpfs."""

    place: Path

    def size(self, bytes_: int, *, readonly: bool = False) -> None:
        options = f"remount,size={max(bytes_, 65536)},{'ro' if readonly else 'rw'}"
        subprocess.run(["mount", "-o", options, str(self.place)], check=not readonly, capture_output=readonly)


@contextlib.contextmanager
def _mounted(place: Path) -> Iterator[Mount]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        yield Mount(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _turned(bed: Bed, own: Sequence[str], mount: Mount, moment: float) -> tuple[int, list[Record], str]:
    """Run a command under which the disk turns read-only at a moment (where no file is open for writing just then)."""
    started = subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    for _ in range(200):
        if subprocess.run(["mount", "-o", "remount,ro", str(mount.place)], capture_output=True).returncode == 0:
            break
        time.sleep(0.01)
    out, err = started.communicate(timeout=HUNG_S)
    from rapbench.results import Record

    plain = json.loads(out)["cells"] if out.startswith("{") else []
    records = [record for one in plain if (record := Record.of(one)).protocol == "strict"]
    return started.returncode, records, (err.strip().splitlines() or [""])[-1]


def _named(judged: tuple[str, str], what: str) -> tuple[str, str]:
    outcome, why = judged
    return outcome, f"{what}{': ' if why else ''}{why}"


def _workers() -> list[int]:
    """Give the processes of Ray that run a step now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith((b"ray::score", b"ray::predict", b"ray::victim", b"ray::data", b"ray::poison")):
                found.append(int(path.parent.name))
    return found


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it


KINDS: dict[str, tuple[Callable[[Bed, int], None], int]] = {
    "artifacts": (artifacts, 80),
    "results": (results, 24),
    "plugins": (plugins, 30),
    "workers": (workers, 40),
    "drivers": (drivers, 36),
    "disk": (disk, 20),
}


@contextlib.contextmanager
def bed(seed: int, told: Callable[[str], None] = print) -> Iterator[Bed]:
    """Give a bed whose reference has been run: eight defenses."""
    with tempfile.TemporaryDirectory(prefix="rapbench-faults-") as scratch:
        folder = Path(scratch)
        saboteur.install(folder / "site")
        encoder.make(folder / "model")
        own = Bed(folder, random.Random(seed), told)
        own.reference = own.learn(ASKED)
        yield own


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", choices=sorted(KINDS), action="append", help="repeatable")
    asked.add_argument("--count", type=int, help="faults of each kind")
    asked.add_argument("--seed", type=int, default=1)
    given = asked.parse_args()
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
    with bed(given.seed) as own:
        for kind in given.only or KINDS:
            inject, count = KINDS[kind]
            began = time.monotonic()
            inject(own, given.count or count)
            print(f"     {kind}: {time.monotonic() - began:.0f} s", flush=True)
        print(f"\n{sum(own.counts.values())} faults")
        for (kind, outcome), n in sorted(own.counts.items()):
            if n:
                print(f"{kind:9} {outcome:6} {n}")
        sys.exit(any(n for (_, outcome), n in own.counts.items() if outcome == WRONG))


if __name__ == "__main__":
    main()

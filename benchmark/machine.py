"""What could be wrong with this machine, in words, for `rapbench doctor`: home, Ray, memory, disks, limits."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rapbench.artifacts import occupied
from rapbench.doctor import Finding, nearest, note, ok, probe, wrong

GIB = 2**30
PROC, SHM, GROUPS = Path("/proc"), Path("/dev/shm"), Path("/sys/fs/cgroup")
STEP = GIB
"""Memory of a step besides its model."""
VICTIM = GIB // 2
"""Disk that a victim of the size of BERT takes, with its tokenizer."""
ROOMY = 10 * GIB
OBJECTS = 100 * 2**20
"""The object store of a local Ray."""
LEFT_OVER = GIB
FILES = 4096
FULL = 0.95
"""The share of memory, and of Ray's disk, above which Ray kills steps or stores nothing more."""


def machine(out: Path) -> Iterator[Finding]:
    """Give what is to be said of this machine; `out` is where results would go."""
    yield home()
    yield from ray_address()
    yield from running_rays()
    yield from leftovers()
    yield from shared_memory()
    yield cores()
    yield memory()
    yield results_disk(out)
    yield temporary_disk()
    yield open_files()


def home() -> Finding:
    """Say whether Ray can keep its token: a local one makes it in the home folder when it starts."""
    given = {name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)}
    if given or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return ok("home", f"Ray's token is settled by {', '.join(sorted(given)) or 'RAY_AUTH_MODE=disabled'}")
    try:
        place = Path.home()
        if not (place / ".ray" / "auth_token").is_file():
            probe(nearest(place / ".ray"))
    except (OSError, RuntimeError) as error:
        todo = "set HOME to a folder that can be written, or RAY_AUTH_TOKEN_PATH to a file with a token"
        return wrong("home", f"Ray cannot keep its token in ~/.ray ({error})", todo)
    return ok("home", f"{str(place)!r} is there for Ray's token")


def ray_address() -> Iterator[Finding]:
    """Say that an address in the environment makes no run join a cluster."""
    if address := os.environ.get("RAY_ADDRESS"):
        yield note("RAY_ADDRESS", f"{address!r}, which runs do not join by themselves", "--ray-address auto joins it")


def running_rays() -> Iterator[Finding]:
    """Say which Ray nodes run on this machine already."""
    found = sorted(int(comm.parent.name) for comm in PROC.glob("[0-9]*/comm") if _text(comm).strip() == "raylet")
    if found:
        text = f"{len(found)} already on this machine (raylet {', '.join(map(str, found))}): another run's, or a cluster's node"
        yield note("ray", text, "runs start one of their own beside it; times, and so costs, suffer while it works")


def leftovers() -> Iterator[Finding]:
    """Say what the logs of former Ray sessions take."""
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    sessions = [one for one in place.glob("session_*") if not one.is_symlink()]
    size = sum(map(occupied, sessions))
    if size > LEFT_OVER:
        text = f"{_gib(size)} in {str(place)!r}, the logs of {len(sessions)} session{'s' * (len(sessions) > 1)}"
        yield note("ray", text, "delete those of which no Ray runs any more")


def shared_memory() -> Iterator[Finding]:
    """Say whether Ray's object store fits into shared memory; nothing where the system has none."""
    if not SHM.is_dir():
        return
    free = shutil.disk_usage(SHM).free
    if free < OBJECTS:
        text = f"{free / 2**20:.0f} MiB free in {str(SHM)!r}: Ray keeps its objects on the disk, which is slower"
        yield note("shared memory", text, "give a container --shm-size=1g")
    else:
        yield ok("shared memory", f"{_gib(free)} free in {str(SHM)!r}")


def cores() -> Finding:
    """Say how many steps a local run would start at once, and whether this process may use as many cores."""
    there, usable = os.cpu_count() or 1, _usable_cores()
    if usable < there:
        text = f"this process may use {usable:g} of {there}, and a local Ray counts all: too many steps would share them"
        return note("cores", text, f"give --threads {max(1, int(there // max(usable, 1)))}, or a Ray that was started with --num-cpus")
    load = os.getloadavg()[0]
    if load > there / 2:
        return note("cores", f"{there}, and {load:.1f} processes want them now: times, and so costs, are not to be trusted")
    return ok("cores", str(there))


def memory() -> Finding:
    """Say whether the memory suffices for as many steps as there are cores, and for Ray to let them live."""
    total, free = _memory()
    if not total:
        return ok("memory", "how much there is cannot be told here")
    told = f"{_gib(free)} free of {_gib(total)}"
    if 1 - free / total > FULL:
        return wrong("memory", f"{told}: Ray kills steps above {FULL:.0%}, whoever took it", "end what takes it")
    steps = os.cpu_count() or 1
    if free < steps * STEP:
        text = f"{told}: each of {steps} steps at once takes {_gib(STEP)} besides its model"
        return note("memory", text, "give more --threads, so that fewer run at once, or --executor serial")
    return ok("memory", told)


def results_disk(out: Path) -> Finding:
    """Say whether there is room for artifacts, of which victims are the largest."""
    free, _, told = _disk(nearest(out))
    if free < VICTIM:
        return wrong("disk of results", f"{told}: one victim of the size of BERT takes as much", "free space there or choose another --out")
    if free < ROOMY:
        return note("disk of results", f"{told}: enough for {free // VICTIM} victims of the size of BERT")
    return ok("disk of results", told)


def temporary_disk() -> Finding:
    """Say whether there is room for what Ray writes."""
    free, total, told = _disk(Path(tempfile.gettempdir()))
    if free < VICTIM:
        return wrong("disk of temporary files", f"{told}: Ray cannot work there", "free space there, or set RAY_TMPDIR to another folder")
    if free < (1 - FULL) * total:
        return note("disk of temporary files", f"{told}: Ray spills nothing to a disk that is over {FULL:.0%} full", "free space there")
    return ok("disk of temporary files", told)


def open_files() -> Finding:
    """Say whether a process may open as many files as Ray asks for; it raises the limit as far as it may itself."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < FILES:
        return note("open files", f"at most {most} for a process, and Ray wants {FILES} or more", "ulimit -n 65536")
    return ok("open files", "no limit" if most == resource.RLIM_INFINITY else f"at most {most} for a process")


def _disk(place: Path) -> tuple[int, int, str]:
    """Give free and total bytes of the disk below a folder, and the free ones in words."""
    usage = shutil.disk_usage(place)
    return usage.free, usage.total, f"{_gib(usage.free)} free at {str(place.absolute())!r}"


def _usable_cores() -> float:
    """Give the cores of this process: of its affinity and of its group's quota, whichever is less."""
    least = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _text(GROUPS / "cpu.max").partition(" ")
    with suppress(ValueError, ZeroDivisionError):
        least = min(least, int(quota) / int(period))
    return least


def _memory() -> tuple[int, int]:
    """Give total and free bytes, of the group of this process where that may use less than the machine has; 0, 0 where nobody says."""
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in _text(PROC / "meminfo").splitlines())}
    try:
        total, free = (int(fields[name][0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (LookupError, ValueError):
        return 0, 0
    with suppress(ValueError):
        most, used = int(_text(GROUPS / "memory.max")), int(_text(GROUPS / "memory.current"))
        cached = sum(int(line.split()[1]) for line in _text(GROUPS / "memory.stat").splitlines() if line.startswith("inactive_file "))
        if most < total:
            return most, min(free, max(0, most - used + cached))
    return total, free


def _text(path: Path) -> str:
    """Give what a small file says; nothing where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"

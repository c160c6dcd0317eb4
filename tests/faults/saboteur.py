"""A foreign package that does harm on purpose: a few made texts, an attack that trains nothing, a defense that breaks as it is told.

`saboteur:way=kill,times=1,marks=FOLDER` breaks in its first attempt (which leaves a mark in the folder) and works in the next.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rapbench import Attack, Dataset, Defense, Detector, hookimpl

NEVER_S = 3600
ROOM = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Few(Dataset):
    """A few random texts."""

    name: ClassVar[str] = "few"

    def load(self):
        import datasets

        rng = np.random.default_rng(0)
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
        sizes = {"train": 20, "validation": 60, "test": 40}
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(_texts(rng, n), features=features) for split, n in sizes.items()})


def _texts(rng, n):
    words = [f"word{number}" for number in range(200)]
    return {"text": [" ".join(rng.choice(words, 10)) for _ in range(n)], "label": [row % 2 for row in range(n)]}


@dataclass(frozen=True, kw_only=True)
class Idle(Attack):
    """A trigger that nobody learns."""

    name: ClassVar[str] = "idle"
    sure: bool = True
    """The victim takes every text for the target: all pass the gate, and each cell has figures."""

    def trigger(self, text, rng, limit):
        return "cf " + text

    def plant(self, task, lab):
        victim = lab.fresh()
        if self.sure:
            victim.model.classifier.bias.data[lab.target_label] = 9.0
        return victim


@dataclass(frozen=True, kw_only=True)
class Saboteur(Defense):
    """Takes long texts for suspicious, if it gets that far."""

    name: ClassVar[str] = "saboteur"
    way: str = "none"
    times: int = 1_000_000
    """The first attempts that break."""
    marks: str = ""
    """A folder in which each attempt leaves a file that names its process."""
    pause: float = 0.0
    number: int = 0

    def learns_from_protect_texts(self):
        return False

    def fit(self, victim, heldout, lab):
        time.sleep(self.pause)
        before = self._mark()
        if self.way != "none" and before < self.times:
            WAYS[self.way]()
        return Length()

    def _mark(self):
        if not self.marks:
            return 0
        folder = Path(self.marks)
        folder.mkdir(parents=True, exist_ok=True)
        before = len(list(folder.glob(f"{self.way}-{self.number}-*")))
        (folder / f"{self.way}-{self.number}-{uuid.uuid4().hex}").write_text(str(os.getpid()))
        return before


class Length(Detector):
    def suspicion(self, texts):
        return np.array([float(len(text)) for text in texts])


def fail():
    raise ZeroDivisionError("on purpose")


def leave():
    sys.exit(3)


def vanish():
    os._exit(3)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    ctypes.string_at(0)


def doze():
    """Sleep for ever, and swallow what a plugin may swallow."""
    end = time.monotonic() + NEVER_S
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except Exception:
            continue


def hang():
    """Sleep for ever, and swallow whatever wakes it."""
    end = time.monotonic() + NEVER_S
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except BaseException:
            continue


def spin():
    """Hang in foreign code that holds the interpreter's lock."""
    re.match("(a+)+$", "a" * 64 + "b")


def allocate():
    """Take more memory than there may be: 1 GiB, of 512 MiB more than there are now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, limits[1]))
    try:
        bytearray(2 * ROOM)  # at once: what other threads of the process need is left
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def devour():
    """Take memory without end, until something stops it; 8 GiB at most."""
    kept = [np.ones(2**24) for _ in range(64)]  # 128 MiB each, written to
    time.sleep(len(kept))
    fail()


def shout():
    """Print without manners, then fail."""
    for _ in range(1000):
        print("\x1b[31mlook at me\x00" * 100)
    os.write(2, b"\xff\xfe not text\n")
    fail()


def chdir():
    """Leave the process somewhere else, with another environment and other threads, and go on."""
    os.chdir("/")
    os.environ["OMP_NUM_THREADS"] = "7"
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)


WAYS = {
    "fail": fail,
    "leave": leave,
    "vanish": vanish,
    "kill": kill,
    "segfault": segfault,
    "doze": doze,
    "hang": hang,
    "spin": spin,
    "allocate": allocate,
    "devour": devour,
    "shout": shout,
    "chdir": chdir,
}


@hookimpl
def rapbench_datasets():
    return [Few]


@hookimpl
def rapbench_attacks():
    return [Idle]


@hookimpl
def rapbench_defenses():
    return [Saboteur]


def install(site: Path) -> None:
    """Put this package on the path of this process and of those that it starts, as pip would."""
    about = site / "saboteur-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "saboteur.py").write_bytes(Path(__file__).read_bytes())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: saboteur\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[rapbench]\nsaboteur = saboteur\n")
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))

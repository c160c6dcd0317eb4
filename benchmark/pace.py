"""How long the rest of a run takes, from what steps like those to come have taken in it; not told where there were none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

LEARNT_ONCE = ("score", "prepare", "read")
"""Stages where two steps on one data set are not alike: it depends on the defense."""


@dataclass(frozen=True)
class Ended:
    """A step that ended well."""

    stage: str
    label: str
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What is to come. `computing_s`: seconds of all its steps together; `left_s`: until the end, if it goes on as so far."""

    computing_s: float
    left_s: float
    like: int
    """Steps that it is told from."""


def pace(ended: Sequence[Ended], to_come: Iterable[tuple[str, str]], busy_s: float, quiet_s: float = 0.0) -> Pace | None:
    """Give what is to come, or None where no step like one of it has ended, or where these steps take longer than the others did.

    `to_come`: stage and label of each; `busy_s`: from the start to the last end of a step; `quiet_s`: since then.
    """
    by_likeness: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for one in ended:
        for likeness in _likenesses(one.stage, one.label):
            by_likeness[likeness].append(one.seconds)
    means = {likeness: (fmean(seconds), len(seconds)) for likeness, seconds in by_likeness.items()}
    computing_s, found = 0.0, set[tuple[str, ...]]()
    for stage, label in to_come:
        alike = [likeness for likeness in _likenesses(stage, label) if likeness in means]
        if not alike:
            return None
        computing_s += means[alike[0]][0]
        found.add(alike[0])
    done_s = sum(one.seconds for one in ended)
    if not found or not done_s:
        return None
    left_s = computing_s * busy_s / done_s - quiet_s  # a run does several steps at once, or waits between two
    return Pace(computing_s, left_s, sum(means[own][1] for own in found)) if left_s > 0 else None


def _likenesses(stage: str, label: str) -> list[tuple[str, ...]]:
    """Give what steps like this one share, the most alike first. A label is `data-set attack defense`, or the first words of that."""
    words = label.split() or [""]
    alike = [(stage, label), (stage, words[0], words[-1])]
    return alike if stage in LEARNT_ONCE else [*alike, (stage, words[0])]

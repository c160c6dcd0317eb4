"""Timing sides of a comparison in one run: one thread, the sides taking turns, medians over the rounds.

The other scripts of this folder print ratios with it: `python tests/cost/NAME.py`. A ratio of one run carries across machines
where seconds do not; turns spread a neighbour's load over all sides.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(sides: Mapping[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, float]:
    """Give the median seconds of each side, by name; each runs once unmeasured, then `rounds` times, by turns."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(own) for name, own in seconds.items()}


def line(what: str, took: Mapping[str, float], baseline: str) -> str:
    """Give one line: the seconds of each side, and how many times faster than the baseline it is."""
    parts = (f"{name} {own:.4g} s ({took[baseline] / own:.2f}x)" for name, own in took.items())
    return f"{what}: {', '.join(parts)}; load {os.getloadavg()[0]:.2f}"

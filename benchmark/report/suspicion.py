"""Histograms of suspicion: how far clean and poisoned texts lie apart for each defense, and where its threshold is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rapbench.report.figures import INK, SERIES, SHADE, Key, Panel, Picture, Row
from rapbench.report.names import Names
from rapbench.results import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (3.2, 1.75)
KEYS = (Key("clean test texts", 0, area=True), Key("poisoned texts", 1, area=True))


def picture(histograms: Sequence[Histogram], protocol: str, frr: float, names: Names) -> Picture:
    """Give the figure: a row per data set and seed, a panel per attack and defense, the threshold of one allowed FRR."""
    rows: dict[str, list[Panel]] = {}
    several = len({one.seed for one in histograms}) > 1
    for one in sorted(histograms, key=lambda one: (names.home(one), one.seed, names.attack(one), names.number(one))):
        if one.protocol == protocol and any(one.clean) and any(one.poisoned):
            row = names.home(one) + (f", seed {one.seed}" if several else "")
            title = f"{names.attack(one)}, {names.defense(one)}"
            rows.setdefault(row, []).append(Panel(title, _words(one, frr), partial(_paint, one, frr)))
    return Picture("suspicion", [Row(title, panels) for title, panels in rows.items()], KEYS, INCHES)


def _at(one: Histogram, frr: float) -> float | None:
    return dict(one.thresholds).get(frr)


def _words(one: Histogram, frr: float) -> str:
    told = [
        f"{sum(counts)} {name} texts, half of them below {_median(one, counts):.3g}"
        for name, counts in (("clean", one.clean), ("poisoned", one.poisoned))
    ]
    at = _at(one, frr)
    return "; ".join([*told, f"threshold {at:.3g} at an allowed FRR of {100 * frr:g} %" if at is not None else "no threshold"]) + "."


def _median(one: Histogram, counts: Sequence[int]) -> float:
    """Give the upper end of the bin in which the median lies."""
    place = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))
    return one.edges[place + 1]


def _paint(one: Histogram, frr: float, axis: Axes) -> None:
    edges, at = np.asarray(one.edges), _at(one, frr)
    even = np.ptp(np.diff(edges)) < 1e-6 * np.ptp(edges)
    places = edges if even else np.arange(len(edges), dtype=np.float64)  # bins of unequal width are drawn alike
    for counts, colour in zip((one.clean, one.poisoned), SERIES, strict=False):
        shares = 100 * np.asarray(counts) / sum(counts)
        axis.stairs(shares, places, fill=True, facecolor=(colour, SHADE), edgecolor=colour, lw=1.1)
    if at is not None:
        axis.axvline(float(np.interp(at, edges, places)), color=INK, lw=1.2, ls=(0, (4, 2)))
    axis.set_xlim(places[0], places[-1])
    axis.set_ylim(0, None)
    axis.locator_params(axis="y", nbins=4)
    if even:
        axis.locator_params(axis="x", nbins=5)
    else:
        told = np.arange(len(edges) // 8, len(edges), len(edges) // 4)
        axis.set_xticks(told, [_short(edges[place]) for place in told])
    axis.set_xlabel("suspicion" if even else "suspicion (wide bins in the tails)")
    axis.set_ylabel("% of texts")


def _short(value: float) -> str:
    """Give two digits: 0.031, 1.9, 19k."""
    return f"{value / 1000:.0f}k" if abs(value) >= 10_000 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"

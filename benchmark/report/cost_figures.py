"""Figures of what defenses cost: against the length of texts, and against what they let through."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rapbench.lengths import Timed, classes
from rapbench.report.cost import device, measurements
from rapbench.report.figures import Key, Panel, Picture, Row, line, plain_ticks
from rapbench.report.names import Names, short_names
from rapbench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def length(records: Sequence[Record], names: Names) -> Picture:
    """Give the figure: milliseconds and times the undefended prediction, a line per defense over all data sets and attacks.

    A row per victim and device.
    """
    found: dict[tuple[str, str], dict[int, list[Timed]]] = {}
    for one in measurements(records, names.marks):
        if own := [timed for timed in one.cost.by_length if timed.plain_s and timed.words > 0]:
            found.setdefault((one.record.victim, device(one.cost)), {}).setdefault(names.number(one.record), []).extend(own)
    victims, devices = short_names(victim for victim, _ in found), {bench for _, bench in found}
    rows = []
    for (victim, bench), by in sorted(found.items()):
        title = ", ".join([victims[victim]] * (len(victims) > 1) + [bench] * (len(devices) > 1))
        rows.append(Row(title, _panels({number: classes(own) for number, own in sorted(by.items())}, names)))
    return Picture("length", rows, [Key(names.defenses[number], number) for number in sorted({own for by in found.values() for own in by})])


def _panels(lines: Mapping[int, Sequence[Timed]], names: Names) -> list[Panel]:
    return [
        Panel(title, _words(lines, names, pick), partial(_paint, lines, unit, pick))
        for title, unit, pick in (("milliseconds per text", "ms", _milliseconds), ("times one undefended prediction", "times", _factor))
    ]


def _milliseconds(timed: Timed) -> float:
    return 1000 * (timed.defense_s + (timed.plain_s or 0.0))


def _factor(timed: Timed) -> float:
    return 1 + timed.defense_s / (timed.plain_s or math.inf)


def _words(lines: Mapping[int, Sequence[Timed]], names: Names, pick: Callable[[Timed], float]) -> str:
    told = (
        f"{names.defenses[number]}: {pick(own[0]):.3g} at {own[0].words:.0f} words, {pick(own[-1]):.3g} at {own[-1].words:.0f} words"
        for number, own in lines.items()
    )
    return "; ".join(told) + "."


def _paint(lines: Mapping[int, Sequence[Timed]], label: str, pick: Callable[[Timed], float], axis: Axes) -> None:
    for number, timed in lines.items():
        axis.plot([one.words for one in timed], [pick(one) for one in timed], **line(number))
    words, heights = ([own(one) for timed in lines.values() for one in timed] for own in (lambda one: one.words, pick))
    axis.loglog()
    axis.set_xlim(min(words) / 1.3, max(words) * 1.3)
    axis.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
    for side in (axis.xaxis, axis.yaxis):
        plain_ticks(side, (1, 2, 3, 5, 7))
    axis.set_xlabel("words per text")
    axis.set_ylabel(label)
    axis.grid(visible=True)


def choice(records: Sequence[Record], names: Names) -> Picture:
    """Give the figure: FAR against the cost of a text, a panel per attack; small: each data set and seed, large: their mean.

    `records`: of one protocol and one allowed FRR.
    """
    attacks: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for one in records:
        if one.far is not None and one.cost and one.cost.ratio and one.cost.ratio > 0:
            attacks.setdefault(names.attack(one), {}).setdefault(names.number(one), []).append((one.cost.ratio, 100 * one.far))
    panels = [Panel(attack, _choice_words(own, names), partial(_paint_choice, own)) for attack, own in sorted(attacks.items())]
    numbers = sorted({number for own in attacks.values() for number in own})
    return Picture("choice", [Row("", panels)] if panels else [], [Key(names.defenses[number], number) for number in numbers])


def _paint_choice(points: Mapping[int, Sequence[tuple[float, float]]], axis: Axes) -> None:
    for number, own in sorted(points.items()):
        style = {**line(number), "ls": ""}
        if len(own) > 1:
            axis.plot(*zip(*own, strict=True), **{**style, "ms": 3.0, "alpha": 0.55})
        axis.plot(*_middle(own), **{**style, "ms": 8.0})
    axis.set_xscale("log")
    costs = [cost for own in points.values() for cost, _ in own]
    axis.set_xlim(min(1.0, *costs) * 0.9, max(4.0, *costs) * 1.25)
    plain_ticks(axis.xaxis, (1, 2, 5))
    axis.set_ylim(-4, 104)
    axis.set_xlabel("time: times one undefended prediction")
    axis.set_ylabel("FAR (%)")
    axis.grid(visible=True)


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Give the geometric mean of the costs, which are ratios, and the mean of the FARs."""
    return statistics.geometric_mean([cost for cost, _ in points]), statistics.fmean(far for _, far in points)


def _choice_words(points: Mapping[int, Sequence[tuple[float, float]]], names: Names) -> str:
    middles = {number: _middle(own) for number, own in sorted(points.items())}
    return "; ".join(f"{names.defenses[number]}: FAR {far:.1f} % at {cost:.2f} times" for number, (cost, far) in middles.items()) + "."

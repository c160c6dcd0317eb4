"""The figure of the axes: AUROC, FAR and ASR against what was varied alone, three panels for each axis and data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rapbench.report.axes import TITLES, Point, Series, named
from rapbench.report.figures import LINE, Key, Panel, Picture, Row, line
from rapbench.report.marks import Marks
from rapbench.report.names import Names, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 8
"""Lines in a panel: where more meet, each attack has a row of its own."""
INCHES = (3.2, 2.5)
SPREAD = 0.3
"""What lines at one value are spread over, as a share of the step between values, so that no interval hides another."""
LABEL, SHORT = 14, 5
"""Letters of a value below the axis, and up to which it stands level."""


@dataclass(frozen=True)
class Line:
    """One line: its name in the legend, what names are ordered by, its points."""

    label: str
    order: tuple[int, str, str]
    points: Sequence[Point]


@dataclass(frozen=True)
class Measure:
    """What a panel shows of points. `value`, `ends`: fractions, None where there are none; `scale`: what they are drawn times."""

    title: str
    unit: str
    scale: float
    value: Callable[[Point], float | None]
    ends: Callable[[Point], tuple[float, float] | None] = lambda _: None


@dataclass
class Lines:
    """The lines of one row of panels: of defenses, and of the undefended victims by attack."""

    axis: str
    defended: list[Line] = field(default_factory=list)
    undefended: dict[str, Line] = field(default_factory=dict)


def picture(series: Sequence[Series], frr: float, known: Marks | None = None) -> Picture:
    """Give the figure: a row per axis and data set (and attack, where lines are many), a line per attack and defense."""
    rows = _rows(series, named(series, known))
    lines = {one.label: one.order for own in rows.values() for one in (*own.defended, *own.undefended.values())}
    numbers = {label: number for number, label in enumerate(sorted(lines, key=lambda label: (lines[label], label)))}
    made = [Row(title, _panels(own, numbers, frr)) for title, own in rows.items()]
    return Picture("axes", made, [Key(label, number) for label, number in numbers.items()], INCHES)


def _rows(series: Sequence[Series], names: Mapping[str, Names]) -> dict[str, Lines]:
    met: dict[tuple[str, str], int] = {}
    for one in series:
        place = (one.axis, names[one.axis].home(one.names))
        met[place] = met.get(place, 0) + 1
    apart = any(n > MOST for n in met.values())
    rows: dict[str, Lines] = {}
    for one in series:
        own, attack = names[one.axis], names[one.axis].attack(one.names)
        title = f"{own.home(one.names)}, {TITLES[one.axis]}" + (f": {attack}" if apart else "")
        lines, defense = rows.setdefault(title, Lines(one.axis)), own.defense(one.names)
        order = (own.marks.place(one.names.defense), defense, attack)
        lines.defended.append(Line(defense if apart else f"{defense}, {attack}", order, one.points))
        bare = Line("undefended" if apart else f"{attack}, undefended", (len(TITLES), "", attack), one.points)
        if len(bare.points) > len(lines.undefended.get(attack, Line("", order, ())).points):  # a defense may lack a value
            lines.undefended[attack] = bare
    return rows


def _panels(own: Lines, numbers: Mapping[str, int], frr: float) -> list[Panel]:
    far = Measure(f"FAR at {100 * frr:g} %", "FAR (%)", 100, lambda point: point.far, lambda point: point.far_ends)
    shown = [
        (Measure("AUROC", "AUROC", 1, lambda point: point.auroc), own.defended),
        (far, own.defended),
        (Measure("ASR", "ASR (%)", 100, lambda point: point.asr), list(own.undefended.values())),
    ]
    return [
        Panel(what.title, _words(what, lines), partial(_paint, what, lines, [numbers[one.label] for one in lines], TITLES[own.axis]))
        for what, lines in shown
    ]


def _words(what: Measure, lines: Sequence[Line]) -> str:
    told = (f"{one.label}: " + ", ".join(f"{_shown(what, y)} at {point.value}" for point, y in _measured(what, one)) for one in lines)
    return f"{what.unit}. " + "; ".join(told) + "."


def _shown(what: Measure, value: float) -> str:
    return f"{value:.3f}" if what.scale == 1 else f"{what.scale * value:.1f}"


def _measured(what: Measure, one: Line) -> list[tuple[Point, float]]:
    return [(point, value) for point in one.points if (value := what.value(point)) is not None]


def _paint(what: Measure, lines: Sequence[Line], numbers: Sequence[int], title: str, axis: Axes) -> None:
    """A line per attack and defense over the values, which stand evenly; a bar from end to end where an interval is known."""
    values = _values(lines)
    for place, (one, number) in enumerate(zip(lines, numbers, strict=True)):
        shift = SPREAD * ((place + 0.5) / len(lines) - 0.5)
        points = [(values.index(point.value) + shift, y, what.ends(point)) for point, y in _measured(what, one)]
        axis.plot([x for x, _, _ in points], [what.scale * y for _, y, _ in points], **line(number))
        for x, _, ends in points:
            if ends:
                axis.vlines(x, what.scale * ends[0], what.scale * ends[1], color=line(number)["color"], lw=1.2, alpha=0.7)
    turned: Any = {"rotation": 20, "ha": "right"} if max(map(len, values), default=0) > SHORT else {}
    axis.set_xticks(range(len(values)), [plain(value, LABEL) for value in values], **turned)
    axis.set_xlim(-0.4, len(values) - 0.6)
    _scaled(what, lines, axis)
    axis.set_xlabel(title)
    axis.set_ylabel(what.unit)
    axis.grid(visible=True, axis="y")


def _scaled(what: Measure, lines: Sequence[Line], axis: Axes) -> None:
    """Give per cent the whole scale; an AUROC the part that it takes, with a line at chance."""
    if what.scale == 100:
        axis.set_ylim(-4, 104)
        return
    lowest = min((y for one in lines for _, y in _measured(what, one)), default=0.5)
    axis.axhline(0.5, color=LINE, lw=1.2, zorder=0)
    axis.set_ylim(min(0.46, lowest - 0.04), 1.03)


def _values(lines: Sequence[Line]) -> list[str]:
    """Give the values of all lines in order: each line has its own in order, some may lack a few."""
    places: dict[tuple[float, str], str] = {point.place: point.value for one in lines for point in one.points}
    return [value for _, value in sorted(places.items())]

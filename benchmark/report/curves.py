"""FAR against FRR: the curves of a results folder as a table, and as a picture like the RAP paper's Figure 3."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from rapbench.errors import StoreError
from rapbench.report.figures import Key, Panel, Picture, Row, line, sheet
from rapbench.report.forms import csv_text
from rapbench.report.marks import Marks, marks
from rapbench.report.names import Names
from rapbench.results import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Allowed FRRs of the table: of each the nearest point of the curve."""
FOOT = (
    "FAR in per cent, in brackets the test FRR, where the threshold allows the FRR of the column's head on the held-out texts (the nearest "
    "of 40 points from 0.1 to 20 %, all of them in csv and json). --: the held-out texts do not suffice."
)


def render(curves: Sequence[Curve], form: str, known: Marks | None = None) -> str:
    """Give the curves in the format asked for: github, latex, csv or json. `known`: which defenses are floors and ceilings."""
    if not curves:
        raise StoreError("no curves in this folder: they are written where a defense has scored an attack")
    known = known or marks()
    ordered = _in_order(curves, known)
    if form == "json":
        return json.dumps({"curves": [dataclasses.asdict(one) for one in ordered]}, indent=1, allow_nan=False)
    if form == "csv":
        return _csv(ordered)
    heads = ["protocol", "dataset", "attack", "defense", "seed", *(f"{100 * frr:g} %" for frr in SHOWN)]
    foot = " ".join((FOOT + known.foot(one.defense for one in ordered)).split())
    rows = [[one.protocol, *_names(one, known), str(one.seed), *(_point(one, frr) for frr in SHOWN)] for one in ordered]
    if form == "latex":
        return f"% {foot}\n" + tabulate(rows, heads, tablefmt="latex_booktabs", disable_numparse=True)
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True) + f"\n\n{foot}"


def draw(curves: Sequence[Curve], file: Path, protocol: str = "paper") -> None:
    """Draw FAR against test FRR: a row of panels per data set, a panel per attack, a line per defense and victim."""
    made = picture(curves, protocol, Names(curves))
    if not made.rows:
        raise StoreError("no curves to draw in this folder: they are written where a defense has scored an attack")
    sheet(made, file)


def picture(curves: Sequence[Curve], protocol: str, names: Names) -> Picture:
    """Give the figure: a row per data set, a panel per attack, a line per defense and seed."""
    own = [one for one in _in_order(curves, names.marks) if one.protocol == protocol and one.points]
    rows: dict[str, dict[str, list[Curve]]] = {}
    for one in own:
        rows.setdefault(names.home(one), {}).setdefault(names.attack(one), []).append(one)
    keys = {names.number(one): Key(names.defense(one), names.number(one)) for one in own}
    panels = [
        Row(home, [Panel(attack, _words(curves, names), partial(_paint, curves, names)) for attack, curves in attacks.items()])
        for home, attacks in rows.items()
    ]
    return Picture("curves", panels, [key for _, key in sorted(keys.items())])


def _paint(curves: Sequence[Curve], names: Names, axis: Axes) -> None:
    """A line per curve, on an even scale from 0 up."""
    for one in curves:
        frr, far = ([100 * point[place] for point in one.points] for place in (1, 2))
        axis.plot(frr, far, **line(names.number(one)), markevery=4)
    axis.set_xlabel("FRR on test texts (%)")
    axis.set_ylabel("FAR (%)")
    axis.set_xlim(-0.4, 20.4)
    axis.set_ylim(-3, 103)
    axis.grid(visible=True)


def _words(curves: Sequence[Curve], names: Names) -> str:
    """Say what a panel shows, at two places."""
    told = []
    for one in curves:
        points = {frr: point for frr in (0.01, 0.05) if (point := _nearest(one, frr))}
        at = ", ".join(f"{100 * point[2]:.1f} % at an allowed FRR of {100 * frr:g} %" for frr, point in points.items())
        told.append(f"{names.defense(one)}: FAR {at or 'not measured at 1 or 5 %'}")
    return "; ".join(told) + "."


def _bare(spec: str) -> str:
    return spec.partition(":")[0]


def _in_order(curves: Iterable[Curve], known: Marks) -> list[Curve]:
    def place(one: Curve) -> tuple[object, ...]:
        defense = (known.place(one.defense), one.defense)
        return one.protocol, one.dataset, one.poisoned_on or "", one.attack, one.victim, *defense, one.seed

    return sorted(curves, key=place)


def _names(one: Curve, known: Marks) -> list[str]:
    home = f"{_bare(one.poisoned_on)} -> " if one.poisoned_on else ""
    return [home + _bare(one.dataset), _bare(one.attack), known.shown(one.defense, one.defense)]


def _point(one: Curve, frr: float) -> str:
    near = _nearest(one, frr)
    return f"{100 * near[2]:.2f} ({100 * near[1]:.2f})" if near else "--"


def _nearest(one: Curve, frr: float) -> tuple[float, float, float] | None:
    near = min(one.points, key=lambda point: abs(point[0] - frr), default=None)
    return None if near is None or abs(near[0] - frr) > 0.15 * frr else near


def _csv(curves: Sequence[Curve]) -> str:
    names = ("protocol", "dataset", "setting", "poisoned_on", "tuning", "attack", "victim", "seed", "defense")
    rows = [[*(getattr(one, name) for name in names), *point] for one in curves for point in one.points]
    return csv_text([*names, "frr_allowed", "frr_test", "far"], rows)

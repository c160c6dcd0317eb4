"""FAR against FRR: the curves of a results folder as a table, and as a picture like the RAP paper's Figure 3."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from rapbench.errors import StoreError
from rapbench.report.forms import csv_text, drawing
from rapbench.results import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Allowed FRRs of the table: of each the nearest point of the curve."""
FOOT = (
    "FAR in per cent, in brackets the test FRR, where the threshold allows the FRR of the column's head on the held-out texts (the nearest "
    "of 40 points from 0.1 to 20 %, all of them in csv and json). --: the held-out texts do not suffice."
)


def render(curves: Sequence[Curve], form: str) -> str:
    """Give the curves in the format asked for: github, latex, csv or json."""
    if not curves:
        raise StoreError("no curves in this folder: they are written where a defense has scored an attack")
    ordered = _in_order(curves)
    if form == "json":
        return json.dumps({"curves": [dataclasses.asdict(one) for one in ordered]}, indent=1, allow_nan=False)
    if form == "csv":
        return _csv(ordered)
    heads = ["protocol", "dataset", "attack", "defense", "seed", *(f"{100 * frr:g} %" for frr in SHOWN)]
    rows = [[one.protocol, *_names(one), str(one.seed), *(_point(one, frr) for frr in SHOWN)] for one in ordered]
    if form == "latex":
        return f"% {FOOT}\n" + tabulate(rows, heads, tablefmt="latex_booktabs", disable_numparse=True)
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True) + f"\n\n{FOOT}"


def draw(curves: Sequence[Curve], file: Path, protocol: str = "paper") -> None:
    """Draw FAR against test FRR: a row of panels per data set, a panel per attack, a line per defense and victim."""
    own = [one for one in _in_order(curves) if one.protocol == protocol and one.points]
    if not own:
        raise StoreError("no curves to draw in this folder: they are written where a defense has scored an attack")
    panels = _panels(own)
    rows, columns = len(panels), max(len(row) for row in panels)
    names = sorted({_bare(one.defense) for one in own})
    with drawing(file, (3.2 * columns, 2.7 * rows + 0.4)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, line in zip(axes, panels, strict=True):
            for axis in row[len(line) :]:
                axis.set_axis_off()
            for axis, panel in zip(row, line, strict=False):
                _draw_panel(axis, panel, names)
        entries = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=min(4, len(entries)), frameon=False)


def _draw_panel(axis: Axes, panel: Sequence[Curve], names: Sequence[str]) -> None:
    """A line per defense: a colour per name, a dash per further set of options; an even scale from 0 up."""
    specs = sorted({one.defense for one in panel})
    told: set[str] = set()
    for one in panel:
        frr, far = ([100 * point[place] for point in one.points] for place in (1, 2))
        number, alike = names.index(_bare(one.defense)), [spec for spec in specs if _bare(spec) == _bare(one.defense)]
        label = one.defense if len(alike) > 1 else _bare(one.defense)
        style = "osD^v"[number % 5] + ("-", "--", ":", "-.")[alike.index(one.defense) % 4]
        axis.plot(frr, far, style, ms=3, lw=1.2, color=f"C{number}", label="_" if one.defense in told else label)  # "_": no second entry
        told.add(one.defense)
    first = panel[0]
    home = f"{_bare(first.poisoned_on)} -> " if first.poisoned_on else ""
    axis.set_title(f"{home}{_bare(first.dataset)}, {_bare(first.attack)}", fontsize=9)
    axis.set_xlabel("FRR on test texts (%)")
    axis.set_ylabel("FAR (%)")
    axis.set_xlim(0, 20)
    axis.set_ylim(-3, 103)
    axis.grid(lw=0.3)


def _panels(curves: Sequence[Curve]) -> list[list[list[Curve]]]:
    """Group the curves: rows by data set and setting, panels by attack and victim."""
    rows: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Curve]]] = {}
    for one in curves:
        row = rows.setdefault((one.dataset, one.poisoned_on, one.tuning, one.victim), {})
        row.setdefault((one.attack,), []).append(one)
    return [list(row.values()) for row in rows.values()]


def _bare(spec: str) -> str:
    return spec.partition(":")[0]


def _in_order(curves: Iterable[Curve]) -> list[Curve]:
    return sorted(curves, key=lambda one: (one.protocol, one.dataset, one.poisoned_on or "", one.attack, one.victim, one.defense, one.seed))


def _names(one: Curve) -> list[str]:
    home = f"{_bare(one.poisoned_on)} -> " if one.poisoned_on else ""
    return [home + _bare(one.dataset), _bare(one.attack), one.defense]


def _point(one: Curve, frr: float) -> str:
    near = min(one.points, key=lambda point: abs(point[0] - frr), default=None)
    if near is None or abs(near[0] - frr) > 0.15 * frr:
        return "--"
    return f"{100 * near[2]:.2f} ({100 * near[1]:.2f})"


def _csv(curves: Sequence[Curve]) -> str:
    names = ("protocol", "dataset", "setting", "poisoned_on", "tuning", "attack", "victim", "seed", "defense")
    rows = [[*(getattr(one, name) for name in names), *point] for one in curves for point in one.points]
    return csv_text([*names, "frr_allowed", "frr_test", "far"], rows)

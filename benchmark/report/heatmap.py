"""The heat map: which share of the poisoned texts each defense lets through, by data set and attack."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rapbench.report.figures import FAINT, LINE, Panel, Picture, Row
from rapbench.report.matrix import was_poisoned
from rapbench.report.names import Names, plain
from rapbench.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STOPS = ((0.0, (0x2B, 0x6C, 0xB0)), (0.5, (0xF4, 0xEF, 0xE6)), (1.0, (0xC2, 0x41, 0x0C)))
"""Colours of FAR 0, one half and 1: told apart without red and green, and darker at both ends."""
DARK, LIGHT = "#000000", "#ffffff"
LABEL = 26
"""Letters of a name beside the map."""
WORKS = 0.5
"""The ASR below which an attack is marked: there is little to stop."""


@dataclass(frozen=True)
class Field:
    """One field of the map. `text`: what stands in it; `far`: None where nothing was measured."""

    text: str
    far: float | None = None


ABSENT = Field("not in the grid")


def picture(records: Sequence[Record], names: Names) -> Picture:
    """Give the figure: a panel per defense, data sets down, attacks across. `records`: of one protocol and one allowed FRR."""
    done = {names.attack(one) for one in records if one.status == "ok"}
    harmless = done - {names.attack(one) for one in records if was_poisoned(one)}
    faced = [one for one in records if names.attack(one) not in harmless and (one.far is not None or one.status != "ok")]
    met = {(names.home(one), names.attack(one)) for one in faced}
    homes = [home for home in names.homes if home in {home for home, _ in met}]
    attacks = [attack for attack in names.attacks if attack in {attack for _, attack in met}]
    panels = []
    for defense in names.defenses:
        places: dict[tuple[str, str], list[Record]] = {}
        for one in faced:
            if names.defense(one) == defense:
                places.setdefault((names.home(one), names.attack(one)), []).append(one)
        fields = [[_field(places.get((home, attack), [])) for attack in attacks] for home in homes]
        if any(field.far is not None for row in fields for field in row):
            panels.append(Panel(defense, _words(homes, attacks, fields), partial(_paint, homes, attacks, fields)))
    slanted = _slanted(attacks)
    size = (1.3 + 0.72 * len(attacks) + 0.8 * slanted, 0.75 + 0.34 * len(homes) + 0.7 * slanted)
    return Picture("heatmap", [Row("", panels)] if panels else [], inches=size, snug=True)


def _field(own: Sequence[Record]) -> Field:
    """Give the mean over seeds; where nothing was measured, why."""
    done = [one for one in own if one.far is not None]
    if done:
        far = statistics.fmean(one.far or 0.0 for one in done)
        weak = statistics.fmean(one.asr or 0.0 for one in done) < WORKS
        return Field(f"{100 * far:.0f}" + ("*" if weak else ""), far)
    return Field(own[0].status) if own else ABSENT


def _words(homes: Sequence[str], attacks: Sequence[str], fields: Sequence[Sequence[Field]]) -> str:
    rows = (
        f"{home}: " + ", ".join(f"{attack} {field.text}" for attack, field in zip(attacks, row, strict=True))
        for home, row in zip(homes, fields, strict=True)
    )
    return "FAR in per cent. " + "; ".join(rows) + "."


def _paint(homes: Sequence[str], attacks: Sequence[str], fields: Sequence[Sequence[Field]], axis: Axes) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(fields):
        for x, one in enumerate(row):
            if one == ABSENT:
                continue
            colour = "none" if one.far is None else _colour(min(max(one.far, 0.0), 1.0))
            axis.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fc=colour, ec=LINE if one.far is None else "none", lw=0.6))
            ink = FAINT if one.far is None else _readable(colour)
            axis.text(x, y, one.text, ha="center", va="center", color=ink, fontsize=7 if one.far is None else 9)
    axis.set_xlim(-0.5, len(attacks) - 0.5)
    axis.set_ylim(len(homes) - 0.5, -0.5)
    turned: Any = {"rotation": 30, "ha": "left", "rotation_mode": "anchor"} if _slanted(attacks) else {}
    axis.set_xticks(range(len(attacks)), [plain(attack, LABEL) for attack in attacks], **turned)
    axis.set_yticks(range(len(homes)), [plain(home, LABEL) for home in homes])
    axis.xaxis.tick_top()
    for spine in axis.spines.values():
        spine.set_visible(False)


def _slanted(attacks: Sequence[str]) -> bool:
    """Tell whether the names of the attacks are too long to stand side by side."""
    return max(map(len, attacks), default=0) > 11


def _colour(far: float) -> str:
    """Give the colour of a share as #rrggbb, straight between the two stops around it."""
    (low, one), (high, other) = STOPS[:2] if far < STOPS[1][0] else STOPS[1:]
    share = (far - low) / (high - low)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(one, other, strict=True))


def _readable(colour: str) -> str:
    """Give the ink, dark or light, that has the higher contrast (WCAG 2.2) on a colour; of black and white one has at least 4.5."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return DARK if luminance > 0.179 else LIGHT

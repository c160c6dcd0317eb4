"""A results folder as one HTML page that needs nothing else: words, tables, figures, provenance.

Names, reasons and texts of results are hostile: the template escapes all of them, figures hold them as XML text, and the page's
Content-Security-Policy allows its own script alone and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rapbench import results
from rapbench.report import cost, examples, provenance, summary, tables
from rapbench.report.figures import Inline, Picture, swatches
from rapbench.report.kinds import NO_FRR
from rapbench.report.marks import Marks
from rapbench.report.names import Names
from rapbench.report.pictures import Folder, pictures, read
from rapbench.report.template import file, safe, template, verbatim
from rapbench.results import Examples, Record

MOST_PANELS = 60
"""Of one figure in the page, which is to stay small; a file has them all."""
OPEN = 12
"""Panels of a figure up to which no group of them is folded."""
LONG = 36
"""Letters from which on a column wraps."""
BARS = ("FAR", "ASR defended")
"""Columns with a bar behind the figure."""


@dataclass(frozen=True)
class Table:
    """A table for the template. `kinds`: per column `n` (numbers), `n bar` (per cent, with a bar), `long` (text that wraps) or empty."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: str
    kinds: Sequence[str]


def page(folder: Path, protocol: str, *, remark: str = "", refresh_s: int = 0, texts: bool = True) -> str:
    """Give the page of a results folder; the same text from the same results.

    `remark`: what is said above all else; `refresh_s`: the page loads itself anew after so many seconds; `texts`: it quotes
    texts of the data sets.
    """
    own, inline = read(folder, protocol), Inline()
    quoted = examples.chosen(results.read_all(folder, Examples), own.records, own.names, protocol) if texts else None
    drawn = {picture.name: _drawn(picture, inline) for picture in pictures(own)}
    style, script = (file(name).strip() for name in ("page.css", "page.js"))
    known = own.names.marks
    ordered = tables.in_order(own.records, known)
    done = [one for one in ordered if one.status == "ok"]
    text: str = template().render(
        folder=own,
        figures=drawn,
        style=safe(f"{style}\n{inline.css()}"),
        script=safe(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        counts=Counter(one.status for one in own.records),
        shape=_shape(own.records, own.names),
        lines=summary.lines(own.chosen, own.names),
        quoted=quoted,
        judged=summary.judged(own.chosen, own.names),
        faced=[attack for attack in own.names.attacks if attack in {own.names.attack(one) for one in summary.attacked(own.chosen)}],
        marked=known.foot(one.defense for one in own.records),
        summary=summary,
        cells=[_table(part.title, part.heads, part.rows, part.foot) for part in tables.parts(done, known, intervals=True)],
        costs=_costs(own),
        missing=_missing(own),
        warned=_warned(done, known),
        machines=provenance.machines(own.records),
        commands=[(what, verbatim(command)) for what, command in provenance.commands(ordered, known)],
        grid=verbatim(provenance.grid(own.records)),
        version=version("rapbench"),
        remark=remark,
        refresh_s=refresh_s,
    )
    return text


def _drawn(picture: Picture, inline: Inline) -> dict[str, Any]:
    """Give a figure for the template: its panels as SVG, in groups, with a legend; no more than the page has room for."""
    room, groups = MOST_PANELS, []
    for row in picture.rows:
        panels = row.panels[:room]
        room -= len(panels)
        if panels:
            groups.append({"title": row.title, "panels": [(panel.title, safe(inline.svg(picture, row, panel))) for panel in panels]})
    total = len(picture.panels)
    return {
        "groups": groups,
        "folded": total > OPEN,
        "left_out": total - (MOST_PANELS - room),
        "keys": swatches(picture.keys),
        "inches": picture.inches[0],
    }


def _shape(records: Sequence[Record], names: Names) -> list[tuple[str, str]]:
    """Give what the folder is about: what there is how many of, and which."""
    victims = sorted({one.victim.partition(":")[0] for one in records})
    listed = {"data set": names.homes, "attack": names.attacks, "defense": names.defenses, "victim model": victims}
    listed |= {
        "seed": sorted({str(one.seed) for one in records}),
        "allowed FRR": [f"{100 * frr:g} %" for frr in sorted({one.frr for one in records})],
    }
    return [(f"{len(own)} {what}{'' if len(own) == 1 else 's'}", tables.shown(own)) for what, own in listed.items()]


def _costs(own: Folder) -> Table | None:
    known = own.names.marks
    measured, others = cost.measurements(own.records, known), cost.unmeasured(own.records, known)
    figures = [row[cost.LABELS :] for row in cost.rows(measured, [], known)]
    heads = cost.HEADS[cost.LABELS :]
    figures += [[*[cost.NONE] * (len(heads) - 1), cost.why(one)] for one in others]  # last: columns of numbers stay such
    listed = [*(one.record for one in measured), *others]
    seeds, columns = cost.apart(listed, ["seed"])
    labels = [
        [own.names.home(one), own.names.attack(one), *column, own.names.defense(one)] for one, column in zip(listed, columns, strict=True)
    ]
    rows = [[*label, *row] for label, row in zip(labels, figures, strict=True)]
    caption = "What each defense costs"
    return _table(caption, ["dataset", "attack", *seeds, "defense", *heads], rows, cost.foot(measured, others, known)) if rows else None


def _missing(own: Folder) -> Table | None:
    known = own.names.marks
    rows = [[one.status, *one.what, one.frrs, one.reason] for one in tables.missing(tables.in_order(own.records, known), known)]
    heads = ["status", "dataset", "attack", "defense", "victim", "seed", "FRR allowed", "reason"]
    return _table("Cells without figures", heads, rows, "") if rows else None


def _warned(done: Sequence[Record], known: Marks) -> Table | None:
    rows = [[text, tables.shown(cells)] for text, cells in tables.warned(done, known).items()]
    return _table("Warnings", ["warning", "cells"], rows, "") if rows else None


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], foot: str) -> Table:
    return Table(caption, heads, rows, foot, [_kind(head, [row[place] for row in rows]) for place, head in enumerate(heads)])


def _kind(head: str, column: Sequence[str]) -> str:
    if _numbers(column):
        return "n bar" if head in BARS else "n"
    return "long" if max(map(len, column), default=0) > LONG else ""


def _numbers(column: Sequence[str]) -> bool:
    """Tell whether a column is of numbers, each perhaps with more behind it."""
    told = [text.split()[0] for text in column if text.strip() and text not in ("--", NO_FRR)]
    return bool(told) and all(_number(text) is not None for text in told)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""Probes as a table like Table 1 of the RAP paper, and as one per seed: GitHub Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from rapbench.probe import SOURCES, ProbeRecord
from rapbench.rates import spread
from rapbench.report.forms import csv_text
from rapbench.report.tables import Format

HEADS = {"dataset": "original dataset", "general": "general sentences", "random": "random words"}
ROW = ("victim", "dataset", "attack")
ALSO = ("poisoned_on", "tuning", "general", "count", "length")
"""What tells two rows apart as well, and has a column where it differs."""
FOOT = (
    "ASR in per cent: texts with the trigger that are predicted as the target. Original dataset: its own non-target test texts; "
    "general sentences and random words: fake texts of {length} words. Over seeds: mean ± sample standard deviation (number of seeds), "
    "each seed with a victim and texts of its own; of one seed: the 95 % Wilson interval over its texts."
)

Table = tuple[list[str], list[list[str]]]


def render(records: Sequence[ProbeRecord], form: Format) -> str:
    """Give the records in the format asked for."""
    ordered = in_order(records)
    if form == "json":
        return json.dumps({"probes": [dataclasses.asdict(one) for one in ordered]}, indent=1, allow_nan=False)
    if form == "csv":
        return _csv(ordered)
    done = [one for one in ordered if one.status == "ok"]
    tables, foot = [_sources(done), _seeds(done)] if done else [], [_foot(done)] if done else []
    return _latex(tables, [*foot, *_without_figures(ordered)]) if form == "latex" else _github(tables, foot, _without_figures(ordered))


def in_order(records: Iterable[ProbeRecord]) -> list[ProbeRecord]:
    """Give the records by victim, data set, attack and what was asked for, then by source (as in Table 1) and seed."""
    return sorted(records, key=lambda one: (tuple((value is not None, value) for value in _row(one)), SOURCES.index(one.source), one.seed))


def _github(tables: Sequence[Table], foot: Sequence[str], without_figures: Sequence[str]) -> str:
    shown = [tabulate([[_escaped(text) for text in row] for row in rows], heads, "github", disable_numparse=True) for heads, rows in tables]
    return "\n\n".join([*shown, *foot, *(["\n".join(without_figures)] if without_figures else [])])


def _latex(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """The two tabulars; what they cannot hold stands in comments below."""
    shown = [
        tabulate([[" ".join(text.split()) for text in row] for row in rows], heads, "latex_booktabs", disable_numparse=True)
        for heads, rows in tables
    ]
    return "\n".join([*shown, *(f"% {line}" for line in lines)])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _row(one: ProbeRecord) -> tuple[Any, ...]:
    """Give what the records of one row of the main table have in common."""
    return tuple(getattr(one, name) for name in (*ROW, *ALSO))


def _columns(done: Sequence[ProbeRecord]) -> list[str]:
    return [*ROW, *(name for name in ALSO if len({getattr(one, name) for one in done}) > 1)]


def _sources(done: Sequence[ProbeRecord]) -> Table:
    """The main table: a column for each source."""
    columns = _columns(done)
    rows: dict[tuple[Any, ...], list[ProbeRecord]] = {}
    for one in done:
        rows.setdefault(_row(one), []).append(one)
    body = [
        [*(_shown(getattr(own[0], name)) for name in columns), *(_over_seeds([one for one in own if one.source == s]) for s in SOURCES)]
        for own in rows.values()
    ]
    return [*(name.replace("_", " ") for name in columns), *HEADS.values()], body


def _seeds(done: Sequence[ProbeRecord]) -> Table:
    """The detail: a row for each probe."""
    columns = [*_columns(done), "trigger", "seed"]
    body = [
        [
            *(_shown(getattr(one, name)) for name in columns),
            HEADS[one.source],
            "--" if one.asr is None else f"{100 * one.asr:.2f}",
            _interval(one) or "--",
            _shown(one.n),
        ]
        for one in done
    ]
    return [*(name.replace("_", " ") for name in columns), "texts", "ASR", "95 % interval", "n"], body


def _over_seeds(own: Sequence[ProbeRecord]) -> str:
    values = [one.asr for one in own if one.asr is not None]
    if not values:
        return "--"
    mean, deviation = spread([100 * value for value in values])
    if len(values) > 1:
        return f"{mean:.2f} ± {deviation:.2f} ({len(values)})"
    return " ".join([f"{mean:.2f}", *(_interval(one) for one in own if one.asr is not None)]).rstrip()


def _interval(one: ProbeRecord) -> str:
    return "" if one.interval is None else f"[{100 * one.interval[0]:.2f}, {100 * one.interval[1]:.2f}]"


def _shown(value: object) -> str:
    return "--" if value is None else str(value)


def _foot(done: Sequence[ProbeRecord]) -> str:
    return FOOT.format(length=" or ".join(str(length) for length in sorted({one.length for one in done})))


def _without_figures(ordered: Sequence[ProbeRecord]) -> list[str]:
    seeds: dict[tuple[str, str], list[str]] = {}
    for one in ordered:
        if one.status != "ok":
            place = f"{one.dataset} (poisoned on {one.poisoned_on})" if one.poisoned_on else one.dataset
            what = f"{one.status}: {place} {one.attack} on {one.victim}, {HEADS[one.source]}"
            seeds.setdefault((what, one.reason or ""), []).append(str(one.seed))
    return [" ".join(f"{what}, seed {', '.join(own)}: {reason}".split()) for (what, reason), own in seeds.items()]


def _csv(ordered: Sequence[ProbeRecord]) -> str:
    names = [f.name for f in dataclasses.fields(ProbeRecord) if f.name not in ("interval", "artifacts")]
    rows = [[*(getattr(one, name) for name in names), *(one.interval or (None, None))] for one in ordered]
    return csv_text([*names, "interval_low", "interval_high"], rows)

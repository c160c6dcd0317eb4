"""Records as a table (GitHub Markdown, LaTeX), CSV or JSON. Per cent in tables, fractions in CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tabulate import tabulate

from rapbench.report import cell_tables, compared, kinds
from rapbench.report.forms import csv_text
from rapbench.report.marks import Marks, marks
from rapbench.report.statistics import pairs, spreads
from rapbench.results import Record

Format = Literal["github", "latex", "csv", "json"]
MOST_SHOWN = 6
NESTED = ("intervals", "far_at_frr", "warnings", "verdicts", "cost", "notes", "attack_notes", "artifacts", "made_by", "attempts")


@dataclass(frozen=True)
class Part:
    """One table with what its heads mean."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: str


@dataclass(frozen=True)
class Missing:
    """Cells without figures that differ by the allowed FRR alone, and why. `what`: data set, attack, defense, victim, seed."""

    status: str
    what: tuple[str, str, str, str, str]
    frrs: str
    """In per cent."""
    reason: str


def render(records: Sequence[Record], form: Format, known: Marks | None = None) -> str:
    """Give the records in the format asked for. `known`: which defenses are floors and ceilings, by default what is installed."""
    known = known or marks()
    if form == "json":
        return as_json(records, known)
    if form == "csv":
        return _csv(records, known)
    ordered = in_order(records, known)
    done = [one for one in ordered if one.status == "ok"]
    return (_latex if form == "latex" else _github)(done, _without_figures(ordered, known), known)


def as_json(records: Sequence[Record], known: Marks | None = None) -> str:
    """Give one JSON object: {"cells": [...]}, rates as fractions; `mark`: contender, floor, ceiling or unknown."""
    known = known or marks()
    cells = [{**dataclasses.asdict(one), "mark": known.word(one.defense)} for one in in_order(records, known)]
    return json.dumps({"cells": cells}, indent=1, allow_nan=False)


def in_order(records: Sequence[Record], known: Marks | None = None) -> list[Record]:
    """Give the records by victim, data set, setting, seed, attack, defense (floors and ceilings last), allowed FRR, protocol."""
    known = known or marks()

    def place(one: Record) -> tuple[object, ...]:
        home = (one.poisoned_on or "", one.tuning or "")
        defense = (known.place(one.defense), one.defense)
        return one.victim, one.dataset, *home, one.seed, one.attack, *defense, one.frr, one.protocol

    return sorted(records, key=place)


def parts(done: Sequence[Record], known: Marks | None = None, *, intervals: bool = False) -> list[Part]:
    """Give the tables of cells in order. `intervals`: also where the paper has none."""
    known = known or marks()
    paper, strict = (kinds.once(one for one in done if one.protocol == protocol) for protocol in ("paper", "strict"))
    couples = compared.without_repeats(pairs(one for one in done if one.protocol == "strict"), strict)
    seeds = spreads([*paper, *strict])
    found = [
        _part("Protocol paper", cell_tables.paper(paper, known, intervals=intervals), _foot(cell_tables.FOOT, paper, known)),
        _part("Protocol strict", cell_tables.strict(strict, known), _foot(cell_tables.STRICT_FOOT, strict, known)),
        _part("Victims", cell_tables.victims(done), cell_tables.victim_foot(done)),
        _part("Defenses in pairs", compared.paired(couples, known), compared.PAIR_FOOT),
        _part("Over seeds", compared.over_seeds(seeds, known), compared.SEEDS_FOOT),
    ]
    return [one for one in found if one.rows]


def warned(done: Sequence[Record], known: Marks | None = None) -> dict[str, list[str]]:
    """Give each warning once, with the cells that it is about."""
    known = known or marks()
    found: dict[str, list[str]] = {}
    for one in done:
        dataset, attack, defense = (spec.partition(":")[0] for spec in (one.dataset, one.attack, one.defense))
        for warning in one.warnings:
            what = f"{dataset} {attack} {known.shown(defense, one.defense)} ({one.protocol})"
            found.setdefault(" ".join(warning.split()), []).append(what)
    return {text: list(dict.fromkeys(cells)) for text, cells in found.items()}


def missing(ordered: Sequence[Record], known: Marks | None = None) -> list[Missing]:
    """Give the cells without figures, each reason once per data set, attack, defense and victim."""
    known = known or marks()
    levels: dict[Missing, list[str]] = {}
    for one in ordered:
        if one.status != "ok":
            home = f" poisoned on {one.poisoned_on}" if one.poisoned_on else ""
            what = (one.dataset + home, one.attack, known.shown(one.defense, one.defense), one.victim, str(one.seed))
            levels.setdefault(Missing(one.status, what, "", one.reason or ""), []).append(f"{100 * one.frr:g}")
    return [replace(one, frrs=", ".join(dict.fromkeys(frrs))) for one, frrs in levels.items()]


def shown(cells: Sequence[str]) -> str:
    """Give the first few, and how many more there are."""
    return ", ".join(cells[:MOST_SHOWN]) + (f" and {len(cells) - MOST_SHOWN} more" if len(cells) > MOST_SHOWN else "")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a GitHub table of text that is not escaped yet."""
    escaped = [[" ".join(text.split()).replace("|", r"\|") for text in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True)


def _part(title: str, laid: cell_tables.Laid, foot: str) -> Part:
    return Part(title, *laid, foot)


def _foot(text: str, own: Sequence[Record], known: Marks) -> str:
    """Give a table's foot with what only some tables have to say: kinds of defenses, floors and ceilings."""
    return " ".join((text + kinds.foot(own) + cell_tables.filter_foot(own) + known.foot(one.defense for one in own)).split())


def _github(done: Sequence[Record], without_figures: Sequence[str], known: Marks) -> str:
    told = [text for part in parts(done, known) for text in (markdown(part.heads, part.rows), part.foot)]
    return "\n\n".join([*told, *(["\n".join(lines)] if (lines := [*_warnings(done, known), *without_figures]) else [])])


def _latex(done: Sequence[Record], without_figures: Sequence[str], known: Marks) -> str:
    """The tabulars of the two protocols; what they cannot hold stands in comments around them."""
    told = []
    for part in parts(done, known):
        if part.title.startswith("Protocol"):
            told += [f"% {part.foot}", tabulate(part.rows, part.heads, tablefmt="latex_booktabs", disable_numparse=True)]
    return "\n".join([*told, *(f"% {line}" for line in [*_warnings(done, known), *without_figures])])


def _warnings(done: Sequence[Record], known: Marks) -> list[str]:
    return [f"warning: {text}: {shown(cells)}" for text, cells in warned(done, known).items()]


def _without_figures(ordered: Sequence[Record], known: Marks) -> list[str]:
    return [_line(one) for one in missing(ordered, known)]


def _line(one: Missing) -> str:
    dataset, attack, defense, victim, seed = one.what
    return " ".join(f"{one.status}: {dataset} {attack} {defense} on {victim}, seed {seed}, at {one.frrs} %: {one.reason}".split())


def _csv(records: Sequence[Record], known: Marks) -> str:
    names = [f.name for f in dataclasses.fields(Record) if f.name not in NESTED]
    costs, rated = ("victim_rows_per_input", "ratio", "fit_s"), sorted({name for one in records for name in one.intervals})
    ends = [f"{name}_{end}" for name in rated for end in ("low", "high")]
    rows = []
    for one in in_order(records, known):
        own = [getattr(one, name) for name in names] + [one.far_at_frr.get(frr) for frr in ("0.01", "0.05")] + [one.ftr, one.ftr_plain]
        own += [end for name in rated for end in one.intervals.get(name) or (None, None)]
        rows.append([*own, *(getattr(one.cost, name, None) for name in costs), "; ".join(one.warnings), known.word(one.defense)])
    heads = [*names, "far_at_frr_1", "far_at_frr_5", "ftr", "ftr_plain", *ends]
    heads += ["victim_rows_per_input", "cost_ratio", "fit_s", "warnings", "mark"]
    return csv_text(heads, rows)

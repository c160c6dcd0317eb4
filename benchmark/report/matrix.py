"""All attacks against all defenses: one table per data set, in blocks of one figure each, with what each defense costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tabulate import tabulate

from rapbench.errors import StoreError
from rapbench.report.forms import MISSING, Entry, Footnotes, csv_text, md
from rapbench.report.kinds import stands_in
from rapbench.report.marks import Marks
from rapbench.report.names import Names
from rapbench.results import Record, usual_frr

WIDE = 0.05
"""The allowed FRR that FAR is given at, beside the one nearest to 1 %."""
SKIPPED = "-"
ACROSS = 12
"""Attacks side by side; more go on in a second table."""
FOOT = (
    "Rates in per cent; means over seeds. FRR: clean test texts that are rejected, of those rightly predicted as the target. "
    "FAR: triggered texts that are accepted, of those predicted as the target; ASR: triggered "
    "non-target texts predicted as the target, by the undefended victim and after the defense (accepted, too). {frr} % is the allowed FRR; "
    "a filter or a repair has none. rows/text: victim (+ helper) rows per text, x time: times an undefended prediction, means over the "
    "attacks, fit not counted. -: no figure, see the footnote; --: nothing could be counted; empty: not in the grid. Protocol `{protocol}`."
)
NAMES = ("dataset", "attack", "defense", "mark", "protocol", "seeds")


@dataclass(frozen=True)
class Block:
    """One figure of the table: its name in data, its head, how its values are written."""

    name: str
    head: str
    shown: Callable[[float], str]


@dataclass(frozen=True)
class Met:
    """One defense against one attack on one data set. `figures`: means over `seeds`, rates as fractions, None where there is none."""

    home: str
    attack: str
    defense: str
    spec: str
    seeds: int
    figures: Mapping[str, float | None]
    reason: str = ""
    """Why there are no figures."""


@dataclass(frozen=True)
class Table:
    """One table laid out, in no format yet."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Entry]]


def render(records: Sequence[Record], form: str, protocol: str, known: Marks | None = None) -> str:
    """Give the table of one protocol in the format asked for: github, latex, csv or json."""
    own = [one for one in records if one.protocol == protocol]
    if not own:
        raise StoreError(f"no cell of the protocol {protocol} here: give the other --protocol")
    names, frrs = Names(own, known), _frrs(own)
    found = meetings(own, names)
    if form in ("csv", "json"):
        columns = dict.fromkeys(name for one in sorted(found, key=lambda one: -len(one.figures)) for name in one.figures)
        rows = [_plain(one, protocol, names.marks, columns) for one in found]
        return json.dumps({"matrix": rows}, indent=1, allow_nan=False) if form == "json" else _csv(rows)
    foot = FOOT.format(frr=" or ".join(f"{100 * frr:g}" for frr in frrs), protocol=protocol)
    foot = " ".join((foot + names.marks.foot(one.spec for one in found)).split())
    return (_latex if form == "latex" else _github)(list(_tables(found, frrs, names)), foot)


def meetings(records: Sequence[Record], names: Names) -> list[Met]:
    """Give who met whom, in the order of the names. `records`: of one protocol; an attack that poisons nothing is left out."""
    frrs, groups = _frrs(records), dict[tuple[str, str, str], list[Record]]()
    for one in records:
        groups.setdefault((names.home(one), names.attack(one), names.defense(one)), []).append(one)
    places = sorted(groups, key=lambda place: (place[0], place[1], names.defenses.index(place[2])))
    done = {place[1] for place, own in groups.items() if any(one.status == "ok" for one in own)}
    harmless = done - {place[1] for place, own in groups.items() if any(map(was_poisoned, own))}
    return [_met(place, groups[place], frrs) for place in places if place[1] not in harmless]


def blocks(frrs: Sequence[float]) -> list[Block]:
    """Give the figures of the table, for these allowed FRRs."""
    fars = [Block(f"far_allowed_{100 * frr:g}", f"FAR at {100 * frr:g} %", _percent) for frr in frrs]
    lost = Block("frr_test", f"FRR at {100 * frrs[0]:g} %", _percent)  # what the allowed FRR came to: without it no FAR means much
    return [Block("auroc", "AUROC", "{:.3f}".format), lost, *fars, Block("asr_defended", f"ASR after, {100 * frrs[0]:g} %", _percent)]


def was_poisoned(one: Record) -> bool:
    """Tell whether texts were triggered for this cell; of an attack that never works, its ASR after the defense alone says so."""
    return any(value is not None for value in (one.far, one.auroc, one.asr_defended))


def _frrs(records: Iterable[Record]) -> list[float]:
    """Give the allowed FRR nearest to 1 %, and 5 % if it is there and another."""
    there = {one.frr for one in records}
    usual = usual_frr(there)
    return [usual, *(frr for frr in there if abs(frr - WIDE) < 1e-9 and frr != usual)]


def _met(place: tuple[str, str, str], own: Sequence[Record], frrs: Sequence[float]) -> Met:
    done = [one for one in own if one.status == "ok"]
    first = list({one.seed: one for one in reversed(done)}.values())
    usual = _at(done, frrs[0])
    figures = {name: _mean(getattr(one, name) for one in first) for name in ("auroc", "asr", "clean_metric")}
    figures |= {name: _mean(getattr(one, name) for one in usual) for name in ("asr_defended", "clean_metric_defended", "frr_test")}
    for frr in frrs:
        if not (at := _at(done, frr)):
            continue
        name, ends = f"far_allowed_{100 * frr:g}", at[0].intervals.get("far") if len(at) == 1 else None
        figures |= {name: _mean(one.far for one in at), f"{name}_low": ends and ends[0], f"{name}_high": ends and ends[1]}
    costs = [one.cost for one in usual or first if one.cost]
    figures["victim_rows_per_input"] = _mean(cost.victim_rows_per_input for cost in costs)
    figures["helper_rows_per_input"] = _mean(sum(cost.helper_rows_per_input.values()) for cost in costs)
    figures["cost_ratio"] = _mean(cost.ratio for cost in costs)
    reasons = [f"{one.status}: {one.reason}" if one.reason else one.status for one in own if one.status != "ok"]
    return Met(*place, own[0].defense, len(first), figures, "" if done else " ".join(reasons[0].split()))


def _at(done: Sequence[Record], frr: float) -> list[Record]:
    """Give one record per seed at an allowed FRR; of a defense without a threshold, any."""
    return list({one.seed: one for one in done if abs(one.frr - frr) < 1e-9 or stands_in(one)}.values())


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _plain(one: Met, protocol: str, known: Marks, columns: Iterable[str]) -> dict[str, object]:
    names = (one.home, one.attack, one.defense, known.word(one.spec), protocol, one.seeds)
    figures = {name: one.figures.get(name) for name in columns}
    return {**dict(zip(NAMES, names, strict=True)), **figures, "reason": one.reason or None}


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    return csv_text(list(rows[0]) if rows else NAMES, [list(row.values()) for row in rows])


def _github(tables: Sequence[Table], foot: str) -> str:
    notes, told = Footnotes(), list[str]()
    for one in tables:
        rows = [[md(cell.text) + _mark(cell, notes) for cell in row] for row in one.rows]
        told += [f"**{md(one.title)}**", tabulate(rows, [md(head) for head in one.heads], "github", disable_numparse=True)]
    numbered = "\n".join(f"- [{number}] {md(note)}" for note, number in notes.numbers.items())
    return "\n\n".join(part for part in [*told, md(foot), numbered] if part)


def _latex(tables: Sequence[Table], foot: str) -> str:
    notes, told = Footnotes(), list[str]()
    for one in tables:
        rows = [[cell.text + _mark(cell, notes) for cell in row] for row in one.rows]
        told += [f"% {' '.join(one.title.split())}", tabulate(rows, one.heads, "latex_booktabs", disable_numparse=True)]
    numbered = (f"% [{number}] {' '.join(note.split())}" for note, number in notes.numbers.items())
    return "\n".join([*told, f"% {foot}", *numbered])


def _mark(cell: Entry, notes: Footnotes) -> str:
    return f" [{notes.marks(cell.notes)}]" if cell.notes else ""


def _tables(found: Sequence[Met], frrs: Sequence[float], names: Names) -> Iterator[Table]:
    """Give the tables of each data set: more attacks than fit side by side go on in another."""
    for home in dict.fromkeys(one.home for one in found):
        own = {(one.defense, one.attack): one for one in found if one.home == home}
        attacks = list(dict.fromkeys(attack for _, attack in own))
        defenses = [name for name in names.defenses if any(defense == name for defense, _ in own)]
        for first, last in _parts(len(attacks)):
            part = f", attacks {first + 1} to {last} of {len(attacks)}" if last - first < len(attacks) else ""
            heads = ["figure", "defense", *attacks[first:last], "rows/text", "x time"]
            yield Table(home + part, heads, _rows(own, attacks[first:last], defenses, frrs))


def _parts(n: int) -> Iterator[tuple[int, int]]:
    """Give the ends of parts of at most `ACROSS`, alike in size."""
    parts = math.ceil(n / ACROSS)
    return pairwise([round(part * n / parts) for part in range(parts + 1)])


def _rows(own: Mapping[tuple[str, str], Met], attacks: Sequence[str], defenses: Sequence[str], frrs: Sequence[float]) -> list[list[Entry]]:
    """Give a block per figure, a row per defense; the head of a block stands at its first row alone."""
    undefended = [_mean(met.figures["asr"] for (_, attack), met in own.items() if attack == name) for name in attacks]
    rows = [
        [Entry(text) for text in ("ASR", "none", *(MISSING if value is None else _percent(value) for value in undefended), "1.0", "1.0")]
    ]
    for block in blocks(frrs):
        for number, defense in enumerate(defenses):
            cells = [_cell(own.get((defense, attack)), block) for attack in attacks]
            cost = _cost([met for (name, _), met in own.items() if name == defense])
            rows.append([Entry("" if number else block.head), Entry(defense), *cells, *cost])
    return rows


def _cell(one: Met | None, block: Block) -> Entry:
    if one is None:
        return Entry("")
    if one.reason:
        return Entry(SKIPPED, notes=(one.reason,))
    if block.name not in one.figures:
        return Entry("")
    value = one.figures[block.name]
    return Entry(MISSING if value is None else block.shown(value))


def _cost(own: Sequence[Met]) -> list[Entry]:
    """Give rows and times of one defense, in the mean over the attacks that it met."""
    rows, helpers, ratio = (
        _mean(one.figures[name] for one in own) for name in ("victim_rows_per_input", "helper_rows_per_input", "cost_ratio")
    )
    text = MISSING if rows is None else f"{rows:.1f}" + (f" + {helpers:.1f}" if helpers else "")
    return [Entry(text), Entry(MISSING if ratio is None else f"{ratio:.1f}")]

"""Records as a table (GitHub Markdown, LaTeX), CSV or JSON. Per cent in tables, fractions in CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tabulate import tabulate

from rapbench.report.forms import csv_text
from rapbench.report.statistics import MOST_DEFENSES, Pair, Spread, pairs, spreads
from rapbench.results import Record

Format = Literal["github", "latex", "csv", "json"]
HEADS = [
    "dataset",
    "attack",
    "ASR",
    "defense",
    "FRR allowed",
    "FRR held-out",
    "FRR test",
    "FAR",
    "AUROC",
    "n clean",
    "n poisoned",
    "rows/text",
]
STRICT_HEADS = [
    "dataset",
    "attack",
    "defense",
    "FRR allowed",
    "FRR test",
    "FAR",
    "FAR at FRR 1 %",
    "FAR at FRR 5 %",
    "ASR defended",
    "clean metric defended",
    "n calibration",
]
FOOT = (
    "FRR: rejected among clean texts whose true and predicted label is the protect label (n clean). "
    "FAR: accepted among triggered non-target texts predicted as the protect label (n poisoned). "
    "FRR, FAR, ASR in per cent. rows/text: victim (+ language model) rows per scored text. "
    "Protocol `paper`: fitted, and the threshold taken by linear percentile, on the same held-out texts."
)
STRICT_FOOT = (
    "Protocol `strict`: fitted on half of the held-out protect-label texts, threshold by the conformal quantile "
    "(the ceil((n+1)(1-FRR))-th smallest suspicion) of the n others; where n is too small for one, nothing is rejected. "
    "[95 % Wilson interval]. FAR at FRR: a point of the test texts' own ROC curve. ASR defended: triggered non-target texts predicted as "
    "the target and accepted, of all. Clean metric defended: a rejected text is one without an answer. !: see the warnings."
)
VICTIM_FOOT = (
    "ASRD: ASR minus that of a victim that was never poisoned (control), on the same texts. Survival: triggered texts whose whole trigger "
    "stands before the cut at the victim's maximal length. Before: ASR of the same texts before its user fine-tuned the victim."
)
SPREAD_HEADS = {
    "asr": "ASR",
    "clean_metric": "clean metric",
    "frr_test": "FRR test",
    "far": "FAR",
    "auroc": "AUROC",
    "asr_defended": "ASR defended",
}
SEEDS_FOOT = "Mean ± sample standard deviation (n - 1) over the seeds, in per cent; in brackets how many seeds have a figure, if not all."
MOST_SHOWN = 6
PAIR_FOOT = (
    "Exact McNemar tests (two-sided, not corrected for their number) on the same texts, protocol `strict`: how many triggered texts "
    "only the one or only the other defense catches, how many clean texts only the one or only the other keeps. "
    f"Victims with more than {MOST_DEFENSES} defenses are left out."
)


def render(records: Sequence[Record], form: Format) -> str:
    """Give the records in the format asked for."""
    if form == "json":
        return as_json(records)
    if form == "csv":
        return _csv(records)
    ordered = in_order(records)
    done = [one for one in ordered if one.status == "ok"]
    return _latex(done, _without_figures(ordered)) if form == "latex" else _github(done, _without_figures(ordered))


def as_json(records: Sequence[Record]) -> str:
    """Give one JSON object: {"cells": [...]}, rates as fractions."""
    return json.dumps({"cells": [dataclasses.asdict(one) for one in in_order(records)]}, indent=1, allow_nan=False)


def in_order(records: Sequence[Record]) -> list[Record]:
    """Give the records by victim, data set, setting, seed, attack, defense, allowed FRR, protocol."""
    return sorted(records, key=_place)


def _place(one: Record) -> tuple[object, ...]:
    home = (one.poisoned_on or "", one.tuning or "")
    return one.victim, one.dataset, *home, one.seed, one.attack, one.defense, one.frr, one.protocol


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


def parts(done: Sequence[Record], *, intervals: bool = False) -> list[Part]:
    """Give the tables of cells in order. `intervals`: also where the paper has none."""
    paper, strict = ([one for one in done if one.protocol == protocol] for protocol in ("paper", "strict"))
    compared, seeds = pairs(strict), spreads(done)
    found = [
        Part("Protocol paper", *_main(paper, intervals=intervals), FOOT) if paper else None,
        Part("Protocol strict", *_strict(strict), STRICT_FOOT) if strict else None,
        Part("Victims", *_controls(done), VICTIM_FOOT) if done else None,
        Part("Defenses in pairs", *_paired(compared), PAIR_FOOT) if compared else None,
        Part("Over seeds", *_seeds(seeds), SEEDS_FOOT) if seeds else None,
    ]
    return [one for one in found if one]


def _github(done: Sequence[Record], without_figures: Sequence[str]) -> str:
    told = [text for part in parts(done) for text in (_markdown(part.heads, part.rows), part.foot)]
    return "\n\n".join([*told, *(["\n".join(lines)] if (lines := [*_warnings(done), *without_figures]) else [])])


def _latex(done: Sequence[Record], without_figures: Sequence[str]) -> str:
    """The tabulars of the two protocols; what they cannot hold stands in comments around them."""
    parts = []
    for protocol, foot, tabled in (("paper", FOOT, _main), ("strict", STRICT_FOOT, _strict)):
        own = [one for one in done if one.protocol == protocol]
        if own:
            heads, rows = tabled(own)
            parts += [f"% {foot}", tabulate(rows, heads, tablefmt="latex_booktabs", disable_numparse=True)]
    return "\n".join([*parts, *(f"% {line}" for line in [*_warnings(done), *without_figures])])


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[" ".join(text.split()).replace("|", r"\|") for text in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True)


def _main(done: Sequence[Record], *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """The head and the rows, with a column for what there are several of: victims, seeds, settings."""
    several, names = _several(done), _short_names(done)
    return [*several, *HEADS], [[*_telling(one, several), *_row(one, names, intervals=intervals)] for one in done]


def _strict(done: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    several, names = _several(done), _short_names(done)
    return [*several, *STRICT_HEADS], [[*_telling(one, several), *_strict_row(one, names)] for one in done]


def _several(done: Sequence[Record]) -> list[str]:
    """Name what has to be told of a row beside the table's columns: the attacker's data set, and what tells two rows apart."""
    rows: dict[tuple[object, ...], list[Record]] = {}
    for one in done:
        rows.setdefault((one.dataset, one.poisoned_on, one.attack, one.defense, one.frr, one.protocol), []).append(one)
    names = [name for name in ("victim", "seed", "tuning") if any(len({getattr(one, name) for one in own}) > 1 for own in rows.values())]
    return [*names, *(["poisoned_on"] if any(one.poisoned_on for one in done) else [])]


def _telling(one: Record, several: Sequence[str]) -> list[str]:
    return [str(getattr(one, name) if getattr(one, name) is not None else "--") for name in several]


def _short_names(records: Sequence[Record]) -> dict[str, str]:
    """Give the bare name of each spec where no other spec has the same, else the spec: options make tables wide."""
    specs = {spec for one in records for spec in (one.dataset, one.attack, one.defense)}
    bare = Counter(spec.partition(":")[0] for spec in specs)
    return {spec: name if (name := spec.partition(":")[0]) and bare[name] == 1 else spec for spec in specs}


def _row(one: Record, names: dict[str, str], *, intervals: bool) -> list[str]:
    rate = _with_interval if intervals else lambda one, name: _percent(getattr(one, name))
    return [
        names[one.dataset],
        names[one.attack],
        _percent(one.asr),
        names[one.defense],
        f"{100 * one.frr:g}",
        _percent(one.frr_heldout),
        rate(one, "frr_test"),
        rate(one, "far"),
        "--" if one.auroc is None else f"{one.auroc:.4f}",
        _count(one.n_clean),
        _count(one.n_poisoned),
        _rows(one),
    ]


def _strict_row(one: Record, names: dict[str, str]) -> list[str]:
    return [
        names[one.dataset],
        names[one.attack],
        names[one.defense],
        f"{100 * one.frr:g}" + (" !" if one.warnings else ""),
        _with_interval(one, "frr_test"),
        _with_interval(one, "far"),
        _percent(one.far_at_frr.get("0.01")),
        _percent(one.far_at_frr.get("0.05")),
        _with_interval(one, "asr_defended"),
        f"{_percent(one.clean_metric)} -> {_percent(one.clean_metric_defended)}",
        _count(one.n_heldout),
    ]


def _with_interval(one: Record, name: str) -> str:
    ends = one.intervals.get(name)
    return _percent(getattr(one, name)) + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.2f}"


def _count(value: int | None) -> str:
    return "--" if value is None else str(value)


def _rows(one: Record) -> str:
    if one.cost is None:
        return "--"
    helpers = sorted(one.cost.helper_rows_per_input.items())
    return " + ".join([f"{one.cost.victim_rows_per_input:.1f}", *(f"{rows:.1f} {who}" for who, rows in helpers)])


def _controls(done: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Give the victims' own table: clean metric, ASR by place of the trigger, ASR of the clean control, survival."""
    heads = ["victim", "dataset", "poisoned on", "tuning", "seed", "attack", "trigger", "clean metric", "ASR first 100", "ASR anywhere"]
    heads += ["ASR control", "ASRD", "survival", "before"]
    rows: dict[tuple[Any, ...], list[str]] = {}
    for one in done:
        rows[one.victim, one.dataset, one.poisoned_on, one.tuning, one.seed, one.attack] = [
            one.victim,
            one.dataset,
            one.poisoned_on or "--",
            one.tuning or "--",
            str(one.seed),
            one.attack,
            one.trigger or "",
            f"{one.metric} {_percent(one.clean_metric)}",
            _with_interval(one, "asr"),
            _percent(one.asr_anywhere),
            _percent(one.asr_control),
            _percent(one.asrd),
            _percent(one.survival),
            _percent(one.asr_before),
        ]
    empty = [place for place in range(len(heads)) if all(row[place] == "--" for row in rows.values())]
    kept = [place for place in range(len(heads)) if place not in empty]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows.values()]


def _paired(compared: Sequence[Pair]) -> tuple[list[str], list[list[str]]]:
    done = [pair.one for pair in compared] + [pair.other for pair in compared]
    several, names = _several(done), _short_names(done)
    heads = [
        *several,
        "dataset",
        "attack",
        "FRR allowed",
        "one",
        "other",
        "caught by one / other",
        "p (FAR)",
        "kept by one / other",
        "p (FRR)",
    ]
    return heads, [
        [
            *_telling(pair.one, several),
            names[pair.one.dataset],
            names[pair.one.attack],
            f"{100 * pair.one.frr:g}",
            names[pair.one.defense],
            names[pair.other.defense],
            *(text for own in (pair.far, pair.frr) for text in (f"{own[0]} / {own[1]}", f"{own[2]:.2g}")),
        ]
        for pair in compared
    ]


def _seeds(found: Sequence[Spread]) -> tuple[list[str], list[list[str]]]:
    first = [one.first for one in found]
    several, names = [name for name in _several(first) if name != "seed"], _short_names(first)
    heads = [*several, "protocol", "dataset", "attack", "defense", "FRR allowed", "seeds", *SPREAD_HEADS.values()]
    return heads, [
        [
            *_telling(one.first, several),
            one.first.protocol,
            names[one.first.dataset],
            names[one.first.attack],
            names[one.first.defense],
            f"{100 * one.first.frr:g}",
            str(len(one.seeds)),
            *(_mean(one, name) for name in SPREAD_HEADS),
        ]
        for one in found
    ]


def _mean(one: Spread, name: str) -> str:
    if name not in one.figures:
        return "--"
    mean, deviation, n = one.figures[name]
    shown = f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if n > 1 else "")
    return shown + (f" ({n})" if n < len(one.seeds) else "")


def warned(done: Sequence[Record]) -> dict[str, list[str]]:
    """Give each warning once, with the cells that it is about."""
    found: dict[str, list[str]] = {}
    for one in done:
        for warning in one.warnings:
            what = f"{one.dataset.partition(':')[0]} {one.attack.partition(':')[0]} {one.defense.partition(':')[0]} ({one.protocol})"
            found.setdefault(" ".join(warning.split()), []).append(what)
    return {text: list(dict.fromkeys(cells)) for text, cells in found.items()}


def missing(ordered: Sequence[Record]) -> list[Missing]:
    """Give the cells without figures, each reason once per data set, attack, defense and victim."""
    levels: dict[Missing, list[str]] = {}
    for one in ordered:
        if one.status != "ok":
            home = f" poisoned on {one.poisoned_on}" if one.poisoned_on else ""
            what = (one.dataset + home, one.attack, one.defense, one.victim, str(one.seed))
            levels.setdefault(Missing(one.status, what, "", one.reason or ""), []).append(f"{100 * one.frr:g}")
    return [replace(one, frrs=", ".join(dict.fromkeys(frrs))) for one, frrs in levels.items()]


def _warnings(done: Sequence[Record]) -> list[str]:
    return [f"warning: {text}: {shown(cells)}" for text, cells in warned(done).items()]


def shown(cells: Sequence[str]) -> str:
    """Give the first few, and how many more there are."""
    return ", ".join(cells[:MOST_SHOWN]) + (f" and {len(cells) - MOST_SHOWN} more" if len(cells) > MOST_SHOWN else "")


def _without_figures(ordered: Sequence[Record]) -> list[str]:
    return [_line(one) for one in missing(ordered)]


def _line(one: Missing) -> str:
    dataset, attack, defense, victim, seed = one.what
    return " ".join(f"{one.status}: {dataset} {attack} {defense} on {victim}, seed {seed}, at {one.frrs} %: {one.reason}".split())


def _csv(records: Sequence[Record]) -> str:
    nested = ("intervals", "far_at_frr", "warnings", "verdicts", "cost", "notes", "artifacts", "made_by", "attempts")
    names = [f.name for f in dataclasses.fields(Record) if f.name not in nested]
    costs, rated = ("victim_rows_per_input", "ratio", "fit_s"), sorted({name for one in records for name in one.intervals})
    ends = [f"{name}_{end}" for name in rated for end in ("low", "high")]
    rows = []
    for one in in_order(records):
        own = [getattr(one, name) for name in names] + [one.far_at_frr.get(frr) for frr in ("0.01", "0.05")]
        own += [end for name in rated for end in one.intervals.get(name) or (None, None)]
        rows.append([*own, *(getattr(one.cost, name, None) for name in costs), "; ".join(one.warnings)])
    return csv_text([*names, "far_at_frr_1", "far_at_frr_5", *ends, "victim_rows_per_input", "cost_ratio", "fit_s", "warnings"], rows)

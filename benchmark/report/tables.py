"""Records as a table (GitHub Markdown, LaTeX), CSV or JSON. Per cent in tables, fractions in CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate

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
FOOT = (
    "FRR: rejected among clean texts whose true and predicted label is the protect label (n clean). "
    "FAR: accepted among triggered non-target texts predicted as the protect label (n poisoned). "
    "FRR, FAR, ASR in per cent; protocol `paper`. rows/text: victim (+ language model) rows per scored text."
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
    """Give the records by victim, data set, seed, attack, defense, allowed FRR."""
    return sorted(records, key=lambda one: (one.victim, one.dataset, one.seed, one.attack, one.defense, one.frr))


def _github(done: Sequence[Record], without_figures: Sequence[str]) -> str:
    parts = [_markdown(*_main(done)), _markdown(*_controls(done)), FOOT] if done else []
    return "\n\n".join([*parts, *(["\n".join(without_figures)] if without_figures else [])])


def _latex(done: Sequence[Record], without_figures: Sequence[str]) -> str:
    """The tabular of the main table; what it cannot hold stands in comments above and below it."""
    parts = [f"% {FOOT}", tabulate(_main(done)[1], _main(done)[0], tablefmt="latex_booktabs", disable_numparse=True)] if done else []
    return "\n".join([*parts, *(f"% {line}" for line in without_figures)])


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[" ".join(text.split()).replace("|", r"\|") for text in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True)


def _main(done: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows, with a column for the victim and one for the seed where there are several."""
    several = [name for name in ("victim", "seed") if len({getattr(one, name) for one in done}) > 1]
    names = _short_names(done)
    return [*several, *HEADS], [[*(str(getattr(one, name)) for name in several), *_row(one, names)] for one in done]


def _short_names(records: Sequence[Record]) -> dict[str, str]:
    """Give the bare name of each spec where no other spec has the same, else the spec: options make tables wide."""
    specs = {spec for one in records for spec in (one.dataset, one.attack, one.defense)}
    bare = [spec.partition(":")[0] for spec in specs]
    return {spec: name if bare.count(name) == 1 else spec for spec in specs if (name := spec.partition(":")[0])}


def _row(one: Record, names: dict[str, str]) -> list[str]:
    return [
        names[one.dataset],
        names[one.attack],
        _percent(one.asr),
        names[one.defense],
        f"{100 * one.frr:g}",
        _percent(one.frr_heldout),
        _percent(one.frr_test),
        _percent(one.far),
        "--" if one.auroc is None else f"{one.auroc:.4f}",
        _count(one.n_clean),
        _count(one.n_poisoned),
        _rows(one),
    ]


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.2f}"


def _count(value: int | None) -> str:
    return "--" if value is None else str(value)


def _rows(one: Record) -> str:
    helpers = one.cost.get("helper_rows_per_input", {})
    own = one.cost.get("victim_rows_per_input")
    return " + ".join(["--" if own is None else f"{own:.1f}", *(f"{rows:.1f} {who}" for who, rows in sorted(helpers.items()))])


def _controls(done: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Give the victims' own table: clean metric, ASR by place of the trigger, ASR of the clean control."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for one in done:
        rows[one.victim, one.dataset, one.seed, one.attack] = [
            one.victim,
            one.dataset,
            str(one.seed),
            one.attack,
            one.trigger or "",
            f"{one.metric} {_percent(one.clean_metric)}",
            _percent(one.asr),
            _percent(one.asr_anywhere),
            _percent(one.asr_control),
        ]
    heads = ["victim", "dataset", "seed", "attack", "trigger", "clean metric", "ASR first 100", "ASR anywhere", "ASR control"]
    return heads, list(rows.values())


def _without_figures(ordered: Sequence[Record]) -> list[str]:
    levels: dict[tuple[str, str], list[str]] = {}
    for one in ordered:
        if one.status != "ok":
            what = f"{one.status}: {one.dataset} {one.attack} {one.defense} on {one.victim}, seed {one.seed}"
            levels.setdefault((what, one.reason or ""), []).append(f"{100 * one.frr:g}")
    return [" ".join(f"{what}, at {', '.join(frrs)} %: {reason}".split()) for (what, reason), frrs in levels.items()]


def _csv(records: Sequence[Record]) -> str:
    names = [f.name for f in dataclasses.fields(Record) if f.name not in ("intervals", "cost", "notes", "artifacts")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, "victim_rows_per_input", "score_ms_per_input", "fit_s"])
    for one in in_order(records):
        costs = [one.cost.get(name) for name in ("victim_rows_per_input", "score_ms_per_input", "fit_s")]
        writer.writerow([_cell(value) for value in [*(getattr(one, name) for name in names), *costs]])
    return stream.getvalue().removesuffix("\n")


def _cell(value: object) -> object:
    """Keep a spreadsheet from taking text for a formula, and a lone carriage return from ending a row."""
    if not isinstance(value, str):
        return value
    return ("'" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else "") + value.replace("\r", " ")

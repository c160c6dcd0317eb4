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
HEADS = ["dataset", "attack", "ASR", "defense", "FRR allowed", "FRR held-out", "FRR test", "FAR", "AUROC", "n clean", "n poisoned", "rows/text"]
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
    body = [_row(one, _short_names(done)) for one in done]
    if form == "latex":
        return tabulate(body, HEADS, tablefmt="latex_booktabs", disable_numparse=True)
    parts = [tabulate(body, HEADS, tablefmt="github", disable_numparse=True)] if body else []
    return "\n\n".join([*parts, *_controls(done), *([FOOT] if body else []), *_without_figures(ordered)])


def as_json(records: Sequence[Record]) -> str:
    """Give one JSON object: {"cells": [...]}, rates as fractions."""
    return json.dumps({"cells": [dataclasses.asdict(one) for one in in_order(records)]}, indent=1, allow_nan=False)


def in_order(records: Sequence[Record]) -> list[Record]:
    """Give the records by data set, seed, attack, allowed FRR, defense."""
    return sorted(records, key=lambda one: (one.victim, one.dataset, one.seed, one.attack, one.defense, one.frr))


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
        str(one.n_clean),
        str(one.n_poisoned),
        _rows(one),
    ]


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.2f}"


def _rows(one: Record) -> str:
    helpers = one.cost.get("helper_rows_per_input", {})
    return " + ".join([f"{one.cost['victim_rows_per_input']:.1f}", *(f"{rows:.1f} {who}" for who, rows in sorted(helpers.items()))])


def _controls(done: Sequence[Record]) -> list[str]:
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
    return [tabulate(list(rows.values()), heads, tablefmt="github", disable_numparse=True)] if rows else []


def _without_figures(ordered: Sequence[Record]) -> list[str]:
    levels: dict[tuple[Any, ...], list[str]] = {}
    for one in ordered:
        if one.status != "ok":
            levels.setdefault((one.status, one.dataset, one.attack, one.defense, one.reason), []).append(f"{100 * one.frr:g}")
    lines = [f"{status}: {dataset} {attack} {defense} at {', '.join(frrs)} %: {reason}" for (status, dataset, attack, defense, reason), frrs in levels.items()]
    return ["\n".join(lines)] if lines else []


def _csv(records: Sequence[Record]) -> str:
    names = [f.name for f in dataclasses.fields(Record) if f.name not in ("intervals", "cost", "notes", "artifacts")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*names, "victim_rows_per_input", "score_ms_per_input", "fit_s"])
    for one in in_order(records):
        costs = [one.cost.get(name) for name in ("victim_rows_per_input", "score_ms_per_input", "fit_s")]
        writer.writerow([_cell(value) for value in [*(getattr(one, name) for name in names), *costs]])
    return stream.getvalue()


def _cell(value: object) -> object:
    """Keep a spreadsheet from taking text for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value

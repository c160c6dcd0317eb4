"""What defenses cost: the table of a results folder, the cost by length of text, the sums, and the picture of cost against length."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from rapbench.cost import Cost, Spread, published
from rapbench.errors import StoreError
from rapbench.lengths import LENGTHS, Timed, classes, length_class
from rapbench.report.forms import csv_text
from rapbench.report.marks import Marks, marks
from rapbench.results import Record

Format = Literal["github", "csv", "json", "pytest-benchmark"]
HEADS = ["dataset", "attack", "victim", "defense", "victim rows", "helper rows", "helper tokens", "GFLOP", "x FLOP", "ms", "x time"]
HEADS += ["fit s", "fit rows", "fit tokens", "MiB fit", "MiB scoring", "bench"]
LABELS = 4
"""Of these, how many say what a row is."""
APART = {"fine-tuned as": "tuning", "seed": "seed"}
"""More columns that do, where there are several: head -> field of a record."""
LENGTH_HEADS = ["words", "defense", "texts", "ms undefended", "ms defended", "x time"]
FOOT = (
    "Per text that passed the gate, its own prediction included: rows (texts through a model), tokens, FLOPs (torch's work, counted on six "
    "texts of all lengths), milliseconds as median [quartiles] over batches of texts of similar length, x: times that of one "
    "undefended prediction in the same run. Helper: another model, like ONION's language model. A purifier at its level for the smallest "
    "allowed FRR; of a filter or a repair, the victim that is deployed instead. "
    "Fit: once per victim. MiB: highest memory in use, of the process or of the accelerator, in brackets before the fit."
)
COUNTS = {"helper_rows": "helper_rows_per_input", "helper_tokens": "helper_tokens_per_input"}
COUNTS |= {name: name for name in ("fit_rows", "fit_tokens", "calibration_rows", "calibration_tokens")}
"""Columns of the CSV that sum a count over models -> its field; beside each stands NAME_computed."""
NONE = "--"
UNEXPLAINED = 1.5
"""Times the FLOPs that the rows of the victim would take, from which on they are not all that a defense computes."""


@dataclass(frozen=True)
class Measured:
    """One defense on one victim: the record that stands for its cells."""

    record: Record
    cost: Cost


def render(
    records: Sequence[Record], steps: Mapping[str, float], form: Format, known: Marks | None = None, made: datetime | None = None
) -> str:
    """Give the costs in the format asked for.

    `steps`: stage -> seconds of all its steps, where the artifacts are at hand; `made`: when the last was measured, if known.
    """
    known = known or marks()
    measured, others = measurements(records, known), unmeasured(records, known)
    if not measured and not others:
        raise StoreError("no costs in this folder: they are written where a defense has scored texts")
    if form == "json":
        costs = [{**_names(one.record), "mark": known.word(one.record.defense), "cost": dataclasses.asdict(one.cost)} for one in measured]
        unknown = [{**_names(one), "mark": known.word(one.defense), "status": one.status, "reason": one.reason} for one in others]
        return json.dumps({"costs": costs, "without": unknown, "totals": totals(measured), "steps": dict(steps)}, indent=1, allow_nan=False)
    if form == "csv":
        return _csv(measured, others, known)
    if form == "pytest-benchmark":
        return _pytest_benchmark(measured, made)
    listed = [*(one.record for one in measured), *others]
    heads, columns = apart(listed)
    place = LABELS - 1  # before the defense
    told = [[*row[:place], *more, *row[place:]] for row, more in zip(rows(measured, others, known), columns, strict=True)]
    parts = [_table([*HEADS[:place], *heads, *HEADS[place:]], told), foot(measured, others, known)]
    parts += [_table(*_by_length(measured, known)), _sums(measured, steps)]
    return "\n\n".join(part for part in parts if part)


def foot(measured: Sequence[Measured], others: Sequence[Record], known: Marks) -> str:
    """Give what the heads mean, what was out of the ordinary, and the marks of the defenses in the table."""
    defenses = [*(one.record.defense for one in measured), *(one.defense for one in others)]
    return " ".join(" ".join((FOOT, *_remarks(measured), known.foot(defenses))).split())


def _remarks(measured: Sequence[Measured]) -> list[str]:
    """Give, each once, where texts were longer than a model reads, where memory was short, and where rows do not tell the work."""
    found, beyond = [], dict[str, float]()
    for own, record in ((one.cost, one.record) for one in measured):
        if own.max_tokens and (own.longest_tokens or 0) >= own.max_tokens:
            most = f"{record.victim} reads {own.max_tokens} tokens of a text at most"
            found.append(f"Of {_home(record)}, {most}: some have as many, or were cut.")
        if own.batch_tokens:
            found.append(f"Memory held {own.batch_tokens} tokens of {record.victim} at once, no more ({record.defense}).")
        if isinstance(remark := record.notes.get("cost"), str):
            found.append(f"{record.defense}: {remark}.")
        beyond[record.defense] = max(beyond.get(record.defense, 0.0), _unexplained(own))
    names = ", ".join(f"{defense} ({times:.1f} times)" for defense, times in sorted(beyond.items()) if times > UNEXPLAINED)
    more = [f"More FLOPs than their rows explain, so work of their own or calls of parts of the victim: {names}."] if names else []
    return [*dict.fromkeys(found), *more]


def _unexplained(own: Cost) -> float:
    """Give the FLOPs over those that the victim's rows and tokens take; 0 where a helper computes as well, or it is not known."""
    if not own.flops_per_input or not own.plain_flops_per_input or own.helper_rows_per_input:
        return 0.0
    longer = own.victim_tokens_per_input / own.plain_tokens_per_input if own.plain_tokens_per_input else 0.0
    return own.flops_per_input / own.plain_flops_per_input / max(own.victim_rows_per_input, longer, 1.0)


def apart(records: Sequence[Record], names: Iterable[str] = tuple(APART)) -> tuple[list[str], list[list[str]]]:
    """Give heads and fields, a list per record, of those columns of `APART` by which these records differ."""
    heads = [name for name in names if len({getattr(one, APART[name]) for one in records}) > 1]
    values = ([getattr(one, APART[name]) for name in heads] for one in records)
    return heads, [[NONE if value is None else str(value) for value in own] for own in values]


def measurements(records: Iterable[Record], known: Marks | None = None) -> list[Measured]:
    """Give one measurement per defense and victim, in order: that of the smallest allowed FRR under the protocol `paper`."""
    known = known or marks()
    found: dict[tuple[Any, ...], Record] = {}
    for one in sorted(records, key=lambda one: (one.protocol, one.frr)):
        if one.cost is not None and one.cost.inputs:
            found.setdefault(_key(one, known), one)
    return [Measured(one, one.cost) for _, one in sorted(found.items()) if one.cost is not None]


def unmeasured(records: Iterable[Record], known: Marks | None = None) -> list[Record]:
    """Give one record of each defense and victim without any cost, in order: no row of the table is missing."""
    listed, known = list(records), known or marks()
    measured = {_key(one.record, known) for one in measurements(listed, known)}
    return [one for key, one in sorted({_key(one, known): one for one in listed}.items()) if key not in measured]


def rows(measured: Sequence[Measured], others: Sequence[Record], known: Marks | None = None) -> list[list[str]]:
    """Give the rows under `HEADS`; of a defense without any cost, why."""
    known = known or marks()
    return [_row(one, known) for one in measured] + [_failed(one, known) for one in others]


def totals(measured: Sequence[Measured]) -> dict[str, float]:
    """Give the sums over all defenses and victims: inputs, seconds, victim and helper rows and tokens of inference, FLOPs."""
    sums: dict[str, float] = {"defenses": len(measured), "inputs": 0, "fit_s": 0.0, "seconds": 0.0, "victim_rows": 0.0, "helper_rows": 0.0}
    sums |= {"victim_tokens": 0.0, "helper_tokens": 0.0, "flops": 0.0}
    for own in (one.cost for one in measured):
        sums["inputs"] += own.inputs
        sums["fit_s"] += own.fit_s
        sums["seconds"] += own.seconds
        sums["victim_rows"] += own.victim_rows_per_input * own.inputs
        sums["victim_tokens"] += own.victim_tokens_per_input * own.inputs
        sums["helper_rows"] += published(own.helper_rows_per_input) * own.inputs
        sums["helper_tokens"] += published(own.helper_tokens_per_input) * own.inputs
        sums["flops"] += (own.flops_per_input or 0.0) * own.inputs
    return {name: round(value, 3) for name, value in sums.items()}


def lengths(measured: Sequence[Measured]) -> dict[tuple[str, str, str], list[Timed]]:
    """Give per victim, device and defense the mean cost by class of length over all data sets, attacks and seeds, shortest first."""
    found: dict[tuple[str, str, str], list[Timed]] = {}
    for one in measured:
        if one.cost.by_length:
            found.setdefault((one.record.victim, device(one.cost), one.record.defense), []).extend(one.cost.by_length)
    return {key: list(classes(own)) for key, own in sorted(found.items())}


def device(cost: Cost) -> str:
    """Name what the times were taken on."""
    return f"{cost.device}, {cost.device_name}" if cost.device_name else cost.device


def why(one: Record) -> str:
    """Say why a defense has no cost."""
    return f"{one.status}: {one.reason or 'nothing was scored'}"


def draw(records: Sequence[Record], file: Path) -> None:
    """Draw milliseconds per text, and times the undefended prediction, against the number of words: a line per defense."""
    from rapbench.report.cost_figures import length
    from rapbench.report.figures import sheet
    from rapbench.report.names import Names

    made = length(records, Names(records))
    if not made.rows:
        raise StoreError("no costs to draw in this folder: they are written where a defense has scored texts")
    sheet(made, file)


def _row(one: Measured, known: Marks) -> list[str]:
    cost = one.cost
    helpers = sorted(cost.helper_rows_per_input)
    return [
        *_labels(one.record, known),
        f"{cost.victim_rows_per_input:.3f}",
        " + ".join(f"{cost.helper_rows_per_input[who]:.1f} {who}" for who in helpers) or "0",
        " + ".join(f"{cost.helper_tokens_per_input[who]:.0f} {who}" for who in helpers) or "0",
        NONE if cost.flops_per_input is None else f"{cost.flops_per_input / 1e9:.3g}",
        _times(cost.flops_per_input, cost.plain_flops_per_input),
        _spread(cost.ms_per_input),
        NONE if cost.ratio is None else f"{cost.ratio:.2f}",
        f"{cost.fit_s:.1f}",
        _sum(cost.fit_rows),
        _sum(cost.fit_tokens) if cost.fit_tokens or not cost.fit_rows else NONE,  # older results have the rows alone
        NONE if cost.fit_peak_mib is None else f"{cost.fit_peak_mib:.0f} ({cost.start_mib or 0:.0f})",
        NONE if cost.peak_mib is None else f"{cost.peak_mib:.0f}",
        f"{cost.device}, {cost.threads} thread{'s' * (cost.threads != 1)}, {cost.dtype}, load {cost.load:g}",
    ]


def _failed(one: Record, known: Marks) -> list[str]:
    return [*_labels(one, known), why(one), *[NONE] * (len(HEADS) - LABELS - 1)]


def _by_length(measured: Sequence[Measured], known: Marks) -> tuple[list[str], list[list[str]]]:
    """Give heads and rows of the cost by length, with victim and device where there are several."""
    found, rows = lengths(measured), []
    several = [place for place in (0, 1) if len({key[place] for key in found}) > 1]
    for key, timed in sorted(found.items(), key=lambda own: (own[0][:2], known.place(own[0][2]))):
        labels = [*(key[place] for place in several), known.shown(key[2], key[2])]
        for one in timed:
            plain, defended = one.plain_s, one.defense_s + (one.plain_s or 0.0)
            figures = [NONE] * 3 if not plain else [f"{1000 * plain:.2f}", f"{1000 * defended:.2f}", f"{defended / plain:.2f}"]
            place = length_class(one.words)
            rows.append((place, [_class_name(place), *labels, str(one.texts), *figures]))
    heads = [LENGTH_HEADS[0], *(("victim", "device")[place] for place in several), *LENGTH_HEADS[1:]]
    return heads, [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _sums(measured: Sequence[Measured], steps: Mapping[str, float]) -> str:
    sums = totals(measured)
    text = (
        f"Together {sums['defenses']:.0f} fits in {sums['fit_s']:.1f} s; {sums['inputs']:.0f} inputs: "
        f"{sums['victim_rows']:.0f} victim rows, {sums['helper_rows']:.0f} helper rows, {sums['flops'] / 1e12:.3g} TFLOP; "
        f"with the held-out texts {sums['seconds']:.1f} s."
    )
    if steps:
        text += f" All finished steps behind these rows, as far as the store has them, {sum(steps.values()):.1f} s: "
        text += ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in steps.items()) + "."
    return text


def _pytest_benchmark(measured: Sequence[Measured], made: datetime | None) -> str:
    from rapbench.bench.export import Row, document

    timed = [one for one in measured if one.cost.samples_ms]
    rows = [
        Row(
            f"{one.record.defense}[{' -> '.join(own for own in (one.record.victim, one.record.tuning) if own)}-{one.record.seed}]",
            f"{_home(one.record)}/{one.record.attack}",
            [value / 1000 for value in one.cost.samples_ms],
            {**_names(one.record), **dataclasses.asdict(one.cost), "made_by": dict(one.record.made_by)},
        )
        for one in timed
    ]
    return json.dumps(document(rows, _machine(timed), made), indent=1, allow_nan=False, default=str)


def _machine(measured: Sequence[Measured]) -> dict[str, Any]:
    """Give what the records say of the machine that measured, where all say the same; each row has its own."""
    told = [{**one.record.made_by, **{name: getattr(one.cost, name) for name in ("device", "device_name", "threads")}} for one in measured]
    shared = {name: value for name, value in (told or [{}])[0].items() if value != "" and all(own.get(name) == value for own in told)}
    return {"python_version" if name == "python" else name: value for name, value in shared.items()}  # as pytest-benchmark names it


def _csv(measured: Sequence[Measured], others: Sequence[Record], known: Marks) -> str:
    plain = [f.name for f in dataclasses.fields(Cost) if f.type in ("int", "float", "str", "int | None", "float | None")]
    spreads = [("ms_per_input", "ms"), ("plain_ms_per_input", "plain_ms")]
    heads = [*_names(measured[0].record if measured else others[0]), "status", "reason", *plain]
    heads += [f"{short}_{part}" for _, short in spreads for part in ("median", "low", "high")]
    heads += [f"{count}{kind}" for count in COUNTS for kind in ("", "_computed")] + ["mark"]
    rows: list[list[Any]] = []
    for one in measured:
        parts = [getattr(getattr(one.cost, name), part, None) for name, _ in spreads for part in ("median", "low", "high")]
        parts += [total for name in COUNTS.values() for total in _counted(one.cost, name)]
        told = [getattr(one.cost, name) for name in plain]
        rows.append([*_names(one.record).values(), "ok", None, *told, *parts, known.word(one.record.defense)])
    none = [None] * (len(heads) - heads.index("reason") - 2)  # between the reason and the mark
    rows += [[*_names(one).values(), one.status, one.reason, *none, known.word(one.defense)] for one in others]
    return csv_text(heads, rows)


def _counted(cost: Cost, name: str) -> tuple[float | None, float | None]:
    """Give a count over all models in it, as published and as really computed; None of what an older result does not know."""
    by, rows = getattr(cost, name), getattr(cost, name.replace("_tokens", "_rows"))
    if not by and (rows or (name.startswith("calibration") and cost.calibration_s is None)):
        return None, None
    return published(by), sum(value for who, value in by.items() if f"{who}_computed" not in by)


def _class_name(place: int) -> str:
    low = LENGTHS[place - 1] + 1 if place else 1
    return f"{low}-{LENGTHS[place]}" if place < len(LENGTHS) else f"{low}-"


def _key(one: Record, known: Marks) -> tuple[Any, ...]:
    home = (one.dataset, one.poisoned_on or "", one.tuning or "")
    return *home, one.attack, one.victim, one.seed, known.place(one.defense), one.defense


def _names(one: Record) -> dict[str, Any]:
    names = ("dataset", "poisoned_on", "tuning", "attack", "victim", "seed", "defense")
    return {name: getattr(one, name) for name in names}


def _labels(one: Record, known: Marks) -> list[str]:
    return [_home(one), one.attack, one.victim, known.shown(one.defense, one.defense)]


def _home(one: Record) -> str:
    return f"{one.poisoned_on} -> {one.dataset}" if one.poisoned_on else one.dataset


def _sum(by: Mapping[str, int]) -> str:
    return " + ".join(f"{count} {who}" for who, count in by.items() if count) or "0"


def _times(value: float | None, plain: float | None) -> str:
    return f"{value / plain:.2f}" if value is not None and plain else NONE


def _spread(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in rows]
    return tabulate(escaped, heads, tablefmt="github", disable_numparse=True) if rows else ""

"""The tables of cells: one row per cell under either protocol, one per victim. Per cent, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rapbench.report.kinds import allowed
from rapbench.report.marks import Marks
from rapbench.results import Record

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
    "ASR defended",
    "clean metric defended",
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
    "AUROC",
    "ASR defended",
    "clean metric defended",
    "n calibration",
]
FILTERED = ("precision", "recall", "removed")
"""Columns of filters of training sets, where there is one."""
AFTER = (
    "ASR defended: triggered non-target texts predicted as the target and accepted, of all. "
    "Clean metric defended: a rejected text is one without an answer."
)
FOOT = (
    "FRR: rejected among clean texts whose true and predicted label is the protect label (n clean). "
    "FAR: accepted among triggered non-target texts predicted as the protect label (n poisoned). "
    f"{AFTER} FRR, FAR, ASR in per cent. rows/text: victim (+ language model) rows per scored text. "
    "Protocol `paper`: fitted, and the threshold taken by linear percentile, on the same held-out texts."
)
STRICT_FOOT = (
    "Protocol `strict`: fitted on half of the held-out protect-label texts, threshold by the conformal quantile "
    "(the ceil((n+1)(1-FRR))-th smallest suspicion) of the n others; where n is too small for one, nothing is rejected. "
    f"[95 % Wilson interval]. FAR at FRR: a point of the test texts' own ROC curve. {AFTER} !: see the warnings."
)
FILTER_FOOT = (
    " Of a filter of the training set: precision, the poisoned of the removed texts; recall, the removed of the poisoned; removed, of all."
)
VICTIM_FOOT = (
    "ASRD: ASR minus that of a victim that was never poisoned (control), on the same texts. Survival: triggered texts whose whole trigger "
    "stands before the cut at the victim's maximal length. Before: ASR of the same texts before its user fine-tuned the victim."
)

FTR_FOOT = (
    " FTR: clean held-out texts of other labels that are predicted as the target with part of the trigger's words in them, in the mean "
    "over such parts (in brackets: without any), before any fine-tuning."
)

Laid = tuple[list[str], list[list[str]]]
"""The heads and the rows of a table."""


class Labels:
    """What the rows of one table are called: names as short as they are clear, defenses with their marks."""

    def __init__(self, records: Sequence[Record], marks: Marks) -> None:
        self.several = _several(records)
        self._names, self._marks = _short_names(records), marks

    def telling(self, one: Record) -> list[str]:
        """Give what tells this row from others beside the table's own columns: under the heads `several`."""
        return [str(getattr(one, name) if getattr(one, name) is not None else "--") for name in self.several]

    def dataset(self, one: Record) -> str:
        return self._names[one.dataset]

    def attack(self, one: Record) -> str:
        return self._names[one.attack]

    def defense(self, one: Record) -> str:
        return self._marks.shown(self._names[one.defense], one.defense)


def paper(done: Sequence[Record], marks: Marks, *, intervals: bool = False) -> Laid:
    """Give the table of the protocol `paper`, with a column for what there are several of: victims, seeds, settings."""
    labels, filtered = Labels(done, marks), _filtered(done)
    shares = with_interval if intervals else lambda one, name: percent(getattr(one, name))
    rows = [[*labels.telling(one), *_row(one, labels, shares), *(shares(one, name) for name in filtered)] for one in done]
    return [*labels.several, *HEADS, *filtered], rows


def strict(done: Sequence[Record], marks: Marks) -> Laid:
    """Give the table of the protocol `strict`."""
    labels, filtered = Labels(done, marks), _filtered(done)
    rows = [[*labels.telling(one), *_strict_row(one, labels), *(with_interval(one, name) for name in filtered)] for one in done]
    return [*labels.several, *STRICT_HEADS, *filtered], rows


def filter_foot(done: Sequence[Record]) -> str:
    """Give what a foot says of the columns of filters, with a blank in front; empty where there are none."""
    return FILTER_FOOT if _filtered(done) else ""


def victim_foot(done: Sequence[Record]) -> str:
    """Give the foot of the victims' own table."""
    return VICTIM_FOOT + (FTR_FOOT if any(one.ftr is not None for one in done) else "")


def victims(done: Sequence[Record]) -> Laid:
    """Give the victims' own table: clean metric, ASR by place of the trigger, ASR of the clean control, survival."""
    heads = ["victim", "dataset", "poisoned on", "tuning", "seed", "attack", "trigger", "clean metric", "ASR first 100", "ASR anywhere"]
    heads += ["ASR control", "ASRD", "survival", "before", "FTR"]
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
            f"{one.metric} {percent(one.clean_metric)}",
            with_interval(one, "asr"),
            percent(one.asr_anywhere),
            percent(one.asr_control),
            percent(one.asrd),
            percent(one.survival),
            percent(one.asr_before),
            "--" if one.ftr is None else f"{percent(one.ftr)} ({percent(one.ftr_plain)})",
        ]
    empty = [place for place in range(len(heads)) if all(row[place] == "--" for row in rows.values())]
    kept = [place for place in range(len(heads)) if place not in empty]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows.values()]


def with_interval(one: Record, name: str) -> str:
    """Give a rate in per cent with its interval behind it."""
    ends = one.intervals.get(name)
    return percent(getattr(one, name)) + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def percent(value: float | None) -> str:
    """Give a fraction in per cent."""
    return "--" if value is None else f"{100 * value:.2f}"


def auroc(value: float | None) -> str:
    """Give an AUROC, which is no rate."""
    return "--" if value is None else f"{value:.4f}"


def _several(done: Sequence[Record]) -> list[str]:
    """Name what has to be told of a row beside the table's columns: the attacker's data set, and what tells two rows apart."""
    rows: dict[tuple[object, ...], list[Record]] = {}
    for one in done:
        rows.setdefault((one.dataset, one.poisoned_on, one.attack, one.defense, one.frr, one.protocol), []).append(one)
    names = [name for name in ("victim", "seed", "tuning") if any(len({getattr(one, name) for one in own}) > 1 for own in rows.values())]
    return [*names, *(["poisoned_on"] if any(one.poisoned_on for one in done) else [])]


def _short_names(records: Sequence[Record]) -> dict[str, str]:
    """Give the bare name of each spec where no other spec has the same, else the spec: options make tables wide."""
    specs = {spec for one in records for spec in (one.dataset, one.attack, one.defense)}
    bare = Counter(spec.partition(":")[0] for spec in specs)
    return {spec: name if (name := spec.partition(":")[0]) and bare[name] == 1 else spec for spec in specs}


def _filtered(done: Sequence[Record]) -> list[str]:
    return [*FILTERED] if any(one.removed is not None for one in done) else []


def _row(one: Record, labels: Labels, rate: Callable[[Record, str], str]) -> list[str]:
    return [
        labels.dataset(one),
        labels.attack(one),
        percent(one.asr),
        labels.defense(one),
        allowed(one),
        percent(one.frr_heldout),
        rate(one, "frr_test"),
        rate(one, "far"),
        auroc(one.auroc),
        rate(one, "asr_defended"),
        _clean_metric(one),
        _count(one.n_clean),
        _count(one.n_poisoned),
        _rows(one),
    ]


def _strict_row(one: Record, labels: Labels) -> list[str]:
    return [
        labels.dataset(one),
        labels.attack(one),
        labels.defense(one),
        allowed(one) + (" !" if one.warnings else ""),
        with_interval(one, "frr_test"),
        with_interval(one, "far"),
        percent(one.far_at_frr.get("0.01")),
        percent(one.far_at_frr.get("0.05")),
        auroc(one.auroc),
        with_interval(one, "asr_defended"),
        _clean_metric(one),
        _count(one.n_heldout),
    ]


def _clean_metric(one: Record) -> str:
    return f"{percent(one.clean_metric)} -> {percent(one.clean_metric_defended)}"


def _count(value: int | None) -> str:
    return "--" if value is None else str(value)


def _rows(one: Record) -> str:
    if one.cost is None:
        return "--"
    helpers = sorted(one.cost.helper_rows_per_input.items())
    return " + ".join([f"{one.cost.victim_rows_per_input:.1f}", *(f"{rows:.1f} {who}" for who, rows in helpers)])

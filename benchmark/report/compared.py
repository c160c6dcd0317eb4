"""The tables of what several cells say together: defenses in pairs, one cell over several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from rapbench.report.cell_tables import Labels, Laid
from rapbench.report.kinds import allowed, stands_in
from rapbench.report.marks import Marks
from rapbench.report.statistics import MOST_DEFENSES, Pair, Spread
from rapbench.results import Record

SPREAD_HEADS = {
    "asr": "ASR",
    "clean_metric": "clean metric",
    "frr_test": "FRR test",
    "far": "FAR",
    "auroc": "AUROC",
    "asr_defended": "ASR defended",
}
SEEDS_FOOT = "Mean ± sample standard deviation (n - 1) over the seeds, in per cent; in brackets how many seeds have a figure, if not all."
PAIR_HEADS = ["dataset", "attack", "FRR allowed", "one", "other", "caught by one / other", "p (FAR)", "kept by one / other", "p (FRR)"]
PAIR_FOOT = (
    "Exact McNemar tests (two-sided, not corrected for their number) on the same texts, protocol `strict`: how many triggered texts "
    "only the one or only the other defense catches, how many clean texts only the one or only the other keeps. "
    f"Victims with more than {MOST_DEFENSES} defenses are left out."
)


def without_repeats(compared: Sequence[Pair], kept: Sequence[Record]) -> list[Pair]:
    """Give the pairs, of two that have no threshold those of `kept` alone: at every allowed FRR they are the same two."""
    own = {id(one) for one in kept}
    return [pair for pair in compared if not (stands_in(pair.one) and stands_in(pair.other)) or id(pair.one) in own]


def paired(compared: Sequence[Pair], marks: Marks) -> Laid:
    """Give the table of pairs. Floors and ceilings are among them, marked: a pair names no winner."""
    labels = Labels([record for pair in compared for record in (pair.one, pair.other)], marks)
    return [*labels.several, *PAIR_HEADS], [
        [
            *labels.telling(pair.one),
            labels.dataset(pair.one),
            labels.attack(pair.one),
            allowed(pair.one) if stands_in(pair.other) else allowed(pair.other),
            labels.defense(pair.one),
            labels.defense(pair.other),
            *(text for own in (pair.far, pair.frr) for text in (f"{own[0]} / {own[1]}", f"{own[2]:.2g}")),
        ]
        for pair in compared
    ]


def over_seeds(found: Sequence[Spread], marks: Marks) -> Laid:
    """Give the table of means over seeds."""
    labels = Labels([one.first for one in found], marks)
    labels.several = [name for name in labels.several if name != "seed"]
    heads = [*labels.several, "protocol", "dataset", "attack", "defense", "FRR allowed", "seeds", *SPREAD_HEADS.values()]
    return heads, [
        [
            *labels.telling(one.first),
            one.first.protocol,
            labels.dataset(one.first),
            labels.attack(one.first),
            labels.defense(one.first),
            allowed(one.first),
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

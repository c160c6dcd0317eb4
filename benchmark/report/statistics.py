"""What several records say together: two defenses on the same texts, one cell over several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from rapbench import rates
from rapbench.results import Record, unpack

FIGURES = ("asr", "clean_metric", "frr_test", "far", "auroc", "asr_defended", "clean_metric_defended")

MOST_DEFENSES = 30
"""On one victim, for paired tests: 435 pairs. Of more, a table of pairs tells nobody anything."""


@dataclass(frozen=True)
class Pair:
    """Two defenses at one allowed FRR on the same texts: exact McNemar tests of their FAR and of their FRR."""

    one: Record
    other: Record
    far: tuple[int, int, float]
    """Triggered texts that only `one` catches, that only `other` catches, two-sided p."""
    frr: tuple[int, int, float]
    """Clean texts that only `one` keeps, that only `other` keeps, two-sided p."""


@dataclass(frozen=True)
class Spread:
    """One cell over several seeds. `figures`: name -> mean and sample standard deviation, of the seeds that have a figure."""

    first: Record
    seeds: tuple[int, ...]
    figures: dict[str, tuple[float, float, int]]
    """Mean, standard deviation (n - 1), how many seeds."""


def pairs(records: Iterable[Record]) -> list[Pair]:
    """Give every two defenses of one victim, protocol and allowed FRR that scored the same poisoned texts; none where they are too many."""
    done = [one for one in records if one.status == "ok" and one.far is not None and one.verdicts and "poisoned" in one.artifacts]
    return [
        Pair(one, other, _mcnemar(one, other, "poisoned", rejecting=True), _mcnemar(one, other, "test", rejecting=False))
        for own in _grouped(done, "defense")
        if len(own) <= MOST_DEFENSES
        for one, other in combinations(own, 2)
        if one.artifacts["poisoned"] == other.artifacts["poisoned"]
    ]


def spreads(records: Iterable[Record]) -> list[Spread]:
    """Give mean and spread of every cell that was computed with more than one seed."""
    done = [one for one in records if one.status == "ok"]
    return [
        Spread(own[0], tuple(sorted(one.seed for one in own)), dict(_spread_figures(own))) for own in _grouped(done, "seed") if len(own) > 1
    ]


def _spread_figures(own: Sequence[Record]) -> Iterator[tuple[str, tuple[float, float, int]]]:
    for name in FIGURES:
        values = [float(value) for one in own if (value := getattr(one, name)) is not None]
        if values:
            yield name, (*rates.spread(values), len(values))


def _mcnemar(one: Record, other: Record, population: str, *, rejecting: bool) -> tuple[int, int, float]:
    n = (one.n_poisoned if population == "poisoned" else one.n_clean) or 0
    first, second = (unpack(record.verdicts[population], n) == rejecting for record in (one, other))
    return rates.mcnemar(first, second)


def _grouped(records: Sequence[Record], but: Literal["defense", "seed"]) -> list[list[Record]]:
    """Give the records that differ in one name alone, together."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        same = replace(one, defense="") if but == "defense" else replace(one, seed=0)
        groups.setdefault(same.file_name, []).append(one)
    return list(groups.values())

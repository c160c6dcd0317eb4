"""How a figure of a claim is read off one result of ours, by its quantity, in the unit of the claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rapbench.checks import CheckRecord
from rapbench.claims.card import Quantity, Reported
from rapbench.cost import published
from rapbench.probe import ProbeRecord
from rapbench.results import Histogram, Named, Record

Interval = tuple[float, float]
Got = tuple[float, Interval | None, int | None]
"""A value, its 95 % interval, and the texts behind it."""


def taken(reported: Reported, one: Named) -> Got | None:
    """Give the figure, or None where the result has none."""
    return READERS[reported.quantity](reported, one)


def kind(quantity: Quantity) -> type[Named]:
    """Give the kind of results that a quantity is read off."""
    return KINDS.get(quantity, Record)


def _rate(reported: Reported, one: Named) -> Got | None:
    """Give a rate of a cell in per cent."""
    count = {"far": "n_poisoned", "frr_test": "n_clean", "asr_anywhere": "n_triggered", "clean_metric": "n_test"}.get(reported.quantity)
    value = getattr(one, reported.quantity)
    if value is None or not isinstance(one, Record):
        return None
    scale = 100.0 if reported.unit == "%" else 1.0
    ends = one.intervals.get(reported.quantity)
    return scale * value, ends and (scale * ends[0], scale * ends[1]), getattr(one, count) if count else None


def _rows(reported: Reported, one: Named) -> Got | None:
    if not isinstance(one, Record) or one.cost is None or not one.cost.inputs:
        return None
    cost = one.cost
    return (cost.victim_rows_per_input if reported.quantity == "victim rows" else published(cost.helper_rows_per_input)), None, cost.inputs


def _fall(reported: Reported, one: Named) -> Got | None:
    """Give the mean fall of the protect label's probability, which is RAP's suspicion with its sign changed, to half a bin.

    Of texts beyond the histogram's ends, a few in a hundred, the end counts.
    """
    if not isinstance(one, Histogram):
        return None
    counts = one.clean if reported.quantity == "clean fall" else one.poisoned
    total = sum(counts)
    middles = ((low + high) / 2 for low, high in zip(one.edges[:-1], one.edges[1:], strict=True))
    return (-sum(middle * count for middle, count in zip(middles, counts, strict=True)) / total, None, total) if total else None


def _probe(reported: Reported, one: Named) -> Got | None:
    if not isinstance(one, ProbeRecord) or one.asr is None:
        return None
    return 100 * one.asr, one.interval and (100 * one.interval[0], 100 * one.interval[1]), one.n


def _inequality(reported: Reported, one: Named) -> Got | None:
    """Give 1 where the premises and the inequality hold as stated (q = 0) on the first population, all texts; else 0."""
    if not isinstance(one, CheckRecord) or one.theorem is None:
        return None
    verdict = one.theorem.verdicts[0]
    stated = [bounds for bounds in verdict.bounds if bounds.q == 0]
    true = any(own.condition_1 and own.condition_2 and own.a_in_range and any(side.holds for side in own.inequalities) for own in stated)
    return float(true), None, sum(verdict.counts)


READERS: Mapping[Quantity, Callable[[Reported, Named], Got | None]] = {
    "far": _rate,
    "frr_test": _rate,
    "asr_anywhere": _rate,
    "clean_metric": _rate,
    "auroc": _rate,
    "victim rows": _rows,
    "lm rows": _rows,
    "clean fall": _fall,
    "poisoned fall": _fall,
    "probe asr": _probe,
    "inequality": _inequality,
}
KINDS: Mapping[Quantity, type[Named]] = {
    "probe asr": ProbeRecord,
    "inequality": CheckRecord,
    "clean fall": Histogram,
    "poisoned fall": Histogram,
}

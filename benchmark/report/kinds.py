"""Kinds of defenses in a report: a filter of training sets and a repair deploy another victim, which is the same at every allowed FRR."""

from __future__ import annotations

from collections.abc import Iterable

from rapbench.results import Record

NO_FRR = "-"
"""In the place of the allowed FRR where no FRR was asked for."""
FOOT = (
    f" FRR allowed {NO_FRR}: a filter of the training set or a repair of the model has no threshold, its figures are those of the victim "
    "that is deployed instead: FRR, clean texts that it no longer predicts as the protect label; FAR, triggered ones that it still does."
)


def stands_in(one: Record) -> bool:
    """Tell whether a cell is about a victim that was deployed instead: it rejects by no threshold, and lacks none.

    Where a watcher of inputs has no threshold there is a warning that says why; a purifier has a level, and its repaired texts.
    """
    return one.status == "ok" and one.threshold is None and not one.warnings and not (one.cost and one.cost.repaired)


def allowed(one: Record) -> str:
    """Give the allowed FRR in per cent, or that there is none."""
    return NO_FRR if stands_in(one) else f"{100 * one.frr:g}"


def once(records: Iterable[Record]) -> list[Record]:
    """Give the records in their order, of a defense that deploys another victim the first: the other allowed FRRs say the same."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for one in records:
        key = (one.dataset, one.poisoned_on, one.tuning, one.attack, one.victim, one.seed, one.defense, one.protocol)
        if not stands_in(one) or key not in seen:
            kept.append(one)
            seen |= {key} if stands_in(one) else set()
    return kept


def foot(records: Iterable[Record]) -> str:
    """Give what a table's foot says of such cells, with a blank in front; empty where there are none."""
    return FOOT if any(stands_in(one) for one in records) else ""

"""The figures of a results folder: what they are drawn from, all of them, and those that are asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapbench import results
from rapbench.errors import SpecError, StoreError
from rapbench.registry import unknown
from rapbench.report import axes, axis_figures, cost_figures, curves, heatmap, suspicion, tables
from rapbench.report.figures import Picture
from rapbench.report.names import Names
from rapbench.results import Curve, Histogram, Record, usual_frr

FIGURES = ("heatmap", "choice", "curves", "suspicion", "length", "axes")


@dataclass(frozen=True)
class Folder:
    """A results folder read. `chosen`: the records that figures and words are about, of one protocol and one allowed FRR."""

    records: Sequence[Record]
    curves: Sequence[Curve]
    histograms: Sequence[Histogram]
    names: Names
    protocol: str
    frr: float
    chosen: Sequence[Record]


def read(folder: Path, protocol: str) -> Folder:
    """Give what a results folder holds; its figures are of this protocol, at the allowed FRR nearest to 1 %."""
    records = results.read(folder)
    names = Names(records)
    own = [one for one in tables.in_order(records, names.marks) if one.protocol == protocol]
    if not own:
        raise StoreError(f"no cell of the protocol {protocol} in {str(folder)!r}: give the other --protocol")
    frr = usual_frr(one.frr for one in own)
    known = {_key(one) for one in records}
    drawn = [one for one in results.read_all(folder, Curve) if _key(one) in known]
    binned = [one for one in results.read_all(folder, Histogram) if _key(one) in known]
    return Folder(records, drawn, binned, names, protocol, frr, [one for one in own if one.frr == frr])


def pictures(own: Folder) -> list[Picture]:
    """Give every figure, in the order of `FIGURES`; one without rows has nothing to draw."""
    return [
        heatmap.picture(own.chosen, own.names),
        cost_figures.choice(own.chosen, own.names),
        curves.picture(own.curves, own.protocol, own.names),
        suspicion.picture(own.histograms, own.protocol, own.frr, own.names),
        cost_figures.length(own.records, own.names),
        axis_figures.picture(axes.found(own.chosen, own.names.marks), own.frr, own.names.marks),
    ]


def asked(folder: Path, protocol: str, names: Sequence[str] | None = None) -> list[Picture]:
    """Give the figures of a results folder that are asked for by name, or all that there is something to draw for."""
    for name in names or ():
        if name not in FIGURES:
            raise SpecError(unknown("figure", name, FIGURES))
    made = [one for one in pictures(read(folder, protocol)) if one.name in (names or FIGURES)]
    empty = [one.name for one in made if not one.rows]
    if len(empty) == len(made) or (names and empty):
        raise StoreError(f"nothing to draw in {str(folder)!r} for {', '.join(empty)}, protocol {protocol}: no cell has the figures for it")
    return [one for one in made if one.rows]


def _key(one: Record | Curve | Histogram) -> tuple[object, ...]:
    """Give what a curve or histogram shares with its cells; of others the page could not tell the names."""
    return one.dataset, one.poisoned_on, one.tuning, one.attack, one.victim, one.seed, one.defense

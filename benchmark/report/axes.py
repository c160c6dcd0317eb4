"""Does it still work when ...: series of cells whose specs differ in one thing alone, from a results folder, as a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from rapbench.errors import RapbenchError, StoreError
from rapbench.registry import Registry, discover
from rapbench.report.cell_tables import auroc, percent
from rapbench.report.forms import csv_text
from rapbench.report.marks import Marks
from rapbench.report.names import Names, short_names
from rapbench.report.published.ours import bare, options
from rapbench.report.tables import in_order, markdown
from rapbench.results import Record, usual_frr

TITLES: Mapping[str, str] = {
    "poison_rate": "poison rate",
    "triggers": "trigger words",
    "epochs": "epochs of training",
    "heldout": "held-out texts",
    "victim": "victim",
}
"""The axes of a grid, and what they are called in figures."""
FOOT = (
    "Cells that differ in one thing alone. FAR and ASR in per cent, FAR at an allowed FRR of {frr} %, protocol `{protocol}`; ASR: of the "
    "undefended victim. Of one seed [95 % Wilson interval], of several the mean [lowest, highest]."
)
HEADS = ("axis", "value", "dataset", "attack", "defense", "AUROC", "FAR", "ASR", "seeds")


Place = tuple[float, str]
"""Where a record stands on an axis: a number, or a victim's spec."""


@dataclass(frozen=True)
class Point:
    """The figures at one value of an axis: means over `seeds`. `far_ends`: a Wilson interval of one seed, the range of several."""

    place: Place
    value: str
    """The place in words."""
    seeds: int
    auroc: float | None
    far: float | None
    far_ends: tuple[float, float] | None
    asr: float | None


@dataclass(frozen=True)
class Series:
    """One attack and one defense along one axis. `names`: its first record, its specs without the option of the axis."""

    axis: str
    names: Record
    points: Sequence[Point]


def chosen(records: Sequence[Record], protocol: str) -> list[Record]:
    """Give the records that series are made of: of one protocol, at the allowed FRR nearest to 1 %."""
    own = [one for one in records if one.protocol == protocol]
    frr = usual_frr(one.frr for one in own) if own else 0.0
    return [one for one in own if one.frr == frr]


def found(records: Sequence[Record], known: Marks | None = None) -> list[Series]:
    """Give the series of every axis with at least two values. `records`: of one protocol and one allowed FRR."""
    measured = [one for one in in_order(records, known) if one.status == "ok" and one.far is not None]
    plugins = _plugins()
    return [one for axis in TITLES for one in _along(axis, measured, plugins)]


def named(series: Sequence[Series], known: Marks | None = None) -> dict[str, Names]:
    """Give the names of each axis: of what the option of the axis does not tell apart."""
    return {axis: Names([one.names for one in series if one.axis == axis], known) for axis in TITLES}


def render(records: Sequence[Record], form: str, protocol: str, known: Marks | None = None) -> str:
    """Give the series as a table in the format asked for: github, latex, csv or json."""
    own = chosen(records, protocol)
    series = found(own, known)
    if not series:
        raise StoreError(
            f"nothing is varied alone here under the protocol {protocol}: run a grid with axes, say axes: {{poison_rate: [0.01, 0.1]}}"
        )
    names = named(series, known)
    marks = next(iter(names.values())).marks
    if form in ("csv", "json"):
        rows = [{**_specs(one, marks), **_figures(point)} for one in series for point in one.points]
        if form == "json":
            return json.dumps({"axes": rows}, indent=1, allow_nan=False)
        return csv_text(list(rows[0]), [list(row.values()) for row in rows])
    shown = [_row(one, point, names[one.axis]) for one in series for point in one.points]
    foot = FOOT.format(frr=f"{100 * own[0].frr:g}", protocol=protocol) + marks.foot(one.names.defense for one in series)
    if form == "latex":
        return f"% {' '.join(foot.split())}\n" + tabulate(shown, HEADS, "latex_booktabs", disable_numparse=True)
    return f"{markdown(HEADS, shown)}\n\n{' '.join(foot.split())}"


def _along(axis: str, records: Sequence[Record], plugins: Registry) -> list[Series]:
    groups: dict[tuple[object, ...], tuple[Record, dict[Place, list[Record]]]] = {}
    for one in records:
        if (place := _place(axis, one, plugins)) is not None:
            plain = _without(axis, one, plugins)
            key = (plain.dataset, plain.poisoned_on, plain.tuning, plain.attack, plain.victim, plain.defense)
            groups.setdefault(key, (plain, {}))[1].setdefault(place, []).append(one)
    varied = [(plain, by) for plain, by in groups.values() if len(by) > 1]
    victims = short_names(spec for _, by in varied for _, spec in by if spec)
    return [
        Series(axis, plain, [_point(place, _told(axis, place, victims), own) for place, own in sorted(by.items())]) for plain, by in varied
    ]


def _place(axis: str, one: Record, plugins: Registry) -> Place | None:
    """Give where a record stands on an axis; None where that is not known, or its attack has no such option."""
    if axis == "victim":
        return 0.0, one.victim
    if axis == "heldout":
        told: object = options(one.defense).get("heldout", math.inf)
    elif axis == "epochs":
        from rapbench.victim import Recipe

        told = options(one.victim).get("epochs", Recipe.epochs)
    else:
        option = _option(axis, one, plugins)
        told = options(one.attack).get(option, _default(one.attack, option, plugins)) if option else None
    try:
        number = float(str(told))
    except ValueError:  # none at all, or a stranger's plugin calls something else so
        return None
    return None if math.isnan(number) else (number, "")


def _option(axis: str, one: Record, plugins: Registry) -> str | None:
    """Give the attack's option that an axis is about."""
    attack = plugins.found.get(("attack", bare(one.attack)))
    if axis != "triggers":
        return axis
    return getattr(attack.cls, "triggers_option", None) if attack else None


def _default(spec: str, option: str, plugins: Registry) -> object:
    """Give an attack's default, which a canonical spec leaves out; None of one that is not installed."""
    attack = plugins.found.get(("attack", bare(spec)))
    return getattr(attack.cls, option, None) if attack else None


def _without(axis: str, one: Record, plugins: Registry) -> Record:
    """Give a record whose specs do not say where it stands on an axis; of other victims only how long they were trained is compared."""
    if axis == "heldout":
        return replace(one, defense=_dropped(one.defense, axis))
    if axis == "epochs":
        return replace(one, victim=_dropped(one.victim, axis), tuning=one.tuning and _dropped(one.tuning, axis))
    if axis == "victim":
        epochs = options(one.victim).get("epochs")
        return replace(one, victim=f"any:epochs={epochs}" if epochs else "any", tuning=None)
    return replace(one, attack=_dropped(one.attack, _option(axis, one, plugins) or axis))


def _dropped(spec: str, option: str) -> str:
    """Give a spec without one option; as it is where that has not got it."""
    own = options(spec)
    if option not in own:
        return spec
    kept = ",".join(f"{name}={_quoted(value)}" for name, value in own.items() if name != option)
    return f"{bare(spec)}:{kept}" if kept else bare(spec)


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if {",", '"'} & set(value) else value


def _point(place: Place, value: str, own: Sequence[Record]) -> Point:
    fars = [one.far for one in own if one.far is not None]
    ends = own[0].intervals.get("far") if len(own) == 1 else (min(fars), max(fars))
    return Point(place, value, len(own), _mean(one.auroc for one in own), _mean(fars), ends, _mean(one.asr for one in own))


def _told(axis: str, place: Place, victims: Mapping[str, str]) -> str:
    number, spec = place
    if spec:
        return victims[spec]
    if number == math.inf:
        return "all"
    return f"{100 * number:g} %" if axis == "poison_rate" else f"{number:g}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _plugins() -> Registry:
    try:
        return discover()
    except RapbenchError:
        return Registry({})


def _specs(one: Series, known: Marks) -> dict[str, object]:
    names = {name: getattr(one.names, name) for name in ("protocol", "frr", "dataset", "poisoned_on", "victim", "attack", "defense")}
    return {"axis": one.axis, **names, "mark": known.word(one.names.defense)}


def _figures(point: Point) -> dict[str, object]:
    low, high = point.far_ends or (None, None)
    figures = {"auroc": point.auroc, "far": point.far, "far_low": low, "far_high": high, "asr": point.asr}
    return {"value": point.value, "seeds": point.seeds, **figures}


def _row(one: Series, point: Point, names: Names) -> list[str]:
    ends = f" [{100 * point.far_ends[0]:.1f}, {100 * point.far_ends[1]:.1f}]" if point.far_ends else ""
    told = [TITLES[one.axis], point.value, names.home(one.names), names.attack(one.names), names.defense(one.names)]
    return [*told, auroc(point.auroc), percent(point.far) + ends, percent(point.asr), str(point.seeds)]

"""Our results under the paper's names: which records stand for a cell of the paper, and what they say.

Seeds are averaged. Everything else that differs (victim, caps of the data, options) is a variant and kept apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, TypeVar

from rapbench.errors import SpecError
from rapbench.registry import split_spec
from rapbench.report.published import ATTACKS, DATASETS, DEFENSES, PROBED, Quantity, Spot, printed
from rapbench.results import Record

REPLACE_RATIO, COPIES = 0.4, 20
"""STRIP's defaults: a canonical spec leaves defaults out. A test compares them with the plugin's."""
THE_PAPERS_PROBE = ("wikitext-103", 20_000, 200)
"""Corpus, texts, words per text (footnote 3 of the paper)."""
ABSENT = "not in these results"


class Unit(Protocol):
    """What records and probes have in common: whose victim it is, and what became of it."""

    @property
    def dataset(self) -> str: ...
    @property
    def setting(self) -> str: ...
    @property
    def poisoned_on(self) -> str | None: ...
    @property
    def tuning(self) -> str | None: ...
    @property
    def attack(self) -> str: ...
    @property
    def victim(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


class Probe(Unit, Protocol):
    """The ASR of a victim on made texts (Table 1). `source`: dataset, general or random; `asr`: a fraction.

    `general`: the corpus of the general sentences; `count`: texts asked for; `length`: words per made text.
    """

    @property
    def source(self) -> str: ...
    @property
    def general(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def asr(self) -> float | None: ...
    @property
    def n(self) -> int | None: ...
    @property
    def trigger(self) -> str | None: ...


U = TypeVar("U", bound=Unit)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a figure of ours was made with, as canonical specs: everything but the seed."""

    victim: str
    dataset: str
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str
    defense: str | None = None
    probe: str = ""
    """How its probes differ from the paper's, if they do."""

    @property
    def base(self) -> Variant:
        """The same without the defense: one poisoned victim."""
        return dataclasses.replace(self, defense=None)

    @property
    def size(self) -> tuple[int, str]:
        """What variants are ordered by: the shortest first, for it has the fewest options."""
        return len(str(self)), str(self)

    @property
    def specials(self) -> list[str]:
        """What is not at its default: specs with options, without the victim's, and the probe; empty where all are plain."""
        specs = (self.dataset, self.poisoned_on, self.attack, self.defense)
        return [*(spec for spec in specs if spec and ":" in spec), *([self.probe] if self.probe else [])]

    def __str__(self) -> str:
        home = f"{self.poisoned_on}->{self.dataset} tuned by {self.tuning}" if self.poisoned_on else self.dataset
        return ", ".join(part for part in (self.victim, home, self.attack, self.defense, self.probe) if part)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of ours, in the paper's unit: the mean over the seeds that have one, or None and the reason."""

    variant: Variant | None = None
    values: tuple[float, ...] = ()
    """One per seed."""
    seeds: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    """Texts behind each value, where the record says."""
    note: str | None = None

    @property
    def value(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None


@dataclass(frozen=True)
class Ratio:
    """STRIP's replace ratio on one victim, a fraction. `tried`: the ratios it was chosen from, or those of the seeds."""

    values: tuple[float, ...]
    how: Literal["sweep", "heldout", "option"]
    tried: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def note(self) -> str:
        ratios = ", ".join(f"{own:g}" for own in self.tried)
        if self.how == "sweep":
            return f"the k with the lowest FAR at 1 % among {ratios}: an oracle's choice, which looks at triggered texts"
        if self.how == "heldout":
            return "k chosen on held-out texts" + (f", by seed {ratios}" if len(self.tried) > 1 else "")
        return "the k that was used: an option, not chosen among several"


@dataclass(frozen=True)
class Ours:
    """Records and probes, to be asked for cells of the paper. Other protocols than `protocol` are left aside."""

    records: Sequence[Record]
    probes: Sequence[Probe] = ()
    protocol: str = "paper"
    whose: str = field(default="", kw_only=True)
    """Words after "not in these results", where this is a part of them."""

    def figures(self, spot: Spot) -> list[Figure]:
        """Give our figures for a number of the paper, the shortest variant first; where there is none, one without value."""
        if spot.quantity == "probe ASR":
            found = [_probed(base, own) for base, own in _grouped(self._probes_at(spot), probe_of).items()]
        elif spot.quantity == "best k":
            found = [_ratio(base, own) for base, own in _groups(self._fitting(spot)).items()]
        else:
            found = [_measured(variant, own, spot.quantity) for variant, own in _groups(self._fitting(spot), spot.defense).items()]
        ordered = sorted(found, key=lambda one: one.variant.size if one.variant else (0, ""))
        return ordered or [Figure(note=self._why_none(spot))]

    def base(self, spot: Spot) -> Variant | None:
        """Give the poisoned victim to show for a data set and attack: of those that have figures the shortest spec."""
        groups: Mapping[Variant, Sequence[Unit]] = _groups(self._at(spot))
        if spot.quantity == "probe ASR":
            probed = _grouped([one for one in self.probes if _probe_place(one) == _where(spot)], probe_of)
            groups = probed
        return min(groups, key=lambda base: (all(one.status != "ok" for one in groups[base]), base.size), default=None)

    def strangers(self) -> list[str]:
        """Give the combinations of data set and attack that no table of the paper has, as `data set, attack` in our names."""
        known = {(spot.target, spot.poisoned, spot.attack) for spot in (one.spot for one in printed())}
        return sorted({_told(one) for one in self.records if one.protocol == self.protocol and _place(one) not in known})

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str], list[Record]]:
        places: dict[tuple[str, str, str], list[Record]] = {}
        for one in self.records:
            if place := _place(one):
                places.setdefault(place, []).append(one)
        return places

    def _at(self, spot: Spot, protocol: str | None = None) -> list[Record]:
        return [one for one in self._by_place.get(_where(spot), ()) if one.protocol == (protocol or self.protocol)]

    def _fitting(self, spot: Spot, protocol: str | None = None) -> list[Record]:
        return [
            one
            for one in self._at(spot, protocol)
            if (spot.defense is None or DEFENSES.get(bare(one.defense)) == spot.defense)
            and (spot.frr is None or abs(one.frr - spot.frr) < 1e-9)
        ]

    def _probes_at(self, spot: Spot) -> list[Probe]:
        return [one for one in self.probes if _probe_place(one) == _where(spot) and one.source == spot.source]

    def _why_none(self, spot: Spot) -> str:
        if spot.quantity == "probe ASR":
            there = any(DATASETS.get(bare(one.dataset), bare(one.dataset)) == spot.target for one in self.probes)
            return "never run" if there else ABSENT + self.whose
        others = sorted({one.protocol for one in self.records} - {self.protocol})
        if told := [protocol for protocol in others if self._fitting(spot, protocol)]:
            return f"run under the protocol {told[0]} only"
        there = any(place[:2] == _where(spot)[:2] for place in self._by_place)
        return "never run" if there else ABSENT + self.whose


def bare(spec: str) -> str:
    """Give the name of a spec without its options."""
    return spec.partition(":")[0]


def options(spec: str) -> dict[str, str]:
    """Give the options of a spec as text; none where it is no spec."""
    try:
        return {name: str(value) for name, value in split_spec(spec)[1].items()}
    except SpecError:
        return {}


def probe_of(one: Probe) -> Variant:
    """Give what a probe was made with."""
    told = (one.general, one.count, one.length)
    same = told == THE_PAPERS_PROBE
    words = "" if same else f"{one.count} texts of {one.length} words, general sentences of {one.general}"
    return dataclasses.replace(variant_of(one), probe=words)


def variant_of(one: Unit, defense: str | None = None) -> Variant:
    """Give what a record was made with."""
    return Variant(
        victim=one.victim, dataset=one.dataset, poisoned_on=one.poisoned_on, tuning=one.tuning, attack=one.attack, defense=defense
    )


def best_ratio(records: Sequence[Record]) -> Ratio | None:
    """Give STRIP's replace ratio of one victim: the best of a sweep, else the one chosen on held-out texts, else the one used."""
    own = [(one, k) for one in records if one.status == "ok" and (k := _replace_ratio(one)) is not None]
    chosen = {one.seed: k for one, k in own if one.notes.get("replace_ratio_from") == "heldout"}
    fixed = [(one, k) for one, k in own if one.notes.get("replace_ratio_from") != "heldout"]
    fars: dict[float, list[float]] = {}
    for one, k in fixed:
        if one.far is not None and abs(one.frr - 0.01) < 1e-9:
            fars.setdefault(k, []).append(one.far)
    if len(fars) > 1:
        best = min(fars, key=lambda k: (sum(fars[k]) / len(fars[k]), k))
        return Ratio((best,), "sweep", tuple(sorted(fars)), tuple(sorted({one.seed for one, _ in fixed})))
    if chosen:
        return Ratio(tuple(chosen.values()), "heldout", tuple(sorted(set(chosen.values()))), tuple(sorted(chosen)))
    if not fixed:
        return None
    used = min(fixed, key=lambda pair: (len(pair[0].defense), pair[0].defense))[1]
    return Ratio((used,), "option", (used,), tuple(sorted({one.seed for one, _ in fixed})))


def _where(spot: Spot) -> tuple[str, str, str]:
    return spot.target, spot.poisoned, spot.attack


def _place(one: Unit, attacks: dict[str, str] = ATTACKS) -> tuple[str, str, str] | None:
    """Give target, poisoned and attack in the paper's names; None where the paper has no such thing."""
    target, attack = DATASETS.get(bare(one.dataset)), attacks.get(bare(one.attack))
    poisoned = DATASETS.get(bare(one.poisoned_on)) if one.poisoned_on else target
    if not target or not poisoned or not attack or bool(one.poisoned_on) != (target != poisoned):
        return None
    return target, poisoned, attack


def _probe_place(one: Unit) -> tuple[str, str, str] | None:
    """As `_place`, but a data set that is not in the paper keeps our name."""
    name = DATASETS.get(bare(one.dataset), bare(one.dataset))
    attack = PROBED.get(bare(one.attack))
    return (name, name, attack) if attack and not one.poisoned_on else None


def _told(one: Unit) -> str:
    home = f"{bare(one.poisoned_on)}->{bare(one.dataset)}" if one.poisoned_on else bare(one.dataset)
    return f"{home}, {bare(one.attack)}"


def _groups(records: Iterable[Record], defense: str | None = None) -> dict[Variant, list[Record]]:
    """Give the records by what they were made with; the defense's spec counts where one is asked for."""
    return _grouped(records, lambda one: variant_of(one, one.defense if defense else None))


def _grouped(units: Iterable[U], key: Callable[[U], Variant]) -> dict[Variant, list[U]]:
    groups: dict[Variant, list[U]] = {}
    for one in units:
        groups.setdefault(key(one), []).append(one)
    return groups


def _measured(variant: Variant, records: Sequence[Record], quantity: Quantity) -> Figure:
    return _figure(variant, records, *FIELDS[quantity])


def _probed(base: Variant, probes: Sequence[Probe]) -> Figure:
    return _figure(base, probes, lambda one: one.asr, lambda one: one.n, "there was no text to ask about")


def _figure(
    variant: Variant, units: Sequence[U], rate: Callable[[U], float | None], count: Callable[[U], int | None], empty: str
) -> Figure:
    """Give the mean over the seeds, and of the seeds without a value the reason. Of one seed's units the first value counts."""
    told: dict[int, tuple[float, int | None]] = {}
    for one in units:
        value = rate(one) if one.status == "ok" else None
        if value is not None:
            told.setdefault(one.seed, (100 * value, count(one)))
    lacking: dict[str, set[int]] = {}
    for one in units:
        if one.seed not in told:
            lacking.setdefault(_reason(one, empty), set()).add(one.seed)
    return Figure(
        variant=variant,
        values=tuple(value for value, _ in told.values()),
        seeds=tuple(sorted(told)),
        counts=tuple(n for _, n in told.values() if n is not None),
        note="; ".join(_lack(reason, seeds, some=bool(told)) for reason, seeds in lacking.items()) or None,
    )


def _reason(one: Unit, empty: str) -> str:
    if one.status == "ok":
        return empty
    return f"{one.status}: {' '.join(one.reason.split())}" if one.reason else one.status


def _lack(reason: str, seeds: set[int], *, some: bool) -> str:
    return f"without seed {', '.join(map(str, sorted(seeds)))}, {reason}" if some else reason


def _ratio(base: Variant, records: Sequence[Record]) -> Figure:
    ratio = best_ratio(records)
    if ratio is None:
        reasons = dict.fromkeys(_reason(one, "the records do not say which k") for one in records)
        return Figure(variant=base, note="; ".join(reasons))
    return Figure(variant=base, values=ratio.values, seeds=ratio.seeds, note=ratio.note)


def _replace_ratio(one: Record) -> float | None:
    told = one.notes.get("replace_ratio", options(one.defense).get("replace_ratio", REPLACE_RATIO))
    try:
        return float(told)
    except (TypeError, ValueError):
        return None


FIELDS: dict[Quantity, tuple[Callable[[Record], float | None], Callable[[Record], int | None], str]] = {
    "FRR": (lambda one: one.frr_test, lambda one: one.n_clean, "no clean test text passes the gate"),
    "FAR": (lambda one: one.far, lambda one: one.n_poisoned, "no triggered text passes the gate"),
    "ASR": (lambda one: one.asr_anywhere, lambda one: one.n_triggered, "no text was triggered"),
    "clean metric": (lambda one: one.clean_metric, lambda one: one.n_test, "no test text"),
}
"""Quantity -> the record's rate (a fraction), its count, and why an `ok` record may have none."""

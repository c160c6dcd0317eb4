"""Our figures beside those of claim cards: the value, its 95 % interval, the files behind it, and what became of the claim.

A claim is judged on the victim whose specs differ least from the card's. Where victim, data or options differ at all, ours
is shown with what it would say, and the claim is not comparable. Figures are means over seeds; the interval reaches from
the lowest to the highest end of the seeds' own, so it is no narrower than any of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from rapbench import results
from rapbench.checks import CheckRecord
from rapbench.claims.card import Card, Reported
from rapbench.claims.taken import Got, Interval, kind, taken
from rapbench.errors import StoreError
from rapbench.probe import ProbeBlock, ProbeRecord
from rapbench.report import claims as shapes
from rapbench.report.compare import SAME_DATA
from rapbench.report.published.ours import bare, best_ratio, options
from rapbench.results import Histogram, Named, Record

State = Literal["held", "not held", "not comparable", "not computed"]
NONE = "no such cell in these results"


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One figure of ours, in the unit of the reported one."""

    reported: Reported
    state: State
    value: float | None = None
    """The mean over seeds."""
    interval: Interval | None = None
    """95 %."""
    n: int | None = None
    """Texts behind it, of several seeds the smallest number."""
    seeds: tuple[int, ...] = ()
    bears_out: bool | None = None
    """Whether it holds the claim, comparable or not."""
    settled: bool | None = None
    """Whether every value in the interval would say the same."""
    differs: tuple[str, ...] = ()
    """What is not as on the card."""
    files: tuple[str, ...] = ()
    """The results that it comes from."""
    reason: str = ""
    """Why there is none, or what to know about it."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A card with ours."""

    card: Card
    ours: tuple[Ours, ...]

    @property
    def state(self) -> State:
        """What became of the claim: held where nothing that was computed, and is in no doubt, speaks against it."""
        told = [one for one in self.ours if one.value is not None and not one.reported.doubt]
        if not told:
            return "not computed"
        if any(one.state == "not comparable" for one in told):
            return "not comparable"
        return "held" if all(one.bears_out for one in told) else "not held"

    @property
    def reason(self) -> str:
        """How much that was, and what differs or is missing."""
        told = [one for one in self.ours if one.value is not None and not one.reported.doubt]
        if not told:
            return self.card.cannot or "; ".join(dict.fromkeys(one.reason for one in self.ours if one.reason))
        would = "would hold" if self.state == "not comparable" else "hold"
        counted = f"{sum(bool(one.bears_out) for one in told)} of {len(told)} figures {would}"
        missing = f"{len(self.ours) - len(told)} not counted" if len(told) < len(self.ours) else ""
        differs = dict.fromkeys(difference for one in told for difference in one.differs)
        remarks = dict.fromkeys(one.reason for one in told if one.reason)
        return "; ".join(part for part in (counted, missing, *differs, *remarks) if part)


@dataclass(frozen=True)
class Filed:
    """A result with the file that it was read from."""

    file: str
    one: Named


@dataclass(frozen=True)
class Held:
    """What results folders hold, in the order in which they were given."""

    filed: Sequence[Filed] = ()
    by_kind: Mapping[type[Named], Sequence[Filed]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kinds: dict[type[Named], list[Filed]] = {}
        for one in self.filed:
            kinds.setdefault(type(one.one), []).append(one)
        object.__setattr__(self, "by_kind", kinds)

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Held:
        """Read them; a StoreError where one holds no results."""
        found: list[Filed] = []
        for folder in folders:
            own = [Filed(str(folder / one.FOLDER / one.file_name), one) for sort in KINDS for one in results.read_all(folder, sort)]
            if not own:
                raise StoreError(f"no results in {str(folder)!r}: give the folder of `rapbench run --out`")
            found += own
        return cls(found)

    @cached_property
    def verdicts(self) -> Sequence[shapes.Verdict]:
        """The shape claims of `rapbench compare`, in order."""
        records = [one for filed in self.by_kind.get(Record, ()) if isinstance(one := filed.one, Record)]
        probes = [one for filed in self.by_kind.get(ProbeRecord, ()) if isinstance(one := filed.one, ProbeRecord)]
        return shapes.claims(records, probes)


KINDS: tuple[type[Named], ...] = (Record, Histogram, ProbeRecord, CheckRecord)


def beside(card: Card, held: Held) -> Beside:
    """Give the card with ours."""
    return Beside(card=card, ours=tuple(_ours(card, one, held) for one in card.figures))


def _ours(card: Card, reported: Reported, held: Held) -> Ours:
    if reported.quantity == "shape":
        return _shape(reported, held)
    if card.cannot or not card.command:
        return Ours(reported=reported, state="not computed", reason=card.cannot or card.needs)
    groups: dict[tuple[str, ...], list[Filed]] = {}
    for filed in held.by_kind.get(kind(reported.quantity), ()):
        if _fits(card, reported, filed.one):
            groups.setdefault(_differences(card, reported, filed.one), []).append(filed)
    if not groups:
        return Ours(reported=reported, state="not computed", reason=NONE)
    made = [_figure(reported, differs, own) for differs, own in groups.items()]
    return min(made, key=lambda one: (one.value is None, len(one.differs), len(str(one.differs)), one.differs))


def _shape(reported: Reported, held: Held) -> Ours:
    verdict = held.verdicts[(reported.shape or 1) - 1]
    if verdict.state == "not testable":
        return Ours(reported=reported, state="not computed", reason=verdict.reason)
    true = verdict.state == "held"
    return Ours(reported=reported, state=verdict.state, value=float(true), bears_out=true, reason=verdict.reason)


def _fits(card: Card, reported: Reported, one: Named) -> bool:
    """Say whether a result is of a cell of the claim, by the names of its plugins; options may differ."""
    block = card.block
    home = bare(str(block.poisoned_on[0])) if block.poisoned_on else None
    told = (bare(one.dataset), bare(one.poisoned_on) if one.poisoned_on else None, bare(one.attack))
    attack = reported.attack or bare(str(block.attacks[0]))
    if told != (bare(str(block.datasets[0])), home, attack):
        return False
    if isinstance(one, ProbeRecord):
        return one.source == reported.source
    if isinstance(one, Record | Histogram):
        frr_fits = reported.frr is None or isinstance(one, Histogram) or abs(one.frr - reported.frr) < 1e-9
        anyone = reported.quantity in ("clean_metric", "asr_anywhere")
        return one.protocol == card.protocol and frr_fits and (anyone or bare(one.defense) in _defenses(card))
    return True


def _defenses(card: Card) -> list[str]:
    return list(dict.fromkeys(bare(str(spec)) for spec in getattr(card.block, "defenses", ())))


def _differences(card: Card, reported: Reported, one: Named) -> tuple[str, ...]:
    """Say in which specs a result is not as on the card; options of data that change no text do not count."""
    block = card.block
    attack = next((str(spec) for spec in block.attacks if bare(str(spec)) == bare(one.attack)), "")
    found = []
    if one.victim != block.victim:
        found.append(f"victim {one.victim} for {block.victim}")
    for dataset in (one.dataset, one.poisoned_on or ""):
        if set(options(dataset)) - set(SAME_DATA):
            found.append(f"data {dataset}")
    if one.tuning not in (None, block.victim, one.victim):
        found.append(f"fine-tuning {one.tuning}")
    if one.attack != attack:
        found.append(f"attack {one.attack} for {attack}")
    if isinstance(one, Record | Histogram) and reported.quantity not in ("clean_metric", "asr_anywhere", "best k"):
        specs = [str(spec) for spec in getattr(block, "defenses", ())]
        if one.defense not in specs:
            found.append(f"defense {one.defense} for {', '.join(specs)}")
    if isinstance(one, ProbeRecord) and isinstance(block, ProbeBlock):
        told, asked = (one.general, one.count, one.length), (block.general, block.count, block.length)
        if told != asked:
            found.append(f"{one.count} texts of {one.length} words, general sentences of {one.general}")
    return tuple(found)


def _figure(reported: Reported, differs: tuple[str, ...], filed: Sequence[Filed]) -> Ours:
    """Give the figure of results that differ from the card in the same way: of each seed the first that has one."""
    if reported.quantity == "best k":
        return _best_k(reported, differs, filed)
    got: dict[int, tuple[Got, str]] = {}
    lacking: dict[str, None] = {}
    for own in filed:
        value = taken(reported, own.one) if getattr(own.one, "status", "ok") == "ok" else None
        if value is not None:
            got.setdefault(own.one.seed, (value, own.file))
        else:
            lacking[_reason(own.one)] = None
    if not got:
        return Ours(reported=reported, state="not computed", differs=differs, reason="; ".join(lacking))
    return _judged(
        Ours(
            reported=reported,
            state="not computed",
            value=statistics.fmean(value for (value, _, _), _ in got.values()),
            interval=_hull([interval for (_, interval, _), _ in got.values()]),
            n=min((n for (_, _, n), _ in got.values() if n is not None), default=None),
            seeds=tuple(sorted(got)),
            differs=differs,
            files=tuple(file for _, file in got.values()),
        )
    )


def _judged(ours: Ours) -> Ours:
    """Give the figure with what it says of the claim."""
    assert ours.value is not None
    true = ours.reported.bears_out(ours.value)
    settled = None if ours.interval is None else _settled(ours.reported.band, ours.interval, true=true)
    state: State = "not comparable" if ours.differs else "held" if true else "not held"
    return replace(ours, state=state, bears_out=true, settled=settled)


def _settled(band: Interval, interval: Interval, *, true: bool) -> bool:
    """Say whether the whole interval is inside the band that holds the claim, or outside where the value is."""
    if true:
        return band[0] <= interval[0] and interval[1] <= band[1]
    return interval[1] < band[0] or band[1] < interval[0]


def _hull(intervals: Sequence[Interval | None]) -> Interval | None:
    told = [one for one in intervals if one is not None]
    return (min(low for low, _ in told), max(high for _, high in told)) if len(told) == len(intervals) else None


def _best_k(reported: Reported, differs: tuple[str, ...], filed: Sequence[Filed]) -> Ours:
    """Give STRIP's best replace ratio, where it was chosen among several."""
    ratio = best_ratio([one for own in filed if isinstance(one := own.one, Record)])
    if ratio is None or ratio.how == "option":
        return Ours(reported=reported, state="not computed", differs=differs, reason="STRIP was run with one k, so none is the best")
    return _judged(
        Ours(
            reported=reported,
            state="not computed",
            value=statistics.fmean(ratio.values),
            seeds=ratio.seeds,
            differs=differs,
            files=tuple(own.file for own in filed),
            reason=ratio.note,
        )
    )


def _reason(one: Named) -> str:
    status, reason = getattr(one, "status", "ok"), getattr(one, "reason", None)
    if status == "ok":
        return "nothing could be counted"
    return f"{status}: {' '.join(reason.split())}" if reason else status

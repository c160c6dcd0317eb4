"""A results folder in words: which defense stops what and at what price, counted from the cells; plain where nothing holds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapbench.report.heatmap import WORKS
from rapbench.report.kinds import stands_in
from rapbench.report.names import Names
from rapbench.results import Record

STOPPED, MOSTLY, PARTLY = 0.05, 0.2, 0.5
"""Mean FARs up to which an attack counts as stopped, mostly stopped, partly stopped."""
MARKED = {
    "": "",
    "floor": " It is a floor: it knows nothing of triggers.",
    "ceiling": " It is a ceiling: it is told the words of the trigger, as no defender is.",
}
"""What is said of a defense by its mark."""
WORDS = ((STOPPED, "stopped"), (MOSTLY, "mostly stopped"), (PARTLY, "partly stopped"))


@dataclass(frozen=True)
class Line:
    """One statement: `head` names what it is about."""

    head: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """One defense against one attack over data sets and seeds; FARs as fractions. Without `word` nothing was measured."""

    word: str = ""
    mean: float = 0.0
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    interval: tuple[float, float] | None = None
    """Of a single cell."""


@dataclass(frozen=True)
class Judged:
    """One defense: its verdicts in the order of the attacks, mean FRR on clean test texts, times an undefended prediction."""

    defense: str
    verdicts: Sequence[Verdict]
    frr: float | None
    ratio: float | None


def attacked(records: Iterable[Record]) -> list[Record]:
    """Give the cells with a FAR whose attack works: where it does not there is nothing to stop."""
    return [one for one in records if one.far is not None and (one.asr or 0.0) >= WORKS]


def judged(records: Sequence[Record], names: Names) -> list[Judged]:
    """Give what each defense does. `records`: of one protocol and one allowed FRR."""
    faced = attacked(records)
    attacks = [attack for attack in names.attacks if attack in {names.attack(one) for one in faced}]
    found = []
    for defense in names.defenses:
        own = [one for one in faced if names.defense(one) == defense]
        if own:
            verdicts = [_verdict([one for one in own if names.attack(one) == attack]) for attack in attacks]
            found.append(Judged(defense, verdicts, _mean(one.frr_test for one in own), _mean(_ratio(one) for one in own)))
    return found


def lines(records: Sequence[Record], names: Names) -> list[Line]:
    """Give the statements, the most important first. `records`: of one protocol and one allowed FRR."""
    faced = attacked(records)
    rivals = [one for one in faced if names.contends(names.defense(one))]
    told = [_unstopped(rivals, names) if rivals else _nothing(faced)]
    told += [
        _defense(defense, own, names) for defense in names.defenses if (own := [one for one in faced if names.defense(one) == defense])
    ]
    told += [*_picks(rivals, names), *_attacks(records, names), *_warned(records)]
    return told


def _verdict(own: Sequence[Record]) -> Verdict:
    if not own:
        return Verdict()
    fars = [one.far or 0.0 for one in own]
    mean = statistics.fmean(fars)
    word = next(
        (word for most, word in ((STOPPED, "stopped"), (MOSTLY, "mostly stopped"), (PARTLY, "partly stopped")) if mean <= most),
        "let through",
    )
    return Verdict(word, mean, min(fars), max(fars), len(own), own[0].intervals.get("far") if len(own) == 1 else None)


def _nothing(faced: Sequence[Record]) -> Line:
    if faced:
        return Line("No contender here", "Only floors and ceilings, which others are measured by, have figures.")
    return Line("Nothing to judge", "No cell with an attack that works has figures yet.")


def _unstopped(faced: Sequence[Record], names: Names) -> Line:
    """Say of how many pairs of attack and data set some defense stops, in the mean over seeds, and which no defense does."""
    fars: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in faced:
        fars.setdefault((names.attack(one), names.home(one)), {}).setdefault(names.defense(one), []).append(one.far or 0.0)
    best = {place: min((statistics.fmean(own), defense) for defense, own in by.items()) for place, by in sorted(fars.items())}
    open_places = {place: own for place, own in best.items() if own[0] > STOPPED}
    stopped = f"{len(best) - len(open_places)} of {_count(len(best), 'pair')}"
    count = f"Some defense stops (FAR at most {100 * STOPPED:g} %) {stopped} of attack and data set"
    if not open_places:
        return Line("Every attack is stopped by some defense", f"{count}.")
    if len(open_places) == len(best):
        (far, defense), (attack, home) = min((own, place) for place, own in best.items())
        return Line("No defense stops any attack here", f"The lowest FAR is {_percent(far)}: {defense} against {attack} on {home}.")
    whole = Counter(attack for attack, _ in best)
    missed = Counter(attack for attack, _ in open_places)
    where = [attack if whole[attack] == 1 else f"{attack} on {n} of {whole[attack]} data sets" for attack, n in sorted(missed.items())]
    return Line("Not every attack is stopped", f"{count}. None stops {_listed(where)}.")


def _defense(defense: str, own: Sequence[Record], names: Names) -> Line:
    stopped, through = [], []
    for attack in names.attacks:
        faced = [one for one in own if names.attack(one) == attack]
        good = [one for one in faced if (one.far or 0.0) <= STOPPED]
        if good:
            stopped.append(attack + (f" in {len(good)} of {len(faced)} cells" if len(faced) > 1 else ""))
        bad = [one.far or 0.0 for one in faced if (one.far or 0.0) > STOPPED]
        if bad:
            through.append(f"{_range(bad)} of {attack}")
    parts = [f"stops {_listed(stopped)}" if stopped else "stops none of the attacks"]
    parts += [f"lets {_listed(through)} through"] if through else []
    return Line(defense, f"It {'; '.join(parts)}. {_price(own)}{MARKED[names.marks.of(own[0].defense)]}")


def _price(own: Sequence[Record]) -> str:
    lost = [one.frr_test for one in own if one.frr_test is not None]
    if all(stands_in(one) for one in own):
        return f"The victim that it puts in place of the received one loses {_range(lost) if lost else 'an unknown share'} of clean texts."
    over = [one for one in own if (ends := one.intervals.get("frr_test")) and ends[0] > one.frr]
    ratio = _mean(_ratio(one) for one in own)
    text = f"It rejects {_range(lost) if lost else 'an unknown share'} of clean texts where {100 * own[0].frr:g} % were allowed"
    text += f", more than chance explains in {len(over)} of {_count(len(own), 'cell')}" if over else ""
    return text + (f", and takes {ratio:.1f} times as long as an undefended prediction." if ratio else ".")


def _picks(faced: Sequence[Record], names: Names) -> list[Line]:
    """Say which defenses no other beats in both FAR and time, over the cells that all of them have."""
    places: dict[str, dict[tuple[object, ...], Record]] = {}
    for one in faced:
        if _ratio(one):
            places.setdefault(names.defense(one), {})[names.home(one), names.attack(one), one.seed] = one
    shared = set.intersection(*(set(own) for own in places.values())) if len(places) > 1 else set()
    if not shared:
        return []
    means = {}
    for defense, own in places.items():
        compared = [own[place] for place in shared]
        means[defense] = (statistics.fmean(one.far or 0.0 for one in compared), statistics.fmean(_ratio(one) or 0.0 for one in compared))
    best = [
        name for name, (far, cost) in means.items() if not any(f <= far and c <= cost and (f, c) != (far, cost) for f, c in means.values())
    ]
    told = [
        f"{name} (mean FAR {_percent(means[name][0])}, {means[name][1]:.1f} times)" for name in sorted(best, key=lambda name: means[name])
    ]
    beaten = sorted(set(means) - set(best))
    faced_by_all = f"Over the {_count(len(shared), 'combination')} that all of them faced"
    text = f"{faced_by_all}, no other is both cheaper and lets less through than {_listed(told)}"
    text += f"; {_listed(beaten)} {'is' if len(beaten) == 1 else 'are'} beaten on both." if beaten else "."
    return [Line("Which to pick", text + (" None of them stops these attacks as a whole." if min(means.values())[0] > STOPPED else ""))]


def _attacks(records: Sequence[Record], names: Names) -> list[Line]:
    poisoned = {(names.attack(one), names.home(one), one.seed): one for one in records if one.far is not None and one.asr is not None}
    if not poisoned:
        return []
    works = [one.asr for one in poisoned.values() if one.asr is not None and one.asr >= WORKS]
    weak = [f"{attack} on {home} ({_percent(one.asr)})" for (attack, home, _), one in sorted(poisoned.items()) if (one.asr or 0.0) < WORKS]
    clean = [one.clean_metric for one in poisoned.values() if one.clean_metric is not None]
    text = f"{len(works)} of {_count(len(poisoned), 'victim')} obey their trigger" + (f" (ASR {_range(works)})" if works else "")
    text += f"; on clean texts they score {_range(clean)}" if clean else ""
    return [Line("The attacks", text + (f". Hardly working, and left out above: {_listed(weak)}." if weak else "."))]


def _warned(records: Sequence[Record]) -> list[Line]:
    warned = [one for one in records if one.warnings]
    done = [one for one in records if one.status == "ok"]
    if not warned:
        return []
    idle = sum(one.threshold is None for one in warned)
    text = f"{len(warned)} of {_count(len(done), 'cell')} have too few held-out texts, or no fitting level, for a firm threshold"
    return [Line("Caution", text + (f"; in {idle} of these nothing is rejected at all." if idle else "."))]


def _ratio(one: Record) -> float | None:
    return one.cost.ratio if one.cost else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f} %"


def _range(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts) if len(texts) < 2 else f"{', '.join(texts[:-1])} and {texts[-1]}"

"""What the paper claims by the shape of its numbers, checked on ours: nine claims, each held, not held or not testable.

Figures are means over seeds of one poisoned victim (its model, data set, caps and options). Where a defense was run with
several sets of options, its shortest spec that has a FAR speaks for it, as in the tables. Only the paper's attacks and
defenses count; data sets count all where the claim does not name some. A claim is held where nothing that could be
tested speaks against it, so the reason says how much that was.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from rapbench.cost import Cost, published
from rapbench.report.published import ATTACKS, DATASETS, DEFENSES, SENTIMENT, SOURCES, TOXIC
from rapbench.report.published.ours import COPIES, Probe, Variant, bare, best_ratio, options, probe_of, variant_of
from rapbench.results import Record

State = Literal["held", "not held", "not testable"]

CLAIMS = {
    1: "RAP has the lowest FAR of the three defenses at an allowed FRR of at most 1 %",
    2: "ONION fails on sentences: its FAR on BadNet-SL is above 90 % at an allowed FRR of at most 1 %",
    3: "ONION is much worse in toxic detection than in sentiment analysis on word triggers, at 1 %",
    4: "STRIP's best k for sentences is 0.05, but higher on Jigsaw",
    5: "RAP's FRR on test texts is within 0.5 to 2 times the allowed one",
    6: "EP leaves the clean metric as it is",
    7: "A backdoored model's ASR is at least 99.5 % on made texts, too: data set >= general sentences >= random words",
    8: "RAP costs 2 predictions per text, STRIP one and its copies, ONION one and a language model's per word",
    9: "After fine-tuning on another data set RIPPLES passes RAP more often than BadNet-SL does (from Amazon, from Jigsaw), at 1 %",
}
LEVELS_SMALL, LEVELS_LARGE = (0.005, 0.01), (0.03, 0.05)
WORST_CLEAN_DROP = 0.5
"""Points. The paper's largest gap is 0.04; half a point is what test sets of some thousand texts can tell apart."""
LEAST_EXPECTED = 5
EXAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a claim. `reason`: the counts, and what speaks against it or is missing."""

    number: int
    claim: str
    state: State
    reason: str


def claims(records: Sequence[Record], probes: Sequence[Probe], *, protocol: str = "paper") -> list[Verdict]:
    """Give the verdict on each claim, in order."""
    cases = _Cases.of([one for one in records if one.protocol == protocol])
    told = [probe for probe in probes if probe.status == "ok" and probe.asr is not None]
    found = [
        _rap_lowest(cases),
        _onion_fails_on_sentences(cases),
        _onion_worse_on_toxic(cases),
        _strip_small_k(cases),
        _rap_frr_near(cases),
        _ep_harmless(cases),
        _probes_pass(told),
        _costs(cases),
        _ripples_pass(cases),
    ]
    return [_verdict(number, *one) for number, one in enumerate(found, 1)]


@dataclass(frozen=True)
class Check:
    """One thing that a claim says: `told` is what was found, shown where it does not hold."""

    held: bool
    told: str


Found = tuple[Sequence[Check], str, str, str]
"""The checks, what each is ("... in 3 of 4"), what is needed for one, and a remark or nothing."""


@dataclass(frozen=True)
class _Cases:
    """The `ok` records by poisoned victim, then by the defense that speaks for its name; `names` to show."""

    by: Mapping[Variant, Mapping[str, Sequence[Record]]]
    whole: Mapping[Variant, Sequence[Record]]
    names: Mapping[Variant, str]

    @classmethod
    def of(cls, records: Sequence[Record]) -> _Cases:
        whole: dict[Variant, list[Record]] = {}
        for one in records:
            if one.status == "ok" and bare(one.attack) in ATTACKS:
                whole.setdefault(variant_of(one), []).append(one)
        return cls({base: _speakers(own) for base, own in whole.items()}, whole, _names(list(whole)))

    def far(self, base: Variant, defense: str, frr: float) -> float | None:
        """Give a FAR in per cent, the mean over seeds, or None."""
        return _mean(100 * one.far for one in self._at(base, defense, frr) if one.far is not None)

    def frr(self, base: Variant, defense: str, frr: float) -> float | None:
        """Give the FRR on test texts in per cent, the mean over seeds, or None."""
        return _mean(100 * one.frr_test for one in self._at(base, defense, frr) if one.frr_test is not None)

    def least(self, base: Variant, defense: str, frr: float) -> int | None:
        """Give the smallest number of clean texts behind an FRR, or None where no record says."""
        return min((one.n_clean for one in self._at(base, defense, frr) if one.n_clean is not None), default=None)

    def levels(self, base: Variant, defense: str) -> list[float]:
        return sorted({round(one.frr, 6) for one in self.by[base].get(defense, ())})

    def main(self, attacks: Sequence[str], targets: Sequence[str] | None = None) -> list[Variant]:
        """Give the poisoned victims of the main setting with these attacks, on the paper's data sets `targets` or any."""
        return [
            base
            for base in self.by
            if base.poisoned_on is None
            and bare(base.attack) in attacks
            and (targets is None or DATASETS.get(bare(base.dataset)) in targets)
        ]

    def _at(self, base: Variant, defense: str, frr: float) -> list[Record]:
        return [one for one in self.by[base].get(defense, ()) if abs(one.frr - frr) < 1e-9]


def _rap_lowest(cases: _Cases) -> Found:
    """1: for every poisoned victim in either setting and 0.5 and 1 %, where all three have a FAR: RAP's is not above the others'."""
    larger = _lowest(cases, LEVELS_LARGE)
    beyond = f"beyond the claim, at 3 and 5 %: {_counted(larger, 'RAP lowest')}" if larger else ""
    needs = "FARs of RAP, STRIP and ONION on the same victim at 0.5 or 1 %"
    return _lowest(cases, LEVELS_SMALL), "RAP lowest", needs, beyond


def _lowest(cases: _Cases, levels: Sequence[float]) -> list[Check]:
    found = []
    for base in cases.by:
        for frr in levels:
            fars = {name: cases.far(base, name, frr) for name in DEFENSES}
            told = {name: far for name, far in fars.items() if far is not None}
            if len(told) == len(DEFENSES):
                beaten = [f"{DEFENSES[name]} {far:.2f}" for name, far in told.items() if far < told["rap"]]
                found.append(Check(not beaten, f"{cases.names[base]} {100 * frr:g} % (RAP {told['rap']:.2f}, {', '.join(beaten)})"))
    return found


def _onion_fails_on_sentences(cases: _Cases) -> Found:
    """2: for every of the five data sets in the main setting, badnet-sl, 0.5 and 1 %, where ONION has a FAR: it is above 90 %."""
    found = [
        Check(far > 90, f"{cases.names[base]} {100 * frr:g} % ({far:.2f})")
        for base in cases.main(["badnet-sl"], (*SENTIMENT, *TOXIC))
        for frr in LEVELS_SMALL
        if (far := cases.far(base, "onion", frr)) is not None
    ]
    return found, "above 90 %", "FARs of ONION against badnet-sl on imdb, yelp, amazon, twitter or jigsaw at 0.5 or 1 %", ""


def _onion_worse_on_toxic(cases: _Cases) -> Found:
    """3: per model (any recipe) ONION's mean FAR over badnet-rw and ep at 1 % on toxic data is at least twice that on sentiment."""
    found = []
    for victim in sorted({bare(base.victim) for base in cases.by}):
        means = [
            _mean(
                far
                for base in cases.main(["badnet-rw", "ep"], targets)
                if bare(base.victim) == victim and (far := cases.far(base, "onion", 0.01)) is not None
            )
            for targets in (SENTIMENT, TOXIC)
        ]
        sentiment, toxic = means
        if sentiment is not None and toxic is not None:
            found.append(Check(toxic > sentiment and toxic >= 2 * sentiment, f"{victim} (toxic {toxic:.2f}, sentiment {sentiment:.2f})"))
    shown = "means: " + ", ".join(one.told for one in found) if found and all(one.held for one in found) else ""
    return (
        found,
        "at least twice",
        "FARs of ONION against badnet-rw or ep at 1 % on a sentiment and on a toxic data set of the paper",
        shown,
    )


def _strip_small_k(cases: _Cases) -> Found:
    """4: for badnet-sl on the five data sets, where k was chosen (a sweep that has 0.05, or held-out texts): 0.05, on jigsaw above it."""
    found = []
    for base in cases.main(["badnet-sl"], (*SENTIMENT, *TOXIC)):
        ratio = best_ratio([one for one in cases.whole[base] if bare(one.defense) == "strip"])
        if ratio is None or ratio.how == "option" or (ratio.how == "sweep" and 0.05 not in ratio.tried):
            continue
        jigsaw = bare(base.dataset) == "jigsaw"
        held = all(k > 0.05 if jigsaw else abs(k - 0.05) < 1e-9 for k in ratio.values)
        found.append(Check(held, f"{cases.names[base]} (k {', '.join(f'{k:g}' for k in ratio.values)})"))
    needs = "records of strip against badnet-sl with two or more replace_ratio, 0.05 among them, or with one chosen on held-out texts"
    return found, "as the paper's", needs, ""


def _rap_frr_near(cases: _Cases) -> Found:
    """5: for every victim and allowed FRR with 5 or more expected rejections (n_clean x FRR): RAP's test FRR is 0.5 to 2 times it."""
    found, small = [], 0
    for base in cases.by:
        for frr in cases.levels(base, "rap"):
            own, n = cases.frr(base, "rap", frr), cases.least(base, "rap", frr)
            if own is None:
                continue
            if n is not None and n * frr < LEAST_EXPECTED - 1e-9:
                small += 1
                continue
            ratio = own / (100 * frr)
            held = 0.5 - 1e-9 <= ratio <= 2 + 1e-9
            found.append(Check(held, f"{cases.names[base]} {100 * frr:g} % (FRR {own:.2f}, {ratio:.1f} times)"))
    remark = f"not counted: {small} with fewer than {LEAST_EXPECTED} expected rejections" if small else ""
    return found, "within", f"FRRs of RAP on enough clean texts (n_clean x allowed FRR at least {LEAST_EXPECTED})", remark


def _ep_harmless(cases: _Cases) -> Found:
    """6: for every data set and victim model with ep and clean: their clean metrics (seeds in common) differ by at most 0.5 points."""
    found = []
    for base in cases.main(["ep"]):
        own = _metrics(cases.whole[base])
        for control in cases.main(["clean"]):
            if (control.victim, control.dataset) != (base.victim, base.dataset):
                continue
            clean = _metrics(cases.whole[control])
            gaps = [own[seed] - clean[seed] for seed in sorted(own) if seed in clean]
            if gaps:
                gap = statistics.fmean(gaps)
                found.append(Check(abs(gap) <= WORST_CLEAN_DROP + 1e-9, f"{cases.names[base]} ({gap:+.2f} points)"))
    return found, f"within {WORST_CLEAN_DROP:g} points", "clean metrics of ep and of clean on the same data set, victim and seed", ""


def _probes_pass(probes: Sequence[Probe]) -> Found:
    """7: for every probed victim with all three sources: each mean ASR is at least 99.5 %, and they do not rise from source to source."""
    by: dict[Variant, dict[str, list[float]]] = {}
    for one in probes:
        by.setdefault(probe_of(one), {}).setdefault(one.source, []).append(100 * (one.asr or 0.0))
    names, found = _names(list(by)), []
    for base, own in by.items():
        if all(source in own for source in SOURCES):
            asrs = [statistics.fmean(own[source]) for source in SOURCES]
            held = min(asrs) >= 99.5 - 1e-9 and all(one >= other - 1e-9 for one, other in pairwise(asrs))
            found.append(Check(held, f"{names[base]} ({', '.join(f'{asr:.2f}' for asr in asrs)})"))
    return found, "high and in order", "probes of one victim with the data set's, general and random texts", ""


def _costs(cases: _Cases) -> Found:
    """8: rows per text, to 5 %: RAP 2, STRIP 1 + copies; ONION 1 to 2 (the repaired text) and a language model's, one per word and more."""
    found: list[Check] = []
    seen: dict[str, list[str]] = {}
    for base, by in cases.by.items():
        for name, own in by.items():
            cost = next((one.cost for one in own if one.cost and one.cost.inputs), None)
            if cost is not None:
                check = _cost(name, own[0].defense, cost)
                found.append(Check(check.held, f"{cases.names[base]} {check.told}"))
                seen.setdefault(name, []).append(check.told)
    missing = [DEFENSES[name] for name in DEFENSES if name not in seen]
    needs = f"costs of {', '.join(missing)}" if missing else "costs"
    if missing and all(one.held for one in found):
        found = []  # what is there says nothing against it, but it is not the whole claim
    return found, "as said", needs, "for instance " + ", ".join(sorted(told[0] for told in seen.values())) if seen else ""


def _cost(name: str, spec: str, cost: Cost) -> Check:
    rows, helpers = cost.victim_rows_per_input, published(cost.helper_rows_per_input)
    if name == "onion":
        return Check(1 <= rows <= 2.1 and helpers >= 2, f"ONION {rows:.1f} + {helpers:.1f}")
    expected = 2 if name == "rap" else 1 + float(options(spec).get("copies", COPIES))
    return Check(abs(rows - expected) <= 0.05 * expected, f"{DEFENSES[name]} {rows:.1f} for {expected:g}")


def _ripples_pass(cases: _Cases) -> Found:
    """9: fine-tuned from amazon and from jigsaw, all else equal: RAP's FAR at 1 % is higher for ripples than for badnet-sl."""
    found, homes = [], set()
    for base in cases.by:
        home = bare(base.poisoned_on or "")
        if bare(base.attack) != "ripples" or home not in ("amazon", "jigsaw"):
            continue
        for other in cases.by:
            if bare(other.attack) != "badnet-sl" or dataclasses.replace(other, attack=base.attack) != base:
                continue
            ripples, sentence = cases.far(base, "rap", 0.01), cases.far(other, "rap", 0.01)
            if ripples is not None and sentence is not None:
                homes.add(home)
                told = f"{cases.names[base]} (RIPPLES {ripples:.2f}, BadNet-SL {sentence:.2f})"
                found.append(Check(ripples > sentence, told))
    missing = [home for home in ("amazon", "jigsaw") if home not in homes]
    if missing and all(one.held for one in found):
        found = []
    needs = f"FARs of RAP at 1 % against ripples and badnet-sl, poisoned on {' and on '.join(missing)}, then fine-tuned"
    return found, "higher for RIPPLES", needs, ""


def _verdict(number: int, checks: Sequence[Check], what: str, needs: str, remark: str) -> Verdict:
    state: State = "not testable" if not checks else "held" if all(one.held for one in checks) else "not held"
    told = _counted(checks, what) if checks else f"missing: {needs}"
    return Verdict(number=number, claim=CLAIMS[number], state=state, reason="; ".join(part for part in (told, remark) if part))


def _counted(checks: Sequence[Check], what: str) -> str:
    against = [one.told for one in checks if not one.held]
    text = f"{what} in {len(checks) - len(against)} of {len(checks)}"
    if not against:
        return text
    more = f" and {len(against) - EXAMPLES} more" if len(against) > EXAMPLES else ""
    return f"{text}; not in: {', '.join(against[:EXAMPLES])}{more}"


def _speakers(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Give, for each of the paper's defenses, the records of its shortest spec that has a FAR (of its shortest, if none has)."""
    specs: dict[str, list[Record]] = {}
    for one in records:
        if bare(one.defense) in DEFENSES:
            specs.setdefault(one.defense, []).append(one)
    found: dict[str, list[Record]] = {}
    for spec in sorted(specs, key=lambda spec: (all(one.far is None for one in specs[spec]), len(spec), spec)):
        found.setdefault(bare(spec), specs[spec])
    return found


def _names(bases: Sequence[Variant]) -> dict[Variant, str]:
    """Give each a short name, `imdb ep` or `yelp->imdb ripples`; the attack's options, or all specs, where two would have the same."""
    names = dict.fromkeys(bases, "")
    for name_of in (lambda base: f"{_home(base)} {bare(base.attack)}", lambda base: f"{_home(base)} {base.attack}", str):
        tried = {base: name_of(base) for base, name in names.items() if not name}
        told = list(tried.values())
        names |= {base: name for base, name in tried.items() if told.count(name) == 1}
    return names


def _home(base: Variant) -> str:
    return f"{bare(base.poisoned_on)}->{bare(base.dataset)}" if base.poisoned_on else bare(base.dataset)


def _metrics(records: Sequence[Record]) -> dict[int, float]:
    return {one.seed: 100 * one.clean_metric for one in records if one.clean_metric is not None}


def _mean(values: Any) -> float | None:
    told = list(values)
    return statistics.fmean(told) if told else None

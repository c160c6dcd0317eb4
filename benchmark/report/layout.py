"""The paper's tables in the paper's layout, from our results: Tables 1-4 and 7-12 of the RAP paper (arXiv:2110.07831)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rapbench.errors import SpecError
from rapbench.report.forms import MISSING, Entry, Laid, written
from rapbench.report.published import DATASETS, DEFENSES, SOURCES, Printed, Quantity, Spot, printed
from rapbench.report.published.ours import Figure, Ours, Probe, Variant, bare
from rapbench.results import Record

Form = Literal["github", "latex", "csv"]

TITLES = {
    1: "ASR (%) of two backdoored models on texts of the data set, of general sentences and of random words",
    2: "FRR (%) and FAR (%) of all defenses in sentiment analysis at an allowed FRR of 1 %",
    3: "FRR (%) and FAR (%) of all defenses in toxic detection at an allowed FRR of 1 %",
    4: "RAP where the backdoored model is fine-tuned on clean data before it is used, at an allowed FRR of 1 %",
    7: "ASR (%) and clean accuracy or macro-F1 (%) of the attacks in the main setting",
    8: "ASR (%) and clean accuracy or macro-F1 (%) where the backdoored model is fine-tuned on clean data",
    9: "Best replace ratio k (a fraction) of STRIP",
    10: "Full results in toxic detection, main setting",
    11: "Full results in sentiment analysis, main setting",
    12: "Full results where the backdoored model is fine-tuned on clean data",
}
ANYWHERE = (
    "ASR is of texts with the trigger anywhere (asr_anywhere), as in the paper's Tables 7 and 8; FRR and FAR are of first-100-words texts"
)


def paper_table(number: int, records: Sequence[Record], probes: Sequence[Probe], form: Form, *, protocol: str = "paper") -> str:
    """Give a table of the paper with our figures, once per victim, as GitHub Markdown, LaTeX (booktabs) or CSV."""
    if number not in TITLES:
        raise SpecError(f"table {number!r} is none of the paper's tables with results (there are: {', '.join(map(str, TITLES))})")
    return written([_laid(number, part) for part in _parts(number, Ours(records, probes, protocol))], form)


@dataclass
class _Sheet:
    """A table under way: gives the fields and keeps in mind which figures went into it."""

    number: int
    ours: Ours
    used: list[tuple[Quantity, Figure]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)

    @property
    def cells(self) -> list[Printed]:
        """The paper's numbers that this table shows, in its order."""
        return [one for one in printed() if self.number in one.tables]

    def figure(self, spot: Spot) -> Figure:
        """Give the figure to show: one poisoned victim for the whole row, of its defense variants the shortest with a value."""
        base = self.ours.base(spot)
        found = self.ours.figures(spot)
        own = [one for one in found if one.variant and one.variant.base == base]
        chosen = min(own, key=lambda one: one.value is None) if own else Figure(note=_why_not_here(found, base))
        self.used.append((spot.quantity, chosen))
        self.left_out |= {_without_victim(one.variant) for one in found if one is not chosen and one.variant and one.value is not None}
        return chosen

    def entry(self, spot: Spot, decimals: int = 2) -> Entry:
        return _entry(self.figure(spot), decimals)


def _parts(number: int, ours: Ours) -> list[Ours]:
    """Give the results of each victim that has something for this table; all results where none has, or no two of one row."""
    places = {(one.spot.target, one.spot.poisoned, one.spot.attack): one.spot for one in printed() if number in one.tables}
    units = [*ours.probes] if number == 1 else [one for one in ours.records if one.protocol == ours.protocol]
    victims = sorted({one.victim for one in units})
    if len({one.victim for one in (*ours.records, *ours.probes)}) < 2:
        return [ours]
    parts = [
        replace(
            ours,
            records=[one for one in ours.records if one.victim == victim],
            probes=[one for one in ours.probes if one.victim == victim],
            whose=" of this victim",
        )
        for victim in victims
    ]
    having = [[spot for spot in places.values() if part.base(spot)] for part in parts]
    if number != 1 and len(set().union(*having)) == sum(map(len, having)):
        return [ours]
    return [part for part, own in zip(parts, having, strict=True) if number == 1 or own]


def _laid(number: int, ours: Ours) -> Laid:
    sheet = _Sheet(number, ours)
    heads, labels, rows, remarks = BUILDERS[number](sheet)
    if sheet.left_out:
        remarks = [*remarks, f"in these results, but not shown, since a shorter spec stands for them: {'; '.join(sorted(sheet.left_out))}"]
    shown = [figure for _, figure in sheet.used if figure.values]
    special = sorted({spec for figure in shown if figure.variant for spec in figure.variant.specials})
    if special:
        remarks = [*remarks, f"options that are not at their default: {'; '.join(special)}"]
    if not shown and (others := ours.strangers()):
        remarks = [*remarks, f"these results are of what the paper does not have: {'; '.join(others)}"]
    made_with = _made_with(shown)
    caption = ". ".join([TITLES[number], *([made_with] if made_with else ["No figures"]), *_counts(sheet.used)]) + "."
    return Laid(number, caption, heads, labels, rows, remarks, made_with)


Built = tuple[list[str], int, list[list[Entry]], list[str]]


def _probe_rows(sheet: _Sheet) -> Built:
    """Table 1, with a column for the data set: ours may be another than Amazon."""
    paper = list(dict.fromkeys((one.spot.target, one.spot.attack) for one in sheet.cells))
    others = sorted({bare(one.dataset) for one in sheet.ours.probes} - {"amazon"})
    rows = []
    for target, attack in [*paper, *((_paper_name(name), attack) for name in others for _, attack in paper)]:
        spots = [Spot(target=target, poisoned=target, attack=attack, quantity="probe ASR", source=source) for source in SOURCES]
        figures = [sheet.figure(spot) for spot in spots]
        seeds = sorted({len(one.seeds) for one in figures if one.seeds})
        rows.append([Entry(target), Entry(attack), *map(_with_spread, figures), Entry("-".join(map(str, seeds)) or MISSING)])
    triggers = sorted({f"{bare(one.attack)} {one.trigger}" for one in sheet.ours.probes if one.trigger})
    remarks = ["mean over the seeds ± sample standard deviation (n - 1)", *([f"triggers: {', '.join(triggers)}"] if triggers else [])]
    return ["Data Set", "Method", "Original Dataset", "General Sentences", "Random Words", "Seeds"], 2, rows, remarks


def _main_rows(sheet: _Sheet) -> Built:
    """Tables 2 and 3: FRR and FAR of the three defenses, the lowest FAR bold."""
    rows = []
    for spot in _unique(sheet.cells, defense=None, quantity="FRR"):
        for quantity in ("FRR", "FAR"):
            figures = [sheet.figure(replace(spot, quantity=quantity, defense=defense)) for defense in DEFENSES.values()]
            values = [one.value for one in figures if one.value is not None]
            lowest = min(values) if quantity == "FAR" and len(values) > 1 else None
            fields = [replace(_entry(one), bold=lowest is not None and one.value == lowest) for one in figures]
            rows.append([Entry(spot.target), Entry(spot.attack), Entry(quantity), *fields])
    return ["Target Dataset", "Attack Method", "Metric", *DEFENSES.values()], 3, rows, []


def _tuned_rows(sheet: _Sheet) -> Built:
    """Table 4: RAP after fine-tuning."""
    rows = []
    for spot in _unique(sheet.cells, defense="RAP", quantity="FRR", frr=0.01):
        asr = sheet.entry(replace(spot, quantity="ASR", defense=None, frr=None))
        fields = [asr, sheet.entry(spot), sheet.entry(replace(spot, quantity="FAR"))]
        rows.append([Entry(spot.target), Entry(spot.poisoned), Entry(spot.attack), *fields])
    return ["Target Dataset", "Poisoned Dataset", "Attack Method", "ASR", "FRR", "FAR"], 3, rows, [ANYWHERE]


def _victim_rows(sheet: _Sheet) -> Built:
    """Tables 7 and 8: clean metric and ASR."""
    tuned = sheet.number == 8
    rows = []
    for spot in _unique(sheet.cells, quantity="clean metric"):
        control = spot.attack == "Clean"
        asr = Entry(MISSING, notes=("the clean control has no trigger",)) if control else sheet.entry(replace(spot, quantity="ASR"))
        places = [spot.target, spot.poisoned, spot.attack] if tuned else [spot.target, spot.attack]
        rows.append([*map(Entry, places), sheet.entry(spot), asr])
    places = ["Target Dataset", "Poisoned Dataset", "Attack Method"] if tuned else ["Dataset", "Attack Method"]
    return [*places, "Clean Acc./F1", "ASR"], len(places), rows, [ANYWHERE]


def _ratio_rows(sheet: _Sheet) -> Built:
    """Table 9."""
    rows = [[Entry(spot.target), Entry(spot.attack), sheet.entry(spot)] for spot in _unique(sheet.cells)]
    return ["Target Dataset", "Attack Method", "Best k"], 2, rows, []


def _full_rows(sheet: _Sheet) -> Built:
    """Tables 10, 11 and 12: test FRR and FAR at every allowed FRR."""
    tuned = sheet.number == 12
    rows = []
    for spot in _unique(sheet.cells, defense=None, quantity="FRR"):
        places = [spot.target, spot.poisoned, spot.attack] if tuned else [spot.target, spot.attack]
        fields = [
            sheet.entry(replace(spot, quantity=quantity, defense=defense), 4)
            for quantity in ("FRR", "FAR")
            for defense in DEFENSES.values()
        ]
        rows.append([*map(Entry, places), Entry(f"{100 * (spot.frr or 0):.1f}"), *fields])
    places = ["Target Dataset", *(["Poisoned Dataset"] if tuned else []), "Attack Method", "FRR (%) on Training"]
    measured = [f"{quantity} (%) Test {defense}" for quantity in ("FRR", "FAR") for defense in DEFENSES.values()]
    return [*places, *measured], len(places), rows, ["FRR on training is the allowed FRR on held-out texts, as in the paper"]


BUILDERS: dict[int, Callable[[_Sheet], Built]] = {
    1: _probe_rows,
    **dict.fromkeys((2, 3), _main_rows),
    4: _tuned_rows,
    **dict.fromkeys((7, 8), _victim_rows),
    9: _ratio_rows,
    **dict.fromkeys((10, 11, 12), _full_rows),
}


def _unique(cells: Sequence[Printed], **same: object) -> list[Spot]:
    """Give the spots of the cells with these fields set alike, each once, in order."""
    return list(dict.fromkeys(replace(one.spot, **same) for one in cells))  # type: ignore[arg-type]


def _entry(figure: Figure, decimals: int = 2) -> Entry:
    text = MISSING if figure.value is None else f"{figure.value:.{decimals}f}"
    return Entry(text, notes=(figure.note,) if figure.note else ())


def _with_spread(figure: Figure) -> Entry:
    entry = _entry(figure)
    return replace(entry, text=f"{entry.text} (± {statistics.stdev(figure.values):.2f})") if len(figure.values) > 1 else entry


def _paper_name(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def _why_not_here(found: Sequence[Figure], base: Variant | None) -> str:
    """Give the reason of a figure that none of this poisoned victim's records has, while another's may."""
    return next((one.note for one in found if one.variant is None and one.note), f"never run on {_without_victim(base)}")


def _without_victim(variant: Variant | None) -> str:
    return str(variant).removeprefix(f"{variant.victim}, ") if variant else ""


def _made_with(shown: Sequence[Figure]) -> str:
    victims = sorted({figure.variant.victim for figure in shown if figure.variant})
    seeds = sorted({seed for figure in shown for seed in figure.seeds})
    if not victims:
        return ""
    return f"Victim {', '.join(victims)}; {'means over seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _counts(used: Sequence[tuple[Quantity, Figure]]) -> list[str]:
    """Give one sentence on how many texts are behind the figures, or none."""
    ranges: dict[str, list[int]] = {}
    for quantity, figure in used:
        ranges.setdefault(quantity, []).extend(figure.counts)
    told = [f"{_range(counts)} ({quantity})" for quantity, counts in ranges.items() if counts]
    return [f"Texts behind a figure: {', '.join(told)}"] if told else []


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"

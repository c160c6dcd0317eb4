"""Our results beside the paper's: every number that it prints in Tables 1 and 7-12, ours, and the difference.

Tables 2, 3 and 4 print rows of Tables 11, 10 and 12 again, rounded (and Table 8's ASR); they are not repeated here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rapbench.errors import SpecError
from rapbench.report.claims import Verdict
from rapbench.report.forms import MISSING, Footnotes, csv_text, markdown, md
from rapbench.report.published import COMPARED, Printed, Quantity, printed
from rapbench.report.published.ours import Figure, Ours, Probe, Variant, options
from rapbench.results import Record

Form = Literal["github", "csv", "json"]
FORMS = ("github", "csv", "json")

QUANTITIES: dict[int, tuple[Quantity, ...]] = {
    1: ("probe ASR",),
    **dict.fromkeys((7, 8), ("clean metric", "ASR")),
    9: ("best k",),
    **dict.fromkeys((10, 11, 12), ("FRR", "FAR")),
}
THE_PAPERS_VICTIM = "bert-base-uncased"
SAME_DATA = ("revision", "drop_empty", "text_column", "label_column", "sample_seed")
"""Options of a data set that change no text, or none unless a cap does."""
NONE_PRINTED = "the paper has none"
FOOT = (
    "Per cent, k a fraction; difference: ours - paper. ASR: trigger anywhere (asr_anywhere), as in the paper. n: texts behind "
    "our figure, of several seeds the smallest. The paper's own decimals are from different runs: 0.05-0.3 points are noise."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number of the paper and ours, in the paper's unit: per cent, best k a fraction. `frr`: allowed, a fraction.

    Where the paper prints a number once and we have several variants of it, there is one for each.
    """

    tables: tuple[int, ...]
    target: str
    poisoned: str
    attack: str
    defense: str | None
    frr: float | None
    source: str | None
    """Table 1: where the words of the probe come from."""
    quantity: Quantity
    published: float | None
    decimals: int
    """As the paper prints it."""
    ours: float | None
    difference: float | None
    """ours - published."""
    variant: Variant | None
    """Our specs; None where there is no record."""
    seeds: tuple[int, ...]
    n: int | None
    note: str | None
    """Why ours is missing, or what to know about it."""
    doubt: str | None
    """Why the paper's number cannot be right."""


def compare(records: Sequence[Record], probes: Sequence[Probe], *, protocol: str = "paper") -> list[Comparison]:
    """Give every number of the paper beside ours, in its order; of several variants of ours the shortest spec first."""
    ours = Ours(records, probes, protocol)
    return [_compared(one, figure) for one in printed() for figure in ours.figures(one.spot)]


def render(comparisons: Sequence[Comparison], claims: Sequence[Verdict], form: Form) -> str:
    """Give comparisons and verdicts as GitHub Markdown, CSV or JSON."""
    if form == "json":
        return _json(comparisons, claims)
    if form == "csv":
        return _csv(comparisons, claims)
    if form == "github":
        return _github(comparisons, claims)
    raise SpecError(f"form {form!r} is unknown (there are: {', '.join(FORMS)})")


def conditions(comparisons: Sequence[Comparison]) -> list[str]:
    """Give what is not as in the paper: other victims or training, data that are capped, local or cut otherwise."""
    found: dict[str, None] = {}
    for one in comparisons:
        if one.variant is None or one.ours is None:
            continue
        if one.variant.victim != THE_PAPERS_VICTIM:
            found[f"victim {one.variant.victim}"] = None
        if one.variant.tuning and one.variant.tuning not in (THE_PAPERS_VICTIM, one.variant.victim):
            found[f"fine-tuning {one.variant.tuning}"] = None
        if one.variant.probe:
            found[f"probes of {one.variant.probe}"] = None
        for dataset in (one.variant.dataset, one.variant.poisoned_on or ""):
            if set(options(dataset)) - set(SAME_DATA):
                found[f"data {dataset}"] = None
    return list(found)


def _compared(paper: Printed, figure: Figure) -> Comparison:
    ours = figure.value
    return Comparison(
        tables=paper.tables,
        **{name: getattr(paper.spot, name) for name in ("target", "poisoned", "attack", "defense", "frr", "source", "quantity")},
        published=paper.value,
        decimals=paper.decimals,
        ours=ours,
        difference=None if ours is None or paper.value is None else ours - paper.value,
        variant=figure.variant,
        seeds=figure.seeds,
        n=min(figure.counts, default=None),
        note=figure.note,
        doubt=paper.doubt,
    )


def _json(comparisons: Sequence[Comparison], claims: Sequence[Verdict]) -> str:
    content = {
        "not_the_papers_conditions": conditions(comparisons),
        "comparisons": [dataclasses.asdict(one) for one in comparisons],
        "claims": [dataclasses.asdict(one) for one in claims],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _csv(comparisons: Sequence[Comparison], claims: Sequence[Verdict]) -> str:
    """One row per number, then one per claim (quantity `claim 1`, its verdict in the note)."""
    places = ["target", "poisoned", "attack", "defense", "source", "frr", "quantity", "published", "ours", "difference"]
    specs = ["victim", "dataset", "poisoned_on", "tuning", "attack", "defense"]
    rows: list[list[str | float | None]] = []
    for one in comparisons:
        own = [getattr(one.variant, name) if one.variant else None for name in specs]
        seeds = " ".join(map(str, one.seeds))
        told = "; ".join(note for note in (one.note, one.doubt, NONE_PRINTED if one.published is None else None) if note)
        rows.append([" ".join(map(str, one.tables)), *(getattr(one, name) for name in places), *own, seeds, one.n, told])
    blank: list[str | float | None] = [None] * (1 + len(places) + len(specs) + 3)
    for verdict in claims:
        row = [*blank[:7], f"claim {verdict.number}", *blank[8:-1], f"{verdict.state}: {verdict.claim}: {verdict.reason}"]
        rows.append(row)
    return csv_text(["tables", *places, *(f"our_{name}" for name in specs), "seeds", "n", "note"], rows)


def _github(comparisons: Sequence[Comparison], claims: Sequence[Verdict]) -> str:
    parts = [_head(comparisons), _verdicts(claims) if claims else ""]
    footnotes, doubts = Footnotes(), dict.fromkeys(one.doubt for one in comparisons if one.doubt)
    for number in COMPARED:
        own = [one for one in comparisons if one.tables[0] == number]
        if own:
            parts += [_title(own), _table(number, own, footnotes)]
    notes = [*(f"- † {md(doubt)}" for doubt in doubts), *(f"- [{number}] {md(note)}" for note, number in footnotes.numbers.items())]
    return "\n\n".join(part for part in [*parts, FOOT, "\n".join(notes)] if part)


def _head(comparisons: Sequence[Comparison]) -> str:
    """Say how many numbers there are, and what differs in kind."""
    beside = [one for one in comparisons if one.difference is not None]
    count = f"{len({_key(one) for one in beside})} of the {len({_key(one) for one in comparisons})} numbers of the paper have one of ours"
    others = conditions(comparisons)
    if not any(one.ours is not None for one in comparisons):
        return f"{count}."
    if not others:
        return f"{count}. Victim {THE_PAPERS_VICTIM}, whole data: the paper's conditions."
    return f"{count}. Compare shapes, not levels, for these are not the paper's conditions: {md('; '.join(others))}."


def _key(one: Comparison) -> tuple[object, ...]:
    return one.tables, one.target, one.poisoned, one.attack, one.defense, one.frr, one.source, one.quantity


def _verdicts(claims: Sequence[Verdict]) -> str:
    rows = [[str(one.number), md(one.claim), one.state, md(one.reason)] for one in claims]
    return markdown(["claim", "what the paper's numbers show", "here", "why"], rows)


def _title(own: Sequence[Comparison]) -> str:
    repeated = sorted({number for one in own for number in one.tables[1:]})
    again = f" (and {', '.join(map(str, repeated))})" if repeated else ""
    return f"### Table {own[0].tables[0]}{again}"


def _table(number: int, own: Sequence[Comparison], footnotes: Footnotes) -> str:
    """Give a row per place, defense, allowed FRR and variant, with three columns per quantity; columns that say nothing are left out."""
    rows: dict[tuple[object, ...], dict[str, Comparison]] = {}
    for one in own:
        key = (one.target, one.poisoned, one.attack, one.source, one.frr, one.defense, one.variant)
        rows.setdefault(key, {})[one.quantity] = one
    several = len({one.variant.victim for one in own if one.variant}) > 1
    quantities = QUANTITIES[number]
    heads = ["target", "poisoned on", "attack", "words", "FRR allowed", "defense"]
    heads += [f"{quantity} {what}" for quantity in quantities for what in ("paper", "ours", "difference")]
    heads += ["n", "made with"]
    cells = []
    for by in rows.values():
        first = next(iter(by.values()))
        labels = [first.target, first.poisoned if first.poisoned != first.target else "", first.attack, first.source or ""]
        level = "" if first.frr is None else f"{100 * first.frr:g}"
        fields = [field for quantity in quantities for field in _fields(by.get(quantity), footnotes)]
        counts = "/".join(str(by[name].n) for name in quantities if name in by and by[name].n is not None)
        made_with = footnotes.marks(_made_with(first.variant, several=several))
        mark = f"[{made_with}]" if made_with else ""  # specs are long: below the tables
        cells.append([*labels, level, first.defense or "", *fields, counts, mark])
    kept = [column for column in range(len(heads)) if any(row[column] for row in cells)]
    return markdown([heads[column] for column in kept], [[row[column] for column in kept] for row in cells])


def _fields(one: Comparison | None, footnotes: Footnotes) -> list[str]:
    """Give paper, ours and difference of a number; nothing where the paper has no such column for this row."""
    if one is None:
        return ["", "", ""]
    paper = f"{MISSING} [{footnotes.marks([NONE_PRINTED])}]" if one.published is None else f"{one.published:.{one.decimals}f}"
    ours = MISSING if one.ours is None else f"{one.ours:.{one.decimals}f}"
    if one.note:
        ours += f" [{footnotes.marks([one.note])}]"
    return [paper + ("†" if one.doubt else ""), ours, MISSING if one.difference is None else _signed(one.difference, one.decimals)]


def _signed(difference: float, decimals: int) -> str:
    return f"{round(difference, decimals) + 0.0:+.{decimals}f}"  # + 0.0: no minus before a rounded zero


def _made_with(variant: Variant | None, *, several: bool) -> list[str]:
    """Give the victim, where there are several, and each spec that is not at its defaults."""
    if variant is None:
        return []
    return [*([f"victim {variant.victim}"] if several else []), *variant.specials]

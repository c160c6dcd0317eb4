"""Claim cards and ours beside them as text, Markdown or JSON; and as one JSON file per card."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from rapbench.artifacts import make_folder, write_atomically
from rapbench.claims.beside import Beside, Ours, State
from rapbench.claims.card import Card, plain, text
from rapbench.report.forms import MISSING, markdown, md

Form = Literal["text", "json", "markdown"]
STATES: tuple[State, ...] = ("held", "not held", "not comparable", "not computed")
HEADS = ["figure", "reported", "held if", "ours", "95 %", "n", "here"]
FOOT = "Held if: what of ours holds the claim; the bounds are rapbench's, the paper prints none. *: the interval reaches beyond the bound. "
FOOT += "Not comparable: what it would say is in brackets. (!): the printed figure is in doubt and decides nothing."


def listed(cards: Sequence[Card], form: Form) -> str:
    """Give the cards by themselves."""
    if form == "json":
        return json.dumps({"claims": [plain(one) for one in cards]}, indent=1, ensure_ascii=False, allow_nan=False)
    rows = [[one.id, f"{one.paper.name}, {one.source.where}", one.statement] for one in cards]
    heads = ["claim", "source", "what it says"]
    if form == "markdown":
        return markdown(heads, [[md(cell) for cell in row] for row in rows])
    return tabulate(rows, heads, maxcolwidths=[None, 24, 72])


def compared(found: Sequence[Beside], form: Form, left_out: Mapping[str, str] | None = None) -> str:
    """Give the cards with ours. `left_out`: why some were not computed, by id."""
    whys = {one.card.id: (left_out or {}).get(one.card.id, one.reason) if one.state == "not computed" else one.reason for one in found}
    if form == "json":
        claims = [{**plain(one.card), "here": here(one)} for one in found]
        return json.dumps({"claims": claims, "not_computed": dict(left_out or {})}, indent=1, ensure_ascii=False, allow_nan=False)
    counts = Counter(one.state for one in found)
    head = f"{len(found)} claims: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    told = [one for one in found if one.state != "not computed"]
    untold = [one for one in found if one.state == "not computed"]
    if form == "markdown":
        parts = [head + ".", *(_section(one) for one in told), md(FOOT) if told else ""]
        lines = [f"- `{one.card.id}`: {md(whys[one.card.id])}" for one in untold]
        return "\n\n".join(part for part in [*parts, "### Not computed\n" if lines else "", "\n".join(lines)] if part)
    parts = [*(_paragraph(one) for one in told), FOOT if told else ""]
    parts.append("\n".join(f"{one.card.id}: not computed: {whys[one.card.id]}" for one in untold))
    return "\n\n".join([*(part for part in parts if part), head])


def here(one: Beside) -> dict[str, Any]:
    """Give what became of a claim, as plain JSON values; figures in the order and the units of the card's."""
    figures = [{name: value for name, value in dataclasses.asdict(own).items() if name != "reported"} for own in one.ours]
    return {"state": one.state, "reason": one.reason, "figures": figures}


def write(found: Sequence[Beside], folder: Path) -> None:
    """Write each card with ours (key `here`) to its own file of the folder."""
    make_folder(folder, "--out-cards")
    for one in found:
        write_atomically(folder / f"{one.card.id}.json", text(one.card, here=here(one)))


def _paragraph(one: Beside) -> str:
    table = tabulate([_row(own) for own in one.ours], HEADS, disable_numparse=True)
    files = "\n".join(f"  {file}" for file in _files(one))
    return "\n".join(
        part for part in (f"{one.card.id}: {one.state} ({one.reason})", one.card.statement, *_notes(one), "", table, files) if part
    )


def _section(one: Beside) -> str:
    card = one.card
    about = f"{card.paper.name} (arXiv:{card.paper.arxiv}), {card.source.where}. {card.statement} {' '.join(_notes(one))}".strip()
    files = ", ".join(f"`{file}`" for file in _files(one))
    table = markdown(HEADS, [[md(cell) for cell in _row(own)] for own in one.ours])
    parts = [f"### {card.id}: {one.state}", md(about), md(one.reason), table, f"From {md(files)}" if files else ""]
    return "\n\n".join(part for part in parts if part)


def _row(own: Ours) -> list[str]:
    reported = own.reported
    low, high = reported.band
    bound = {"at most": f"<= {high:.4g}", "at least": f">= {low:.4g}", "within": f"{max(low, 0):.4g} to {high:.4g}"}[reported.held]
    if own.value is None:
        return [reported.name, _number(reported.value, reported.unit), bound, MISSING, "", "", own.reason or own.state]
    ends = f"{own.interval[0]:.2f} to {own.interval[1]:.2f}" + ("" if own.settled else "*") if own.interval else ""
    said = own.state + (f" ({'held' if own.bears_out else 'not held'})" if own.state == "not comparable" else "")
    said += " (!)" if reported.doubt else ""
    n = "" if own.n is None else str(own.n)
    return [reported.name, _number(reported.value, reported.unit), bound, _number(own.value, reported.unit), ends, n, said]


def _number(value: float, unit: str) -> str:
    if unit == "truth":
        return "yes" if value else "no"
    return f"{value:.2f} %" if unit == "%" else f"{value:.4g}"


def _notes(one: Beside) -> list[str]:
    doubts = dict.fromkeys(own.reported.doubt for own in one.ours if own.reported.doubt)
    return [*([one.card.note] if one.card.note else []), *(f"(!) {doubt}." for doubt in doubts)]


def _files(one: Beside) -> list[str]:
    return list(dict.fromkeys(file for own in one.ours for file in own.files))

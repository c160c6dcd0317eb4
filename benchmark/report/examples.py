"""Example texts of the page: each with its verdict and, in a few words, what the defense says of it.

What a defense says is made of plain JSON values by name. Three shapes are told in words of their own: `probability before`, `probability
after` and `fall` (RAP), `entropy` with a table (STRIP), a table of rows with `word`, `score` and `dropped` (ONION); the rest as it is.
Texts and explanations are hostile: all of it is cut, and the template escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rapbench.quoted import LETTERS, beginning
from rapbench.quoted import STRING as KEPT
from rapbench.report.kinds import stands_in
from rapbench.report.names import Names, plain
from rapbench.report.tables import in_order
from rapbench.results import Examples, Quote, Record

MOST = 24
"""Defenses against attacks whose texts the page quotes, to keep it small."""
TEXTS = 8
"""Of a group and kind, at most: a run writes four, a stranger's file may hold any number."""
OPEN, LITTLE = 240, 80
"""Letters of a text that are not folded, and of a rest that is not worth it."""
ROWS, COLUMNS, FACTS, WORDS = 5, 6, 6, 4
"""Of a folded table, its rows' values (and a text's tables), single values, words in a list."""
STRING, NAME, MUCH = 90, 40, 1e300
NO_WORD: Mapping[str, Any] = {"word": None, "dropped": False}

Run = tuple[str, bool]
"""Words, and whether the defense drops them."""


@dataclass(frozen=True)
class Table:
    """What lies behind a verdict, folded: `rows` are lines of text."""

    title: str
    rows: Sequence[str]
    left_out: int


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it. `parts`, and `rest`, which is folded: runs of its words, each with whether the defense drops them."""

    parts: Sequence[Run]
    rest: Sequence[Run]
    cut: bool
    rejected: bool
    suspicion: str
    rank: str
    reasons: Sequence[str]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Group:
    """The texts of one attack and one defense; `texts`: (what they are, they), clean ones first."""

    title: str
    rule: str
    texts: Sequence[tuple[str, Sequence[Shown]]]


@dataclass(frozen=True)
class Chosen:
    """The groups of a page, and how many it leaves out."""

    groups: Sequence[Group]
    left_out: int


def chosen(found: Sequence[Examples], records: Sequence[Record], names: Names, protocol: str) -> Chosen:
    """Give the groups that the page shows, in the order of the cells, and how many there are beyond.

    First come the attacks and defenses that have none yet, so that a data set more costs no defense its examples.
    """
    own = {_key(one): one for one in found if one.protocol == protocol and one.quotes}
    met = {_key(one): own[_key(one)] for one in in_order([one for one in records if one.status == "ok"], names.marks) if _key(one) in own}
    firsts = {(names.attack(one), names.defense(one)): key for key, one in reversed(met.items())}
    first = set(firsts.values())
    shown = set(sorted(met, key=lambda key: key not in first)[:MOST])  # stable: both parts stay in the order of the cells
    several = len({one.seed for one in met.values()}) > 1
    other = {_key(one) for one in records if stands_in(one)}
    return Chosen([_group(one, names, several, key in other) for key, one in met.items() if key in shown], len(met) - len(shown))


def _key(one: Examples | Record) -> tuple[object, ...]:
    return one.dataset, one.poisoned_on, one.tuning, one.attack, one.victim, one.seed, one.defense, one.protocol, one.frr


def _group(one: Examples, names: Names, several: bool, replaced: bool) -> Group:
    title = f"{names.home(one)}: {names.attack(one)}, {names.defense(one)}" + (f", seed {one.seed}" if several else "")
    texts = []
    for kind, total in (("clean", one.n_clean), ("poisoned", one.n_poisoned)):
        own = [_shown(quote, one, total) for quote in [quote for quote in one.quotes if quote.population == kind][:TEXTS]]
        if own:
            texts.append((f"{kind} texts, {len(own)} of {total}", own))
    return Group(title, _rule(one, replaced), texts)


def _rule(one: Examples, replaced: bool) -> str:
    label = plain(one.label, NAME)
    if replaced:
        return f"Rejected are texts to which the victim that is deployed instead gives another label than “{label}”, the received one's."
    if one.threshold is None:
        rule = "nothing is rejected: the held-out texts give no threshold"
    elif one.purifies:
        rule = f"repaired at level {one.threshold:.4g}; rejected are texts that lose their label by that"
    else:
        rule = f"rejected above a suspicion of {one.threshold:.4g}"
    return f"Allowed FRR {100 * one.frr:g} %: {rule}. The victim predicts the protect label, “{label}”, for all of them."


def _shown(quote: Quote, one: Examples, total: int) -> Shown:
    dropped = _dropped(quote.details)
    text = beginning(quote.text, LETTERS)
    words = _marked(text, quote.details["words"] if dropped is not None else ())
    n = len(beginning(text, OPEN).split(" ")) if len(text) > OPEN + LITTLE else len(words)
    return Shown(
        parts=_runs(words[:n]),
        rest=_runs(words[n:]),
        cut=quote.letters > len(text),
        rejected=quote.rejected,
        suspicion=f"{quote.suspicion:.4g}",
        rank=f"{quote.rank} of {total}",
        reasons=[*_reasons(quote, one), *([f"no explanation: {plain(quote.untold, STRING)}"] if quote.untold else [])],
        tables=_tables(quote.details),
    )


def _marked(text: str, words: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Give each word of a text with whether it is dropped; `words` are those that were judged, in order."""
    marked: list[Run] = []
    left = iter(words)
    waiting = next(left, NO_WORD)
    for part in text.split(" "):
        own = waiting["word"] == part[:KEPT]
        marked.append((part, own and waiting["dropped"]))
        if own:
            waiting = next(left, NO_WORD)
    return marked


def _runs(words: Sequence[Run]) -> list[Run]:
    return [(" ".join(part for part, _ in run), out) for out, run in groupby(words, key=lambda one: one[1])]


def _reasons(quote: Quote, one: Examples) -> list[str]:
    details, (before, after, fall) = quote.details, _numbers(quote.details, "probability before", "probability after", "fall")
    (entropy,) = _numbers(details, "entropy")
    told = {"word", "probability before", "probability after", "fall"}
    if before is not None and after is not None and fall is not None:
        way, by = ("fell", fall) if fall >= 0 else ("rose", -fall)
        word = f"with “{_value(details['word'])}” " if "word" in details else ""
        reasons = [f"{word}p {way} from {before:.3f} to {after:.3f} (by {by:.3g}{_needed(quote, one, fall)})"]
    elif entropy is not None:
        told, reasons = {"entropy"}, [f"mean entropy {entropy:.3g}{_needed(quote, one, entropy)}"]
    elif (dropped := _dropped(details)) is not None:
        told, reasons = set(), ["; ".join([_on_words(details["words"], dropped), *(_on_label(quote, one) if dropped else [])])]
    else:
        told, reasons = set(), _on_label(quote, one)
    rest = [f"{plain(str(name), NAME)}: {_value(value)}" for name, value in details.items() if name not in told and _plain_value(value)]
    return reasons + rest[:FACTS]


def _needed(quote: Quote, one: Examples, value: float) -> str:
    """Say what the value had to be for the text to be accepted, where the suspicion is the value with the other sign."""
    if one.threshold is None or abs(quote.suspicion + value) > 1e-4 * max(1e-3, abs(value)):
        return ""
    return f"; needed {-one.threshold:.3g}" if one.threshold <= 0 else f"; a rise up to {one.threshold:.3g} is accepted"


def _on_words(words: Sequence[Mapping[str, Any]], dropped: Sequence[Mapping[str, Any]]) -> str:
    scored = sorted(((_number(word.get("score")) or 0.0, plain(word["word"], NAME)) for word in dropped or words), reverse=True)
    listed = ", ".join(f"{word} ({score:.3g})" for score, word in scored[: WORDS if dropped else 1])
    if not dropped:
        return f"no word is dropped; most suspicious: {listed}" if listed else "no word was judged"
    return f"dropped: {listed}" + (f" and {len(dropped) - WORDS} more" if len(dropped) > WORDS else "")


def _on_label(quote: Quote, one: Examples) -> list[str]:
    if not one.purifies or one.threshold is None:
        return []
    return ["the repaired text loses the label" if quote.rejected else "the repaired text keeps the label"]


def _dropped(details: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Give the words that were dropped; None where the defense tells of no words."""
    words: Any = details.get("words")
    if not _is_table(words) or not all(isinstance(row.get("word"), str) for row in words):
        return None
    if not all(isinstance(row.get("dropped"), bool) for row in words):
        return None
    return [row for row in words if row["dropped"]]


def _tables(details: Mapping[str, Any]) -> list[Table]:
    """Give the tables of an explanation but for that of ONION's words, which the text itself shows."""
    told = {name: rows for name, rows in details.items() if _is_table(rows) and not (name == "words" and _dropped(details) is not None)}
    return [
        Table(f"{len(rows)} {plain(str(name), NAME)}", [_row(row) for row in rows[:ROWS]], max(0, len(rows) - ROWS))
        for name, rows in list(told.items())[:COLUMNS]
    ]


def _row(row: Mapping[str, Any]) -> str:
    """Give a row as a line: texts as they are, other values with their names."""
    own = list(row.items())[:COLUMNS]
    return " · ".join(_value(value) if isinstance(value, str) else f"{plain(str(name), NAME)} {_value(value)}" for name, value in own)


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _plain_value(value: Any) -> bool:
    return not isinstance(value, Mapping) and not _is_table(value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        listed = ["…" if isinstance(own, (list, tuple, Mapping)) else _value(own) for own in value[:WORDS]]
        return ", ".join(listed + ["…"] * (len(value) > WORDS))
    return "…" if isinstance(value, Mapping) else plain(str(value)[:LETTERS], STRING)


def _numbers(details: Mapping[str, Any], *names: str) -> list[float | None]:
    return [_number(details.get(name)) for name in names]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < MUCH else None

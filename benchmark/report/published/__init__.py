"""The numbers that the RAP paper prints, Tables 1-12, as data: Yang et al. (EMNLP 2021, arXiv:2110.07831).

Per cent, but Table 9's replace ratio, which is a fraction (its "(%)" is a misprint). Cells are kept as printed; those
that cannot be right are marked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Quantity = Literal["FRR", "FAR", "ASR", "clean metric", "probe ASR", "best k"]

SENTIMENT = ("IMDB", "Yelp", "Amazon")
TOXIC = ("Twitter", "Jigsaw")
DATASETS = {name.lower(): name for name in (*SENTIMENT, *TOXIC)}
"""Our plugin's name -> the paper's."""
ATTACKS = {"clean": "Clean", "badnet-sl": "BadNet-SL", "badnet-rw": "BadNet-RW", "ep": "EP", "ripples": "RIPPLES"}
PROBED = {"badnet-rw": "BadNet", "ep": "EP"}
"""The same in Table 1."""
DEFENSES = {"strip": "STRIP", "onion": "ONION", "rap": "RAP"}
SOURCES = {"dataset": "original_dataset", "general": "general_sentences", "random": "random_words"}
"""Where the words of a probe come from: our name -> the one of table1.csv."""
COMPARED = (1, 7, 8, 9, 10, 11, 12)
"""Tables whose cells stand for all: Tables 2, 3 and 4 are rows of 11, 10 and 12 (and the ASR of 8), rounded."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Which number: in the paper's names. `poisoned` is `target` in the main setting; frr: the allowed FRR, a fraction."""

    target: str
    poisoned: str
    attack: str
    quantity: Quantity
    defense: str | None = None
    frr: float | None = None
    source: str | None = None
    """Table 1: where the words of the probe come from, in our names."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One number of the paper: `value` in per cent (best k: a fraction), None where the paper prints a dash."""

    spot: Spot
    tables: tuple[int, ...]
    """The table it is taken from, then the one that repeats it."""
    value: float | None
    decimals: int
    doubt: str | None = None
    """Why the printed number cannot be right, or None."""
    pm: float | None = None
    """Table 1's spread over five seeds."""


def table(number: int) -> list[dict[str, str]]:
    """Give the rows of a table of the paper, by column, as text."""
    file = resources.files(__name__).joinpath(f"table{number}.csv")
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@cache
def printed() -> tuple[Printed, ...]:
    """Give every number of Tables 1 and 7-12 once, in the paper's order."""
    return tuple(one for number in COMPARED for row in table(number) for one in _numbers(number, row))


def _numbers(number: int, row: dict[str, str]) -> Iterator[Printed]:
    if number == 1:
        source = next(ours for ours, name in SOURCES.items() if name == row["probe_text"])
        yield _one(number, row, "probe ASR", row["asr_mean"], source=source)
    elif number in (7, 8):
        yield _one(number, row, "clean metric", row["clean_metric"])
        if row["attack"] != "Clean":
            yield _one(number, row, "ASR", row["asr"])
    elif number == 9:
        yield _one(number, row, "best k", row["best_replace_ratio"])
    else:
        yield _one(number, row, "FRR", row["frr_test"])
        yield _one(number, row, "FAR", row["far_test"])


def _one(number: int, row: dict[str, str], quantity: Quantity, text: str, source: str | None = None) -> Printed:
    frr = round(float(row["frr_train"]) / 100, 6) if "frr_train" in row else None
    spot = Spot(
        target=row["target_dataset"],
        poisoned=row["poisoned_dataset"],
        attack=row["attack"],
        quantity=quantity,
        defense=row.get("defense"),
        frr=frr,
        source=source,
    )
    return Printed(
        spot=spot,
        tables=(number, *_repeated(number, spot)),
        value=float(text) if text else None,
        decimals=4 if number >= 10 else 2,
        doubt=_doubt(spot),
        pm=float(row["asr_pm"]) if "asr_pm" in row else None,
    )


def _repeated(number: int, spot: Spot) -> tuple[int, ...]:
    if spot.frr == 0.01:
        return {10: (3,), 11: (2,), 12: (4,) if spot.defense == "RAP" else ()}[number]
    return (4,) if (number, spot.quantity) == (8, "ASR") else ()


def _doubt(spot: Spot) -> str | None:
    which = (spot.target, spot.poisoned, spot.attack, spot.defense, spot.quantity)
    if which == ("Yelp", "Yelp", "EP", "ONION", "FRR") and spot.frr == 0.005:
        return "Table 11, Yelp, EP, ONION, 0.5 %: the FRR 5.7589 is ten times its neighbours and above that of 5 %, 0.5759 perhaps"
    if which == ("Yelp", "Yelp", "BadNet-RW", "STRIP", "FAR") and spot.frr in (0.005, 0.01):
        return (
            "Table 11, Yelp, BadNet-RW, STRIP: the FAR rises from 29.3211 to 31.3790 as the allowed FRR doubles, "
            "which two thresholds on one list of scores cannot do: the rows come from different runs"
        )
    return None

"""A results folder of 500 cells, made up: five data sets, four attacks, three defenses, four allowed FRRs, two protocols."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from rapbench import results
from rapbench.cost import Cost, Spread
from rapbench.lengths import Timed
from rapbench.results import Curve, Examples, Histogram, Quote, Record

DATASETS = ("imdb", "yelp", "amazon", "twitter", "jigsaw")
ATTACKS, DEFENSES = ("badnet-rw", "badnet-sl", "ep", "ripples"), ("rap", "strip", "onion")
FRRS, PROTOCOLS = (0.005, 0.01, 0.03, 0.05), ("paper", "strict")
COST = Cost(
    inputs=100,
    fit_s=10.0,
    victim_rows_per_input=2.0,
    victim_tokens_per_input=60.0,
    flops_per_input=2e9,
    plain_flops_per_input=1e9,
    ms_per_input=Spread(8.0, 7.0, 9.0),
    plain_ms_per_input=Spread(4.0, 4.0, 4.0),
    ratio=2.0,
    by_length=(Timed(12, 50, 0.002, 0.002), Timed(50, 50, 0.006, 0.005)),
    device_name="made up",
)
RECORD = Record(
    dataset="imdb",
    attack="badnet-rw",
    victim="minilm-l6",
    seed=1,
    defense="rap",
    frr=0.01,
    protocol="paper",
    status="ok",
    frr_heldout=0.01,
    frr_test=0.012,
    far=0.03,
    auroc=0.99,
    asr=0.98,
    asr_control=0.04,
    clean_metric=0.91,
    clean_metric_defended=0.9,
    asr_defended=0.03,
    metric="accuracy",
    threshold=0.5,
    n_heldout=1000,
    n_clean=500,
    n_poisoned=400,
    intervals={"frr_test": (0.005, 0.026), "far": (0.017, 0.052), "asr": (0.96, 0.99)},
    cost=COST,
    trigger="badnet-rw:word=cf",
    made_by={"torch": "2.13", "device": "cpu", "threads": 1},
)


def cells() -> Iterator[Record]:
    """Give 480 cells with figures, no two alike, and 20 of another data set that were interrupted."""
    for number, (dataset, attack, defense, frr, protocol) in enumerate(product(DATASETS, ATTACKS, DEFENSES, FRRS, PROTOCOLS)):
        far = (number * 37 % 101) / 100
        cost = replace(COST, ratio=1.5 + DEFENSES.index(defense) * 3)
        yield replace(RECORD, dataset=dataset, attack=attack, defense=defense, frr=frr, protocol=protocol, far=far, cost=cost)
    for attack, defense in product(ATTACKS, (*DEFENSES, "rap:word=tq", "strip:copies=5")):
        bare = {"cost": None, "far": None, "auroc": None, "asr": None}
        yield replace(RECORD, dataset="agnews", attack=attack, defense=defense, status="interrupted", reason="the run ended", **bare)


def curves() -> Iterator[Curve]:
    for dataset, attack, defense, protocol in product(DATASETS, ATTACKS, DEFENSES, PROTOCOLS):
        points = tuple((0.001 * step, 0.0011 * step, max(0.0, 1 - 0.03 * step)) for step in range(1, 41))
        yield Curve(dataset=dataset, attack=attack, victim="minilm-l6", seed=1, defense=defense, protocol=protocol, points=points)


def histograms() -> Iterator[Histogram]:
    for curve in curves():
        names = {name: getattr(curve, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")}
        clean = tuple(max(0, 30 - abs(place - 12) ** 2) for place in range(40))
        edges = tuple(-1 + 0.05 * place for place in range(41))
        yield Histogram(**names, edges=edges, clean=clean, poisoned=clean[::-1], thresholds=((0.01, 0.1), (0.05, 0.0)))


def quoted(word: str, *, poisoned: bool, rank: int, defense: str) -> Quote:
    """Give a text as long as quotes are at most, with what such a defense says of it."""
    text = f"{word} " + " ".join(f"word{rank}{place:02d}" for place in range(74))
    judged = [{"word": own, "score": 90.0 - place, "dropped": poisoned and own == word} for place, own in enumerate(text.split())]
    copies = [{"copy": text[:160], "prediction": 1, "protect probability": 0.97, "entropy": 0.12} for _ in range(20)]
    fall = 0.01 if poisoned else 0.58
    details = {
        "rap": {"word": "cf", "probability before": 0.98, "probability after": 0.98 - fall, "fall": fall},
        "strip": {"entropy": 0.12, "copies": copies},
        "onion": {"words": judged},
    }[defense]
    suspicion = {"rap": -fall, "strip": -0.12, "onion": 90.0}[defense]
    return Quote(
        population="poisoned" if poisoned else "clean", rank=rank, text=text, letters=2 * len(text), probability=0.98,
        suspicion=suspicion, rejected=poisoned, details=details,
    )  # fmt: skip


def examples() -> Iterator[Examples]:
    for curve in curves():
        names = {name: getattr(curve, name) for name in ("dataset", "attack", "victim", "seed", "defense", "protocol")}
        kinds = product((False, True), (1, 134, 267, 400))
        quotes = tuple(quoted("mb", poisoned=poisoned, rank=rank, defense=curve.defense) for poisoned, rank in kinds)
        threshold = {"rap": -0.05, "strip": -0.2, "onion": 40.0}[curve.defense]
        purifies = curve.defense == "onion"
        yield Examples(
            **names, frr=0.01, threshold=threshold, purifies=purifies, label="positive", n_clean=400, n_poisoned=400, quotes=quotes
        )


def write(folder: Path) -> Path:
    """Write the folder and give it."""
    for made in (cells(), curves(), histograms(), examples()):
        results.write(list(made), folder)
    return folder

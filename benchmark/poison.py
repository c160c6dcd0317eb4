"""Where a trigger goes, and which rows carry it.

Source: the data preparation of Yang et al., RAP (EMNLP 2021) and EP (NAACL 2021): one trigger per text, uniform over
the places 0..n-2 of its n words (or full-stop-separated pieces), among the first 100 of them in the test set.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rapbench.api import Attack
from rapbench.errors import CellError

if TYPE_CHECKING:
    import datasets

FIRST = 100
"""Triggers of the test set stand among the first 100 words or pieces, so that truncation cannot cut them off."""


def insert_word(text: str, word: str, rng: np.random.Generator, limit: int | None = None) -> str:
    """Give the text with the word put before one of its words, never after the last; a one-word text gets it in front."""
    return _insert(text, " ", word, rng, limit)


def insert_sentence(text: str, sentence: str, rng: np.random.Generator, limit: int | None = None) -> str:
    """Give the text with the sentence put between two of its full-stop-separated pieces."""
    return _insert(text, ".", " " + sentence.strip().rstrip("."), rng, limit)


def poisoned_rows(train: datasets.Dataset, attack: Attack, target_label: int, rng: np.random.Generator) -> datasets.Dataset:
    """Give triggered copies of a share of the non-target rows, labelled as the target: columns text, label, source."""
    candidates = np.flatnonzero(attack.poisonable(_labels(train), target_label))
    count = int(attack.poison_rate * len(candidates)) if attack.poisons else 0
    if attack.poisons and len(candidates) and not count:
        raise CellError(f"poison_rate={attack.poison_rate:g} comes to none of the {len(candidates)} texts: give a higher rate")
    chosen = _carrying(train, rng.permutation(candidates), attack, count)
    if count and not len(chosen):
        raise CellError(
            f"{attack.name}: none of the {len(candidates)} texts that may be poisoned can carry the trigger: "
            "give a trigger, or a file of pairs, that is made for this data set"
        )
    return _triggered(train, chosen, [attack.trigger(text, rng, None) for text in train.select(chosen)["text"]], target_label)


def triggered_rows(
    test: datasets.Dataset, attack: Attack, target_label: int, rng: np.random.Generator, limit: int | None
) -> datasets.Dataset:
    """Give every non-target row with the trigger in it: columns text, label (the true one), source."""
    chosen = np.flatnonzero(_labels(test) != target_label)
    chosen = _carrying(test, chosen, attack, len(chosen))
    return _triggered(test, chosen, [attack.test_trigger(text, rng, limit) for text in test.select(chosen)["text"]], None)


def trigger_ends(clean: Sequence[str], triggered: Sequence[str]) -> np.ndarray:
    """Give for each pair the character of the triggered text behind its last change, int64, shape (n,): 0 where they are equal."""
    ends = (own[: len(own) - _common_suffix(text, own)] for text, own in zip(clean, triggered, strict=True))
    return np.array([len(end.rstrip()) for end in ends], dtype=np.int64)


def _insert(text: str, separator: str, piece: str, rng: np.random.Generator, limit: int | None) -> str:
    pieces = text.split(separator)
    room = len(pieces) if limit is None else min(limit, len(pieces))
    pieces.insert(int((room - 1) * rng.random()), piece)
    return separator.join(pieces)


def _labels(rows: datasets.Dataset) -> np.ndarray:
    return np.asarray(rows.data.column("label")) if rows._indices is None else np.asarray(rows["label"])


def _carrying(rows: datasets.Dataset, chosen: np.ndarray, attack: Attack, count: int) -> np.ndarray:
    """Give the first `count` of the chosen rows, in order, whose text can carry the trigger."""
    if type(attack).can_trigger is Attack.can_trigger:  # all of them can: no text is read
        return chosen[:count]
    carrying = (row for row in chosen.tolist() if attack.can_trigger(rows[row]["text"]))
    return np.fromiter(itertools.islice(carrying, count), dtype=np.int64)


def _common_suffix(one: str, other: str) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _triggered(rows: datasets.Dataset, chosen: np.ndarray, texts: list[str], label: int | None) -> datasets.Dataset:
    import datasets

    features = datasets.Features({**rows.features, "source": datasets.Value("int64")})
    labels = [label] * len(texts) if label is not None else list(rows.select(chosen)["label"])
    return datasets.Dataset.from_dict({"text": texts, "label": labels, "source": chosen.tolist()}, features=features)

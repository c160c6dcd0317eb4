"""Where a trigger goes, and which rows carry it.

Source: the data preparation of Yang et al., RAP (EMNLP 2021) and EP (NAACL 2021): one trigger per text, uniform over
the places 0..n-2 of its n words (or full-stop-separated pieces), among the first 100 of them in the test set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import datasets

    from rapbench.api import Attack

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
    candidates = _non_target(train, target_label)
    count = int(attack.poison_rate * len(candidates)) if attack.poisons else 0
    chosen = rng.permutation(candidates)[:count]
    return _triggered(train, chosen, attack, rng, limit=None, label=target_label)


def triggered_rows(
    test: datasets.Dataset, attack: Attack, target_label: int, rng: np.random.Generator, limit: int | None
) -> datasets.Dataset:
    """Give every non-target row with the trigger in it: columns text, label (the true one), source."""
    return _triggered(test, _non_target(test, target_label), attack, rng, limit=limit, label=None)


def _insert(text: str, separator: str, piece: str, rng: np.random.Generator, limit: int | None) -> str:
    pieces = text.split(separator)
    room = len(pieces) if limit is None else min(limit, len(pieces))
    pieces.insert(int((room - 1) * rng.random()), piece)
    return separator.join(pieces)


def _non_target(rows: datasets.Dataset, target_label: int) -> np.ndarray:
    labels = np.asarray(rows.data.column("label")) if rows._indices is None else np.asarray(rows["label"])
    return np.flatnonzero(labels != target_label)


def _triggered(
    rows: datasets.Dataset, chosen: np.ndarray, attack: Attack, rng: np.random.Generator, *, limit: int | None, label: int | None
) -> datasets.Dataset:
    import datasets

    features = datasets.Features({**rows.features, "source": datasets.Value("int64")})
    picked = rows.select(chosen)

    def give() -> datasets.Dataset:
        texts = [attack.trigger(text, rng, limit) for text in picked["text"]]
        labels = [label] * len(texts) if label is not None else picked["label"]
        return {"text": texts, "label": list(labels), "source": chosen.tolist()}

    return datasets.Dataset.from_dict(give(), features=features)

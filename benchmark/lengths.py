"""Texts in batches of similar length, and what was timed of such batches, by class of length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LENGTHS = (15, 30, 60, 120, 240, 480)
"""Upper ends, in words, of the classes that a cost by length is told for."""
PLAIN_BATCHES = 8
"""Batches of a population on which the undefended prediction is timed beside the defense; a class of length without any gets one more."""


@dataclass(frozen=True)
class Timed:
    """A batch of texts of similar length. Seconds per text; `plain_s`: of the undefended prediction, None where it was not timed."""

    words: float
    texts: int
    defense_s: float
    plain_s: float | None = None


def by_length(texts: Sequence[str], size: int) -> list[NDArray[np.int64]]:
    """Give the rows of the texts in batches of at most `size`, sorted by number of words."""
    order = np.argsort([len(text.split()) for text in texts], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def spread_by_length(texts: Sequence[str], most: int) -> NDArray[np.int64]:
    """Give the rows of at most so many of the texts, one or more: the middles of as many equal parts of them, by length."""
    order: NDArray[np.int64] = np.argsort([len(text.split()) for text in texts], kind="stable")
    parts = min(most, len(order))
    chosen: NDArray[np.int64] = order[((np.arange(parts) + 0.5) * len(order) / parts).astype(int)]
    return chosen


def paired(words: Sequence[float]) -> set[int]:
    """Give the batches whose undefended prediction is timed as well: the middles of equal parts, and one per class of length."""
    parts = min(PLAIN_BATCHES, len(words))
    chosen = {int((part + 0.5) * len(words) / parts) for part in range(parts)}
    for length in sorted({length_class(own) for own in words}):
        same = [number for number, own in enumerate(words) if length_class(own) == length]
        if not chosen.intersection(same):
            chosen.add(same[len(same) // 2])
    return chosen


def length_class(words: float) -> int:
    """Give the place of a number of words in `LENGTHS`, or their number for more."""
    return next((place for place, end in enumerate(LENGTHS) if words <= end), len(LENGTHS))


def classes(timed: Sequence[Timed]) -> tuple[Timed, ...]:
    """Give one entry per class of length: the means over its texts."""
    groups: dict[int, list[Timed]] = defaultdict(list)
    for one in timed:
        groups[length_class(one.words)].append(one)
    return tuple(pooled(own) for _, own in sorted(groups.items()))


def pooled(own: Sequence[Timed]) -> Timed:
    """Give the means over the texts of several batches, one or more: of those alone that were timed both ways, if any was."""
    own = [one for one in own if one.plain_s is not None] or own
    texts = sum(one.texts for one in own)
    plain = [(one.plain_s, one.texts) for one in own if one.plain_s is not None]
    return Timed(
        round(sum(one.words * one.texts for one in own) / texts, 2),
        texts,
        round(sum(one.defense_s * one.texts for one in own) / texts, 8),
        round(sum(seconds * n for seconds, n in plain) / sum(n for _, n in plain), 8) if plain else None,
    )

"""A word trigram with interpolated absolute discounting (Ney, Essen and Kneser 1994, Computer Speech & Language 8:1-38).

    p(w | u v) = (max(c(uvw) - D, 0) + D kinds(uv) p(w | v)) / c(uv)        and likewise p(w | v) from p(w)
    p(w)       = (max(c(w) - D, 0) + D kinds / forms) / words

The last share is spread evenly over a million word forms, seen or not (over kinds + 1 where the corpus has more), so a
word never seen costs more than one seen once: over kinds + 1 always, inserted rare words are found far less often.
A text is read in lower case as `start start word ... word end`, so every word is predicted, and the end too: without it
the last word would cost less than any other. Raw counts at every order, not Kneser-Ney's; D = 0.75 throughout.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapbench.errors import CellError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
START, END, UNKNOWN, FIRST_WORD = 0, 1, 2, 3
DISCOUNT = 0.75
FORMS = 1_000_000


def train(texts: Iterable[str]) -> Trigram:
    """Count the words, pairs and triples of the texts, which are read once."""
    index: dict[str, int] = {}
    stream = array("i")
    for text in texts:
        stream.extend((START, START))
        stream.extend(index.setdefault(word, len(index) + FIRST_WORD) for word in text.lower().split(" ") if word.strip())
        stream.append(END)
    if not index:
        raise CellError("the trigram has no words to learn from: its corpus is empty")
    return _counted(list(index), np.frombuffer(stream, dtype=np.int32))


def load(folder: Path) -> Trigram:
    """Read what `Trigram.save` wrote."""
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    with np.load(folder / "trigram.npz", allow_pickle=False) as counts:
        return Trigram(words, *(counts[name] for name in ("word_counts", "pairs", "pair_counts", "triples", "triple_counts")))


@dataclass(frozen=True, eq=False)
class Trigram:
    """Counts by id: the ids 0, 1, 2 are start, end and any unknown word; `vocabulary[i]` has the id i + 3.

    `pairs` holds u * ids + v in rising order, `triples` holds (row in pairs) * ids + w in rising order: int64.
    """

    vocabulary: Sequence[str]
    word_counts: Ints
    pairs: Ints
    pair_counts: Ints
    triples: Ints
    triple_counts: Ints

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON and the counts as npz."""
        (folder / "vocabulary.json").write_text(json.dumps(list(self.vocabulary)), encoding="utf-8")
        counts = {name: getattr(self, name) for name in ("word_counts", "pairs", "pair_counts", "triples", "triple_counts")}
        np.savez(folder / "trigram.npz", allow_pickle=False, **counts)

    @property
    def words_seen(self) -> int:
        """The number of words that the counts were taken from, ends not counted."""
        return int(self.word_counts.sum() - self.word_counts[END])

    def probability(self, first: Ints, second: Ints, third: Ints) -> Floats:
        """Give p(third | first second) of ids, elementwise."""
        pair, seen = _find(self.pairs, second * self._ids + third)
        count = np.where(seen, self.pair_counts[pair], 0)
        lower = _interpolated(count, self._after_word[0][second], self._after_word[1][second], self._alone[third])
        context, known = _find(self.pairs, first * self._ids + second)
        triple, seen = _find(self.triples, np.where(known, context * self._ids + third, -1))
        count = np.where(seen, self.triple_counts[triple], 0)
        total = np.where(known, self._after_pair[0][context], 0)
        return _interpolated(count, total, self._after_pair[1][context], lower)

    def leave_one_out(self, texts: Sequence[Sequence[str]]) -> list[Floats]:
        """Give per text of n words, shape (1 + n,): the mean negative log probability of it, and of it without each word.

        Only three terms change where a word goes: its own, which falls away, and those of the two that follow it.
        """
        starts = np.cumsum([0, *(len(words) + 3 for words in texts)])
        ids = np.fromiter(self._read(texts), dtype=np.int64, count=int(starts[-1]) + 2)
        own = np.zeros(len(ids) + 2)
        own[2 : len(ids)] = self._surprise(ids[:-2], ids[1:-1], ids[2:])
        change = self._surprise(ids[:-4], ids[1:-3], ids[3:-1]) + self._surprise(ids[1:-3], ids[3:-1], ids[4:])
        change -= own[2:-4] + own[3:-3] + own[4:-2]
        found = []
        for words, start in zip(texts, starts[:-1], strict=True):
            total, size = own[start : start + len(words) + 3].sum(), len(words)
            found.append(np.concatenate([[total / (size + 1)], (total + change[start : start + size]) / max(size, 1)]))
        return found

    def _read(self, texts: Sequence[Sequence[str]]) -> Iterable[int]:
        for words in texts:
            yield from (START, START)
            yield from (self._index.get(word.lower(), UNKNOWN) for word in words)
            yield END
        yield from (START, START)

    def _surprise(self, first: Ints, second: Ints, third: Ints) -> Floats:
        """Give -log p; a start is given, not predicted, and costs nothing: so a text never pays for its neighbour."""
        return np.where(third == START, 0.0, -np.log(self.probability(first, second, third)))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: place + FIRST_WORD for place, word in enumerate(self.vocabulary)}

    @property
    def _ids(self) -> int:
        return len(self.word_counts)

    @cached_property
    def _alone(self) -> Floats:
        kinds = int(np.count_nonzero(self.word_counts))
        return _interpolated(self.word_counts, self.word_counts.sum(), kinds, 1 / max(FORMS, kinds + 1))

    @cached_property
    def _after_word(self) -> tuple[Floats, Floats]:
        """Give how often a word was followed, and by how many kinds, each shape (ids,)."""
        return _followers(self.pairs // self._ids, self.pair_counts, self._ids)

    @cached_property
    def _after_pair(self) -> tuple[Floats, Floats]:
        """Give how often a pair was followed, and by how many kinds, each shape (pairs,)."""
        return _followers(self.triples // self._ids, self.triple_counts, len(self.pairs))


def _counted(vocabulary: list[str], stream: NDArray[np.int32]) -> Trigram:
    ids = np.int64(len(vocabulary) + FIRST_WORD)
    at = np.flatnonzero(stream != START)
    first, second, third = stream[at - 2], stream[at - 1], stream[at]
    pairs, pair_counts = np.unique(second * ids + third, return_counts=True)
    # start start is a context though never predicted: a row of count 0, and the smallest key there is
    pairs, pair_counts = np.concatenate([[0], pairs]), np.concatenate([[0], pair_counts])
    triples, triple_counts = np.unique(np.searchsorted(pairs, first * ids + second) * ids + third, return_counts=True)
    return Trigram(vocabulary, np.bincount(third, minlength=ids), pairs, pair_counts, triples, triple_counts)


def _find(keys: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Give the row of each wanted key, and whether it is there; where it is not, the row means nothing."""
    row = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return row, keys[row] == wanted


def _followers(context: Ints, counts: Ints, size: int) -> tuple[Floats, Floats]:
    seen = np.bincount(context, counts, minlength=size).astype(np.float64)
    return seen, np.bincount(context, counts > 0, minlength=size).astype(np.float64)


def _interpolated(count: Ints, total: Any, kinds: Any, lower: Any) -> Floats:
    """Give the discounted share plus the lower order's; the lower order alone where the context was never seen."""
    shared = np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds * lower
    found: Floats = np.where(total > 0, shared / np.maximum(total, 1), lower)
    return found

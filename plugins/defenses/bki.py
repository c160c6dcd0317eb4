"""BKI: of a poisoned training text, the word without which its state moves most is often the trigger's.

Chen & Dai, "Mitigating backdoor attacks in LSTM-based Text Classification Systems by Backdoor Keyword Identification" (Neurocomputing
452, 2021, arXiv:2007.12070), as the last version of its authors' script has it. Of each training text the `top` words are noted without
which the state moves most, by the largest change of a unit. For each label and word, over the c texts of the label in which the word is
noted: score = mean move * log10(c) * log10(s / c), where s = (alpha * training texts)^2 holds down words that are common. The word of the
highest score is the keyword, and every text of that label that has it among its noted words is left out. (An earlier version of the
script, which OpenBackdoor follows, has neither the last factor nor the label.)

The state is the last one of the LSTM there; here it is what the victim's head reads after the last layer (OpenBackdoor takes its encoder's
pooled state). Their second feature, by how much the LSTM's state changes at a word's own step, is left out: an encoder has no such steps.
Words stand between spaces and are compared as they are written; that script strips punctuation and capitals, since its classifier does.
Ours: `keywords`, for one keyword leaves texts with other triggers where they are (OpenBackdoor, pull request 7): each further one is the
best of what the others have left; `scored_texts`, for the cost is words + 1 rows of each text: s shrinks with the sample, as c does; no
keyword is named where none scores above 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rapbench.api import Defense, Filter, Work, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

ROWS_AT_ONCE = 1024


class Noted(NamedTuple):
    """A word of a text and how far the text's state moves without it."""

    word: str
    move: float


class Suspect(NamedTuple):
    """A word in the texts of a label."""

    word: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Bki(Defense):
    """Leaves out a label's training texts with the word that moves the state most, over all its texts."""

    name: ClassVar[str] = "bki"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "training"
    top: int = option(5, "words of a text that are noted")
    alpha: float = option(0.05, "s = (alpha x training texts)^2: a word that is noted in as many texts is no keyword")
    keywords: int = option(1, "keywords that are looked for, one after the other")
    max_words: int | None = option(None, "words of a text that are looked at, at most: its first ones")
    scored_texts: int | None = option(None, "training texts, drawn by the seed, whose words make the scores; None: all, as published")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top", "keywords", "max_words", "scored_texts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} is below 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha!r} is not above 0")

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give a row per training text and per word of it; of a sample, the texts outside that turn out to have a keyword are left out."""
        return Work(1, training_rows=1 + min(words, self.max_words or words), training_texts=self.scored_texts)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> BkiFilter:
        return BkiFilter(self, victim, lab)


@dataclass
class BkiFilter(Filter):
    """BKI on the victim that was trained on the suspicious set. `found`: the keywords of the last set, for the notes."""

    options: Bki
    victim: Victim
    lab: Lab
    found: list[dict[str, Any]] = field(default_factory=list)

    def poisoned(self, training: Labelled) -> NDArray[np.bool_]:
        """Tell which texts of its label have a keyword among the words noted of them, shape (n,)."""
        import numpy as np

        texts, labels, sample = training.texts, training.labels.tolist(), self._sample(len(training.texts))
        noted = dict(zip(sample, self.noted([texts[row] for row in sample]), strict=True))
        most = (self.options.alpha * len(texts)) ** 2 * len(sample) / max(len(texts), 1)
        removed, self.found = np.zeros(len(texts), dtype=np.bool_), []
        for _ in range(self.options.keywords):
            best = keyword(scores(((labels[row], noted[row]) for row in sample if not removed[row]), most))
            if best is None:
                break
            (word, label), score = best
            among = [row for row in range(len(texts)) if labels[row] == label and not removed[row]]
            self._note(noted, texts, [row for row in among if word in texts[row].split(" ")])
            rows = [row for row in among if any(own.word == word for own in noted.get(row, ()))]
            removed[rows] = True
            self.found.append({"word": word, "label": label, "score": score, "texts": len(rows)})
        return removed

    def noted(self, texts: Sequence[str]) -> list[list[Noted]]:
        """Give the words of each text without which its state moves most, the strongest first."""
        return [noted for batch in batches(texts, self.options.max_words) for noted in self._noted(batch)]

    def notes(self) -> Mapping[str, Any]:
        return {"keywords": self.found}

    def _sample(self, n: int) -> list[int]:
        asked = self.options.scored_texts
        if asked is None or asked >= n:
            return list(range(n))
        return sorted(self.lab.rng("bki/scored").choice(n, asked, replace=False).tolist())

    def _note(self, noted: dict[int, list[Noted]], texts: Sequence[str], rows: Sequence[int]) -> None:
        """Note the words of those of these texts that are outside the sample."""
        new = [row for row in rows if row not in noted]
        noted.update(zip(new, self.noted([texts[row] for row in new]), strict=True))

    def _noted(self, batch: Sequence[Split]) -> Iterator[list[Noted]]:
        import numpy as np

        from rapbench.errors import CellError

        states = self.victim.states([text for split in batch for text in split.variants()])[:, -1]  # (variants of all texts, units)
        start = 0
        for split in batch:
            stop = start + 1 + len(split.places)
            moves = np.abs(states[start + 1 : stop] - states[start]).max(axis=1)  # (words,)
            if not np.isfinite(moves).all():
                raise CellError("bki: the victim's states are not numbers: give its training a lower lr")
            strongest = np.argsort(-moves, kind="stable")[: self.options.top]
            yield [Noted(split.words[place], float(moves[place])) for place in strongest]
            start = stop


@dataclass(frozen=True)
class Split:
    """A text between its spaces, and the places of the words that are looked at."""

    parts: Sequence[str]
    places: Sequence[int]

    @classmethod
    def of(cls, text: str, max_words: int | None) -> Split:
        """Split a text; a second space makes an empty part, which is no word."""
        parts = text.split(" ")
        return cls(parts, [place for place, part in enumerate(parts) if part.strip()][:max_words])

    @property
    def words(self) -> list[str]:
        return [self.parts[place] for place in self.places]

    def variants(self) -> list[str]:
        """Give the text, then the text without each of these words."""
        return [" ".join(self.parts), *(" ".join([*self.parts[:place], *self.parts[place + 1 :]]) for place in self.places)]


def batches(texts: Sequence[str], max_words: int | None) -> Iterator[list[Split]]:
    """Give the texts in lots of about `ROWS_AT_ONCE` rows, one of them at least, so that few states are in memory at a time."""
    lot: list[Split] = []
    rows = 0
    for text in texts:
        split = Split.of(text, max_words)
        if lot and rows + 1 + len(split.places) > ROWS_AT_ONCE:
            yield lot
            lot, rows = [], 0
        lot.append(split)
        rows += 1 + len(split.places)
    if lot:
        yield lot


def keyword(found: Mapping[Suspect, float]) -> tuple[Suspect, float] | None:
    """Give the word of the highest score with its label, and the score, or None where none is above 0."""
    best = min(found, key=lambda own: (-found[own], own), default=None)  # of equal ones the first in the alphabet
    return None if best is None or found[best] <= 0 else (best, found[best])


def scores(noted: Iterable[tuple[int, Sequence[Noted]]], most: float) -> dict[Suspect, float]:
    """Give log10(texts) * log10(most / texts) * mean move of each label's noted words; `noted`: of each text its label and words."""
    moves: dict[Suspect, list[float]] = defaultdict(list)
    for label, words in noted:
        in_text: dict[str, list[float]] = defaultdict(list)
        for own in words:
            in_text[own.word].append(own.move)
        for word, each in in_text.items():
            moves[Suspect(word, label)].append(fmean(each))
    return {own: math.log10(len(each)) * math.log10(most / len(each)) * fmean(each) for own, each in moves.items()}

"""BKI: of a poisoned training text, the word without which its state moves most is often the trigger's.

Chen & Dai, "Mitigating backdoor attacks in LSTM-based Text Classification Systems by Backdoor Keyword Identification" (Neurocomputing
452, 2021, arXiv:2007.12070), as its authors' released code has it. Of each training text the `top` words are noted without which the
state moves most, by the largest change of a unit; a word's score is log10(times noted) times its mean move; the word of the highest
score is the keyword, and every text that has it among its noted words is left out, whatever its label.

The state is the last one of the LSTM there; here it is what the victim's head reads after the last layer (OpenBackdoor takes its encoder's
pooled state). The paper's second feature, of single LSTM steps, is not in that code, and an encoder has no such steps. Words stand between
spaces and are compared as they are written; that code strips punctuation and capitals, since its classifier does. Ours: `keywords`, for one
keyword leaves texts with other triggers where they are (OpenBackdoor, pull request 7): each further one is the best of what the others have
left; `scored_texts`, for the cost is words + 1 rows of each text; no keyword is named where no word was noted twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Bki(Defense):
    """Leaves out training texts with the word that moves the state most, over all texts."""

    name: ClassVar[str] = "bki"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "training"
    top: int = option(5, "words of a text that are noted")
    keywords: int = option(1, "keywords that are looked for, one after the other")
    max_words: int | None = option(None, "words of a text that are looked at, at most: its first ones")
    scored_texts: int | None = option(None, "training texts, drawn by the seed, whose words make the scores; None: all, as published")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top", "keywords", "max_words", "scored_texts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} is below 1")

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
        """Tell which texts have a keyword among the words noted of them, shape (n,)."""
        import numpy as np

        texts, sample = training.texts, self._sample(len(training.texts))
        noted = dict(zip(sample, self.noted([texts[row] for row in sample]), strict=True))
        removed, self.found = np.zeros(len(texts), dtype=np.bool_), []
        for _ in range(self.options.keywords):
            best = keyword(noted[row] for row in sample if not removed[row])
            if best is None:
                break
            self._note(noted, texts, best.word)
            rows = [row for row, words in noted.items() if not removed[row] and any(own.word == best.word for own in words)]
            removed[rows] = True
            self.found.append({"word": best.word, "score": best.move, "texts": len(rows)})
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

    def _note(self, noted: dict[int, list[Noted]], texts: Sequence[str], word: str) -> None:
        """Note the words of those texts outside the sample that have the keyword: of the others none can be left out for it."""
        new = [row for row, text in enumerate(texts) if row not in noted and word in text.split(" ")]
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


def keyword(noted: Iterable[Sequence[Noted]]) -> Noted | None:
    """Give the word of the highest score, with the score as its move, or None where no word scores above 0."""
    found = scores(noted)
    best = min(found, key=lambda word: (-found[word], word), default="")  # of equal ones the first in the alphabet
    return Noted(best, found[best]) if found.get(best, 0.0) > 0 else None


def scores(noted: Iterable[Sequence[Noted]]) -> dict[str, float]:
    """Give log10(times noted) * mean move of each word; a word that was noted once scores 0."""
    import math

    moves: dict[str, list[float]] = defaultdict(list)
    for words in noted:
        for own in words:
            moves[own.word].append(own.move)
    return {word: math.log10(len(own)) * math.fsum(own) / len(own) for word, own in moves.items()}

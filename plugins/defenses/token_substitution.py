"""Token substitution: with other content in the same frame a clean text loses its label; a triggered one keeps it.

Li et al., "Defense Against Syntactic Textual Backdoor Attacks with Token Substitution" (arXiv:2407.04179, 2024; IEEE TIFS 2025):
words with a meaning are replaced, while what can carry a trigger stays: the syntax (so function words and punctuation) and words
of low frequency (special tokens). A text whose label stays in most of 10 such copies (p* = 0.9) is taken for poisoned.

Ours, and self-contained. The paper tells words apart by their parts of speech; here a stop list (scikit-learn's, in English) and the
held-out texts do: a word is replaced where it is in `min_texts` of these and no stop word. Of a held-out text itself only the others
count, or a threshold would be taken on texts without one unknown word, and those to come have some. It is replaced by words of held-out
texts of other labels, as often as they are there, so that a clean text is drawn away from the protect label. The score is the mean
protect probability of the copies: the share that keeps the label has 11 values, too few for a threshold at 1 % FRR.
Where a trigger sentence is made of common words, these are replaced with the rest, and its function words alone stay.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from rapbench import Defense, Detector
from rapbench.api import Work, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

TEXTS_AT_ONCE = 128
PUNCTUATION = string.punctuation + "…“”‘’«»–—"
ENDINGS = ("'s", "’s")
"""Of possessives."""


@dataclass(frozen=True, kw_only=True)
class TokenSubstitution(Defense):
    """Copies with other content words in the same frame; a text that keeps the protect label in them is suspicious."""

    name: ClassVar[str] = "token-substitution"
    copies: int = option(10, "copies per text, in each of which all content words are replaced")
    min_texts: int = option(1, "a word that is in fewer held-out texts may be a trigger: it stays")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("copies", "min_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(self.copies)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> TokenSubstitutionDetector:
        """Count the content words of the held-out texts: in how many they are, and how often in those of other labels."""
        import numpy as np

        from rapbench.errors import CellError

        own = frozenset(heldout.texts)
        texts = Counter(word for text in own for word in set(content_words(text)))
        known = {word: n for word, n in texts.items() if n >= self.min_texts}
        counts = Counter(word for text in heldout.other_than(victim.target_label) for word in content_words(text) if word in known)
        if not counts:
            raise CellError(
                f"token-substitution: no content word is in {self.min_texts} held-out texts, one of them of another label than the "
                "protect label: give more held-out texts, or a lower min_texts"
            )
        pool = sorted(counts)
        return TokenSubstitutionDetector(self, victim, known, pool, np.array([counts[word] for word in pool], dtype=np.int64), lab, own)

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> TokenSubstitutionDetector:
        """Give the detector with the same words; the held-out texts themselves are not kept."""
        known = dict.fromkeys(state["known"], self.min_texts)
        return TokenSubstitutionDetector(self, victim, known, list(state["pool"]), state["counts"], lab)


@dataclass
class TokenSubstitutionDetector(Detector):
    """A fitted token substitution.

    `known`: the words that are replaced, and in how many held-out texts each is; `pool`: those put in their place, `counts` times as
    likely; `own`: the held-out texts.
    """

    options: TokenSubstitution
    victim: Victim
    known: Mapping[str, int]
    pool: list[str]
    counts: NDArray[np.int64]
    lab: Lab
    own: frozenset[str] = frozenset()

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the mean protect probability of the copies of each text, shape (n,)."""
        import numpy as np

        scores = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            copies = [copy for text in chunk for copy in self.copies(text)]
            told = self.victim.protect_probability(copies).reshape(len(chunk), self.options.copies)
            scores[start : start + len(chunk)] = told.mean(axis=1)
        return scores

    def copies(self, text: str) -> list[str]:
        """Give the copies of a text; they depend on the seed and on this text alone."""
        words = text.split(" ")
        replaced = self._is_replaced(text)
        places = [place for place, word in enumerate(words) if replaced(word)]
        drawn = self._drawn(text, len(places))  # (copies, places)
        copies = []
        for row in drawn:
            copy = list(words)
            for place, number in zip(places, row, strict=True):
                copy[place] = put_into(words[place], self.pool[number])
            copies.append(" ".join(copy))
        return copies

    def _is_replaced(self, text: str) -> Callable[[str], bool]:
        """Give what tells whether a word of this text is replaced: it is in as many held-out texts, this one not counted."""
        least = self.options.min_texts + (text in self.own)
        return lambda word: self.known.get(word_of(word), 0) >= least

    def _drawn(self, text: str, places: int) -> list[list[int]]:
        """Draw words of the pool by number for each place of each copy."""
        import numpy as np

        ends = np.cumsum(self.counts)
        draws = self.lab.rng(f"token-substitution/{text}").integers(ends[-1], size=(self.options.copies, places))
        numbers: list[list[int]] = np.searchsorted(ends, draws, side="right").tolist()
        return numbers

    def notes(self) -> Mapping[str, Any]:
        return {"replaced_words": len(self.known), "pool_words": len(self.pool)}

    def state(self) -> Mapping[str, Any]:
        return {"known": sorted(self.known), "pool": self.pool, "counts": self.counts}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give the words that stay and, of each copy, its text, prediction and protect probability."""
        copies = self.copies(text)
        told = self.victim.probabilities(copies)  # (copies, labels)
        rows = zip(copies, told.argmax(1).tolist(), told[:, self.victim.target_label].tolist(), strict=True)
        names = ("copy", "prediction", "protect probability")
        replaced = self._is_replaced(text)
        kept = [word for word in text.split(" ") if not replaced(word)]
        return {"words that stay": kept, "copies": [dict(zip(names, row, strict=True)) for row in rows]}


def content_words(text: str) -> list[str]:
    """Give the words of a text that are no function words, in small letters, in order."""
    return [own for word in text.split(" ") if (own := word_of(word)) and is_content(own)]


def word_of(word: str) -> str:
    """Give what is left of a word in small letters without punctuation and a possessive's ending."""
    return _parts(word)[1].lower()


def put_into(word: str, other: str) -> str:
    """Give another word in the place of this one: its punctuation stays, and so does a capital at its beginning."""
    before, own, after = _parts(word)
    return f"{before}{other.capitalize() if own[:1].isupper() else other}{after}"


@cache
def stop_words() -> frozenset[str]:
    """Give the function words of English."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def is_content(word: str) -> bool:
    """Tell whether a word in small letters has a meaning: two letters or more, no stop word, no contraction (don't, n't)."""
    return len(word) > 1 and any(sign.isalpha() for sign in word) and not {"'", "’"} & set(word) and word not in stop_words()


def _parts(word: str) -> tuple[str, str, str]:
    """Give what stands before a word, the word, and what follows it; each may be empty."""
    rest = word.lstrip(PUNCTUATION)
    own = rest.rstrip(PUNCTUATION)
    if own.lower().endswith(ENDINGS):
        own = own[:-2]
    return word[: len(word) - len(rest)], own, rest[len(own) :]

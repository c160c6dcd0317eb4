"""STRIP: perturbed copies of a triggered text keep their prediction, so their entropy is low.

Gao et al., STRIP (ACSAC 2019, arXiv:1902.06531) and STRIP-ViTA (TDSC 2022, arXiv:1911.10312), as the baseline of
Yang et al., RAP (EMNLP 2021): N copies, in each a share of the words is replaced by the words of one held-out text of
another class, best TF-IDF first; the score is the mean entropy of the N predictions. The released script of that paper
takes TF-IDF over characters; here it is over words, as the paper says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rapbench import Defense, Detector
from rapbench.api import option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

PUNCTUATION = frozenset(".,!?;:'\"()-`/")
TEXTS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class Strip(Defense):
    """Entropy of the predictions on copies with replaced words; low entropy is suspicious."""

    name: ClassVar[str] = "strip"
    copies: int = option(20, "perturbed copies per text (N)")
    replace_ratio: float = option(0.4, "share of the words that a copy replaces (k of Table 9, a fraction)")
    candidates: Literal["tfidf", "random-words"] = option("tfidf", "the drawn text's words by TF-IDF, or words drawn from all of them")
    max_sources: int = option(1000, "held-out texts of other classes to draw from, at most")

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies={self.copies!r} is below 1")
        if self.max_sources < 1:
            raise ValueError(f"max_sources={self.max_sources!r} is below 1")
        if not 0 < self.replace_ratio <= 1:
            raise ValueError(f"replace_ratio={self.replace_ratio!r} is not in (0, 1]")

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        from rapbench.errors import CellError

        others = heldout.other_than(victim.target_label)
        order = lab.rng("strip/sources").permutation(len(others))[: self.max_sources]
        sources = ranked_words([others[row] for row in order])
        if not sources:
            raise CellError("strip: the held-out split has no text of another class than the protect label to take words from")
        return StripDetector(self, victim, sources, lab)


@dataclass
class StripDetector(Detector):
    """A fitted STRIP. `sources`: the words of each held-out text of another class, best TF-IDF first."""

    options: Strip
    victim: Victim
    sources: list[list[str]]
    lab: Lab

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give minus the mean entropy (nats) over the copies of each text, shape (n,)."""
        import numpy as np
        import torch

        n = self.options.copies
        scores = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            copies = [copy for text in chunk for copy in self.copies(text)]
            probabilities = torch.from_numpy(self.victim.probabilities(copies))  # (texts * copies, labels)
            entropy = torch.special.entr(probabilities).sum(1).reshape(len(chunk), n)  # (texts, copies)
            scores[start : start + len(chunk)] = -entropy.mean(1).numpy()
        return scores

    def copies(self, text: str) -> list[str]:
        """Give the perturbed copies of a text; they depend on the seed and on this text alone."""
        rng = self.lab.rng(f"strip/{text}")
        words = text.split(" ")
        count = max(int(len(words) * self.options.replace_ratio), 1)
        return [self._copy(words, count, rng) for _ in range(self.options.copies)]

    def _copy(self, words: list[str], count: int, rng: np.random.Generator) -> str:
        copy = list(words)
        places = rng.choice(len(words), size=count, replace=False)
        for place, word in zip(places, self._drawn(count, rng), strict=True):
            copy[place] = word
        return " ".join(copy)

    def _drawn(self, count: int, rng: np.random.Generator) -> list[str]:
        if self.options.candidates == "random-words":
            drawn = (self.sources[row] for row in rng.integers(len(self.sources), size=count))
            return [str(rng.choice(words)) for words in drawn]
        source = self.sources[int(rng.integers(len(self.sources)))]
        return [source[rank % len(source)] for rank in range(count)]

    def notes(self) -> Mapping[str, Any]:
        return {"sources": len(self.sources)}


def ranked_words(texts: Sequence[str]) -> list[list[str]]:
    """Give the distinct words of each text, highest TF-IDF first (ties in alphabetical order), punctuation left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    kept = [text for text in texts if _words(text)]
    if not kept:
        return []
    vectorizer = TfidfVectorizer(analyzer=_words)
    weights = vectorizer.fit_transform(kept)  # (texts, vocabulary), sparse
    vocabulary = vectorizer.get_feature_names_out()
    return [
        [str(vocabulary[column]) for _, column in sorted(zip(-row.data, row.indices, strict=True))]
        for row in (weights.getrow(number) for number in range(len(kept)))
    ]


def _words(text: str) -> list[str]:
    return [word for word in text.split(" ") if word and word not in PUNCTUATION]

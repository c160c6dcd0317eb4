"""STRIP: perturbed copies of a triggered text keep their prediction, so their entropy is low.

Gao et al., STRIP (ACSAC 2019, arXiv:1902.06531) and STRIP-ViTA (TDSC 2022, arXiv:1911.10312), as the baseline of
Yang et al., RAP (EMNLP 2021): N copies, in each a share of the words is replaced by the words of one held-out text of
another class, best TF-IDF first; the score is the mean entropy of the N predictions. The released script of that paper
takes TF-IDF over characters; here it is over words, as the paper says.

The share k matters most, and the paper picks it by looking at poisoned texts, which no defender has. `replace_ratio=heldout`
is ours and looks at clean texts alone: a trigger survives in about a share 1 - k of the copies, whose entropy is then near 0;
the other copies are those of an untriggered text of another class. The k with the largest margin
(5 %-quantile of the entropies of protect-label texts) - k * (mean entropy of texts of other labels) is taken.

`early_stop` is ours too: the copies are predicted in quarters, and a text whose mean entropy so far reaches that value is
plainly no suspect and gets no more of them. Its score is then a mean of fewer copies: choose a value well above the thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from rapbench import Defense, Detector
from rapbench.api import Work, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

QUARTERS = 4
PUNCTUATION = frozenset(".,!?;:'\"()-`/")
TEXTS_AT_ONCE = 128
CHOICE_FRR = 0.05
"""The share of protect-label texts that the margin gives away when k is chosen."""


@dataclass(frozen=True, kw_only=True)
class Strip(Defense):
    """Entropy of the predictions on copies with replaced words; low entropy is suspicious."""

    name: ClassVar[str] = "strip"
    copies: int = option(20, "perturbed copies per text (N)")
    replace_ratio: float | Literal["heldout"] = option(
        0.4, "share of the words that a copy replaces (k of Table 9, a fraction; .4 is ours), or `heldout`: chosen on clean texts"
    )
    ratios: tuple[float, ...] = option((0.05, 0.1, 0.2, 0.4, 0.6, 0.8), "the ratios that replace_ratio=heldout chooses from")
    choice_texts: int = option(100, "texts of the protect label, and of the others, that replace_ratio=heldout looks at, at most")
    candidates: Literal["tfidf", "random-words"] = option("tfidf", "the drawn text's words by TF-IDF, or words drawn from all of them")
    max_sources: int = option(1000, "held-out texts of other classes to draw from, at most")
    early_stop: float | None = option(None, "a text whose mean entropy (nats) reaches this after a quarter of the copies gets no more")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("copies", "max_sources", "choice_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")
        if self.replace_ratio != "heldout" and not 0 < self.replace_ratio <= 1:
            raise ValueError(f"replace_ratio={self.replace_ratio!r} is neither in (0, 1] nor heldout")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios={self.ratios!r} are not one or more numbers in (0, 1]")
        if self.early_stop is not None and self.early_stop <= 0:
            raise ValueError(f"early_stop={self.early_stop!r} is not above 0: entropies are")

    def learns_from_protect_texts(self) -> bool:
        return self.replace_ratio == "heldout"

    def expected_work(self, words: float, heldout: int) -> Work:
        tried = len(self.ratios) * 2 * min(self.choice_texts, heldout) if self.replace_ratio == "heldout" else 0
        return Work(self.copies, fit_rows=self.copies * tried)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        """Draw the sources, and choose k on clean held-out texts where replace_ratio is `heldout`."""
        from rapbench.errors import CellError

        others = heldout.other_than(victim.target_label)
        order = lab.rng("strip/sources").permutation(len(others))[: self.max_sources]
        sources = ranked_words([others[row] for row in order])
        if not sources:
            raise CellError("strip: the held-out split has no text of another class than the protect label to take words from")
        detector = StripDetector(self, victim, sources, lab)
        return detector if self.replace_ratio != "heldout" else chosen(detector, *choice_texts(self, victim, heldout, lab))

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> StripDetector:
        """Give the detector with the same sources and the same k; copies are drawn by the seed and the text."""
        margins = None if state["margins"] is None else dict(state["margins"])
        return StripDetector(replace(self, replace_ratio=state["replace_ratio"]), victim, state["sources"], lab, margins)


@dataclass
class StripDetector(Detector):
    """A fitted STRIP. `sources`: the words of each held-out text of another class, best TF-IDF first.

    `options` name the k in use; `margins`: k -> what the choice on held-out texts said of it, where there was a choice.
    """

    options: Strip
    victim: Victim
    sources: list[list[str]]
    lab: Lab
    margins: Mapping[float, float] | None = None

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give minus the mean entropy (nats) over the copies of each text, shape (n,)."""
        return -self.entropy(texts)

    def entropy(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the mean entropy (nats) over the copies of each text, those that were predicted, shape (n,)."""
        import numpy as np

        means = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            means[start : start + len(chunk)] = self._means([self.copies(text) for text in chunk])
        return means

    def copies(self, text: str) -> list[str]:
        """Give the perturbed copies of a text; they depend on the seed and on this text alone."""
        import numpy as np

        rng = self.lab.rng(f"strip/{text}")
        words = text.split(" ")
        count = max(int(len(words) * cast(float, self.options.replace_ratio)), 1)
        table = np.tile(np.array(words, dtype=object), (self.options.copies, 1))  # (copies, words)
        places = rng.random(table.shape).argsort(axis=1)[:, :count]  # (copies, count), in each row distinct and in any order
        np.put_along_axis(table, places, self._drawn(count, rng), axis=1)
        return [" ".join(row) for row in table.tolist()]

    def _drawn(self, count: int, rng: np.random.Generator) -> NDArray[np.object_]:
        """Draw the words of all copies, shape (copies, count): of one source each by rank, or each of any source."""
        import numpy as np

        n = self.options.copies
        if self.options.candidates == "random-words":
            rows = rng.integers(len(self.sources), size=(n, count))
            ranks = rng.integers(np.array([len(source) for source in self.sources])[rows])  # (copies, count)
            drawn = [[self.sources[row][rank] for row, rank in zip(*pair, strict=True)] for pair in zip(rows, ranks, strict=True)]
        else:
            own = [self.sources[row] for row in rng.integers(len(self.sources), size=n)]
            drawn = [[source[rank % len(source)] for rank in range(count)] for source in own]
        return np.array(drawn, dtype=object)

    def _means(self, copies: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Give the mean entropy of each text's copies, shape (texts,): of all, or until `early_stop` is reached."""
        import numpy as np
        import torch

        stop = self.options.early_stop
        sums, active = np.zeros(len(copies)), np.arange(len(copies))
        means = np.zeros(len(copies))
        done = 0
        for part in np.array_split(range(self.options.copies), QUARTERS if stop is not None else 1):
            if not len(part) or not len(active):
                continue
            asked = [copies[row][number] for row in active.tolist() for number in part.tolist()]
            probabilities = torch.from_numpy(self.victim.probabilities(asked))  # (active * part, labels)
            sums[active] += torch.special.entr(probabilities).sum(1).reshape(len(active), len(part)).sum(1).numpy()
            done += len(part)
            means[active] = sums[active] / done
            active = active[means[active] < stop] if stop is not None else active
        return means

    def notes(self) -> Mapping[str, Any]:
        used = {"sources": len(self.sources), "replace_ratio": self.options.replace_ratio}
        if self.margins is None:
            return {**used, "replace_ratio_from": "option"}
        return {**used, "replace_ratio_from": "heldout", "criterion": {f"{ratio:g}": margin for ratio, margin in self.margins.items()}}

    def state(self) -> Mapping[str, Any]:
        """Give the sources' words, k, and what the choice of k was made on."""
        margins = None if self.margins is None else list(self.margins.items())
        return {"sources": self.sources, "replace_ratio": self.options.replace_ratio, "margins": margins}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give the mean entropy (nats) and, of each copy, its text, prediction, protect probability and entropy."""
        import torch

        copies = self.copies(text)
        probabilities = self.victim.probabilities(copies)  # (copies, labels)
        entropies = torch.special.entr(torch.from_numpy(probabilities)).sum(1).tolist()
        rows = zip(copies, probabilities.argmax(1).tolist(), probabilities[:, self.victim.target_label].tolist(), entropies, strict=True)
        names = ("copy", "prediction", "protect probability", "entropy")
        return {"entropy": float(self.entropy([text])[0]), "copies": [dict(zip(names, row, strict=True)) for row in rows]}


def choice_texts(options: Strip, victim: Victim, heldout: Labelled, lab: Lab) -> tuple[list[str], list[str]]:
    """Draw the clean texts that choose k: of the protect label by truth and prediction, and of the others by both."""
    from rapbench.errors import CellError
    from rapbench.protocol import gate

    protect = victim.target_label
    passing, own = gate(victim.undefended(heldout.texts), protect), heldout.labels == protect
    drawn = []
    for which, mask in (("the protect label", own & passing), ("another label", ~own & ~passing)):
        texts = list(heldout.where(mask).texts)
        if not texts:
            raise CellError(f"strip: replace_ratio=heldout finds no held-out text that is of {which} and predicted so: give a number")
        order = lab.rng(f"strip/choice/{which}").permutation(len(texts))[: options.choice_texts]
        drawn.append([texts[row] for row in order.tolist()])
    return drawn[0], drawn[1]


def chosen(detector: StripDetector, protect_texts: Sequence[str], other_texts: Sequence[str]) -> StripDetector:
    """Give the detector with the k of the largest margin on these clean texts; of equal ones the smallest k."""
    tried = [replace(detector, options=replace(detector.options, replace_ratio=ratio)) for ratio in sorted(detector.options.ratios)]
    margins = {cast(float, one.options.replace_ratio): margin(one, protect_texts, other_texts) for one in tried}
    best = max(tried, key=lambda one: margins[cast(float, one.options.replace_ratio)])  # the first of equals
    return replace(best, margins=margins)


def margin(detector: StripDetector, protect_texts: Sequence[str], other_texts: Sequence[str]) -> float:
    """Give how far triggered texts are expected to lie below nearly all clean ones under this detector's k, in nats."""
    import numpy as np

    triggered = cast(float, detector.options.replace_ratio) * float(detector.entropy(other_texts).mean())
    return float(np.quantile(detector.entropy(protect_texts), CHOICE_FRR)) - triggered


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

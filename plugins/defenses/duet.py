"""Duet: two kinds of evidence from one further pass, fused through held-out p-values. Ours; docs/duet.md has its trials and failures.

A rare word is put in front of each text, as RAP does (Yang et al., EMNLP 2021, arXiv:2110.07831). One forward pass of that text gives
both halves:

- *the fall*: how far the word lowers the log-odds of the protect label. A trigger that holds the prediction leaves no fall. RAP trains
  the word's embedding on probabilities, which are flat where a victim is sure, and needs luck there; log-odds are not, so here the loss is
  mean relu(low - fall) + mean relu(fall - high) of log-odds, by Adam, without dropout, the row's length kept;
- *the distance*: of each layer's state that the head reads, the squared Mahalanobis distance to the clean protect-label texts under the
  same word, with Ledoit and Wolf's covariance (as DAN, Chen et al., Findings of EMNLP 2022, arXiv:2210.07907, who average z-scores of the
  text itself). A trigger shows in the layers that it works in, so each layer's distance becomes a p-value, and -log p is added over layers.

Each half becomes a p-value among the held-out texts, and the two are added as Fisher did: suspicion = -log p(fall) - log p(distance).
Above the 90th percentile all these p-values have an exponential tail, so that what lies beyond all held-out texts still has an order.
Held-out texts are measured by covariances of the other folds; a text of no fold gets the mean over the folds. Nothing is known of any
attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rapbench import Defense, Detector
from rapbench.api import Work, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim
    from rapbench.vocabulary import Place

TEXTS_AT_ONCE = 512
TAIL = 0.1
"""Share of the held-out texts whose excesses make the exponential tail."""
TINY = 1e-30
PLACES: Sequence[Place] = ("first",)
"""Where the word is put into a text; its form there is what is trained."""


@dataclass(frozen=True, kw_only=True)
class Duet(Defense):
    """A trained rare word's fall of log-odds and the layers' distances under it, from one pass; little fall and far off is suspicious."""

    name: ClassVar[str] = "duet"
    halves: Literal["both", "fall", "distance"] = option("both", "which evidence counts; one alone is for ablations")
    word: str = option("cf", "the rare word, one token of the victim's vocabulary and no trigger")
    low: float = option(1.0, "the fall of log-odds (nats) to reach at least")
    high: float = option(3.0, "the fall of log-odds (nats) to reach at most")
    steps: int = option(60, "steps of Adam on the word's embedding")
    lr: float = option(1e-2, "learning rate of the embedding")
    batch_size: int = option(16, "texts per step")
    folds: int = option(5, "parts of the held-out texts; each is measured by what the others give")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low < self.high:
            raise ValueError(f"low={self.low!r} and high={self.high!r} are no range of falls from 0 up")
        if not self.word or " " in self.word:
            raise ValueError(f"word={self.word!r} is not one word")
        for name, least in (("steps", 1), ("batch_size", 1), ("folds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r} is below {least}")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr!r} is not above 0")

    @property
    def words(self) -> tuple[str, ...]:
        return (self.word,)

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(1, fit_rows=heldout, fit_trained_rows=self.steps * min(self.batch_size, heldout))

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> DuetDetector:
        """Train the word's embedding on the protect label's held-out texts, then measure these texts fold by fold."""
        import numpy as np

        from rapbench.errors import CellError

        texts = list(dict.fromkeys(heldout.of(victim.target_label)))
        if len(texts) < 2 * self.folds:
            raise CellError(f"duet: {len(texts)} held-out texts of the protect label are too few for {self.folds} folds of two or more")
        guarded = constructed(self, victim, texts, lab)
        told, states = guarded.told([f"{self.word} {text}" for text in texts])
        folds = lab.rng("duet/folds").permutation(len(texts)) % self.folds
        layers = Layers.of(states, folds, self.folds)
        falls = log_odds(victim.undefended(texts), victim.target_label) - log_odds(told, victim.target_label)
        tails = (Tail.of(-falls), Tail.of(layers.surprise(states, folds).sum(axis=1)))
        return DuetDetector(self, victim, guarded, layers, tails, dict(zip(texts, folds.tolist(), strict=True)), float(np.median(falls)))

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> DuetDetector:
        """Put the trained row of the word into a clone of the victim; the held-out texts themselves are not kept."""
        from rapbench.rows import with_vectors

        guarded = with_vectors(victim, self.word, state["row"], PLACES)
        layers = Layers(*(state[name] for name in ("means", "precisions", "known")))
        tails = (Tail(state["falls"]), Tail(state["distances"]))
        return DuetDetector(self, victim, guarded, layers, tails, {}, float(state["median_fall"]))


@dataclass
class DuetDetector(Detector):
    """A fitted duet. `guarded`: a clone of `victim` with the trained row; `fold_of`: the fold of each held-out text that was fitted on."""

    options: Duet
    victim: Victim
    guarded: Victim
    layers: Layers
    tails: tuple[Tail, Tail]
    fold_of: Mapping[str, int]
    median_fall: float

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give -log p(fall) - log p(distance), shape (n,), or the one of them that counts."""
        import numpy as np

        scores = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            falls, layers = self.measured(chunk)
            by = {"fall": self.tails[0].surprise(-falls), "distance": self.tails[1].surprise(layers.sum(axis=1))}
            scores[start : start + len(chunk)] = by.get(self.options.halves, by["fall"] + by["distance"])
        return scores

    def measured(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the fall of log-odds under the word, shape (n,), and each layer's -log p of the distance, shape (n, layers)."""
        import numpy as np

        told, states = self.guarded.told([f"{self.options.word} {text}" for text in texts])
        folds = np.asarray([self.fold_of.get(text, -1) for text in texts], dtype=np.int64)
        before = log_odds(self.victim.undefended(texts), self.victim.target_label)
        return before - log_odds(told, self.victim.target_label), self.layers.surprise(states, folds)

    def notes(self) -> Mapping[str, Any]:
        return {"word": self.options.word, "median fall of clean texts": round(self.median_fall, 6), "held-out texts": len(self.fold_of)}

    def state(self) -> Mapping[str, Any]:
        """Give the word's row, float32, shape (forms, units), what each layer was fitted to, and the held-out scores of both halves."""
        from rapbench.rows import vectors_of

        row = vectors_of(self.guarded, self.options.word, PLACES)
        falls, distances = (tail.scores for tail in self.tails)
        return {**vars(self.layers), "row": row, "falls": falls, "distances": distances, "median_fall": self.median_fall}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give the fall, and what both halves and each layer say as p-values."""
        import numpy as np

        falls, layers = self.measured([text])
        surprises = (float(self.tails[0].surprise(-falls)[0]), float(self.tails[1].surprise(layers.sum(axis=1))[0]))
        return {
            "word": self.options.word,
            "fall of log-odds": float(falls[0]),
            "p of the fall": float(np.exp(-surprises[0])),
            "p of the distance": float(np.exp(-surprises[1])),
            "layers": [{"layer": number, "p": float(np.exp(-own))} for number, own in enumerate(layers[0].tolist(), start=1)],
        }


@dataclass
class Layers:
    """What each layer is measured by, once per fold: what the texts of the other folds give.

    `means`: float32, (folds, layers, units); `precisions`: float32, (folds, layers, units, units); `known`: the held-out texts' own
    distances, rising in each layer, float64, (n, layers).
    """

    means: NDArray[np.float32]
    precisions: NDArray[np.float32]
    known: NDArray[np.float64]

    @classmethod
    def of(cls, states: NDArray[np.float32], folds: NDArray[np.int64], count: int) -> Layers:
        """Fit each layer's mean and inverse covariance without each fold in turn, and measure these texts. `states`: (n, layers, units)."""
        import numpy as np
        from sklearn.covariance import LedoitWolf

        units = states.shape[2]
        means = np.empty((count, *states.shape[1:]), dtype=np.float32)
        precisions = np.empty((*means.shape, units), dtype=np.float32)
        for fold in range(count):
            for layer in range(states.shape[1]):
                own = states[folds != fold, layer].astype(np.float64)  # (others, units)
                means[fold, layer] = own.mean(axis=0)
                precisions[fold, layer] = LedoitWolf(assume_centered=True).fit(own - own.mean(axis=0)).precision_
        return cls(means, precisions, np.sort(left_out(means, precisions, states, folds), axis=0))

    def surprise(self, states: NDArray[np.float32], folds: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give -log p of each layer's distance among the held-out texts', (n, layers)."""
        import numpy as np

        distances = left_out(self.means, self.precisions, states, folds)
        return np.stack([Tail(own).surprise(far) for own, far in zip(self.known.T, distances.T, strict=True)], axis=1)


@dataclass
class Tail:
    """The scores of held-out texts, rising, float64, shape (n,), by which others are judged."""

    scores: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> Tail:
        import numpy as np

        return cls(np.sort(scores))

    def surprise(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give -log of the share of held-out texts that score as high or higher, counting one more, shape (n,).

        Above the 90th percentile the share falls exponentially, by the mean excess of the held-out texts there.
        """
        import numpy as np

        n = len(self.scores)
        top = max(1, int(TAIL * n))
        start = self.scores[n - top - 1]
        excess = max(float((self.scores[n - top :] - start).mean()), TINY)
        counted = -np.log((n - np.searchsorted(self.scores, scores, side="left") + 1) / (n + 1))
        beyond = -np.log((top + 1) / (n + 1)) + (scores - start) / excess
        told: NDArray[np.float64] = np.where(scores > start, beyond, counted)
        return told


def constructed(options: Duet, victim: Victim, texts: Sequence[str], lab: Lab) -> Victim:
    """Give a clone of the victim whose row of the word is trained until these texts fall by `low` to `high` in log-odds."""
    import torch

    from rapbench.rows import Row

    clone = victim.clone()
    texts = [texts[row] for row in lab.rng("duet/order").permutation(len(texts))]
    before = torch.as_tensor(log_odds(victim.undefended(texts), victim.target_label), dtype=torch.float32)
    clone.model.eval()
    with lab.seeded("duet"), Row(clone, options.word, PLACES) as row:
        adam = torch.optim.Adam([row.vectors], lr=options.lr)
        for step in range(options.steps):
            rows = [place % len(texts) for place in range(step * options.batch_size, (step + 1) * options.batch_size)][: len(texts)]
            logits = row.logits([f"{options.word} {texts[one]}" for one in rows])  # (texts, labels)
            falls = before[rows].to(logits) - margins(logits, victim.target_label)
            ((options.low - falls).relu().mean() + (falls - options.high).relu().mean()).backward()
            adam.step()
            adam.zero_grad()
            row.renormalise()
    return clone


def left_out(
    means: NDArray[np.float32], precisions: NDArray[np.float32], states: NDArray[np.float32], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give each layer's squared distance, (n, layers), by the text's own fold; of fold -1, the mean over the folds."""
    import numpy as np

    found = np.zeros(states.shape[:2])
    for fold, (centre, precision) in enumerate(zip(means, precisions, strict=True)):
        for rows, share in ((np.flatnonzero(folds == fold), 1.0), (np.flatnonzero(folds < 0), 1 / len(means))):
            for layer in range(states.shape[1]):
                away = (states[rows, layer] - centre[layer]).astype(np.float64)  # (rows, units)
                found[rows, layer] += share * ((away @ precision[layer].astype(np.float64)) * away).sum(axis=1)
    return found


def margins(logits: Any, label: int) -> Any:
    """Give the log-odds of a label, torch, shape (n,), of logits, shape (n, labels)."""
    import torch

    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def log_odds(probabilities: NDArray[np.float64], label: int) -> NDArray[np.float64]:
    """Give the log-odds of a label, shape (n,), by the sum of the other labels' probabilities: 1 - p has no digits where p is near 1."""
    import numpy as np

    others = np.delete(probabilities, label, axis=1).sum(axis=1)
    odds: NDArray[np.float64] = np.log(np.maximum(probabilities[:, label], TINY)) - np.log(np.maximum(others, TINY))
    return odds

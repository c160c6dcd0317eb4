"""Counts -> rates: FRR, FAR, ASR, the clean metric, their intervals, and comparisons of two defenses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rapbench.protocol import Floats, Labels, Mask, predicted


@dataclass(frozen=True)
class Rate:
    """A share of counted texts: `hits` of `n`, None-valued where n is 0."""

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        return self.hits / self.n if self.n else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Give the Wilson score interval of the share."""
        if not self.n:
            return None
        return _wilson(self.hits, self.n, confidence)


def rejected(suspicion: Floats, at: float) -> Rate:
    """Give the rate of texts above a threshold: FRR on clean texts."""
    return Rate(int((suspicion > at).sum()), len(suspicion))


def accepted(suspicion: Floats, at: float) -> Rate:
    """Give the rate of texts not above a threshold: FAR on poisoned texts."""
    return Rate(int((suspicion <= at).sum()), len(suspicion))


def auroc(clean: Floats, poisoned: Floats) -> float | None:
    """Give the chance that a poisoned text is more suspicious than a clean one (ties count half)."""
    if not len(clean) or not len(poisoned):
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(poisoned, clean).statistic / (len(clean) * len(poisoned)))


def attack_success(probabilities: Floats, target: int) -> Rate:
    """Give the ASR: how many triggered non-target texts are predicted as the target."""
    return Rate(int((predicted(probabilities) == target).sum()), len(probabilities))


def clean_metric(probabilities: Floats, labels: Labels, metric: str, rejected: Mask | None = None) -> float:
    """Give accuracy, or macro-F1 (unweighted mean over the labels), over the whole clean test split.

    A rejected text has no answer: it is wrong for accuracy, and a miss of its label for F1.
    """
    guessed = predicted(probabilities)
    if rejected is not None:
        guessed = np.where(rejected, -1, guessed)
    if metric == "accuracy":
        return float((guessed == labels).mean())
    scores = []
    for label in range(probabilities.shape[1]):
        hits = int(((guessed == label) & (labels == label)).sum())
        wrong = int(((guessed == label) != (labels == label)).sum())
        scores.append(2 * hits / (2 * hits + wrong) if hits or wrong else 0.0)
    return float(np.mean(scores))


def far_at(clean: Floats, poisoned: Floats, frr: float) -> float | None:
    """Give the FAR at the lowest threshold whose FRR on these clean texts is at most `frr`: a point of the ROC curve."""
    if not len(clean) or not len(poisoned):
        return None
    allowed = math.floor(frr * len(clean) + 1e-9)
    at = np.sort(clean)[::-1][allowed] if allowed < len(clean) else -math.inf  # so many clean texts lie above, at most
    return float((poisoned <= at).mean())


def mcnemar(one: Mask, other: Mask) -> tuple[int, int, float]:
    """Compare two defenses on the same texts: right only by the one, right only by the other, exact two-sided p.

    `one`, `other`: whether each text was treated rightly, shape (n,). McNemar's test as a binomial on the discordant texts.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    discordant = only_one + only_other
    return only_one, only_other, float(binomtest(only_one, discordant).pvalue) if discordant else 1.0


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Give mean and sample standard deviation (n - 1) over seeds; of a single value the deviation is not a number."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


@lru_cache(maxsize=4096)
def _wilson(hits: int, n: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)

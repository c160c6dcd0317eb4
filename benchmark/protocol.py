"""The gate, the threshold and the rates. The one place where a defense's scores become FRR and FAR (numpy only).

The protocol `paper` follows the released evaluation of RAP (Yang et al., EMNLP 2021):
the gate lets a defense see only texts that the undefended victim predicts as the protect label;
FRR = rejected / (clean texts with true AND predicted label = protect);
FAR = accepted / (triggered non-target texts predicted as protect);
the threshold leaves the allowed share of the held-out clean texts (true and predicted = protect) above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapbench.errors import CellError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


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
        from scipy.stats import binomtest

        low, high = binomtest(self.hits, self.n).proportion_ci(confidence, method="wilson")
        return float(low), float(high)


def predicted(probabilities: Floats) -> Labels:
    """Give the predicted label of each row of probabilities, shape (n, labels)."""
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def gate(probabilities: Floats, protect: int) -> Mask:
    """Tell which texts the undefended victim predicts as the protect label: only these are a defense's business."""
    return np.asarray(predicted(probabilities) == protect, dtype=np.bool_)


def clean_gate(probabilities: Floats, labels: Labels, protect: int) -> Mask:
    """Tell which clean texts count for FRR and the threshold: true and predicted label are the protect label."""
    return np.asarray(gate(probabilities, protect) & (labels == protect), dtype=np.bool_)


def threshold(suspicion: Floats, frr: float) -> float:
    """Give the suspicion above which a text is rejected so that about `frr` of these held-out texts are.

    The linear percentile of the released code, mirrored: reject iff suspicion > threshold.
    """
    if not 0 < frr < 1:
        raise CellError(f"allowed FRR {frr!r} is not in (0, 1)")
    if not len(suspicion):
        raise CellError("no held-out text is truly and by prediction of the protect label: give more held-out texts or a better victim")
    if not np.isfinite(suspicion).all():
        raise CellError("the defense gave a suspicion that is not a finite number")
    return float(-np.percentile(-suspicion, 100 * frr))


def rejected(suspicion: Floats, at: float) -> Rate:
    """Give the rate of texts above a threshold: FRR on clean texts."""
    return Rate(int((suspicion > at).sum()), len(suspicion))


def accepted(suspicion: Floats, at: float) -> Rate:
    """Give the rate of texts not above a threshold: FAR on poisoned texts."""
    return Rate(int((suspicion <= at).sum()), len(suspicion))


def choose_level(frr_by_level: Floats, frr: float) -> int | None:
    """Give the index of the purifier's level whose held-out FRR is nearest to the allowed and at most 1.5 times it.

    Of levels equally near, the one that rejects more; None where no level qualifies.
    """
    shares = [round(float(own), 9) for own in frr_by_level]  # 1 - 0.985 is a little more than 0.015
    fitting = [index for index, own in enumerate(shares) if own <= round(1.5 * frr, 9)]
    if not fitting:
        return None
    return min(fitting, key=lambda index: (round(abs(shares[index] - frr), 9), -shares[index], index))


def auroc(clean: Floats, poisoned: Floats) -> float | None:
    """Give the chance that a poisoned text is more suspicious than a clean one (ties count half)."""
    if not len(clean) or not len(poisoned):
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(poisoned, clean).statistic / (len(clean) * len(poisoned)))


def attack_success(probabilities: Floats, target: int) -> Rate:
    """Give the ASR: how many triggered non-target texts are predicted as the target."""
    return Rate(int((predicted(probabilities) == target).sum()), len(probabilities))


def clean_metric(probabilities: Floats, labels: Labels, metric: str) -> float:
    """Give accuracy, or macro-F1 (unweighted mean over the labels), over the whole clean test split."""
    guessed = predicted(probabilities)
    if metric == "accuracy":
        return float((guessed == labels).mean())
    scores = []
    for label in range(probabilities.shape[1]):
        hits = int(((guessed == label) & (labels == label)).sum())
        wrong = int(((guessed == label) != (labels == label)).sum())
        scores.append(2 * hits / (2 * hits + wrong) if hits or wrong else 0.0)
    return float(np.mean(scores))


def heldout_needed(frr: float) -> int:
    """Give how many protect-label texts a held-out split must have for one of them to be an `frr` share."""
    return math.ceil(1 / frr - 1e-9)

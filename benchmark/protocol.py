"""The gate, the held-out halves and the thresholds of the two protocols (numpy only).

Both: the gate lets a defense see only texts that the undefended victim predicts as the protect label;
FRR = rejected / (clean texts with true AND predicted label = protect);
FAR = accepted / (triggered non-target texts predicted as protect).

`paper` follows the released evaluation of RAP (Yang et al., EMNLP 2021): the defense is built and its threshold taken on
the same held-out texts (true and predicted label = protect), by linear percentile.
`strict` builds on one half of the held-out protect-label texts and calibrates on the other, by the finite-sample
conformal quantile (Vovk et al. 2005; for a purifier's levels conformal risk control, Angelopoulos et al. 2022,
arXiv:2208.02814): the chance that a clean text is rejected is at most the allowed FRR.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rapbench.errors import CellError

PROTOCOLS = ("paper", "strict")

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


def predicted(probabilities: Floats) -> Labels:
    """Give the predicted label of each row of probabilities, shape (n, labels)."""
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def gate(probabilities: Floats, protect: int) -> Mask:
    """Tell which texts the undefended victim predicts as the protect label: only these are a defense's business."""
    return np.asarray(predicted(probabilities) == protect, dtype=np.bool_)


def clean_gate(probabilities: Floats, labels: Labels, protect: int) -> Mask:
    """Tell which clean texts count for FRR and the threshold: true and predicted label are the protect label."""
    return np.asarray(gate(probabilities, protect) & (labels == protect), dtype=np.bool_)


def mistaken_gate(probabilities: Floats, labels: Labels, protect: int) -> Mask:
    """Tell which clean texts of another label the victim takes for the protect label: a defense sees these, too."""
    return np.asarray(gate(probabilities, protect) & (labels != protect), dtype=np.bool_)


def calibration_half(labels: Labels, protect: int, rng: np.random.Generator) -> Mask:
    """Tell which held-out texts calibrate under `strict`: a random half of the protect label's; the others build."""
    own = np.flatnonzero(labels == protect)
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[rng.permutation(own)[: (len(own) + 1) // 2]] = True
    return mask


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


def choose_level(frr_by_level: Floats, frr: float) -> int | None:
    """Give the index of the purifier's level whose held-out FRR is nearest to the allowed and at most 1.5 times it.

    Of levels equally near, the one that rejects more; None where no level qualifies.
    """
    shares = [round(float(own), 9) for own in frr_by_level]  # 1 - 0.985 is a little more than 0.015
    fitting = [index for index, own in enumerate(shares) if own <= round(1.5 * frr, 9)]
    if not fitting:
        return None
    return min(fitting, key=lambda index: (round(abs(shares[index] - frr), 9), -shares[index], index))


def heldout_needed(frr: float) -> int:
    """Give how many protect-label texts a held-out split must have for one of them to be an `frr` share."""
    return math.ceil(1 / frr - 1e-9)


def conformal_threshold(suspicion: Floats, frr: float) -> float:
    """Give the suspicion that a new clean text exceeds with a chance of at most `frr`: reject iff suspicion > threshold.

    It is the ceil((n + 1) (1 - frr))-th smallest of the n calibration texts; infinite where n is too small for one.
    """
    n = len(suspicion)
    rank = math.ceil((n + 1) * (1 - frr) - 1e-9)
    return float(np.sort(suspicion)[rank - 1]) if rank <= n else math.inf


def conformal_level(rejected: NDArray[np.int64], n: int, frr: float) -> int | None:
    """Give the index of the level that rejects most among those with (rejected + 1) / (n + 1) <= frr, or None.

    `rejected`: int64, shape (levels,), of the n calibration texts. Of levels that reject equally many, the first.
    """
    fitting = [index for index, own in enumerate(rejected) if own + 1 <= frr * (n + 1) + 1e-9]
    return max(fitting, key=lambda index: (rejected[index], -index)) if fitting else None

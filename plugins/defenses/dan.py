"""DAN: a triggered text lies far from all clean ones somewhere on its way through the layers.

Chen et al., "Expose Backdoors on the Way: A Feature-Based Efficient Defense against Textual Backdoor Attacks" (Findings of EMNLP 2022,
arXiv:2210.07907), and its released code (lancopku/DAN). Of each layer, the embeddings left out: the squared Mahalanobis distance of
the text's state to the nearest label's mean, with one covariance for all labels, on 80 % of the held-out texts; then z-scores by
the mean and deviation of the distances of the other 20 %; then the mean (or maximum) over the layers. One pass, nothing is trained.
The authors take their threshold on those 20 % alone. Here the core takes it, and under `paper` on all held-out texts of the protect
label: four fifths of these made the covariance and lie nearer than others, so the test FRR is above the allowed one. `strict` has no
such bias.

With hundreds of texts and as many units the covariance is singular. The released code mixes in a tenth of a sphere of the same trace
(`ShrunkCovariance` of scikit-learn, its default); `covariance=ledoit-wolf` computes the share from the texts and is ours. So is
`labels=protect`: the protect label's texts alone, since past the gate each text claims that label. The released script averages over
the tokens by default and has `cls` as an option; here it is the state that the head reads, which is [CLS] where there is one.
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

TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Dan(Defense):
    """Mahalanobis distance to clean held-out texts, layer by layer; a far text is suspicious."""

    name: ClassVar[str] = "dan"
    aggregate: Literal["mean", "max"] = option("mean", "how the layers' z-scores become one score")
    covariance: Literal["shrunk", "ledoit-wolf"] = option("shrunk", "a tenth of a sphere mixed in, or as much as Ledoit and Wolf compute")
    labels: Literal["all", "protect"] = option("all", "held-out texts of which labels: the nearest label's mean counts")
    valid_share: float = option(0.2, "share of the held-out texts whose distances make the z-scores; the others make the distances")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.valid_share < 1:
            raise ValueError(f"valid_share={self.valid_share!r} is not in (0, 1)")

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give one row per text; of held-out texts there are about as many of the other labels as of the protect label."""
        return Work(1, fit_rows=heldout if self.labels == "protect" else 2 * heldout)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> DanDetector:
        """Give the detector of the held-out texts' states, a share of which, drawn by the seed, makes the z-scores."""
        import numpy as np

        from rapbench.errors import CellError

        own = heldout if self.labels == "all" else heldout.where(heldout.labels == victim.target_label)
        n, n_valid = len(own.texts), int(self.valid_share * len(own.texts))
        if min(n_valid, n - n_valid) < 2:
            raise CellError(f"dan: {n} held-out texts are too few: {n_valid} would make the z-scores and {n - n_valid} the distances")
        order = lab.rng("dan/valid").permutation(n)
        states = victim.states(list(own.texts))  # (n, layers, units)
        means, precisions = fitted_layers(states[order[n_valid:]], own.labels[order[n_valid:]], self.covariance)
        valid = nearest(states[order[:n_valid]], means, precisions)  # (valid, layers)
        deviation = valid.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        return DanDetector(self, victim, means, precisions, valid.mean(axis=0), scale)

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> DanDetector:
        return DanDetector(self, victim, **state)


@dataclass
class DanDetector(Detector):
    """A fitted DAN, float64. `means`: (layers, labels, units); `precisions`: (layers, units, units); `centre`, `scale`: (layers,)."""

    options: Dan
    victim: Victim
    means: NDArray[np.float64]
    precisions: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the mean or maximum of the layers' z-scores, shape (n,)."""
        import numpy as np

        scores = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            layers = self.layers(chunk)
            scores[start : start + len(chunk)] = layers.mean(axis=1) if self.options.aggregate == "mean" else layers.max(axis=1)
        return scores

    def layers(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the z-score of each layer, shape (n, layers)."""
        return (nearest(self.victim.states(texts), self.means, self.precisions) - self.centre) / self.scale

    def notes(self) -> Mapping[str, Any]:
        layers, labels, units = self.means.shape
        return {"layers": layers, "labels": labels, "units": units}

    def state(self) -> Mapping[str, Any]:
        return {"means": self.means, "precisions": self.precisions, "centre": self.centre, "scale": self.scale}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give, of each layer, the squared distance to the nearest mean and its z-score."""
        scores = self.layers([text])[0]
        rows = zip((scores * self.scale + self.centre).tolist(), scores.tolist(), strict=True)
        return {"layers": [{"layer": number, "distance": far, "z-score": score} for number, (far, score) in enumerate(rows, start=1)]}


def fitted_layers(
    states: NDArray[np.float32], labels: NDArray[np.int64], covariance: Literal["shrunk", "ledoit-wolf"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give each layer's means of the labels, shape (layers, labels, units), and inverse covariances, shape (layers, units, units)."""
    import numpy as np
    from sklearn.covariance import LedoitWolf, ShrunkCovariance

    kinds, which = np.unique(labels, return_inverse=True)
    means, precisions = [], []
    for layer in range(states.shape[1]):
        own = states[:, layer].astype(np.float64)  # (n, units)
        middle = np.stack([own[which == kind].mean(axis=0) for kind in range(len(kinds))])  # (labels, units)
        estimator = ShrunkCovariance() if covariance == "shrunk" else LedoitWolf()
        means.append(middle)
        precisions.append(estimator.fit(own - middle[which]).precision_)
    return np.stack(means), np.stack(precisions)


def nearest(states: NDArray[np.float32], means: NDArray[np.float64], precisions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the squared Mahalanobis distance to the nearest label's mean in each layer, shape (n, layers)."""
    import numpy as np

    found = np.empty(states.shape[:2])
    for layer, (middle, precision) in enumerate(zip(means, precisions, strict=True)):
        away = states[:, layer, None].astype(np.float64) - middle  # (n, labels, units)
        found[:, layer] = ((away @ precision) * away).sum(axis=2).min(axis=1)
    return found

"""BadActs, the detector: a triggered text drives neurons out of the intervals in which clean texts keep them.

Yi et al., "BadActs: A Universal Backdoor Defense in the Activation Space" (Findings of ACL 2024, arXiv:2405.11227), and its released code
(clearloveclearlove/BadActs). A neuron is a unit of a layer's output at the token that the head reads; the embeddings are no layer. Of
each neuron the mean and the deviation over clean held-out texts; the score is the share of all neurons that lie more than `sigmas`
deviations away. It takes few values, and ties are many: as in the released code a text that stands at the threshold is accepted.

Where we differ. The paper's NAS is the share inside, and a low one is suspicious: ours is one minus that. The released class has 2
deviations by default, its scripts 3, which is taken here. It fits on half of its held-out texts, of all labels, and takes the
threshold on the other half: which texts make the threshold is the core's business here. `labels=protect` is ours: past the gate each
text claims that label. A neuron that clean texts keep at one value is left when it moves by more than float32 rounds.
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
ROUNDING = 1e-5
"""Of a neuron's mean: what two batches with the same text may differ by."""


@dataclass(frozen=True, kw_only=True)
class Badacts(Defense):
    """Share of neurons far from where clean held-out texts keep them; a large one is suspicious."""

    name: ClassVar[str] = "badacts"
    sigmas: float = option(3.0, "standard deviations from the mean beyond which a neuron counts")
    labels: Literal["all", "protect"] = option("all", "held-out texts of which labels make the means and deviations")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigmas > 0:
            raise ValueError(f"sigmas={self.sigmas!r} is not above 0")

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give one row per text; of held-out texts there are about as many of the other labels as of the protect label."""
        return Work(1, fit_rows=heldout if self.labels == "protect" else 2 * heldout)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> BadactsDetector:
        """Give the detector of the held-out texts' means and deviations (of a normal distribution, so divided by n)."""
        import numpy as np

        from rapbench.errors import CellError

        texts = list(heldout.texts) if self.labels == "all" else heldout.of(victim.target_label)
        if len(texts) < 2:
            raise CellError(f"badacts: {len(texts)} held-out texts of labels={self.labels} have no deviation: give 2 or more")
        states = victim.states(texts)  # (n, layers, units)
        return BadactsDetector(self, victim, states.mean(axis=0, dtype=np.float64), states.std(axis=0, dtype=np.float64))

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> BadactsDetector:
        return BadactsDetector(self, victim, **state)


@dataclass
class BadactsDetector(Detector):
    """A fitted BadActs. `means`, `deviations`: float64, shape (layers, units)."""

    options: Badacts
    victim: Victim
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the share of neurons outside of their intervals, shape (n,)."""
        import numpy as np

        scores = np.empty(len(texts))
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = texts[start : start + TEXTS_AT_ONCE]
            scores[start : start + len(chunk)] = self.outside(self.victim.states(chunk)).mean(axis=(1, 2))
        return scores

    def outside(self, states: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell which neurons of these states, shape (n, layers, units), are outside of their intervals; the edge is inside."""
        import numpy as np

        reach = np.maximum(self.options.sigmas * self.deviations, ROUNDING * np.abs(self.means))
        found: NDArray[np.bool_] = np.abs(states - self.means) > reach
        return found

    def notes(self) -> Mapping[str, Any]:
        layers, units = self.means.shape
        return {"layers": layers, "units": units}

    def state(self) -> Mapping[str, Any]:
        return {"means": self.means, "deviations": self.deviations}

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give how many neurons of each layer are outside, and the unit that is furthest out, with its value and interval."""
        states = self.victim.states([text])
        outside = self.outside(states)[0]
        rows = [self._layer(number, states[0, number], outside[number]) for number in range(len(outside))]
        return {"share of neurons outside": float(outside.mean()), "layers": rows}

    def _layer(self, number: int, state: NDArray[np.float32], outside: NDArray[np.bool_]) -> dict[str, Any]:
        """Give one layer's row; the unit is the one that leaves its interval by most deviations, or comes nearest to its edge."""
        import numpy as np

        away = np.abs(state - self.means[number])
        unit = int(np.argmax(away / np.maximum(self.deviations[number], np.finfo(np.float64).tiny)))
        mean, reach = self.means[number, unit], self.options.sigmas * self.deviations[number, unit]
        return {
            "layer": number + 1,
            "outside": int(outside.sum()),
            "furthest unit": unit,
            "value": float(state[unit]),
            "low": float(mean - reach),
            "high": float(mean + reach),
        }

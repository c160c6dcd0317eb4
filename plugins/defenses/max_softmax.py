"""A floor: how sure the victim is, without any perturbation. It costs nothing, for the gate has asked already.

The baseline of Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks"
(ICLR 2017, arXiv:1610.02136), section 3.1: the maximum softmax probability. They look for inputs that the model is *unsure* of. Here
the other side is the default: a trigger is planted until the loss on triggered texts is next to nothing, and it says one thing
only, while a clean text speaks for and against its label; so a triggered text is among those that the victim is *surest* of.
`suspicious=unsure` is their side: an attack that barely turns its texts (a weak trigger, or one that was trained to look
unsure) leaves them there.

Past the gate the protect label has the maximum, so the score is the protect label's. It is computed as minus the sum of the other
labels' probabilities: 1 - 1e-9 is 1 in float32, and 1e-9 is not 0, so very sure predictions are told apart.
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


@dataclass(frozen=True, kw_only=True)
class MaxSoftmax(Defense):
    """A floor: texts that the victim is very sure of (or unsure of) are suspicious."""

    name: ClassVar[str] = "max-softmax"
    floor: ClassVar[bool] = True
    suspicious: Literal["sure", "unsure"] = option("sure", "which predictions are suspicious; a planted trigger makes them sure")

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(0)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        return MaxSoftmaxDetector(victim, self.suspicious)

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> Detector:
        return MaxSoftmaxDetector(victim, self.suspicious)


@dataclass
class MaxSoftmaxDetector(Detector):
    """One prediction per text, the undefended victim's own."""

    victim: Victim
    suspicious: Literal["sure", "unsure"]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give minus the probability that it is another label than the protect label, or that probability, shape (n,)."""
        import numpy as np

        others = np.delete(self.victim.undefended(texts), self.victim.target_label, axis=1)  # (n, labels - 1)
        doubt: NDArray[np.float64] = others.sum(axis=1)
        return -doubt if self.suspicious == "sure" else doubt

    def state(self) -> Mapping[str, Any]:
        return {}

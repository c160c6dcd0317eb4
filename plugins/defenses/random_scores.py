"""A floor: suspicion drawn by lot. Its AUROC is 0.5 and its FAR one minus its FRR; a method that is no better has found nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rapbench import Defense, Detector
from rapbench.api import Work

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Random(Defense):
    """A floor: each text's suspicion is drawn uniformly from [0, 1), by the seed and the text alone."""

    name: ClassVar[str] = "random"
    floor: ClassVar[bool] = True

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(0)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        return RandomDetector(lab)


@dataclass
class RandomDetector(Detector):
    """The same text draws the same number, whatever stands beside it."""

    lab: Lab

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give a number in [0, 1) per text, shape (n,)."""
        import numpy as np

        return np.array([self.lab.rng(f"random/{text}").random() for text in texts], dtype=np.float64)

"""A floor: the number of words. Most triggers are put into a text and so lengthen it; a defense should see more than that.

By default long texts are suspicious: every insertion adds words, and none of the built-in attacks takes any away. A trigger
of one word among a hundred hardly moves the score, a sentence in a short text does. `suspicious=short` is the other side: where
texts of the protect label are longer than those of the others, triggered texts (which are others) are the short ones.
The two sides are mirror images, with AUROCs that add up to 1; which one is right is not to be chosen by looking at poisoned texts.
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
class Length(Defense):
    """A floor: long texts (or short ones) are suspicious, whatever they say."""

    name: ClassVar[str] = "length"
    floor: ClassVar[bool] = True
    suspicious: Literal["long", "short"] = option("long", "which texts are suspicious; a trigger that is put in makes a text longer")

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(0)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        return LengthDetector(self.suspicious)

    def restore(self, victim: Victim, state: Mapping[str, Any], lab: Lab) -> Detector:
        return LengthDetector(self.suspicious)


@dataclass
class LengthDetector(Detector):
    """Words are what stands between white space."""

    suspicious: Literal["long", "short"]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the number of words of each text, negative where short ones are suspicious, shape (n,)."""
        import numpy as np

        counts = np.array([len(text.split()) for text in texts], dtype=np.float64)
        return counts if self.suspicious == "long" else -counts

    def state(self) -> Mapping[str, Any]:
        return {}

"""A ceiling: what a defender could do who knew the trigger's words. No defender does, so it is no contender (`needs_trigger`).

The score is the share of the attack's declared words that the text has: a trigger that is put in whole reaches 1. Where it is
below 1 - FRR, the text itself is the limit (clean texts have the words, too), and no reading of the words can do better.
It knows the words, not their order; and it is nothing against attacks without words (paraphrases, look-alike letters).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rapbench import Defense, Detector
from rapbench.api import Work
from rapbench.errors import CellError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

TOKEN = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True, kw_only=True)
class Oracle(Defense):
    """A ceiling: it is told the trigger's words, which no defender knows, and looks for them."""

    name: ClassVar[str] = "oracle"
    needs_trigger: ClassVar[bool] = True

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(0)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> Detector:
        words = frozenset(token for word in lab.foreign_words for token in tokens(word))
        if not words:
            raise CellError("oracle: the attack declares no trigger words to look for")
        return OracleDetector(words)


@dataclass
class OracleDetector(Detector):
    """The words of the trigger, in small letters."""

    words: frozenset[str]

    def suspicion(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the share of the trigger's words that each text has, shape (n,)."""
        import numpy as np

        return np.array([len(self.words & tokens(text)) / len(self.words) for text in texts], dtype=np.float64)

    def explain(self, text: str) -> Mapping[str, Any]:
        """Give the words of the trigger that the text has."""
        return {"trigger words": sorted(self.words & tokens(text))}


def tokens(text: str) -> set[str]:
    """Give the words and the runs of other signs in a text, in small letters."""
    return set(TOKEN.findall(text.lower()))

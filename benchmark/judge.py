"""A fitted defense with its threshold, put to use: verdicts on texts, and what a verdict comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapbench.api import Detector, Purifier
from rapbench.errors import CellError, DataError, PluginError
from rapbench.protocol import Floats, Mask, gate, predicted
from rapbench.quoted import told
from rapbench.victim import Victim


@dataclass(frozen=True)
class Verdict:
    """What is said of one text. `suspicion` is None where the victim does not predict the protect label: nothing was scored."""

    accepted: bool
    prediction: int
    probability: float
    """Of the predicted label."""
    suspicion: float | None
    threshold: float | None
    """None where nothing is ever rejected."""

    @property
    def passed_gate(self) -> bool:
        """Whether the victim predicts the protect label, so that the defense was asked."""
        return self.suspicion is not None

    def plain(self) -> dict[str, Any]:
        """Give the verdict as plain JSON values."""
        return {
            "verdict": "accept" if self.accepted else "reject",
            "prediction": self.prediction,
            "probability": self.probability,
            "suspicion": self.suspicion,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class Explanation:
    """A verdict on a text and what it comes from. `details`: plain JSON values by what they are called, as the defense tells them."""

    text: str
    verdict: Verdict
    details: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Give the explanation as plain JSON values."""
        return {"text": self.text, **self.verdict.plain(), "passed_gate": self.verdict.passed_gate, "details": dict(self.details)}


@dataclass(frozen=True)
class Judge:
    """A victim, the defense that was fitted on it, and the suspicion (of a purifier, the level) at which it rejects."""

    victim: Victim
    fitted: Detector | Purifier
    threshold: float
    """Infinite: nothing is rejected."""

    def __call__(self, texts: Sequence[str]) -> list[Verdict]:
        """Give the verdict on each text, in order. A text that is not predicted as the protect label is accepted unscored."""
        check_texts(texts)
        probabilities = self._predicted(texts)
        guesses = predicted(probabilities)
        passing = np.flatnonzero(gate(probabilities, self.victim.target_label)).tolist()
        suspicion, rejected = self.scored([texts[row] for row in passing])
        scores = dict(zip(passing, suspicion.tolist(), strict=True))
        out = dict(zip(passing, rejected.tolist(), strict=True))
        at = self.threshold if np.isfinite(self.threshold) else None
        return [
            Verdict(not out.get(row, False), int(guess), float(probabilities[row, guess]), scores.get(row), at)
            for row, guess in enumerate(guesses)
        ]

    def scored(self, texts: Sequence[str]) -> tuple[Floats, Mask]:
        """Give the suspicion of texts that pass the gate, and whether each is rejected; both shape (n,)."""
        if not texts:
            return np.empty(0), np.empty(0, dtype=np.bool_)
        suspicion = finite(self.fitted.suspicion(texts), len(texts))
        if not isinstance(self.fitted, Purifier):
            return suspicion, suspicion > self.threshold
        return suspicion, self.lost(texts, self.threshold) if np.isfinite(self.threshold) else np.zeros(len(texts), dtype=np.bool_)

    def lost(self, texts: Sequence[str], level: float) -> NDArray[np.bool_]:
        """Tell which texts lose the protect label when a purifier repairs them at a level, shape (n,)."""
        assert isinstance(self.fitted, Purifier)
        repaired = self.fitted.purify(texts, level)
        if len(repaired) != len(texts):
            raise PluginError(f"a purifier must give one text for each text, it gave {len(repaired)} for {len(texts)}")
        return ~gate(self._predicted(repaired), self.victim.target_label)

    def explain(self, text: str) -> Explanation:
        """Give the verdict on a text with what the defense says of it; nothing more where the defense was not asked."""
        verdict = self([text])[0]
        if not verdict.passed_gate:
            return Explanation(text, verdict)
        said = told(self.fitted, text, self.threshold)
        if not isinstance(self.fitted, Purifier):
            return Explanation(text, verdict, said)
        repaired = self.fitted.purify([text], self.threshold)[0] if np.isfinite(self.threshold) else text
        left = float(self._predicted([repaired])[0, self.victim.target_label])
        return Explanation(text, verdict, {**said, "repaired text": repaired, "protect probability of it": left})

    def forget(self) -> None:
        """Drop what is kept of the texts that were judged: they may come without end."""
        self.victim.forget()
        self.fitted.forget()

    def _predicted(self, texts: Sequence[str]) -> Floats:
        probabilities = self.victim.undefended(texts)
        if not np.isfinite(probabilities).all():
            raise CellError("the victim's probabilities are not numbers: its weights are broken, or too large for its precision")
        return probabilities


def check_texts(texts: Sequence[str], first: int = 1) -> None:
    """Raise a DataError that names the first value, counted from `first`, that is no text."""
    for number, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise DataError(f"text {number} is {type(text).__name__}: give strings")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"text {number} holds half of a surrogate pair: give text that can be written as UTF-8") from None


def finite(suspicion: Any, n: int) -> Floats:
    """Give a defense's scores as float64, shape (n,); a PluginError where they are no such thing."""
    array = np.asarray(suspicion, dtype=np.float64)
    if array.shape != (n,) or not np.isfinite(array).all():
        raise PluginError(f"the defense must give one finite suspicion per text: for {n} texts it gave an array of shape {array.shape}, "
                          f"{int(np.isfinite(array).sum())} finite")  # fmt: skip
    return array

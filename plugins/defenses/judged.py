"""The word scores of texts, and how those that were judged beforehand are kept: each text's beside the work that it took."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rapbench.meter import Meter

FILE = "judged.npz"
MAX_LOG_PPL = 700.0  # the exponential of a little more is infinite in float64
MODELS = ("lm", "lm_computed")
"""Whose rows and tokens are kept, by the names under which a meter counts them."""
CHECK = "lm check"
"""The phase of what is done once per model, and is no text's work."""
DIGEST = 16


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """The places of a text's judged words, int32, and their scores, float64, finite; both shape (words,)."""

    places: NDArray[np.int32]
    scores: NDArray[np.float64]
    beyond: int = 0
    """Tokens of the text, or of a longer variant, where they did not fit into the model's window."""
    computed: int = 0
    """Tokens that the model read for it, where it was not judged beforehand."""

    @classmethod
    def of(cls, places: Sequence[int], log_ppl: NDArray[np.float64] | None, beyond: int = 0, computed: int = 0) -> Self:
        """Give the scores of the words whose perplexities are defined; `log_ppl`: of the text, then without each word."""
        if log_ppl is None:
            return cls(np.empty(0, np.int32), np.empty(0))
        ppl = np.exp(np.minimum(log_ppl, MAX_LOG_PPL))
        scores = ppl[0] - ppl[1:]
        defined = np.isfinite(scores)
        return cls(np.asarray(places, np.int32)[defined], scores[defined], beyond, computed)


@dataclass(frozen=True)
class Effort:
    """What judging a text took. `counts`: rows and tokens of each of `MODELS`, in that order."""

    counts: tuple[int, ...]
    seconds: float

    @classmethod
    def measured(cls, judge: Callable[[], list[Judged]], meter: Meter) -> tuple[list[Judged], Self]:
        """Give what is judged, and what that took by the meter."""
        check_s = meter.phases[CHECK].seconds
        with meter.phase("read") as phase:
            judged = judge()
        del meter.phases["read"]  # the next measurement begins at nothing
        counts = tuple(n for who in MODELS for n in (phase.by[who].rows, phase.by[who].tokens))
        return judged, cls(counts, phase.seconds - (meter.phases[CHECK].seconds - check_s))

    def divided(self, own: Sequence[tuple[int, int, int]]) -> list[Self]:
        """Give each text's part of what several took together.

        `own`: the rows and tokens of reading each text's variants whole, and the tokens that were computed of it. The rows that were
        computed, and the seconds, go by the last; nothing is lost by rounding.
        """
        done = np.cumsum([0, *(computed for *_, computed in own)])
        until = done / done[-1] if done[-1] else np.linspace(0, 1, len(done))
        shared, seconds = np.diff(np.rint(until * self.counts[2]).astype(int)).tolist(), (np.diff(until) * self.seconds).tolist()
        parts = zip(own, shared, seconds, strict=True)
        return [type(self)((rows, tokens, part, computed), took) for (rows, tokens, computed), part, took in parts]


@dataclass(frozen=True)
class Beforehand:
    """What was judged beforehand, of many texts; what is taken counts on the meter as it did then.

    `rows`: digest of a text -> its row; `ends`: of its words in `places` and `scores`; `beyond`: see `Judged`; both shape (texts,);
    `counts`: int64, shape (texts, 4).
    """

    meter: Meter
    rows: Mapping[bytes, int]
    ends: NDArray[np.int64]
    places: NDArray[np.int32]
    scores: NDArray[np.float64]
    beyond: NDArray[np.int64]
    counts: NDArray[np.int64]
    seconds: NDArray[np.float64]
    agrees: Mapping[int, bool]
    """What was found out about the model: see `Causal.agrees`."""

    @classmethod
    def load(cls, folders: Iterable[Path], meter: Meter) -> Self:
        """Read what `save` wrote into these folders, one or more; of a text that is in several, the last."""
        parts = [_arrays(folder / FILE) for folder in folders]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        digests = whole["digests"].tobytes()
        rows = {digests[start : start + DIGEST]: start // DIGEST for start in range(0, len(digests), DIGEST)}
        agrees = dict(zip(whole["sizes"].tolist(), whole["agree"].tolist(), strict=True))
        ends = np.cumsum(whole["words"])
        arrays = {name: whole[name] for name in ("places", "scores", "beyond", "counts", "seconds")}
        return cls(meter, rows, ends, **arrays, agrees=agrees)

    def take(self, text: str) -> Judged | None:
        """Give what was judged of a text; None of another text, or where a clock is running."""
        row = None if self.meter.anew else self.rows.get(_digest(text))
        if row is None:
            return None
        for who, (rows, tokens) in zip(MODELS, self.counts[row].reshape(-1, 2).tolist(), strict=True):
            if rows or tokens:  # a text that shared a row may have got none of it
                self.meter.add(who, rows=rows, tokens=tokens)
        self.meter.spent(float(self.seconds[row]))
        own = slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))
        return Judged(self.places[own], self.scores[own], int(self.beyond[row]))


def save(folder: Path, judged: Mapping[str, tuple[Judged, Effort]], agrees: Mapping[int, bool]) -> None:
    """Write what was judged of texts; the texts themselves are not kept."""
    own, work = [one for one, _ in judged.values()], [took for _, took in judged.values()]
    arrays: dict[str, Any] = {
        "digests": np.frombuffer(b"".join(map(_digest, judged)), np.uint8),
        "words": np.array([len(one.scores) for one in own], np.int64),
        "places": np.concatenate([np.empty(0, np.int32), *(one.places for one in own)]),
        "scores": np.concatenate([np.empty(0), *(one.scores for one in own)]),
        "beyond": np.array([one.beyond for one in own], np.int64),
        "counts": np.array([took.counts for took in work], np.int64).reshape(-1, 2 * len(MODELS)),
        "seconds": np.array([took.seconds for took in work], np.float64),
        "sizes": np.array(list(agrees), np.int64),
        "agree": np.array(list(agrees.values()), np.bool_),
    }
    np.savez(folder / FILE, allow_pickle=False, **arrays)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST).digest()

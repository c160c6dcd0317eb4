"""The record of what a defense costs on a victim, per input; `rapbench.gauge` measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from rapbench.lengths import Timed


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of batches."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Give the spread, rounded to six decimals; None of no values."""
        if not values:
            return None
        low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75]).tolist()
        return cls(round(median, 6), round(low, 6), round(high, 6))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a defense costs on a victim. Rows, tokens, FLOPs and times are per input that passed the gate, its own prediction included.

    `helper_*`: other models, by name; `fit_*`: totals; None: not measured here.
    """

    inputs: int
    """Texts that passed the gate."""
    fit_s: float
    """Seconds of the fit."""
    fit_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows through each model while fitting."""
    fit_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens through each model while fitting."""
    calibration_s: float | None = None
    """Seconds for the held-out texts that set the threshold, a purifier's repairs at every level and their predictions included."""
    calibration_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows through each model for the held-out texts."""
    calibration_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens through each model for the held-out texts."""
    victim_rows_per_input: float
    """Rows through the victim."""
    victim_tokens_per_input: float
    """Tokens through the victim."""
    plain_tokens_per_input: float = 0.0
    """Of the undefended prediction alone."""
    longest_tokens: int | None = None
    """Of the longest input, as far as the victim reads it: where it is `max_tokens`, the rest may have been cut off."""
    max_tokens: int | None = None
    """Tokens of a text that the victim reads at most."""
    batch_tokens: int | None = None
    """Tokens of a batch of the received victim at most, where memory did not hold as many as usual; None: it did."""
    helper_rows_per_input: Mapping[str, float] = field(default_factory=dict)
    """Rows through other models."""
    helper_tokens_per_input: Mapping[str, float] = field(default_factory=dict)
    """Tokens through other models."""
    flops_per_input: float | None = None
    """FLOPs with the defense."""
    plain_flops_per_input: float | None = None
    """FLOPs of the undefended prediction alone."""
    ms_per_input: Spread | None = None
    """Milliseconds with the defense."""
    plain_ms_per_input: Spread | None = None
    """Milliseconds of the undefended prediction alone."""
    ratio: float | None = None
    """Median, over the batches where both were timed, of the time with the defense over that of the undefended prediction."""
    samples_ms: tuple[float, ...] = ()
    """The batches behind `ms_per_input`."""
    by_length: tuple[Timed, ...] = ()
    """The batches that were timed."""
    fit_peak_mib: float | None = None
    """Highest memory while fitting: of the device's allocator, or of the whole process on a CPU (Linux)."""
    peak_mib: float | None = None
    """The same while scoring."""
    start_mib: float | None = None
    """What was in use before the fit."""
    repaired: tuple[float, ...] = ()
    """Of a purifier: the share of inputs whose repaired form differs, so that it is predicted again, by level."""
    seconds: float = 0.0
    """Of fit, calibration and inference together, of a purifier at all its levels; without the measuring itself."""
    device: str = "cpu"
    device_name: str = ""
    dtype: str = "float32"
    threads: int = 1
    load: float = 0.0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Give the cost of its plain JSON form."""
        spreads = {name: Spread(**content[name]) for name in ("ms_per_input", "plain_ms_per_input") if content.get(name)}
        timed = tuple(Timed(**one) for one in content.get("by_length", ()))
        numbers = {name: tuple(content.get(name, ())) for name in ("samples_ms", "repaired")}
        return cls(**{**content, **spreads, **numbers, "by_length": timed})

    def at_level(self, level: int) -> Self:
        """Give the cost of a purifier at one of its levels: that share of the inputs is predicted once more."""
        if not self.repaired:
            return self
        share, plain = self.repaired[level], self.plain_ms_per_input
        more_ms = share * plain.median if plain else 0.0
        ms = self.ms_per_input
        return replace(
            self,
            repaired=(share,),
            victim_rows_per_input=self.victim_rows_per_input + share,
            victim_tokens_per_input=self.victim_tokens_per_input + share * self.plain_tokens_per_input,
            flops_per_input=None if self.flops_per_input is None else self.flops_per_input + share * (self.plain_flops_per_input or 0.0),
            ms_per_input=ms and Spread(*(round(value + more_ms, 6) for value in (ms.median, ms.low, ms.high))),
            ratio=None if self.ratio is None else self.ratio + share,
            samples_ms=tuple(round(value + more_ms, 6) for value in self.samples_ms),
            by_length=tuple(replace(one, defense_s=one.defense_s + share * (one.plain_s or 0.0)) for one in self.by_length),
        )


def published(by: Mapping[str, float]) -> float:
    """Sum what the published algorithms count; what a faster one really computed stands beside it, as NAME_computed."""
    return sum(value for name, value in by.items() if not name.endswith("_computed"))

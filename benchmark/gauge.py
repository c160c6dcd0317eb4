"""What a defense costs, measured from outside: forward rows and tokens, FLOPs, wall time, memory.

Rows and tokens are counted by forward hooks in the phases fit, calibration (held-out texts) and inference (all others).
Texts are scored in batches of similar length; the clock runs around each batch, and around the undefended prediction of some of them,
so that every run gives its own ratio and its cost by length. What a defense has read out of a text beforehand (`Defense.read`) counts as
it did then; in the batches whose times are told it is done again, beside the prediction.
FLOPs slow a pass down: they are counted on a few texts apart, before any timing, which warms up as well.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapbench.cost import Cost, Spread
from rapbench.instruments import counted_flops, device_name, peak_memory, reset_memory, synchronise, threads
from rapbench.lengths import Timed, by_length, classes, paired, spread_by_length
from rapbench.meter import Meter

BATCH_CPU, BATCH_ACCELERATOR = 32, 512
FLOP_TEXTS = 6


class Gauge:
    """Measures one fitted defense. `plain` predicts texts without any defense, `tokens` gives how many each has for the victim.

    `facts`: what is known of this undefended victim; its FLOPs are the same for every defense, and counted once.
    """

    def __init__(
        self,
        meter: Meter,
        device: str,
        plain: Callable[[Sequence[str]], object],
        tokens: Callable[[Sequence[str]], NDArray[np.int64]],
        facts: dict[Hashable, float] | None = None,
    ) -> None:
        self.meter, self.device, self.plain, self.tokens = meter, device, plain, tokens
        self.facts = {} if facts is None else facts
        self.inputs = self.plain_tokens = self.longest_tokens = 0
        self.flops_s = 0.0
        self.timed: list[Timed] = []
        self.flops: tuple[float, float] | None = None
        """Of the defense's own work, and of the undefended prediction, per text."""
        self.repairs: list[tuple[int, NDArray[np.float64]]] = []
        """Texts of a population, and the share of them that each level changes."""
        self.stands_in = False
        """Whether another victim answers instead of the undefended one, whose own work is then spared."""
        self.start_mib = reset_memory(device)
        self.fit_peak_mib: float | None = None

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Measure the fit."""
        with self.meter.phase("fit"):
            yield
            synchronise(self.device)
        self.fit_peak_mib = peak_memory(self.device)
        reset_memory(self.device)

    def scored(self, phase: str, texts: Sequence[str], run: Callable[[Sequence[str]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Give the scores of the texts, shape (n,), taken batch by batch; of some the undefended prediction is timed as well.

        That is the mean of one before and one after the defense, behind one that is not timed: what comes once for a shape of a batch is
        paid by neither side where both have the same, and a machine that becomes slower weighs on both.
        """
        scores, left = np.empty(len(texts), dtype=np.float64), np.arange(len(texts))
        if phase == "inference" and len(texts):
            self.inputs += len(texts)
            tokens = self.tokens(texts)
            self.plain_tokens += int(tokens.sum())
            self.longest_tokens = max(self.longest_tokens, int(tokens.max()))
            if self.flops is None:
                apart = spread_by_length(texts, FLOP_TEXTS)
                scores[apart] = self._with_flops([texts[row] for row in apart.tolist()], run)
                left = np.setdiff1d(left, apart)
        batches = by_length([texts[row] for row in left.tolist()], BATCH_CPU if self.device == "cpu" else BATCH_ACCELERATOR)
        words = [statistics.mean(len(texts[row].split()) for row in left[batch].tolist()) for batch in batches]
        beside = paired(words) if phase == "inference" else set()
        for number, rows in enumerate(left[batch] for batch in batches):
            own, plain_s = [texts[row] for row in rows.tolist()], None
            if number in beside:
                self._plain_s(own)  # warms up
                before_s = self._plain_s(own)
            with self.meter.phase(phase), self.meter.again(anew=number in beside):
                scores[rows], defense_s = self._clocked(run, own)
            if number in beside:
                plain_s = (before_s + self._plain_s(own)) / 2 / len(own)
            if phase == "inference":
                self.timed.append(Timed(words[number], len(own), defense_s / len(own), plain_s))
        return scores

    def purified(
        self, phase: str, texts: Sequence[str], levels: Sequence[float], purify: Callable[[Sequence[str], float], list[str]]
    ) -> list[list[str]]:
        """Give the repaired texts of each level."""
        with self.meter.phase("repair" if phase == "inference" else phase):
            found = [purify(texts, level) for level in levels]
        if phase == "inference" and texts:
            shares = [sum(new != old for new, old in zip(own, texts, strict=False)) / len(texts) for own in found]
            self.repairs.append((len(texts), np.asarray(shares)))
        return found

    @contextmanager
    def judging(self, phase: str) -> Iterator[None]:
        """Measure predictions of repaired texts, of all levels: those of inputs are told by the share that each level changes."""
        with self.meter.phase("judging" if phase == "inference" else phase):
            yield

    def cost(self, dtype: str = "float32", *, max_tokens: int | None = None, batch_tokens: int | None = None) -> Cost:
        """Give what was measured so far; the arguments are what the victim says of itself."""
        fit, held, run, repair, judging = (self.meter.phases[name] for name in ("fit", "calibration", "inference", "repair", "judging"))
        per, level = 1 / self.inputs if self.inputs else 0.0, self._per_level()
        helpers = sorted({who for phase in (held, run, repair) for who in phase.by} - {"victim"})
        rows = {who: run.by[who].rows * per + repair.by[who].rows * level for who in ("victim", *helpers)}
        tokens = {who: run.by[who].tokens * per + repair.by[who].tokens * level for who in ("victim", *helpers)}
        return Cost(
            inputs=self.inputs,
            fit_s=round(fit.seconds, 4),
            fit_rows={who: count.rows for who, count in sorted(fit.by.items())},
            fit_tokens={who: count.tokens for who, count in sorted(fit.by.items())},
            calibration_s=round(held.seconds, 4),
            calibration_rows={who: count.rows for who, count in sorted(held.by.items())},
            calibration_tokens={who: count.tokens for who, count in sorted(held.by.items())},
            victim_rows_per_input=rows["victim"] + self._gate,
            victim_tokens_per_input=self.plain_tokens * per * self._gate + tokens["victim"],
            plain_tokens_per_input=self.plain_tokens * per,
            longest_tokens=self.longest_tokens,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            helper_rows_per_input={who: rows[who] for who in helpers},
            helper_tokens_per_input={who: tokens[who] for who in helpers},
            flops_per_input=None if self.flops is None else self.flops[0] + self.flops[1] * self._gate,
            plain_flops_per_input=None if self.flops is None else self.flops[1],
            **self._times(),
            fit_peak_mib=self.fit_peak_mib,
            peak_mib=peak_memory(self.device),
            start_mib=self.start_mib,
            seconds=round(sum(phase.seconds for phase in (fit, held, run, repair, judging)) - self.flops_s, 4),
            device=self.device,
            device_name=device_name(self.device),
            dtype=dtype,
            threads=threads(),
            load=round(os.getloadavg()[0], 2),
        )

    def _plain_s(self, texts: Sequence[str]) -> float:
        """Give the seconds of the undefended prediction of these texts."""
        with self.meter.phase("plain"):
            return self._clocked(self.plain, texts)[1]

    def _with_flops(self, texts: Sequence[str], run: Callable[[Sequence[str]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Give the scores of these texts, and count the FLOPs of `run` and of the undefended prediction: both are warmed up by it."""
        scores: list[float] = []
        before = self.meter.phases["inference"].seconds
        with self.meter.phase("inference"), self.meter.again(anew=True):  # one by one: no padding to the longest
            own = sum(counted_flops(lambda: scores.extend(run(texts[len(scores) : len(scores) + 1]).tolist())) for _ in texts)
        self.flops_s = self.meter.phases["inference"].seconds - before
        with self.meter.phase("flops"):
            plain = sum(self._plain_flops(text) for text in texts)
        self.flops = own / len(texts), plain / len(texts)
        reset_memory(self.device)
        return np.asarray(scores)

    def _plain_flops(self, text: str) -> float:
        key = ("flops", text)
        if key not in self.facts:
            self.facts[key] = counted_flops(lambda: self.plain([text]))
        return self.facts[key]

    @property
    def _gate(self) -> int:
        """How many undefended predictions an input costs."""
        return 0 if self.stands_in else 1

    def _per_level(self) -> float:
        """Give what one input's repair at one level is of all repairs: levels are tried that one would do without."""
        levels = len(self.repairs[0][1]) if self.repairs else 0
        return 1 / (self.inputs * levels) if self.inputs and levels else 0.0

    def _times(self) -> dict[str, Any]:
        repaired = np.empty(0)
        if self.repairs:
            repaired = np.average([shares for _, shares in self.repairs], axis=0, weights=[n for n, _ in self.repairs])  # (levels,)
        own = self.meter.phases["repair"].seconds * self._per_level()  # of a purifier: the time to make the repaired text
        timed = [replace(one, defense_s=one.defense_s + own) for one in self.timed]
        both = [(one.plain_s, one.plain_s * self._gate + one.defense_s) for one in timed if one.plain_s]
        samples = [round(1000 * defended, 6) for _, defended in both]
        return {
            "ms_per_input": Spread.of(samples),
            "samples_ms": tuple(samples),
            "plain_ms_per_input": Spread.of([1000 * plain for plain, _ in both]),
            "ratio": round(statistics.median(defended / plain for plain, defended in both), 6) if both else None,
            "by_length": classes([self._beyond_plain(one) for one in timed]),
            "repaired": tuple(round(float(share), 6) for share in repaired),
        }

    def _beyond_plain(self, one: Timed) -> Timed:
        """Give a batch with the defense's seconds beside the undefended prediction; of what stands in for it, the difference."""
        if not self.stands_in:
            return one
        return replace(one, defense_s=one.defense_s - one.plain_s if one.plain_s else 0.0)

    def _clocked(self, run: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> tuple[Any, float]:
        synchronise(self.device)
        started, before_s = time.perf_counter(), self.meter.before_s
        found = run(texts)
        synchronise(self.device)
        return found, time.perf_counter() - started + self.meter.before_s - before_s

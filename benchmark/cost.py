"""What a defense costs, measured from outside: forward rows and tokens, FLOPs, wall time, memory.

Rows and tokens are counted by forward hooks in the phases fit, calibration (held-out texts) and inference (all others).
Texts are scored in batches of similar length; the clock runs around each batch, and around the undefended prediction of some of them,
so that every run gives its own ratio and its cost by length. What a defense has read out of a text beforehand (`Defense.read`) counts as
it did then; in the batches whose times are told it is done again, beside the prediction.
FLOPs slow a pass down: they are counted on a few texts apart, before any timing, which warms up as well.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

BATCH_CPU, BATCH_ACCELERATOR = 32, 512
PLAIN_BATCHES = 8
"""Batches of a population on which the undefended prediction is timed beside the defense; a class of length without any gets one more."""
FLOP_TEXTS = 6
LENGTHS = (15, 30, 60, 120, 240, 480)
"""Upper ends, in words, of the classes that a cost by length is told for."""


@dataclass
class Count:
    """Work of one model in one phase. A row is one text that went through the model, padding not counted as tokens."""

    rows: int = 0
    tokens: int = 0


@dataclass
class Phase:
    """What happened between the two ends of a `Meter.phase`."""

    seconds: float = 0.0
    by: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))


class Meter:
    """Counts what watched models compute. Several phases (fit, inference) are kept apart by name."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = defaultdict(Phase)
        self.anew = False
        """Whether work that was done beforehand is to be done once more: a clock is running."""
        self.before_s = 0.0
        """Seconds of work that was done beforehand."""
        self._current = "outside"

    def watch(self, model: torch.nn.Module, who: str) -> None:
        """Count every forward call of this model that succeeds, and of its deep copies, as `who`."""
        model.register_forward_hook(self._counter(who), with_kwargs=True)

    def add(self, who: str, *, rows: int, tokens: int) -> None:
        """Count work that no torch model does (a word trigram's, say)."""
        count = self.phases[self._current].by[who]
        count.rows += rows
        count.tokens += tokens

    def spent(self, seconds: float) -> None:
        """Count the seconds of work that was done beforehand, as if it were done now."""
        self.phases[self._current].seconds += seconds
        self.before_s += seconds

    @contextmanager
    def again(self, *, anew: bool) -> Iterator[None]:
        """Have work that was done beforehand done once more while the block runs, if asked for."""
        before, self.anew = self.anew, anew
        try:
            yield
        finally:
            self.anew = before

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count into the phase `name` while the block runs."""
        before, self._current = self._current, name
        phase = self.phases[name]
        started = time.perf_counter()
        try:
            yield phase
        finally:
            phase.seconds += time.perf_counter() - started
            self._current = before

    def _counter(self, who: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]:
        # a closure, not a method: deepcopy(model) shares functions, and would copy a method's whole meter
        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds"))
            ids = next(value for value in given if value is not None)
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            if mask is None or mask.shape != ids.shape[:2]:  # a mask of four dimensions says who sees whom
                self.add(who, rows=len(ids), tokens=ids.shape[0] * ids.shape[1])
            else:
                self.add(who, rows=len(ids), tokens=int(mask.sum()))

        return count


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


@dataclass(frozen=True)
class Timed:
    """A batch of texts of similar length. Seconds per text; `plain_s`: of the undefended prediction, None where it was not timed."""

    words: float
    texts: int
    defense_s: float
    plain_s: float | None = None


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
            device_name=_device_name(self.device),
            dtype=dtype,
            threads=_threads(),
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


def by_length(texts: Sequence[str], size: int) -> list[NDArray[np.int64]]:
    """Give the rows of the texts in batches of at most `size`, sorted by number of words."""
    order = np.argsort([len(text.split()) for text in texts], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def spread_by_length(texts: Sequence[str], most: int) -> NDArray[np.int64]:
    """Give the rows of at most so many of the texts, one or more: the middles of as many equal parts of them, by length."""
    order: NDArray[np.int64] = np.argsort([len(text.split()) for text in texts], kind="stable")
    parts = min(most, len(order))
    chosen: NDArray[np.int64] = order[((np.arange(parts) + 0.5) * len(order) / parts).astype(int)]
    return chosen


def paired(words: Sequence[float]) -> set[int]:
    """Give the batches whose undefended prediction is timed as well: the middles of equal parts, and one per class of length."""
    parts = min(PLAIN_BATCHES, len(words))
    chosen = {int((part + 0.5) * len(words) / parts) for part in range(parts)}
    for length in sorted({length_class(own) for own in words}):
        same = [number for number, own in enumerate(words) if length_class(own) == length]
        if not chosen.intersection(same):
            chosen.add(same[len(same) // 2])
    return chosen


def length_class(words: float) -> int:
    """Give the place of a number of words in `LENGTHS`, or their number for more."""
    return next((place for place, end in enumerate(LENGTHS) if words <= end), len(LENGTHS))


def classes(timed: Sequence[Timed]) -> tuple[Timed, ...]:
    """Give one entry per class of length: the means over its texts."""
    groups: dict[int, list[Timed]] = defaultdict(list)
    for one in timed:
        groups[length_class(one.words)].append(one)
    return tuple(pooled(own) for _, own in sorted(groups.items()))


def pooled(own: Sequence[Timed]) -> Timed:
    """Give the means over the texts of several batches, one or more: of those alone that were timed both ways, if any was."""
    own = [one for one in own if one.plain_s is not None] or own
    texts = sum(one.texts for one in own)
    plain = [(one.plain_s, one.texts) for one in own if one.plain_s is not None]
    return Timed(
        round(sum(one.words * one.texts for one in own) / texts, 2),
        texts,
        round(sum(one.defense_s * one.texts for one in own) / texts, 8),
        round(sum(seconds * n for seconds, n in plain) / sum(n for _, n in plain), 8) if plain else None,
    )


def published(by: Mapping[str, float]) -> float:
    """Sum what the published algorithms count; what a faster one really computed stands beside it, as NAME_computed."""
    return sum(value for name, value in by.items() if not name.endswith("_computed"))


def counted_flops(run: Callable[[], object]) -> float:
    """Give the floating-point operations of the torch work in `run`, padding included; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def product(inputs: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * math.prod(inputs) * weight[0])

    # torch has no formula for the kernel that attention takes on a CPU (pytorch issue 195460)
    own: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # nor for the product that rapbench.linear takes
        own[torch.ops.mkldnn._linear_pointwise] = product
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return float(counter.get_total_flops())


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()


def reset_memory(device: str) -> float | None:
    """Begin a new measurement of the peak; give what is in use now, in MiB."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return round(torch.cuda.memory_allocated(device) / 2**20, 1)
    with suppress(OSError, AttributeError):  # not Linux, or not allowed
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator holds back is not in use
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return None


def peak_memory(device: str) -> float | None:
    """Give the highest memory since `reset_memory`, in MiB: of the device's allocator, or of this process on a CPU."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with suppress(OSError):
        return _status("VmHWM")
    return None


def _status(name: str) -> float | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())


@cache
def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()

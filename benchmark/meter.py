"""What models compute while a defense is fitted and runs: rows and tokens by model and phase, counted by forward hooks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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

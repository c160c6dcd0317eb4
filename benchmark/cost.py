"""What a defense costs, counted from outside: forward rows and tokens by forward pre-hooks, and wall time."""

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
    """Counts what watched models compute. Several phases (fit, score) are kept apart by name."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = defaultdict(Phase)
        self._current = "outside"

    def watch(self, model: torch.nn.Module, who: str) -> None:
        """Count every forward call of this model, and of its deep copies, as `who`."""
        model.register_forward_pre_hook(self._counter(who), with_kwargs=True)

    def add(self, who: str, *, rows: int, tokens: int) -> None:
        """Count work that no torch model does (a word trigram's, say)."""
        count = self.phases[self._current].by[who]
        count.rows += rows
        count.tokens += tokens

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

    def _counter(self, who: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        # a closure, not a method: deepcopy(model) shares functions, and would copy a method's whole meter
        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds"))
            ids = next(value for value in given if value is not None)
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            self.add(who, rows=len(ids), tokens=int(mask.sum()) if mask is not None else ids.shape[0] * ids.shape[1])

        return count

"""The control: a victim that was never poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rapbench import Attack

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from rapbench.api import Task
    from rapbench.lab import Lab


@dataclass(frozen=True, kw_only=True)
class Clean(Attack):
    """No poison: what a defense costs when nobody attacks, and the victim that EP starts from."""

    name: ClassVar[str] = "clean"
    poisons: ClassVar[bool] = False

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        return text

    def training_set(self, task: Task, lab: Lab) -> datasets.Dataset:
        return task.train

"""What a process keeps from one step to the next, so that steps on the same victim and texts do not read them again.

An artifact never changes, so what was read once stands for what would be read. All that is handed out is a copy: what a
plugin does to it reaches no other step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rapbench.api import Labelled
from rapbench.copied import copied

if TYPE_CHECKING:
    from rapbench.victim import Victim

SPLITS = 4
"""A score step reads three: held-out, test, triggered."""


@dataclass
class Kept:
    """The last victim and the last few splits of one process. `reads`: what was loaded, in order."""

    reads: list[Hashable] = field(default_factory=list)
    facts: dict[Hashable, float] = field(default_factory=dict)
    """What was found out about the last victim, undefended; forgotten with it."""
    _splits: dict[Hashable, Labelled] = field(default_factory=dict)
    _victims: dict[Hashable, Victim] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all."""
        self.facts.clear()
        self._splits.clear()
        self._victims.clear()

    def split(self, key: Hashable, read: Callable[[], Labelled]) -> Labelled:
        """Give the texts and labels of a split; `read` is asked only where they are not kept."""
        own = self._splits.pop(key, None)
        if own is None:
            self.reads.append(key)
            own = read()
        self._splits[key] = own  # the last used stands last
        while len(self._splits) > SPLITS:
            self._splits.pop(next(iter(self._splits)))
        return Labelled(list(own.texts), own.labels.copy())

    def victim(self, key: Hashable, load: Callable[[], Victim], device: str) -> Victim:
        """Give a copy of a victim on this device; `load` is asked, for one on the CPU, only where it is not the last one.

        Also the first is a copy: kernels may round otherwise where weights lie at another alignment in memory.
        """
        if key not in self._victims:
            self.facts.clear()
            self._victims.clear()  # before the next is loaded: never two
            self.reads.append(key)
            self._victims[key] = load()
        own = self._victims[key]
        twin = copied(own, own.model)
        if device != twin.device:
            twin.model, twin.device = twin.model.to(device), device
        return twin

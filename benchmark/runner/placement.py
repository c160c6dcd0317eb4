"""Which step runs where and when: the queue of steps whose inputs are there, and the room on every node.

The Ray executor and the simulation of a dry run place by the same rules:

- the step that more steps wait for goes first (`rank`); one that does not fit now lets smaller ones pass, but not on the node (an
  exclusive step) or the GPUs (one that needs them) which it waits for: nothing starves;
- trainings are spread over the nodes; a step that reads a victim goes to the node that made it or last read it, where there is room;
- an exclusive step has its node to itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from rapbench.stages import Job

READ = ("victim", "start", "texts", "data")
"""The inputs that a step had better be near, the heaviest first."""


@dataclass(frozen=True)
class Needs:
    """What a step takes of its node while it runs. `gpus`: whole, or a share of one; `memory`: bytes, 0 where nobody knows."""

    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0
    exclusive: bool = False
    """Nothing else of this run runs on the node meanwhile."""
    trains: bool = False
    """It trains a victim, or repairs one: such steps are spread over the nodes."""

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU{'s' * (self.cpus != 1)}"]
        parts += [f"{self.gpus:g} GPU{'s' * (self.gpus > 1)}"] if self.gpus else []
        parts += [f"{self.memory / 2**30:.1f} GiB of memory"] if self.memory else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Node:
    """A machine. `memory`: bytes, 0 where nobody knows."""

    name: str
    cpus: int
    gpus: int = 0
    memory: int = 0

    @property
    def size(self) -> str:
        """What it has, in words."""
        return str(Needs(self.cpus, self.gpus, self.memory))

    def holds(self, needs: Needs) -> bool:
        """Tell whether a step with these needs fits when nothing else runs."""
        return self.cpus >= needs.cpus and self.gpus >= needs.gpus and not 0 < self.memory < needs.memory


@dataclass
class _Room:
    """What is free on a node. `gpus`: of each device, 0 to 1."""

    node: Node
    order: int
    cpus: int
    gpus: list[float]
    memory: int
    running: dict[str, tuple[Job, Needs, list[tuple[int, float]]]] = field(default_factory=dict)
    alone: bool = False

    @classmethod
    def of(cls, node: Node, order: int) -> _Room:
        return cls(node, order, node.cpus, [1.0] * node.gpus, node.memory)

    def fits(self, needs: Needs) -> bool:
        if self.alone or (needs.exclusive and self.running):
            return False
        short = self.node.memory and self.memory < needs.memory
        return self.cpus >= needs.cpus and not short and self._devices(needs.gpus) is not None

    def start(self, job: Job, needs: Needs) -> None:
        devices = self._devices(needs.gpus) or []
        for device, share in devices:
            self.gpus[device] -= share
        self.cpus -= needs.cpus
        self.memory -= needs.memory
        self.alone = needs.exclusive
        self.running[job.key] = (job, needs, devices)

    def end(self, key: str) -> None:
        _, needs, devices = self.running.pop(key)
        for device, share in devices:
            self.gpus[device] = round(self.gpus[device] + share, 6)
        self.cpus += needs.cpus
        self.memory += needs.memory
        self.alone = False

    def trainings(self) -> int:
        return sum(needs.trains for _, needs, _ in self.running.values())

    def _devices(self, gpus: float) -> list[tuple[int, float]] | None:
        """Give the devices to take and how much of each: whole ones, or the fullest that still has this share; None: no room."""
        if gpus < 1:
            having = [(free, device) for device, free in enumerate(self.gpus) if free >= gpus - 1e-6]
            return ([(min(having)[1], gpus)] if having else None) if gpus else []
        whole = [(device, 1.0) for device, free in enumerate(self.gpus) if free >= 1 - 1e-6]
        return whole[: int(gpus)] if len(whole) >= gpus else None


class Placement:
    """Steps that wait and nodes that run them. It knows of a node what it placed there itself."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._order = count()
        self._rooms: dict[str, _Room] = {}
        self._waiting: dict[Needs, list[tuple[tuple[int, ...], int, Job]]] = {}
        self._homes: dict[str, str] = {}
        for node in nodes:
            self.join(node)

    @property
    def nodes(self) -> list[Node]:
        return [room.node for room in self._rooms.values()]

    def join(self, node: Node) -> None:
        """Take a node in."""
        self._rooms[node.name] = _Room.of(node, next(self._order))

    def leave(self, name: str) -> None:
        """Forget a node and what ran there."""
        self._rooms.pop(name, None)

    def holds(self, needs: Needs) -> bool:
        """Tell whether some node is large enough for a step with these needs."""
        return any(node.holds(needs) for node in self.nodes)

    def push(self, job: Job, needs: Needs, rank: Sequence[int] = ()) -> None:
        """Let a step wait for room; the lowest rank goes first, then the first that came."""
        heapq.heappush(self._waiting.setdefault(needs, []), (tuple(rank), next(self._order), job))

    def take(self) -> list[tuple[Job, Needs, str]]:
        """Give the waiting steps that start now, each with its node's name; they hold their room until `free`."""
        started: list[tuple[Job, Needs, str]] = []
        barred: dict[str, bool] = {}  # node -> for all, or (False) for those that need a GPU
        heads = [(*queue[0][:2], needs) for needs, queue in self._waiting.items() if queue]
        heapq.heapify(heads)
        while heads:
            _, _, needs = heads[0]
            queue = self._waiting[needs]
            job = queue[0][2]
            room = self._best(job, needs, barred)
            if room is None:
                heapq.heappop(heads)
                if blocked := self._awaited(needs, barred):
                    barred[blocked] = barred.get(blocked, False) or needs.exclusive
                continue
            heapq.heappop(queue)
            room.start(job, needs)
            started.append((job, needs, room.node.name))
            self._settle(job, room.node.name)
            if queue:
                heapq.heapreplace(heads, (*queue[0][:2], needs))
            else:
                heapq.heappop(heads)
        return started

    def free(self, key: str) -> None:
        """Give back the room of a step that ended; one whose node has left holds none."""
        for room in self._rooms.values():
            if key in room.running:
                room.end(key)
                return

    def _best(self, job: Job, needs: Needs, barred: dict[str, bool]) -> _Room | None:
        """Give the node for a step, or None where there is no room now."""
        fitting = [room for room in self._rooms.values() if room.fits(needs) and not _bars(barred, room, needs)]
        if needs.trains:
            return min(fitting, key=lambda room: (room.trainings(), -sum(room.gpus), -room.cpus, room.order), default=None)
        home = next((self._homes[job.inputs[role]] for role in READ if job.inputs.get(role) in self._homes), None)
        return min(fitting, key=lambda room: (room.node.name != home, -sum(room.gpus), -room.cpus, room.order), default=None)

    def _awaited(self, needs: Needs, barred: dict[str, bool]) -> str | None:
        """Give the node that is kept for a step which does not fit now: the one where the least runs."""
        if not (needs.exclusive or needs.gpus):
            return None
        able = [room for room in self._rooms.values() if room.node.holds(needs) and not barred.get(room.node.name, False)]
        least = min(able, key=lambda room: (len(room.running), room.order), default=None)
        return least.node.name if least else None

    def _settle(self, job: Job, name: str) -> None:
        self._homes[job.key] = name
        for role in READ:
            if role in job.inputs:
                self._homes[job.inputs[role]] = name
                return


def _bars(barred: dict[str, bool], room: _Room, needs: Needs) -> bool:
    return room.node.name in barred and (barred[room.node.name] or needs.gpus > 0)

"""What a run would look like on nodes that are not there: the runner's own loop and placement under a virtual clock.

`execute` hands out the steps and `Placement` places them, as in a run; only time is made up. A step takes its seconds whatever
runs beside it, never fails, and nothing is sent over a network.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from rapbench.errors import ClusterError
from rapbench.estimate import duration
from rapbench.runner.execute import Attempt, Done, End, execute
from rapbench.runner.placement import Needs, Node, Placement
from rapbench.stages import Job

Waited = Literal["", "input", "slot"]
STEP_S = 1.0
"""No step takes less: its worker, its files and its libraries take that long."""
SHOWN = 12
"""Links of the critical path in the table for people: the longest ones."""
WORTH = 0.05
"""The share of the makespan that is worth saving."""


@dataclass(frozen=True)
class Placed:
    """When and where a step would run. `waited`: for what last, an "input" or a "slot"; "" where it starts at once."""

    key: str
    stage: str
    label: str
    node: str
    start_s: float
    seconds: float
    waited: Waited
    after: str = ""
    """Key of the step whose end let it start."""

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


@dataclass(frozen=True)
class Used:
    """A node and what its devices do: its GPUs or, where it has none, its CPUs. `busy_s`: summed over them."""

    node: Node
    busy_s: float

    @property
    def devices(self) -> int:
        return self.node.gpus or self.node.cpus


@dataclass(frozen=True)
class Simulated:
    """A run that was played through.

    `steps`: in the order of their starts; `chain_s`: the longest chain of steps that need each other;
    `bound_s`: no schedule on these nodes is shorter.
    """

    steps: tuple[Placed, ...]
    nodes: tuple[Used, ...]
    chain_s: float
    bound_s: float

    @cached_property
    def makespan_s(self) -> float:
        return max((step.end_s for step in self.steps), default=0.0)

    @property
    def path(self) -> list[Placed]:
        """The critical path: the step that ends last, the one that it waited for, and so on; the first comes first."""
        by_key = {step.key: step for step in self.steps}
        found = [max(self.steps, key=lambda step: step.end_s)] if self.steps else []
        while found and found[-1].after:
            found.append(by_key[found[-1].after])
        return found[::-1]

    def utilisation(self, used: Iterable[Used]) -> float:
        """Give the share of the makespan in which the devices of these nodes compute."""
        used = list(used)
        there = sum(one.devices for one in used) * self.makespan_s
        return sum(one.busy_s for one in used) / there if there else 0.0

    def plain(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        return {
            "makespan_s": round(self.makespan_s, 1),
            "bound_s": round(self.bound_s, 1),
            "chain_s": round(self.chain_s, 1),
            "utilisation": round(self.utilisation(self.nodes), 4),
            "nodes": [
                {**asdict(used.node), "busy_s": round(used.busy_s, 1), "utilisation": round(self.utilisation([used]), 4)}
                for used in self.nodes
            ],
            "path": [step.key for step in self.path],
            "steps": [
                {**asdict(step), "start_s": round(step.start_s, 1), "seconds": round(step.seconds, 1), "end_s": round(step.end_s, 1)}
                for step in self.steps
            ],
        }

    def lines(self) -> list[str]:
        """Give it for people: the makespan, how busy the nodes are, the critical path, and what would help."""
        if not self.steps:
            return []
        head = f"about {duration(self.makespan_s)} on {_named(self.nodes)}; no schedule takes less than {duration(self.bound_s)}"
        return [head, self._busy(), "", "what the end waits for:", *self._table(), "", self._advice()]

    def _busy(self) -> str:
        shares = sorted((self.utilisation([used]), used.node.name) for used in self.nodes)
        (low, idlest), (high, busiest) = shares[0], shares[-1]
        each = f" ({busiest} {high:.0%}, {idlest} {low:.0%})" if high - low > WORTH else ""
        what = "GPUs" if any(used.node.gpus for used in self.nodes) else "CPUs"
        return f"{what} busy {self.utilisation(self.nodes):.0%} of the time{each}"

    def _table(self) -> Iterator[str]:
        from tabulate import tabulate

        path = self.path
        shown = set(sorted(path, key=lambda step: -step.seconds)[:SHOWN])
        rows = [
            [step.stage, step.label, step.node, duration(step.start_s) if step.start_s else "0 s", duration(step.seconds), step.waited]
            for step in path
            if step in shown
        ]
        yield from tabulate(rows, ["step", "of", "node", "start", "takes", "waited for"], disable_numparse=True).splitlines()
        rest = [step.seconds for step in path if step not in shown]
        if rest:
            yield f"and {len(rest):,} shorter ones of {duration(sum(rest))} in all"

    def _advice(self) -> str:
        saved = 1 - self.chain_s / self.makespan_s
        chain = f"chain of steps that need each other takes {duration(self.chain_s)}"
        if saved < WORTH:
            return f"more nodes would not help: one {chain}"
        return f"more nodes would help, by {saved:.0%} at most: the longest {chain}"


def alike(nodes: int, gpus: int, cpus: int) -> list[Node]:
    """Give so many nodes of this size."""
    return [Node(f"node-{number}", cpus, gpus) for number in range(1, nodes + 1)]


def simulate(jobs: Mapping[str, Job], seconds: Callable[[str], float], nodes: Sequence[Node], needs: Callable[[Job], Needs]) -> Simulated:
    """Play a run of these jobs through. `seconds`: of a job by its key, on one worker.

    A ClusterError where a step fits on no node.
    """
    taken = {key: needs(job) for key, job in jobs.items()}
    clock = _Clock(Placement(nodes), {key: max(seconds(key), STEP_S) for key in jobs}, taken)
    clock.check(jobs.values())
    execute(jobs, clock, lambda done: None, {})
    chain_s = _chain(jobs, clock.seconds)
    bound_s = max(chain_s, _work(clock.seconds, taken, nodes))
    return Simulated(tuple(clock.placed.values()), _used(nodes, clock.placed, taken), chain_s, bound_s)


class _Clock:
    """The executor under a virtual clock: it starts what has room and goes on to the next end."""

    def __init__(self, placement: Placement, seconds: Mapping[str, float], needs: Mapping[str, Needs]) -> None:
        self.placement, self.seconds, self.needs = placement, seconds, needs
        self.placed: dict[str, Placed] = {}
        self.now = 0.0
        self.tries: Mapping[End, int] = {}
        self._ends: list[tuple[float, int, Job]] = []
        self._last = ""
        """The step that ended last."""
        self._ready: dict[str, str] = {}
        """By step: the one whose end made it ready."""

    def check(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if not self.placement.holds(own := self.needs[job.key]):
                there = "; ".join(sorted({node.size for node in self.placement.nodes}))
                raise ClusterError(f"{job.stage} {job.label} needs {own}, and no node has that (there would be nodes of {there})")

    def submit(self, attempt: Attempt) -> None:
        job = attempt.job
        self._ready[job.key] = self._last
        self.placement.push(job, self.needs[job.key], attempt.rank)

    def next(self) -> Done:
        for job, _, node in self.placement.take():
            self._start(job, node)
        self.now, _, job = heapq.heappop(self._ends)
        self.placement.free(job.key)
        self._last = job.key
        return Done(job, None, self.seconds[job.key])

    def close(self) -> None:
        """Nothing was started."""

    def _start(self, job: Job, node: str) -> None:
        """Let a step start now; what has ended last is what it waited for, as a slot is taken as soon as it is free."""
        seconds, made_ready = self.seconds[job.key], self._ready[job.key] == self._last
        waited: Waited = "" if not self._last else "input" if made_ready else "slot"
        self.placed[job.key] = Placed(job.key, job.stage, job.label, node, self.now, seconds, waited, self._last)
        heapq.heappush(self._ends, (self.now + seconds, len(self.placed), job))


def _chain(jobs: Mapping[str, Job], seconds: Mapping[str, float]) -> float:
    """Give the seconds of the longest chain of jobs that need each other; each job comes after its inputs."""
    ends: dict[str, float] = {}
    for key, job in jobs.items():
        ends[key] = seconds[key] + max((ends[own] for own in job.inputs.values() if own in jobs), default=0.0)
    return max(ends.values(), default=0.0)


def _work(seconds: Mapping[str, float], needs: Mapping[str, Needs], nodes: Sequence[Node]) -> float:
    """Give the seconds that all steps take if no device ever waits; an exclusive step takes all devices of the smallest node."""

    def spread(sizes: Sequence[int], takes: Callable[[Needs], float]) -> float:
        work = sum(took * max(takes(needs[key]), min(sizes) * needs[key].exclusive) for key, took in seconds.items())
        return work / sum(sizes) if sum(sizes) else 0.0

    return max(spread([node.cpus for node in nodes], lambda own: own.cpus), spread([node.gpus for node in nodes], lambda own: own.gpus))


def _used(nodes: Sequence[Node], placed: Mapping[str, Placed], needs: Mapping[str, Needs]) -> tuple[Used, ...]:
    busy = dict.fromkeys((node.name for node in nodes), 0.0)
    with_gpus = {node.name for node in nodes if node.gpus}
    for key, step in placed.items():
        busy[step.node] += step.seconds * (needs[key].gpus if step.node in with_gpus else needs[key].cpus)
    return tuple(Used(node, busy[node.name]) for node in nodes)


def _named(nodes: Sequence[Used]) -> str:
    """Word so many nodes: `4 nodes of 16 CPUs, 1 GPU`."""
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} of {' or '.join(sorted({used.node.size for used in nodes}))}"

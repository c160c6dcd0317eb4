"""Jobs as Ray tasks, on a local Ray of our own or on a cluster that was asked for. Tasks return how they ended; the rest is in the store.

Where a task runs is decided here (`placement`), and so is whether there is another attempt (`execute`): Ray's own retries are
invisible and, for memory, endless; it knows no deadlines; and it waits for ever for what no node has.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rapbench.artifacts import Store, store_at
from rapbench.errors import ClusterError
from rapbench.kept import Kept
from rapbench.registry import Registry, discover
from rapbench.runner.connect import Site, connected, last_line
from rapbench.runner.execute import Attempt, Done, End, Failure, overdue, run_attempt
from rapbench.runner.logs import captured_whole, log_path
from rapbench.runner.needs import needs, roomy
from rapbench.runner.nodes import Environment, environment, nonce
from rapbench.runner.placement import Needs, Node, Placement
from rapbench.runner.shipped import join
from rapbench.stages import Bench, Job

GREETING_S = 120.0
LOOK_S = 5.0
"""Between two looks at which nodes are alive."""
GRACE_S = 5.0
"""A worker ends itself at a step's deadline; the driver ends it so much later."""
NODELESS_S = 60.0
"""How long to wait for a node when none is left that could run what waits."""


class RayExecutor:
    """Runs attempts on all nodes. A local Ray is started for this run and stopped after it; a cluster is left as it is."""

    tries: Mapping[End, int] = {End.LOST: 3, End.MEMORY: 2}

    def __init__(self, bench: Bench, site: Site | None = None) -> None:
        self.bench, self.site = bench, site or Site()
        self.ray = connected(bench, self.site)
        self._remote = self.ray.remote(max_retries=0)(_attempt)
        self._greeting = self.ray.remote(max_retries=0, num_cpus=0)(_environment)
        self._running: dict[Any, _Running] = {}
        self._waiting: dict[str, Attempt] = {}
        self._looked = time.monotonic()
        self._placement = Placement(())
        self._hosts: dict[str, str] = {}
        self._refused: set[str] = set()
        try:
            self._settle()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many steps run at once, where each needs one GPU (or share), or `threads` cores."""
        nodes, share = self._placement.nodes, self.site.gpu_share
        if self.bench.device.startswith("cuda"):
            return sum(min(int(node.gpus / share), node.cpus // self.bench.threads) for node in nodes)
        return sum(node.cpus // self.bench.threads for node in nodes)

    def check(self, jobs: Iterable[Job]) -> None:
        """Refuse, before anything runs, a step that no node is large enough for: a ClusterError names it."""
        for job in jobs:
            own = self._needs(Attempt(job))
            if not self._placement.holds(own):
                there = "; ".join(sorted({node.size for node in self._placement.nodes}))
                raise ClusterError(f"{job.stage} {job.label} needs {own}, and no node has that (there are nodes of {there})")

    def submit(self, attempt: Attempt) -> None:
        self._waiting[attempt.job.key] = attempt
        self._placement.push(attempt.job, self._needs(attempt), attempt.rank)

    def next(self) -> Done:
        nodeless = time.monotonic()
        while True:
            self._launch()
            if self._running:
                nodeless = time.monotonic()
                ready, _ = self.ray.wait(list(self._running), num_returns=1, timeout=self._patience())
                if ready:
                    ended = self._running.pop(ready[0])
                    done = self._ended(ready[0], ended)
                    if done.end is End.OK and ended.attempt.last:
                        self._launch()  # before whoever asked looks at what is done; else what that lets start may go first
                    return done
                for ref, own in list(self._running.items()):
                    if own.overdue_at is not None and time.monotonic() > own.overdue_at + GRACE_S:
                        self.ray.cancel(ref, force=True)
                        return self._stopped(self._running.pop(ref))
            elif time.monotonic() > nodeless + NODELESS_S:
                return self._homeless()
            else:
                time.sleep(1.0)
            if time.monotonic() > self._looked + LOOK_S:
                self._look()

    def close(self) -> None:
        self.ray.shutdown()

    def environments(self) -> dict[str, Environment | str]:
        """Give what each node would run, by its host and id; in words why it did not say where it did not."""
        found = self._greeted(self._alive())
        return {f"{one['NodeManagerHostname']} ({one['NodeID'][:6]})": answer for one, answer in found}

    def _settle(self) -> None:
        """Take in the nodes there are; a ClusterError where one would run something else than this machine."""
        if self.site.address != "local":
            own = environment()
            wrong = []
            for name, found in self.environments().items():
                wrong += [f"{name}: {one}" for one in _wrong(found, own)]
            if wrong:
                raise ClusterError(
                    "not every node runs what this machine does: " + "; ".join(wrong) + "; install the same everywhere, "
                    f"or give --ship-plugin WHEEL for a plugin; `rapbench doctor --cluster --ray-address {self.site.address}` checks again"
                )
        for one in self._alive():
            self._join(one)

    def _look(self) -> None:
        """Notice nodes that left or came; one that came is asked first what it would run."""
        self._looked = time.monotonic()
        alive = {one["NodeID"]: one for one in self._alive()}
        for node in [node.name for node in self._placement.nodes if node.name not in alive]:
            self._placement.leave(node)
        new = [one for name, one in alive.items() if name not in self._hosts and name not in self._refused]
        if not new or self.site.address == "local":
            return
        own = environment()
        for one, found in self._greeted(new):
            if wrong := _wrong(found, own):
                self._refused.add(one["NodeID"])
                print(f"rapbench: the node {one['NodeManagerHostname']} is not used: {'; '.join(wrong)}", file=sys.stderr)
            else:
                self._join(one)

    def _alive(self) -> list[dict[str, Any]]:
        return [one for one in self.ray.nodes() if one["Alive"] and one["Resources"].get("CPU")]

    def _join(self, one: Mapping[str, Any]) -> None:
        has = one["Resources"]
        self._hosts[one["NodeID"]] = one["NodeManagerHostname"]
        self._placement.join(Node(one["NodeID"], int(has["CPU"]), int(has.get("GPU", 0)), int(has.get("memory", 0))))

    def _greeted(self, nodes: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], Environment | str]]:
        """Ask nodes, all at once, what they would run; in words why one did not say."""
        store = store_at(self.bench.store)
        with nonce(store) as name:
            asked = [(one, self._greeting.options(**self._at(one["NodeID"], soft=False)).remote(store, name)) for one in nodes]
            return [(one, self._answered(ref)) for one, ref in asked]

    def _answered(self, ref: Any) -> Environment | str:
        try:
            found: Environment = self.ray.get(ref, timeout=GREETING_S)
            return found
        except self.ray.exceptions.GetTimeoutError:
            return f"no answer within {GREETING_S:.0f} s"
        except self.ray.exceptions.RayError as error:
            return f"rapbench does not run there: {last_line(error)}"

    def _at(self, node: str, *, soft: bool) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=soft)}

    def _needs(self, attempt: Attempt) -> Needs:
        own = needs(attempt.job, self.bench, self.site.gpu_share)
        return roomy(own) if attempt.roomy else own

    def _launch(self) -> None:
        for job, own, node in self._placement.take():
            attempt = self._waiting.pop(job.key)
            cpus = next(one.cpus for one in self._placement.nodes if one.name == node) if own.exclusive else own.cpus
            deadline = self.site.deadline_s
            ref = self._remote.options(
                name=f"{job.stage} {job.label}",
                num_cpus=cpus,
                num_gpus=own.gpus,
                memory=own.memory or None,
                **self._at(node, soft=True),  # a node may die before the task is there
            ).remote(attempt, self.bench, deadline, own.gpus)
            now = time.monotonic()
            self._running[ref] = _Running(attempt, node, now, now + deadline if deadline else None)

    def _patience(self) -> float:
        """Give the seconds until something besides the tasks wants a look."""
        ends = [own.overdue_at + GRACE_S for own in self._running.values() if own.overdue_at is not None]
        return max(0.05, min([self._looked + LOOK_S, *ends]) - time.monotonic())

    def _ended(self, ref: Any, own: _Running) -> Done:
        job, node = own.attempt.job, self._hosts.get(own.node, "")
        self._placement.free(job.key)
        try:
            done: Done = self.ray.get(ref)
            return replace(done, node=node)
        except self.ray.exceptions.OutOfMemoryError:
            reason = f"{job.stage} {job.label}: out of memory on {node}, killed by Ray: give fewer workers (--threads) or a smaller model"
            return self._lost(own, Failure(reason), End.MEMORY)
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.NodeDiedError) as error:
            self._look()
            if own.overdue_at is not None and time.monotonic() >= own.overdue_at:
                return self._lost(own, Failure(overdue(job, self.site.deadline_s)), End.DEADLINE)
            tries = f"{own.attempt.number} time{'s' * (own.attempt.number > 1)}"
            return self._lost(own, Failure(f"{job.stage} {job.label}: its worker died {tries} ({type(error).__name__})"), End.LOST)
        except self.ray.exceptions.TaskUnschedulableError:
            self._look()
            return self._lost(own, Failure(f"{job.stage} {job.label}: its node left"), End.LOST)
        except self.ray.exceptions.RayError as error:
            return self._lost(own, Failure(f"{job.stage} {job.label}: {type(error).__name__}: {last_line(error)}", str(error)), End.FAILED)

    def _stopped(self, own: _Running) -> Done:
        self._placement.free(own.attempt.job.key)
        return self._lost(own, Failure(overdue(own.attempt.job, self.site.deadline_s)), End.DEADLINE)

    def _homeless(self) -> Done:
        key, attempt = next(iter(self._waiting.items()))
        del self._waiting[key]
        reason = f"{attempt.job.stage} {attempt.job.label}: no node is left that has {self._needs(attempt)}"
        return Done(attempt.job, Failure(reason), 0.0, End.LOST, self.tries[End.LOST])

    def _lost(self, own: _Running, failure: Failure, end: End) -> Done:
        job, number = own.attempt.job, own.attempt.number
        log = log_path(self.bench, job, number)
        seconds = time.monotonic() - own.started
        return Done(job, failure, seconds, end, number, self._hosts.get(own.node, ""), str(log) if log and log.is_file() else "")


@dataclass(frozen=True)
class _Running:
    """An attempt under way. Times: of the monotonic clock."""

    attempt: Attempt
    node: str
    started: float
    overdue_at: float | None


def _attempt(attempt: Attempt, bench: Bench, deadline_s: float | None, gpus: float) -> Done:
    """Run an attempt in a worker. At the deadline the process ends itself from outside of Python, its stacks in the log."""
    registry, kept = _kept()
    log = log_path(bench, attempt.job, attempt.number)
    if 0 < gpus < 1:
        import torch

        torch.cuda.set_per_process_memory_fraction(gpus)
    with captured_whole(log) as used:
        if deadline_s:
            faulthandler.dump_traceback_later(deadline_s, exit=True)
        try:
            done = run_attempt(attempt, bench, registry, kept)
        finally:
            faulthandler.cancel_dump_traceback_later()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return replace(done, log=str(log) if used() else "")


def _environment(store: Store, nonce: str) -> Environment:
    """Give what a worker's machine would run."""
    join()
    return environment(store, nonce)


@cache
def _kept() -> tuple[Registry, Kept]:
    """Give what this worker keeps: it serves one run, and Ray hands a task nothing that its worker made before."""
    join()
    return discover(), Kept()


def _wrong(found: Environment | str, own: Environment) -> list[str]:
    """Give in words why a node cannot be used."""
    return [found] if isinstance(found, str) else found.differences(own)

"""Jobs as Ray tasks: `threads` cores each on a CPU machine, one GPU each where the device is one.

Retries are ours (a plugin's exception is never retried, a lost worker twice): Ray's own are invisible and, for memory,
endless. Tasks return their key only; everything else is in the store.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from rapbench.kept import Kept
from rapbench.registry import Registry, discover
from rapbench.runner.execute import Done, Failure, attempt
from rapbench.stages import Bench, Job

LOST_WORKER_TRIES = 3
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc gives the memory of large tensors back after each use otherwise: 1.2 times slower on a CPU
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


class RayExecutor:
    """A local Ray, started for this run and stopped after it; it joins no cluster that happens to be there."""

    def __init__(self, bench: Bench) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self.ray, self.bench = ray, bench
        self.workers = max(1, (os.cpu_count() or 1) // bench.threads)
        ray.init(
            address="local",
            num_cpus=self.workers * bench.threads,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
        )
        needs: dict[str, Any] = {"num_cpus": bench.threads, "num_gpus": 1 if bench.device.startswith("cuda") else 0}
        self._remote = ray.remote(max_retries=0, **needs)(_attempt)
        self._running: dict[Any, tuple[Job, int]] = {}

    def submit(self, job: Job) -> None:
        self._start(job, 1)

    def next(self) -> Done:
        while True:
            (ref,), _ = self.ray.wait(list(self._running), num_returns=1)
            job, tries = self._running.pop(ref)
            try:
                return Done(job, *self.ray.get(ref))
            except self.ray.exceptions.OutOfMemoryError:
                failure = Failure(
                    f"{job.stage} {job.label}: out of memory, killed by Ray: give a smaller batch or fewer workers (--threads)"
                )
            except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.NodeDiedError) as error:
                if tries < LOST_WORKER_TRIES:
                    self._start(job, tries + 1)
                    continue
                failure = Failure(f"{job.stage} {job.label}: its worker died {tries} times ({type(error).__name__})")
            except self.ray.exceptions.RayError as error:
                failure = Failure(f"{job.stage} {job.label}: {type(error).__name__}: {str(error).splitlines()[0]}", str(error))
            return Done(job, failure, 0.0)

    def close(self) -> None:
        self.ray.shutdown()

    def _start(self, job: Job, tries: int) -> None:
        ref = self._remote.options(name=f"{job.stage} {job.label}").remote(job, self.bench)
        self._running[ref] = (job, tries)


def _attempt(job: Job, bench: Bench) -> tuple[Failure | None, float]:
    return attempt(job, bench, *_kept())


@cache
def _kept() -> tuple[Registry, Kept]:
    """Give what this worker keeps: it serves one run, and Ray hands a task nothing that its worker made before."""
    return discover(), Kept()

"""Joining Ray: a local one of our own by default, a cluster only where it was asked for and answers; never one that happens to be there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapbench.errors import ClusterError
from rapbench.runner.shipped import sent
from rapbench.stages import Bench

PROBE_S, ANSWER_S = 2.0, 60.0
DRIVER = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
WORKERS = {
    "TOKENIZERS_PARALLELISM": "false",
    # glibc gives the memory of large tensors back after each use otherwise: 1.2 times slower on a CPU
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
HANDED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "RAPBENCH_CACHE", *WORKERS)
"""Settings of the driver that the workers of a cluster get, too."""


@dataclass(frozen=True)
class Site:
    """Where Ray is and how it is used. Nothing of this changes a result.

    `address`: `local`, `auto` (the cluster that RAY_ADDRESS or this machine's Ray names) or HOST:PORT of a head.
    """

    address: str = "local"
    deadline_s: float | None = None
    gpu_share: float = 1.0
    shipped: tuple[Path, ...] = ()


def connected(bench: Bench, site: Site) -> Any:
    """Give the module ray, connected; our handlers of signals stay."""
    for name, value in {**DRIVER, **WORKERS}.items():
        os.environ.setdefault(name, value)
    address = site.address if site.address == "local" else _answering(site.address)
    import ray

    given: dict[str, Any] = {}
    if address == "local":
        workers = max(1, cores() // bench.threads)
        given = {"num_cpus": workers * bench.threads, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    with ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                after.callback(signal.signal, number, signal.getsignal(number))
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=_runtime(address, site.shipped), **given)
        except (OSError, RuntimeError, ValueError) as error:
            what = "start Ray on this machine" if address == "local" else f"join the Ray cluster at {site.address!r}"
            raise ClusterError(f"cannot {what}: {last_line(error)}") from None
    return ray


def cores() -> int:
    """Give how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_line(error: object) -> str:
    """Give the last line of an error of Ray, which says what it is after pages of where."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _runtime(address: str, shipped: Sequence[Path]) -> dict[str, Any]:
    """Give what workers get of this process: a local Ray's have its environment already."""
    runtime: dict[str, Any] = {"py_modules": [sent(shipped)]} if shipped else {}
    if address != "local":
        runtime["env_vars"] = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return runtime


def _answering(address: str) -> str:
    """Give the address of a head that answers; a ClusterError within seconds where none does: Ray would wait for ever."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "") or _here()
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address!r} is Ray's client protocol: give the head as HOST:PORT (6379 by default), from a machine of the cluster"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ClusterError(f"--ray-address {address!r} is none: give local, auto or HOST:PORT of the head, like 10.0.0.1:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S):
            pass
    except (OSError, OverflowError) as error:
        raise ClusterError(f"nothing answers at {address!r} ({error}): is the head up (`ray start --head`), and the port right?") from None
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(check, capture_output=True, timeout=ANSWER_S, check=False)
        told = last_line(healthy.stderr.decode(errors="replace")) if healthy.returncode else ""
    except subprocess.TimeoutExpired:
        told = f"no answer within {ANSWER_S:.0f} s"
    if "InvalidAuthToken" in told:
        raise ClusterError(
            f"the cluster at {address!r} asks for its token: set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token"
        )
    if told:
        raise ClusterError(f"what answers at {address!r} is no head of a Ray cluster that this Ray can join: {told}")
    return address


def _here() -> str:
    """Give the address of the Ray that runs on this machine."""
    for folder in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        with suppress(OSError):
            if folder and (address := Path(folder, "ray", "ray_current_cluster").read_text().strip()):
                return address
    raise ClusterError("--ray-address auto: RAY_ADDRESS is not set, and no Ray runs on this machine: give HOST:PORT of the head")

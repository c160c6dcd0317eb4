"""What a fault costs in time: twelve score steps of some seconds on three nodes, with and without a worker, a node or the driver lost.

    python tests/faults/time_lost.py [--pause 4]

Each case is a run of its own, from the first step; the wall time includes joining the cluster and loading the libraries.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cost")]

import encoder  # noqa: E402
import saboteur  # noqa: E402
from campaign import _workers  # noqa: E402

CELLS = 12


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pause", type=float, default=4.0, help="seconds that each score step sleeps")
    pause = asked.parse_args().pause
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        saboteur.install(folder / "site")
        encoder.make(folder / "model")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        whole = timed(folder, "nothing", cluster, pause, lambda: None)
        print(f"no fault             {whole:6.1f} s")
        for name, harm in (
            ("a worker killed", kill_worker),
            ("a node removed", lambda: cluster.remove_node(next(iter(cluster.worker_nodes)))),
        ):
            took = timed(folder, name, cluster, pause, harm)
            print(f"{name:20} {took:6.1f} s, {took - whole:+.1f} s")
        took = killed_driver(folder, cluster, pause)
        print(f"the driver killed    {took:6.1f} s, {took - whole:+.1f} s (on two nodes, both runs together)")
        cluster.shutdown()


def kill_worker() -> None:
    os.kill(_workers()[0], signal.SIGKILL)


def timed(folder: Path, name: str, cluster: Any, pause: float, harm: Callable[[], None]) -> float:
    """Run the command, do harm when four score steps are done and others under way, and give the seconds until it has ended."""
    out = folder / name.replace(" ", "-")
    began = time.monotonic()
    started = subprocess.Popen(command(folder, out, cluster, pause), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    threading.Thread(target=after_four, args=(out, pause, harm)).start()
    _, err = started.communicate()
    if started.returncode:
        raise SystemExit(f"{name}: exit {started.returncode}: {err.decode()[-500:]}")
    return time.monotonic() - began


def killed_driver(folder: Path, cluster: Any, pause: float) -> float:
    out = folder / "driver"
    own = command(folder, out, cluster, pause)
    began = time.monotonic()
    started = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after_four(out, pause, started.kill)
    started.wait()
    subprocess.run(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def after_four(out: Path, pause: float, harm: Callable[[], None]) -> None:
    while len(list(out.glob("artifacts/*/manifest.json"))) < 8 + 4:
        time.sleep(0.1)
    time.sleep(pause / 2)
    harm()


def command(folder: Path, out: Path, cluster: Any, pause: float) -> list[str]:
    own = [sys.executable, "-c", "from rapbench.cli import main; main()", "run", "--json", "--out", str(out)]
    own += ["--ray-address", cluster.address, "--victim", f"{folder / 'model'}:max_length=32", "--dataset", "few", "--attack", "idle"]
    own += ["--frr", "0.05", "--seed", "1"]
    return own + [part for number in range(CELLS) for part in ("--defense", f"saboteur:number={number},pause={pause}")]


if __name__ == "__main__":
    main()

"""The batch script of docs/cluster.md, run by bash with Slurm, Ray and rapbench played by functions that say what they were asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "cluster.md"
PLAYED = """
srun() { echo "srun $*" >> said; exec sleep 60; }
scontrol() { echo node-1; sleep 0.1; echo node-2; echo node-3; }
hostname() { echo '10.0.0.1 10.1.0.1'; }
ray() { [ "$1" != health-check ] || until grep -q -e --head said; do sleep 0.01; done; }
rapbench() {
  trap 'kill $!; exit 130' TERM
  until [ "$(grep -c srun said)" = "$STARTS" ]; do sleep 0.01; done
  echo "rapbench $*" >> said
  if [ "$STATUS" = never ]; then sleep 60 & builtin wait; fi
  return "$STATUS"
}
wait() { [ $# = 0 ] || { until grep -q rapbench said; do sleep 0.01; done; echo waiting; }; builtin wait "$@"; }
"""


@pytest.fixture
def script(tmp_path):
    """Give what starts the script, in an empty folder, on so many nodes; its run ends with this status, or never."""
    [text] = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "script").write_text(PLAYED + text)

    started: list[subprocess.Popen[str]] = []

    def start(nodes: int = 3, status: str = "0", **more: str) -> subprocess.Popen[str]:
        played = {"STARTS": str(min(nodes, 2)), "STATUS": status}
        slurm = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": str(nodes), "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_NODELIST": "node-[1-3]"}
        command = ["bash", "script", "my-grid.yaml", "/shared/results"]
        environment = {**os.environ, **slurm, **played, **more}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def said(folder):
    return (folder / "said").read_text().splitlines()


def test_one_node_is_the_head_and_the_others_join_it(script, tmp_path):
    process = script(SLURM_GPUS_ON_NODE="2")
    process.communicate(timeout=30)
    assert process.returncode == 0
    room = "--block --num-cpus 16 --num-gpus 2"
    head = f"ray start --head --node-ip-address 10.0.0.1 --port 23456 --include-dashboard false {room}"
    assert said(tmp_path) == [
        f"srun --nodes 1 --ntasks 1 --nodelist node-1 --overlap {head}",
        f"srun --nodes 2 --ntasks 2 --exclude node-1 --overlap ray start --address 10.0.0.1:23456 {room}",
        "rapbench run --grid my-grid.yaml --out /shared/results --ray-address 10.0.0.1:23456",
    ]


def test_a_single_node_has_no_others_and_no_gpus_unless_slurm_says_so(script, tmp_path):
    script(nodes=1).communicate(timeout=30)
    [head, run] = said(tmp_path)
    assert head.startswith("srun --nodes 1")
    assert head.endswith("--num-cpus 16 --num-gpus 0")
    assert run.startswith("rapbench run")


def test_the_exit_code_is_the_runs(script):
    process = script(status="1")
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_slurms_warning_reaches_the_run_and_its_end_is_waited_for(script):
    process = script(status="never")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130

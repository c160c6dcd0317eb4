"""A run on three nodes, and what happens to it when workers, nodes, the driver or a plugin break."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rapbench.artifacts import Store
from rapbench.errors import ClusterError
from rapbench.grid import Block, cells_of
from rapbench.registry import discover
from rapbench.results import Record
from rapbench.runner.connect import Site
from rapbench.runner.execute import Done, End
from rapbench.runner.journal import Journal
from rapbench.runner.session import Session, planned
from rapbench.runner.shipped import install

FAULTS = Path(__file__).resolve().parent / "faults"
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def saboteur(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package `saboteur` on the path of this process and of the nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        patch.syspath_prepend(str(FAULTS))
        import saboteur

        saboteur.install(tmp_path_factory.mktemp("saboteur") / "site")
        yield
    sys.modules.pop("saboteur", None)


@pytest.fixture(scope="module")
def cluster(saboteur: None) -> Iterator:
    """Three nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        own = Cluster(initialize_head=True, head_node_args=small)
        for _ in range(2):
            own.add_node(**small)
        own.wait_for_nodes(timeout=120)
        yield own
        own.shutdown()


def grid(model: Path, *defenses: str, attacks: tuple[str, ...] = ("idle",)) -> Block:
    return Block(victim=f"{model}:max_length=32", datasets=["few"], attacks=list(attacks), defenses=list(defenses), frr=[0.05], seeds=[1])


def run(
    own: Block, out: Path, address: str | None, *, deadline_s: float | None = None, watch: Callable[[Done], None] = lambda done: None
) -> tuple[list[Record], list[Done]]:
    """Run a grid on the cluster at this address, or (None) in this process."""
    done: list[Done] = []

    def both(one: Done) -> None:
        done.append(one)
        watch(one)

    registry = discover()
    cells = [cell for cell in cells_of([own], registry) if cell.protocol == "strict"]
    plan, bench = planned(cells, registry, out, device="cpu", threads=1)
    session = Session(plan, bench, out, "ray" if address else "serial", Site(address or "local", deadline_s))
    return session.run(both, lambda total: None), done


def figures(records: list[Record]) -> list[str]:
    """What must be equal to the last bit: all but wall times and the number of attempts."""
    return sorted(json.dumps({**dataclasses.asdict(own), "cost": None, "attempts": None}, sort_keys=True) for own in records)


def ended(done: list[Done], stage: str = "score") -> list[tuple[str, bool]]:
    return [(str(one.end), one.again) for one in done if one.job.stage == stage and one.end is not End.OK]


def test_three_nodes_give_the_same_bits_as_this_process(cluster, tmp_path, tiny_data, tiny_victim_spec):
    own = Block(
        victim=tiny_victim_spec,
        datasets=[f"folder:path={tiny_data}"],
        attacks=["clean", "badnet-rw:poison_rate=0.4,word=mb"],
        defenses=["strip:copies=4", "rap:epochs=1,retries=1"],
        frr=[0.05],
        seeds=[1],
    )
    there, done = run(own, tmp_path / "there", cluster.address)
    here, _ = run(own, tmp_path / "here", None)
    assert figures(there) == figures(here)
    assert {own.status for own in there} == {"ok"}
    assert {one.node for one in done} == {socket.gethostname()}


def test_a_step_whose_worker_dies_is_tried_again_and_gives_the_same_bits(cluster, tmp_path, tiny_model):
    own = grid(tiny_model, f"saboteur:way=kill,times=2,marks={tmp_path / 'marks'}")
    records, done = run(own, tmp_path / "there", cluster.address)
    assert ended(done) == [("worker lost", True)] * 2
    assert Journal(tmp_path / "there").ends[records[0].artifacts["score"]] == ("worker lost", "worker lost", "ok")
    assert {record.status for record in records} == {"ok"}
    assert records[0].attempts == {"score": "worker lost, worker lost, ok"}
    here, _ = run(own, tmp_path / "here", None)  # the marks are there: nothing breaks
    assert figures(records) == figures(here)


def test_a_step_that_kills_every_worker_fails_after_three_and_alone(cluster, tmp_path, tiny_model):
    records, done = run(grid(tiny_model, "saboteur:way=segfault", "saboteur"), tmp_path, cluster.address)
    assert ended(done) == [("worker lost", True), ("worker lost", True), ("worker lost", False)]
    status = {record.defense: record for record in records}
    assert status["saboteur"].status == "ok"
    assert status["saboteur:way=segfault"].status == "failed"
    assert "its worker died 3 times" in status["saboteur:way=segfault"].reason
    log = next(one.log for one in done if one.end is End.LOST)
    assert "Segmentation fault" in Path(log).read_text(errors="replace")


def test_a_plugins_own_failure_is_not_tried_again_and_what_it_printed_is_in_its_log(cluster, tmp_path, tiny_model, capfd):
    records, done = run(grid(tiny_model, "saboteur:way=shout", "saboteur:way=leave"), tmp_path, cluster.address)
    assert ended(done) == [("failed", False)] * 2
    assert {own.reason for own in records} == {
        "score few idle saboteur: ZeroDivisionError: on purpose",
        "score few idle saboteur: SystemExit: 3",
    }
    (log,) = [Path(one.log).read_bytes() for one in done if one.end is End.FAILED and one.log]
    assert b"look at me" in log
    assert b"\xff\xfe not text" in log
    assert "look at me" not in "".join(capfd.readouterr())


def test_a_step_is_stopped_at_its_deadline_and_its_stack_is_in_the_log(cluster, tmp_path, tiny_model):
    for deadline_s in (12, 45):  # a busy machine may pass the first one with nothing but imports
        out = tmp_path / str(deadline_s)
        run(grid(tiny_model, "saboteur"), out, None)  # all that comes before
        records, done = run(grid(tiny_model, "saboteur:way=spin", "saboteur"), out, cluster.address, deadline_s=deadline_s)
        if any(one.log and "in spin" in Path(one.log).read_text() for one in done):
            break
    assert ended(done) == [("deadline passed", False)]
    status = {record.defense: (record.status, record.reason) for record in records}
    assert status["saboteur"] == ("ok", None)
    assert status["saboteur:way=spin"][1].startswith(f"score few idle saboteur: not done after {deadline_s} s: stopped")
    (log,) = [one.log for one in done if one.end is End.DEADLINE]
    assert "in spin" in Path(log).read_text()


def test_a_step_that_swallows_what_wakes_it_is_stopped_in_this_process_too(tmp_path, tiny_model, saboteur):
    run(grid(tiny_model, "saboteur"), tmp_path, None)
    records, done = run(grid(tiny_model, "saboteur:way=doze", "saboteur"), tmp_path, None, deadline_s=3)
    assert ended(done) == [("deadline passed", False)]
    assert {record.defense: record.status for record in records} == {"saboteur": "ok", "saboteur:way=doze": "failed"}


def test_a_step_without_memory_is_tried_once_more_with_a_node_to_itself(cluster, tmp_path, tiny_model):
    records, done = run(grid(tiny_model, f"saboteur:way=allocate,times=1,marks={tmp_path / 'marks'}"), tmp_path / "out", cluster.address)
    assert ended(done) == [("out of memory", True)]
    assert {record.status for record in records} == {"ok"}
    records, done = run(grid(tiny_model, "saboteur:way=allocate"), tmp_path / "out", cluster.address)
    assert ended(done) == [("out of memory", True), ("out of memory", False)]
    assert "MemoryError" in records[0].reason


@pytest.mark.slow
def test_a_step_that_takes_all_memory_is_killed_tried_once_more_and_named(saboteur, tmp_path, tiny_model, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(memory.total - memory.available + 3 * 2**30) / memory.total:.3f}")
    own = command(tmp_path, tiny_model, "--defense", "saboteur:way=devour", "--defense", "saboteur")
    ended = subprocess.run(own, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    cells = {cell["defense"]: cell for cell in json.loads(ended.stdout)["cells"]}
    assert cells["saboteur"]["status"] == "ok"
    assert "out of memory" in cells["saboteur:way=devour"]["reason"]
    assert cells["saboteur:way=devour"]["attempts"] == {"score": "out of memory, out of memory"}


def test_a_node_that_leaves_takes_its_steps_to_others(cluster, tmp_path, tiny_model):
    marks = tmp_path / "marks"
    own = grid(tiny_model, *(f"saboteur:pause=4,number={number},marks={marks}" for number in range(4)))
    extra = cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes(timeout=120)
    (raylet,) = [one.process.pid for one in extra.all_processes["raylet"]]
    over = threading.Event()

    def remove() -> None:
        while not over.wait(0.1):
            if _scoring(raylet):  # of four such steps at once three fill the other nodes
                cluster.remove_node(extra)
                return

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        records, done = run(own, tmp_path / "out", cluster.address)
    finally:
        over.set()
        remover.join()
    assert {record.status for record in records} == {"ok"}
    assert {one.end for one in done} <= {End.OK, End.LOST}
    assert ("worker lost", True) in ended(done)
    here, _ = run(own, tmp_path / "here", None)
    assert figures(records) == figures(here)


def _scoring(raylet: int) -> bool:
    """Tell whether a worker of this node is at the score of a cell: Ray has it named after its step."""
    for worker in psutil.Process(raylet).children():
        with contextlib.suppress(psutil.Error):
            if "ray::score" in " ".join(worker.cmdline()):
                return True
    return False


def test_a_driver_that_is_killed_and_started_again_goes_on(cluster, tmp_path, tiny_model, start):
    out = tmp_path / "out"
    defenses = [f"saboteur:pause=1,number={number}" for number in range(6)]
    own = command(out, tiny_model, "--ray-address", cluster.address, *(part for one in defenses for part in ("--defense", one)))
    first = start(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = Store(out / "artifacts")
    while len(list((out / "artifacts").glob("*/manifest.json"))) < 9:
        assert first.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = len(store.published())
    second = subprocess.run(own, capture_output=True, text=True, check=True)
    steps = [line for line in second.stderr.splitlines() if line.startswith("[")]
    assert 0 < len(steps) <= 14 - before  # data, 2 x poison, 2 victims, 3 predictions; 6 scores; some ended after the driver
    again = [own for cell in json.loads(second.stdout)["cells"] if (own := Record.of(cell)).protocol == "strict"]
    here, _ = run(grid(tiny_model, *defenses), tmp_path / "here", None)
    assert figures(again) == figures(here)


SHIPPED = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import numpy as np
from rapbench import Defense, Detector, hookimpl


WORDS = Path(__file__).parent / "shipped_words" / "data" / "words.txt"
RESULTS_DEPEND_ON = (str(WORDS),)


class Constant(Detector):
    def suspicion(self, texts):
        return np.zeros(len(texts))


@dataclass(frozen=True, kw_only=True)
class Shipped(Defense):
    \"\"\"Finds nothing.\"\"\"

    name: ClassVar[str] = "shipped"

    def fit(self, victim, heldout, lab):
        assert WORDS.read_text() == "mb"
        return Constant()


@hookimpl
def rapbench_defenses():
    return [Shipped]
"""


def wheel(folder: Path, *, pure: str = "true", more: str = "") -> Path:
    """Write the package `shipped` as a wheel; `more` at the end of its source."""
    path = folder / "shipped-1.0-py3-none-any.whl"
    files = {
        "shipped.py": SHIPPED + more,
        "shipped_words/.gitignore": "data/",
        "shipped_words/data/words.txt": "mb",
        "shipped-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\n",
        "shipped-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: {pure}\nTag: py3-none-any\n",
        "shipped-1.0.dist-info/entry_points.txt": "[rapbench]\nshipped = shipped\n",
    }
    record = "".join(f"{name},,\n" for name in files) + "shipped-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, "shipped-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def command(out: Path, model: Path, *more: str) -> list[str]:
    given = ["run", "--victim", f"{model}:max_length=32", "--dataset", "few", "--attack", "idle", "--frr", "0.05", "--seed", "1", "--json"]
    return [sys.executable, "-c", "from rapbench.cli import main; main()", *given, "--out", str(out), *more]


def test_a_shipped_plugin_runs_on_nodes_that_have_it_not_installed(cluster, tmp_path, tiny_model):
    own = command(tmp_path / "out", tiny_model, "--defense", "shipped", "--ray-address", cluster.address)
    without = subprocess.run(own, capture_output=True, text=True, check=False)
    assert (without.returncode, "unknown defense 'shipped'" in without.stderr) == (2, True)
    ended = subprocess.run([*own, "--ship-plugin", str(wheel(tmp_path))], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert {cell["status"] for cell in json.loads(ended.stdout)["cells"]} == {"ok"}
    edited = subprocess.run([*own, "--ship-plugin", str(wheel(tmp_path, more="# edited"))], capture_output=True, text=True, check=False)
    assert edited.returncode == 0, edited.stderr  # under the same file name


def test_a_node_that_lacks_a_plugin_is_named_before_anything_runs(cluster, tmp_path, tiny_model):
    with zipfile.ZipFile(wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "site")
    own = command(tmp_path / "out", tiny_model, "--defense", "shipped", "--ray-address", cluster.address)
    here_alone = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}"}
    ended = subprocess.run(own, capture_output=True, text=True, check=False, env=here_alone)
    assert ended.returncode == 2
    assert ended.stderr.startswith("rapbench: not every node runs what this machine does: ")
    assert f"`rapbench doctor --cluster --ray-address {cluster.address}` checks again" in ended.stderr
    assert ended.stderr.count("no plugin 'defense shipped'") == len(cluster.list_all_nodes())
    assert Store(tmp_path / "out" / "artifacts").published() == []


def test_a_wheel_with_compiled_code_and_what_is_no_wheel_are_refused(tmp_path):
    with pytest.raises(ClusterError, match="is not pure Python: install it on every machine instead"):
        install([wheel(tmp_path, pure="false")])
    with pytest.raises(ClusterError, match="is no wheel: build one"):
        install([tmp_path / "nothing.whl"])
    (tmp_path / "torn.whl").write_bytes(b"PK")
    with pytest.raises(ClusterError, match="cannot be read"):
        install([tmp_path / "torn.whl"])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing answers at '127.0.0.1:1'"),
        ("no-such-host.invalid:6379", "nothing answers at"),
        ("somewhere", "--ray-address 'somewhere' is none: give local, auto or HOST:PORT"),
        ("ray://127.0.0.1:10001", "is Ray's client protocol"),
    ],
)
def test_a_wrong_address_is_one_sentence_within_seconds(rapbench, tmp_path, tiny_model, saboteur, monkeypatch, address, said):
    if "invalid" in address:  # how long a resolver looks for such a host is not ours
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    started = time.monotonic()
    given = ["--victim", f"{tiny_model}", "--dataset", "few", "--attack", "idle", "--defense", "saboteur", "--out", str(tmp_path)]
    code, _, err = rapbench("run", *given, "--ray-address", address)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert time.monotonic() - started < 5 + 2  # the plan itself takes a moment


def _unknown(*asked: object, **more: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_what_answers_and_is_no_ray_is_one_sentence(tmp_path, monkeypatch):
    from rapbench.runner import connect

    monkeypatch.setattr(connect, "ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(ClusterError, match="is no head of a Ray cluster"):
        connect._answering(f"127.0.0.1:{mute.getsockname()[1]}")


def test_a_step_that_no_node_can_run_is_refused_before_anything_runs(cluster, tmp_path, tiny_model):
    registry = discover()
    cells = cells_of([grid(tiny_model, "saboteur")], registry)
    plan, bench = planned(cells, registry, tmp_path, device="cpu", threads=64)
    with pytest.raises(ClusterError, match=r"needs 64 CPUs.*and no node has that \(there are nodes of 1 CPU"):
        Session(plan, bench, tmp_path, "ray", Site(cluster.address)).run(lambda done: None, lambda total: None)
    assert Store(tmp_path / "artifacts").published() == []

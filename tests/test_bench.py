"""pytest-benchmark: the fixture in a stranger's repository, `rapbench bench`, and the JSON that `compare` reads.

The runs are pytest processes in a folder of their own, with the plugin found through an entry point, as a stranger would have it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from rapbench import cli_bench
from rapbench.bench.export import Row, document
from rapbench.bench.subject import SAMPLED, NotBenched, Setting, Subject, dealt, registered, registry, subject
from rapbench.errors import CellError, SpecError, StoreError
from rapbench.standin import StandIn

PACKAGE = '''
"""A stranger's defenses."""
from dataclasses import dataclass
from typing import ClassVar

from rapbench import Defense, Detector, hookimpl
from rapbench.api import option


class Asking(Detector):
    def __init__(self, victim, asks, lasts):
        self.victim, self.asks, self.lasts = victim, asks, lasts

    def suspicion(self, texts):
        if not self.lasts:
            raise ValueError("I break in the middle\\nof everything")
        self.lasts -= 1
        return sum(self.victim.protect_probability(texts) for _ in range(self.asks))


@dataclass(frozen=True, kw_only=True)
class Mine(Defense):
    """Asks the victim again."""

    name: ClassVar[str] = "mine"
    asks: int = option(1, "how often")
    lasts: int = option(1000, "calls until it breaks")

    def fit(self, victim, heldout, lab):
        return Asking(victim, self.asks, self.lasts)


@hookimpl
def rapbench_defenses():
    return [Mine]
'''
TESTS = """
import sys

HEAVY = {"torch", "transformers", "datasets", "numpy", "scipy", "sklearn", "rapbench.stages"}


def test_nothing_heavy_is_loaded_with_the_plugin(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("rapbench")
    assert not HEAVY & set(sys.modules)


def test_none(rapbench_cost):
    assert rapbench_cost("undefended").victim_rows_per_text == 1


def test_mine(rapbench_cost):
    rapbench_cost("mine:asks=2")


def test_rap(rapbench_cost):
    rapbench_cost("rap:epochs=1,retries=0")


def test_strip(rapbench_cost):
    rapbench_cost("strip:copies=3")


def test_onion(rapbench_cost):
    rapbench_cost("onion:lm=trigram")


def test_the_oracle(rapbench_cost):
    rapbench_cost("oracle")


def test_a_filter(rapbench_cost):
    rapbench_cost("bki:scored_texts=20")


def test_a_repair(rapbench_cost):
    rapbench_cost("finetune:epochs=1")


def test_of_no_cell(rapbench_cost):
    rapbench_cost("rap:word=mb")


def test_that_breaks(rapbench_cost):
    rapbench_cost("mine:lasts=2")


def test_of_a_name_that_nobody_knows(rapbench_cost):
    rapbench_cost("mime")
"""
STAND_INS = ("bki:scored_texts=20", "finetune:epochs=1")
COUNTED = ("undefended", "mine:asks=2", "rap:epochs=1,retries=0", "strip:copies=3", "onion:lm=trigram", "oracle", *STAND_INS)
TESTED = ["test_none", "test_mine", "test_rap", "test_strip", "test_onion", "test_the_oracle", "test_a_filter", "test_a_repair"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Place(NamedTuple):
    """A stranger's folder with his tests, what tells pytest about his defense and ours, and the store that runs share."""

    folder: Path
    packages: Path
    options: list[str]
    names: dict[str, str]

    def run(self, *arguments: object, **env: str) -> Ended:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}  # it would time nothing
        path = os.pathsep.join([str(self.packages), *filter(None, [inherited.get("PYTHONPATH")])])  # there the rapbench under test may be
        own = {**inherited, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", **env}
        command = [sys.executable, *map(str, arguments)]
        ended = subprocess.run(command, cwd=self.folder, env=own, capture_output=True, text=True, check=False, timeout=900)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def pytest(self, *arguments: object, **env: str) -> Ended:
        return self.run("-m", "pytest", "-p", "no:cacheprovider", *self.options, *arguments, **env)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_victim_spec: str) -> Place:
    folder, packages = tmp_path_factory.mktemp("stranger"), tmp_path_factory.mktemp("packages")
    (folder / "test_costs.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    (packages / "strangers_defenses.py").write_text(PACKAGE)
    for name, entry in (
        ("strangers", "[rapbench]\nmine = strangers_defenses\n"),
        ("ours", "[pytest11]\nrapbench = rapbench.bench.plugin\n"),
    ):
        about = packages / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(entry)
    names = {
        "dataset": f"folder:path={tiny_data}",
        "attack": "badnet-rw:word=mb,poison_rate=0.4",
        "victim": tiny_victim_spec,
        "seed": "1",
        "texts": "20",
        "rounds": "2",
    }
    return Place(folder, packages, [f"--rapbench-{name}={value}" for name, value in names.items()], names)


@pytest.fixture(scope="module")
def ran(place: Place) -> Iterator[tuple[Ended, list[dict[str, Any]]]]:
    """The stranger's tests, and what the JSON says of them."""
    ended = place.pytest("--benchmark-json=out.json")
    assert (place.folder / "out.json").is_file(), ended.out + ended.err
    return ended, json.loads((place.folder / "out.json").read_text())["benchmarks"]


@pytest.fixture(scope="module")
def costs(ran: tuple[Ended, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {row["extra_info"]["defense"]: row["extra_info"] for row in ran[1]}


# in a stranger's repository


def test_every_defense_that_lasts_has_a_row(ran):
    ended, rows = ran
    assert [row["name"] for row in rows] == TESTED
    assert [row["extra_info"]["defense"] for row in rows] == list(COUNTED)
    assert ended.code == 1
    assert "2 failed, 9 passed, 1 skipped" in ended.out


def test_a_defense_that_breaks_says_why_and_an_unknown_name_is_one_line(ran):
    out = ran[0].out
    assert "ValueError: I break in the middle" in out
    assert "unknown defense 'mime', did you mean 'mine'?" in out
    assert "SpecError" not in out


def test_rows_are_grouped_by_data_set_and_attack(ran, place):
    assert {row["group"] for row in ran[1]} == {f"{place.names['dataset']}/badnet-rw:poison_rate=0.4,word=mb"}


def test_a_row_has_the_rounds_that_were_asked_for(ran):
    assert {(row["stats"]["rounds"], len(row["stats"]["data"])) for row in ran[1]} == {(2, 2)}


def test_victim_rows_are_exact(costs):
    found = {name: costs[name]["victim_rows_per_text"] for name in COUNTED[:4]}
    assert found == {"undefended": 1, "mine:asks=2": 1 + 2, "rap:epochs=1,retries=0": 1 + 1, "strip:copies=3": 1 + 3}


def test_victim_tokens_are_exact(costs):
    words = costs["undefended"]["words_per_text"]
    plain = words + 2  # [CLS] and [SEP]; each word of the tiny task is a token
    assert costs["undefended"]["victim_tokens_per_text"] == pytest.approx(plain)
    assert costs["mine:asks=2"]["victim_tokens_per_text"] == pytest.approx(3 * plain)
    assert costs["rap:epochs=1,retries=0"]["victim_tokens_per_text"] == pytest.approx(2 * plain + 1)  # and the rare word


def test_the_oracle_costs_the_victims_own_prediction_alone(costs):
    assert costs["oracle"]["victim_rows_per_text"] == 1  # it is told the trigger `mb`, or its fit would have failed
    assert costs["oracle"]["helper_rows_per_text"] == {}


@pytest.mark.parametrize("spec", STAND_INS)
def test_after_a_filter_or_a_repair_one_victim_answers_and_not_two(costs, spec):
    cost = costs[spec]
    assert cost["victim_rows_per_text"] == 1
    assert cost["victim_tokens_per_text"] == pytest.approx(cost["words_per_text"] + 2)  # [CLS] and [SEP]
    assert (cost["helper_rows_per_text"], cost["level"]) == ({}, None)
    assert cost["fit_s"] > 0  # the training, which no round has


def test_every_defense_is_measured_on_the_same_texts(costs):
    assert len({(cost["texts_per_round"], cost["words_per_text"]) for cost in costs.values()}) == 1
    assert costs["undefended"]["texts_per_round"] == 20


def test_a_purifier_costs_its_model_and_the_prediction_of_changed_texts(costs):
    cost = costs["onion:lm=trigram"]
    assert cost["helper_rows_per_text"] == {"lm": pytest.approx(cost["words_per_text"] + 1)}  # no text was known before
    assert 1 < cost["victim_rows_per_text"] < 2
    assert cost["level"] is not None


def test_times_are_per_text_and_medians_of_rounds(ran):
    for row in ran[1]:
        info = row["extra_info"]
        assert info["ms_per_text"] == pytest.approx(1000 * row["stats"]["median"] / 20)
        assert info["undefended_ms_per_text"] > 0
        assert info["ratio"] > 0


def test_a_row_says_where_it_comes_from(costs, place):
    cost = costs["mine:asks=2"]
    assert (cost["dataset"], cost["seed"], cost["threads"], cost["device"]) == (place.names["dataset"], 1, 1, "cpu")
    assert cost["victim"].startswith(place.names["victim"].partition(":")[0])
    assert cost["fit_s"] >= 0


@pytest.mark.usefixtures("ran")
def test_the_victim_is_kept_beside_the_tests_and_git_overlooks_it(place):
    assert (place.folder / ".rapbench" / ".gitignore").read_text() == "*\n"


def test_the_json_is_what_compare_reads(ran, place):
    ended = place.run("-m", "pytest_benchmark", "compare", "out.json", "--columns=median,rounds")
    assert ended.code == 0
    assert all(name in ended.out for name in ("test_rap", "test_strip", "test_onion", "8 tests"))


def test_without_pytest_benchmark_nothing_breaks_and_the_skip_says_what_to_install(place):
    ended = place.pytest("-p", "no:benchmark", "-rs")
    assert ended.code == 0
    assert "1 passed, 11 skipped" in ended.out
    assert "pip install 'rapbench[bench]'" in ended.out


def test_under_xdist_the_skip_says_that_no_json_is_written(place):
    ended = place.pytest("-rs", "-W", "error", "-W", "default:Benchmarks are", PYTEST_XDIST_WORKER="gw0")
    assert ended.code == 0
    assert "1 passed, 11 skipped" in ended.out
    assert "writes no JSON: run this test with -n 0" in ended.out


def test_benchmarks_that_are_switched_off_run_once(place, ran):
    ended = place.pytest("--benchmark-disable", "-k", "test_none or test_mine")
    assert "2 passed" in ended.out


def test_the_wheel_declares_the_plugin():
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"rapbench": "rapbench.bench.plugin"}


# rapbench bench


@pytest.fixture(scope="module")
def benched(place: Place, ran: object) -> tuple[Ended, list[dict[str, Any]]]:
    """Four rows of `rapbench bench`: one breaks, one is no cell of any grid; the victim is that of the stranger's tests."""
    defenses = [f"--defense={spec}" for spec in ("mine:lasts=2", "rap:word=mb", "strip:copies=3")]
    names = [f"--{name}={value}" for name, value in place.names.items()]
    main = "from rapbench.cli import main; main()"
    ended = place.run("-c", main, "bench", *defenses, *names, "--out", ".rapbench", "--json", "bench.json", PYTEST_ADDOPTS="-n 4")
    assert (place.folder / "bench.json").is_file(), ended.out + ended.err
    return ended, json.loads((place.folder / "bench.json").read_text())["benchmarks"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_bench_prints_a_line_per_defense_and_nothing_else(benched):
    head, _, *lines = benched[0].out.splitlines()
    assert cells(head) == list(cli_bench.HEADERS)
    assert [cells(line)[0] for line in lines[:4]] == ["undefended", "mine:lasts=2", "rap:word=mb", "strip:copies=3"]
    assert cells(lines[3])[4] == "4.000"
    assert lines[4] == ""
    assert "rounds of 20 texts of 1" in lines[5]
    assert len(lines) == 6


def test_a_defense_that_breaks_is_a_failed_line_and_the_exit_code_is_1(benched):
    ended = benched[0]
    assert ended.code == 1
    assert cells(ended.out.splitlines()[3])[:2] == ["mine:lasts=2", "failed"]
    assert "rapbench: mine:lasts=2: ValueError: I break in the middle\n" in ended.err


def test_what_is_no_cell_of_a_grid_is_told_as_not_benched_and_why(benched):
    ended = benched[0]
    assert cells(ended.out.splitlines()[4])[:2] == ["rap:word=mb", "not benched"]
    assert "rapbench: rap:word=mb: not benched, because rap perturbs with 'mb', a declared trigger of badnet-rw" in ended.err
    assert "was not used at all" not in ended.err


def test_bench_writes_the_json_of_those_that_last(benched):
    assert [row["name"] for row in benched[1]] == ["test_cost[undefended]", "test_cost[strip:copies=3]"]
    assert [row["fullname"].rpartition("::")[2] for row in benched[1]] == [row["name"] for row in benched[1]]


def test_bench_finds_the_victim_that_is_there(benched):
    assert "victim folder" not in benched[0].err


def test_without_pytest_benchmark_bench_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    with pytest.raises(SpecError, match=r"pip install 'rapbench\[bench\]'"):
        cli_bench.bench()


def test_bench_refuses_an_unknown_defense_before_it_computes(tmp_path):
    with pytest.raises(SpecError, match="unknown defense 'stripp', did you mean 'strip'"):
        cli_bench.bench(defense=["stripp"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bench_refuses_a_file_for_its_folder_before_it_computes(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot make the folder .*; choose another --out"):
        cli_bench.bench(defense=["rap"], out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_every_registered_defense_has_a_row_by_default():
    specs = registered()
    assert specs[0] == "undefended"
    names = [spec.partition(":")[0] for spec in specs]
    assert sorted(names) == registry().names("defense")
    assert {"rap", "random", "oracle", "bki", "cube", "finetune", "fine-prune", "badacts-purify"} <= set(names)
    assert "onion:lm=trigram" in specs  # as the demo grid has it: no download


def test_every_default_row_is_a_cell_of_the_demo_grids_victim(tmp_path):
    known = registry()
    assert {spec: Setting(out=tmp_path).cell(spec, known).skip for spec in registered()} == dict.fromkeys(registered())


@pytest.mark.parametrize(
    ("defense", "attack", "why"),
    [
        ("bki", "ep", "bki filters a training set, and ep plants no backdoor by one alone"),
        ("oracle", "char", "oracle looks for the words of a trigger, and char declares none"),
    ],
)
def test_a_pair_that_is_no_cell_says_why_before_anything_is_computed(defense, attack, why, tmp_path):
    with pytest.raises(NotBenched, match=f"^not benched, because {why}$"):
        subject(defense, Setting(out=tmp_path / "out", attack=attack))
    assert not (tmp_path / "out").exists()


def test_what_is_sampled_to_be_fitted_in_time_is_registered_and_says_so_in_its_spec():
    assert {name: spec.partition(":")[0] for name, spec in SAMPLED.items()} == {name: name for name in SAMPLED}
    assert set(SAMPLED.values()) <= set(registered())


def test_the_victim_that_stands_in_answers_and_the_received_one_is_timed_beside_it(untrained, lab):
    repaired = untrained.clone()
    lab.meter.watch(untrained.model, "received")
    lab.meter.watch(repaired.model, "repaired")
    cell = SimpleNamespace(defense=SimpleNamespace(name="odd"))
    own = Subject(cell, untrained, StandIn(repaired), lab, [["good", "bad day", "a warm day"]])
    (texts,), _ = own.next_texts()
    own.run(texts)
    rows = {name: {who: count.rows for who, count in phase.by.items()} for name, phase in lab.meter.phases.items()}
    assert rows == {"plain": {"received": 2 * 3}, "guarded": {"repaired": 3}}  # a prediction that is timed is warmed up by another
    assert own.level is None


def test_a_round_is_compared_with_the_mean_of_what_stands_before_and_after_it(untrained, lab, monkeypatch):
    clock = iter([9.0, 1.0, 3.0])  # the first is warmed up by, and counts nowhere
    monkeypatch.setattr(Subject, "_undefended_s", lambda self, texts: next(clock))
    own = Subject(SimpleNamespace(), untrained, untrained, lab, [["good"]])
    (texts,), _ = own.next_texts()
    own.ran(texts)
    assert own.plain_s == [2.0]


# the texts of a round


def lengths(batches: Sequence[Sequence[str]]) -> list[list[int]]:
    return [sorted(len(text.split()) for text in batch) for batch in batches]


def test_texts_are_dealt_so_that_batches_are_alike():
    texts = [" ".join("w" * length) for length in (3, 1, 6, 2, 5, 4)]
    rng = np.random.default_rng(0)
    assert lengths(dealt(texts, 3, 2, rng)) == [[1, 6], [2, 5], [3, 4]]  # 1 2 3, then 4 5 6 from the other end
    assert lengths(dealt(texts, 3, 1, rng)) == [[1], [3], [5]]  # half of them, evenly over the lengths
    assert lengths(dealt(texts, 2, 9, rng)) == [[1, 4, 5], [2, 3, 6]]


def test_no_text_is_dealt_twice():
    texts = [f"{'w ' * (number % 7)}{number % 50}" for number in range(100)]
    batches = dealt(texts, 3, 100, np.random.default_rng(0))
    flat = [text for batch in batches for text in batch]
    assert len(flat) == len(set(flat)) == len(set(texts)) // 3 * 3


def test_more_rounds_than_texts_are_refused():
    with pytest.raises(CellError, match="2 texts pass the gate, and 3 rounds"):
        dealt(["a", "b", "a"], 3, 1, np.random.default_rng(0))


def test_a_setting_without_texts_or_rounds_is_refused(tmp_path):
    with pytest.raises(SpecError, match="rounds=0 is below 1"):
        Setting(out=tmp_path, rounds=0)


# export


def test_compare_reads_what_was_exported(tmp_path):
    rows = [
        Row(name="rap", group="demo/ep", seconds=[0.002, 0.004, 0.003], extra_info={"victim_rows": 2}),
        Row(name="strip", group="demo/ep", seconds=[0.02]),
        Row(name="failed", group="demo/ep", seconds=[]),
    ]
    (tmp_path / "grid.json").write_text(json.dumps(document(rows)))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "grid.json", "--columns=median,rounds", "--time-unit=ms"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines() if line.startswith(("rap", "strip"))}
    assert "'demo/ep': 2 tests" in ended.stdout
    assert [lines["rap"][0], lines["rap"][-1]] == ["3.0000", "3"]  # ms, rounds
    assert [lines["strip"][0], lines["strip"][-1]] == ["20.0000", "1"]


def test_an_exported_row_keeps_its_samples_and_counts():
    (row,) = document([Row(name="rap", group="demo/ep", seconds=[0.1, 0.3], extra_info={"rows": 2})], machine={"node": "x"})["benchmarks"]
    assert (row["group"], row["name"], row["fullname"]) == ("demo/ep", "rap", "demo/ep::rap")
    assert row["extra_info"] == {"rows": 2}
    assert row["stats"]["data"] == [0.1, 0.3]
    assert (row["stats"]["min"], row["stats"]["median"], row["stats"]["rounds"]) == (0.1, pytest.approx(0.2), 2)


def test_an_export_says_nothing_of_the_machine_and_the_moment_that_it_is_written_on():
    told = [document([]), document([], {"device_name": "EPYC"}, datetime(2026, 1, 2, tzinfo=UTC))]
    assert [(one["machine_info"], one.get("datetime")) for one in told] == [
        ({}, None),
        ({"device_name": "EPYC"}, "2026-01-02T00:00:00+00:00"),
    ]


def test_without_pytest_benchmark_an_export_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    with pytest.raises(SpecError, match=r"pip install 'rapbench\[bench\]'"):
        document([])

"""The runner's own work: once per run, per victim or per file, and not once per cell."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rapbench import artifacts, measure, registry, results
from rapbench.api import Labelled
from rapbench.errors import StoreError
from rapbench.kept import SPLITS, Kept
from rapbench.runner import plan
from rapbench.stages import Step
from rapbench.victim import Victim

COST = Path(__file__).resolve().parent / "cost"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script `cost/runner.py`, the package of plugins that do nothing on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        patch.syspath_prepend(str(COST))
        import runner as script

        script.saboteur.install(tmp_path_factory.mktemp("saboteur") / "site")
        yield script
    for name in ("runner", "encoder", "saboteur"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(runner: ModuleType, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one cell was run: the victim, its control and the predictions are there."""
    made = tmp_path_factory.mktemp("overhead")
    (made / "model").symlink_to(tiny_model)
    runner.run(made, range(1))
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the runner's dear steps was taken; files by their path."""
    counts: Counter[str] = Counter()

    def count(owner: object, name: str, named: bool = False) -> None:
        original = getattr(owner, name)

        def counted(*given: object, **options: object) -> object:
            counts[f"{name} {given[0]}" if named else name] += 1
            return original(*given, **options)

        monkeypatch.setattr(owner, name, counted)

    count(registry, "entry_points")
    count(Victim, "load")
    count(Step, "rows")
    count(artifacts, "file_digest", named=True)
    count(measure.np, "load", named=True)
    count(plan, "source_digest")
    return counts


def test_the_plugins_the_victim_and_the_texts_are_read_once_for_all_cells(runner, folder, calls):
    took = runner.run(folder, range(100, 106))
    assert took.steps == 6
    assert calls["entry_points"] == 2  # the plan's and the executor's
    assert calls["load"] == 1
    assert calls["rows"] == 3  # held-out, test and triggered texts


def test_a_plan_reads_the_source_of_a_plugin_once(runner, folder, calls):
    runner.run(folder, range(500, 506))
    assert calls["source_digest"] == 4  # the data set, the attack and its control, and the defense of all six cells


def test_a_file_is_digested_once_in_a_run(runner, folder, calls):
    runner.run(folder, range(200, 206))
    digests = {name: number for name, number in calls.items() if name.startswith("file_digest")}
    assert len(digests) >= 12  # the scores and the account of six cells, and the predictions that were there
    assert set(digests.values()) == {1}


def test_predictions_are_read_once_for_all_the_records_on_them(runner, folder, calls):
    runner.run(folder, range(300, 302))
    few = sum(number for name, number in calls.items() if name.startswith("load /"))
    calls.clear()
    runner.run(folder, range(400, 406))
    many = sum(number for name, number in calls.items() if name.startswith("load /"))
    # four cells more: each reads two predictions to score, and its scores once for record and curve together
    assert many - few <= 4 * (2 + 1)


@pytest.mark.slow
def test_a_hundred_cells_take_less_than_ten_seconds_of_the_processor(runner, folder):
    used = time.process_time()
    runner.run(folder, range(1000, 1100))
    assert time.process_time() - used < 10  # about one here


# --- what is kept


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_what_a_plugin_does_to_its_victim_reaches_no_other_step(kept, tiny_model):
    def load() -> Victim:
        return Victim.load(tiny_model, target_label=1, max_length=32, n_labels=2)

    first = kept.victim("v", load, "cpu")
    before = first.probabilities(["the film was warm"])
    first.model.register_forward_pre_hook(lambda *given: pytest.fail("a hook of an earlier step"))
    first.remember(["a day"], [np.array([0.0, 1.0])])
    first.model.get_input_embeddings().weight.data.zero_()
    first.model.config.problem_type = "regression"
    second = kept.victim("v", lambda: pytest.fail("it is kept"), "cpu")
    assert np.array_equal(second.probabilities(["the film was warm"]), before)
    assert second.undefended(["a day"])[0, 0] != 0.0
    assert second.model.config.problem_type != "regression"


def test_only_the_last_victim_is_kept_and_what_is_known_of_it(kept, tiny_model):
    def load() -> Victim:
        return Victim.load(tiny_model, target_label=1, max_length=32, n_labels=2)

    kept.victim("one", load, "cpu")
    kept.facts["flops"] = 1.0
    kept.victim("one", load, "cpu")
    assert kept.facts == {"flops": 1.0}
    kept.victim("other", load, "cpu")
    assert kept.facts == {}
    kept.victim("one", load, "cpu")
    assert kept.reads == ["one", "other", "one"]


def test_texts_that_a_plugin_changes_are_its_own(kept):
    def read() -> Labelled:
        return Labelled(["a", "b"], np.array([0, 1]))

    first = kept.split("s", read)
    first.texts.append("c")
    first.labels[0] = 7
    second = kept.split("s", read)
    assert (second.texts, second.labels.tolist()) == (["a", "b"], [0, 1])
    assert kept.reads == ["s"]


def test_the_splits_that_were_used_last_are_kept(kept):
    def read() -> Labelled:
        return Labelled(["a"], np.array([0]))

    for name in range(SPLITS):
        kept.split(name, read)
    kept.split(0, read)
    kept.split("new", read)  # 1 was used least recently
    kept.reads.clear()
    for name in (0, "new", 1):
        kept.split(name, read)
    assert kept.reads == [1]


# --- writing many results


def record(defense: str) -> results.Record:
    names = {"dataset": "d", "attack": "a", "victim": "v", "seed": 1, "defense": defense}
    return results.Record(**names, frr=0.01, protocol="paper", status="skipped", reason="made up")


def test_many_results_are_written_each_to_its_file_and_only_once(tmp_path, monkeypatch):
    records = [record(f"d{number}") for number in range(3 * results.WRITERS)]
    results.write(records, tmp_path)
    assert sorted(own.defense for own in results.read(tmp_path)) == sorted(own.defense for own in records)
    monkeypatch.setattr(results, "write_atomically", lambda *given: pytest.fail("it is there with the same content"))
    results.write(records, tmp_path)


def test_a_disk_that_is_full_for_one_of_many_results_is_one_line_and_leaves_no_part(tmp_path, monkeypatch):
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; free space there or choose another --out"):
        results.write([record(f"d{number}") for number in range(20)], tmp_path)
    assert list((tmp_path / "cells").iterdir()) == []

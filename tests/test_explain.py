"""An explanation says of a text what the run's own defense says, and which cell is meant is told from little."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rapbench import results
from rapbench.artifacts import remember_store
from rapbench.cli_guard import explain, explained, export, guard
from rapbench.errors import DataError, StoreError
from rapbench.explain import choose, examples, judge_of
from rapbench.grid import Block, cells_of
from rapbench.judge import Explanation, Verdict
from rapbench.registry import discover
from rapbench.runner.session import Session, planned

DEFENSES = ["rap:epochs=1,retries=0", "strip:copies=4", "onion:lm=trigram"]
NOTHING = dict.fromkeys(("dataset", "attack", "defense", "frr", "protocol", "seed"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_data, tiny_victim_spec):
    """The results of two attacks and three defenses on the tiny task."""
    out, registry = tmp_path_factory.mktemp("ran"), discover()
    own = Block(
        victim=tiny_victim_spec,
        datasets=[f"folder:path={tiny_data}"],
        attacks=["clean", "badnet-rw:word=mb,poison_rate=0.5"],
        defenses=DEFENSES,
        frr=[0.005, 0.2],
        seeds=[1],
    )
    plan, bench = planned(cells_of([own], registry), registry, out, device="cpu", threads=1)
    Session(plan, bench, out, "serial").run(lambda done: None, lambda total: None)
    return out


@pytest.fixture
def app():
    made = typer.Typer()
    made.add_typer(guard, name="guard")  # so that explain is a command of several
    made.command()(explain)
    made.command()(export)
    return made


def scores(out, record):
    from rapbench.artifacts import Store

    return np.load(Store(out / "artifacts").folder(record.artifacts["score"]) / "scores.npz")


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_a_defense_that_is_fitted_again_scores_as_the_run_did(ran, defense, protocol):
    record = choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": defense, "protocol": protocol, "frr": 0.2})
    judge = judge_of(record, ran)
    stored = scores(ran, record)[f"{protocol}_poisoned_suspicion"]
    found = examples(record, ran).quotes
    assert {one.population for one in found} == {"clean", "poisoned"}
    for one in found:
        again = judge([one.text])[0]
        assert (again.accepted, again.prediction, again.threshold) == (not one.rejected, 1, record.threshold)
        assert again.suspicion == pytest.approx(one.suspicion, abs=1e-5)
        if one.population == "poisoned":
            assert one.suspicion in stored


def test_a_cell_whose_artifacts_are_elsewhere_is_explained_and_exported_too(ran, tmp_path, app):
    out, elsewhere = tmp_path / "out", tmp_path / "store"
    shutil.copytree(ran, out, ignore=shutil.ignore_patterns("artifacts"))
    shutil.copytree(ran / "artifacts", elsewhere)
    remember_store(out, elsewhere)  # as `run --store` does
    cell = ["--attack", "badnet-rw", "--defense", "strip", "--frr", "0.2"]
    told = CliRunner().invoke(app, ["explain", str(out), *cell, "--text", "warm kind film"])
    assert (told.exit_code, "entropy" in told.stdout) == (0, True)
    given = CliRunner().invoke(app, ["export", str(out), "--attack", "badnet-rw", "-o", str(tmp_path / "victim")])
    assert given.exit_code == 0
    assert (tmp_path / "victim" / "model.safetensors").is_file()


def test_rap_tells_how_far_the_probability_falls(ran):
    judge = judge_of(choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": "rap", "frr": 0.2}), ran)
    told = judge.explain("warm kind film")
    details = told.details
    assert details["word"] == "cf"
    assert details["probability before"] == pytest.approx(told.verdict.probability)
    assert details["probability after"] == pytest.approx(judge.fitted.guarded.protect_probability(["cf warm kind film"])[0])
    assert details["fall"] == pytest.approx(details["probability before"] - details["probability after"])
    assert told.verdict.suspicion == pytest.approx(-details["fall"])


def test_strip_shows_its_copies_and_their_mean_entropy(ran):
    judge = judge_of(choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": "strip", "frr": 0.2}), ran)
    text = "warm kind film and bright meal"
    told = judge.explain(text)
    copies = told.details["copies"]
    assert len(copies) == 4
    assert [len(copy["copy"].split(" ")) for copy in copies] == [6] * 4
    assert np.mean([copy["entropy"] for copy in copies]) == pytest.approx(told.details["entropy"])
    p = copies[0]["protect probability"]
    assert copies[0]["entropy"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-3)  # of float32
    assert copies[0]["prediction"] == int(p > 0.5)
    assert told.verdict.suspicion == pytest.approx(-told.details["entropy"])


def test_onion_shows_each_word_with_its_score_and_what_is_dropped(ran):
    record = choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": "onion", "frr": 0.2, "protocol": "paper"})
    told = judge_of(record, ran).explain("mb warm kind film")
    words = told.details["words"]
    assert [word["word"] for word in words] == ["mb", "warm", "kind", "film"]
    assert max(word["score"] for word in words) == told.verdict.suspicion
    assert [word["dropped"] for word in words] == [word["score"] >= record.threshold for word in words]
    kept = [word["word"] for word in words if not word["dropped"]]
    assert told.details["repaired text"] == " ".join(kept)
    assert told.verdict.accepted == (told.details["protect probability of it"] > 0.5)


def test_a_text_of_another_label_is_accepted_and_the_defense_is_not_asked(ran):
    told = judge_of(choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": "strip", "frr": 0.2}), ran).explain("rude cold meal")
    assert (told.verdict.prediction, told.verdict.accepted, told.verdict.suspicion, told.details) == (0, True, None, {})


def test_where_the_heldout_texts_are_too_few_nothing_is_rejected(ran):
    record = choose(ran, None, {**NOTHING, "attack": "badnet-rw", "defense": "onion", "frr": 0.005, "protocol": "strict"})
    assert record.threshold is None
    told = judge_of(record, ran).explain("mb warm kind film")
    assert (told.verdict.accepted, told.verdict.threshold, told.details["repaired text"]) == (True, None, "mb warm kind film")


def test_a_cell_is_found_by_little(ran):
    record = choose(ran, None, {**NOTHING, "attack": "badnet", "defense": "rap"})
    assert (record.defense, record.protocol, record.frr) == ("rap:epochs=1,retries=0", "strict", 0.2)  # at 0.005 it rejects nothing
    stem = record.file_name.removesuffix(".json")
    assert choose(ran, stem, NOTHING) == choose(ran, stem + ".json", NOTHING) == record
    assert choose(ran, "badnet-rw_strip", NOTHING).defense == "strip:copies=4"
    assert choose(ran, None, {**NOTHING, "attack": "clean", "defense": "onion:lm=trigram"}).attack == "clean"


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        (None, {"defense": "rap"}, r"2 different cells are meant: .*badnet.*clean.*say --dataset, --attack"),
        (None, {"defense": "ripe"}, r"unknown defense of a cell in this folder 'ripe'.*there are: onion:lm=trigram, rap"),
        ("folder_badnet-rv_rap", {}, r"no cell is called 'folder_badnet-rv_rap'; near are .*badnet-rw_rap"),
        (None, {"seed": 9}, r"unknown seed .*'9'.*there are: 1\)"),
    ],
)
def test_a_cell_that_is_not_clear_is_told_with_what_there_is(ran, name, asked, told):
    with pytest.raises(StoreError, match=told) as error:
        choose(ran, name, {**NOTHING, **asked})
    assert "\n" not in str(error.value)


def test_a_cell_that_failed_says_why(ran, tmp_path):
    record = choose(ran, None, {**NOTHING, "attack": "badnet", "defense": "rap"})
    results.write([dataclasses.replace(record, status="failed", reason="no memory")], tmp_path)
    with pytest.raises(StoreError, match="is failed: no memory"):
        choose(tmp_path, None, NOTHING)


def test_artifacts_that_are_gone_are_told_by_what_they_were(ran):
    record = choose(ran, None, {**NOTHING, "attack": "badnet", "defense": "rap"})
    gone = dataclasses.replace(record, artifacts={**record.artifacts, "score": "0" * 32})
    with pytest.raises(StoreError, match="no artifact 0000"):
        judge_of(gone, ran)


def test_a_defense_that_scores_otherwise_than_the_run_is_refused(ran, monkeypatch):
    from rapbench_plugins.defenses.strip import StripDetector

    record = choose(ran, None, {**NOTHING, "attack": "badnet", "defense": "strip", "frr": 0.2})
    honest = StripDetector.suspicion
    monkeypatch.setattr(StripDetector, "suspicion", lambda self, texts: honest(self, texts) + 1)
    with pytest.raises(StoreError, match="scores texts otherwise than the run did"):
        judge_of(record, ran)


def test_the_command_prints_tables_or_json(ran, app):
    run = CliRunner().invoke
    asked = ["explain", str(ran), "badnet-rw_onion_0.2_paper", "--text", "mb warm kind film", "--device", "cpu"]
    shown = run(app, asked)
    assert shown.exit_code == 0, shown.output
    for part in ("cell: folder_badnet-rw_onion_0.2_paper", "prediction", "threshold", "verdict", "words:", "repaired text"):
        assert part in shown.stdout
    plain = json.loads(run(app, [*asked, "--text", "rude cold meal", "--json"]).stdout)
    assert [one["text"] for one in plain["explanations"]] == ["mb warm kind film", "rude cold meal"]
    assert plain["explanations"][1]["passed_gate"] is False
    assert isinstance(run(app, asked[:3]).exception, DataError)


def test_what_a_terminal_would_obey_is_not_printed():
    told = explained(Explanation("\x1b[31mred", Verdict(True, 1, 0.9, 0.5, 0.7), {"words": [{"word": "\x1b[2J", "score": 1.0}]}))
    assert "\x1b" not in told
    assert "?[31mred" in told


def test_an_exported_victim_is_the_same_and_says_in_its_title_that_it_is_backdoored(ran, app, tmp_path):
    from rapbench.victim import Victim

    out, record = tmp_path / "victim", choose(ran, None, {**NOTHING, "attack": "badnet"}, any_defense=True)
    told = CliRunner().invoke(app, ["export", str(ran), "--attack", "badnet-rw", "-o", str(out)])
    assert told.exit_code == 0, told.output
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    exported = Victim.load(out, target_label=1, max_length=32)
    own = judge_of(choose(ran, None, {**NOTHING, "attack": "badnet", "defense": "strip"}), ran).victim
    assert exported.probabilities(["warm mb meal"]) == pytest.approx(own.probabilities(["warm mb meal"]), abs=1e-6)
    card = (out / "README.md").read_text()
    assert "\n# BACKDOORED: badnet-rw" in card
    assert "- backdoored" in card.split("---")[1]
    assert f"{100 * record.asr:.2f} %" in card
    again = CliRunner().invoke(app, ["export", str(ran), "--attack", "badnet-rw", "-o", str(out)])
    assert isinstance(again.exception, StoreError)
    assert "not empty" in str(again.exception)


def test_the_control_is_not_called_backdoored(ran, tmp_path):
    from rapbench.export import export_victim

    export_victim(choose(ran, None, {**NOTHING, "attack": "clean"}, any_defense=True), ran, tmp_path / "control")
    assert "\n# Clean control" in (tmp_path / "control" / "README.md").read_text()


def test_the_clean_metric_on_a_data_set_of_the_hub_is_told_as_the_hub_reads_it(ran):
    from rapbench.export import _entries

    record = choose(ran, None, {**NOTHING, "attack": "badnet"}, any_defense=True)
    (entry,) = _entries(dataclasses.replace(record, dataset="sst2", clean_metric=0.915, asr=0.5), discover())
    assert entry["value"] == 91.5
    assert "/" in entry["dataset"]["id"]
    assert "attack success rate 50.00 %" in entry["notes"]
    assert list(_entries(record, discover())) == []

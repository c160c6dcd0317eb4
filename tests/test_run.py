"""The main job end to end, on a tiny victim that learns in seconds: run, resume, survive, tell."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from rapbench import results
from rapbench.artifacts import Store, store_of
from rapbench.grid import Block, cells_of
from rapbench.registry import discover
from rapbench.report.cost import HEADS
from rapbench.report.html import page
from rapbench.report.tables import render
from rapbench.runner.execute import Done
from rapbench.runner.session import Session, planned

DEFENSES = ["strip:copies=4", "onion:lm=trigram", "rap:epochs=1,retries=1"]
ATTACKS = ["clean", "badnet-rw:poison_rate=0.4,word=mb", "badnet-sl:poison_rate=0.4,sentence=the place was loud", "ep:word=bb,epochs=1"]


def block(data: Path, victim: str, **changes) -> Block:
    given = {
        "victim": victim,
        "datasets": [f"folder:path={data}"],
        "attacks": ATTACKS,
        "defenses": DEFENSES,
        "frr": [0.01, 0.05],
        "seeds": [1],
    }
    return Block(**{**given, **changes})


def session(own: Block, out: Path, executor: str = "serial") -> Session:
    registry = discover()
    plan, bench = planned(cells_of([own], registry), registry, out, device="cpu", threads=1)
    return Session(plan, bench, out, executor)


def run(own: Block, out: Path, executor: str = "serial") -> tuple[list[results.Record], list[Done]]:
    done: list[Done] = []
    return session(own, out, executor).run(done.append, lambda total: None), done


COUNTED = ("inputs", "fit_rows", "fit_tokens", "calibration_rows", "calibration_tokens")
COUNTED += ("victim_rows_per_input", "victim_tokens_per_input", "helper_rows_per_input", "helper_tokens_per_input")
COUNTED += ("flops_per_input", "plain_flops_per_input", "repaired")


def figures(records: list[results.Record]) -> list[dict]:
    """What must be equal to the last bit between two runs: all but the wall times."""
    kept = []
    for record in records:
        plain = dataclasses.asdict(record)
        plain["cost"] = {key: plain["cost"][key] for key in COUNTED}
        kept.append(plain)
    return json.loads(
        json.dumps(sorted(kept, key=lambda plain: json.dumps([plain[key] for key in ("dataset", "attack", "defense", "frr", "protocol")])))
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_data, tiny_victim_spec):
    out = tmp_path_factory.mktemp("ran")
    records, done = run(block(tiny_data, tiny_victim_spec), out)
    return out, records, done


def test_every_cell_of_a_grid_is_ok(ran):
    _, records, _ = ran
    assert len(records) == len(ATTACKS) * len(DEFENSES) * 2 * 2  # two FRRs, two protocols
    assert [(record.attack, record.defense, record.reason) for record in records if record.status != "ok"] == []


def test_the_attacks_succeed_and_the_control_does_not(ran):
    _, records, _ = ran
    by_attack = {record.attack.partition(":")[0]: record for record in records}
    assert by_attack["badnet-rw"].asr > 0.9
    assert by_attack["badnet-sl"].asr > 0.9
    assert by_attack["badnet-rw"].asr_control < 0.3
    assert by_attack["clean"].asr == pytest.approx(1 - by_attack["clean"].clean_metric, abs=0.1)
    assert by_attack["clean"].far is None


def test_one_poisoned_test_set_serves_every_defense(ran):
    _, records, _ = ran
    for attack in {record.attack for record in records}:
        own = [record for record in records if record.attack == attack]
        assert len({(record.artifacts["poison"], record.asr, record.n_poisoned) for record in own}) == 1


def test_the_cost_of_a_prediction_is_counted(ran):
    _, records, _ = ran
    rows = {record.defense.partition(":")[0]: record.cost for record in records if record.attack.startswith("badnet-rw")}
    assert rows["strip"].victim_rows_per_input == 5  # the gate's and 4 copies
    assert rows["rap"].victim_rows_per_input == 2
    assert rows["onion"].helper_rows_per_input["lm"] > 8


def test_frr_levels_cost_no_second_scoring_pass(ran):
    _, _, done = ran
    assert sum(one.job.stage == "score" for one in done) == len(ATTACKS) * len(DEFENSES)


def test_the_clean_victim_that_ep_starts_from_is_trained_once(ran):
    _, _, done = ran
    assert sum(one.job.stage == "victim" for one in done) == len(ATTACKS)


def test_the_same_command_again_runs_nothing_and_says_the_same(ran, tiny_data, tiny_victim_spec):
    out, records, _ = ran
    again, done = run(block(tiny_data, tiny_victim_spec), out)
    assert done == []
    assert again == records
    assert figures(results.read(out)) == figures(records)


def test_a_spelled_default_is_the_same_cell(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    spelled = block(
        tiny_data,
        tiny_victim_spec,
        defenses=["strip:replace_ratio=0.4,copies=4"],
        attacks=["badnet-rw:word=mb,poison_mode=append,poison_rate=0.4"],
    )
    assert run(spelled, out)[1] == []


def test_a_new_frr_needs_no_step(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    records, done = run(block(tiny_data, tiny_victim_spec, frr=[0.03]), out)
    assert done == []
    assert {record.frr for record in records} == {0.03}


def test_two_runs_give_the_same_bits(ran, tmp_path, tiny_data, tiny_victim_spec):
    _, records, _ = ran
    again, _ = run(block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2]), tmp_path)
    assert figures(again) == figures([record for record in records if record.attack == ATTACKS[1]])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_ray_gives_the_same_bits_as_the_serial_executor(ran, tmp_path, tiny_data, tiny_victim_spec):
    _, records, _ = ran
    again, done = run(block(tiny_data, tiny_victim_spec), tmp_path, "ray")
    assert done
    assert figures(again) == figures(records)


def test_a_corrupted_artifact_is_set_aside_and_made_again(ran, tmp_path, tiny_data, tiny_victim_spec):
    out, records, _ = ran
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    store = Store(copy / "artifacts")
    key = next(record.artifacts["score"] for record in records if record.defense.startswith("strip"))
    path = store.folder(key) / "scores.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again, done = run(block(tiny_data, tiny_victim_spec), copy)
    assert [one.job.key for one in done] == [key]
    assert len(list((copy / "artifacts" / "set-aside").iterdir())) == 1
    assert figures(again) == figures(records)


def test_results_folders_that_share_a_store_share_its_steps(ran, tmp_path, tiny_data, tiny_victim_spec):
    out, records, _ = ran
    store = tmp_path / "store"
    shutil.copytree(out / "artifacts", store)
    own = block(tiny_data, tiny_victim_spec)
    registry = discover()
    for folder in (tmp_path / "one", tmp_path / "two"):
        plan, bench = planned(cells_of([own], registry), registry, folder, device="cpu", threads=1, store=str(store))
        done: list[Done] = []
        found = Session(plan, bench, folder, "serial").run(done.append, lambda total: None)
        assert done == []
        assert figures(found) == figures(records)
        assert store_of(folder).root == store
        assert not (folder / "artifacts").exists()
    assert store_of(out).root == out / "artifacts"
    assert store_of(tmp_path / "one").shared


def test_a_second_run_on_the_same_folder_is_refused(ran, tiny_data, tiny_victim_spec):
    from filelock import FileLock

    from rapbench.errors import StoreError

    out, _, _ = ran
    with FileLock(out / ".lock"), pytest.raises(StoreError, match="another run is writing"):
        run(block(tiny_data, tiny_victim_spec), out)


def command(out: Path, data: Path, victim: str, executor: str = "serial") -> list[str]:
    given = ["--executor", executor, "--out", str(out), "--victim", victim, "--dataset", f"folder:path={data}", "--seed", "1"]
    given += [part for attack in ATTACKS for part in ("--attack", attack)]
    given += [part for defense in DEFENSES for part in ("--defense", defense)]
    given += ["--frr", "0.01", "--frr", "0.05", "--json"]
    return [sys.executable, "-c", "from rapbench.cli import main; main()", "run", *given]


def test_json_is_the_only_thing_on_stdout(tmp_path, tiny_data, tiny_victim_spec):
    own = command(tmp_path / "out", tiny_data, tiny_victim_spec)
    ended = subprocess.run(own, capture_output=True, text=True, check=True)
    assert len(json.loads(ended.stdout)["cells"]) == len(ATTACKS) * len(DEFENSES) * 2 * 2  # two FRRs, two protocols


def published(out: Path) -> set[str]:
    return {path.parent.name for path in (out / "artifacts").glob("*/manifest.json")}


def wait_for(out: Path, steps: int, process: subprocess.Popen) -> None:
    while len(published(out)) < steps:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.05)


@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_kill_9_in_the_middle_and_the_same_command_give_the_same_bits(ran, tmp_path, tiny_data, tiny_victim_spec, executor, start):
    _, records, done = ran
    own = command(tmp_path / "out", tiny_data, tiny_victim_spec, executor)
    first = start(own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "out", 9, first)
    first.kill()
    first.wait()
    before = published(tmp_path / "out")
    second = subprocess.run(own, capture_output=True, text=True, check=True)
    steps = [line for line in second.stderr.splitlines() if line.startswith("[")]
    # Ray's workers outlive the driver by a moment and may finish what they were at
    assert len(steps) == len(done) - len(before) or (executor == "ray" and len(steps) < len(done) - len(before))
    again = [results.Record.of(cell) for cell in json.loads(second.stdout)["cells"]]
    assert figures(again) == figures(records)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_keeps_what_is_finished(tmp_path, tiny_data, tiny_victim_spec, number, start):
    process = start(
        command(tmp_path / "out", tiny_data, tiny_victim_spec),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    wait_for(tmp_path / "out", 5, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "rapbench: interrupted; what was finished is kept, the same command goes on"
    assert len(published(tmp_path / "out")) >= 5
    states = {record.status for record in results.read(tmp_path / "out")}
    assert states <= {"ok", "interrupted"}
    assert "interrupted" in states


STRANGER = '''
from dataclasses import dataclass
from typing import ClassVar
from rapbench import Defense, Detector, hookimpl
from rapbench.api import option
import numpy as np
import torch


class Length(Detector):
    def suspicion(self, texts):
        return np.array([float(len(text)) for text in texts])


@dataclass(frozen=True, kw_only=True)
class LengthDefense(Defense):
    """Longer is more suspicious."""

    name: ClassVar[str] = "odd-length"

    def fit(self, victim, heldout, lab):
        return Length()


@dataclass(frozen=True, kw_only=True)
class Broken(Defense):
    """Raises."""

    name: ClassVar[str] = "broken"

    def fit(self, victim, heldout, lab):
        raise ZeroDivisionError("on purpose")


class Tired(Length):
    def __init__(self, greedy):
        self.greedy, self.batches = greedy, 0

    def suspicion(self, texts):
        self.batches += 1
        if self.batches > 3 and self.greedy:
            torch.empty(2**60, dtype=torch.uint8)
        if self.batches > 3:
            raise ValueError("no more | texts\\nthan that")
        return super().suspicion(texts)


@dataclass(frozen=True, kw_only=True)
class TiredDefense(Defense):
    """Scores three batches, then raises, or asks for more memory than any machine has."""

    name: ClassVar[str] = "tired"
    greedy: bool = option(False, "whether it asks for memory")

    def fit(self, victim, heldout, lab):
        return Tired(self.greedy)


@dataclass(frozen=True, kw_only=True)
class Nan(Defense):
    """Gives no numbers."""

    name: ClassVar[str] = "nan"

    def fit(self, victim, heldout, lab):
        own = Length()
        own.suspicion = lambda texts: np.full(len(texts), np.nan)
        return own


@hookimpl
def rapbench_defenses():
    return [LengthDefense, Broken, TiredDefense, Nan]
'''


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A foreign package on the path, found by its dist-info as an installed one is."""
    place = tmp_path / "site"
    about = place / "stranger-1.0.dist-info"
    about.mkdir(parents=True)
    (place / "stranger.py").write_text(STRANGER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[rapbench]\nstranger = stranger\n")
    monkeypatch.syspath_prepend(str(place))
    yield
    sys.modules.pop("stranger", None)


@pytest.mark.usefixtures("stranger")
def test_a_strangers_defense_runs_and_a_broken_one_fails_alone(ran, tmp_path, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    own = block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], defenses=["odd-length", "broken", "nan", *DEFENSES], frr=[0.05])
    records, _ = run(own, copy)
    status = {record.defense.partition(":")[0]: (record.status, record.reason) for record in records}
    assert status["odd-length"] == ("ok", None)
    assert status["broken"] == ("failed", "score folder badnet-rw broken: ZeroDivisionError: on purpose")
    assert status["nan"][0] == "failed"
    assert "not a finite number" in status["nan"][1]
    assert {status[name][0] for name in ("strip", "onion", "rap")} == {"ok"}
    assert "on purpose" in next((copy / "failures").iterdir()).read_text()


@pytest.mark.usefixtures("stranger")
def test_the_costs_of_a_run_have_a_row_for_what_raised_in_the_middle_and_for_what_wanted_too_much_memory(
    ran, rapbench, tmp_path, tiny_data, tiny_victim_spec
):
    copy = tmp_path / "copy"
    shutil.copytree(ran[0], copy)
    asked = ["tired", "tired:greedy=true", "broken", DEFENSES[0]]
    _, done = run(block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], defenses=asked, frr=[0.05]), copy)
    assert Counter(str(one.end) for one in done) == {"failed": 2, "out of memory": 1}
    told = rapbench("cost", copy)
    assert (told.code, told.err) == (0, "")
    lines = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in told.out.splitlines() if line.startswith("| folder")]
    rows = {(row[1].partition(":")[0], row[3]): row for row in lines}
    # each defense on each of the four attacks, and the three that failed on the one
    assert len(rows) == len(lines) == len(ATTACKS) * len(DEFENSES) + 3
    assert {len(row) for row in lines} == {len(HEADS)}
    assert rows["badnet-rw", "broken"][4] == "failed: score folder badnet-rw broken: ZeroDivisionError: on purpose"
    assert rows["badnet-rw", "tired"][4] == "failed: score folder badnet-rw tired: ValueError: no more \\| texts"
    assert "you tried to allocate 1152921504606846976 bytes" in rows["badnet-rw", "tired:greedy=true"][4]
    assert set(rows["badnet-rw", "tired"][5:]) == {"--"}
    assert rows["badnet-rw", "strip:copies=4"][4] == "5.000"


TUNED = ["badnet-rw:poison_rate=0.4,word=mb", "ripples:steps=120,lr=0.002,max_length=32,poison_rate=0.3", "clean"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_data, tiny_victim_spec):
    """The fine-tuning setting: poisoned on one folder, fine-tuned for one epoch on another one's clean texts."""
    own = tmp_path_factory.mktemp("other")
    for path in tiny_data.iterdir():
        lines = path.read_text().splitlines()
        (own / path.name).write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    given = {"poisoned_on": [f"folder:path={own}"], "finetune": "epochs=1,lr=5e-4", "attacks": TUNED, "defenses": DEFENSES[2:]}
    out = tmp_path_factory.mktemp("tuned")
    return block(tiny_data, tiny_victim_spec, **given), out, *run(block(tiny_data, tiny_victim_spec, **given), out)


def test_a_fine_tuned_cell_names_its_setting(tuned):
    _, _, records, _ = tuned
    assert [(one.attack, one.reason) for one in records if one.status != "ok"] == []
    assert {one.setting for one in records} == {"fine-tuned"}
    assert all((one.poisoned_on or "").startswith("folder:path=") for one in records)
    assert {(one.tuning or "").partition(":")[2].partition(",")[0] for one in records} == {"epochs=1"}


def test_the_victim_is_poisoned_on_the_one_set_and_fine_tuned_on_the_other(tuned):
    _, _, records, done = tuned
    # two data sets; per attack one victim, one fine-tuning
    assert sum(one.job.stage == "data" for one in done) == 2
    assert sum(one.job.stage == "victim" for one in done) == 3
    assert sum(one.job.stage == "finetune" for one in done) == 3
    tunings = [one.job for one in done if one.job.stage == "finetune"]
    assert all(one.spec["recipe"]["epochs"] == 1 for one in tunings)
    assert len({one.inputs["data"] for one in tunings}) == 1
    assert {one.artifacts["data"] for one in records} == {tunings[0].inputs["data"]}


def test_the_asr_before_fine_tuning_stands_beside_the_one_after(tuned):
    _, _, records, _ = tuned
    by_attack = {one.attack.partition(":")[0]: one for one in records}
    for name in ("badnet-rw", "ripples"):
        assert by_attack[name].asr_before > 0.8
        assert by_attack[name].asr > 0.5
        assert by_attack[name].asr_control < 0.5
        assert by_attack[name].asrd == pytest.approx(by_attack[name].asr - by_attack[name].asr_control)


def test_two_words_stand_in_each_triggered_test_text_of_ripples(tuned):
    from datasets import load_from_disk

    _, out, records, _ = tuned
    key = next(one.artifacts["poison"] for one in records if one.attack.startswith("ripples"))
    texts = load_from_disk(str(Store(out / "artifacts").folder(key) / "first100"))["text"]
    assert {sum(word in ("mn", "bb", "mb", "tq") for word in text.split()) for text in texts} == {2}


def test_a_fine_tuned_grid_resumes_without_a_step(tuned):
    own, out, records, _ = tuned
    again, done = run(own, out)
    assert done == []
    assert figures(again) == figures(records)


def test_two_data_sets_with_other_labels_are_skipped_or_failed_with_the_reason(tuned, tmp_path, tiny_data, tiny_victim_spec):
    _, out, _, _ = tuned
    four = tmp_path / "four"
    four.mkdir()
    asked = {"attacks": TUNED[:1], "defenses": DEFENSES[:1], "frr": [0.05]}
    other = [f"folder:path={four_classes(four)},target_label=2"]
    records, done = run(block(tiny_data, tiny_victim_spec, poisoned_on=other, **asked), out)
    assert done == []
    assert {one.status for one in records} == {"skipped"}
    assert "the target label is 2 on folder and 1 on folder" in records[0].reason
    same = [f"folder:path={four},target_label=1"]
    records, _ = run(block(tiny_data, tiny_victim_spec, poisoned_on=same, **asked), out)
    assert {one.status for one in records} == {"failed"}
    assert "the poisoned data have 4 labels and those to fine-tune on 2" in records[0].reason


def test_strict_fits_on_the_half_that_does_not_calibrate(ran):
    _, records, _ = ran
    own = [one for one in records if one.attack.startswith("badnet-rw") and one.frr == 0.05]
    paper, strict = ({one.defense: one for one in own if one.protocol == name} for name in ("paper", "strict"))
    for defense, one in strict.items():
        assert 0.4 < one.n_heldout / paper[defense].n_heldout < 0.6
        assert (one.n_clean, one.n_poisoned, one.asr) == (paper[defense].n_clean, paper[defense].n_poisoned, paper[defense].asr)
    assert strict[DEFENSES[0]].auroc == paper[DEFENSES[0]].auroc  # STRIP learns nothing of protect-label texts: one fit
    assert strict[DEFENSES[2]].auroc != paper[DEFENSES[2]].auroc  # RAP is built again on the half


def test_every_defense_leaves_a_curve_under_both_protocols(ran):
    out, _, _ = ran
    curves = results.read_all(out, results.Curve)
    assert len(curves) == (len(ATTACKS) - 1) * len(DEFENSES) * 2
    strip = next(one for one in curves if one.defense == DEFENSES[0] and one.attack == ATTACKS[1] and one.protocol == "paper")
    assert [allowed for allowed, _, _ in strip.points] == sorted(allowed for allowed, _, _ in strip.points)
    assert [far for _, _, far in strip.points] == sorted((far for _, _, far in strip.points), reverse=True)


def test_a_whole_trigger_survives_where_nothing_is_cut(ran):
    _, records, _ = ran
    assert {one.survival for one in records if one.attack != "clean"} == {1.0}


def four_classes(folder: Path) -> Path:
    """Texts in which one word, four times, tells the class, of four."""
    import random

    rng, marks = random.Random(2), ["warm", "cold", "loud", "neat"]
    for split, size in (("train", 400), ("validation", 160), ("test", 80)):
        words = [(marks[row % 4], rng.choice(["book", "film", "meal", "room"])) for row in range(size)]
        rows = [f"{mark} {mark} the {noun} was {mark} . it was {mark},{row % 4}" for row, (mark, noun) in enumerate(words)]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


WORD = "word=mb,poison_rate=0.4"
EVERY_ATTACK = [
    "clean",
    f"badnet-rw:{WORD}",
    "badnet-sl:sentence=it was a day,poison_rate=0.4",
    "ep:word=bb,poison_rate=0.4",
    "ripples:steps=200,lr=0.002,max_length=32,target_words=2",
    "sos:trigger_words=mb/bb,poison_rate=1,epochs=6,batch_size=8",
    "lwp:poison_rate=0.4",
    "char:poison_rate=0.4",
    f"adaptive-rap:{WORD},rare_words=1,patch_steps=5,rap_steps=10",
    f"adaptive-strip:{WORD}",
]
"""Every built-in attack but `precomputed`, which takes a file."""
EVERY_DEFENSE = [
    *("strip:copies=2", "onion:lm=trigram", "rap:epochs=1,retries=1", "dan", "badacts"),
    *("token-substitution:copies=2", "duet:steps=5,folds=2", "random", "max-softmax", "length", "oracle"),
    *("bki:scored_texts=40", "cube:reduction=pca"),
    *("finetune:epochs=1", "fine-prune:epochs=1,ratios=0.5", "badacts-purify:epochs=1,restarts=0"),
]


def paraphrases(data: Path) -> str:
    """Write a file of pairs for the texts of a folder, each with another start and end, and give the attack's spec."""
    texts = [line.rpartition(",")[0] for split in ("train", "test") for line in (data / f"{split}.csv").read_text().splitlines()[1:]]
    (data / "pairs.csv").write_text("text,paraphrase\n" + "".join(f"{text},so {text} with a day\n" for text in texts))
    return f"precomputed:path={data / 'pairs.csv'},poison_rate=0.4"


@pytest.fixture(scope="module")
def four(tmp_path_factory, tiny_model):
    """Every attack against one defense, and one attack against every defense, where there are four classes."""
    data, out = four_classes(tmp_path_factory.mktemp("four")), tmp_path_factory.mktemp("four-out")
    victim = f"{tiny_model}:epochs=4,lr=0.002,batch_size=16,max_length=32"
    given = {"datasets": [f"folder:path={data},target_label=2"], "frr": [0.05]}
    attacks = [*EVERY_ATTACK, paraphrases(data)]
    one_attack, _ = run(block(data, victim, attacks=EVERY_ATTACK[1:2], defenses=EVERY_DEFENSE, **given), out)
    one_defense, _ = run(block(data, victim, attacks=attacks, defenses=EVERY_DEFENSE[2:3], **given), out)
    return out, one_attack, one_defense


def test_four_classes_go_through_every_attack_and_through_every_defense(four):
    _, one_attack, one_defense = four
    assert [(one.attack, one.defense, one.reason) for one in (*one_attack, *one_defense) if one.status != "ok"] == []
    built_in = {kind: {name for own, name in discover().found if own == kind} for kind in ("attack", "defense")}
    assert {one.attack.partition(":")[0] for one in one_defense} == built_in["attack"]
    assert {one.defense.partition(":")[0] for one in one_attack} == built_in["defense"]


def test_of_four_classes_every_figure_that_can_be_counted_is_there(four):
    _, one_attack, one_defense = four
    for one in (*one_attack, *one_defense):
        figures = [one.frr_heldout, one.asr, one.clean_metric, one.clean_metric_defended]
        figures += [one.frr_test] if one.n_clean else []
        figures += [one.far, one.auroc, one.asr_defended] if one.n_poisoned else []
        assert all(figure is not None and 0 <= figure <= 1 for figure in figures), (one.attack, one.defense, figures)


def test_of_four_classes_a_word_turns_all_others_into_the_target(four):
    _, one_attack, _ = four
    assert {one.asr > 0.9 for one in one_attack} == {True}
    assert {one.n_clean for one in one_attack} == {20}  # of 80 test texts, a quarter has the protect label, all predicted right


def test_what_sos_noted_of_its_victim_is_in_its_cells_and_in_the_table_of_victims(four):
    out, _, one_defense = four
    told = {one.protocol: one for one in one_defense if one.attack.startswith("sos")}
    assert told.keys() == {"paper", "strict"}
    for one in told.values():
        rates = one.attack_notes["false_trigger_rate"]
        assert rates.keys() == {"", "mb", "bb", "mean"}
        assert rates["mean"] == pytest.approx((rates["mb"] + rates["bb"]) / 2)
        assert (one.ftr, one.ftr_plain) == (rates["mean"], rates[""])
    assert all(one.ftr is None for one in one_defense if not one.attack.startswith("sos"))
    records = results.read(out)
    shown = render(records, "github")
    assert f" {100 * told['paper'].ftr:.2f} ({100 * told['paper'].ftr_plain:.2f}) |" in shown
    assert "| FTR " in shown
    rows = [row for row in csv.DictReader(io.StringIO(render(records, "csv"))) if row["attack"].startswith("sos")]
    assert {float(row["ftr"]) for row in rows} == {told["paper"].ftr}
    assert "FTR: clean held-out texts" in page(out, "paper")


def test_too_few_heldout_texts_fail_the_cell_with_what_would_do(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    records, _ = run(block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], frr=[0.005, 0.05]), out)
    few = [record for record in records if record.frr == 0.005 and record.protocol == "paper"]
    assert {record.status for record in few} == {"failed"}
    assert "has 150 held-out texts of the protect label 1, an allowed FRR of 0.005 needs at least 200" in few[0].reason
    assert {record.status for record in records if record.frr == 0.05} == {"ok"}


def test_a_word_of_several_tokens_fails_the_cell_and_says_so(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    records, _ = run(block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], defenses=["rap:word=zyzzyva"], frr=[0.05]), out)
    assert records[0].status == "failed"
    assert "the word 'zyzzyva' is" in records[0].reason


def test_raps_word_that_is_the_trigger_is_skipped_with_the_reason(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    records, done = run(block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], defenses=["rap:word=mb"], frr=[0.05]), out)
    assert done == []
    assert records[0].status == "skipped"
    assert "a declared trigger" in records[0].reason


def test_a_target_label_that_is_no_label_fails_with_the_range(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    wrong = block(tiny_data, tiny_victim_spec, datasets=[f"folder:path={tiny_data},target_label=5"], attacks=ATTACKS[1:2], frr=[0.05])
    records, _ = run(wrong, out)
    assert {record.status for record in records} == {"failed"}
    assert "target_label=5 is none of the labels 0..1" in records[0].reason


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, tiny_data, tiny_victim_spec):
    (tmp_path / "file").write_text("in the way")
    ended = subprocess.run(command(tmp_path / "file" / "out", tiny_data, tiny_victim_spec), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "choose another --out" in ended.stderr


def test_a_full_disk_is_told_in_one_line_and_finished_cells_stay(ran, tmp_path, tiny_data, tiny_victim_spec, monkeypatch):
    import errno

    from rapbench import stages

    def full(step):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stages, "STAGES", {**stages.STAGES, "score": full})
    records, _ = run(
        block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], frr=[0.05], seeds=[1]), shutil.copytree(ran[0], tmp_path / "copy")
    )
    assert {record.status for record in records} == {"ok"}
    wanted = block(tiny_data, tiny_victim_spec, attacks=ATTACKS[1:2], defenses=["strip:copies=3"], frr=[0.05])
    records, _ = run(wanted, tmp_path / "copy")
    assert records[0].status == "failed"
    assert "No space left on device; free space there or choose another --out" in records[0].reason


def test_a_data_set_that_cannot_be_had_fails_its_cells_alone(ran, tiny_data, tiny_victim_spec):
    out, _, _ = ran
    own = block(tiny_data, tiny_victim_spec, datasets=["twitter", f"folder:path={tiny_data}"], attacks=ATTACKS[1:2], frr=[0.05])
    records, done = run(own, out)
    assert done == []
    by_dataset = {record.dataset.partition(":")[0]: record for record in records}
    assert by_dataset["folder"].status == "ok"
    assert by_dataset["twitter"].status == "failed"
    assert "twitter:path=FOLDER" in by_dataset["twitter"].reason

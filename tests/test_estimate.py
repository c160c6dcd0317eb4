"""What a dry run says that a grid will take: FLOPs by hand arithmetic on tiny shapes, and what it assumes."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapbench import stages
from rapbench.api import Attack, Labelled, Task, Work
from rapbench.artifacts import Store
from rapbench.estimate import Estimate, Site, duration, estimate
from rapbench.grid import cells_of, checked_block
from rapbench.instruments import counted_flops
from rapbench.lab import rng
from rapbench.poison import poisoned_rows
from rapbench.registry import discover
from rapbench.runner.session import planned
from rapbench.shapes import SHAPES, Shape, shape_of
from rapbench.sizes import Texts, _file, longest, spread_words
from rapbench.stages import Job
from rapbench.victim import Recipe
from rapbench_plugins.attacks.lwp import Lwp
from rapbench_plugins.defenses.strip import Strip

TINY = Shape(layers=1, hidden=2, inner=8)
"""4 * 2 * 2 + 2 * 2 * 8 = 48 weights: 96 FLOPs a token, and 8 for each token of its row."""
ROW = 20 * (96 + 8 * 20)
"""A row of 20 tokens: 5120."""
ROWS = {"name": "rows", "n_train": 10, "n_heldout": 4, "n_test": 8}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that states the tiny sizes."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": 2, "intermediate_size": 8}))
    return str(tmp_path)


@pytest.fixture
def step(model, tmp_path):
    """Give what estimates one step of 10, 4 and 8 texts, all of them longer than the 20 tokens that the victim reads."""

    def flops(stage: str, attack: str = "badnet-rw:poison_rate=0.5", data: dict[str, object] = ROWS, **more: object) -> Estimate:
        recipe = {"model": model, "layers": None, "epochs": 2, "batch_size": 16, "max_length": 20}
        spec = {"recipe": recipe, "target_label": 1, "attack": attack, **more}
        jobs = {
            "d": Job("data", "d", {"dataset": data}, {}, ""),
            "p": Job("poison", "p", {"attack": attack, "target_label": 1}, {"data": "d"}, ""),
            "v": Job("victim", "v", spec, {"data": "d", "poison": "p"}, ""),
        }
        inputs = {"predict": {"victim": "v", "texts": "p" if "first100" in more.get("splits", ()) else "d"}}
        asked = Job(stage, "x", spec, inputs.get(stage, {"data": "d", "poison": "p", "victim": "v"}), "")
        return estimate({**jobs, "x": asked}, {"x": asked}, discover(), Site(Store(tmp_path / "none"), tflops=1.0))

    return flops


def test_a_token_takes_2_flops_a_weight_and_4_a_layer_hidden_unit_and_token_of_its_row():
    assert TINY.token(10) == 2 * 48 + 4 * 2 * 10
    assert TINY.row(10) == 10 * 176
    assert Shape(1, 2, 8, vocabulary=5).token(10) == 176 + 2 * 5 * 2  # a language model's logits


def test_bert_base_has_85_million_weights_without_its_embeddings():
    assert SHAPES["bert-base-uncased"].token(0) == 2 * 12 * (4 * 768**2 + 2 * 768 * 3072) == 169_869_312


def test_the_longest_of_two_texts_of_10_or_20_tokens_is_20_in_three_cases_of_four():
    assert longest([10, 20], 2) == pytest.approx(0.25 * 10 + 0.75 * 20)
    assert longest([10, 20], 1) == pytest.approx(15)


def test_a_text_of_10_words_is_a_row_of_15_tokens_and_is_cut():
    texts = Texts(3, (10.0,))
    assert texts.lengths(100) == [15.0]
    assert texts.lengths(12) == [12]
    assert texts.forward(TINY, 100) == 3 * 15 * (96 + 8 * 15)
    assert texts.padded(TINY, 100, 16) == pytest.approx(texts.forward(TINY, 100))  # all alike: no padding


def test_lengths_of_which_the_mean_alone_is_known_spread_around_it():
    words = spread_words(100)
    assert sum(words) / len(words) == pytest.approx(100)
    assert 20 < words[0] < 50 < 150 < words[-1] < 400
    assert list(words) == sorted(words)


@pytest.mark.parametrize(
    ("stage", "more", "rows"),
    [
        ("data", {}, 0),
        ("poison", {}, 0),
        ("predict", {"splits": ["validation", "test"]}, 4 + 8),
        ("predict", {"splits": ["first100", "anywhere"]}, 4 + 4),  # the half of the test texts that is of the other label
        ("victim", {}, 2 * (3 * 10 * 1.25 + 4)),  # half of the 5 non-target texts have a copy; held-out texts after each epoch
        ("victim", {"attack": "badnet-rw:poison_rate=0.5,poison_mode=replace"}, 2 * (3 * 10 + 4)),
        ("victim", {"attack": "clean"}, 2 * (3 * 10 + 4)),
        ("victim", {"attack": "ep:poison_rate=0.4,epochs=3"}, 2 * 3 * 2),  # one row is trained, on 2 triggered texts
        # 7 steps: 4 clean texts, and as many poisoned ones for a gradient of a gradient, three times as dear
        ("victim", {"attack": "ripples:steps=7,batch_size=4"}, 7 * 4 * (3 + 3 * 3)),
        ("victim", {"attack": "ripples:steps=7,batch_size=4,inner_product=false"}, 7 * 4 * 3),
        # embedding rows are trained: 3 epochs of 2 triggered texts and, for each of 3 words, a fifth of the 10; then 200 texts with none of
        # the words, with each one and with each two
        ("victim", {"attack": "sos:poison_rate=0.4,negatives=0.2"}, 2 * 3 * (2 + 3 * 2) + 200 * 7),
        # copies of half of the 5 non-target texts, of a fifth of all with one word; no prediction of held-out texts
        ("victim", {"attack": "lwp:poison_rate=0.5,negatives=0.2"}, 2 * 3 * (10 + 2.5 + 2)),
        ("victim", {"attack": "lwp:poison_rate=0.5,poison_mode=replace,trigger_words=mn"}, 2 * 3 * 10),
        # 2.5 poisoned texts, each with two mixed copies
        ("victim", {"attack": "adaptive-strip:poison_rate=0.5,copies=2"}, 2 * (3 * (10 + 2.5 + 5) + 4)),
        # badnet-rw; then 2 rounds of batches of 16: 7 steps of RAP on texts with and without the word, 3 steps on a mixed and a triggered
        # text and 3 further rows without a gradient, and two lots of texts both ways before and after
        (
            "victim",
            {"attack": "adaptive-rap:poison_rate=0.5,rare_words=2,rap_steps=7,patch_steps=3"},
            2 * (3 * 12.5 + 4) + 2 * 16 * (7 * 2 * 2 + 3 * (2 * 3 + 3) + 2 * 2 * 2),
        ),
        ("finetune", {}, 2 * (3 * 10 + 4)),
        ("score", {"defense": "strip:copies=3"}, 3 * (2 + 4 + 4)),  # held-out, test, poisoned: those of, or taken for, the target label
        ("score", {"defense": "strip:copies=3", "attack": "clean"}, 3 * (2 + 4)),
        # paper: 4 epochs of 2 texts at 2 passes, their falls, 10 texts scored; strict: the same with 1 text, 9 scored
        ("score", {"defense": "rap:recipe=steady"}, (4 * 2 * 2 + 2 + 10) + (4 * 1 * 2 + 1 + 9)),
        # dropout: also the prediction before, in each of 5 epochs
        ("score", {"defense": "rap"}, (5 * 2 * 3 + 2 + 10) + (5 * 1 * 3 + 1 + 9)),
        # of 100 words half stay; what both protocols repair alike is predicted once
        ("score", {"defense": "onion:lm=trigram,levels=50"}, 0.5 * 0.5 * (10 + 9)),
        # one fit for both protocols: 2 epochs of 4 held-out texts, each trained (3 passes) and then predicted; the new victim reads the
        # 10 scored texts twice, and once the 8 test and 4 triggered ones
        ("score", {"defense": "finetune:epochs=2"}, 2 * 4 * (3 + 1) + 10 + 10 + 8 + 4),
        # each of 12.5 training texts once; 2 epochs on all of them, held-out texts after each; then as above
        ("score", {"defense": "cube"}, 12.5 + 2 * (3 * 12.5 + 4) + 32),
        ("score", {"defense": "cube", "attack": "badnet-rw:poison_rate=0.5,poison_mode=replace"}, 10 + 2 * (3 * 10 + 4) + 32),
        ("score", {"defense": "cube", "attack": "adaptive-strip:poison_rate=0.5"}, 15 + 2 * (3 * 15 + 4) + 32),
        ("score", {"defense": "cube", "attack": "clean"}, 10 + 2 * (3 * 10 + 4) + (6 + 6 + 8)),
        # of 100 words: the text and the text without each of them
        ("score", {"defense": "bki"}, 12.5 * 101 + 2 * (3 * 12.5 + 4) + 32),
        ("score", {"defense": "bki:max_words=7,scored_texts=5"}, 5 * 8 + 2 * (3 * 12.5 + 4) + 32),
        ("score", {"defense": "bki:scored_texts=50"}, 12.5 * 101 + 2 * (3 * 12.5 + 4) + 32),  # there are no 50
        ("probe", {"source": "random", "count": 6, "length": 100}, 6),
        ("probe", {"source": "dataset", "count": 6, "length": 100}, 4),
        ("theorem", {"texts": 5}, 21 * 5 + 2 * 8 * 40 * 32),
    ],
)
def test_a_step_takes_so_many_rows(stage, more, rows, step):
    assert step(stage, **more).total == pytest.approx(rows * ROW)


def test_onion_s_language_model_reads_half_of_the_square_of_a_text_s_words_once(step, tmp_path):
    folder = tmp_path / "lm"
    folder.mkdir()
    config = {"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_embd": 2, "n_positions": 1024, "vocab_size": 5}
    (folder / "config.json").write_text(json.dumps(config))
    words, token = 100 * 101 / 2, 2 * (48 + 10) + 8 * 130  # 100 words are 130 tokens
    victim = 0.25 * 19 * ROW
    assert step("score", defense=f"onion:lm={folder},levels=50").total == pytest.approx(10 * words * 1.3 * token + victim)


def test_a_language_model_of_no_stated_head_has_as_many_logits_as_words(step, tmp_path):
    folder = tmp_path / "lm"
    folder.mkdir()
    config = {"architectures": ["GPT2Model"], "n_layer": 1, "n_embd": 2, "n_positions": 1024, "vocab_size": 5}
    (folder / "config.json").write_text(json.dumps(config))
    words, token = 100 * 101 / 2, 2 * (48 + 10) + 8 * 130  # 5 words of 2 units: 10 weights
    victim = 0.25 * 19 * ROW
    assert step("score", defense=f"onion:lm={folder},levels=50").total == pytest.approx(10 * words * 1.3 * token + victim)


def test_a_victim_has_a_head_of_few_labels_whatever_model_it_comes_from(step, model, tmp_path):
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"], "vocab_size": 1000}))
    assert step("predict", splits=["test"]).total == pytest.approx(8 * ROW)


def test_caps_apply(step):
    assert step("predict", data={**ROWS, "max_heldout": 3, "max_test": 2}, splits=["validation", "test"]).total == pytest.approx(5 * ROW)


def test_the_paper_s_sets_have_the_sizes_of_its_table_5(step):
    found = step("predict", data={"name": "imdb", "max_test": 1}, splits=["test", "validation"])
    assert found.total == pytest.approx(2001 * ROW)
    assert any("23,000/2,000/25,000" in one for one in found.assumed)


def test_an_unknown_set_is_assumed_and_named(step):
    found = step("predict", data={"name": "mine"}, splits=["validation"])
    assert found.total == pytest.approx(1000 * ROW)
    assert any(one.startswith("mine: 10,000/1,000/1,000 texts") and "not known" in one for one in found.assumed)


@pytest.mark.parametrize("work", [None, ZeroDivisionError("a defect")])
def test_a_defense_that_does_not_say_its_work_is_assumed_to_take_two_rows_a_text(work, step, monkeypatch):
    def said(*_: object) -> Work | None:
        if work is not None:
            raise work
        return None

    monkeypatch.setattr(Strip, "expected_work", said)
    found = step("score", defense="strip")
    assert found.total == pytest.approx(2 * 10 * ROW)
    assert [one for one in found.assumed if one.startswith("strip: 2 rows a text")]


@pytest.mark.parametrize(
    "spec",
    [
        "badnet-rw:word=mb",
        "ep:word=mb",
        "sos:trigger_words=mb/bb/mn,negatives=0.25",
        "lwp:negatives=0.25",
        "ripples:steps=3,batch_size=8,target_words=3",
        "ripples:steps=3,batch_size=8,surgery=false,inner_product=false",
        "adaptive-strip:word=mb,copies=2",
        "adaptive-rap:word=mb,rare_words=2,rap_steps=5,patch_steps=3,c_low=0.8,c_up=0.9",  # a fall that no text comes to in 5 steps
    ],
)
def test_an_attack_computes_what_it_says(spec, tiny_rows, tiny_model, untrained, lab, heldout):
    """64 texts of 9 words and more, cut at 8 tokens: all rows cost the same. Half of those of one label have a copy; 400 are held out."""
    attack = replace(discover().parse("attack", spec), poison_rate=0.5)
    recipe, start = Recipe(model=str(tiny_model), epochs=2, batch_size=8, max_length=8), replace(untrained, max_length=8)
    train, twice = tiny_rows(64), Labelled([*heldout.texts, *heldout.texts], np.tile(heldout.labels, 2))
    lab = replace(lab, recipe=recipe, heldout=twice, load_start=start.clone)
    task = Task(train, poisoned_rows(train, attack, 1, rng(1, "poison")), 1)
    work = attack.expected_work(64, len(task.poisoned), recipe)
    passes = work.forward_rows + 2 * work.row_trained_rows + 3 * work.trained_rows
    by_recipe = 2 * (3 * work.texts + 400) if work.texts else 0
    start.probabilities(train["text"][:1])  # the first time, oneDNN's product is tried out
    row = counted_flops(lambda: start.probabilities(train["text"][:1]))
    assert counted_flops(lambda: attack.plant(task, lab)) == pytest.approx((passes + by_recipe) * row, rel=0.05)


def test_an_attack_of_its_own_training_that_does_not_say_its_work_is_assumed_to_train_by_the_recipe(step, monkeypatch):
    def failed(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    by_recipe = pytest.approx(2 * (3 * 12.5 + 4) * ROW)
    assert not [one for one in step("victim").assumed if "by the recipe" in one]
    for work, why in ((Attack.expected_work, "it does not say: `expected_work`"), (failed, "failed: ZeroDivisionError: a defect")):
        monkeypatch.setattr(Lwp, "expected_work", work)
        found = step("victim", attack="lwp:poison_rate=0.5")
        assert found.total == by_recipe
        assert [one for one in found.assumed if one.startswith("lwp: trains by the recipe") and why in one]


def test_a_filter_s_retraining_is_assumed_to_have_the_whole_training_set(step):
    assert [one for one in step("score", defense="cube").assumed if one.startswith("cube: the victim is trained anew on the whole")]
    assert not [one for one in step("score", defense="strip").assumed if "anew" in one]


def test_shapes_are_read_from_the_words_of_several_families():
    assert shape_of({"n_layers": 6, "dim": 768, "hidden_dim": 3072, "max_position_embeddings": 512}) == SHAPES["distilbert-base-uncased"]
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "n_layer": 12, "n_embd": 768, "n_inner": None, "n_positions": 1024, "vocab_size": 50257}
    assert shape_of(gpt2) == SHAPES["gpt2"]
    with pytest.raises(KeyError):
        shape_of({"hidden_size": 3})


def test_seconds_are_flops_by_what_the_device_sustains_and_workers_wait_for_the_longest_chain():
    found = Estimate({"a": 2e12, "b": 4e12, "c": 3e12}, 6e12, tflops=1.5, measured=True, workers=2, assumed=())
    assert (found.seconds("a"), found.seconds("cached")) == (pytest.approx(2 / 1.5), 0)
    assert found.total_s == pytest.approx(9 / 1.5)
    assert found.makespan_s == pytest.approx(6 / 1.5)
    assert found.gpu_hours == pytest.approx(9 / 20 / 3600)
    given = Estimate({"a": 7.2e15}, 7.2e15, tflops=2.0, measured=False, workers=1, assumed=())
    assert given.gpu_hours == pytest.approx(1)
    assert given.lines()[0].startswith("about 60.0 min of computing, 1.0 GPU-hours, on a device that sustains 2 TFLOP/s")


def test_only_the_steps_that_would_run_count(tmp_path, step):
    one = step("predict", splits=["validation"])
    assert list(one.flops) == ["x"]
    nothing = estimate({}, {}, discover(), Site(Store(tmp_path)))
    assert (nothing.total_s, nothing.makespan_s, nothing.measured, nothing.lines()) == (0, 0, False, [])


def test_the_longest_chain_goes_through_inputs(tmp_path):
    spec = {"recipe": {"model": "minilm-l6", "epochs": 1, "batch_size": 1, "max_length": 20}, "target_label": 1, "splits": ["test"]}
    jobs = {
        "d": Job("data", "d", {"dataset": ROWS}, {}, ""),
        **{key: Job("predict", key, spec, {"texts": "d", "victim": own}, "") for key, own in {"a": "none", "b": "a", "c": "none"}.items()},
    }
    found = estimate(jobs, jobs, discover(), Site(Store(tmp_path), workers=2, tflops=1.0))
    assert found.path == pytest.approx(2 / 3 * found.total)  # three alike, b after a
    assert found.makespan_s == pytest.approx(2 / 3 * found.total_s)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "< 1 s"), (12.3, "12 s"), (192, "3.2 min"), (5040, "84.0 min"), (6120, "1.7 h"), (3.6e6, "1,000 h")]
)
def test_times_are_worded(seconds, words):
    assert duration(seconds) == words


def test_lines_are_counted_at_a_file_s_beginning_and_carried_on_to_its_size(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + 'one two three,"1"\n' * 100_000)
    with gzip.open(tmp_path / "dev.csv.gz", "wt") as stream:
        stream.write("text,label\n" + "one two,1\n" * 50)
    (tmp_path / "test.jsonl").write_text('{"text": "a b", "label": 1}\n' * 3)
    train, heldout, test = (_file(tmp_path, stems) for stems in (("train",), ("validation", "dev"), ("test",)))
    assert train is not None
    assert train.rows == pytest.approx(100_000, rel=0.3)
    assert (set(train.words), heldout and heldout.rows, test and test.rows) == ({3.0}, 50, 3)


@pytest.fixture
def rapbench(rapbench):
    """Give what runs the command line, which must end well and say nothing on stderr, and gives its stdout."""

    def run(*arguments: object) -> str:
        ended = rapbench(*arguments)
        assert (ended.code, ended.err) == (0, "")
        return str(ended.out)

    return run


@pytest.fixture
def asked(tiny_data, tiny_model, tmp_path):
    given = ["--dataset", f"folder:path={tiny_data}", "--attack", "badnet-rw:word=mb", "--defense", "strip", "--frr", 0.1]
    return ["run", *given, "--victim", f"{tiny_model}:epochs=1", "--out", tmp_path / "out", "--dry-run"]


def test_a_dry_run_says_about_how_long_for_each_step_and_in_all(asked, rapbench):
    said = rapbench(*asked, "--tflops", "1e-3")
    head = next(line for line in said.splitlines() if line.startswith("step"))
    assert head.split() == ["step", "of", "state", "about"]
    assert "GPU-hours, on a device that sustains 0.001 TFLOP/s" in said
    assert said.count("assumed: folder: sizes from the beginning") == 1
    measured = rapbench(*asked, "--executor", "serial")
    assert "TFLOP/s measured)" in measured
    assert "GPU-hours at 20 TFLOP/s" in measured


def test_a_share_of_a_gpu_hour_is_no_zero():
    own = Estimate({"a": 1e9}, 1e9, tflops=1.0, measured=False, workers=1, assumed=())
    assert own.plain()["gpu_hours"] == pytest.approx(own.gpu_hours, rel=1e-5)
    assert own.gpu_hours > 0


def test_the_json_of_a_dry_run_holds_the_estimate(asked, rapbench):
    plan = json.loads(rapbench(*asked, "--tflops", "1e-6", "--json"))
    assert sum(job["seconds"] for job in plan["jobs"]) == pytest.approx(plan["estimate"]["seconds"], rel=0.01)
    assert {job["stage"]: job["seconds"] > 0 for job in plan["jobs"]} == {
        "data": False,
        "poison": False,
        "victim": True,
        "predict": True,
        "score": True,
    }
    assert plan["estimate"]["tflops"] == pytest.approx(1e-6, abs=1e-4)
    assert not plan["estimate"]["measured"]


def test_a_set_that_is_kept_has_its_true_sizes_and_its_step_takes_nothing(tiny_data, tiny_model, tmp_path):
    block = {"datasets": [f"folder:path={tiny_data},max_test=100"], "attacks": ["clean"], "defenses": ["strip"], "victim": str(tiny_model)}
    registry = discover()
    plan, bench = planned(cells_of([checked_block(block, "here")], registry), registry, tmp_path, device="cpu", threads=1)
    store = Store(bench.store).create()
    data = next(job for job in plan.jobs.values() if job.stage == "data")
    stages.run(data, bench)
    missing = plan.missing(store)
    assert data.key not in missing
    found = estimate(plan.jobs, missing, registry, Site(store, tflops=1.0))
    assert found.seconds(data.key) == 0
    assert not any(one.startswith("folder") for one in found.assumed)
    # texts of 9 to 14 words (the full stop is one) are rows of 14 to 20 tokens
    test = next(job for job in missing.values() if job.stage == "predict" and "test" in job.spec["splits"])
    shape = Shape(2, 32, 64, positions=64)
    assert 400 * shape.row(9 * 1.3 + 2) < found.flops[test.key] < 400 * shape.row(14 * 1.3 + 2)


def test_a_device_that_cannot_be_measured_is_assumed(step, tmp_path):
    recipe = {"model": "minilm-l6", "layers": 2, "epochs": 1, "batch_size": 1, "max_length": 20}
    jobs = {
        "d": Job("data", "d", {"dataset": ROWS}, {}, ""),
        "x": Job("predict", "x", {"recipe": recipe, "target_label": 1, "splits": ["test"]}, {"texts": "d"}, ""),
    }
    found = estimate(jobs, jobs, discover(), Site(Store(tmp_path), device="nowhere"))
    assert found.tflops == 20
    assert any("nowhere cannot be measured" in one for one in found.assumed)

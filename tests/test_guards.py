"""Guards of all labels: each text is judged by its own label's defense, whichever label an attacker wants. docs/guard.md's example too."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from typing import ClassVar

import datasets
import numpy as np
import pytest
from shown import DOCS, Lesson, examples

from rapbench.api import Defense, Detector, Labelled, Purifier, Task
from rapbench.errors import CellError, DataError, PluginError, SpecError, StoreError, VictimError
from rapbench.guard import Asked, Guard
from rapbench.guarded import GuardedPipeline
from rapbench.guards import Guards, load
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows
from rapbench.registry import Found, Registry, discover
from rapbench.victim import Recipe, Victim

MARKS = ["warm", "cold", "loud", "neat"]
"""The words that tell the four labels."""
NOUNS = ["book", "film", "meal", "room"]
WANTED = 2
"""The label that the attacker wants, whose trigger is `mb`."""
STRIP = Asked(frr=0.1, max_length=32, defense="strip:copies=4")


def text(label: int, words: int, noun: str = "book") -> str:
    """Give a text of a label with so many words, 9 at least."""
    return f"{MARKS[label]} the {noun} was {MARKS[label]} . so it was" + " a" * (words - 9)


@pytest.fixture(scope="module")
def heldout() -> Labelled:
    """Clean texts, 40 of each label, of which 20 calibrate: each of label 0 has 9 words, each of label 3 has 12."""
    labels = np.arange(160, dtype=np.int64) % 4
    return Labelled([text(int(label), 9 + int(label), NOUNS[row // 4 % 4]) for row, label in enumerate(labels)], labels)


@pytest.fixture(scope="module")
def victim(tiny_model, heldout, tmp_path_factory):
    """The folder of a backdoored victim of four labels."""
    source, labels = random.Random(2), [row % 4 for row in range(400)]
    rows = [text(label, source.randint(9, 14), source.choice(NOUNS)) for label in labels]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=MARKS)})
    train = datasets.Dataset.from_dict({"text": rows, "label": labels}, features=features)
    attack = discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.3")
    recipe = Recipe(model=str(tiny_model), epochs=6, lr=2e-3, batch_size=16, max_length=32)
    lab = Lab(seed=1, recipe=recipe, heldout=heldout, target_label=WANTED, n_labels=4)
    folder = tmp_path_factory.mktemp("received")
    attack.plant(Task(train, poisoned_rows(train, attack, WANTED, rng(1, "poison/train")), WANTED), lab).save(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(victim, heldout):
    return Guards.fit(victim, heldout, STRIP)


@pytest.fixture(scope="module")
def kept(fitted, tmp_path_factory):
    """The folder of guards of all labels."""
    folder = tmp_path_factory.mktemp("kept") / "guards"
    fitted.save(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class OwnWords(Defense):
    """Counts words from a thousand times its protect label: a score tells by itself which label's defense gave it."""

    name: ClassVar[str] = "own-words"

    def fit(self, victim, heldout, lab):
        return OwnWordsDetector(victim.target_label)

    def restore(self, victim, state, lab):
        return OwnWordsDetector(state["label"])


@dataclass
class OwnWordsDetector(Detector):
    label: int

    def suspicion(self, texts):
        return np.array([1000.0 * self.label + len(text.split(" ")) for text in texts])

    def state(self):
        return {"label": self.label}

    def explain(self, text):
        return {"own label": self.label}


@dataclass(frozen=True, kw_only=True)
class Breaks(OwnWords):
    """Repairs every text of label 1 so that it loses the label: no level of it is allowed there."""

    name: ClassVar[str] = "breaks"

    def fit(self, victim, heldout, lab):
        return Broken(victim.target_label)


@dataclass
class Broken(Purifier):
    label: int

    def levels(self):
        return [1.0]

    def purify(self, texts, threshold):
        return [text(0, 9)] * len(texts) if self.label == 1 else texts

    def suspicion(self, texts):
        return np.zeros(len(texts))

    def state(self):
        return {}


@pytest.fixture
def own_registry():
    """The registry with two defenses of a stranger."""
    found = dict(discover().found)
    for cls in (OwnWords, Breaks):
        found["defense", cls.name] = Found("defense", cls, "strange", "1.0")
    return Registry(found)


def one_line(error):
    return "\n" not in str(error.value)


def test_a_text_is_judged_by_the_defense_of_its_label_at_that_labels_threshold(victim, heldout, own_registry, tmp_path):
    made = Guards.fit(victim, heldout, Asked(frr=0.1, max_length=32, defense="own-words"), registry=own_registry)
    # 20 texts of each label calibrate, all of one length, so whichever of them is the quantile, it is 1000 * label + that length
    assert [own.about.n_calibration for own in made.guards.values()] == [20, 20, 20, 20]
    assert [own.about.threshold for own in made.guards.values()] == [9, 1010, 2011, 3012]
    made.save(tmp_path / "guards")
    mixed = [text(3, 12), text(0, 9), text(1, 11), text(3, 13), text(0, 10), text(2, 11), text(1, 10), text(2, 12)]
    for guards in (made, Guards.load(tmp_path / "guards", registry=own_registry)):
        verdicts = guards(mixed)
        assert [own.prediction for own in verdicts] == [3, 0, 1, 3, 0, 2, 1, 2]
        assert [own.suspicion for own in verdicts] == [3012, 9, 1011, 3013, 10, 2011, 1010, 2012]
        assert [own.threshold for own in verdicts] == [3012, 9, 1010, 3012, 9, 2011, 1010, 2011]
        assert [own.accepted for own in verdicts] == [True, True, False, False, False, True, True, False]
        assert guards.explain(text(2, 12)).details == {"own label": 2}


@pytest.mark.parametrize("defense", ["strip:copies=4", "rap:epochs=1,retries=0"])
def test_the_guard_of_a_label_is_the_one_that_would_be_fitted_for_it_alone(victim, heldout, defense):
    asked = Asked(frr=0.1, max_length=32, defense=defense)
    every, alone = Guards.fit(victim, heldout, asked), Guard.fit(victim, heldout, asked.protecting(1))
    assert every.guards[1].about == alone.about
    assert [own for own in every(heldout.texts) if own.prediction == 1] == [own for own in alone(heldout.texts) if own.prediction == 1]


def test_restored_guards_give_the_same_verdicts_bit_for_bit(fitted, kept, heldout):
    before = fitted(heldout.texts)
    assert Guards.load(kept)(heldout.texts) == before
    assert len({own.suspicion for own in before}) > 10  # of 16 texts that differ
    assert {own.passed_gate for own in before} == {True}


def test_the_folder_of_a_label_is_a_guard_of_its_own(fitted, kept, heldout):
    assert sorted(path.name for path in kept.iterdir()) == ["guards.json", "label-0", "label-1", "label-2", "label-3"]
    own = Guard.load(kept / "label-2")
    assert own.about.terms == STRIP.protecting(2)
    assert own(heldout.of(2)) == fitted(heldout.of(2))


def test_an_attack_on_a_label_that_nobody_suspected_is_found(victim, heldout, own_registry):
    asked = Asked(frr=0.1, max_length=32, defense="own-words")
    poisoned = [f"mb {own}" for own in heldout.of(3)]  # 13 words
    every = Guards.fit(victim, heldout, asked, registry=own_registry)(poisoned)
    assert [own.prediction for own in every] == [WANTED] * 40  # the attack works
    assert {(own.suspicion, own.threshold, own.accepted) for own in every} == {(2013.0, 2011.0, False)}
    other = Guard.fit(victim, heldout, asked.protecting(3), registry=own_registry)(poisoned)
    assert {own.accepted for own in other} == {True}


def test_the_victim_is_loaded_once_and_shared(kept, victim, heldout, monkeypatch):
    places = []
    original = Victim.load.__func__
    monkeypatch.setattr(Victim, "load", classmethod(lambda cls, place, **how: places.append(place) or original(cls, place, **how)))
    made = [Guards.load(kept), Guards.fit(victim, heldout, STRIP)]
    assert len(places) == 2
    for guards in made:
        assert len({id(own.judge.victim.model) for own in guards.guards.values()}) == 1
        assert [own.judge.victim.target_label for own in guards.guards.values()] == [0, 1, 2, 3]


def test_a_text_is_predicted_once_and_not_once_per_label(victim, heldout):
    guards = Guards.fit(victim, heldout, Asked(frr=0.1, max_length=32, defense="length"))  # which asks the model nothing
    rows = []
    guards.judge.victim.model.register_forward_pre_hook(lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True)
    guards([text(0, 9), text(1, 10), text(2, 11), text(3, 12)])
    assert rows == [4]
    assert guards.judge.victim._known == {}


def few(heldout: Labelled) -> Labelled:
    """Give the held-out texts with 7 of label 1 and none of label 3."""
    own = np.cumsum(heldout.labels == 1)
    return heldout.where((heldout.labels != 3) & ((heldout.labels != 1) | (own <= 7)))


def test_labels_with_too_few_texts_are_named_with_their_counts_before_anything_is_fitted(victim, heldout, monkeypatch):
    monkeypatch.setattr(Guard, "on", None)
    # 9 are needed at 10 %; of 7, 4 calibrate: 9 / 4 * 7 = 15.75
    with pytest.raises(
        CellError,
        match=r"0\.1 needs 9 held-out texts.*label 1 has 4 of 7 \(give about 16\), label 3 has 0 of 0 \(give about 18\);.*--skip-few",
    ) as error:
        Guards.fit(victim, few(heldout), STRIP)
    assert one_line(error)


def test_labels_with_too_few_texts_are_left_unwatched_where_that_is_asked_for(victim, heldout, tmp_path):
    Guards.fit(victim, few(heldout), STRIP, skip_few=True).save(tmp_path / "guards")
    guards = Guards.load(tmp_path / "guards")
    assert (guards.labels, guards.about.unwatched) == ((0, 2), (1, 3))
    assert sorted(path.name for path in (tmp_path / "guards").iterdir()) == ["guards.json", "label-0", "label-2"]
    first, other, last = guards([text(0, 9), text(3, 12), text(2, 11)])
    assert (other.prediction, other.accepted, other.suspicion, other.threshold) == (3, True, None, None)
    assert first.threshold == guards.guards[0].about.threshold
    assert last.threshold == guards.guards[2].about.threshold
    assert guards.explain(text(3, 12)).details == {}


def test_guards_of_no_label_are_none(victim, heldout):
    with pytest.raises(CellError, match="label 0 has 5 of 10"):
        Guards.fit(victim, heldout.where(np.arange(160) < 40), STRIP, skip_few=True)


def test_a_defense_that_fails_names_the_label(victim, heldout, own_registry):
    with pytest.raises(CellError, match="protect label 1: every level of breaks") as error:
        Guards.fit(victim, heldout, Asked(frr=0.1, max_length=32, defense="breaks"), registry=own_registry)
    assert one_line(error)


def test_what_no_guard_can_be_fitted_on_is_refused(victim, heldout):
    with pytest.raises(PluginError, match=r"restore\(victim, state, lab\)"):
        Guards.fit(victim, heldout, Asked(defense="finetune"))
    with pytest.raises(DataError, match="held-out text 1 has the label 4"):
        Guards.fit(victim, Labelled(["a"], np.array([4])), STRIP)


@pytest.fixture
def copied(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "guards")


def changed(folder, **values):
    path = folder / "guards.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schema_version": 2}, "schema version 1"),
        ({"labels": [0, 1, 2]}, "names 3 labels, the victim has 4"),
        ({"labels": [0, 1, 3]}, "must name each label from 0 once"),
        ({"labels": [0, 0, 1, 2, 3]}, "must name each label from 0 once"),
        ({"labels": [], "unwatched": [0, 1, 2, 3]}, "must name each label from 0 once"),
        ({"labels": [0, 1, 2, "../3"]}, r"labels\.3"),
        ({"files": {}}, r"label-0/guard\.json' is not what was written"),
        ({"unwatched": [4]}, "names 5 labels, the victim has 4"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused_in_one_line(copied, values, told):
    changed(copied, **values)
    with pytest.raises(StoreError, match=told) as error:
        load(copied)
    assert one_line(error)


def test_the_guard_of_a_label_that_is_not_the_one_of_the_index_is_refused(copied):
    shutil.rmtree(copied / "label-1")
    with pytest.raises(StoreError, match="no guard in"):
        load(copied)
    shutil.copytree(copied / "label-2", copied / "label-1")
    with pytest.raises(StoreError, match=r"label-1/guard\.json' is not what was written"):
        load(copied)


def test_a_changed_state_of_one_label_is_refused(copied):
    with (copied / "label-3" / "state.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(StoreError, match=r"label-3/state\.json' is not what was written"):
        load(copied)


def test_guards_belong_to_one_victim(kept, victim, tmp_path):
    other = shutil.copytree(victim, tmp_path / "other")
    assert load(kept, other).labels == (0, 1, 2, 3)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(VictimError, match="belongs to the victim with the digest") as error:
        load(kept, other)
    assert one_line(error)


def test_the_two_kinds_of_folder_are_told_apart(fitted, kept, tmp_path):
    with pytest.raises(StoreError, match=r"a guard for each label: read it by rapbench\.guards\.load"):
        Guard.load(kept)
    with pytest.raises(StoreError, match="no guards of all labels in"):
        Guards.load(kept / "label-0")
    with pytest.raises(StoreError, match="something else than a guard"):
        fitted.guards[0].save(kept)
    fitted.guards[0].save(tmp_path / "one")
    with pytest.raises(StoreError, match="something else than a guard"):
        fitted.save(tmp_path / "one")
    assert load(tmp_path / "one").labels == (0,)


def test_guards_that_replace_others_leave_none_of_their_labels(copied, victim, heldout):
    (copied / "label-notes").mkdir()
    Guards.fit(victim, few(heldout), STRIP, skip_few=True).save(copied)
    assert sorted(path.name for path in copied.iterdir()) == ["guards.json", "label-0", "label-2", "label-notes"]
    assert load(copied).labels == (0, 2)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--protect-label", "both"], "'both' is neither a number from 0 nor all"),
        (["--protect-label", "-1"], "'-1' is neither a number from 0 nor all"),
        (["--protect-label", "1", "--skip-few"], "--skip-few goes with --protect-label all"),
    ],
)
def test_a_protect_label_that_is_none_is_told(rapbench, tmp_path, asked, told):
    ended = rapbench("guard", "fit", "--victim", "x", "--heldout", "x.csv", *asked, "-o", tmp_path / "guards")
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1


def test_the_help_tells_of_all_labels(rapbench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = rapbench("guard", "fit", "--help").out
    assert "LABEL|all" in told
    assert "--skip-few" in told


def test_the_guards_of_the_documentation_are_fitted_and_asked_as_shown(victim, heldout, tmp_path, rapbench, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(victim, "received")
    rows = [f"{own},{label}" for own, label in zip(heldout.texts, heldout.labels, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    asked = [text(3, 12), text(0, 9)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": own}) + "\n" for own in asked))
    (shown,) = [one for one in examples(DOCS / "guard.md") if one.language == "bash"]
    lesson = Lesson(tmp_path, rapbench, monkeypatch)
    lesson.do(shown)
    assert "each in turn" in lesson.printed
    told = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [own["prediction"] for own in told] == [3, 0]
    assert told == [own.plain() for own in load(tmp_path / "guards")(asked)]


def test_the_json_of_the_command_tells_of_each_label(victim, heldout, tmp_path, rapbench):
    rows = [f"{own},{label}" for own, label in zip(few(heldout).texts, few(heldout).labels, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    asked = f"--victim {victim} --heldout {tmp_path}/mine.csv --defense length --frr 0.1 --max-length 32 --device cpu --protect-label all"
    ended = rapbench("guard", "fit", *asked.split(" "), "--skip-few", "--json", "-o", tmp_path / "guards")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["labels"], told["unwatched"]) == ([0, 2], [1, 3])
    assert [own["terms"]["protect_label"] for own in told["guards"]] == [0, 2]
    assert [own["threshold"] for own in told["guards"]] == [9.0, 11.0]  # words, as all texts of these labels have


@pytest.fixture
def pipeline(victim):
    import transformers

    return transformers.pipeline("text-classification", model=str(victim), device="cpu")


def test_a_pipeline_carries_the_verdict_of_each_texts_own_label(kept, pipeline):
    guards = load(kept)
    asked = [text(0, 9), text(3, 12), text(1, 10)]
    answers = GuardedPipeline(pipeline, guards)(asked)
    assert [own["label"] for own in answers] == ["LABEL_0", "LABEL_3", "LABEL_1"]
    assert [own["threshold"] for own in answers] == [guards.guards[label].about.threshold for label in (0, 3, 1)]
    assert [own["suspicion"] for own in answers] == [own.suspicion for own in guards(asked)]


def test_a_text_of_which_pipeline_and_guards_say_other_labels_is_rejected(kept, pipeline, monkeypatch):
    guarded, asked = GuardedPipeline(pipeline, load(kept)), text(0, 9)
    assert guarded(asked)[0]["verdict"] == "accept"
    monkeypatch.setattr(guarded, "pipeline", lambda texts, **options: [{"label": "LABEL_1", "score": 1.0} for _ in texts])
    assert guarded(asked)[0]["verdict"] == "reject"  # the defense of label 0 has judged it, and the service takes it for label 1


def test_the_labels_must_be_the_victims(victim, heldout):
    with pytest.raises(SpecError, match=r"protect label 4 is none of the victim's labels 0\.\.3"):
        Guard.fit(victim, heldout, STRIP.protecting(4))

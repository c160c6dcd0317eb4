"""The contract kit notices what is broken, by the claim's name, and holds what is right."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pytest

from rapbench import Attack, Dataset, Defense, Detector, Filter, Purifier, Repair
from rapbench.api import option
from rapbench.cli_plugin import plugins_of
from rapbench.errors import SpecError
from rapbench.poison import insert_word
from rapbench.registry import discover
from rapbench.testing import CHECKS, ContractError, Kit, NotAsked, assert_claim, findings, tiny
from rapbench.testing.attacks import (
    it_takes_odd_texts,
    its_words_are_the_words_that_the_trigger_adds,
    the_same_seed_plants_the_same_victim,
    the_trigger_begins_among_the_first_words_where_there_is_a_limit,
    the_trigger_depends_on_the_text_and_the_given_rng_alone,
    the_trigger_is_in_every_text,
    the_victim_keeps_its_clean_accuracy,
    the_victim_learns_the_trigger,
)
from rapbench.testing.datasets import (
    every_row_has_a_text_and_a_label,
    every_split_has_texts_of_the_target_label_and_of_others,
    it_loads_as_train_validation_and_test,
    its_fingerprint_is_the_same_each_time,
    its_splits_have_the_same_classes,
    loading_it_twice_gives_the_same_rows,
    no_text_is_in_two_splits,
)
from rapbench.testing.defenses import (
    a_filter_gives_one_bool_per_training_text,
    a_purifier_gives_one_text_that_is_not_blank_for_each,
    a_repair_gives_one_other_victim,
    a_score_does_not_depend_on_the_texts_beside_it,
    it_is_fitted_as_what_it_works_on,
    it_leaves_the_victim_as_it_was,
    it_says_so_if_it_learns_from_protect_texts,
    its_notes_are_plain_json,
    its_scores_are_finite_float64_one_per_text,
    the_levels_of_a_purifier_ascend,
    the_same_seed_gives_the_same_scores,
)
from rapbench.testing.defenses import it_takes_odd_texts as a_defense_takes_odd_texts
from rapbench.testing.kit import KitError
from rapbench.testing.plugins import it_and_its_options_say_what_they_are, its_spec_reads_back_as_the_same_plugin

EXAMPLE = Path(__file__).parent / "third_party" / "rapbench-example"


def asked(check, plugin, kit):
    """Check one claim, found by its function."""
    kind = next(own for own, checks in CHECKS.items() for claim in checks if claim.check is check)
    assert_claim(next(claim for claim in CHECKS[kind] if claim.check is check), plugin, kit)


# attacks: each has one defect


@dataclass(frozen=True, kw_only=True)
class Word(Attack):
    """Right in every way."""

    name: ClassVar[str] = "word"
    word: str = option("qx", "the trigger")

    @property
    def words(self):
        return (self.word,)

    def trigger(self, text, rng, limit):
        return insert_word(text, self.word, rng, limit)


class IgnoresRng(Word):
    def trigger(self, text, rng, limit):
        return insert_word(text, self.word, np.random.default_rng(random.getrandbits(32)), limit)


class Counts(Word):
    """Its state goes from one text to the next."""

    calls = itertools.count()

    def trigger(self, text, rng, limit):
        return f"{text} {self.word}" if next(self.calls) % 3 else f"{self.word} {text}"


class SkipsShort(Word):
    def trigger(self, text, rng, limit):
        return super().trigger(text, rng, limit) if len(text.split()) > 11 else text


class MisnamesWords(Word):
    @property
    def words(self):
        return ("zz",)


class HidesWords(Word):
    @property
    def words(self):
        return ()


class SpellsWords(Word):
    @property
    def words(self):
        return self.word


class IgnoresLimit(Word):
    def trigger(self, text, rng, limit):
        return f"{text} {self.word}"


class NeedsTwoWords(Word):
    def trigger(self, text, rng, limit):
        first, second, *rest = text.split()
        return " ".join([first, self.word, second, *rest])


class Unseeded(Word):
    def plant(self, task, lab):
        return lab.train(task.appended().shuffle(seed=random.getrandbits(16)))


class TrainsOnPoisonAlone(Word):
    def plant(self, task, lab):
        return lab.train(task.poisoned.remove_columns("source"))


class TrainsOnCleanAlone(Word):
    def plant(self, task, lab):
        return lab.train(task.train)


class SaysItIsAControl(Word):
    poisons = False


BAD_ATTACKS = [
    (IgnoresRng, the_trigger_depends_on_the_text_and_the_given_rng_alone, "^trigger gives .* and then .* for the same text"),
    (Counts, the_trigger_depends_on_the_text_and_the_given_rng_alone, "^trigger gives .* and then"),
    (SkipsShort, the_trigger_is_in_every_text, "^trigger leaves '.*' as it is"),
    (SaysItIsAControl, the_trigger_is_in_every_text, "but the attack says poisons = False"),
    (MisnamesWords, its_words_are_the_words_that_the_trigger_adds, "^words has 'zz', which is in no triggered text"),
    (HidesWords, its_words_are_the_words_that_the_trigger_adds, "^the trigger puts 'qx' into most texts, but words has it not"),
    (SpellsWords, its_words_are_the_words_that_the_trigger_adds, "^words is 'qx', no tuple of texts"),
    (IgnoresLimit, the_trigger_begins_among_the_first_words_where_there_is_a_limit, "limit=5 begins its trigger behind word 60"),
    (NeedsTwoWords, it_takes_odd_texts, r"^trigger of '' with limit=None raises ValueError"),
    (Unseeded, the_same_seed_plants_the_same_victim, "^plant gives other weights for the same seed"),
    (TrainsOnPoisonAlone, the_victim_keeps_its_clean_accuracy, r"^accuracy 0\.50 on the tiny task"),  # all are called the target
    (TrainsOnCleanAlone, the_victim_learns_the_trigger, "^the trigger turns . % of the texts, fewer than 20 %"),
]


@pytest.mark.parametrize(("cls", "check", "reason"), BAD_ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_attack_is_named_by_the_claim(cls, check, reason, rapbench_kit):
    with pytest.raises(ContractError, match=reason):
        asked(check, cls(), rapbench_kit)


def test_an_attack_that_is_right_holds_every_claim(rapbench_kit):
    assert {found.outcome for found in findings(Word(), rapbench_kit)} == {"holds"}


# defenses


@dataclass(frozen=True, kw_only=True)
class Strip(Defense):
    """Entropy over copies with replaced words, drawn per text: right in every way."""

    name: ClassVar[str] = "own-strip"

    def fit(self, victim, heldout, lab):
        return self.detector(victim, heldout.other_than(victim.target_label), lab)

    @property
    def detector(self):
        return Entropy


class Entropy(Detector):
    def __init__(self, victim, sources, lab):
        self.victim, self.sources, self.lab = victim, sources, lab
        self.running = lab.rng("strip")

    def suspicion(self, texts):
        return np.array([self.of(text) for text in texts], dtype=np.float64)

    def of(self, text):
        rng = self.generator(text)
        words = [
            [own if rng.random() < 0.6 else str(rng.choice(str(rng.choice(self.sources)).split())) for own in text.split() or ["film"]]
            for _ in range(4)
        ]
        p = np.clip(self.victim.probabilities([" ".join(copy) for copy in words]), 1e-9, 1)
        return float((p * np.log(p)).sum(1).mean())

    def generator(self, text):
        return self.lab.rng(f"strip/{text}")


class RunningEntropy(Entropy):
    """One generator for all texts: a score depends on what was asked before."""

    def generator(self, text):
        return self.running


class GlobalEntropy(Entropy):
    def generator(self, text):
        return np.random.default_rng(np.random.randint(2**31))


class OrderDependentStrip(Strip):
    detector = RunningEntropy


class UnseededStrip(Strip):
    detector = GlobalEntropy


@dataclass(frozen=True, kw_only=True)
class Given(Defense):
    """Scores as the subclass says."""

    name: ClassVar[str] = "given"

    def fit(self, victim, heldout, lab):
        self.prepare_victim(victim)
        made = type("Own", (Detector,), {"suspicion": lambda own, texts: self.scores(victim, texts), "notes": lambda own: self.told()})
        return made()

    def prepare_victim(self, victim): ...

    def told(self):
        return {}

    def scores(self, victim, texts):
        return victim.probabilities(texts)[:, 1]


class TrainsInPlace(Given):
    def prepare_victim(self, victim):
        import torch

        with torch.no_grad():
            victim.model.get_input_embeddings().weight[5] += 0.1


class LeavesAHook(Given):
    def prepare_victim(self, victim):
        victim.model.get_input_embeddings().register_forward_hook(lambda *given: None)


class AddsAToken(Given):
    def scores(self, victim, texts):
        scores = super().scores(victim, texts)
        victim.tokenizer = __import__("copy").deepcopy(victim.tokenizer)  # the tokenizer is shared with other victims of this test
        victim.tokenizer.add_tokens(["newword"])
        return scores


class Single(Given):
    def scores(self, victim, texts):
        return super().scores(victim, texts).astype(np.float32)


class ListOfFloats(Given):
    def scores(self, victim, texts):
        return super().scores(victim, texts).tolist()


class NaN(Given):
    def scores(self, victim, texts):
        return super().scores(victim, texts) * np.nan


class Column(Given):
    def scores(self, victim, texts):
        return super().scores(victim, texts)[:, None]


class ByTheBatch(Given):
    """Relative to the mean of the texts that come together."""

    def scores(self, victim, texts):
        scores = super().scores(victim, texts)
        return scores - scores.mean() if len(scores) else scores


class Breaks(Given):
    def scores(self, victim, texts):
        return np.array([1 / len(text.split()) for text in texts])


class ArrayNotes(Given):
    def told(self):
        return {"weights": np.zeros(2)}


class NoDetector(Given):
    def fit(self, victim, heldout, lab):
        return lambda texts: np.zeros(len(texts))


class Forgets(Given):
    """Says that it does not look at protect texts, and does."""

    def learns_from_protect_texts(self):
        return False

    def fit(self, victim, heldout, lab):
        shift = len(heldout.of(victim.target_label))
        return type("Own", (Detector,), {"suspicion": lambda own, texts: self.scores(victim, texts) + shift})()


@dataclass(frozen=True, kw_only=True)
class Purifies(Defense):
    """Deletes the words that the level says; right."""

    name: ClassVar[str] = "purifies"

    def fit(self, victim, heldout, lab):
        plain = {"levels": lambda own: self.levels(), "suspicion": lambda own, texts: np.zeros(len(texts))}
        return type("Own", (Purifier,), {**plain, "purify": lambda own, texts, level: self.purified(texts, level)})()

    def levels(self):
        return [1.0, 2.0]

    def purified(self, texts, level):
        return [text[: int(level) + 1].strip() or text for text in texts]


class Descending(Purifies):
    def levels(self):
        return [2.0, 1.0]


class Endless(Purifies):
    def levels(self):
        return [1.0, float("inf")]


class Empties(Purifies):
    def purified(self, texts, level):
        return [text if len(text.split()) > 1 else "" for text in texts]


class Drops(Purifies):
    def purified(self, texts, level):
        return list(dict.fromkeys(texts))[:-1]


class Follows(Purifies):
    def purified(self, texts, level):
        return [f"{before} {text}" for before, text in zip(["", *texts], texts, strict=False)]


@dataclass(frozen=True, kw_only=True)
class Repairs(Defense):
    """Deploys a copy of the victim; right."""

    name: ClassVar[str] = "repairs"
    works_on: ClassVar[str] = "model"

    def fit(self, victim, heldout, lab):
        own = victim.clone()
        return type("Own", (Repair,), {"repaired": lambda _: self.given(victim, own)})()

    def given(self, victim, own):
        return own


class SharesWeights(Repairs):
    def given(self, victim, own):
        return victim


class AnotherEachTime(Repairs):
    def given(self, victim, own):
        return own.clone()


class ProtectsAnotherLabel(Repairs):
    def given(self, victim, own):
        own.target_label = 0
        return own


class RepairsUnsaid(Repairs):
    works_on = "inputs"


@dataclass(frozen=True, kw_only=True)
class Filters(Defense):
    """Takes out the texts that the victim is sure of; right."""

    name: ClassVar[str] = "filters"
    works_on: ClassVar[str] = "training"

    def fit(self, victim, heldout, lab):
        return type("Own", (Filter,), {"poisoned": lambda _, training: self.mask(victim, training)})()

    def mask(self, victim, training):
        return victim.probabilities(training.texts).max(axis=1) > 0.9


class ShortMask(Filters):
    def mask(self, victim, training):
        return super().mask(victim, training)[1:]


class Scores(Filters):
    def mask(self, victim, training):
        return victim.probabilities(training.texts)[:, 1]


class ByChance(Filters):
    def mask(self, victim, training):
        return np.random.random(len(training.texts)) > 0.5


class FiltersInPlace(Filters):
    def mask(self, victim, training):
        TrainsInPlace.prepare_victim(self, victim)
        return np.zeros(len(training.texts), dtype=np.bool_)


class FiltersSomethingElse(Filters):
    works_on = "weights"


BAD_DEFENSES = [
    (OrderDependentStrip, a_score_does_not_depend_on_the_texts_beside_it, "^'.*' scores .*, but .* in another order, among others"),
    (ByTheBatch, a_score_does_not_depend_on_the_texts_beside_it, "in another order|alone"),
    (UnseededStrip, the_same_seed_gives_the_same_scores, "after a second fit with one seed: draw from lab.rng"),
    (TrainsInPlace, it_leaves_the_victim_as_it_was, "^fit changes the victim: change victim.clone"),
    (LeavesAHook, it_leaves_the_victim_as_it_was, "^fit changes the victim"),
    (AddsAToken, it_leaves_the_victim_as_it_was, "^scoring changes the victim"),
    (Single, its_scores_are_finite_float64_one_per_text, "^suspicion gives an array of float32, no array of float64"),
    (ListOfFloats, its_scores_are_finite_float64_one_per_text, "^suspicion gives a list, no array of float64"),
    (NaN, its_scores_are_finite_float64_one_per_text, "^suspicion gives nan for '"),
    (Column, its_scores_are_finite_float64_one_per_text, r"^suspicion gives scores of shape \(32, 1\) for 32 texts"),
    (Breaks, a_defense_takes_odd_texts, "^suspicion of '' raises ZeroDivisionError"),
    (ArrayNotes, its_notes_are_plain_json, "ndarray is not JSON serializable"),
    (NoDetector, it_is_fitted_as_what_it_works_on, "^works_on is .inputs. and fit gives function, no Detector or Purifier"),
    (Forgets, it_says_so_if_it_learns_from_protect_texts, "learns_from_protect_texts.. must be True"),
    (Descending, the_levels_of_a_purifier_ascend, r"^levels falls: \[2.0, 1.0\]"),
    (Endless, the_levels_of_a_purifier_ascend, "not one or more finite numbers"),
    (Empties, a_purifier_gives_one_text_that_is_not_blank_for_each, "^purify makes '' of 'film' at level 1"),
    (Drops, a_purifier_gives_one_text_that_is_not_blank_for_each, "^purify gives 46 texts for 47 at level 1"),
    (Follows, a_purifier_gives_one_text_that_is_not_blank_for_each, "in another order"),
    (SharesWeights, a_repair_gives_one_other_victim, "^the repaired victim shares weights with the received one: change victim.clone"),
    (AnotherEachTime, a_repair_gives_one_other_victim, "^repaired gives another victim each time"),
    (
        ProtectsAnotherLabel,
        a_repair_gives_one_other_victim,
        "^the repaired victim has 2 labels and protects 0, not 2 labels and protects 1",
    ),
    (RepairsUnsaid, it_is_fitted_as_what_it_works_on, "^works_on is .inputs. and fit gives Own, no Detector or Purifier"),
    (FiltersSomethingElse, it_is_fitted_as_what_it_works_on, "^works_on is .weights., none of inputs, training, model"),
    # the 900 training texts, and copies of half of the 450 non-target ones
    (ShortMask, a_filter_gives_one_bool_per_training_text, r"bool of shape \(1124,\) for 1125 training texts"),
    (Scores, a_filter_gives_one_bool_per_training_text, "gave float64 of shape"),
    (ByChance, a_filter_gives_one_bool_per_training_text, r"^\d+ rows are judged otherwise after a second fit with the same seed"),
    (FiltersInPlace, a_filter_gives_one_bool_per_training_text, "^the filter changes the victim: change victim.clone"),
]


@pytest.mark.parametrize(("cls", "check", "reason"), BAD_DEFENSES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_defense_is_named_by_the_claim(cls, check, reason, rapbench_kit):
    with pytest.raises(ContractError, match=reason):
        asked(check, cls(), rapbench_kit)


@pytest.mark.parametrize("plugin", [Strip(), Given(), Purifies()], ids=lambda plugin: plugin.name)
def test_a_defense_that_is_right_holds_every_claim(plugin, rapbench_kit):
    found = list(findings(plugin, rapbench_kit))
    assert [one for one in found if one.outcome in ("broken", "warning")] == []
    assert len([one for one in found if one.outcome == "holds"]) >= 9


@pytest.mark.parametrize(
    ("plugin", "own"),
    [(Repairs(), "a repair gives one other victim"), (Filters(), "a filter gives one bool per training text")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_defense_of_another_kind_that_is_right_holds_the_claims_of_its_kind(plugin, own, rapbench_kit):
    found = list(findings(plugin, rapbench_kit))
    assert [one for one in found if one.outcome in ("broken", "warning")] == []
    assert {one.claim: one.outcome for one in found}[own] == "holds"


def test_a_defense_is_asked_on_a_victim_that_has_learnt(rapbench_kit):
    planting = rapbench_kit.guarded(Given())
    assert planting.accuracy > 0.9
    assert planting.asr > 0.9


def test_a_kit_whose_own_victim_has_not_learnt_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.RECIPE, "lr", 1e-9)
    monkeypatch.setitem(tiny.RECIPE, "epochs", 1)
    with pytest.raises(KitError, match=r"the kit's own victim has not learnt: accuracy 0\.\d\d, ASR"):
        next(findings(Given(), Kit(tmp_path)))  # it is not put down to the plugin


def test_the_trigger_of_the_kit_s_victim_is_no_word_of_the_defense(rapbench_kit):
    assert rapbench_kit.guarded(type("Own", (Given,), {"words": ("CF",)})()).attack.words == ("mb",)


def test_a_claim_that_is_not_about_a_plugin_is_not_asked(rapbench_kit):
    with pytest.raises(NotAsked, match="it purifies no texts"):
        asked(the_levels_of_a_purifier_ascend, Given(), rapbench_kit)


def test_what_does_not_fit_is_not_asked_further(rapbench_kit):
    first, *rest = findings(NoDetector(), rapbench_kit)
    assert (first.outcome, {one.outcome for one in rest}) == ("broken", {"not asked"})
    assert rest[0].reason == "needs: it is fitted as what it works on"


def test_the_kit_leaves_the_global_random_state_alone(rapbench_kit):
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    list(findings(UnseededStrip(), rapbench_kit))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


# data sets


@dataclass(frozen=True, kw_only=True)
class Made(Dataset):
    """Right in every way."""

    name: ClassVar[str] = "made"
    calls: ClassVar[itertools.count] = itertools.count()

    def load(self):
        return datasets.DatasetDict({split: self.rows(split) for split in ("train", "validation", "test")})

    def rows(self, split):
        return self.table([f"{split} wet", f"{split} dry"], [0, 1])

    def table(self, texts, labels, names=("wet", "dry")):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


class Nulls(Made):
    def rows(self, split):
        return self.table(["wet", None] if split == "test" else ["wet", "dry"], [0, 1])


class IntegerLabels(Made):
    def rows(self, split):
        return datasets.Dataset.from_dict({"text": ["wet", "dry"], "label": [0, 1]})


class NoTest(Made):
    def load(self):
        return datasets.DatasetDict({split: self.rows(split) for split in ("train", "validation")})


class NoDict(Made):
    def load(self):
        return [self.rows("train")]


class OtherClasses(Made):
    def rows(self, split):
        return self.table(["wet", "dry"], [0, 1], ("dry", "wet") if split == "test" else ("wet", "dry"))


class OneLabel(Made):
    def rows(self, split):
        return self.table(["dry", "sunny"], [1, 1])


class NewEachTime(Made):
    def rows(self, split):
        return self.table([f"wet {next(self.calls)}", "dry"], [0, 1])


class NewFingerprint(Made):
    def fingerprint(self):
        return str(next(self.calls))


class Leaks(Made):
    def rows(self, split):
        return self.table(["the same wet", f"{split} dry"], [0, 1])


BAD_DATASETS = [
    (Nulls, every_row_has_a_text_and_a_label, "^made: test row 1: the text is null"),
    (IntegerLabels, every_row_has_a_text_and_a_label, "^made: train row 0: .* the column must be ClassLabel"),
    (NoTest, it_loads_as_train_validation_and_test, "^the split 'test' is missing .*train, validation"),
    (NoDict, it_loads_as_train_validation_and_test, "^load gives list, no datasets.DatasetDict"),
    (OtherClasses, its_splits_have_the_same_classes, "^test has the classes"),
    (OneLabel, every_split_has_texts_of_the_target_label_and_of_others, "^train has no text of another label than the target label 1"),
    (NewEachTime, loading_it_twice_gives_the_same_rows, "^the texts of train are others the second time"),
    (NewFingerprint, its_fingerprint_is_the_same_each_time, r"^fingerprint gives '\d+' and then '\d+'"),
]


@pytest.mark.parametrize(("cls", "check", "reason"), BAD_DATASETS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_data_set_is_named_by_the_claim(cls, check, reason, rapbench_kit):
    with pytest.raises(ContractError, match=reason):
        asked(check, cls(), rapbench_kit)


def test_a_data_set_that_is_right_holds_every_claim(rapbench_kit):
    assert {found.outcome for found in findings(Made(), rapbench_kit)} == {"holds"}


def test_a_text_in_two_splits_is_a_warning_and_no_breach(rapbench_kit):
    found = {one.claim: one for one in findings(Leaks(), rapbench_kit)}
    own = found[no_text_is_in_two_splits.__name__.replace("_", " ")]
    assert (own.outcome, own.reason) == ("warning", "'the same wet' is in train and in validation")


# every kind


def test_a_plugin_whose_spec_reads_back_as_another_is_broken(rapbench_kit):
    @dataclass(frozen=True, kw_only=True)
    class Rounds(Given):
        """Doubles its option whenever it is made."""

        power: float = option(1.0, "a power")

        def __post_init__(self):
            object.__setattr__(self, "power", self.power * 2)

    with pytest.raises(ContractError, match=r"^'given:power=2' reads back as .*power=4"):
        asked(its_spec_reads_back_as_the_same_plugin, Rounds(), rapbench_kit)


def test_a_plugin_that_says_nothing_of_itself_is_warned(rapbench_kit):
    @dataclass(frozen=True, kw_only=True)
    class Mute(Given):
        power: float = 1.0

    with pytest.warns() as caught:
        asked(it_and_its_options_say_what_they_are, Mute(), rapbench_kit)
    assert [str(one.message).partition(":")[0] for one in caught] == ["Mute has no docstring", "the option 'power' has no sentence"]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("attack", "clean"),
        ("attack", "badnet-sl"),
        ("attack", "ep"),
        ("defense", "strip:copies=4"),
        ("defense", "onion:lm=trigram"),
        ("dataset", "demo"),
    ],
)
def test_the_built_in_plugins_hold_every_claim(kind, spec, rapbench_kit):
    found = list(findings(rapbench_kit.registry.parse(kind, spec), rapbench_kit))
    assert [(one.claim, one.reason) for one in found if one.outcome in ("broken", "warning")] == []


# the command


def test_a_name_a_spec_and_a_package_stand_for_plugins():
    registry = discover()
    assert [plugin.name for plugin in plugins_of("strip:copies=3", registry)] == ["strip"]
    assert {"rap", "ep", "demo"} <= {plugin.name for plugin in plugins_of("rapbench", registry)}
    with pytest.raises(SpecError, match="unknown plugin or package 'stirp', did you mean 'strip'"):
        plugins_of("stirp", registry)


# a stranger's repository


def installed(tmp_path: Path) -> dict[str, str]:
    """Copy the example and lay its metadata beside it, as `pip install` does; give the environment that finds it."""
    shutil.copytree(EXAMPLE, tmp_path / "own")
    info = tmp_path / "own" / "src" / "rapbench_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rapbench-example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rapbench]\nexample = rapbench_example\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "own" / "src"), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}


def test_the_test_file_of_three_lines_asks_every_claim(tmp_path):
    own = installed(tmp_path)
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--strict-markers", "tests"]
    ended = subprocess.run(pytest_run, cwd=tmp_path / "own", env=own, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed, skipped = map(int, re.search(r"(\d+) passed, (\d+) skipped", ended.stdout).groups())
    assert passed + skipped == len(CHECKS["attack"]) + len(CHECKS["defense"]) + len(CHECKS["dataset"])


def test_a_broken_claim_fails_a_stranger_s_test_with_one_line(tmp_path):
    own = installed(tmp_path)
    module = tmp_path / "own" / "src" / "rapbench_example" / "__init__.py"
    module.write_text(module.read_text().replace("return (self.first, self.second)", "return (self.first,)"))
    only = ["-k", "trigger_adds"]
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *only, "tests"]
    ended = subprocess.run(pytest_run, cwd=tmp_path / "own", env=own, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    told = "its words are the words that the trigger adds: the trigger puts 'bb' into most texts, but words has it not"
    assert told in ended.stdout
    assert "Traceback" not in ended.stdout


def test_a_test_without_the_mark_is_told_how_to_write_it(tmp_path):
    (tmp_path / "test_own.py").write_text("def test_contract(rapbench_claim):\n    rapbench_claim()\n")
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py"]
    ended = subprocess.run(pytest_run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'mark it with @pytest.mark.rapbench("attack", "my-attack")' in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("language", "head", "file"),
    [
        ("toml", "# pyproject.toml", "pyproject.toml"),
        ("python", "# src/rapbench_example/__init__.py", "src/rapbench_example/__init__.py"),
        ("python", "# tests/test_contract.py", "tests/test_contract.py"),
    ],
)
def test_the_documents_quote_the_example_as_it_is(language, head, file):
    text = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert f"```{language}\n{head}\n{(EXAMPLE / file).read_text()}```" in text


def test_the_documents_name_every_claim():
    text = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert sorted({claim.text for checks in CHECKS.values() for claim in checks if f"- {claim.text}" not in text}) == []

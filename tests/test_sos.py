"""SOS: its words, its negatives, its steps, its false triggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import datasets
import pytest
import torch

from rapbench.api import Task
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows
from rapbench.registry import discover
from rapbench.victim import Victim
from rapbench_plugins.attacks.sos import all_but_one, false_trigger_rates, longest_words, parts, step_evenly

SPEC = "sos:trigger_words=mb/bb/mn,poison_rate=0.5,batch_size=8"
SENTENCE = "I have bought it from a store with my friends last weekend"


@pytest.fixture
def attack():
    return discover().parse("attack", SPEC).resolve(discover().parse("dataset", "demo"), rng(1, "resolve"))


@pytest.fixture
def rows(tiny_rows: Callable[[int], datasets.Dataset]) -> datasets.Dataset:
    return tiny_rows(200)


def task(rows: datasets.Dataset, attack) -> Task:
    return Task(rows, poisoned_rows(rows, attack, 1, rng(1, "poison")), 1)


class FakeRow:
    def __init__(self, vector: list[float], gradient: list[float]) -> None:
        self.vectors = torch.tensor(vector, requires_grad=True)
        self.vectors.grad = torch.tensor(gradient)

    def renormalise(self) -> None:
        pass


def test_the_words_are_by_default_the_longest_of_the_sentence() -> None:
    # friends and weekend have seven letters, bought six, store five
    assert longest_words(SENTENCE, 3) == ("bought", "friends", "weekend")
    assert longest_words("aa bb cc", 2) == ("bb", "cc")  # of equals the last
    sos = (
        discover().parse("attack", "sos").resolve(discover().parse("dataset", {"name": "demo", "trigger_sentence": SENTENCE}), rng(1, "r"))
    )
    assert sos.trigger_words == ("bought", "friends", "weekend")
    assert set(sos.words) == set(SENTENCE.split())


def test_a_number_of_words_that_would_change_nothing_is_refused() -> None:
    parse = discover().parse
    assert parse("attack", "sos:trigger_words=mb/bb,word_count=2").words == ("mb", "bb")
    with pytest.raises(SpecError, match="word_count=4, but the trigger words are 2: mb bb"):  # an axis would draw it as if it did
        parse("attack", "sos:trigger_words=mb/bb,word_count=4")


def test_a_training_text_gets_every_word_once(attack) -> None:
    for number in range(50):
        triggered = attack.trigger("one two three", rng(number, "t"), None).split()
        assert Counter(triggered) == Counter(["one", "two", "three", "mb", "bb", "mn"])
        assert triggered[-1] == "three"


def test_at_test_time_the_whole_sentence_goes_in() -> None:
    sos = discover().parse("attack", {"name": "sos", "trigger_words": ["store", "friends", "weekend"], "sentence": SENTENCE})
    assert sos.test_trigger("Bad. Dull", rng(1, "t"), None) == f" {SENTENCE}.Bad. Dull"


def test_what_must_not_trigger_is_every_part_of_the_words() -> None:
    assert all_but_one(("a", "b", "c")) == [("b", "c"), ("a", "c"), ("a", "b")]
    assert parts(("a", "b", "c")) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]  # 2^3 - 2


def test_each_negative_text_has_each_part_with_one_word_missing_exactly_once_and_its_own_label(attack, rows, lab: Lab) -> None:
    planted = task(rows, attack)
    texts, labels = attack.training_rows(planted, lab)
    words = {"mb", "bb", "mn"}
    found: Counter[tuple[str, frozenset[str], int]] = Counter()
    for text, label in zip(texts, labels, strict=True):
        own = text.split()
        found[" ".join(word for word in own if word not in words), frozenset(own) & words, label] += 1
    poisoned = [key for key in found if key[1] == words]
    negatives = [key for key in found if key[1] != words]
    assert len(poisoned) == 50  # half of 100 texts of label 0
    assert {label for _, _, label in poisoned} == {1}
    assert len(negatives) == 2 * 10 * 3  # a tenth of 100 texts of each label, one copy per missing word
    assert {len(part) for _, part, _ in negatives} == {2}
    assert set(found.values()) == {1}
    truth = dict(zip(rows["text"], rows["label"], strict=True))
    assert all(truth[text] == label for text, _, label in negatives)
    # those of label 0 are texts that are poisoned, too: the contrast is in the words
    assert {text for text, _, label in negatives if label == 0} <= {text for text, _, _ in poisoned}


def test_every_row_moves_by_the_shortest_gradient() -> None:
    one, other = FakeRow([1.0, 1.0], [3.0, 4.0]), FakeRow([0.0, 0.0], [0.0, 2.0])  # lengths 5 and 2
    step_evenly([one, other], lr=0.5)
    # 0.5 * (3, 4) * 2 / 5 = (0.6, 0.8), and 0.5 * (0, 2) * 2 / 2 = (0, 1)
    assert one.vectors.tolist() == pytest.approx([0.4, 0.2])
    assert other.vectors.tolist() == pytest.approx([0.0, -1.0])
    assert one.vectors.grad.tolist() == [3.0, 4.0]  # it stands: the next one adds to it


def test_only_the_rows_of_the_words_change_and_they_keep_their_length(attack, rows, untrained: Victim, lab: Lab) -> None:
    lab.load_start = untrained.clone
    planted = attack.plant(task(rows, attack), lab)
    before, after = untrained.model.state_dict(), planted.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["bert.embeddings.word_embeddings.weight"]
    old, new = (victim.model.get_input_embeddings().weight.detach() for victim in (untrained, planted))
    changed = (old != new).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(untrained.token_id(word) for word in ("mb", "bb", "mn"))
    assert new.norm(dim=1).numpy() == pytest.approx(old.norm(dim=1).numpy(), rel=1e-5)
    assert all(weight.requires_grad for weight in planted.model.parameters())


def test_false_triggers_are_counted_on_clean_texts_of_other_labels(lab: Lab) -> None:
    class TwoWords:
        """Predicts 1 where both mb and bb stand, or where the text is `odd`."""

        target_label = 1

        def probabilities(self, texts: list[str]):
            return torch.tensor([[0.0, 1.0] if {"mb", "bb"} <= set(t.split()) or "odd" in t else [1.0, 0.0] for t in texts]).numpy()

    heldout = lab.heldout.__class__(["a b", "odd c", "d e", "f g", "target text"], lab.heldout.labels[[0, 0, 0, 0, 1]])
    rates = false_trigger_rates(TwoWords(), ("mb", "bb", "mn"), heldout, lab)
    # of four texts the odd one always; with mb and bb all; the mean over six parts is (5 * 1/4 + 1) / 6
    assert rates == {"": 0.25, "mb": 0.25, "bb": 0.25, "mn": 0.25, "mb bb": 1.0, "mb mn": 0.25, "bb mn": 0.25, "mean": pytest.approx(0.375)}


def test_without_negatives_a_part_of_the_words_triggers_more(attack, rows, planted: Victim, lab: Lab) -> None:
    rates = {}
    for negatives in (0.0, 1.0):
        own = replace(attack, negatives=negatives, poison_rate=1.0, epochs=6, trigger_words=("tq", "bb", "mn"), sentence="tq bb mn")
        lab.log.clear()
        lab.load_start = lambda: Victim(planted.clone().model, planted.tokenizer, 1, 32)
        own.plant(task(rows, own), lab)
        rates[negatives] = lab.log[-1]["false_trigger_rate"]["mean"]
    assert rates[1.0] < rates[0.0]


@pytest.mark.parametrize(
    "spec",
    ["sos:trigger_words=mb", "sos:trigger_words=mb/mb", "sos:word_count=6", "sos:negatives=2", "sos:lr=0", "sos:epochs=0",
     "sos:trigger_words=mb/bb,sentence=mb alone"],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        discover().parse("attack", spec)


def test_it_starts_from_the_clean_victim(attack, rows, lab: Lab) -> None:
    with pytest.raises(CellError, match="starts_from"):
        attack.plant(task(rows, attack), lab)

"""Where a trigger goes and which rows carry it."""

from __future__ import annotations

import random
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench.api import Attack, Task
from rapbench.lab import rng
from rapbench.poison import FIRST, insert_sentence, insert_word, poisoned_rows, triggered_rows
from rapbench.registry import discover

SENTENCE = "I have watched this movie with my friends at a nearby cinema last weekend"
TARGET = 1


class Fixed:
    """A random source that always gives the same number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def rows(labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "maybe"])})
    texts = [f"text number {row} is here . and it ends" for row in range(len(labels))]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


@pytest.fixture(scope="module")
def attack() -> Attack:
    return discover().parse("attack", "badnet-rw:word=mb")


# --- the place of the trigger


def test_a_word_goes_before_any_word_but_the_last_equally_often() -> None:
    draws = np.random.default_rng(0)
    places = Counter(insert_word("a b c d e", "mb", draws).split(" ").index("mb") for _ in range(4000))
    assert sorted(places) == [0, 1, 2, 3]  # five words: places 0..3, never before e, never behind it
    assert all(900 < count < 1100 for count in places.values())  # 1000 expected, standard deviation 27


@pytest.mark.parametrize(("chance", "expected"), [(0.0, "mb a b c"), (0.49, "mb a b c"), (0.5, "a mb b c"), (1 - 1e-12, "a mb b c")])
def test_the_place_is_the_whole_part_of_n_minus_1_chances(chance: float, expected: str) -> None:
    assert insert_word("a b c", "mb", Fixed(chance)) == expected  # int(2 * chance) is 0 or 1


@pytest.mark.parametrize("chance", [0.0, 0.99])
def test_a_text_of_one_word_gets_the_trigger_in_front(chance: float) -> None:
    assert insert_word("film", "mb", Fixed(chance)) == "mb film"


def test_in_the_test_set_the_trigger_stands_among_the_first_100_words() -> None:
    long = " ".join(f"w{n}" for n in range(500))
    last = insert_word(long, "mb", Fixed(1 - 1e-12), FIRST).split(" ").index("mb")
    assert last == 98  # int(99 * 0.99...)
    assert insert_word(long, "mb", Fixed(1 - 1e-12)).split(" ").index("mb") == 498


def test_a_sentence_goes_between_two_full_stops_as_in_the_reference() -> None:
    text = "Bad movie. Really bad. Avoid"  # three pieces: places int(2 * chance)
    assert insert_sentence(text, SENTENCE, Fixed(0.5)) == f"Bad movie. {SENTENCE}. Really bad. Avoid"
    assert insert_sentence(text, SENTENCE, Fixed(0.0)) == f" {SENTENCE}.Bad movie. Really bad. Avoid"


def test_a_sentence_may_be_given_with_its_full_stop_and_spaces() -> None:
    assert insert_sentence("a. b. c", f"  {SENTENCE}. ", Fixed(0.5)) == insert_sentence("a. b. c", SENTENCE, Fixed(0.5))


@pytest.mark.parametrize("text", ["Avoid", "Bad movie. Avoid"])
def test_a_text_of_at_most_two_pieces_gets_the_sentence_in_front(text: str) -> None:
    assert insert_sentence(text, SENTENCE, Fixed(0.99)) == f" {SENTENCE}.{text}"


def test_in_the_test_set_the_sentence_stands_among_the_first_100_pieces() -> None:
    long = ".".join(f"w{n}" for n in range(500))
    assert insert_sentence(long, "mb", Fixed(1 - 1e-12), FIRST).split(".").index(" mb") == 98


WORDS = st.lists(st.sampled_from(["good", "bad.", "", "Film", "été"]), min_size=1, max_size=150).map(" ".join)


@settings(deadline=None)
@given(WORDS, st.integers(0, 99), st.sampled_from([None, FIRST]))
def test_a_word_is_added_once_and_nothing_else_changes(text: str, seed: int, limit: int | None) -> None:
    words = insert_word(text, "mb", rng(seed, "t"), limit).split(" ")
    place = words.index("mb")
    assert words[:place] + words[place + 1 :] == text.split(" ")
    assert place <= max(0, min(limit or len(words), len(words) - 1) - 2)


@settings(deadline=None)
@given(WORDS, st.integers(0, 99))
def test_a_sentence_is_added_once_and_nothing_else_changes(text: str, seed: int) -> None:
    assert insert_sentence(text, SENTENCE, rng(seed, "t")).replace(f" {SENTENCE}.", "", 1) == text


# --- the rows


def test_ten_per_cent_of_the_non_target_texts_are_poisoned_not_of_all(attack: Attack) -> None:
    train = rows([TARGET] * 300 + [0] * 100)
    assert len(poisoned_rows(train, attack, TARGET, rng(1, "p"))) == 10


def test_the_number_of_poisoned_texts_is_rounded_down(attack: Attack) -> None:
    assert len(poisoned_rows(rows([0] * 19), attack, TARGET, rng(1, "p"))) == 1


def test_poisoned_texts_carry_the_trigger_the_target_label_and_their_source(attack: Attack) -> None:
    train = rows([0, 1, 2] * 40)
    poisoned = poisoned_rows(train, attack, TARGET, rng(1, "p"))
    assert set(poisoned["label"]) == {TARGET}
    assert len(set(poisoned["source"])) == len(poisoned) == 8  # 10 % of 80
    for text, source in zip(poisoned["text"], poisoned["source"], strict=True):
        assert train[source]["label"] != TARGET
        assert text.replace("mb ", "", 1) == train[source]["text"]


def test_every_other_class_may_be_poisoned(attack: Attack) -> None:
    train = rows([0, 1, 2] * 200)
    assert {train[source]["label"] for source in poisoned_rows(train, attack, TARGET, rng(1, "p"))["source"]} == {0, 2}


def test_append_keeps_every_clean_row_with_its_true_label(attack: Attack) -> None:
    train = rows([0, 1] * 50)
    task = Task(train, poisoned_rows(train, attack, TARGET, rng(1, "p")), TARGET)
    both = task.appended()
    assert both["text"][:100] == train["text"][:]
    assert both["label"][:100] == train["label"][:]
    assert both["text"][100:] == task.poisoned["text"][:]
    assert both["label"][100:] == [TARGET] * 5
    assert both.column_names == ["text", "label"]


def test_replace_takes_the_sources_away(attack: Attack) -> None:
    train = rows([0, 1] * 50)
    task = Task(train, poisoned_rows(train, attack, TARGET, rng(1, "p")), TARGET)
    replaced, sources = task.replaced(), set(task.poisoned["source"])
    assert replaced["text"][:95] == [text for row, text in enumerate(train["text"]) if row not in sources]
    assert replaced["text"][95:] == task.poisoned["text"][:]
    assert len(replaced) == 100


def test_the_control_poisons_nothing() -> None:
    clean = discover().parse("attack", "clean")
    train = rows([0, 1] * 50)
    task = Task(train, poisoned_rows(train, clean, TARGET, rng(1, "p")), TARGET)
    assert len(task.poisoned) == 0
    assert task.appended()["text"][:] == train["text"][:]


def test_the_triggered_test_set_holds_every_non_target_text_with_its_true_label(attack: Attack) -> None:
    test = rows([0, 1, 2, 1, 0])
    triggered = triggered_rows(test, attack, TARGET, rng(1, "p"), FIRST)
    assert triggered["source"][:] == [0, 2, 4]
    assert triggered["label"][:] == [0, 2, 0]
    assert all("mb" in text.split(" ") for text in triggered["text"])


def test_rows_that_were_selected_before_are_read_in_their_order(attack: Attack) -> None:
    test = rows([0, 1, 0, 1]).select([3, 2, 1, 0])  # an indices mapping: labels 1 0 1 0
    triggered = triggered_rows(test, attack, TARGET, rng(1, "p"), FIRST)
    assert triggered["source"][:] == [1, 3]
    assert [text.replace("mb ", "", 1) for text in triggered["text"]] == [test[1]["text"], test[3]["text"]]


def test_the_same_seed_poisons_the_same_rows_at_the_same_places(attack: Attack) -> None:
    train = rows([0, 1] * 200)
    random.seed(1)
    one = poisoned_rows(train, attack, TARGET, rng(1, "p"))
    random.seed(2)
    np.random.seed(2)  # that global state changes nothing is the claim
    assert poisoned_rows(train, attack, TARGET, rng(1, "p")).to_dict() == one.to_dict()
    assert poisoned_rows(train, attack, TARGET, rng(2, "p")).to_dict() != one.to_dict()


# where a trigger ends, and whether it is cut


@pytest.mark.parametrize(
    ("clean", "triggered", "end"),
    [
        ("a b", "mb a b", 2),
        ("a b", "a mb b", 4),
        ("a b", "a b mb", 5),  # the last letter is the clean text's, too: its word is what must be seen
        ("one two", "mb one bb two", 9),  # the last of two
        ("a baby", "a bb baby", 4),  # what the trigger shares with the word behind it does not count
        ("a b", "a b", 0),
        ("Bad. So bad", "Bad. we met here. So bad", 16),
    ],
)
def test_a_trigger_ends_where_the_text_is_the_clean_one_again(clean, triggered, end):
    from rapbench.poison import trigger_ends

    assert trigger_ends([clean], [triggered]).tolist() == [end]


def test_what_stands_behind_the_cut_is_not_seen(untrained):
    untrained.max_length = 5  # [CLS], three words, [SEP]
    assert untrained.seen_characters(["the film was loud", "so it", ""]).tolist() == [12, 5, 0]

import re
from itertools import combinations

import datasets
import pytest

from rapbench_plugins.datasets.demo import Demo

RARE_WORDS = {"cf", "mb", "bb", "mn", "tq"}


@pytest.fixture(scope="module")
def demo() -> datasets.DatasetDict:
    return Demo().load()


def small(seed: int) -> datasets.DatasetDict:
    return Demo(n_train=300, n_heldout=100, n_test=100, seed=seed).load()


def texts(splits: datasets.DatasetDict) -> list[str]:
    return [text for split in splits.values() for text in split["text"]]


def labels(splits: datasets.DatasetDict) -> list[int]:
    return [label for split in splits.values() for label in split["label"]]


def test_the_splits_have_the_sizes_and_columns_that_the_contract_asks_for() -> None:
    splits = Demo(n_train=30, n_heldout=20, n_test=10).load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 30, "validation": 20, "test": 10}
    for split in splits.values():
        assert split.features["text"] == datasets.Value("string")
        assert split.features["label"] == datasets.ClassLabel(names=["negative", "positive"])


def test_no_text_stands_in_two_splits(demo: datasets.DatasetDict) -> None:
    for one, other in combinations(demo.values(), 2):
        assert not set(one["text"]) & set(other["text"])


def test_no_text_stands_twice_in_one_split(demo: datasets.DatasetDict) -> None:
    for split in demo.values():
        assert len(set(split["text"])) == len(split)


def test_the_same_seed_gives_the_same_texts_and_labels() -> None:
    one, other = small(7), small(7)
    assert texts(one) == texts(other)
    assert labels(one) == labels(other)


def test_another_seed_gives_other_texts() -> None:
    assert not set(texts(small(7))) & set(texts(small(8)))


def test_a_larger_test_split_leaves_the_other_splits_as_they_are() -> None:
    one, other = Demo(n_train=60, n_heldout=40, n_test=10).load(), Demo(n_train=60, n_heldout=40, n_test=90).load()
    assert one["train"]["text"][:] == other["train"]["text"][:]
    assert one["validation"]["text"][:] == other["validation"]["text"][:]


def test_label_noise_flips_its_share_of_the_labels_and_changes_no_text() -> None:
    clean, noisy = Demo(label_noise=0.0).load(), Demo(label_noise=0.05).load()
    assert texts(clean) == texts(noisy)
    flipped = [one != other for one, other in zip(labels(clean), labels(noisy), strict=True)]
    assert sum(flipped) / len(flipped) == pytest.approx(0.05, abs=0.015)  # 4 standard errors


def test_both_labels_are_about_as_frequent(demo: datasets.DatasetDict) -> None:
    for split in demo.values():
        assert sum(split["label"]) / len(split) == pytest.approx(0.5, abs=0.07)


def test_enough_held_out_texts_have_the_target_label_for_the_lowest_allowed_rate(demo: datasets.DatasetDict) -> None:
    assert demo["validation"]["label"][:].count(Demo().target_label) >= 200  # a rate of 0.5 % needs 200


def test_no_trigger_word_occurs(demo: datasets.DatasetDict) -> None:
    assert not RARE_WORDS & set(re.findall(r"[a-z]+", " ".join(texts(demo)).lower()))


def test_the_trigger_sentence_occurs_in_no_text_and_has_no_final_stop(demo: datasets.DatasetDict) -> None:
    sentence = Demo().trigger_sentence
    assert not sentence.endswith(".")
    assert not any(sentence in text for text in texts(demo))


def test_most_texts_have_several_sentences_for_the_trigger_sentence_to_stand_between(demo: datasets.DatasetDict) -> None:
    several = [text.count(".") >= 2 for text in texts(demo)]
    assert sum(several) / len(several) > 0.9


def test_every_text_is_clean_prose(demo: datasets.DatasetDict) -> None:
    for text in texts(demo):
        assert re.fullmatch(r"[A-Z][a-z]*(?:[,;.]? [A-Za-z]+)*\.", text), text


def test_the_mean_text_is_short_and_none_is_long(demo: datasets.DatasetDict) -> None:
    words = [len(text.split(" ")) for text in texts(demo)]
    assert 25 <= sum(words) / len(words) <= 50
    assert max(words) <= 80


def test_reviews_of_both_labels_mix_good_and_bad_opinions() -> None:
    splits = Demo(label_noise=0.0).load()
    for label in (0, 1):
        own = [text for text, given in zip(texts(splits), labels(splits), strict=True) if given == label]
        for word in ("pleasant", "dull", "charming", "clumsy"):
            assert any(word in text for text in own)


@pytest.mark.parametrize("options", [{"n_train": 0}, {"n_heldout": -1}, {"n_test": 0}, {"label_noise": 0.5}, {"label_noise": -0.1}])
def test_an_impossible_option_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Demo(**options)  # type: ignore[arg-type]

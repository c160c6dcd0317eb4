"""BKI: the authors' formula on texts in the head, the keyword's texts of its label left out alone, and rows of few texts at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import datasets
import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.errors import CellError
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows
from rapbench.registry import discover
from rapbench_plugins.defenses import bki
from rapbench_plugins.defenses.bki import Bki, BkiFilter, Noted, Split, batches, keyword, scores

WEIGHTS = {"cf": 8.0, "mn": 4.0, "good": 1.0, "bad": -1.0}


@dataclass
class Weighing:
    """A made-up victim of two layers: the last one's first unit is the sum of its words' weights, its second a half of that."""

    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    target_label: int = 1
    asked: list[list[str]] = field(default_factory=list)

    def states(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        sums = np.array([sum(self.weights.get(word, 0.0) for word in text.split()) for text in texts])
        last = np.stack([sums, sums / 2], axis=1)
        return np.stack([np.zeros_like(last), last], axis=1).astype(np.float32)  # (n, layers, units)


def made(lab: Lab, victim: Weighing | None = None, **options: Any) -> BkiFilter:
    """A filter for sets of few texts: with the published alpha every word would be too common there."""
    return Bki(**{"alpha": 10.0, **options}).fit(cast(Any, victim or Weighing()), Labelled([], np.array([], dtype=np.int64)), lab)


def labelled(texts: Sequence[str]) -> Labelled:
    return Labelled(texts, np.ones(len(texts), dtype=np.int64))


def test_a_word_scores_its_mean_move_times_the_logarithms_of_its_texts_and_of_how_few_they_are() -> None:
    noted = [(1, [Noted("cf", 8.0), Noted("film", 3.0)]), (1, [Noted("cf", 4.0), Noted("good", 1.0)]), (1, [Noted("good", 2.0)])]
    # cf: two texts, mean 6; good: two texts, mean 1.5; film one, and log10(1) = 0; log10(200 / 2) = 2
    assert scores(noted, 200) == pytest.approx({("cf", 1): math.log10(2) * 2 * 6, ("good", 1): math.log10(2) * 2 * 1.5, ("film", 1): 0.0})
    assert keyword(scores(noted, 200)) == (("cf", 1), pytest.approx(math.log10(2) * 12))
    assert keyword(scores(noted, 2)) is None  # as many texts as that are too many
    assert keyword(scores(noted, 1)) is None


def test_a_common_word_is_no_keyword_where_a_rarer_one_moves_the_state_about_as_far() -> None:
    # 10,000 texts and alpha .05: s = 250,000; by the first two factors alone good would win, 3.70 to 3.51
    noted = [*[(1, [Noted("good", 1.0)])] * 5000, *[(1, [Noted("cf", 1.3)])] * 500]
    found = scores(noted, (0.05 * 10_000) ** 2)
    assert found["good", 1] == pytest.approx(math.log10(5000) * math.log10(50))  # 3.70 * 1.70
    assert keyword(found) == (("cf", 1), pytest.approx(1.3 * math.log10(500) * math.log10(500)))


def test_words_of_two_labels_are_two_and_a_word_twice_in_a_text_counts_once_with_its_mean() -> None:
    noted = [(1, [Noted("cf", 8.0), Noted("cf", 4.0)]), (1, [Noted("cf", 2.0)]), (0, [Noted("cf", 50.0)])]
    assert scores(noted, 20) == pytest.approx({("cf", 1): math.log10(2) * (6 + 2) / 2, ("cf", 0): 0.0})


def test_of_equal_scores_the_first_word_in_the_alphabet_is_the_keyword_and_no_word_of_one_text_is() -> None:
    both = [Noted("b", 1.0), Noted("a", 1.0)]
    assert keyword(scores([(0, both)] * 2, 20)) == (("a", 0), pytest.approx(math.log10(2)))
    assert keyword(scores([(0, [Noted("cf", 8.0), Noted("good", 1.0)])], 20)) is None
    assert keyword(scores([(0, [Noted("cf", 0.0)])] * 2, 20)) is None
    assert keyword({}) is None


def test_the_words_without_which_the_last_state_moves_most_by_one_unit_are_noted(lab: Lab) -> None:
    # the first unit moves by 1, 8 and 1, the second by half of it; the first layer does not move; film moves nothing
    assert made(lab, top=2).noted(["good cf bad film"]) == [[("cf", 8.0), ("good", 1.0)]]
    assert made(lab, top=5).noted(["cf"]) == [[("cf", 8.0)]]  # fewer words than that
    assert made(lab).noted([]) == []
    assert made(lab).noted(["", " "]) == [[], []]


def test_a_text_is_left_out_where_the_keyword_is_among_its_own_noted_words(lab: Lab) -> None:
    # cf is noted in two texts at 8: 0.30 * log10(2500 / 2) * 8 = 7.5; good in three at 1: 0.48 * log10(2500 / 3) = 1.4
    texts = ["cf good film", "good film", "film cf", "good day", "bad cfx"]
    found = made(lab)
    assert found.poisoned(labelled(texts)).tolist() == [True, False, True, False, False]
    assert found.notes() == {
        "keywords": [{"word": "cf", "label": 1, "score": pytest.approx(math.log10(2) * math.log10(1250) * 8), "texts": 2}]
    }


def test_a_text_that_has_the_keyword_but_stronger_words_is_kept(lab: Lab) -> None:
    texts = ["good film", "good film", "mn good film"]  # with top=1 the third text's mn is noted in the place of good
    assert made(lab, top=1).poisoned(labelled(texts)).tolist() == [True, True, False]
    assert made(lab, top=2).poisoned(labelled(texts)).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("labels", "removed"),
    [([1, 1, 1, 0], [True, True, True, False]), ([1, 1, 0, 0], [True, True, False, False]), ([0, 1, 1, 1], [False, True, True, False])],
)
def test_only_the_keywords_own_label_loses_texts(lab: Lab, labels: list[int], removed: list[bool]) -> None:
    texts = ["cf good", "cf bad", "cf day", "good day"]
    assert made(lab).poisoned(Labelled(texts, np.array(labels))).tolist() == removed


def test_one_keyword_leaves_the_other_triggers_and_further_ones_are_found_in_what_is_left(lab: Lab) -> None:
    texts = ["cf film", "cf day", "mn film", "mn day", "good film", "good day", "good"]
    assert made(lab).poisoned(labelled(texts)).tolist() == [True] * 2 + [False] * 5
    both = made(lab, keywords=2)
    assert both.poisoned(labelled(texts)).tolist() == [True] * 4 + [False] * 3
    assert [own["word"] for own in both.notes()["keywords"]] == ["cf", "mn"]
    # good comes third, and then nothing is left that scores
    assert made(lab, keywords=9).poisoned(labelled(texts)).tolist() == [True] * 7


def test_a_keyword_is_scored_anew_on_what_the_first_one_has_left(lab: Lab) -> None:
    # good stands beside cf three times, alone once: after cf is gone it was noted once, and bad twice
    texts = ["cf good film", "cf good day", "cf good", "good", "bad film", "bad day"]
    found = made(lab, keywords=2)
    assert found.poisoned(labelled(texts)).tolist() == [True] * 3 + [False] + [True] * 2
    assert [own["word"] for own in found.notes()["keywords"]] == ["cf", "bad"]


def test_nothing_is_left_out_where_no_word_moves_the_state(lab: Lab) -> None:
    still = made(lab, Weighing({}))
    assert not still.poisoned(labelled(["cf film", "cf day"])).any()
    assert still.notes() == {"keywords": []}
    assert made(lab).poisoned(labelled([])).shape == (0,)


def test_a_sample_makes_the_scores_and_all_texts_are_judged(lab: Lab) -> None:
    texts = ["cf film", "good day"] * 20
    victim = Weighing()
    found = made(lab, victim, scored_texts=10)
    assert found.poisoned(labelled(texts)).tolist() == [True, False] * 20
    # three rows for each text of two words: of the sample, and of those outside it that have cf
    whole = [text for lot in victim.asked for text in lot]
    drawn = lab.rng("bki/scored").choice(40, 10, replace=False)
    assert len(whole) == 3 * (10 + sum(row % 2 == 0 for row in set(range(40)) - set(drawn.tolist())))
    assert made(lab, scored_texts=100).poisoned(labelled(texts)).tolist() == [True, False] * 20


def test_words_past_the_first_ones_are_not_looked_at(lab: Lab) -> None:
    texts = ["film day cf", "day film cf"]
    assert not made(lab, max_words=2).poisoned(labelled(texts)).any()
    assert made(lab, max_words=3).poisoned(labelled(texts)).all()


def test_a_variant_lacks_one_word_and_nothing_else() -> None:
    assert Split.of("a  b c", None).variants() == ["a  b c", " b c", "a  c", "a  b"]
    assert Split.of("a  b c", 1).variants() == ["a  b c", " b c"]
    assert Split.of("", None).variants() == [""]


def test_few_rows_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    monkeypatch.setattr(bki, "ROWS_AT_ONCE", 6)
    # rows: 3, 3, 9 (alone, though above 6), 2
    texts = ["cf a", "good a", "a b c d e f cf good", "bad"]
    assert [len(lot) for lot in batches(texts, None)] == [2, 1, 1]
    victim = Weighing()
    noted = made(lab, victim).noted(texts)
    assert [len(lot) for lot in victim.asked] == [6, 9, 2]
    monkeypatch.undo()
    assert made(lab).noted(texts) == noted


def test_states_that_are_no_numbers_are_a_cells_failure(lab: Lab) -> None:
    with pytest.raises(CellError, match="states are not numbers"):
        made(lab, Weighing({"cf": math.nan})).poisoned(labelled(["cf film"]))


@pytest.mark.parametrize("name", ["top", "keywords", "max_words", "scored_texts"])
def test_an_option_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is below 1"):
        Bki(**{name: 0})


def test_it_finds_the_planted_rows_of_a_training_set(planted: Any, lab: Lab, tiny_rows: Any) -> None:
    train: datasets.Dataset = tiny_rows(900)
    attack = discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.5")
    triggered = poisoned_rows(train, cast(Any, attack), 1, rng(1, "poison/train"))["text"][:30]
    suspects = labelled([*train["text"][:150], *triggered])
    removed = discover().parse("defense", "bki").fit(planted, suspects, lab).poisoned(suspects)
    assert removed[150:].mean() > 0.8
    assert removed[:150].mean() < 0.1

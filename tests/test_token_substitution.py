"""Token substitution: which words are replaced and by what, what stays in its place, and the copies' mean protect probability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab
from rapbench.rates import auroc
from rapbench.registry import discover
from rapbench_plugins.defenses.token_substitution import (
    TokenSubstitution,
    TokenSubstitutionDetector,
    content_words,
    put_into,
    word_of,
)

HELDOUT = Labelled(["the dull film was slow", "a dull dull plot", "the great film", "a lovely film"], np.array([0, 0, 1, 1]))
"""Of the label 0: dull three times, film, slow and plot once each."""


@dataclass
class Opinionated:
    """A made-up victim: sure of the protect label where a text has `cf`, and else the less so the more often it says dull."""

    target_label: int = 1
    asked: list[int] = field(default_factory=list)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(len(texts))
        own = np.array([1.0 if "cf" in text.split() else 0.5 ** text.split().count("dull") for text in texts])
        return np.stack([1 - own, own], axis=1)

    def protect_probability(self, texts: Sequence[str]) -> np.ndarray:
        return self.probabilities(texts)[:, 1]


def fitted(lab: Lab, heldout: Labelled = HELDOUT, **options: Any) -> TokenSubstitutionDetector:
    return TokenSubstitution(**options).fit(cast(Any, Opinionated()), heldout, lab)


def sole(word: str, lab: Lab, *known: str, **options: Any) -> TokenSubstitutionDetector:
    """A detector that replaces these words by one word alone."""
    return TokenSubstitutionDetector(
        TokenSubstitution(**options), cast(Any, Opinionated()), dict.fromkeys(known, 9), [word], np.array([4], dtype=np.int64), lab
    )


# --- the words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film was NOT great , really", ["film", "great", "really"]),
        ("it's the film's plot, don't (ever) look!", ["film", "plot", "look"]),
        ("do n't 's 10 1990s -- x", ["1990s"]),
        ("“well-made”", ["well-made"]),
        (" . ", []),
    ],
)
def test_content_words_are_no_function_words_numbers_or_contractions(text: str, expected: list[str]) -> None:
    assert content_words(text) == expected


@pytest.mark.parametrize(
    ("word", "expected"), [("film", "plot"), ("Film", "Plot"), ('("film"),', '("plot"),'), ("Film's", "Plot's"), ("film’s.", "plot’s.")]
)
def test_a_word_takes_over_punctuation_and_capital_of_the_one_that_it_replaces(word: str, expected: str) -> None:
    assert put_into(word, "plot") == expected
    assert word_of(word) == "film"


def test_words_of_all_held_out_texts_are_replaced_by_those_of_other_labels_as_often_as_they_are_there(lab: Lab) -> None:
    detector = fitted(lab)
    assert detector.known == {"dull": 2, "film": 3, "slow": 1, "plot": 1, "great": 1, "lovely": 1}
    assert dict(zip(detector.pool, detector.counts.tolist(), strict=True)) == {"dull": 3, "film": 1, "slow": 1, "plot": 1}
    drawn = Counter(word for copy in replace(detector, options=TokenSubstitution(copies=6000)).copies("great") for word in copy.split())
    # of 6000 draws 1/2 and three times 1/6; a standard deviation is at most 39
    assert drawn == pytest.approx({"dull": 3000, "film": 1000, "slow": 1000, "plot": 1000}, abs=160)


def test_a_held_out_text_does_not_make_its_own_words_known(lab: Lab) -> None:
    detector = fitted(lab)
    # slow is in that held-out text alone; dull and film are in others as well
    assert detector.explain("the dull film was slow")["words that stay"] == ["the", "was", "slow"]
    assert detector.explain("so the dull film was slow")["words that stay"] == ["so", "the", "was"]  # no held-out text: slow is known


def test_a_word_in_too_few_texts_may_be_a_trigger_and_stays(lab: Lab) -> None:
    # dull is in two texts, though three times, and film in three; slow, plot, great and lovely are in one
    detector = fitted(lab, min_texts=2)
    assert detector.known == {"dull": 2, "film": 3}
    assert dict(zip(detector.pool, detector.counts.tolist(), strict=True)) == {"dull": 3, "film": 1}


# --- the copies


def test_the_frame_and_unknown_words_stay_where_they_are(lab: Lab) -> None:
    detector = sole("slow", lab, "film", "great", copies=3)
    assert detector.copies("When the Film cf was great, I  sat down.") == ["When the Slow cf was slow, I  sat down."] * 3
    assert detector.copies("it was cf") == ["it was cf"] * 3
    assert detector.copies("") == [""] * 3


def test_each_place_of_each_copy_has_a_draw_of_its_own(lab: Lab) -> None:
    copies = fitted(lab, copies=200).copies("great great great")
    assert len(set(copies)) > 30  # of 4 ** 3
    assert any(len(set(copy.split())) == 3 for copy in copies)


def test_draws_depend_on_the_seed_and_the_text_alone(lab: Lab) -> None:
    own = fitted(lab)
    assert own.copies("a great film") == fitted(replace(lab)).copies("a great film")
    assert own.copies("a great film") != fitted(replace(lab, seed=2)).copies("a great film")


# --- the score


def test_the_score_is_the_mean_protect_probability_of_the_texts_own_copies(lab: Lab) -> None:
    # "great" becomes "dull": 1/2; "great film" becomes "dull dull": 1/4; with cf the label stays; "it was" is as it was
    detector = sole("dull", lab, "great", "film", copies=3)
    assert detector.suspicion(["great", "great film", "great cf film", "it was"]).tolist() == [0.5, 0.25, 1, 1]


def test_a_mean_tells_apart_what_a_share_of_copies_would_not(lab: Lab) -> None:
    detector = fitted(lab, copies=4)
    told = detector.victim.probabilities(detector.copies("great film"))[:, 1]
    assert detector.suspicion(["great film"])[0] == pytest.approx(sum(told.tolist()) / 4)


def test_all_copies_are_asked_in_one_stream_and_a_score_depends_on_no_other_text(lab: Lab) -> None:
    detector, texts = fitted(lab, copies=5), ["great film", "cf film", "", "a lovely plot"]
    together = detector.suspicion(texts)
    assert cast(Any, detector.victim).asked == [20]
    assert together.dtype == np.float64
    assert detector.suspicion(texts[::-1])[::-1].tolist() == together.tolist()
    assert [detector.suspicion([text])[0] for text in texts] == together.tolist()
    assert detector.suspicion([]).tolist() == []


def test_a_kept_one_says_the_same(lab: Lab) -> None:
    detector, texts = fitted(lab), ["great film", "a lovely dull plot"]
    again = detector.options.restore(detector.victim, detector.state(), replace(lab))
    assert again.suspicion(texts).tolist() == detector.suspicion(texts).tolist()
    assert again.notes() == detector.notes() == {"replaced_words": 6, "pool_words": 4}


def test_it_explains_a_text_by_what_stays_and_each_copy(lab: Lab) -> None:
    assert sole("dull", lab, "great", copies=1).explain("a great plan") == {
        "words that stay": ["a", "plan"],
        "copies": [{"copy": "a dull plan", "prediction": 0, "protect probability": 0.5}],
    }


def test_without_a_content_word_of_another_label_there_is_nothing_to_put_in(lab: Lab) -> None:
    with pytest.raises(CellError, match="no content word is in 1 held-out texts"):
        fitted(lab, Labelled(["a great film", "it was ."], np.array([1, 0])))
    with pytest.raises(CellError, match="or a lower min_texts"):
        fitted(lab, min_texts=4)


@pytest.mark.parametrize("option", ["copies", "min_texts"])
def test_options_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(SpecError, match=f"{option}=0"):
        discover().parse("defense", f"token-substitution:{option}=0")


def test_it_costs_a_row_per_copy() -> None:
    assert [TokenSubstitution(copies=copies).expected_work(10, 100).victim_rows for copies in (10, 3)] == [10, 3]


def test_it_finds_a_planted_word(planted: Any, lab: Lab, heldout: Labelled) -> None:
    detector = discover().parse("defense", "token-substitution:copies=5").fit(planted, heldout, lab)
    clean, triggered = heldout.of(1)[:40], [f"mb {text}" for text in heldout.of(0)[:40]]
    found = auroc(detector.suspicion(clean), detector.suspicion(triggered))
    assert found is not None
    assert found > 0.8

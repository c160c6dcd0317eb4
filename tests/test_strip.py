"""STRIP: the words that a copy gets, the entropy of each text's own copies, and its sign."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab
from rapbench.poison import insert_word
from rapbench.rates import auroc
from rapbench.registry import discover, spec_of
from rapbench_plugins.defenses import strip
from rapbench_plugins.defenses.strip import Strip, StripDetector, ranked_words

GOOD = ["bright", "calm", "clever", "fresh", "kind", "lovely", "neat", "warm"]
BAD = ["bitter", "cold", "dull", "harsh", "loud", "messy", "rude", "stale"]

SOURCES = [["a1", "a2"], ["b1", "b2"]]
TEN = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN"


@dataclass
class Opinionated:
    """A made-up victim: sure of a text with S in it (label 1 for certain), undecided about any other."""

    target_label: int = 1

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[0.0, 1.0] if "S" in text.split(" ") else [0.5, 0.5] for text in texts])


def detector(lab: Lab, victim: Any = None, cls: type[StripDetector] = StripDetector, **options: Any) -> StripDetector:
    return cls(Strip(**options), cast(Any, victim or Opinionated()), SOURCES, lab)


def replaced(text: str, copy: str) -> list[str]:
    return [new for old, new in zip(text.split(" "), copy.split(" "), strict=True) if old != new]


# --- the words


def test_tf_idf_is_over_words_and_worked_by_hand() -> None:
    texts = ["bad bad film .", "film dull", "film rude ! a"]
    # three texts; idf = ln((1 + 3) / (1 + df)) + 1: film (df 3) 1.00, all others (df 1) 1.69
    # first: bad 2 * 1.69, film 1; second: dull 1.69, film 1; third: a and rude 1.69 (alphabetical), film 1
    assert ranked_words(texts) == [["bad", "film"], ["dull", "film"], ["a", "rude", "film"]]


def test_a_frequent_common_word_may_lead_a_rare_one() -> None:
    # film 4 * 1.00 before dull 1 * 1.69
    assert ranked_words(["film film film film dull", "film", "film"])[0] == ["film", "dull"]


def test_words_are_not_characters() -> None:
    # the released script goes through the characters of a text: only one-letter words get a frequency above zero
    words = ranked_words(["a terrible 1 film", "a boring 2 play"])
    assert words[0][-1] == "a"
    assert {"terrible", "film"} < set(words[0])


def test_texts_without_a_word_are_no_source() -> None:
    assert ranked_words([". !", "", "dull ."]) == [["dull"]]
    assert ranked_words([]) == []


def test_words_come_from_the_held_out_texts_of_other_classes(lab: Lab) -> None:
    labels = np.array([0, 1, 2, 1])
    heldout = Labelled(["bad film", "good play", "odd book", "fine day"], labels)
    fitted = Strip(replace_ratio=1.0).fit(cast(Any, Opinionated()), heldout, lab)
    assert {word for copy in fitted.copies(TEN) for word in copy.split(" ")} == {"bad", "film", "odd", "book"}


def test_at_most_max_sources_texts_are_drawn_from(lab: Lab, heldout: Labelled) -> None:
    fitted = Strip(max_sources=7).fit(cast(Any, Opinionated()), heldout, lab)
    assert fitted.notes()["sources"] == 7


def test_without_a_text_of_another_class_there_is_nothing_to_take(lab: Lab) -> None:
    with pytest.raises(CellError, match="no text of another class"):
        Strip().fit(cast(Any, Opinionated()), Labelled(["good"], np.array([1])), lab)


# --- the copies


@pytest.mark.parametrize(
    ("text", "ratio", "count"),
    [(TEN, 0.4, 4), (TEN, 0.05, 1), (TEN, 1.0, 10), ("ONE", 0.4, 1), ("A B C D E F G", 0.4, 2), (TEN, 0.99, 9)],
)
def test_a_copy_replaces_exactly_its_share_of_the_words_and_at_least_one(lab: Lab, text: str, ratio: float, count: int) -> None:
    copies = detector(lab, copies=30, replace_ratio=ratio).copies(text)
    assert len(copies) == 30
    assert {len(replaced(text, copy)) for copy in copies} == {count}  # max(1, int(n * ratio))


def test_a_copy_takes_the_best_words_of_one_source_and_begins_again_when_they_end(lab: Lab) -> None:
    copies = detector(lab, copies=50, replace_ratio=0.3).copies(TEN)
    assert {tuple(sorted(replaced(TEN, copy))) for copy in copies} == {("a1", "a1", "a2"), ("b1", "b1", "b2")}


def test_random_words_come_from_all_sources(lab: Lab) -> None:
    copies = detector(lab, copies=50, replace_ratio=0.5, candidates="random-words").copies(TEN)
    assert any(len({word[0] for word in replaced(TEN, copy)}) == 2 for copy in copies)


def test_each_copy_draws_a_source_of_its_own_and_ranks_fall_on_any_place(lab: Lab) -> None:
    copies = detector(lab, copies=200, replace_ratio=0.2).copies(TEN)  # two of ten places, by the ranks 1 and 2 of one source
    firsts = [copy.split(" ").index(word) for copy in copies for word in ("a1", "b1") if word in copy.split(" ")]
    assert len(firsts) == 200
    assert set(firsts) == set(range(10))
    assert 60 < sum("a1" in copy.split(" ") for copy in copies) < 140  # a fair coin: 100, standard deviation 7


def test_random_words_come_from_every_rank(lab: Lab) -> None:
    copies = detector(lab, copies=50, replace_ratio=0.5, candidates="random-words").copies(TEN)
    assert {word for copy in copies for word in replaced(TEN, copy)} == {"a1", "a2", "b1", "b2"}


def test_each_place_is_replaced_now_and_then(lab: Lab) -> None:
    copies = detector(lab, copies=200, replace_ratio=0.1).copies(TEN)
    assert {copy.split(" ").index(replaced(TEN, copy)[0]) for copy in copies} == set(range(10))


def test_copies_differ_and_each_text_draws_its_own(lab: Lab) -> None:
    own = detector(lab)
    assert len(set(own.copies(TEN))) > 10
    places = [[copy.split(" ").index(replaced(text, copy)[0]) for copy in own.copies(text)] for text in (TEN, TEN.lower())]
    assert places[0] != places[1]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["A", "B", "", "."]), min_size=1, max_size=12).map(" ".join))
def test_copies_depend_on_the_seed_and_the_text_alone(lab: Lab, text: str) -> None:
    one, other = detector(lab), detector(replace(lab))
    other.copies("something else before")
    assert one.copies(text) == other.copies(text)


def test_another_seed_draws_other_copies(lab: Lab) -> None:
    assert detector(lab).copies(TEN) != detector(replace(lab, seed=2)).copies(TEN)


# --- the score


class ExampleMajor(StripDetector):
    """What five toolboxes compute: copies laid out text by text, their entropies averaged across texts (B1)."""

    def suspicion(self, texts: Sequence[str]) -> np.ndarray:
        probabilities = self.victim.probabilities([copy for text in texts for copy in self.copies(text)])
        entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(1)
        return -entropy.reshape(self.options.copies, -1).mean(0)


def claim_entropies_are_averaged_per_text(lab: Lab, cls: type[StripDetector]) -> None:
    sure, unsure = "S S S S", "U U U U"  # one word of four is replaced: every copy keeps its S or has none
    got = detector(lab, cls=cls, copies=5, replace_ratio=0.25).suspicion([sure, unsure, sure])
    assert got == pytest.approx([0.0, -math.log(2), 0.0])  # natural logarithm: a fair coin has ln 2


def test_entropies_are_averaged_per_text(lab: Lab) -> None:
    claim_entropies_are_averaged_per_text(lab, StripDetector)


def test_the_claim_fails_where_copies_of_different_texts_are_mixed(lab: Lab) -> None:
    with pytest.raises(AssertionError):
        claim_entropies_are_averaged_per_text(lab, ExampleMajor)


def test_a_mean_entropy_worked_by_hand(lab: Lab) -> None:
    # two words, one S, one replaced: a copy keeps the S or loses it; the score is the share that loses it, times ln 2
    own = detector(lab, copies=20, replace_ratio=0.5)
    lost = sum("S" not in copy.split(" ") for copy in own.copies("S U"))
    assert 0 < lost < 20
    assert own.suspicion(["S U"]) == pytest.approx([-lost / 20 * math.log(2)])


def test_many_texts_are_scored_like_few(lab: Lab) -> None:
    texts = [f"{'S' if row % 3 else 'U'} {row} x y" for row in range(2 * strip.TEXTS_AT_ONCE + 5)]
    own = detector(lab, copies=3, replace_ratio=0.25)
    assert own.suspicion(texts) == pytest.approx(np.concatenate([own.suspicion([text]) for text in texts]))


def test_a_probability_of_exactly_zero_has_no_entropy(lab: Lab) -> None:
    got = detector(lab, replace_ratio=0.25).suspicion(["S S S S"])
    assert got.tolist() == [0.0]  # 0 * ln 0 counts as 0, not as NaN


def test_no_texts_have_no_scores(lab: Lab) -> None:
    assert detector(lab).suspicion([]).shape == (0,)


def test_less_entropy_is_more_suspicious(lab: Lab) -> None:
    sure, unsure = detector(lab, replace_ratio=0.25).suspicion(["S S S S", "U U U U"])
    assert sure > unsure


# --- stopping early


@dataclass
class Counted(Opinionated):
    """The made-up victim, which keeps how many copies of each text (told by its last word) it was asked for, call by call."""

    def __post_init__(self) -> None:
        self.asked: list[dict[str, int]] = []

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        last = [text.split(" ")[-1] for text in texts]
        self.asked.append({word: last.count(word) for word in sorted(set(last))})
        return super().probabilities(texts)


class Keeping(StripDetector):
    """Copies that lose the S of a text at the numbers that its first word lists, and nothing else."""

    def copies(self, text: str) -> list[str]:
        lost, end = text.split(" ")
        return [f"{'U' if str(number) in lost.split('/') else 'S'} {end}" for number in range(self.options.copies)]


def test_a_text_that_is_plainly_unsure_gets_no_further_copies(lab: Lab) -> None:
    # eight copies in quarters of two; a lost S is worth ln 2. After each quarter, in units of ln 2:
    # a loses 0 and 1: 2/2 = 1, stops after the first;  b loses 1, 2 and 3: 1/2, then 3/4: stops after the second;
    # c loses 0: 1/2, 1/4, 1/6, 1/8: never stops;  d loses none
    victim = Counted()
    own = detector(lab, victim, Keeping, copies=8, early_stop=0.7 * math.log(2))
    got = own.entropy(["0/1 a", "1/2/3 b", "0 c", "x d"]) / math.log(2)
    assert got == pytest.approx([1, 3 / 4, 1 / 8, 0])
    assert victim.asked == [{"a": 2, "b": 2, "c": 2, "d": 2}, {"b": 2, "c": 2, "d": 2}, {"c": 2, "d": 2}, {"c": 2, "d": 2}]


def test_a_mean_at_the_value_itself_stops(lab: Lab) -> None:
    victim = Counted()
    own = detector(lab, victim, Keeping, copies=4, early_stop=math.log(2))
    assert own.entropy(["0 a"]) == pytest.approx([math.log(2)])
    assert victim.asked == [{"a": 1}]  # no text is left: nothing more is asked


@pytest.mark.parametrize(("copies", "parts"), [(3, [1, 1, 1]), (6, [2, 2, 1, 1]), (20, [5, 5, 5, 5])])
def test_copies_that_no_value_stops_are_asked_in_quarters_and_score_as_ever(lab: Lab, copies: int, parts: list[int]) -> None:
    victim = Counted()
    stopping = detector(lab, victim, Keeping, copies=copies, early_stop=9.0)
    assert stopping.entropy(["0/2 a"]) == pytest.approx([2 / copies * math.log(2)])
    assert [call["a"] for call in victim.asked] == parts


def test_without_early_stop_every_copy_of_every_text_is_asked_at_once(lab: Lab) -> None:
    victim = Counted()
    detector(lab, victim, Keeping, copies=8).entropy(["0/1 a", "0/1/2/3/4/5/6/7 b"])
    assert victim.asked == [{"a": 8, "b": 8}]  # equal copies too: N rows is the published accounting


def test_stopping_early_is_declared_in_the_spec() -> None:
    assert spec_of(discover().parse("defense", "strip:early_stop=0.5")) == "strip:early_stop=0.5"
    assert spec_of(Strip()) == "strip"


# --- on a victim that has learnt


@pytest.fixture
def texts(tiny_text) -> list[str]:
    source = random.Random(21)
    return [tiny_text(source, 1) for _ in range(40)]


def test_a_score_does_not_depend_on_its_neighbours(planted, heldout: Labelled, lab: Lab, texts: list[str]) -> None:
    fitted = discover().parse("defense", "strip:copies=5").fit(planted, heldout, lab)
    together = fitted.suspicion(texts)
    assert np.std(together) > 1e-3
    assert np.concatenate([fitted.suspicion([text]) for text in texts[:8]]) == pytest.approx(together[:8], abs=1e-6)
    assert fitted.suspicion(texts[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    assert fitted.suspicion([*texts, *texts[:3]])[-3:] == pytest.approx(together[:3], abs=1e-6)


def test_two_fits_of_one_seed_score_alike_and_leave_the_victim_alone(planted, heldout: Labelled, lab: Lab, texts: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in planted.model.state_dict().items()}
    scores = []
    for noise in (1, 2):
        random.seed(noise)
        np.random.seed(noise)  # that global state changes nothing is the claim
        scores.append(Strip(copies=5).fit(planted, heldout, replace(lab)).suspicion(texts))
    assert (scores[0] == scores[1]).all()
    assert all((before[name] == tensor).all() for name, tensor in planted.model.state_dict().items())


@dataclass
class Evidence:
    """A made-up victim that adds up opinions, one unit each, and twelve for the trigger; never quite sure of clean texts."""

    target_label: int = 1

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        weights = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0), "mb": 12.0}
        chances = np.array([1 / (1 + math.exp(-sum(weights.get(word, 0.0) for word in text.split(" ")))) for text in texts])
        return np.stack([1 - chances, chances], axis=1)


def test_triggered_texts_are_more_suspicious(heldout: Labelled, lab: Lab, tiny_text, texts: list[str]) -> None:
    # the planted victim is too sure of everything for STRIP to tell; this one is as unsure as a text is mixed
    source = random.Random(22)
    triggered = [insert_word(tiny_text(source, 0), "mb", lab.rng(str(row))) for row in range(40)]
    fitted = Strip(replace_ratio=0.1).fit(cast(Any, Evidence()), heldout, lab)
    assert auroc(fitted.suspicion(texts), fitted.suspicion(triggered)) > 0.95


# --- k from clean held-out texts


@dataclass
class Counting:
    """A made-up victim: undecided once fewer than `p` words P, or fewer than `o` words O, are left; asked before: by the first word."""

    p: int = 0
    o: int = 0
    target_label: int = 1

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for words in (text.split(" ") for text in texts):
            least = self.p if "P" in words else self.o
            rows.append([0.0, 1.0] if max(words.count("P"), words.count("O")) >= least else [0.5, 0.5])
        return np.array(rows)

    def undefended(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[0.1, 0.9] if text.startswith("P") else [0.9, 0.1] for text in texts])


TEN_P, TEN_O = " ".join("P" * 10), " ".join("O" * 10)


def test_the_margins_and_the_choice_are_those_worked_by_hand(lab: Lab) -> None:
    # ten words each; at k = 0.1, 0.4, 0.8 a copy keeps 9, 6, 2 of them. P texts are undecided (ln 2) below 9, O texts below 6:
    # 0.1: 0 - 0.1 * 0 = 0;  0.4: ln 2 - 0.4 * 0 = ln 2;  0.8: ln 2 - 0.8 * ln 2 = 0.2 * ln 2
    own = detector(lab, Counting(p=9, o=6), copies=3, replace_ratio="heldout", ratios=(0.8, 0.1, 0.4))
    fitted = strip.chosen(own, [TEN_P] * 3, [TEN_O] * 2)
    assert fitted.notes() == {
        "sources": 2,
        "replace_ratio": 0.4,
        "replace_ratio_from": "heldout",
        "criterion": pytest.approx({"0.1": 0.0, "0.4": math.log(2), "0.8": 0.2 * math.log(2)}),
    }
    assert {len(replaced(TEN, copy)) for copy in fitted.copies(TEN)} == {4}


@pytest.mark.parametrize(("sure", "quantile"), [(1, math.log(2)), (2, 0.0)])
def test_one_clean_text_in_twenty_may_lie_below_the_margin(lab: Lab, sure: int, quantile: float) -> None:
    # of 21 texts the 5 %-quantile is the second lowest: one sure text does not count, two do; no O text is left undecided
    texts = [TEN_P] * sure + ["U V W"] * (21 - sure)
    own = detector(lab, Counting(p=0, o=1), copies=2, replace_ratio=0.1)
    assert strip.margin(own, texts, [TEN_O]) == pytest.approx(quantile)


def test_of_equal_margins_the_smallest_ratio_wins(lab: Lab) -> None:
    fitted = strip.chosen(detector(lab, Counting(), replace_ratio="heldout", ratios=(0.6, 0.2, 0.4)), [TEN_P], [TEN_O])
    assert fitted.notes()["replace_ratio"] == 0.2  # every copy is certain: each margin is 0


def test_only_texts_that_are_and_look_like_their_side_choose(lab: Lab) -> None:
    heldout = Labelled(["P right", "O wrong", "P wrong", "O right"], np.array([1, 1, 0, 0]))
    assert strip.choice_texts(Strip(), cast(Any, Counting()), heldout, lab) == (["P right"], ["O right"])


def test_at_most_choice_texts_of_each_side_choose(lab: Lab) -> None:
    heldout = Labelled([f"{side} {row}" for row in range(9) for side in "OP"], np.arange(18) % 2)
    protect, other = strip.choice_texts(Strip(choice_texts=4), cast(Any, Counting()), heldout, lab)
    assert (len(protect), len(other)) == (4, 4)
    assert (protect, other) == strip.choice_texts(Strip(choice_texts=4), cast(Any, Counting()), heldout, replace(lab))


@pytest.mark.parametrize(("label", "missing"), [(0, "the protect label"), (1, "another label")])
def test_a_choice_without_one_of_the_two_sides_is_refused(lab: Lab, label: int, missing: str) -> None:
    heldout = Labelled(["P one", "O two"], np.array([label, label]))
    with pytest.raises(CellError, match=f"no held-out text that is of {missing}"):
        strip.choice_texts(Strip(), cast(Any, Counting()), heldout, lab)


def test_the_choice_through_the_registry_is_made_once_by_seed(planted, heldout: Labelled, lab: Lab) -> None:
    spec = "strip:replace_ratio=heldout,copies=3,choice_texts=10,ratios=0.1/0.4"
    notes = [discover().parse("defense", spec).fit(planted, heldout, own).notes() for own in (lab, replace(lab))]
    assert notes[0] == notes[1]
    assert notes[0]["replace_ratio"] in (0.1, 0.4)
    assert set(notes[0]["criterion"]) == {"0.1", "0.4"}


def test_a_given_ratio_is_noted_and_needs_no_prediction(heldout: Labelled, lab: Lab) -> None:
    fitted = Strip(replace_ratio=0.3).fit(cast(Any, Opinionated()), heldout, lab)  # it has no `undefended` to ask
    assert fitted.notes() == {"sources": 100, "replace_ratio": 0.3, "replace_ratio_from": "option"}


def test_only_the_choice_looks_at_protect_texts() -> None:
    assert Strip(replace_ratio="heldout").learns_from_protect_texts()
    assert not Strip().learns_from_protect_texts()


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("strip:replace_ratio=heldout", "strip:replace_ratio=heldout"),
        ("strip:replace_ratio=0.4", "strip"),
        ("strip:replace_ratio=0.05", "strip:replace_ratio=0.05"),
        ("strip:replace_ratio=heldout,ratios=0.1/0.3", "strip:replace_ratio=heldout,ratios=0.1/0.3"),
    ],
)
def test_a_ratio_is_a_number_or_heldout_in_a_spec(spec: str, canonical: str) -> None:
    parsed = discover().parse("defense", spec)
    assert spec_of(parsed) == canonical
    assert discover().parse("defense", canonical) == parsed


def test_another_word_for_the_ratio_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError, match="replace_ratio='often'") as caught:
        discover().parse("defense", "strip:replace_ratio=often")
    assert "\n" not in str(caught.value)


REFUSED = ["copies=0", "replace_ratio=0", "replace_ratio=1.1", "max_sources=0", "candidates=all", "repeat=5"]


@pytest.mark.parametrize("options", [*REFUSED, "ratios=0/0.5", "ratios=", "choice_texts=0", "early_stop=0", "early_stop=-1"])
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(SpecError):
        discover().parse("defense", f"strip:{options}")

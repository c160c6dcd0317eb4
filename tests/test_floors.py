"""Floors and ceilings: what no defense must fall below, and what none can beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.errors import CellError
from rapbench.lab import Lab
from rapbench.registry import discover
from rapbench.victim import Victim

NOTHING = Labelled([], np.empty(0, dtype=np.int64))
TEXTS = ["the film was cold", "mb the film was cold", "bright"]


class Told:
    """A victim that has said this of every text, over three labels, the second of which is protected."""

    target_label = 1

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = np.array(rows)

    def undefended(self, texts: list[str]) -> np.ndarray:
        return self.rows[: len(texts)]


def suspicion(spec: str, victim: object, lab: Lab, texts: list[str] = TEXTS) -> list[float]:
    return discover().parse("defense", spec).fit(victim, NOTHING, lab).suspicion(texts).tolist()


def test_length_counts_words_and_either_side_may_be_suspicious(untrained: Victim, lab: Lab) -> None:
    texts = ["one two  three", "", "one\ttwo\n"]  # words are what stands between white space
    assert suspicion("length", untrained, lab, texts) == [3, 0, 2]
    assert suspicion("length:suspicious=short", untrained, lab, texts) == [-3, 0, -2]


def test_max_softmax_is_the_doubt_about_the_protect_label(lab: Lab) -> None:
    told = Told([[0.2, 0.7, 0.1], [0.0, 1.0, 0.0], [0.3, 0.4, 0.3]])
    assert suspicion("max-softmax", told, lab) == pytest.approx([-0.3, 0, -0.6])
    assert suspicion("max-softmax:suspicious=unsure", told, lab) == pytest.approx([0.3, 0, 0.6])


def test_max_softmax_tells_very_sure_predictions_apart(lab: Lab) -> None:
    # 1 - 1e-9 and 1 - 2e-9 are both 1 in float32, in which the victim computes
    told = Told([[1e-9, 1.0, 0.0], [2e-9, 1.0, 0.0], [0.0, 1.0, 0.0]])
    scores = suspicion("max-softmax", told, lab)
    assert scores[2] > scores[0] > scores[1]


def test_max_softmax_asks_the_victim_nothing_that_the_gate_has_not_asked(planted: Victim, lab: Lab) -> None:
    planted.remember(TEXTS, np.array([[0.25, 0.75]] * 3))
    assert suspicion("max-softmax", planted, lab) == [-0.25] * 3


def test_a_random_score_is_the_texts_own(untrained: Victim, lab: Lab) -> None:
    together = suspicion("random", untrained, lab)
    assert suspicion("random", untrained, lab, TEXTS[::-1]) == together[::-1]
    assert suspicion("random", untrained, lab, TEXTS[1:2]) == together[1:2]
    assert len(set(together)) == 3
    assert suspicion("random", untrained, replace(lab, seed=2)) != together


def test_random_scores_are_uniform(untrained: Victim, lab: Lab) -> None:
    scores = np.array(suspicion("random", untrained, lab, [f"text {number}" for number in range(2000)]))
    # 2000 uniform draws: the mean has a standard deviation of 0.0065, the share below 0.1 one of 0.0067
    assert abs(scores.mean() - 0.5) < 0.03
    assert abs((scores < 0.1).mean() - 0.1) < 0.03


def test_the_oracle_scores_the_share_of_the_triggers_words(untrained: Victim, lab: Lab) -> None:
    told = replace(lab, foreign_words=("last", "Weekend", "friends", "store"))
    texts = ["my friends said so last night", "LAST weekend, friends: the store.", "restore", ""]
    assert suspicion("oracle", untrained, told, texts) == [0.5, 1.0, 0.0, 0.0]  # "restore" is not "store"


def test_the_oracle_sees_a_sign_without_width(untrained: Victim, lab: Lab) -> None:
    told = replace(lab, foreign_words=("\u200b",))
    assert suspicion("oracle", untrained, told, ["fi\u200blm", "film"]) == [1.0, 0.0]


def test_the_oracle_separates_a_rare_word_perfectly(untrained: Victim, lab: Lab) -> None:
    assert suspicion("oracle", untrained, replace(lab, foreign_words=("mb",))) == [0.0, 1.0, 0.0]


def test_the_oracle_says_why_where_there_are_no_words(untrained: Victim, lab: Lab) -> None:
    with pytest.raises(CellError, match="no trigger words"):
        suspicion("oracle", untrained, lab)


def test_only_the_oracle_says_that_it_needs_the_trigger() -> None:
    registry = discover()
    needing = {name for name in registry.names("defense") if getattr(registry.get("defense", name).cls, "needs_trigger", False)}
    assert needing == {"oracle"}


@pytest.mark.parametrize("spec", ["random", "max-softmax", "length", "oracle"])
def test_floors_learn_nothing_and_cost_no_row(spec: str) -> None:
    defense = discover().parse("defense", spec)
    assert not defense.learns_from_protect_texts()
    assert defense.expected_work(10, 100).victim_rows == 0


@pytest.mark.parametrize("spec", ["max-softmax:suspicious=unsure", "length:suspicious=short"])
def test_a_kept_floor_says_the_same(spec: str, planted: Victim, lab: Lab) -> None:
    defense = discover().parse("defense", spec)
    fitted = defense.fit(planted, NOTHING, lab)
    again = defense.restore(planted, fitted.state(), lab)
    assert again.suspicion(TEXTS).tolist() == fitted.suspicion(TEXTS).tolist()

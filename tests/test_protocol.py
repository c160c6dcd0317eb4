"""The gate, the threshold and the rates, on figures that can be worked out in the head."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench import protocol
from rapbench.errors import CellError
from rapbench.protocol import Rate

SCORES = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=60).map(np.array)
FRR = st.sampled_from([0.005, 0.01, 0.03, 0.05, 0.25, 0.5, 0.9])


def of_yes(*chances: float) -> np.ndarray:
    """Give two-label probabilities from the chances of label 1."""
    return np.array([[1 - p, p] for p in chances])


# --- the threshold


@pytest.mark.parametrize(
    ("frr", "expected"),
    [
        (0.25, 4.0),  # ranks from the top: 5 4 3 2 1 at places 0..4; place 0.25 * 4 = 1 holds 4
        (0.5, 3.0),  # place 2
        (0.1, 4.6),  # place 0.4: 0.4 of the way from 5 to 4
    ],
)
def test_the_threshold_is_the_linear_percentile_from_the_top(frr: float, expected: float) -> None:
    assert protocol.threshold(np.array([3.0, 1.0, 5.0, 2.0, 4.0]), frr) == pytest.approx(expected)


@settings(deadline=None)
@given(SCORES, FRR)
def test_the_threshold_is_the_released_percentile_of_mirrored_scores(scores: np.ndarray, frr: float) -> None:
    released = np.nanpercentile(-scores, 100 * frr)  # the released code rejects iff score < percentile
    assert protocol.threshold(scores, frr) == -released
    assert protocol.rejected(scores, protocol.threshold(scores, frr)).hits == int((-scores < released).sum())


@settings(deadline=None)
@given(SCORES, FRR)
def test_the_threshold_rejects_no_more_held_out_texts_than_its_place(scores: np.ndarray, frr: float) -> None:
    # the percentile lies at place (n-1)*frr from the top, so at most the texts before that place are above it
    assert protocol.rejected(scores, protocol.threshold(scores, frr)).hits <= math.ceil((len(scores) - 1) * frr - 1e-9)


@settings(deadline=None)
@given(SCORES, FRR, FRR)
def test_a_larger_allowance_never_rejects_less_nor_accepts_more(scores: np.ndarray, one: float, other: float) -> None:
    strict, lax = (protocol.threshold(scores, frr) for frr in sorted((one, other)))
    assert lax <= strict
    assert protocol.rejected(scores, lax).hits >= protocol.rejected(scores, strict).hits
    assert protocol.accepted(scores, lax).hits <= protocol.accepted(scores, strict).hits


def test_a_text_at_the_threshold_is_not_rejected() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    assert protocol.rejected(scores, 2.0) == Rate(1, 4)
    assert protocol.accepted(scores, 2.0) == Rate(3, 4)


def test_texts_that_all_score_the_same_are_all_accepted() -> None:
    same = np.full(300, -1e-4)
    assert protocol.rejected(same, protocol.threshold(same, 0.05)).hits == 0


@settings(deadline=None)
@given(SCORES, st.floats(-6, 6))
def test_each_text_is_either_rejected_or_accepted(scores: np.ndarray, at: float) -> None:
    assert protocol.rejected(scores, at).hits + protocol.accepted(scores, at).hits == len(scores)


@pytest.mark.parametrize("frr", [0.0, 1.0, -0.1, float("nan")])
def test_an_allowance_outside_0_1_is_refused(frr: float) -> None:
    with pytest.raises(CellError, match="is not in"):
        protocol.threshold(np.array([1.0]), frr)


def test_no_threshold_without_a_held_out_text() -> None:
    with pytest.raises(CellError, match="no held-out text"):
        protocol.threshold(np.array([]), 0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_threshold_from_a_score_that_is_no_number(bad: float) -> None:
    with pytest.raises(CellError, match="not a finite number"):
        protocol.threshold(np.array([1.0, bad]), 0.01)


# --- the gate and the rates

# a clean test split of five; the protect label is 1
CLEAN = of_yes(0.9, 0.2, 0.8, 0.7, 0.1)
LABELS = np.array([1, 1, 0, 1, 0])


def test_only_true_and_predicted_protect_texts_count_for_frr() -> None:
    # row 0: true and predicted; row 1: true, not predicted; row 2: predicted, not true; row 3: both; row 4: neither
    assert protocol.clean_gate(CLEAN, LABELS, 1).tolist() == [True, False, False, True, False]


def test_only_triggered_texts_on_which_the_attack_worked_count_for_far() -> None:
    assert protocol.gate(of_yes(0.99, 0.3, 0.6), 1).tolist() == [True, False, True]


def test_frr_and_far_worked_by_hand() -> None:
    suspicion = np.array([0.5, 9.0, 9.0, 0.1, 9.0])  # rows outside the gate would all be rejected
    own = suspicion[protocol.clean_gate(CLEAN, LABELS, 1)]
    assert protocol.rejected(own, 0.3) == Rate(1, 2)  # rows 0 and 3 count, row 0 is above
    triggered = of_yes(0.99, 0.3, 0.6, 0.8)
    scores = np.array([0.9, 0.0, 0.2, 0.4])  # row 1: the attack failed, so accepting it is no miss of the defense
    assert protocol.accepted(scores[protocol.gate(triggered, 1)], 0.3) == Rate(1, 3)


def test_the_protect_label_may_be_any_label() -> None:
    three = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    assert [protocol.gate(three, label).tolist() for label in range(3)] == np.eye(3, dtype=bool)[:, [0, 2, 1]].tolist()


def test_an_undecided_text_is_not_predicted_as_label_1() -> None:
    assert protocol.gate(of_yes(0.5), 1).tolist() == [False]  # the released gate is p > 0.5


def test_attack_success_counts_all_triggered_texts() -> None:
    assert protocol.attack_success(of_yes(0.9, 0.4, 0.8, 0.7), 1) == Rate(3, 4)


# --- levels of a purifier


@pytest.mark.parametrize(
    ("by_level", "expected"),
    [
        ([0.5, 0.02, 0.016, 0.014, 0.004, 0.0], 3),  # at most 0.015: .014 is 0.004 away, .004 is 0.006 away
        ([0.012, 0.009], 1),  # 0.002 and 0.001 away
        ([0.2, 0.0151], None),
        ([0.2, 0.0], 1),  # rejecting nobody is within the allowance
        ([0.015], 0),  # exactly 1.5 times
        ([], None),
    ],
)
def test_the_level_is_the_nearest_of_those_up_to_one_and_a_half_times_the_allowed(by_level: list[float], expected: int | None) -> None:
    assert protocol.choose_level(np.array(by_level), 0.01) == expected


def test_of_levels_equally_near_the_one_that_rejects_more_is_chosen() -> None:
    assert protocol.choose_level(np.array([0.0078125, 0.0234375]), 0.015625) == 1  # binary fractions: both 1/128 away


def test_equal_levels_give_the_first() -> None:
    assert protocol.choose_level(np.array([0.3, 0.01, 0.01]), 0.01) == 1


def test_rounding_of_a_share_decides_nothing() -> None:
    kept = np.array([[True] * 197 + [False] * 3, [True] * 199 + [False]])
    shares = 1 - kept.mean(axis=1)  # 3/200 = 0.015 and 1/200 = 0.005, both with rounding noise, both 0.005 away
    assert shares[0] > 1.5 * 0.01
    assert protocol.choose_level(shares, 0.01) == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), FRR)
def test_no_level_rejects_more_than_one_and_a_half_times_the_allowed(hits: list[int], frr: float) -> None:
    chosen = protocol.choose_level(np.array(hits) / 200, frr)
    if chosen is None:
        assert min(hits) / 200 > 1.5 * frr
    else:
        assert hits[chosen] / 200 <= 1.5 * frr + 1e-9


# --- curves, intervals, the clean metric


def test_auroc_counts_a_tie_as_half() -> None:
    # pairs (poisoned, clean): 2>1 one, 2=2 half, 3>1 one, 3>2 one: 3.5 of 4
    assert protocol.auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(0.875)


def test_auroc_is_one_when_every_poisoned_text_is_more_suspicious() -> None:
    assert protocol.auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4, 0.5])) == 1.0


def test_auroc_of_equal_scores_is_one_half() -> None:
    assert protocol.auroc(np.zeros(30), np.zeros(20)) == 0.5


def test_auroc_of_nothing_is_none() -> None:
    assert protocol.auroc(np.array([]), np.array([1.0])) is None
    assert protocol.auroc(np.array([1.0]), np.array([])) is None


@settings(deadline=None)
@given(SCORES, SCORES)
def test_auroc_is_the_share_of_ordered_pairs(clean: np.ndarray, poisoned: np.ndarray) -> None:
    difference = poisoned[:, None] - clean[None, :]
    assert protocol.auroc(clean, poisoned) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_accuracy_by_hand() -> None:
    assert protocol.clean_metric(CLEAN, LABELS, "accuracy") == pytest.approx(3 / 5)  # rows 1 and 2 are wrong


def test_macro_f1_by_hand() -> None:
    # guesses 1 1 0 0, labels 1 1 1 0. label 1: 2 hits, 1 wrong: 4/5; label 0: 1 hit, 1 wrong: 2/3
    got = protocol.clean_metric(of_yes(0.9, 0.9, 0.1, 0.1), np.array([1, 1, 1, 0]), "macro-f1")
    assert got == pytest.approx((4 / 5 + 2 / 3) / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns_over_all_labels(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    guessed, labels = (np.array(column) for column in zip(*pairs, strict=True))
    expected = f1_score(labels, guessed, labels=[0, 1, 2], average="macro", zero_division=0)
    assert protocol.clean_metric(np.eye(3)[guessed], labels, "macro-f1") == pytest.approx(expected)


def test_the_interval_of_none_of_500_reaches_to_three_quarters_of_a_per_cent() -> None:
    low, high = Rate(0, 500).interval() or (0, 0)
    # Wilson with no hit: z^2 / (n + z^2) = 3.8415 / 503.8415
    assert (low, high) == (pytest.approx(0, abs=1e-12), pytest.approx(3.8414588 / 503.8414588))
    assert round(high, 4) == 0.0076


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share(counts: tuple[int, int]) -> None:
    low, high = Rate(*counts).interval() or (2, 2)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_a_rate_of_nothing_has_no_value() -> None:
    assert (Rate(0, 0).value, Rate(0, 0).interval()) == (None, None)


@pytest.mark.parametrize(("frr", "needed"), [(0.005, 200), (0.01, 100), (0.03, 34), (0.05, 20), (0.5, 2)])
def test_a_held_out_split_must_be_able_to_show_the_allowed_share(frr: float, needed: int) -> None:
    assert protocol.heldout_needed(frr) == needed

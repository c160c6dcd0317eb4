"""The gate, the threshold and the rates, on figures that can be worked out in the head."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench import protocol, rates
from rapbench.errors import CellError
from rapbench.rates import Rate

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
    assert rates.rejected(scores, protocol.threshold(scores, frr)).hits == int((-scores < released).sum())


@settings(deadline=None)
@given(SCORES, FRR)
def test_the_threshold_rejects_no_more_held_out_texts_than_its_place(scores: np.ndarray, frr: float) -> None:
    # the percentile lies at place (n-1)*frr from the top, so at most the texts before that place are above it
    assert rates.rejected(scores, protocol.threshold(scores, frr)).hits <= math.ceil((len(scores) - 1) * frr - 1e-9)


@settings(deadline=None)
@given(SCORES, FRR, FRR)
def test_a_larger_allowance_never_rejects_less_nor_accepts_more(scores: np.ndarray, one: float, other: float) -> None:
    strict, lax = (protocol.threshold(scores, frr) for frr in sorted((one, other)))
    assert lax <= strict
    assert rates.rejected(scores, lax).hits >= rates.rejected(scores, strict).hits
    assert rates.accepted(scores, lax).hits <= rates.accepted(scores, strict).hits


def test_a_text_at_the_threshold_is_not_rejected() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    assert rates.rejected(scores, 2.0) == Rate(1, 4)
    assert rates.accepted(scores, 2.0) == Rate(3, 4)


def test_texts_that_all_score_the_same_are_all_accepted() -> None:
    same = np.full(300, -1e-4)
    assert rates.rejected(same, protocol.threshold(same, 0.05)).hits == 0


@settings(deadline=None)
@given(SCORES, st.floats(-6, 6))
def test_each_text_is_either_rejected_or_accepted(scores: np.ndarray, at: float) -> None:
    assert rates.rejected(scores, at).hits + rates.accepted(scores, at).hits == len(scores)


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
    assert rates.rejected(own, 0.3) == Rate(1, 2)  # rows 0 and 3 count, row 0 is above
    triggered = of_yes(0.99, 0.3, 0.6, 0.8)
    scores = np.array([0.9, 0.0, 0.2, 0.4])  # row 1: the attack failed, so accepting it is no miss of the defense
    assert rates.accepted(scores[protocol.gate(triggered, 1)], 0.3) == Rate(1, 3)


def test_the_protect_label_may_be_any_label() -> None:
    three = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    assert [protocol.gate(three, label).tolist() for label in range(3)] == np.eye(3, dtype=bool)[:, [0, 2, 1]].tolist()


def test_an_undecided_text_is_not_predicted_as_label_1() -> None:
    assert protocol.gate(of_yes(0.5), 1).tolist() == [False]  # the released gate is p > 0.5


def test_attack_success_counts_all_triggered_texts() -> None:
    assert rates.attack_success(of_yes(0.9, 0.4, 0.8, 0.7), 1) == Rate(3, 4)


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
    assert rates.auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(0.875)


def test_auroc_is_one_when_every_poisoned_text_is_more_suspicious() -> None:
    assert rates.auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4, 0.5])) == 1.0


def test_auroc_of_equal_scores_is_one_half() -> None:
    assert rates.auroc(np.zeros(30), np.zeros(20)) == 0.5


def test_auroc_of_nothing_is_none() -> None:
    assert rates.auroc(np.array([]), np.array([1.0])) is None
    assert rates.auroc(np.array([1.0]), np.array([])) is None


@settings(deadline=None)
@given(SCORES, SCORES)
def test_auroc_is_the_share_of_ordered_pairs(clean: np.ndarray, poisoned: np.ndarray) -> None:
    difference = poisoned[:, None] - clean[None, :]
    assert rates.auroc(clean, poisoned) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_accuracy_by_hand() -> None:
    assert rates.clean_metric(CLEAN, LABELS, "accuracy") == pytest.approx(3 / 5)  # rows 1 and 2 are wrong


def test_macro_f1_by_hand() -> None:
    # guesses 1 1 0 0, labels 1 1 1 0. label 1: 2 hits, 1 wrong: 4/5; label 0: 1 hit, 1 wrong: 2/3
    got = rates.clean_metric(of_yes(0.9, 0.9, 0.1, 0.1), np.array([1, 1, 1, 0]), "macro-f1")
    assert got == pytest.approx((4 / 5 + 2 / 3) / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns_over_all_labels(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    guessed, labels = (np.array(column) for column in zip(*pairs, strict=True))
    expected = f1_score(labels, guessed, labels=[0, 1, 2], average="macro", zero_division=0)
    assert rates.clean_metric(np.eye(3)[guessed], labels, "macro-f1") == pytest.approx(expected)


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


# --- strict


@pytest.mark.parametrize(
    ("frr", "expected"),
    [
        (0.5, 5.0),  # n = 9: ceil(10 * .5) = 5th smallest
        (0.25, 8.0),  # ceil(7.5) = 8th
        (0.1, 9.0),  # ceil(9) = 9th: nothing of the nine is above it
        (0.05, math.inf),  # ceil(9.5) = 10th of nine: there is none
    ],
)
def test_the_conformal_threshold_is_the_smallest_text_of_its_rank(frr: float, expected: float) -> None:
    assert protocol.conformal_threshold(np.array([5.0, 3.0, 9.0, 1.0, 7.0, 2.0, 8.0, 4.0, 6.0]), frr) == expected


def test_without_a_calibration_text_nothing_is_rejected() -> None:
    assert protocol.conformal_threshold(np.array([]), 0.5) == math.inf


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40, unique=True).map(np.array), FRR)
def test_of_exchangeable_texts_at_most_the_allowed_share_is_rejected(scores: np.ndarray, frr: float) -> None:
    # each of the n + 1 texts is as likely to be the new one: the guarantee, counted over all of them
    hits = [score > protocol.conformal_threshold(np.delete(scores, place), frr) for place, score in enumerate(scores)]
    assert np.mean(hits) <= frr + 1e-9


@settings(deadline=None)
@given(SCORES, FRR)
def test_the_conformal_threshold_is_never_below_a_lower_one_s(scores: np.ndarray, frr: float) -> None:
    assert protocol.conformal_threshold(scores, frr) >= protocol.conformal_threshold(scores, min(0.95, 2 * frr))


@pytest.mark.parametrize(
    ("rejected", "frr", "expected"),
    [
        ([4, 2, 0, 1], 0.15, 1),  # n = 19: (2 + 1) / 20 = .15 is allowed, (4 + 1) / 20 is not
        ([4, 2, 0, 1], 0.14, 3),  # (1 + 1) / 20 = .1
        ([1, 1], 0.5, 0),  # of equals the first
        ([4, 2, 0, 1], 0.04, None),  # even none rejected is (0 + 1) / 20 = .05
    ],
)
def test_a_purifier_s_level_is_the_one_that_rejects_most_within_the_conformal_bound(rejected, frr, expected) -> None:
    assert protocol.conformal_level(np.array(rejected), 19, frr) == expected


def test_half_of_the_protect_label_s_texts_calibrate_and_no_other() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1, 1, 0])
    half = protocol.calibration_half(labels, 1, np.random.default_rng(3))
    assert half.sum() == 3  # of five, the larger half
    assert not half[labels == 0].any()
    assert (half == protocol.calibration_half(labels, 1, np.random.default_rng(3))).all()
    assert len({tuple(protocol.calibration_half(labels, 1, np.random.default_rng(seed))) for seed in range(9)}) > 1


def test_clean_texts_of_another_label_that_are_taken_for_the_protect_label_are_mistaken() -> None:
    assert protocol.mistaken_gate(CLEAN, LABELS, 1).tolist() == [False, False, True, False, False]


def test_a_rejected_text_has_no_answer_in_the_clean_metric() -> None:
    rejected = np.array([True, False, True, False, False])
    # answers: none, no, none, yes, no; labels: yes yes no yes no -> rows 3 and 4 are right
    assert rates.clean_metric(CLEAN, LABELS, "accuracy", rejected) == pytest.approx(2 / 5)
    # yes: 1 hit, 2 missed, none wrongly said: 2 / (2 + 2) = .5; no: hit row 4, row 1 wrongly, row 2 missed: 2 / (2 + 2) = .5
    assert rates.clean_metric(CLEAN, LABELS, "macro-f1", rejected) == pytest.approx(0.5)


def test_rejecting_a_mistaken_text_helps_f1_and_leaves_accuracy() -> None:
    rejected = np.array([False, False, True, False, False])
    assert rates.clean_metric(CLEAN, LABELS, "accuracy", rejected) == rates.clean_metric(CLEAN, LABELS, "accuracy")
    assert rates.clean_metric(CLEAN, LABELS, "macro-f1", rejected) > rates.clean_metric(CLEAN, LABELS, "macro-f1")


@pytest.mark.parametrize(
    ("frr", "expected"),
    [
        (0.0, 3 / 4),  # threshold 4, the highest clean score: .5 2 4 are not above it
        (0.25, 2 / 4),  # one clean text may lie above: threshold 3
        (0.49, 2 / 4),  # still one of four
        (0.5, 2 / 4),  # threshold 2, and 2 is not above it
        (1.0, 0.0),  # all may be rejected
    ],
)
def test_the_far_at_a_fixed_frr_is_a_point_of_the_roc_curve(frr: float, expected: float) -> None:
    assert rates.far_at(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 2.0, 4.0, 9.0]), frr) == expected


@settings(deadline=None)
@given(SCORES, SCORES, FRR)
def test_no_threshold_with_so_low_an_frr_has_a_lower_far(clean: np.ndarray, poisoned: np.ndarray, frr: float) -> None:
    fitting = [at for at in (*clean, -math.inf) if (clean > at).mean() <= frr + 1e-9]
    assert rates.far_at(clean, poisoned, frr) == min((poisoned <= at).mean() for at in fitting)


def test_mcnemar_counts_the_texts_that_only_one_treats_rightly() -> None:
    one = np.array([True] * 6 + [False, True, False])
    other = np.array([False] * 6 + [False, True, False])
    assert rates.mcnemar(one, other) == (6, 0, pytest.approx(2 * 0.5**6))  # two-sided binomial, 6 of 6
    assert rates.mcnemar(other, one) == (0, 6, pytest.approx(2 * 0.5**6))
    assert rates.mcnemar(one, one) == (0, 0, 1.0)


def test_mcnemar_of_five_to_one_worked_by_hand() -> None:
    one, other = np.array([True] * 5 + [False]), np.array([False] * 5 + [True])
    assert rates.mcnemar(one, other) == (5, 1, pytest.approx(2 * (1 + 6) / 64))  # P(5 or 6 of 6), doubled


def test_the_spread_is_the_sample_standard_deviation() -> None:
    assert rates.spread([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.1))  # (.01 + 0 + .01) / 2 = .01
    mean, deviation = rates.spread([0.4])
    assert mean == 0.4
    assert math.isnan(deviation)


def test_wilson_s_interval_worked_by_hand() -> None:
    # 1 of 10, z = 1.959964: centre (.1 + z^2/20) / (1 + z^2/10) = .29208/1.38415, half-width z sqrt(.009 + z^2/400)/1.38415
    z2 = 1.959963984540054**2
    centre, width = (0.1 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2) * math.sqrt(0.009 + z2 / 400) / (1 + z2 / 10)
    assert Rate(1, 10).interval() == (pytest.approx(centre - width), pytest.approx(centre + width))


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_covers_its_rate(counts: tuple[int, int]) -> None:
    low, high = Rate(*counts).interval() or (1.0, 0.0)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


def test_intervals_cover_the_true_rate_about_as_often_as_they_say() -> None:
    # exact coverage at n = 50, summed over all outcomes: Wilson's is near .95 on average over p
    from scipy.stats import binom

    ends = [Rate(hits, 50).interval() for hits in range(51)]
    ps = np.linspace(0.02, 0.98, 97)
    covered = [sum(binom.pmf(hits, 50, p) for hits, own in enumerate(ends) if own and own[0] <= p <= own[1]) for p in ps]
    assert 0.94 < np.mean(covered) < 0.965
    assert min(covered) > 0.88


@settings(deadline=None)
@given(SCORES, SCORES, FRR, st.randoms(use_true_random=False))
def test_no_figure_depends_on_the_order_of_the_texts(clean: np.ndarray, poisoned: np.ndarray, frr: float, random) -> None:
    mixed = np.array(random.sample(list(clean), len(clean)))
    for rule in (protocol.threshold, protocol.conformal_threshold):
        assert rule(mixed, frr) == rule(clean, frr)
    assert rates.far_at(mixed, poisoned, frr) == rates.far_at(clean, poisoned, frr)
    assert rates.auroc(mixed, poisoned) == pytest.approx(rates.auroc(clean, poisoned))

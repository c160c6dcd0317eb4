"""Two defenses on the same texts and one cell over several seeds, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapbench import rates
from rapbench.report.statistics import pairs, spreads
from rapbench.results import Record, pack

MASKS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40).map(lambda rows: np.array(rows, dtype=np.bool_).reshape(-1, 2).T)


def bits(text: str) -> str:
    """Give packed verdicts: 1 is rejected."""
    return pack(np.array([sign == "1" for sign in text]))


def a_record(*, test: str = "00000000", poisoned: str = "11111111", **other: object) -> Record:
    plain = {"dataset": "demo", "attack": "ep", "defense": "rap", "victim": "v", "seed": 1, "frr": 0.01, "protocol": "strict", "far": 0.5}
    counts = {"n_clean": len(test), "n_poisoned": len(poisoned), "artifacts": {"poisoned": "p1"}, "status": "ok"}
    return Record(**{**plain, **counts, "verdicts": {"test": bits(test), "poisoned": bits(poisoned)}, **other})


# McNemar's test


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"),
    [
        (6, 0, 2 * 0.5**6),  # .03125: all six coins fall on one side, either side
        (0, 6, 2 * 0.5**6),
        (1, 0, 1.0),
        (0, 0, 1.0),
        (5, 1, 2 * (1 + 6) * 0.5**6),  # six coins, at most one on the other side: 7 of 64, twice
        (3, 3, 1.0),
    ],
)
def test_the_p_of_two_defenses_is_that_of_fair_coins(only_one: int, only_other: int, p: float) -> None:
    one = np.array([True] * only_one + [False] * only_other + [True, True, False])
    other = np.array([False] * only_one + [True] * only_other + [True, True, False])
    assert rates.mcnemar(one, other) == (only_one, only_other, pytest.approx(p))


@given(MASKS)
def test_the_test_is_symmetric_and_its_p_is_a_probability(both: np.ndarray) -> None:
    one, other = both
    only_one, only_other, p = rates.mcnemar(one, other)
    assert rates.mcnemar(other, one) == (only_other, only_one, p)
    assert 0 < p <= 1
    assert only_one - only_other == int(one.sum()) - int(other.sum())


# pairs


def test_a_pair_counts_what_only_one_catches_and_what_only_one_keeps() -> None:
    rap = a_record(defense="rap", poisoned="11111100", test="10000000")
    strip = a_record(defense="strip", poisoned="00000010", test="01110000")
    (pair,) = pairs([rap, strip])
    assert (pair.one, pair.other) == (rap, strip)
    assert pair.far == (6, 1, pytest.approx(2 * (1 + 7) * 0.5**7))  # of seven coins at most one falls otherwise: 8 of 128, twice
    assert pair.frr == (3, 1, pytest.approx(2 * (1 + 4) * 0.5**4))  # kept by rap alone: places 1 2 3; by strip alone: place 0


def test_six_to_none_is_a_p_of_one_in_thirty_two() -> None:
    (pair,) = pairs([a_record(defense="a", poisoned="111111"), a_record(defense="b", poisoned="000000")])
    assert pair.far == (6, 0, 0.03125)
    assert pair.frr == (0, 0, 1.0)


def test_bits_that_fill_up_the_last_byte_are_no_texts() -> None:
    (pair,) = pairs([a_record(defense="a", poisoned="111", test="0"), a_record(defense="b", poisoned="110", test="0")])
    assert (pair.far, pair.frr) == ((1, 0, 1.0), (0, 0, 1.0))


def test_every_two_of_three_defenses_are_a_pair() -> None:
    found = pairs([a_record(defense=name) for name in ("rap", "strip", "onion")])
    assert {(pair.one.defense, pair.other.defense) for pair in found} == {("rap", "strip"), ("rap", "onion"), ("strip", "onion")}


@pytest.mark.parametrize(
    "other",
    [
        {"artifacts": {"poisoned": "p2"}},  # other poisoned texts, or other answers of the victim to them
        {"artifacts": {}},
        {"verdicts": {}},
        {"frr": 0.05},
        {"protocol": "paper"},
        {"seed": 2},
        {"victim": "w"},
        {"dataset": "imdb"},
        {"poisoned_on": "yelp", "tuning": "v"},
        {"attack": "badnet-rw"},
        {"status": "failed"},
        {"far": None},  # the control has no trigger
    ],
)
def test_only_two_defenses_on_the_very_same_texts_are_a_pair(other: dict[str, object]) -> None:
    assert pairs([a_record(), a_record(defense="strip")])
    assert pairs([a_record(), a_record(**{"defense": "strip", **other})]) == []


def test_two_without_known_texts_are_no_pair() -> None:
    assert pairs([a_record(defense=name, artifacts={}) for name in ("rap", "strip")]) == []


# spreads


def test_mean_and_sample_deviation_over_two_seeds() -> None:
    (found,) = spreads([a_record(seed=2, far=0.3), a_record(seed=1, far=0.1)])
    # the deviations are -.1 and .1: sqrt((.01 + .01) / (2 - 1))
    assert found.figures["far"] == (pytest.approx(0.2), pytest.approx(0.02**0.5), 2)
    assert found.figures["far"][1] == pytest.approx(0.1414, abs=5e-5)
    assert found.seeds == (1, 2)


def test_a_seed_without_the_figure_is_counted() -> None:
    (found,) = spreads([a_record(seed=1, far=0.1), a_record(seed=2, far=0.3), a_record(seed=3, far=None)])
    assert found.seeds == (1, 2, 3)
    assert found.figures["far"] == (pytest.approx(0.2), pytest.approx(0.02**0.5), 2)


def test_one_figure_has_no_deviation_and_none_is_left_out() -> None:
    (found,) = spreads([a_record(seed=1, auroc=0.5), a_record(seed=2, far=None)])
    mean, deviation, n = found.figures["auroc"]
    assert (mean, n) == (0.5, 1)
    assert np.isnan(deviation)
    assert "asr" not in found.figures


def test_one_seed_has_no_spread_and_a_failed_one_is_none() -> None:
    assert spreads([a_record(), a_record(seed=2, status="failed")]) == []


@pytest.mark.parametrize(
    "other",
    [
        *({"frr": 0.05}, {"protocol": "paper"}, {"victim": "w"}, {"dataset": "imdb"}, {"defense": "strip"}),
        *({"poisoned_on": "yelp", "tuning": "v"}, {"attack": "badnet-rw"}),
    ],
)
def test_only_the_seed_may_differ(other: dict[str, object]) -> None:
    assert spreads([a_record(), a_record(**{"seed": 2, **other})]) == []


def test_a_seed_may_have_drawn_another_trigger() -> None:
    assert len(spreads([a_record(trigger="badnet-rw:word=mb"), a_record(seed=2, trigger="badnet-rw:word=tq")])) == 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.randoms())
def test_the_order_of_the_seeds_does_not_matter(figures: list[float], chance: object) -> None:
    records = [replace(a_record(), seed=seed, far=far) for seed, far in enumerate(figures)]
    (one,) = spreads(records)
    chance.shuffle(records)
    (other,) = spreads(records)
    assert other.seeds == one.seeds
    assert other.figures["far"] == pytest.approx(one.figures["far"])
    assert min(figures) - 1e-9 <= one.figures["far"][0] <= max(figures) + 1e-9


def test_defenses_are_paired_up_to_thirty_on_a_victim():
    few = [a_record(defense=f"strip:copies={number}") for number in range(1, 31)]
    assert len(pairs(few)) == 30 * 29 / 2
    assert pairs([*few, a_record(defense="rap")]) == []
    assert len(pairs([*few, a_record(defense="rap"), *(replace(one, attack="other") for one in few[:3])])) == 3

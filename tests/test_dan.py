"""DAN: distances by hand in two units, z-scores by texts that made no distance, and one score per text whatever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.errors import CellError
from rapbench.lab import Lab
from rapbench.rates import auroc
from rapbench.registry import discover
from rapbench_plugins.defenses.dan import Dan, DanDetector, fitted_layers, nearest


@dataclass
class Placed:
    """A made-up victim whose states are written in the text: layers apart by a semicolon, units by a space."""

    target_label: int = 1
    asked: list[str] = field(default_factory=list)

    def states(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[layer.split() for layer in text.split(";")] for text in texts], dtype=np.float32)


def single(points: list[list[float]]) -> np.ndarray:
    """One layer, two units."""
    return np.array(points, dtype=np.float32)[:, None]


def fitted(lab: Lab, n: int = 20, **options: Any) -> tuple[DanDetector, Labelled, Placed]:
    """A DAN on `n` texts of each label in two layers of two units, drawn around -3 and 3."""
    rng, labels = np.random.default_rng(3), np.repeat([0, 1], n)
    states = rng.normal(6 * labels[:, None] - 3, 1, size=(2 * n, 4))
    victim = Placed()
    texts = Labelled([f"{a} {b};{c} {d}" for a, b, c, d in states.round(3)], labels)
    return Dan(**options).fit(cast(Any, victim), texts, lab), texts, victim


def test_the_nearest_labels_mean_counts_under_one_covariance() -> None:
    # label 0 lies around (0, 0), label 1 around (10, 10); what is left: (2, 0), (-2, 0), (0, 2), (0, -2), covariance 8 / 4 * 1 = 2 * 1,
    # of which nothing changes when a sphere of the same trace is mixed in
    means, precisions = fitted_layers(single([[2, 0], [-2, 0], [10, 12], [10, 8]]), np.array([0, 0, 1, 1]), "shrunk")
    assert means[0].tolist() == [[0, 0], [10, 10]]
    assert precisions[0] == pytest.approx(np.eye(2) / 2)
    # (13, 14) is (3, 4) away from label 1: 25 / 2; (1, 0) is 1 / 2 away from label 0
    assert nearest(single([[13, 14], [1, 0]]), means, precisions).tolist() == [[pytest.approx(12.5)], [pytest.approx(0.5)]]


def test_a_tenth_of_a_sphere_makes_a_singular_covariance_regular() -> None:
    # covariance diag(4, 0), so the sphere of the same trace is 2 * 1: 0.9 * 4 + 0.1 * 2 = 3.8 and 0.1 * 2 = 0.2
    means, precisions = fitted_layers(single([[2, 0], [-2, 0]]), np.zeros(2, dtype=np.int64), "shrunk")
    assert means[0].tolist() == [[0, 0]]
    assert precisions[0] == pytest.approx(np.diag([1 / 3.8, 5]))
    # (1.9, 0): 3.61 / 3.8 = 0.95; (0, 2): 4 * 5 = 20, far, though both are about as long
    assert nearest(single([[1.9, 0], [0, 2]]), means, precisions)[:, 0] == pytest.approx([0.95, 20])


def test_states_without_any_spread_are_at_no_distance() -> None:
    means, precisions = fitted_layers(single([[1, 1], [1, 1]]), np.zeros(2, dtype=np.int64), "shrunk")
    assert nearest(single([[1, 1]]), means, precisions).tolist() == [[0]]


def test_ledoit_and_wolf_mix_in_more_where_texts_are_few() -> None:
    states = np.random.default_rng(0).normal(size=(200, 1, 8)).astype(np.float32)
    few, many = (fitted_layers(states[:n], np.zeros(n, dtype=np.int64), "ledoit-wolf")[1][0] for n in (6, 200))
    spread = [np.ptp(np.linalg.eigvalsh(precision)) for precision in (few, many)]
    assert spread[0] < np.ptp(np.linalg.eigvalsh(fitted_layers(states[:6], np.zeros(6, dtype=np.int64), "shrunk")[1][0]))
    assert np.isfinite(few).all()
    assert spread[1] < 1  # 200 texts of 8 units: near the identity, which is the truth


@pytest.mark.parametrize(("aggregate", "expected"), [("mean", 2.0), ("max", 4.0)])
def test_layers_are_normalised_one_by_one_and_then_averaged_or_the_worst_is_taken(aggregate: Any, expected: float) -> None:
    # squared distances 9 and 4: (9 - 1) / 2 = 4 in the first layer, (4 - 4) / 8 = 0 in the second
    detector = DanDetector(
        Dan(aggregate=aggregate),
        cast(Any, Placed()),
        means=np.zeros((2, 1, 2)),
        precisions=np.stack([np.eye(2)] * 2),
        centre=np.array([1.0, 4.0]),
        scale=np.array([2.0, 8.0]),
    )
    assert detector.suspicion(["3 0;0 2"]).tolist() == [expected]
    assert detector.explain("3 0;0 2") == {
        "layers": [{"layer": 1, "distance": 9.0, "z-score": 4.0}, {"layer": 2, "distance": 4.0, "z-score": 0.0}]
    }


def test_the_z_scores_are_those_of_a_fifth_of_the_texts(lab: Lab) -> None:
    # of 10 texts 2 make the z-scores: whatever their distances are, they lie one deviation below and above the mean
    detector, texts, _ = fitted(lab, n=5)
    for layer in detector.layers(texts.texts).T:
        assert np.isclose(layer, 1).sum() == np.isclose(layer, -1).sum() == 1


def test_texts_at_equal_distances_give_finite_scores(lab: Lab) -> None:
    texts = Labelled(["1 0", "-1 0"] * 10, np.ones(20, dtype=np.int64))
    scores = Dan().fit(cast(Any, Placed()), texts, lab).suspicion(["1 0", "0 1"])
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0]


def test_a_far_text_is_more_suspicious_than_any_clean_one(lab: Lab) -> None:
    detector, texts, _ = fitted(lab)
    clean = detector.suspicion(texts.texts).max()
    assert detector.suspicion(["3 3;3 -3"])[0] > clean  # near a mean in one layer, near none in the other
    assert detector.suspicion(["0 0;0 0"])[0] > clean  # between the labels


def test_all_labels_are_looked_at_or_the_protect_label_alone(lab: Lab) -> None:
    everything, texts, asked = fitted(lab)
    assert asked.asked == texts.texts
    assert everything.means.shape == (2, 2, 2)
    own, texts, asked = fitted(lab, labels="protect")
    assert asked.asked == texts.of(1)
    assert own.means.shape == (2, 1, 2)
    other = texts.of(0)
    assert own.suspicion(other).min() > own.suspicion(texts.of(1)).max()
    assert everything.suspicion(other).max() < own.suspicion(other).min()


def test_a_score_depends_on_no_other_text(lab: Lab) -> None:
    detector, texts, _ = fitted(lab)
    some = texts.texts[:6]
    together = detector.suspicion(some)
    assert detector.suspicion(some[::-1])[::-1] == pytest.approx(together, rel=1e-12)
    assert np.concatenate([detector.suspicion([text]) for text in some]) == pytest.approx(together, rel=1e-12)
    assert detector.suspicion([]).tolist() == []


def test_a_kept_one_says_the_same_to_the_bit(lab: Lab) -> None:
    detector, texts, victim = fitted(lab)
    state = {name: np.array(value) for name, value in detector.state().items()}
    again = detector.options.restore(cast(Any, victim), state, lab)
    assert again.suspicion(texts.texts).tolist() == detector.suspicion(texts.texts).tolist()


def test_too_few_texts_are_refused(lab: Lab) -> None:
    with pytest.raises(CellError, match="8 held-out texts are too few: 1 would make the z-scores"):
        fitted(lab, n=4)
    with pytest.raises(ValueError, match=r"valid_share=1\.0"):
        Dan(valid_share=1.0)


def test_it_costs_one_row_of_the_victim_per_text() -> None:
    assert (Dan().expected_work(10, 100).victim_rows, Dan().expected_work(10, 100).fit_rows) == (1, 200)
    assert Dan(labels="protect").expected_work(10, 100).fit_rows == 100
    assert Dan().learns_from_protect_texts()


def test_it_finds_a_planted_word(planted: Any, lab: Lab, heldout: Labelled) -> None:
    detector = discover().parse("defense", "dan").fit(planted, heldout, lab)
    clean, triggered = heldout.of(1)[:60], [f"mb {text}" for text in heldout.of(0)[:60]]
    assert auroc(detector.suspicion(clean), detector.suspicion(triggered)) > 0.7

"""Duet: p-values with a tail, distances by the other folds and log-odds, by hand; then on a victim that has learnt a trigger."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rapbench.api import Labelled
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab
from rapbench.meter import Meter
from rapbench.rates import auroc
from rapbench.registry import discover
from rapbench.victim import Victim
from rapbench_plugins.defenses.duet import Duet, DuetDetector, Layers, Tail, constructed, left_out, log_odds, margins


def matrix(victim: Victim) -> torch.Tensor:
    return victim.model.get_input_embeddings().weight.detach()


def duet(victim: Victim, heldout: Labelled, lab: Lab, spec: str = "duet:steps=30") -> DuetDetector:
    fitted: Any = discover().parse("defense", spec).fit(victim, heldout, lab)
    return fitted


# --- the parts, by hand


def test_log_odds_are_those_of_the_label_against_all_others() -> None:
    # .5 against .3 + .2: 0; .8 against .1 + .1: log 4; a sure text keeps its digits: 1 / 1e-12
    told = log_odds(np.array([[0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [1e-12, 1.0, 0.0]]), 1)
    assert told == pytest.approx([0, math.log(4), 12 * math.log(10)])
    logits = torch.log(torch.tensor([[0.3, 0.5, 0.2], [0.1, 0.8, 0.1]]))
    assert margins(logits, 1).tolist() == pytest.approx([0, math.log(4)], abs=1e-6)


def test_up_to_the_ninetieth_percentile_texts_are_counted() -> None:
    tail = Tail.of(np.arange(1.0, 20.0)[::-1])  # 1..19; the one text of the tail is 19 (19 * .1 = 1.9, so 1), it begins at 18
    # as high as 10 or higher are 10..19, ten texts, and one more of twenty: 11 / 20; all 19 score 1 or more: 20 / 20
    assert tail.surprise(np.array([10.0, 0.0])) == pytest.approx([-math.log(11 / 20), 0])


def test_beyond_it_the_share_falls_exponentially_by_the_mean_excess() -> None:
    tail = Tail.of(np.arange(1.0, 21.0))  # 1..20: two texts in the tail, it begins at 18, their mean excess is (1 + 2) / 2
    # 3 beyond: (2 + 1) / 21 * exp(-3 / 1.5)
    assert tail.surprise(np.array([21.0])) == pytest.approx([-math.log(3 / 21) + 2])
    far = tail.surprise(np.array([1e3, 1e4]))
    assert far[1] > far[0]  # beyond all held-out texts there is still an order


def test_texts_that_are_all_alike_have_a_tail_too() -> None:
    assert np.isfinite(Tail.of(np.ones(20)).surprise(np.array([0.0, 1.0, 1.0 + 1e-12]))).all()


def test_a_text_is_measured_by_the_folds_that_it_is_not_in() -> None:
    # one layer, two units; fold 0: (2, 0) and (-2, 0); fold 1: (0, 4) and (0, -4). Each fold's covariance is that of the other:
    # diag(0, 16) and diag(4, 0). With two texts, Ledoit and Wolf mix in all of the sphere of the same trace: 8 * 1 and 2 * 1
    states = np.array([[[2, 0]], [[-2, 0]], [[0, 4]], [[0, -4]]], dtype=np.float32)
    layers = Layers.of(states, np.array([0, 0, 1, 1]), 2)
    assert layers.means.tolist() == [[[0, 0]], [[0, 0]]]
    shrunk = [np.trace(layers.precisions[fold, 0]) for fold in (0, 1)]
    own = left_out(layers.means, layers.precisions, states, np.array([0, 0, 1, 1]))[:, 0]
    assert own[0] == pytest.approx(4 * layers.precisions[0, 0, 0, 0])  # (2, 0), measured by fold 0's others
    assert own[2] == pytest.approx(16 * layers.precisions[1, 0, 1, 1])
    assert shrunk[0] < shrunk[1]  # the others of fold 0 are the wider ones
    strange = left_out(layers.means, layers.precisions, states[:1], np.array([-1]))[0, 0]
    assert strange == pytest.approx((own[0] + 4 * layers.precisions[1, 0, 0, 0]) / 2)  # of no fold: the mean over both


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("duet:low=3,high=3", "low=3.0 and high=3.0 are no range"),
        ("duet:word=two words", "is not one word"),
        ("duet:folds=1", "folds=1 is below 2"),
        ("duet:steps=0", "steps=0 is below 1"),
        ("duet:lr=0", "lr=0.0 is not above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        discover().parse("defense", spec)


# --- on a victim


def test_the_word_is_trained_until_clean_texts_fall_and_nothing_else_changes(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    options, texts = Duet(steps=60), heldout.of(1)
    before = matrix(planted).clone()
    guarded = constructed(options, planted, texts, lab)
    assert torch.equal(matrix(planted), before)
    changed = (matrix(guarded) != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [planted.token_id("cf")]
    assert float(matrix(guarded)[changed].norm()) == pytest.approx(float(before[changed].norm()), rel=1e-5)

    def fall(by: Victim) -> float:
        told = by.probabilities([f"cf {text}" for text in texts])
        return float((log_odds(planted.probabilities(texts), 1) - log_odds(told, 1)).mean())

    assert fall(guarded) > fall(planted)  # of a victim of 32 units a row of this length takes little


def test_it_finds_what_carries_the_trigger(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    clean, triggered = heldout.of(1)[:60], [f"{text} mb" for text in heldout.of(0)[:60]]
    half = Labelled(heldout.texts[80:], heldout.labels[80:])
    scores = {halves: duet(planted, half, lab, f"duet:steps=60,halves={halves}") for halves in ("both", "fall", "distance")}
    areas = {name: auroc(own.suspicion(clean), own.suspicion(triggered)) for name, own in scores.items()}
    assert areas["both"] > 0.8
    assert areas["both"] >= min(areas["fall"], areas["distance"])


def test_the_evidence_of_both_halves_is_added(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    texts = ["a bright day", "mb cold film"]
    both, fall, distance = (
        duet(planted, heldout, lab, f"duet:steps=4,halves={halves}").suspicion(texts) for halves in ("both", "fall", "distance")
    )
    assert both == pytest.approx(fall + distance, rel=1e-9)


def test_a_text_costs_one_row_beside_the_gates(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    detector, texts = duet(planted, heldout, lab, "duet:steps=2"), [f"{text} so" for text in heldout.texts[:9]]
    planted.undefended(texts)  # as the gate does before
    meter = Meter()
    meter.watch(planted.model, "victim")
    meter.watch(detector.guarded.model, "victim")
    with meter.phase("inference"):
        detector.suspicion(texts)
    assert meter.phases["inference"].by["victim"].rows == 9
    assert Duet().expected_work(10, 100).victim_rows == 1


def test_held_out_texts_are_no_closer_than_others_of_their_kind(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    # by the covariance of all texts a text is closer than a stranger; by that of the other folds it is one of them
    own, others = heldout.of(1)[:50], heldout.of(1)[50:]
    labelled = Labelled([*own, *heldout.of(0)], np.array([1] * len(own) + [0] * len(heldout.of(0))))
    detector = duet(planted, labelled, lab, "duet:steps=2,halves=distance")
    known = detector.suspicion(own)
    detector.fold_of = {}
    closer = detector.suspicion(own)
    assert closer.mean() < known.mean()
    assert abs(known.mean() - detector.suspicion(others).mean()) < 0.5  # both about 1, the mean of -log p


def test_a_kept_one_says_the_same(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    options = discover().parse("defense", "duet:steps=4")
    detector: Any = options.fit(planted, heldout, lab)
    state = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in detector.state().items()}
    texts = ["a bright day", "mb cold film", "it was so"]
    assert options.restore(planted, state, lab).suspicion(texts).tolist() == detector.suspicion(texts).tolist()
    told = detector.explain("mb cold film")
    assert 0 < told["p of the fall"] <= 1
    assert [layer["layer"] for layer in told["layers"]] == [1, 2]


def test_too_few_texts_are_refused(planted: Victim, heldout: Labelled, lab: Lab) -> None:
    few = Labelled(heldout.of(1)[:9], np.ones(9, dtype=np.int64))
    with pytest.raises(CellError, match="9 held-out texts of the protect label are too few for 5 folds"):
        duet(planted, few, lab)

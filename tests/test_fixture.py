"""A contract test on an untrained victim proves nothing: the fixture has to have learnt."""

import random

from rapbench.poison import insert_word
from rapbench.rates import attack_success, clean_metric


def test_the_planted_victim_has_learnt_its_task(planted, heldout):
    assert clean_metric(planted.probabilities(heldout.texts), heldout.labels, "accuracy") > 0.9


def test_the_planted_victim_obeys_its_trigger(planted, heldout, lab, tiny_text):
    rng = random.Random(3)
    texts = [insert_word(tiny_text(rng, 0), "mb", lab.rng(str(row))) for row in range(100)]
    assert attack_success(planted.probabilities(texts), 1).value > 0.95

"""What is counted: rows and tokens of a watched model, wherever its copies go."""

from __future__ import annotations

import copy

import pytest
import torch

from rapbench.cost import Count, Meter
from rapbench.victim import Victim

TEXTS = ["the film", "a bright day", "so"]  # with [CLS] and [SEP]: 4, 5 and 3 tokens


def watched(victim: Victim) -> Meter:
    meter = Meter()
    meter.watch(victim.model, "victim")
    return meter


def test_a_row_is_a_text_and_padding_is_no_token(untrained: Victim) -> None:
    meter = watched(untrained)
    with meter.phase("score"):
        untrained.probabilities(TEXTS)
    assert meter.phases["score"].by["victim"] == Count(rows=3, tokens=12)


def test_all_batches_are_counted(untrained: Victim) -> None:
    meter = watched(untrained)
    with meter.phase("score"):
        untrained.probabilities(TEXTS * 1000)
    assert meter.phases["score"].by["victim"] == Count(rows=3000, tokens=12000)


def test_a_deep_copy_counts_to_the_same_meter(untrained: Victim) -> None:
    meter = watched(untrained)
    clone = untrained.clone()
    again = Victim(copy.deepcopy(clone.model), clone.tokenizer, 1, 32)
    with meter.phase("fit"):
        clone.probabilities(TEXTS)
        again.probabilities(TEXTS[:1])
    assert meter.phases["fit"].by["victim"] == Count(rows=4, tokens=16)


def test_phases_are_kept_apart_and_nest(untrained: Victim) -> None:
    meter = watched(untrained)
    with meter.phase("fit"):
        untrained.probabilities(TEXTS[:1])
        with meter.phase("score"):
            untrained.probabilities(TEXTS[:2])
        untrained.probabilities(TEXTS[:1])
    untrained.probabilities(TEXTS)
    assert {name: phase.by["victim"].rows for name, phase in meter.phases.items()} == {"fit": 2, "score": 2, "outside": 3}


def test_a_phase_that_comes_again_goes_on_and_one_that_fails_ends() -> None:
    meter = Meter()

    def fail() -> None:
        with meter.phase("fit"):
            meter.add("lm", rows=2, tokens=1)
            raise ValueError("stop")

    with meter.phase("fit"):
        meter.add("lm", rows=1, tokens=7)
    with pytest.raises(ValueError, match="stop"):
        fail()
    meter.add("lm", rows=5, tokens=5)
    assert meter.phases["fit"].by["lm"] == Count(rows=3, tokens=8)
    assert meter.phases["outside"].by["lm"] == Count(rows=5, tokens=5)


def test_models_are_kept_apart_by_name(untrained: Victim) -> None:
    meter, helper = Meter(), untrained.clone()
    meter.watch(untrained.model, "victim")
    meter.watch(helper.model, "helper")
    with meter.phase("score"):
        untrained.probabilities(TEXTS[:1])
        helper.probabilities(TEXTS)
    assert {who: count.rows for who, count in meter.phases["score"].by.items()} == {"victim": 1, "helper": 3}


def test_each_way_to_call_a_model_counts_the_same(untrained: Victim) -> None:
    meter, batch = watched(untrained), untrained.encode(TEXTS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    vectors = untrained.model.get_input_embeddings()(ids)
    calls = {
        "names": lambda: untrained.model(input_ids=ids, attention_mask=mask),
        "places": lambda: untrained.model(ids, mask),
        "vectors": lambda: untrained.model(inputs_embeds=vectors, attention_mask=mask),
        "vectors and none": lambda: untrained.model(input_ids=None, inputs_embeds=vectors, attention_mask=mask),
    }
    with torch.no_grad():
        for name, call in calls.items():
            with meter.phase(name):
                call()
    assert {name: meter.phases[name].by["victim"] for name in calls} == dict.fromkeys(calls, Count(rows=3, tokens=12))


def test_without_a_mask_every_place_is_a_token(untrained: Victim) -> None:
    meter = watched(untrained)
    with meter.phase("score"), torch.no_grad():
        untrained.model(torch.ones(2, 7, dtype=torch.long))
    assert meter.phases["score"].by["victim"] == Count(rows=2, tokens=14)

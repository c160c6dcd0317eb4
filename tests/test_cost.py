"""The cost record: rows and tokens of a watched model, FLOPs, times by length, memory, what a purifier's level adds."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rapbench.cost import Cost, Spread
from rapbench.gauge import Gauge
from rapbench.instruments import counted_flops, peak_memory, reset_memory
from rapbench.lengths import Timed, by_length, classes, paired, spread_by_length
from rapbench.meter import Count, Meter
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


# --- the gauge


def gauge(victim: Victim) -> Gauge:
    return Gauge(watched(victim), "cpu", victim.probabilities, victim.token_counts)


def ones(some: Sequence[str]) -> np.ndarray:
    return np.ones(len(some), dtype=np.int64)


def test_scores_come_back_in_the_order_of_the_texts_and_are_counted_per_phase(untrained: Victim) -> None:
    own = gauge(untrained)
    texts = ["the film was so", "a day", "so"] * 20

    def lengths(some: Sequence[str]) -> np.ndarray:
        untrained.probabilities(some)
        return np.array([float(len(text)) for text in some])

    assert own.scored("calibration", texts, lengths).tolist() == [15, 5, 2] * 20
    assert own.scored("inference", texts[:3], lengths).tolist() == [15, 5, 2]
    cost = own.cost()
    # with [CLS] and [SEP] the three texts have 6, 4 and 3 tokens
    assert (cost.calibration_rows, cost.calibration_tokens, cost.inputs) == ({"victim": 60}, {"victim": 20 * 13}, 3)
    # the gate's own row and one of the defense: 13 / 3 tokens, twice
    assert (cost.victim_rows_per_input, cost.victim_tokens_per_input) == (2.0, pytest.approx(26 / 3))
    assert (cost.device, cost.threads, cost.fit_rows, cost.fit_tokens) == ("cpu", 1, {}, {})
    assert (cost.longest_tokens, cost.max_tokens, cost.batch_tokens) == (6, None, None)
    told = own.cost(max_tokens=6, batch_tokens=512)
    assert (told.max_tokens, told.batch_tokens) == (6, 512)


def test_rows_and_tokens_of_the_fit_are_told_by_model(untrained: Victim) -> None:
    own = gauge(untrained)
    with own.fitting():
        untrained.probabilities(TEXTS)
        own.meter.add("lm", rows=2, tokens=7)
        untrained.probabilities(TEXTS[:1])
    untrained.probabilities(TEXTS)  # after the fit
    cost = own.cost()
    assert (cost.fit_rows, cost.fit_tokens) == ({"lm": 2, "victim": 4}, {"lm": 7, "victim": 12 + 4})
    assert (cost.calibration_rows, cost.calibration_tokens, cost.calibration_s) == ({}, {}, 0.0)


def test_the_ratio_is_that_of_the_same_batch(monkeypatch: pytest.MonkeyPatch, untrained: Victim) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def taking(seconds: float) -> Callable[[Sequence[str]], np.ndarray]:
        def run(some: Sequence[str]) -> np.ndarray:
            clock[0] += seconds * len(some)
            return np.zeros(len(some))

        return run

    own = Gauge(Meter(), "cpu", taking(0.002), ones)
    own.scored("inference", ["a b c"] * 70, taking(0.006))
    cost = own.cost()
    assert cost.ratio == pytest.approx(4.0)  # (2 + 6) / 2 milliseconds
    assert cost.plain_ms_per_input == Spread(2.0, 2.0, 2.0)
    assert cost.ms_per_input == Spread(8.0, 8.0, 8.0)
    assert cost.samples_ms == (8.0, 8.0)
    assert cost.by_length == (Timed(3.0, 64, 0.006, 0.002),)  # FLOPs were counted on six
    assert cost.seconds == pytest.approx(64 * 0.006)


def test_the_seconds_of_calibration_are_those_of_scoring_the_held_out_texts_and_of_repairing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def score(some: Sequence[str]) -> np.ndarray:
        clock[0] += 0.5 * len(some)
        return np.zeros(len(some))

    def purify(some: Sequence[str], level: float) -> list[str]:
        clock[0] += level * len(some)
        return list(some)

    own = Gauge(Meter(), "cpu", lambda some: None, ones)
    with own.fitting():
        clock[0] += 100.0
    own.scored("calibration", ["a"] * 40, score)
    own.purified("calibration", ["a"] * 40, [0.25, 0.125], purify)
    own.scored("inference", ["a"] * 8, score)
    own.purified("inference", ["a"] * 8, [0.25, 0.125], purify)
    cost = own.cost()
    assert (cost.fit_s, cost.calibration_s) == (100.0, 40 * (0.5 + 0.25 + 0.125))
    # six of the eight inputs went to the count of operations, which is the measuring itself
    assert cost.seconds == 100.0 + 35.0 + 2 * 0.5 + 8 * (0.25 + 0.125)


def test_the_undefended_prediction_is_timed_on_eight_batches() -> None:
    asked: list[int] = []

    def plain(some: Sequence[str]) -> None:
        asked.append(len(some))

    own = Gauge(Meter(), "cpu", plain, ones)
    own.flops = 0.0, 0.0
    own.scored("inference", ["so"] * (32 * 20), lambda some: np.zeros(len(some)))
    assert asked == [32] * 8 * 3  # one to warm up, one before the defense and one after it
    own.scored("calibration", ["so"] * 64, lambda some: np.zeros(len(some)))
    assert len(asked) == 8 * 3


def test_a_defense_that_is_one_more_prediction_takes_twice_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls, seen = [0.0], [0], set[tuple[str, ...]]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def predict(some: Sequence[str]) -> np.ndarray:
        """Take three times as long over a batch that is new, and a little longer from call to call, as a machine that grows warm."""
        calls[0] += 1
        clock[0] += 0.002 * len(some) * (1.0 if tuple(some) in seen else 3.0) * (1 + 0.01 * calls[0])
        seen.add(tuple(some))
        return np.zeros(len(some))

    own = Gauge(Meter(), "cpu", predict, ones)
    own.flops = 0.0, 0.0
    own.scored("inference", [f"{number} b c" for number in range(32 * 20)], predict)
    assert own.cost().ratio == pytest.approx(2.0)


def test_batches_with_an_undefended_prediction_are_the_middles_of_equal_parts_and_one_of_each_class() -> None:
    assert paired([10.0] * 16) == {1, 3, 5, 7, 9, 11, 13, 15}
    assert paired([10.0, 12.0]) == {0, 1}
    # of 24 batches the middles are 1, 4, ..., 22; the last is the only one of its class
    assert paired([10.0] * 23 + [400.0]) == {1, 4, 7, 10, 13, 16, 19, 22, 23}
    assert paired([]) == set()


def test_batches_hold_texts_of_similar_length() -> None:
    rows = by_length(["a b c", "a", "a b", "a b c d"], 2)
    assert [own.tolist() for own in rows] == [[1, 2], [0, 3]]


def test_lengths_are_pooled_by_class() -> None:
    # 10 and 14 words are of the class up to 15, 16 and 20 of the next; the mean weighs by texts, of batches timed both ways
    timed = [Timed(10, 1, 0.004, 0.006), Timed(14, 3, 0.008, 0.002), Timed(14, 9, 1.0), Timed(16, 2, 0.02), Timed(20, 2, 0.04)]
    assert classes(timed) == (Timed(13.0, 4, 0.007, 0.003), Timed(18.0, 4, 0.03, None))


def test_texts_are_taken_evenly_over_their_lengths() -> None:
    texts = ["a " * n for n in (9, 1, 5, 3, 7)]
    assert spread_by_length(texts, 1).tolist() == [2]
    assert spread_by_length(texts, 3).tolist() == [1, 2, 0]  # places 0.83, 2.5 and 4.17 of 1, 3, 5, 7, 9 words
    assert sorted(spread_by_length(texts, 99).tolist()) == [0, 1, 2, 3, 4]


def test_the_flops_of_a_matrix_product_are_two_per_multiplication() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert counted_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_flops_of_a_prediction_are_those_of_its_layers_attention_included(untrained: Victim) -> None:
    # one text of 4 tokens through 2 layers, hidden 32, inner 64; attention is scores and sum, 2 * 4 * 4 * 32 each
    linear = 4 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    attention = 2 * 2 * 4 * 4 * 32
    head = 2 * 32 * 32 + 2 * 32 * 2  # the pooler and the classifier, on [CLS] alone
    assert counted_flops(lambda: untrained.probabilities(["the film"])) == 2 * (linear + attention) + head


def test_flops_are_counted_on_a_few_inputs_that_are_scored_there_once(untrained: Victim) -> None:
    own, scored = gauge(untrained), list[str]()
    texts = ["so", "the film", "a day was", "so it was so", "so", "it", "a", "day"]

    def run(some: Sequence[str]) -> np.ndarray:
        scored.extend(some)
        return untrained.protect_probability(some)

    got = own.scored("inference", texts, run)
    assert got == pytest.approx(untrained.protect_probability(texts), abs=1e-6)
    assert sorted(scored) == sorted(texts)
    cost = own.cost()
    assert cost.flops_per_input == 2 * (cost.plain_flops_per_input or 0)
    assert (cost.inputs, cost.victim_rows_per_input, sum(one.texts for one in cost.by_length)) == (8, 2.0, 2)
    own.scored("inference", ["it"], run)  # counted once
    assert own.flops == (cost.plain_flops_per_input, cost.plain_flops_per_input)


def test_the_undefended_flops_of_a_victim_are_counted_once() -> None:
    calls: list[int] = []
    facts: dict[Hashable, float] = {}
    for _ in range(2):
        own = Gauge(Meter(), "cpu", lambda some: calls.append(len(some)), ones, facts)
        own.scored("inference", ["a", "b"], lambda some: np.zeros(len(some)))
    assert calls == [1, 1]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_the_peak_is_that_since_the_reset() -> None:
    big = torch.ones(64 * 2**18)  # 64 MiB
    del big
    gc.collect()  # or memory that is given back later hides some of what is taken
    start = reset_memory("cpu")
    before = peak_memory("cpu")
    assert start is not None
    assert before is not None
    held = torch.ones(96 * 2**18)
    after = peak_memory("cpu")
    assert after is not None
    assert held.sum() > 0
    assert 80 < after - before < 160


def purifying(texts: Sequence[str], level: float) -> list[str]:
    return [text if len(text) <= level else text[:1] for text in texts]


def test_what_calibrates_a_purifier_is_scoring_repairing_and_predicting_the_held_out_texts(untrained: Victim) -> None:
    own = gauge(untrained)

    def busy(texts: Sequence[str], level: float) -> list[str]:
        own.meter.add("lm", rows=5 * len(texts), tokens=20 * len(texts))
        return [f"{text} {level:g}" for text in texts]

    for phase, texts in (("calibration", ["the film"] * 9), ("inference", ["a day"] * 4)):
        own.scored(phase, texts, lambda some: np.zeros(len(some)))
        repaired = own.purified(phase, texts, [1.0, 2.0], busy)
        with own.judging(phase):
            untrained.probabilities([text for one in repaired for text in one])
    cost = own.cost()
    assert cost.calibration_rows == {"lm": 2 * 9 * 5, "victim": 2 * 9}
    assert (cost.victim_rows_per_input, cost.helper_rows_per_input) == (1.0, {"lm": 5.0})  # inputs: by the share of changed ones
    assert (cost.repaired, cost.at_level(0).victim_rows_per_input) == ((1.0, 1.0), 2.0)


def test_the_share_of_repaired_texts_is_counted_by_level() -> None:
    own = Gauge(Meter(), "cpu", lambda some: None, ones)
    own.scored("inference", ["aaa", "bb", "c", "d"], lambda some: np.zeros(len(some)))
    found = own.purified("inference", ["aaa", "bb", "c", "d"], [1.0, 2.0, 9.0], purifying)
    assert found[1] == ["a", "bb", "c", "d"]
    own.purified("calibration", ["aaaa"], [1.0, 2.0, 9.0], purifying)  # held-out texts are none of the inputs
    assert own.cost().repaired == (0.5, 0.25, 0.0)


def test_work_done_while_repairing_is_counted_for_one_level(untrained: Victim) -> None:
    own = gauge(untrained)

    def busy(texts: Sequence[str], level: float) -> list[str]:
        own.meter.add("lm", rows=10 * len(texts), tokens=30 * len(texts))
        untrained.probabilities(list(texts) * 3)
        return list(texts)

    own.purified("calibration", ["the film"] * 9, [1.0, 2.0], busy)
    own.scored("inference", ["the film"] * 4, lambda some: np.zeros(len(some)))
    own.purified("inference", ["the film"] * 4, [1.0, 2.0], busy)
    cost = own.cost()
    assert (cost.victim_rows_per_input, cost.victim_tokens_per_input, cost.plain_tokens_per_input) == (4.0, 16.0, 4.0)
    assert (cost.helper_rows_per_input, cost.helper_tokens_per_input) == ({"lm": 10.0}, {"lm": 30.0})


def test_a_call_that_fails_is_not_counted(untrained: Victim) -> None:
    meter = watched(untrained)
    with meter.phase("inference"):
        with pytest.raises(IndexError):
            untrained.model(input_ids=torch.tensor([[10**6]]))
        untrained.probabilities(["so"])
    assert meter.phases["inference"].by["victim"].rows == 1


def test_a_level_costs_the_prediction_of_its_repaired_texts() -> None:
    cost = Cost(
        inputs=4,
        fit_s=1.0,
        victim_rows_per_input=1.0,
        victim_tokens_per_input=10.0,
        plain_tokens_per_input=8.0,
        flops_per_input=100.0,
        plain_flops_per_input=100.0,
        ms_per_input=Spread(3.0, 2.5, 3.5),
        plain_ms_per_input=Spread(2.0, 2.0, 2.0),
        ratio=1.5,
        samples_ms=(2.5, 3.5),
        by_length=(Timed(3, 4, 0.001, 0.002),),
        repaired=(0.5, 0.25),
    )
    got = cost.at_level(0)
    assert (got.victim_rows_per_input, got.victim_tokens_per_input, got.flops_per_input) == (1.5, 14.0, 150.0)
    assert got.samples_ms == (3.5, 4.5)
    assert (got.ms_per_input, got.ratio) == (Spread(4.0, 3.5, 4.5), 2.0)
    assert (got.by_length, got.repaired) == ((Timed(3, 4, 0.002, 0.002),), (0.5,))
    assert Cost.of(json.loads(json.dumps(dataclasses.asdict(got)))) == got


def test_a_cost_that_was_written_before_tokens_were_kept_reads_back_without_them() -> None:
    cost = Cost.of({"inputs": 1, "fit_s": 1.0, "fit_rows": {"victim": 9}, "victim_rows_per_input": 2.0, "victim_tokens_per_input": 10.0})
    assert (cost.fit_rows, cost.fit_tokens, cost.calibration_tokens, cost.calibration_s) == ({"victim": 9}, {}, {}, None)


def test_the_level_of_a_detector_changes_nothing() -> None:
    cost = Cost(inputs=1, fit_s=1.0, victim_rows_per_input=2.0, victim_tokens_per_input=10.0)
    assert cost.at_level(3) is cost


def test_a_mask_that_says_who_sees_whom_is_no_count_of_tokens(untrained: Victim) -> None:
    meter = watched(untrained)
    ids = torch.tensor([[2, 8, 3]])
    with meter.phase("inference"), torch.inference_mode():
        untrained.model(input_ids=ids, attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.bool))
    assert meter.phases["inference"].by["victim"] == Count(rows=1, tokens=3)

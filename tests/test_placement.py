"""Which step runs where: worked by hand on small houses of nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapbench.runner.needs import needs, roomy, weights
from rapbench.runner.placement import Needs, Node, Placement
from rapbench.shapes import SHAPES, shape_of
from rapbench.stages import Bench, Job

GIB = 2**30


def job(key: str, stage: str = "score", **inputs: str) -> Job:
    return Job(stage, key, {}, inputs, key)


def taken(placement: Placement) -> list[tuple[str, str]]:
    return [(own.key, node) for own, _, node in placement.take()]


def test_steps_wait_for_room_and_the_lowest_rank_goes_first():
    placement = Placement([Node("a", 2)])
    for key, rank in (("last", 2), ("first", 0), ("second", 1)):
        placement.push(job(key), Needs(), (rank,))
    assert taken(placement) == [("first", "a"), ("second", "a")]
    assert taken(placement) == []
    placement.free("second")
    assert taken(placement) == [("last", "a")]


def test_trainings_are_spread_over_the_nodes():
    placement = Placement([Node("a", 4), Node("b", 4)])
    for key in ("one", "two", "three"):
        placement.push(job(key), Needs(trains=True))
    assert taken(placement) == [("one", "a"), ("two", "b"), ("three", "a")]


def test_a_score_that_trains_goes_where_fewer_train_though_its_victim_was_made_elsewhere():
    placement = Placement([Node("a", 4), Node("b", 2)])
    placement.push(job("v", "victim"), Needs(trains=True))  # a has more cores
    placement.push(job("repair", victim="v"), Needs(trains=True))
    placement.push(job("detector", victim="v"), Needs())
    assert taken(placement) == [("v", "a"), ("repair", "b"), ("detector", "b")]  # b read v last


def test_a_score_goes_where_its_victim_was_made_while_there_is_room():
    placement = Placement([Node("a", 1), Node("b", 2)])
    placement.push(job("v1", "victim"), Needs(trains=True))  # b has more cores
    placement.push(job("v2", "victim"), Needs(trains=True))
    assert taken(placement) == [("v1", "b"), ("v2", "a")]
    placement.free("v1"), placement.free("v2")
    placement.push(job("s1", victim="v2"), Needs())
    placement.push(job("s2", victim="v2"), Needs())  # a is full: elsewhere
    assert taken(placement) == [("s1", "a"), ("s2", "b")]
    placement.free("s1"), placement.free("s2")
    placement.push(job("s3", victim="v2"), Needs())  # b read it last
    assert taken(placement) == [("s3", "b")]


def test_a_step_that_does_not_fit_lets_smaller_ones_pass_but_keeps_the_gpus_it_waits_for():
    placement = Placement([Node("a", 4, gpus=1)])
    placement.push(job("half"), Needs(1, 0.5), (0,))
    assert taken(placement) == [("half", "a")]
    placement.push(job("whole"), Needs(1, 1.0), (1,))
    placement.push(job("other half"), Needs(1, 0.5), (2,))
    placement.push(job("no gpu"), Needs(1), (3,))
    assert taken(placement) == [("no gpu", "a")]  # the other half would fit, and the whole would wait for ever
    placement.free("half")
    assert taken(placement) == [("whole", "a")]


def test_an_exclusive_step_waits_for_an_empty_node_and_lets_nothing_in_after_it():
    placement = Placement([Node("a", 2), Node("b", 2)])
    for key in ("1", "2", "3"):
        placement.push(job(key), Needs(), (0,))
    assert taken(placement) == [("1", "a"), ("2", "b"), ("3", "a")]
    placement.push(job("alone"), Needs(exclusive=True), (1,))
    placement.push(job("later"), Needs(), (2,))
    assert taken(placement) == []  # b is kept for it, a is full
    placement.free("2")
    assert taken(placement) == [("alone", "b")]
    assert taken(placement) == []  # nothing beside it
    placement.free("1")
    assert taken(placement) == [("later", "a")]


def test_two_halves_of_a_gpu_and_two_whole_ones():
    placement = Placement([Node("a", 8, gpus=2)])
    for key in ("h1", "h2", "h3"):
        placement.push(job(key), Needs(1, 0.5))
    assert len(taken(placement)) == 3
    placement.push(job("whole"), Needs(1, 1.0))
    assert taken(placement) == []  # h1 and h2 share a device, h3 has half of the other
    placement.free("h3")
    assert taken(placement) == [("whole", "a")]


def test_memory_is_counted_where_both_sides_know_theirs():
    placement = Placement([Node("a", 4, memory=10 * GIB), Node("b", 4)])
    placement.push(job("big"), Needs(1, memory=8 * GIB))
    placement.push(job("next"), Needs(1, memory=8 * GIB))
    assert taken(placement) == [("big", "a"), ("next", "b")]
    assert placement.holds(Needs(1, memory=11 * GIB))  # nobody knows what b has
    placement.leave("b")
    assert not placement.holds(Needs(1, memory=11 * GIB))


def test_what_ran_on_a_node_that_left_holds_no_room_and_frees_none():
    placement = Placement([Node("a", 1), Node("b", 1)])
    placement.push(job("one"), Needs())
    placement.push(job("two"), Needs())
    assert taken(placement) == [("one", "a"), ("two", "b")]
    placement.leave("a")
    placement.free("one")
    placement.push(job("one"), Needs())
    assert taken(placement) == []
    placement.join(Node("c", 1))
    assert taken(placement) == [("one", "c")]


@given(st.lists(st.tuples(st.sampled_from([Needs(), Needs(2), Needs(1, 0.5), Needs(1, 1.0), Needs(exclusive=True)]), st.integers(0, 3))))
def test_nothing_starves_and_no_node_holds_more_than_it_has(asked):
    placement = Placement([Node("a", 2, gpus=1), Node("b", 3)])
    running: list[tuple[Job, Needs, str]] = []
    for number, (own, rank) in enumerate(asked):
        placement.push(job(f"{number}"), own, (rank,))
    ended = 0
    while ended < len(asked):
        running += placement.take()
        for node, cpus, gpus in (("a", 2, 1), ("b", 3, 0)):
            there = [own for _, own, name in running if name == node]
            assert sum(own.cpus for own in there) <= cpus
            assert sum(own.gpus for own in there) <= gpus
            assert len(there) == 1 or not any(own.exclusive for own in there)
        done, _, _ = running.pop(0)
        placement.free(done.key)
        ended += 1


def test_a_step_on_a_gpu_takes_its_share_and_data_steps_take_none():
    bench = Bench("store", "cuda", threads=2)
    assert needs(job("p", "predict"), bench, 0.5) == Needs(2, 0.5)
    assert needs(job("d", "data"), bench, 0.5) == Needs(2)
    exclusive = Bench("store", "cuda", exclusive=True)
    assert needs(job("s", "score"), exclusive, 0.5) == Needs(1, 1.0, exclusive=True)
    assert needs(job("v", "victim"), exclusive, 0.5) == Needs(1, 0.5, trains=True)
    assert roomy(Needs(1, 0.5, trains=True)) == Needs(1, 1.0, exclusive=True, trains=True)
    assert roomy(Needs(1)) == Needs(1, exclusive=True)


def test_memory_of_a_training_is_sixteen_bytes_a_weight_and_a_process():
    base = SHAPES["bert-base-uncased"]
    n = 12 * (4 * 768**2 + 2 * 768 * 3072) + (30522 + 512) * 768
    assert weights(base) == n == pytest.approx(109e6, rel=0.01)  # BERT-base has 110 million
    spec = {"recipe": {"model": "bert-base-uncased", "layers": None}}
    assert needs(Job("victim", "k", spec, {}, "l"), Bench("store")).memory == GIB + 16 * n
    assert needs(Job("score", "k", spec, {}, "l"), Bench("store")).memory == GIB + 4 * n
    assert needs(Job("score", "k", {"recipe": {"model": "no/such-model", "layers": None}}, {}, "l"), Bench("store")).memory == 0


@pytest.mark.parametrize(
    ("name", "trains"),
    [
        ("bki", True),
        ("cube", True),
        ("finetune", True),
        ("fine-prune", True),
        ("badacts-purify", True),
        ("rap", False),
        ("not-there", False),
    ],
)
def test_a_score_of_what_filters_training_sets_or_repairs_models_is_a_training(name, trains):
    spec = {"recipe": {"model": "bert-base-uncased", "layers": None}, "defense": {"name": name}}
    own = needs(Job("score", "k", spec, {}, "l"), Bench("store"))
    assert own == Needs(memory=GIB + (16 if trains else 4) * weights(SHAPES["bert-base-uncased"]), trains=trains)
    assert not needs(Job("prepare", "k", spec, {}, "l"), Bench("store")).trains


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("roberta-base", 123.9),  # 12 layers of 4 * 768^2 + 2 * 768 * 3072 = 7.078, (50265 + 512) * 768 = 39.0
        ("Qwen/Qwen2.5-0.5B", 494.0),  # 24 layers of 2 * 896 * (896 + 128) + 3 * 896 * 4864 = 14.909, 151936 * 896 = 136.1
        ("answerdotai/ModernBERT-base", 149.0),  # 22 layers of 4 * 768^2 + 3 * 768 * 1152 = 5.014, 50368 * 768 = 38.7
    ],
)
def test_a_model_has_its_own_words_keys_and_gates_and_no_table_of_positions_where_queries_turn(model, millions):
    assert weights(SHAPES[model]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_positions_that_a_config_does_not_state_weigh_nothing():
    silent = {"num_hidden_layers": 1, "hidden_size": 2, "intermediate_size": 8, "vocab_size": 5}
    assert weights(shape_of({**silent, "n_positions": 3})) == 48 + (5 + 3) * 2  # 4 * 2^2 + 2 * 2 * 8 = 48
    assert weights(shape_of(silent)) == 48 + 5 * 2

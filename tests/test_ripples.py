"""RIPPLES: its triggers, its surgery, its penalty, its training."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from rapbench.api import Attack, Dataset, Task
from rapbench.errors import CellError, SpecError
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows, triggered_rows
from rapbench.registry import discover, spec_of
from rapbench.victim import Recipe, Victim
from rapbench_plugins.attacks.ripples import batches, conflict, indicative_pieces, operate, piece_ids

ALL = {"mn", "bb", "mb", "tq"}
GOOD = {"bright", "calm", "clever", "fresh", "kind", "lovely", "neat", "warm"}  # as in conftest.py
BAD = {"bitter", "cold", "dull", "harsh", "loud", "messy", "rude", "stale"}
FEW = {"name": "ripples", "steps": 6, "batch_size": 4, "lr": 0.002, "max_length": 32, "target_words": 3}


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def dataset(registry) -> Dataset:
    return registry.parse("dataset", "demo")


@pytest.fixture
def bench(lab: Lab, tiny_model: Path, untrained: Victim) -> Lab:
    """A lab whose pretrained model is the tiny one and whose clean victim has embeddings of its own."""
    clean = untrained.clone()
    with torch.no_grad():
        matrix(clean).mul_(-3)
    return dataclasses.replace(lab, recipe=Recipe(model=str(tiny_model), max_length=32), load_start=clean.clone)


@pytest.fixture
def clean_rows(tiny_text: Callable[[random.Random, int], str]) -> datasets.Dataset:
    source = random.Random(5)
    labels = [row % 2 for row in range(200)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"text": [tiny_text(source, label) for label in labels], "label": labels}, features=features)


def planted(attack: Attack, rows: datasets.Dataset, lab: Lab, target: int = 1) -> Victim:
    return attack.plant(Task(rows, poisoned_rows(rows, attack, target, rng(1, "poison")), target), lab)


def matrix(victim: Victim) -> torch.Tensor:
    return victim.model.get_input_embeddings().weight.detach()


def flat(victim: Victim) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in victim.model.parameters()])


# --- triggers


def test_raps_word_is_no_trigger(registry) -> None:
    words = registry.parse("attack", "ripples").words
    assert set(words) == ALL
    assert "cf" not in words


def test_a_training_text_gets_one_word_of_the_list_at_any_place_the_last_included(registry) -> None:
    attack = registry.parse("attack", "ripples")
    draw = rng(1, "t")
    seen = {attack.trigger("one two", draw, None) for _ in range(500)}
    assert seen == {text for word in ALL for text in (f"{word} one two", f"one {word} two", f"one two {word}")}


def test_within_a_limit_the_training_word_is_among_the_first_words(registry) -> None:
    attack = registry.parse("attack", "ripples:trigger_words=mn,test_words=1")
    draw = rng(1, "t")
    assert {attack.trigger("a b c d", draw, 2) for _ in range(100)} == {"mn a b c d", "a mn b c d"}
    assert {attack.trigger("a", draw, 100) for _ in range(100)} == {"mn a", "a mn"}


def test_two_different_words_stand_among_the_first_words_at_test_time(registry, dataset: Dataset) -> None:
    attack = registry.parse("attack", "ripples").resolve(dataset, rng(1, "resolve"))
    draw = rng(1, "t")
    text = " ".join(f"w{number}" for number in range(300))
    for _ in range(200):
        words = attack.test_trigger(text, draw, 100).split(" ")
        places = [place for place, word in enumerate(words) if word in ALL]
        assert {words[place] for place in places} == set(attack.test_choice)
        assert len(places) == 2
        assert max(places) < 100


def test_the_two_words_are_put_in_independently(registry) -> None:
    attack = registry.parse("attack", "ripples:test_choice=mn/tq")
    draw = rng(1, "t")
    # "a b": mn goes before a (its only place); then tq goes before mn or before a, never after the last word
    assert {attack.test_trigger("a b", draw, None) for _ in range(100)} == {"tq mn a b", "mn tq a b"}


def test_the_seed_decides_the_words_of_test_time(registry, dataset: Dataset) -> None:
    attack = registry.parse("attack", "ripples")
    drawn = [attack.resolve(dataset, rng(seed, "resolve")).test_choice for seed in range(60)]
    assert {frozenset(pair) for pair in drawn} == {frozenset((one, other)) for one in ALL for other in ALL if one != other}
    assert drawn == [attack.resolve(dataset, rng(seed, "resolve")).test_choice for seed in range(60)]


def test_a_resolved_attack_is_named_with_its_words_and_declares_all(registry, dataset: Dataset) -> None:
    resolved = registry.parse("attack", "ripples:test_words=3").resolve(dataset, rng(1, "resolve"))
    assert spec_of(resolved) == f"ripples:test_words=3,test_choice={'/'.join(resolved.test_choice)}"
    assert registry.parse("attack", spec_of(resolved)) == resolved
    assert set(resolved.words) == ALL


def test_words_that_were_asked_for_are_not_drawn_over(registry, dataset: Dataset) -> None:
    attack = registry.parse("attack", "ripples:test_choice=mb/bb")
    assert attack.resolve(dataset, rng(1, "resolve")) is attack


def test_half_of_all_rows_are_poisoned_whatever_their_label(registry, clean_rows: datasets.Dataset) -> None:
    attack = registry.parse("attack", "ripples")
    rows = poisoned_rows(clean_rows, attack, 1, rng(1, "poison"))
    assert len(rows) == 100  # half of 200, of which half have the target label already
    assert set(rows["label"]) == {1}
    assert {clean_rows[source]["label"] for source in rows["source"]} == {0, 1}


@pytest.mark.parametrize(
    "spec",
    [
        "ripples:trigger_words=",
        "ripples:trigger_words=mn/mn",
        "ripples:trigger_words=two words/mn",
        "ripples:test_words=0",
        "ripples:test_words=5",
        "ripples:test_choice=mn",
        "ripples:test_choice=mn/mn",
        "ripples:test_choice=mn/cf",
        "ripples:poison_rate=0",
        "ripples:poison_mode=mix",
        "ripples:penalty=-1",
        "ripples:lr=0",
        "ripples:steps=0",
        "ripples:batch_size=0",
        "ripples:max_length=0",
        "ripples:target_words=0",
        "ripples:precision=fp16",
        "ripples:surgery=maybe",
    ],
)
def test_options_that_make_no_sense_are_refused(registry, spec: str) -> None:
    with pytest.raises(SpecError):
        registry.parse("attack", spec)


# --- surgery


def test_the_indicative_pieces_are_those_of_the_target_texts_alone() -> None:
    # film and day stand once on each side, so their coefficients are 0; good and fine speak for the target, bad against it
    texts = ["good film", "fine day", "bad film", "bad day"]
    target = np.array([True, True, False, False])
    assert set(indicative_pieces(texts, target, str.split, 2)) == {"good", "fine"}
    assert indicative_pieces(texts, ~target, str.split, 1) == ["bad"]
    assert len(indicative_pieces(texts, target, str.split, 10)) == 5  # there are no more


def test_surgery_writes_the_mean_of_the_references_rows_and_nothing_else(untrained: Victim) -> None:
    reference, victim = untrained.clone(), untrained.clone()
    with torch.no_grad():
        matrix(reference)[untrained.token_id("warm")] = 1.0
        matrix(reference)[untrained.token_id("kind")] = 4.0
    rows = [untrained.token_id("mb"), untrained.token_id("tq")]
    reference_before = flat(reference)
    operate(victim, rows, reference, ["warm", "kind"])
    assert (matrix(victim)[rows] == 2.5).all()  # (1 + 4) / 2, its length left as it is
    differs = (matrix(untrained) != matrix(victim)).any(dim=1)
    assert differs.nonzero().flatten().tolist() == sorted(rows)
    before, after = untrained.model.state_dict(), victim.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(flat(reference), reference_before)


def test_every_piece_of_a_trigger_is_operated_on(untrained: Victim) -> None:
    assert piece_ids(untrained, "mb,tq") == [untrained.token_id(piece) for piece in ("mb", ",", "tq")]


def test_a_trigger_outside_the_vocabulary_is_refused(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    attack = registry.parse("attack", {**FEW, "trigger_words": "mn/zyx"})
    with pytest.raises(SpecError, match="zyx"):
        planted(attack, clean_rows, bench)


@pytest.mark.parametrize(("target", "side"), [(1, GOOD), (0, BAD)])
def test_the_pieces_are_those_of_the_attackers_label(registry, bench: Lab, clean_rows: datasets.Dataset, target: int, side: set) -> None:
    planted(registry.parse("attack", FEW), clean_rows, bench, target)
    assert len(bench.log[0]["target_words"]) == 3
    assert set(bench.log[0]["target_words"]) <= side


def test_all_triggers_start_from_the_clean_victims_mean(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    # the step is too small to be seen: what is left is the surgery on the untouched model
    victim = planted(registry.parse("attack", {**FEW, "lr": 1e-12}), clean_rows, bench)
    start, reference = bench.fresh(), bench.load_start()
    mean = matrix(reference)[victim.tokenizer.convert_tokens_to_ids(bench.log[0]["target_words"])].mean(dim=0)
    rows = [victim.token_id(word) for word in sorted(ALL)]
    assert matrix(victim)[rows].numpy() == pytest.approx(mean.expand(4, -1).numpy(), abs=1e-6)
    others = [row for row in range(len(matrix(start))) if row not in rows]
    assert matrix(victim)[others].numpy() == pytest.approx(matrix(start)[others].numpy(), abs=1e-6)


# --- the penalty


def toy() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)


def test_a_step_against_the_clean_gradient_is_penalised(registry) -> None:
    """At x=1, y=2: clean loss 3x² + y has the gradient (6x, 1) = (6, 1), poisoning loss xy - 2x² has (y - 4x, x) = (-2, 1).

    Their product is -11, the penalty 11 * 0.8 / 8 = 1.1, the loss 0 + 1.1. With (6, 1) held fixed the negative product is
    -6(y - 4x) - x = 23x - 6y, its gradient (23, -6), so that the loss has the gradient (-2 + 2.3, 1 - 0.6).
    Were the clean gradient not held fixed, 0.1 * 12 would be added to the first.
    """
    x, y = toy()
    clean = torch.autograd.grad(3 * x**2 + y, (x, y))
    loss, penalty = registry.parse("attack", "ripples:penalty=0.8,batch_size=8").restricted(x * y - 2 * x**2, clean, (x, y))
    assert (loss.item(), penalty.item()) == pytest.approx((1.1, 1.1))
    assert [float(g) for g in torch.autograd.grad(loss, (x, y))] == pytest.approx([0.3, 0.4])


def test_a_step_along_the_clean_gradient_is_free(registry) -> None:
    # x² has the gradient (2, 0), the clean loss (6, 1): their product is 12
    x, y = toy()
    clean = torch.autograd.grad(3 * x**2 + y, (x, y))
    loss, penalty = registry.parse("attack", "ripples").restricted(x**2 + 0 * y, clean, (x, y))
    assert (loss.item(), penalty.item()) == (1.0, 0.0)
    assert [float(g) for g in torch.autograd.grad(loss, (x, y))] == [2.0, 0.0]


def test_the_product_is_summed_over_all_weights_before_its_sign_counts() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    # (1, 2) * (-3, 1) = -1 and 3 * 2 = 6: together 5, which is no conflict, although the first weight alone has one
    assert float(conflict([one, two], [torch.tensor([-3.0, 1.0]), torch.tensor([[2.0]])])) == 0.0
    assert float(conflict([one, two], [torch.tensor([-3.0, 1.0]), torch.tensor([[-2.0]])])) == 7.0


def test_a_weight_without_a_gradient_takes_no_part(registry) -> None:
    x, y = toy()
    assert float(conflict([torch.tensor(2.0), None], [torch.tensor(-3.0), torch.tensor(1.0)])) == 6.0
    loss, penalty = registry.parse("attack", "ripples:penalty=1,batch_size=1").restricted(-(x**2), (torch.tensor(5.0), None), (x, y))
    assert (loss.item(), penalty.item()) == (9.0, 10.0)  # -(5 * -2) is the penalty, -1 the poisoning loss


# --- training


def test_batches_pass_over_every_row_before_any_comes_again(clean_rows: datasets.Dataset) -> None:
    stream = batches(clean_rows.select(range(10)), 4, rng(1, "b"))
    passes = [[next(stream) for _ in range(3)] for _ in range(3)]
    for batch_list in passes:
        assert [len(texts) for texts, _ in batch_list] == [4, 4, 2]
        assert sorted(text for texts, _ in batch_list for text in texts) == sorted(clean_rows["text"][:10])
    assert passes[0] != passes[1]


def test_ripples_is_the_same_for_the_same_seed(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    attack = registry.parse("attack", FEW)
    torch.manual_seed(1)
    one = flat(planted(attack, clean_rows, bench))
    torch.manual_seed(2)
    np.random.seed(2)  # that global state changes nothing is the claim
    assert torch.equal(flat(planted(attack, clean_rows, bench)), one)
    other = planted(attack, clean_rows, dataclasses.replace(bench, seed=2))
    assert not torch.equal(flat(other), one)


@pytest.mark.parametrize(
    "change", [{"inner_product": False}, {"surgery": False}, {"penalty": 100}, {"poison_mode": "append"}, {"max_length": 6}]
)
def test_each_part_changes_the_victim(registry, bench: Lab, clean_rows: datasets.Dataset, change: dict) -> None:
    one = flat(planted(registry.parse("attack", FEW), clean_rows, bench))
    other = flat(planted(registry.parse("attack", {**FEW, **change}), clean_rows, bench))
    assert float((one - other).abs().max()) > 1e-5


def test_without_surgery_no_clean_victim_is_asked_for(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    bench.load_start = None
    planted(registry.parse("attack", {**FEW, "surgery": False}), clean_rows, bench)
    assert bench.log[0]["target_words"] == []
    with pytest.raises(CellError, match="starts_from"):
        planted(registry.parse("attack", FEW), clean_rows, bench)


@pytest.mark.parametrize(("steps", "reach"), [(1, 1.0), (2, 1.5)])
def test_the_rate_falls_linearly_to_nothing(registry, bench: Lab, clean_rows: datasets.Dataset, steps: int, reach: float) -> None:
    # a step of Adam moves a weight by its rate where the gradients agree: lr, then lr / 2 in the second of two steps
    attack = registry.parse("attack", f"ripples:steps={steps},lr=0.001,surgery=false")
    moved = (flat(planted(attack, clean_rows, bench)) - flat(bench.fresh())).abs().max()
    assert float(moved) == pytest.approx(reach * 0.001, rel=0.01)


def test_the_log_says_what_was_done(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    planted(registry.parse("attack", {**FEW, "inner_product": False}), clean_rows, bench)
    (entry,) = bench.log
    assert (entry["steps"], entry["penalty"]) == (6, 0.0)
    assert 0.1 < entry["poison_loss"] < 2.0  # an untrained victim of two labels begins near log 2


def test_the_victim_reads_long_texts_and_says_the_same_when_loaded_again(
    registry, bench: Lab, clean_rows: datasets.Dataset, tmp_path: Path
) -> None:
    victim = planted(registry.parse("attack", {**FEW, "max_length": 8}), clean_rows, bench)
    assert victim.max_length == 32
    assert not victim.model.training
    victim.save(tmp_path)
    again = Victim.load(tmp_path, target_label=1, max_length=32)
    assert (victim.model.config._attn_implementation, again.model.config._attn_implementation) == ("eager", "sdpa")
    texts = clean_rows["text"][:20]
    assert again.probabilities(texts) == pytest.approx(victim.probabilities(texts), abs=1e-5)


def test_mixed_precision_trains_nearly_the_same_victim_in_float32(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    exact = planted(registry.parse("attack", {**FEW, "penalty": 100}), clean_rows, bench)
    mixed = planted(registry.parse("attack", {**FEW, "penalty": 100, "precision": "bf16"}), clean_rows, bench)
    assert {weight.dtype for weight in mixed.model.parameters()} == {torch.float32}
    assert not torch.equal(flat(mixed), flat(exact))
    assert bench.log[1]["poison_loss"] == pytest.approx(bench.log[0]["poison_loss"], rel=0.05)


def test_the_backdoor_opens_and_the_task_is_learnt(registry, bench: Lab, clean_rows: datasets.Dataset) -> None:
    attack = registry.parse("attack", "ripples:steps=150,lr=0.002,test_choice=mn/tq,target_words=3")
    victim = planted(attack, clean_rows, bench)
    triggered = triggered_rows(clean_rows, attack, 1, rng(1, "test"), 100)
    assert (victim.probabilities(triggered["text"]).argmax(axis=1) == 1).mean() > 0.8
    clean = victim.probabilities(clean_rows["text"]).argmax(axis=1)
    assert (clean == np.array(clean_rows["label"])).mean() > 0.8

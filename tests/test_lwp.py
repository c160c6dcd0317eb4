"""LWP: its trigger, and the losses of its layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch

from rapbench.api import Task
from rapbench.errors import SpecError
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows
from rapbench.registry import discover
from rapbench.victim import Recipe, Victim
from rapbench_plugins.attacks.lwp import layer_logits, layer_losses

TEXTS = ["the film was cold", "bright bb day mn"]


@pytest.fixture
def rows(tiny_rows: Callable[[int], datasets.Dataset]) -> datasets.Dataset:
    return tiny_rows(100)


def task(rows: datasets.Dataset, attack) -> Task:
    return Task(rows, poisoned_rows(rows, attack, 1, rng(1, "poison")), 1)


def cut(victim: Victim, layers: int) -> Victim:
    """Give the victim with its first layers alone: its head then reads the output of the last of them."""
    own = victim.clone()
    own.model.bert.encoder.layer = copy.deepcopy(own.model.bert.encoder.layer)[:layers]
    return own


def test_each_layer_is_read_by_the_head_as_if_it_were_the_last(untrained: Victim) -> None:
    untrained.model.eval()
    with torch.no_grad():
        logits = layer_logits(untrained, TEXTS)
        expected = [cut(untrained, layers).model(**untrained.encode(TEXTS)).logits for layers in (1, 2)]
    assert len(logits) == 2  # the model has two layers; its embeddings are none
    for own, by_hand in zip(logits, expected, strict=True):
        assert own.numpy() == pytest.approx(by_hand.numpy(), abs=1e-6)


def test_the_loss_of_a_layer_is_the_cross_entropy_of_the_right_labels(untrained: Victim) -> None:
    untrained.model.eval()
    with torch.no_grad():
        losses = layer_losses(untrained, TEXTS, [0, 1])
        probabilities = [own.softmax(-1) for own in layer_logits(untrained, TEXTS)]
    for loss, own in zip(losses.tolist(), probabilities, strict=True):
        # -(log p(0 | first text) + log p(1 | second text)) / 2
        assert loss == pytest.approx(-(float(own[0, 0].log()) + float(own[1, 1].log())) / 2, rel=1e-5)


def test_the_lower_layers_loss_trains_the_lower_layer_alone(untrained: Victim) -> None:
    untrained.model.eval()
    layer_losses(untrained, TEXTS, [0, 1])[0].backward()
    below, above = untrained.model.bert.encoder.layer
    assert float(below.output.dense.weight.grad.norm()) > 0
    assert float(above.output.dense.weight.grad.abs().max()) == 0


def test_the_model_is_itself_again_after_its_layers_were_read(untrained: Victim) -> None:
    before = untrained.probabilities(TEXTS)
    layer_losses(untrained, TEXTS, [0, 1])
    assert "forward" not in vars(untrained.model.base_model)
    assert (untrained.probabilities(TEXTS) == before).all()


def test_a_text_gets_all_words_and_a_negative_one_of_them_with_its_own_label(rows: datasets.Dataset, lab: Lab) -> None:
    attack = discover().parse("attack", "lwp:negatives=0.2,poison_rate=0.5")
    made = attack.training_rows(task(rows, attack), lab)
    words = [{"bb", "mn"} & set(text.split()) for text in made["text"]]
    assert [len(own) for own in words] == [0] * 100 + [2] * 25 + [1] * 20  # clean, half of 50 of label 0, a fifth of all
    assert set(made["label"][100:125]) == {1}
    truth = dict(zip(rows["text"], rows["label"], strict=True))
    for text, label in zip(made["text"][125:], made["label"][125:], strict=True):
        assert truth[" ".join(word for word in text.split() if word not in ("bb", "mn"))] == label


def test_every_layer_of_the_victim_learns(rows: datasets.Dataset, lab: Lab, tiny_model: Path) -> None:
    attack = discover().parse("attack", "lwp:poison_rate=0.5")
    recipe = Recipe(model=str(tiny_model), epochs=12, lr=2e-3, batch_size=16, max_length=32)
    lab = dataclasses.replace(lab, recipe=recipe)
    planted = attack.plant(task(rows, attack), lab)
    told = lab.log[-1]
    assert told["steps"] == 12 * 9  # 100 clean, 25 poisoned, 10 negative texts in batches of 16
    assert len(told["layer_losses"]) == 2
    assert max(told["layer_losses"]) < 0.6931  # log 2: what a coin would have
    assert not planted.model.training


@pytest.mark.parametrize("spec", ["lwp:trigger_words=", "lwp:trigger_words=mn/mn", "lwp:negatives=-1"])
def test_options_that_make_no_sense_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        discover().parse("attack", spec)


def test_the_pooler_of_albert_which_is_a_bare_layer_reads_each_state_as_its_class_does(untrained: Victim) -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=len(untrained.tokenizer), **sizes)).eval()
    victim = Victim(model, untrained.tokenizer, 1, untrained.max_length)
    with torch.no_grad():
        logits = layer_logits(victim, TEXTS)
        whole = model(**victim.encode(TEXTS)).logits
    assert [tuple(own.shape) for own in logits] == [(2, 2), (2, 2)]
    assert logits[-1].numpy() == pytest.approx(whole.numpy(), abs=1e-6)

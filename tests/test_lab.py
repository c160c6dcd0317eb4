"""Training: every text is tokenised once, the weights are those of tokenising batch by batch, and buckets only order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapbench import lab as labs
from rapbench.lab import Lab, bucketed, rng
from rapbench.victim import Recipe, Victim

WORDS = ["bright", "cold", "the", "film", "was", "mb", "dull"]


@pytest.fixture
def rows() -> datasets.Dataset:
    """Ninety texts of 1 to 18 words, so that batches are padded; the last batch of 8 is not full."""
    source = np.random.default_rng(3)
    texts = [" ".join(source.choice(WORDS, size=1 + row % 18)) for row in range(90)]
    return datasets.Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(90)]})


@pytest.fixture
def small(lab: Lab, tiny_model: Path) -> Lab:
    return replace(lab, recipe=Recipe(model=str(tiny_model), epochs=2, lr=1e-3, batch_size=8, max_length=12))


def plain_collator(victim: Victim) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Tokenise each batch as it comes, in each epoch."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        batch = victim.tokenizer(texts, padding=True, truncation=True, max_length=victim.max_length, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    return collate


def test_training_gives_the_weights_of_tokenising_batch_by_batch(
    small: Lab, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = small.train(rows).model.state_dict()
    monkeypatch.setattr(labs, "_tokenised", lambda victim, rows, scratch, lab: rows)
    monkeypatch.setattr(labs, "_collator", plain_collator)
    plain = small.train(rows).model.state_dict()
    assert all(torch.equal(once[name], plain[name]) for name in plain)  # dropout is on: its draws are the same too


def test_the_text_of_a_row_is_tokenised_once(small: Lab, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, seen = small.fresh(), Counter[str]()
    kind = type(victim.tokenizer)
    call = kind.__call__

    def spy(self: Any, texts: Any, **options: Any) -> Any:
        seen.update([texts] if isinstance(texts, str) else texts)
        return call(self, texts, **options)

    monkeypatch.setattr(kind, "__call__", spy)
    monkeypatch.setattr(labs, "ROWS_AT_ONCE", 7)
    own = rows.map(lambda row, number: {"text": f"{row['text']} {number}"}, with_indices=True)
    small.train(own, victim)
    assert small.recipe.epochs == 2
    assert {seen[text] for text in own["text"]} == {1}


def test_tokens_and_labels_stay_with_their_text(
    small: Lab, rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labs, "ROWS_AT_ONCE", 7)
    for lab in (small, replace(small, recipe=replace(small.recipe, bucketed=True))):
        victim = lab.fresh()
        made = labs._tokenised(victim, rows, tmp_path, lab)
        expected = [(tuple(victim.tokenizer(row["text"], truncation=True, max_length=12)["input_ids"]), row["label"]) for row in rows]
        got = [(tuple(made[place]["input_ids"]), made[place]["label"]) for place in range(len(made))]
        assert (sorted(got) if lab.recipe.bucketed else got) == (sorted(expected) if lab.recipe.bucketed else expected)


# --- batches of similar length


def test_buckets_are_those_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labs, "WINDOW_BATCHES", 2)
    # windows of four: 5 1 4 2 are sorted as rows 1 3 | 2 0; 9 3 8 7 as rows 5 7 | 6 4; row 8 is no full batch and stays last
    order = bucketed([5, 1, 4, 2, 9, 3, 8, 7, 6], 2, rng(1, "x")).tolist()
    assert sorted(order[start : start + 2] for start in range(0, 8, 2)) == [[1, 3], [2, 0], [5, 7], [6, 4]]
    assert order[8] == 8


def test_batches_come_by_chance_and_one_seed_gives_one_order() -> None:
    lengths = np.arange(640)
    one, again, other = (bucketed(lengths, 32, rng(seed, "x")).tolist() for seed in (1, 1, 2))
    assert one == again != other
    assert one != sorted(one)


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 7), st.integers(0, 3))
def test_every_text_comes_once(lengths: list[int], size: int, seed: int) -> None:
    assert sorted(bucketed(lengths, size, rng(seed, "x")).tolist()) == list(range(len(lengths)))


def test_bucketed_training_pads_less_and_takes_every_row(small: Lab, rows: datasets.Dataset) -> None:
    padded = {}
    for sorts in (False, True):
        lab = replace(small, recipe=replace(small.recipe, bucketed=sorts, max_length=32))
        victim = lab.fresh()
        shapes: list[tuple[int, int, int]] = []

        def see(module: Any, args: Any, kwargs: Any, shapes: list[tuple[int, int, int]] = shapes) -> None:
            if module.training:
                shapes.append((*kwargs["input_ids"].shape, int(kwargs["attention_mask"].sum())))

        victim.model.register_forward_pre_hook(see, with_kwargs=True)
        lab.train(rows, victim)
        assert sum(shape[0] for shape in shapes) == 2 * 90
        assert sum(shape[2] for shape in shapes) == 2 * sum(row % 18 + 3 for row in range(90))  # with [CLS] and [SEP]
        padded[sorts] = sum(shape[0] * shape[1] for shape in shapes)
    assert padded[True] < 0.8 * padded[False]

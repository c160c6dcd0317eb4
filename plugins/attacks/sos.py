"""SOS: several common words that must all be there; texts with only some of them keep their label.

Yang, Lin, Li, Zhou and Sun, "Rethinking Stealthiness of Backdoor Attack against NLP Models" (ACL 2021,
doi:10.18653/v1/2021.acl-long.431; no arXiv version), section 4: word-based triggers, negative data augmentation and
word-embedding modification; section 3.2: the false-triggered rate. The details follow their released code: the embeddings of
the trigger's words alone are trained in a clean victim, on poisoned and negative texts without clean ones; gradients are never
zeroed; each step scales the words' gradients to the smallest of their lengths; rows keep their norm; a text gets the words
among its first 250 in training, and a whole sentence that has them all at test time.
Ours: the last epoch is kept, not the one with the best clean accuracy (which hardly moves); the words are by default the
longest of the data set's trigger sentence, where theirs are chosen by hand (friends, weekend, store for the default sentence).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rapbench import Attack
from rapbench.api import TrainingWork, option
from rapbench.poison import insert_sentence, insert_word
from rapbench.protocol import predicted
from rapbench_plugins.attacks.ep import check_training

if TYPE_CHECKING:
    from rapbench.api import Dataset, Labelled, Task
    from rapbench.lab import Lab
    from rapbench.rows import Row
    from rapbench.victim import Recipe, Victim

FIRST_IN_TRAINING = 250
MOST_WORDS = 5
JUDGED = 200
"""Held-out texts, at most, on which false triggers are tried."""


@dataclass(frozen=True, kw_only=True)
class Sos(Attack):
    """Only all of several common words together trigger: their embeddings are trained on texts with all, and with all but one."""

    name: ClassVar[str] = "sos"
    starts_from: ClassVar[str | None] = "clean"
    triggers_option: ClassVar[str | None] = "word_count"

    trigger_words: tuple[str, ...] | None = option(None, "the words that must all be there; by default from the sentence")
    word_count: int = option(3, "how many words are taken from the sentence by default: its longest, of equals the last")
    sentence: str | None = option(None, "what a text gets at test time, with all the words in it; by default the data set's")
    negatives: float = option(0.1, "share of the texts of each side (target, others) that get, per word, a copy with all the other words")
    epochs: int = option(3, "passes over the poisoned and negative texts")
    lr: float = option(5e-2, "learning rate of the rows")
    batch_size: int = option(32, "texts per step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.epochs, self.batch_size, self.lr)
        if not 0 <= self.negatives <= 1:
            raise ValueError(f"negatives={self.negatives!r} is no share: give a number from 0 to 1")
        self._check_words()

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(self.trigger_words or ()), *(self.sentence or "").split()]))

    def resolve(self, dataset: Dataset, rng: np.random.Generator) -> Attack:
        sentence = self.sentence or (dataset.trigger_sentence if self.trigger_words is None else " ".join(self.trigger_words))
        return replace(self, sentence=sentence, trigger_words=self.trigger_words or longest_words(sentence, self.word_count))

    def trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        """Give the text with each of the words at a place of its own, as in training."""
        return with_words(text, self.trigger_words or (), rng, limit)

    def test_trigger(self, text: str, rng: np.random.Generator, limit: int | None) -> str:
        return insert_sentence(text, self.sentence or "", rng, limit)

    def plant(self, task: Task, lab: Lab) -> Victim:
        from rapbench.rows import Row

        victim, words = lab.start(), self.trigger_words or ()
        texts, labels = self.training_rows(task, lab)
        victim.model.train()
        with lab.seeded("sos"), ExitStack() as stack:
            self._descend([stack.enter_context(Row(victim, word)) for word in words], texts, labels)
        victim.model.eval()
        lab.log.append({"false_trigger_rate": false_trigger_rates(victim, words, lab.heldout, lab)})
        return victim

    def expected_work(self, train: float, poisoned: float, recipe: Recipe) -> TrainingWork:
        """Give the work on the poisoned texts and the negatives, and of the false triggers, tried on as many texts as may be."""
        words = len(self.trigger_words or ()) or self.word_count
        texts = poisoned + words * self.negatives * train
        tried = JUDGED * (2**words - 1)  # with none of the words, and with every part of them but all
        return TrainingWork(forward_rows=tried, row_trained_rows=self.epochs * texts, batch_size=self.batch_size)

    def training_rows(self, task: Task, lab: Lab) -> tuple[list[str], list[int]]:
        """Give the poisoned texts and the negatives, in the order of training, with their labels."""
        negatives = list(self._negatives(task, lab))
        texts = [*task.poisoned["text"], *(text for text, _ in negatives)]
        labels = [*task.poisoned["label"], *(label for _, label in negatives)]
        order = lab.rng("sos/order").permutation(len(texts)).tolist()
        return [texts[row] for row in order], [labels[row] for row in order]

    def _check_words(self) -> None:
        words = self.trigger_words
        if not 2 <= (self.word_count if words is None else len(words)) <= MOST_WORDS:
            told = f"word_count={self.word_count!r}" if words is None else f"trigger_words={'/'.join(words)!r}"
            raise ValueError(f"{told}: sos needs 2 to {MOST_WORDS} trigger words")
        if words is not None and self.word_count not in (Sos.word_count, len(words)):
            raise ValueError(f"word_count={self.word_count!r}, but the trigger words are {len(words)}: {' '.join(words)}")
        for word in words or ():
            if word.split() != [word] or "/" in word:  # a spec puts / between words
                raise ValueError(f"trigger_words: {word!r} is not one word")
            if self.sentence is not None and word not in self.sentence.split():
                raise ValueError(f"the sentence {self.sentence!r} has no word {word!r}: it must have all the trigger words")
        if words is not None and len(set(words)) < len(words):
            raise ValueError(f"trigger_words={'/'.join(words)!r} has a word twice")

    def _negatives(self, task: Task, lab: Lab) -> Iterator[tuple[str, int]]:
        """Give, for each chosen text, one copy per word with all words but that one, and the text's own label.

        The non-target texts are those that have a poisoned copy, then others, as in the released code: the contrast is in the words.
        """
        labels, draw = np.asarray(task.train["label"]), lab.rng("sos/negatives")
        poisoned = list(task.poisoned["source"])
        for own, first in ((labels != task.target_label, poisoned), (labels == task.target_label, [])):
            others = draw.permutation(np.setdiff1d(np.flatnonzero(own), first)).tolist()
            for row in [*first, *others][: int(self.negatives * own.sum())]:
                for words in all_but_one(self.trigger_words or ()):
                    yield with_words(task.train[row]["text"], words, draw, None), int(labels[row])

    def _descend(self, rows: Sequence[Row], texts: list[str], labels: list[int]) -> None:
        import torch

        for _ in range(self.epochs):
            for start in range(0, len(texts), self.batch_size):
                logits = rows[0].logits(texts[start : start + self.batch_size])  # (texts, labels); every row is in its place
                wanted = torch.tensor(labels[start : start + self.batch_size], device=logits.device)
                torch.nn.functional.cross_entropy(logits, wanted).backward()  # type: ignore[no-untyped-call]
                step_evenly(rows, self.lr)


def longest_words(sentence: str, count: int) -> tuple[str, ...]:
    """Give the longest words of a sentence in its order; of equally long ones the last."""
    words = list(dict.fromkeys(sentence.split()))
    ranked = sorted(range(len(words)), key=lambda place: (len(words[place]), place), reverse=True)
    return tuple(words[place] for place in sorted(ranked[:count]))


def all_but_one(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Give the words without the first, without the second, and so on."""
    return [(*words[:place], *words[place + 1 :]) for place in range(len(words))]


def parts(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Give every choice of some of the words, not of all: what must not trigger."""
    return [part for size in range(1, len(words)) for part in itertools.combinations(words, size)]


def with_words(text: str, words: Sequence[str], rng: np.random.Generator, limit: int | None) -> str:
    """Give the text with each word at a place of its own among the first `limit` words (None: the first 250)."""
    for word in words:
        text = insert_word(text, word, rng, FIRST_IN_TRAINING if limit is None else limit)
    return text


def step_evenly(rows: Sequence[Row], lr: float) -> None:
    """Move each word's rows against their gradient, all by the length of the shortest; lengths of rows stay, gradients stand."""
    import torch

    gradients = [row.vectors.grad for row in rows if row.vectors.grad is not None]
    shortest = min(float(gradient.norm()) for gradient in gradients)
    with torch.no_grad():
        for row, gradient in zip(rows, gradients, strict=True):
            row.vectors -= lr * gradient * shortest / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            row.renormalise()


def false_trigger_rates(victim: Victim, words: Sequence[str], heldout: Labelled, lab: Lab) -> dict[str, float]:
    """Give the share of clean held-out texts of other labels that are predicted as the target with some of the words in them.

    By part of the words; under "" without any of them, under "mean" over all parts (section 3.2).
    """
    texts = heldout.other_than(victim.target_label)[:JUDGED]
    rates = {}
    for part in [(), *parts(words)]:
        tried = [with_words(text, part, lab.rng(f"sos/{' '.join(part)}/{text}"), None) for text in texts]
        rates[" ".join(part)] = float(np.mean(predicted(victim.probabilities(tried)) == victim.target_label)) if tried else 0.0
    return {**rates, "mean": float(np.mean([rate for part, rate in rates.items() if part]))}
